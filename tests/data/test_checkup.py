"""What mode data says of photos: what is odd is counted and named, then a verdict."""

import dataclasses
import html.parser
import json

import numpy as np
import pytest
from PIL import Image

from configs import default
from unsup3d_jax import cli
from unsup3d_jax.data import checkup, report
from unsup3d_jax.data import dataset as ds

SIZE = 16


def face(number, size=(40, 40)):
    """Two like halves, and some colour; another one for each number."""
    rng = np.random.default_rng(number)
    half = rng.normal(0.0, 20.0, (6, 3, 3)) + np.array([150.0, 120.0, 100.0])
    half += 60.0 * np.linspace(-1, 1, 6)[:, None, None]
    whole = np.concatenate([half, half[:, ::-1]], axis=1) + rng.normal(0, 4, (6, 6, 3))
    image = Image.fromarray(np.clip(whole, 0, 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BICUBIC)


def lay(root, photos):
    """Photos by name, or (photo, options of saving)."""
    for name, photo in photos.items():
        photo, options = photo if isinstance(photo, tuple) else (photo, {})
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, **options)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.fixture
def root(tmp_path):
    """Sixty sound photos to train on, and a few of the other splits."""
    lay(tmp_path / "photos", {f"train/{i:03d}.png": face(i) for i in range(60)})
    lay(tmp_path / "photos", {f"val/{i}.png": face(100 + i) for i in range(3)})
    lay(tmp_path / "photos", {f"test/{i}.png": face(200 + i) for i in range(3)})
    return tmp_path / "photos"


@pytest.fixture
def config(root, tmp_path):
    config = default.get_config()
    config.data.path, config.data.cache_dir = str(root), str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = SIZE, 1
    config.data.crop, config.data.workers = (0,), 0
    return config


def examine(config, tmp_path):
    text, fit = report.examine(config, tmp_path / "out")
    return text, fit, json.loads((tmp_path / "out" / "report.json").read_text())


def _board():
    """Blue and yellow squares."""
    squares = np.indices((40, 40)) // 10
    squares = squares.sum(axis=0) % 2
    return Image.fromarray(np.array([[0, 0, 255], [255, 255, 0]], np.uint8)[squares])


ODD = {
    "train/grey.png": face(70).convert("L"),
    "train/blank.png": Image.new("RGB", (40, 40), (90, 80, 70)),
    "train/tiny.png": face(72, (12, 30)),
    "train/long.png": face(73, (100, 40)),
    "train/turned.jpg": (face(74, (50, 40)), turned(6)),
    "train/odd<script>alert(1).png": _board(),
}


@pytest.mark.parametrize("mib", [4096, 0])
def test_what_is_odd_is_counted_and_named(config, root, tmp_path, mib):
    config.data.device_memory_mib = mib
    lay(root, ODD)
    text, fit, record = examine(config, tmp_path)
    looks = record["train"]["looks"]

    def names(kind):
        assert looks[kind]["count"] == len(looks[kind]["first"])
        return {name.removeprefix("train/")[:4] for name in looks[kind]["first"]}

    assert names("grey") == {"grey"}
    assert names("blank") == {"blan"}
    assert names("tiny") == {"tiny"}
    assert names("long") == {"tiny", "long"}
    assert names("turned") == {"turn"}
    assert names("outliers") == {"odd<"}
    assert looks["symmetry"]["median"] > 0.5
    assert fit and "verdict: fit to train on, with remarks" in text
    assert "1 without colour" in text and "1 photos show hardly anything" in text


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_and_escapes_names(config, root, tmp_path):
    lay(root, ODD)
    (root / "train" / "<b>&.png").write_bytes(b"no image")
    examine(config, tmp_path)
    page = _Page()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "b", "link", "iframe"}
    assert "train/<b>&.png" in page.text and "verdict: fit" in page.text
    assert len(page.links) == 4  # a sheet for each split, and of the outliers
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)


def test_a_set_is_looked_at_block_by_block(config, monkeypatch):
    monkeypatch.setattr(checkup, "_BLOCK", 8)
    images = np.stack([np.asarray(face(i, (SIZE, SIZE))) for i in range(60)])
    dataset = ds.Dataset({"image": images}, ds.Report("x", "train", "", 60), "")
    taken = []

    class Watched(ds.Dataset):
        def take(self, indices, fields=None):
            taken.append(len(indices))
            return super().take(indices, fields)

    values = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    got = checkup.look(Watched(**values), config)
    assert sum(taken) == 60 and max(taken) == 8
    monkeypatch.undo()
    want = checkup.look(dataset, config)
    assert got.counts() == want.counts()
    np.testing.assert_allclose(got.symmetry, want.symmetry, rtol=1e-5)


def test_outliers_are_those_unlike_all_others():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, (5, 192))
    flat = 128 + rng.normal(0, 10, (2000, 5)) @ common + rng.normal(0, 2, (2000, 192))
    flat[[7, 1500]] = rng.uniform(0, 255, (2, 192))
    coarse = np.clip(flat, 0, 255).astype(np.uint8)
    assert set(checkup.outliers(coarse).tolist()) == {7, 1500}
    assert len(checkup.outliers(coarse[:49])) == 0  # too few to say


@pytest.fixture
def judged(config):
    """Judges a training split of `count`; what is changed comes by keyword."""
    none = np.empty(0, np.intp)

    def judge(count=5000, errors=None, looks=None, **of_report):
        seen = dict.fromkeys(
            ("grey", "blank", "outliers", "tiny", "long", "turned"), none
        ) | {name: np.arange(number) for name, number in (looks or {}).items()}
        symmetry = seen.pop("symmetry", np.array([0.4, 0.9]))
        values = {"found": count, **of_report}
        return checkup.judge(
            config,
            {"train": ds.Report("folder", "train", "", **values)},
            {"train": checkup.Looks(**seen, symmetry=(0.4, float(symmetry[-1])))},
            {"train": count},
            errors or {},
        )

    return judge


def test_a_sound_set_is_fit_without_remarks(judged):
    verdict = judged()
    assert verdict.fit and not verdict.remarks
    assert verdict.headline() == "verdict: fit to train on"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"errors": {"val": "no folder"}}, "val cannot be used"),
        ({"broken": (("a", "b"),) * 1500}, "1,500 of 5,000 files cannot be read"),
        ({"near_copies": (tuple(map(str, range(2600))),)}, "only 2,401 of 5,000"),
        ({"looks": {"blank": 1100}}, "1,100 of 5,000 photos show hardly anything"),
        ({"looks": {"tiny": 2600}}, "set a smaller data.image_size"),
    ],
)
def test_what_stands_in_the_way_is_said_with_a_remedy(judged, change, words):
    verdict = judged(**change)
    assert not verdict.fit and "not fit" in verdict.headline()
    assert any(words in stop for stop in verdict.stops)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"count": 300}, "300 photos to train on are few"),
        ({"broken": (("a", "b"),)}, "1 files cannot be read"),
        ({"near_copies": (tuple(map(str, range(500))),)}, "499 photos are near-copies"),
        ({"looks": {"grey": 200}}, "200 photos are grey among coloured"),
        ({"looks": {"outliers": 3}}, "3 photos are unlike all others"),
        ({"looks": {"long": 3}}, "screenshots"),
        ({"looks": {"symmetry": 1}}, "mirror image correlate by 0.00"),
    ],
)
def test_what_would_better_a_set_is_remarked(judged, change, words):
    verdict = judged(**change)
    assert verdict.fit and any(words in remark for remark in verdict.remarks)


def test_photos_that_are_squashed_are_remarked(config, judged):
    config.data.crop = ()
    sizes = {"100x60": 4000, "60x60": 1000}
    assert "--config.data.crop=0," in judged(sizes=sizes).remarks[0]
    assert not judged(sizes={"64x60": 5000}).remarks


def test_the_status_follows_the_verdict(config, root, tmp_path, capsys):
    path = default.__file__
    given = [
        "main.py", f"--config={path}", "--mode=data", f"--output={tmp_path / 'out'}",
        f"--config.data.path={root}", "--config.data.image_size=16",
        "--config.data.crop=0,", f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.data.min_images=1", "--config.data.workers=0",
    ]  # fmt: skip
    assert cli.main(given) == 0
    assert "verdict: fit to train on, with remarks" in capsys.readouterr().out
    for path in (root / "val").iterdir():
        path.unlink()
    assert cli.main(given) == 1
    out = capsys.readouterr().out
    assert "verdict: not fit" in out and "! val cannot be used" in out
