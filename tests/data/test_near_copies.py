"""Copies of a photo are found and fall into one split; look-alikes are kept apart."""

import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from configs import default
from unsup3d_jax.data import folder, near_copies, report
from unsup3d_jax.data.load import lazy_splits, load_split
from unsup3d_jax.engine import workdir
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d.task import IDENTITY


def picture(seed: int, side: int = 96) -> Image.Image:
    """A scene of its own: large blotches under small ones."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    size = (side, side)
    coarse, fine = (i.resize(size, Image.Resampling.BICUBIC) for i in (coarse, fine))
    return Image.blend(coarse, fine, 0.3)


def reduced(pictures) -> tuple[np.ndarray, np.ndarray]:
    size = (near_copies._SIDE,) * 2
    small = [p.resize(size, Image.Resampling.BILINEAR) for p in pictures]
    parts = [near_copies.reduce(np.asarray(p.convert("RGB"))) for p in small]
    return tuple(map(np.stack, zip(*parts, strict=True)))


CHANGES = {
    "equal": lambda p: p,
    "half": lambda p: p.resize((48, 48), Image.Resampling.LANCZOS),
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "grey": lambda p: p.convert("L"),
    "dark": lambda p: ImageEnhance.Brightness(p).enhance(0.5),
    "flat": lambda p: ImageEnhance.Contrast(p).enhance(0.6),
    "warm": lambda p: Image.fromarray(
        np.clip(np.asarray(p) * (1.1, 1.0, 0.9), 0, 255).astype(np.uint8)
    ),
    "cut": lambda p: p.crop((1, 1, 95, 95)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change):
    others = [picture(seed) for seed in range(1, 40)]
    found = near_copies.find(
        *reduced([picture(0), *others, CHANGES[change](picture(0))])
    )
    assert found == near_copies.NearCopies(groups=((0, 40),))


def test_look_alikes_are_kept_apart():
    """One scene under another's detail, as two faces in one pose and light."""
    base = picture(0)
    stack, colours = reduced([Image.blend(base, picture(i), 0.3) for i in range(1, 9)])
    flat = near_copies._unit(stack).reshape(8, -1)
    assert np.corrcoef(flat).min() > 0.75
    assert near_copies.find(stack, colours) == near_copies.NearCopies()


def test_what_is_alike_in_grey_alone_is_kept_apart():
    """Discs on a ground, each of another colour; a grey print is a copy of one."""
    y, x = np.mgrid[:96, :96] / 47.5 - 1.0
    shade = np.clip(1.1 - 0.7 * np.hypot(x, y), 0.4, 1.0)[..., None]
    tones = np.array([[250, 120, 120], [120, 208, 60], [140, 160, 255]])
    discs = [Image.fromarray((shade * tone).astype(np.uint8)) for tone in tones]
    stack, colours = reduced(discs)
    unit = near_copies._unit(stack).reshape(3, -1)
    assert np.linalg.norm(unit[0] - unit[1:], axis=1).max() < 0.1
    assert near_copies.find(stack, colours) == near_copies.NearCopies()
    found = near_copies.find(*reduced([discs[0], picture(1), discs[0].convert("L")]))
    assert found.groups == ((0, 2),)


def test_every_pair_within_the_radius_is_found():
    """As by comparing all with all, on either side of the radius."""
    rng = np.random.default_rng(0)
    some = reduced([picture(seed) for seed in range(30)])[0].astype(float)
    parts = [some]
    for noise in np.linspace(1, 14, 12):
        moved = some[rng.integers(0, 30, 12)] + rng.normal(0, noise, (12, 32, 32))
        moved[::2] = moved[::2, :, ::-1]
        parts.append(moved)
    stack = np.clip(np.concatenate(parts), 0, 255).astype(np.uint8)
    unit = near_copies._unit(stack)
    low = near_copies._low(unit)
    mirror = near_copies._low(unit[:, :, ::-1])

    def all_distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=(2, 3))

    near = (all_distances(unit, unit) <= near_copies.RADIUS) & (
        all_distances(low, low) <= near_copies.LOW_RADIUS
    )
    near |= (all_distances(unit, unit[:, :, ::-1]) <= near_copies.RADIUS) & (
        all_distances(low, mirror) <= near_copies.LOW_RADIUS
    )
    np.fill_diagonal(near, False)
    grey = np.zeros((len(stack), 8, 8, 3), np.uint8)
    pairs = near_copies._pairs(stack, grey, workers=1)
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {
        (int(a), int(b)) for a, b in zip(*np.nonzero(near), strict=True) if a < b
    }
    assert 50 < near.sum() / 2 < 1000


def test_equal_pictures_are_one_group_and_a_film_is_none():
    one = [part.repeat(3000, axis=0) for part in reduced([picture(0)])]
    assert near_copies.find(*one).groups == (tuple(range(3000)),)
    blank = Image.new("L", (32, 32), 128)
    assert near_copies.find(*reduced([picture(0), blank, blank])).groups == ((1, 2),)
    frames = [Image.blend(picture(0), picture(1), t) for t in np.linspace(0, 1, 90)]
    film = near_copies.find(*reduced([*frames, picture(2), picture(2)]))
    assert film.groups == ((90, 91),)
    assert film.scenes == (tuple(range(90)),)


# --- splits -----------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    config = default.get_config()
    config.data.path = str(tmp_path / "photos")
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size = 8
    config.data.min_images = 1
    config.data.hash_split_percent = (60, 20, 20)
    return config


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(40):
        picture(i).save(root / f"{i:02d}.png")
    return root


def names_of(config):
    """split -> names that `load_split` reads, by their pixels' order."""
    found = {}
    for split in ("train", "val", "test"):
        config.data.device_memory_mib = 0  # streamed: items have names
        found[split] = [item.name for item in load_split(config, split).items]
    return found


def test_without_copies_the_split_is_that_of_the_names(config, photos):
    (photos / "broken.png").write_bytes(b"")
    together, digest = names_of(config), load_split(config, "train").digest
    config.data.near_copies = "apart"
    assert names_of(config) == together
    assert load_split(config, "train").digest == digest
    assert load_split(config, "train").report.notes == ()


def test_copies_fall_into_the_split_of_one_of_them(config, photos):
    percent = config.data.hash_split_percent
    (photos / "0-broken.png").write_bytes(b"")
    groups = []
    for i in range(10):
        copies = [f"copies/{i:02d}-{k}.jpg" for k in range(3)]
        (photos / "copies").mkdir(exist_ok=True)
        for name in copies:
            CHANGES["mirrored"](picture(i)).save(photos / name, quality=80)
        groups.append([f"{i:02d}.png", *copies])
    split_of = {n: folder.hash_split(n, percent) for group in groups for n in group}
    assert any(len({split_of[n] for n in group}) > 1 for group in groups)
    names = names_of(config)
    home = {name: split for split, some in names.items() for name in some}
    assert len(home) == sum(map(len, names.values())) == 70
    for group in groups:
        assert len({home[n] for n in group}) == 1
        # The lowest hash decides, whatever else is there.
        assert home[group[0]] == split_of[min(group, key=folder._hash_of)]
    for i in range(10, 40):
        assert home[f"{i:02d}.png"] == folder.hash_split(f"{i:02d}.png", percent)
    told = []
    lazy_splits(config, told.append)("train")
    words = "40 near-copies in 10 groups, each of which lies in one split"
    assert words in told[0] and "'00.png' and 'copies/00-0.jpg'" in told[0]
    config.data.max_images = 5  # of each split, which are all that is compared
    compared = set()
    for split in names:
        some = [n for n in sorted(home) if folder.hash_split(n, percent) == split]
        compared |= set(some[:5])
    few = names_of(config)
    assert {name for some in few.values() for name in some} <= compared
    assert all(0 < len(some) <= 5 for some in few.values())


def test_copies_across_folders_are_said_and_left(config, tmp_path):
    root = tmp_path / "photos"
    for split, seeds in (("train", range(6)), ("test", (3, 7))):
        (root / split).mkdir(parents=True)
        for i in seeds:
            picture(i).save(root / split / f"{i}.png")
    text = report.data_report(config, tmp_path / "out")
    words = "2 near-copies in 1 group lie in more than one split"
    assert words in text and "'test/3.png' and 'train/3.png'" in text
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["train"]["near_copies"] == [["test/3.png", "train/3.png"]]
    assert [record[split]["usable"] for split in ("train", "test")] == [6, 2]
    config.data.near_copies = "apart"
    assert "near-copies" not in report.data_report(config, tmp_path / "out")
    config.data.near_copies = "yes"
    with pytest.raises(UserError, match="data.near_copies: expected together or apart"):
        load_split(config, "train")


def test_a_film_stays_in_the_splits_of_its_names(config, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i, t in enumerate(np.linspace(0, 1, 90)):
        Image.blend(picture(0), picture(1), t).save(root / f"{i:02d}.png")
    names = names_of(config)
    for split, some in names.items():
        for name in some:
            assert folder.hash_split(name, config.data.hash_split_percent) == split
    (note,) = load_split(config, "train").report.notes
    assert note.startswith("90 photos look alike, as frames of one film do")


def test_a_run_older_than_the_key_goes_on_if_its_images_are_the_same(config):
    old = config.to_dict()
    del old["data"]["near_copies"]
    assert default.YOUNGER["data.near_copies"] == "apart"
    assert workdir.differing_keys(old, config.to_dict(), IDENTITY) == []


def test_what_is_alike_is_looked_for_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    pixels[4] = pixels[1][:, ::-1]
    parts = [near_copies.reduce(picture) for picture in pixels]
    arrays = [np.stack(part) for part in zip(*parts, strict=True)]
    found = near_copies.find(*arrays, cache=tmp_path)
    assert found.groups == ((1, 4),)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(near_copies, "_pairs", None)  # not called again
    assert near_copies.find(*arrays, cache=tmp_path) == found
    with pytest.raises(TypeError):  # other pictures are compared
        near_copies.find(arrays[0][:5], arrays[1][:5], cache=tmp_path)
