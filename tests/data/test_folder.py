"""Which files are read, what becomes of their pixels, and which are refused."""

import io
import json
import os
import pathlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import default
from unsup3d_jax.data import array_files, folder, images, prepare, report, synface
from unsup3d_jax.data import dataset as ds
from unsup3d_jax.data.load import lazy_splits, load_split
from unsup3d_jax.data.photos import look
from unsup3d_jax.engine.interrupts import Interrupts
from unsup3d_jax.engine.task import Session
from unsup3d_jax.errors import UserError
from unsup3d_jax.unsup3d import task


@pytest.fixture
def config(tmp_path):
    """Folders train, val, test; a test of the other ways says so."""
    config = default.get_config()
    config.data.split = "folder"
    config.data.near_copies = "apart"  # compares nothing
    config.data.path = str(tmp_path / "photos")
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.image_size = 8
    config.data.min_images = 1
    config.data.workers = 2
    return config


def write(path, pixels=None, **options):
    """Writes an image, by default a 12 x 10 one that its name determines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        rng = np.random.default_rng(list(path.name.encode()))
        pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def huge_png(width, height) -> bytes:
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


# --- listing and splitting --------------------------------------------------


def test_listing_is_recursive_sorted_and_ignores_case_and_hidden_files(tmp_path):
    wanted = ["B.JPG", "a.png", "sub/deep/c.TiFF", "sub/x.webp"]
    for name in [*wanted, "notes.txt", "._a.png", ".git/d.png", "sub/e.jpg.part"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    assert look(tmp_path).images == wanted
    assert look(tmp_path).others == {".txt": 1}


def test_listing_follows_a_linked_folder(tmp_path):
    write(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "link")
    assert look(tmp_path / "root").images == ["link/a.png"]


@pytest.mark.parametrize(
    "entries",
    [
        ("config.json", "checkpoints/4/x", "pictures/a.png", "baselines/b/c.png"),
        ("report.json", "train.png", "val_depth.png"),
        ("factors.npz", "panel.png"),
        ("table.json", "rows/a/b", "figure.png"),
    ],
)
def test_what_this_program_wrote_is_not_a_photo(tmp_path, entries):
    for name in ("a.png", "deep/b.png", *(f"deep/out/{entry}" for entry in entries)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert look(tmp_path).images == ["a.png", "deep/b.png"]
    assert look(tmp_path).others == {}
    # Whoever asks for the very folder gets it.
    assert look(tmp_path / "deep" / "out").images


def test_hash_split_is_the_same_on_every_machine():
    # Hex digits 1-16 of sha256sum of the UTF-8 name, modulo 100: 26, 55, 44,
    # and the edges.
    names = {"a.jpg": "train", "b/c.png": "val", "\u00e4.jpg": "train"}
    names |= {"125.jpg": "train", "76.jpg": "val", "155.jpg": "val", "81.jpg": "test"}
    assert {n: folder.hash_split(n, (50, 25, 25)) for n in names} == names
    assert folder.hash_split("a\u0308.jpg", (44, 1, 55)) == "val"  # macOS' form: 44


def test_hash_split_has_the_shares_asked_for():
    splits = [folder.hash_split(f"{i}.jpg", (80, 15, 5)) for i in range(4000)]
    shares = [splits.count(name) / 4000 for name in ds.SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.15, 0.05], atol=0.02)
    assert {folder.hash_split(f"{i}", (0, 100, 0)) for i in range(99)} == {"val"}


def test_auto_split_takes_folders_where_they_exist(config, tmp_path):
    config.data.split = "auto"
    for name in ("train/a.png", "val/b.png", "other/c.png"):
        write(tmp_path / "photos" / name)
    assert [i.name for i in folder.split_items(config, "train")] == ["train/a.png"]
    assert [i.name for i in folder.split_items(config, "val")] == ["val/b.png"]
    with pytest.raises(UserError, match="no folder 'test'"):
        folder.split_items(config, "test")
    config.data.split = "hash"
    config.data.hash_split_percent = (100, 0, 0)
    assert len(folder.split_items(config, "train")) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),  # Roboflow
        ("train", "validation"),  # Hugging Face's ImageFolder
        ("Train", "Val", "Test"),
        ("training", "testing"),
        ("TRAIN", "Validation"),
    ],
)
def test_usual_names_of_splits_are_taken_for_what_they_say(config, tmp_path, names):
    config.data.split = "auto"
    for name in (*names, "other"):
        write(tmp_path / "photos" / name / "images" / "a.png")
    meant = {n: next(s for s in ds.SPLITS if s[:2] == n[:2].lower()) for n in names}
    for name, split in meant.items():
        items = [item.name for item in folder.split_items(config, split)]
        assert items == [f"{name}/images/a.png"]
        with pytest.raises(UserError, match="is the folder of the photos"):
            folder.check_output(config, tmp_path / "photos" / name, "--output")
    for split in set(ds.SPLITS) - set(meant.values()):
        with pytest.raises(UserError, match=f"no folder '{split}' \\('"):
            folder.split_items(config, split)
    assert folder.unused_folders(config) == ()


def test_folders_named_as_splits_and_not_used_are_said(config, tmp_path):
    root = tmp_path / "photos"
    config.data.split = "auto"
    write(root / "train" / "a.png")
    assert folder.unused_folders(config) == ()  # a lone train/
    for name in ("val", "Validation", "test"):
        write(root / name / f"{name}.png")
    told = []
    lazy_splits(config, told.append)("train")
    assert "'Validation' not used, as there is 'val' already" in told[0]
    assert "'Validation' not used" in report.data_report(config, tmp_path / "out")
    config.data.split = "hash"
    config.data.hash_split_percent = (100, 0, 0)
    (clause,) = folder.unused_folders(config)
    assert clause.startswith("the folders 'train', 'val', 'Validation', 'test' are not")
    lazy_splits(config, told.append)("train")
    assert clause in told[1]


def test_auto_split_divides_a_lone_training_folder(config, tmp_path):
    config.data.split = "auto"
    for i in range(60):
        write(tmp_path / "photos" / "train" / f"{i}.png")
    assert all(folder.split_items(config, name) for name in ds.SPLITS)


def test_hash_splits_are_disjoint_and_complete(config, tmp_path):
    config.data.split = "auto"
    for i in range(60):
        write(tmp_path / "photos" / f"{i}.png")
    parts = [folder.split_items(config, name) for name in ds.SPLITS]
    names = [item.name for part in parts for item in part]
    assert sorted(names) == look(tmp_path / "photos").images
    assert len(set(names)) == 60


# --- pixels -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(images.EXTENSIONS))
def test_every_format_is_read(tmp_path, suffix):
    colour = (0, 0, 200) if suffix != ".pgm" else (90, 90, 90)
    image = Image.new("RGB", (9, 7), colour)
    image = image.convert("L") if suffix == ".pgm" else image
    # PIL does not know all the names that JPEG goes by.
    options = {"format": "JPEG"} if suffix in (".jif", ".jfi") else {}
    path = write(tmp_path / f"x{suffix}", image, **options)
    pixels, size = images.read_image(path, crop=(), image_size=4)
    assert (pixels.shape, pixels.dtype, size) == ((4, 4, 3), np.uint8, (9, 7))
    np.testing.assert_allclose(pixels, np.broadcast_to(colour, (4, 4, 3)), atol=3)


# Where the stored row 0 and column 0 lie in the upright picture (EXIF 2.3).
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_exif_orientation_is_applied(tmp_path, tag, suffix):
    upright = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    row, column = ORIENTATIONS[tag]
    stored = upright
    if "bottom" in (row, column):
        stored = stored[::-1]
    if "right" in (row, column):
        stored = stored[:, ::-1]
    if row in ("left", "right"):
        stored = stored.transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    path = write(
        tmp_path / f"x{suffix}", np.ascontiguousarray(stored), exif=exif, **options
    )
    with images.open_upright(path) as image:
        np.testing.assert_array_equal(image, upright)


def test_an_orientation_that_cannot_be_read_is_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    blocks = (b"\x00\x08\x00\x02\x01\x12\x00\x03", b"Exif\x00\x00nonsense")
    for suffix, options in ((".png", {}), (".webp", {"lossless": True, "exact": True})):
        for exif in blocks:
            path = write(tmp_path / f"x{suffix}", pixels, exif=exif, **options)
            with images.open_upright(path) as image:
                np.testing.assert_array_equal(image, pixels)


def png_chunk(kind, body):
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


@pytest.mark.parametrize("behind", [False, True], ids=["before pixels", "behind"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many"])
def test_large_texts_and_profiles_do_not_cost_the_photo(tmp_path, kind, behind):
    """Nor are they inflated: 256 MB of text are 1 MB in the file."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = write(tmp_path / "x.png", pixels, exif=exif).read_bytes()
    squeeze = zlib.compressobj(1)
    block = bytes(1 << 20)
    count = 256 if kind == "zTXt" and not behind else 3
    body = b"".join(squeeze.compress(block) for _ in range(count)) + squeeze.flush()
    text = png_chunk(b"tEXt", b"workflow\0" + bytes(1 << 20))
    chunks = {
        "zTXt": png_chunk(b"zTXt", b"workflow\0\0" + body),
        "iTXt": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + body),
        "iCCP": png_chunk(b"iCCP", b"profile\0\0" + body),
        "many": 70 * text,
    }
    place = whole.index(b"IEND") - 4 if behind else 8 + 25
    path = tmp_path / "y.png"
    path.write_bytes(whole[:place] + chunks[kind] + whole[place:])
    tracemalloc.start()
    with images.open_upright(path) as image:
        np.testing.assert_array_equal(image, pixels[::-1, ::-1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20
    if kind == "zTXt" and not behind:  # a file that ends inside what is skipped to
        path.write_bytes(whole[:place] + chunks[kind] + whole[place : place + 30])
        with pytest.raises(Exception, match="truncated|identify|broken"):
            images.read_image(path, crop=(), image_size=2)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    path = write(tmp_path / "x.png", rgba)
    pixels, _ = images.read_image(path, crop=(), image_size=2)
    np.testing.assert_array_equal(pixels[0], [[255, 255, 255]] * 2)
    np.testing.assert_array_equal(pixels[1], [[200, 0, 0]] * 2)
    palette = Image.new("P", (2, 2), 3)
    palette.putpalette([10, 20, 30] * 256)
    path = write(tmp_path / "p.png", palette, transparency=3)
    pixels, _ = images.read_image(path, crop=(), image_size=2)
    np.testing.assert_array_equal(pixels, 255)


def test_grey_of_every_depth_becomes_8_bit_rgb(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    # Anything within half a grey level of 257 times the 8-bit value.
    wide = np.clip(
        ramp.astype(int) * 257 + np.arange(256).reshape(16, 16) - 128, 0, 65535
    )
    wide = wide.astype(np.uint16)
    for name, image in (
        ("l8.png", Image.fromarray(ramp.astype(np.uint8))),
        ("l16.png", Image.fromarray(wide)),
        ("l16.tiff", Image.fromarray(wide)),
        ("l16.pgm", Image.fromarray(wide)),
    ):
        path = write(tmp_path / name, image)
        pixels, _ = images.read_image(path, crop=(), image_size=16)
        np.testing.assert_array_equal(pixels, np.repeat(ramp[..., None], 3, 2), name)
    path = write(tmp_path / "bits.png", Image.new("1", (4, 4), 1))
    np.testing.assert_array_equal(
        images.read_image(path, crop=(), image_size=4)[0], 255
    )


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta + yellow = red
    path = write(tmp_path / "x.jpg", cmyk, quality=95)
    pixels, _ = images.read_image(path, crop=(), image_size=4)
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], (4, 4, 3)), atol=4)


def test_centre_crop_rounds_half_to_even():
    # (5-2)/2 = 1.5 -> 2, (7-2)/2 = 2.5 -> 2
    assert images.crop_box((2,), 5, 7) == (2, 2, 2, 2)
    assert images.crop_box((0,), 5, 8) == (0, 2, 5, 5)
    assert images.crop_box((), 5, 7) == (0, 0, 5, 7)
    assert images.crop_box((1, 2, 3, 4), 5, 7) == (1, 2, 3, 4)
    for crop in ((6,), (3, 0, 3, 1), (0, 4, 1, 4)):
        with pytest.raises(images.CropError, match="does not fit into 7 x 5"):
            images.crop_box(crop, 5, 7)
    for crop in ((1, 2), (-1,), (0, 0, 0, 3)):
        with pytest.raises(ValueError, match="crop must be"):
            images.crop_box(crop, 5, 7)


def test_crop_cuts_rows_by_y_and_columns_by_x(tmp_path):
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[2:4, 5:7] = 255
    path = write(tmp_path / "x.png", pixels)
    got, size = images.read_image(path, crop=(2, 5, 2, 2), image_size=2)
    np.testing.assert_array_equal(got, 255)
    assert size == (9, 6)


def test_resize_is_antialiased(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    path = write(tmp_path / "x.png", board)
    pixels, _ = images.read_image(path, crop=(), image_size=8)
    np.testing.assert_allclose(pixels[1:-1, 1:-1], 127.5, atol=4)


# --- bad files ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("mib", [64, 0], ids=["memory", "streamed"])
def test_broken_files_are_counted_named_and_never_read_again(config, tmp_path, mib):
    config.data.device_memory_mib = mib
    root = tmp_path / "photos" / "train"
    for i in range(4):
        write(root / f"{i}.png")
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    (root / "1a_cut.jpg").write_bytes(buffer.getvalue()[:-1000])
    (root / "1b_empty.png").write_bytes(b"")
    (root / "1c_text.jpg").write_text("this is no image")
    (root / "1d_bomb.png").write_bytes(huge_png(100_000, 100_000))
    (root / "1d_large.png").write_bytes(huge_png(12_000, 11_000))
    (root / "1e_float.tiff").write_bytes(b"")
    write(root / "1e_float.tiff", np.ones((4, 4), np.float32))
    write(root / "1f_other.jpg", noise, format="PCX")
    os.symlink(root / "nowhere", root / "1g_dangling.png")
    dataset = load_split(config, "train")
    assert dataset.is_streamed == (mib == 0)
    assert len(dataset) == 4 and dataset.report.found == 12
    reasons = {os.path.basename(n): r for n, r in dataset.report.broken}
    assert sorted(reasons) == sorted(p.name for p in root.glob("1?_*"))
    assert "truncated" in reasons["1a_cut.jpg"]
    most = "more than 128 million pixels"
    assert reasons["1d_bomb.png"] == f"too large: {most}"
    assert reasons["1d_large.png"] == f"too large: 12000 x 11000, {most}"
    assert "identify" in reasons["1f_other.jpg"]
    assert "floating" in reasons["1e_float.tiff"]
    assert str(tmp_path) not in "".join(reasons.values())
    # What is left are the four good images, in order, under their own pixels.
    got = dataset.take(range(4))["image"]
    for i in range(4):
        want, _ = images.read_image(root / f"{i}.png", crop=(), image_size=8)
        np.testing.assert_array_equal(got[i], want)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise(tmp_path_factory, data):
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]))
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.png"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    item = ds.Item("x.png", (str(path),))

    def read(item):
        pixels, size = images.read_image(item.paths[0], crop=(), image_size=4)
        return {"image": pixels}, size

    result = ds.read_item(item, read)
    assert isinstance(result, ds.Failure) or result[0]["image"].shape == (4, 4, 3)


# --- errors ------------------------------------------------------------------


def test_errors_name_the_key(config, tmp_path):
    def check(match, split="train", **changes):
        changed = config.copy_and_resolve_references()
        for key, value in changes.items():
            changed.data[key] = value
        with pytest.raises(UserError, match=match):
            load_split(changed, split)

    root = tmp_path / "photos"
    check("data.path: .* is not a folder")
    check("data.path", path="")
    root.mkdir()
    config.data.split = "auto"
    check("empty: no image files")
    config.data.split = "folder"
    for i in range(5):
        write(root / "train" / f"{i}.png")
    (root / "train" / "bad.png").write_bytes(b"")
    (root / "val").mkdir()
    (root / "test").mkdir()
    (root / "test" / "bad.png").write_bytes(b"")
    check("5 usable .* fewer than 6 .*1 cannot be read.*bad.png", min_images=6)
    check("split 'val' is empty", split="val")
    check("0 usable .* 'test'", split="test")
    check("0.png: crop .* does not fit into 12 x 10.*data.crop", crop=(11,))
    check("data.crop", crop=(1, 2))
    check("data.name", name="imagenet")
    check("data.hash_split_percent", hash_split_percent=(90, 10, 10))
    with pytest.raises(UserError, match="split"):
        load_split(config, "dev")
    config.data.split = "random"
    with pytest.raises(UserError, match="data.split"):
        load_split(config, "train")


@pytest.mark.parametrize("mib", [1, 0], ids=["memory", "streamed"])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_do_not_change_the_result(config, tmp_path, workers, mib):
    for i in range(6):
        write(tmp_path / "photos" / "train" / f"{i}.png")
    want = load_split(config, "train").arrays["image"]
    config.data.workers, config.data.device_memory_mib = workers, mib
    config.data.cache_dir = str(tmp_path / "another")
    got = load_split(config, "train").take([4, 0, 5])["image"]
    np.testing.assert_array_equal(got, want[[4, 0, 5]])


def test_max_images_keeps_the_first(config, tmp_path):
    for i in range(6):
        write(tmp_path / "photos" / "train" / f"{i}.png")
    everything = load_split(config, "train").arrays["image"]
    config.data.max_images = 2
    some = load_split(config, "train").arrays["image"]
    np.testing.assert_array_equal(some, everything[:2])


# --- cache -------------------------------------------------------------------


@pytest.fixture
def photos(config, tmp_path):
    for i in range(5):
        write(tmp_path / "photos" / "train" / f"{i}.png")
    (tmp_path / "photos" / "train" / "bad.png").write_bytes(b"")
    return tmp_path / "photos" / "train"


def test_second_load_comes_from_the_cache_and_is_equal(config, photos, tmp_path):
    first = load_split(config, "train")
    second = load_split(config, "train")
    assert (first.report.cached, second.report.cached) == (False, True)
    np.testing.assert_array_equal(first.arrays["image"], second.arrays["image"])
    assert first.report.broken == second.report.broken
    assert first.report.sizes == second.report.sizes == {"12x10": 5}
    assert first.digest == second.digest
    (stored,) = (tmp_path / "cache" / "prepared").iterdir()
    assert stored.suffix == ".npz"


def test_a_changed_folder_is_read_again(config, photos):
    path = write(photos / "3.bmp")
    before = load_split(config, "train")
    size = path.stat().st_size
    write(path, np.full((10, 12, 3), 7, np.uint8))
    assert path.stat().st_size == size  # only the time tells
    after = load_split(config, "train")
    assert not after.report.cached
    np.testing.assert_array_equal(after.arrays["image"][3], 7)
    (photos / "0.png").unlink()
    assert len(load_split(config, "train")) == len(before) - 1
    config.data.crop = (4,)
    assert not load_split(config, "train").report.cached


def test_a_damaged_cache_is_made_again_with_a_line(config, photos, tmp_path, caplog):
    good = load_split(config, "train").arrays["image"].copy()
    (stored,) = (tmp_path / "cache" / "prepared").iterdir()
    whole = stored.read_bytes()
    pixel = bytearray(whole)
    pixel[whole.index(good.tobytes()[:64]) + 9] ^= 1
    for damage in (bytes(pixel), whole[:-40], b""):
        stored.write_bytes(damage)
        for cached in (False, True):
            caplog.clear()
            dataset = load_split(config, "train")
            assert dataset.report.cached == cached
            assert ("damaged" in caplog.text) != cached
            np.testing.assert_array_equal(dataset.arrays["image"], good)


def test_a_cache_without_its_facts_is_made_again(config, photos, tmp_path):
    load_split(config, "train")
    (stored,) = (tmp_path / "cache" / "prepared").iterdir()
    array_files.write(stored, {"image": np.zeros((5, 8, 8, 3), np.uint8)})
    assert not load_split(config, "train").report.cached


@pytest.mark.parametrize("target", ["/nowhere", "link.png", "pipe"])
def test_what_is_no_file_does_not_switch_off_the_cache(
    config, photos, tmp_path, target
):
    os.mkfifo(tmp_path / "pipe")
    link = photos / "link.png"
    link.symlink_to(tmp_path / target if target == "pipe" else target)
    first = load_split(config, "train")
    assert len(first) == 5 and len(first.report.broken) == 2
    second = load_split(config, "train")
    assert second.report.cached and second.report.broken == first.report.broken
    link.unlink()
    link.symlink_to(photos / "0.png")  # it has become a photo
    assert len(load_split(config, "train")) == 6


def test_a_cache_that_cannot_be_written_does_no_harm(config, photos, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_split(config, "train")) == 5


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "a"), MemoryError()]
)
def test_a_refusal_of_the_system_is_not_remembered(config, tmp_path, error):
    items = [ds.Item(name, (str(write(tmp_path / f"{name}.png")),)) for name in "ab"]
    refuse = True

    def read(item):
        if item.name == "a" and refuse:
            raise error
        return {"image": np.zeros((1, 1, 3), np.uint8)}, (1, 1)

    options = dict(
        options={}, keep=True, workers=1, cache_dir=config.data.cache_dir, label=""
    )
    ((index, reason),) = prepare.prepare(items, read, **options).broken
    assert (index, reason) == (0, error.args[1] if error.args else "MemoryError")
    refuse = False
    assert prepare.prepare(items, read, **options).broken == ()


def test_digest_follows_content_not_place(config, photos, tmp_path):
    here = load_split(config, "train").digest
    os.rename(tmp_path / "photos", tmp_path / "moved")
    config.data.path = str(tmp_path / "moved")
    assert load_split(config, "train").digest == here
    (tmp_path / "moved" / "train" / "0.png").unlink()
    assert load_split(config, "train").digest != here


# --- synface -----------------------------------------------------------------


@pytest.fixture
def pairs(config, tmp_path):
    """Two pairs and an image without partner; depth is white left of x = 6."""
    config.data.name = "synface"
    root = tmp_path / "photos" / "train"
    value = np.zeros((10, 12), np.uint8)
    value[:, :6] = 255
    for i in range(2):
        write(root / "image" / "p" / f"{i}_image.png")
        write(root / "depth" / "p" / f"{i}_depth.png", value)
    write(root / "image" / "p" / "lonely_image.png")
    return root


def test_synface_pairs_image_with_depth(config, pairs):
    dataset = load_split(config, "train")
    assert len(dataset) == 2
    assert dataset.report.unpaired == ("train/image/p/lonely_image.png",)
    depth, mask = dataset.arrays["depth"], dataset.arrays["mask"]
    assert depth.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_allclose(depth[:, :, 0], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(depth[:, :, -1], np.float32(1.1))
    np.testing.assert_array_equal(mask, depth < np.float32(1.1))


def test_synface_crops_image_and_depth_alike(config, pairs):
    config.data.crop = (0, 6, 10, 6)
    dataset = load_split(config, "train")
    np.testing.assert_array_equal(dataset.arrays["depth"], np.float32(1.1))
    assert not dataset.arrays["mask"].any()


def test_synface_without_depth_or_folder_is_an_error(config, pairs):
    write(pairs.parent / "val" / "image" / "a.png")
    with pytest.raises(UserError, match="1 images, none with a partner"):
        load_split(config, "val")
    with pytest.raises(UserError, match="test/image"):
        load_split(config, "test")


def test_synface_reports_bad_depth_maps(config, pairs):
    (pairs / "depth" / "p" / "0_depth.png").write_bytes(b"")
    write(pairs / "image" / "p" / "2_image.png")
    write(pairs / "depth" / "p" / "2_depth.png", np.zeros((5, 6), np.uint8))
    dataset = load_split(config, "train")
    assert len(dataset) == 1
    (_, unreadable), (_, mismatch) = dataset.report.broken
    assert "0_depth.png" in unreadable and "(6, 5)" in mismatch


@pytest.mark.parametrize("pixels", [np.float32(1.5), np.int32(70000)])
def test_depth_maps_of_unknown_range_are_named(config, pairs, pixels):
    write(pairs / "image" / "p" / "2_image.tif")
    write(pairs / "depth" / "p" / "2_depth.tif", np.full((10, 12), pixels))
    ((name, reason),) = load_split(config, "train").report.broken
    assert name == "train/image/p/2_image.tif"
    assert reason.startswith("depth map 2_depth.tif: ")
    assert reason.endswith("pixels are not supported, save 8 or 16 bits")


@pytest.mark.parametrize("mib", [1, 0], ids=["memory", "streamed"])
def test_depth_maps_that_use_a_sliver_of_their_range_are_said(config, pairs, mib):
    config.data.device_memory_mib = mib
    assert load_split(config, "train").report.notes == ()  # 0 and 255
    value = np.zeros((10, 12), np.uint16)
    value[2:8, 2:10] = np.linspace(570, 630, 8)  # millimetres
    for i in range(2):
        write(pairs / "depth" / "p" / f"{i}_depth.png", value)
    told = []
    lazy_splits(config, told.append)("train")
    words = "use 0.7 % of their range, 1.098 to 1.1 scene units: white is 0.9"
    assert words in told[0]
    for i in range(2):
        write(pairs / "depth" / "p" / f"{i}_depth.png", 0 * value)
    (note,) = load_split(config, "train").report.notes
    assert note == "the depth maps of train are all black, which means far"


def test_depth_maps_pair_by_what_stands_before_the_extension(config, pairs):
    for name in ("image/a.jpg", "depth/A.png", "image/p/b.JPG", "depth/p/b.tif"):
        pixels = np.zeros((10, 12), np.uint8) if name[0] == "d" else None
        write(pairs / name, pixels)
    names = [item.name for item in synface.pair_items(config, "train").items]
    assert names == [
        f"train/image/{name}"
        for name in ("a.jpg", "p/0_image.png", "p/1_image.png", "p/b.JPG")
    ]
    assert len(load_split(config, "train")) == 4


def test_of_several_depth_maps_none_is_guessed(config, pairs):
    white = np.full((10, 12), 255, np.uint8)
    for name in ("a.jpg", "b.jpg", "b.png", "c.jpg", "c.bmp", "d.jpg", "d.png"):
        write(pairs / "image" / name)
    # a has two; b.png has its own, and nothing is left for b.jpg; c's are two images
    # of one map; d's own maps are two.
    for name in ("a.png", "a.tif", "b.png", "c.png", "d.jpg", "d.png"):
        write(pairs / "depth" / name, white)
    found = synface.pair_items(config, "train")
    assert [i.name for i in found.items if "/p/" not in i.name] == [
        f"train/image/{name}" for name in ("b.png", "d.jpg", "d.png")
    ]
    assert [i.paths[1][-5:] for i in found.items[:3]] == ["b.png", "d.jpg", "d.png"]
    ambiguous = [f"train/image/{name}" for name in ("a.jpg", "c.bmp", "c.jpg")]
    assert found.ambiguous == ambiguous
    assert found.unpaired == ["train/image/b.jpg", "train/image/p/lonely_image.png"]
    told = []
    lazy_splits(config, told.append)("train")
    assert "3 images of train are skipped, whose names fit several" in told[0]
    assert "train/image/a.jpg" in told[0]


def test_16_bit_depth_keeps_its_precision(tmp_path):
    value = np.full((4, 4), 12345, np.uint16)
    path = write(tmp_path / "x.png", value)
    got, _ = images.read_value_map(path, crop=(), image_size=4)
    np.testing.assert_allclose(got, 12345 / 65535, rtol=1e-6)
    depth = synface.decode_depth(
        np.array([[0.0, 0.5, 1.0]]), depth_min=0.9, depth_max=1.1
    )
    np.testing.assert_allclose(depth, [[1.1, 1.0, 0.9]], rtol=1e-6)


# --- report ------------------------------------------------------------------


def test_report_names_broken_files_and_shows_the_images(config, photos, tmp_path):
    text = report.data_report(config, tmp_path / "out")
    assert "5 usable of 6 images, 1 broken" in text
    assert "train/bad.png: " in text
    assert "width 12 to 12 (median 12)" in text
    assert "val: unusable" in text
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["train"]["usable"] == 5
    with Image.open(tmp_path / "out" / "train.png") as sheet:
        assert sheet.size == (5 * 10 + 2, 12)
    config.data.min_images = 6
    with pytest.raises(UserError):
        report.data_report(config, tmp_path / "out")


def test_report_shows_depth_and_viewpoints(config, pairs, tmp_path):
    text = report.data_report(config, tmp_path / "out")
    assert "without a depth map: train/image/p/lonely_image.png" in text
    with Image.open(tmp_path / "out" / "train_depth.png") as sheet:
        assert np.asarray(sheet)[2, [2, 9], 0].tolist() == [255, 0]  # near is white
    view = np.zeros((2, 6), np.float32)
    view[:, 1] = np.radians([-30, 30])
    dataset = ds.Dataset(
        arrays={"image": np.zeros((2, 4, 4, 3), np.uint8), "view": view},
        report=ds.Report("x", "train", "", 2),
        digest="",
    )
    yaw = report.summarize(dataset)["view"]["rotation y (yaw)"]
    np.testing.assert_allclose([yaw["mean"], yaw["std"]], [0, 30], atol=1e-3)


def test_odd_file_names_print_on_one_line():
    assert ds.printable("a\nb\udcff.jpg") == "a\\nb\\udcff.jpg"


def test_a_bilevel_depth_map_spans_the_whole_range(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "white.png")
    white, _ = images.read_value_map(tmp_path / "white.png", crop=(), image_size=4)
    np.testing.assert_array_equal(white, 1.0)


def test_integers_of_unknown_range_are_refused(tmp_path):
    pixels = np.full((4, 4), 70000, np.int32)
    Image.fromarray(pixels).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match="32-bit"):
        images.read_image(tmp_path / "wide.tif", crop=(), image_size=4)


def test_report_names_the_files_it_left_out(config, photos, tmp_path):
    (tmp_path / "photos" / "phone.CR2").write_bytes(b"")
    text = report.data_report(config, tmp_path / "out")
    assert "left out: .cr2 (1)" in text


def test_loading_to_train_says_what_it_left_out(config, photos, tmp_path):
    for i in range(3):
        (tmp_path / "photos" / f"{i}.CR2").write_bytes(b"")
    told = []
    splits = lazy_splits(config, told.append)
    splits("train"), splits("train")
    (line,) = told
    assert "1 of 6 files of train cannot be read, the first train/bad.png: " in line
    assert "left out: .cr2 (3)" in line and "--mode=data" in line
    (tmp_path / "photos" / "train" / "bad.png").unlink()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.CR2").unlink()
    lazy_splits(config, told.append)("train")
    assert told == [line]


def test_too_few_photos_are_said_with_what_was_left_out(config, photos, tmp_path):
    (tmp_path / "photos" / "phone.CR2").write_bytes(b"")
    config.data.min_images = 6
    with pytest.raises(UserError, match=r"left out: \.cr2 \(1\)"):
        load_split(config, "train")
    (tmp_path / "photos" / "test").mkdir()
    (tmp_path / "photos" / "test" / "phone.CR2").write_bytes(b"")
    with pytest.raises(UserError, match=r"is empty.*left out: \.cr2 \(1\)"):
        load_split(config, "test")


def test_too_few_for_training_says_which_share_of_all_that_is(config, tmp_path):
    config.data.split, config.data.min_images = "hash", 64
    for i in range(70):
        write(tmp_path / "photos" / f"{i}.png")
    match = r"fewer than 64 \(data.min_images\); 70 images were found.* takes 80 %"
    with pytest.raises(UserError, match=match):
        load_split(config, "train")
    config.data.split = "folder"
    write(tmp_path / "photos" / "train" / "a.png")
    with pytest.raises(UserError, match="fewer than 64") as caught:
        load_split(config, "train")
    assert "%" not in str(caught.value)


def test_a_report_among_the_photos_does_not_join_them(config, photos, tmp_path):
    config.data.split = "hash"
    config.data.hash_split_percent = (100, 0, 0)
    digest = load_split(config, "train").digest
    report.data_report(config, tmp_path / "photos" / "check")
    assert load_split(config, "train").digest == digest
    with pytest.raises(UserError, match="--output: .* is the folder of the photos"):
        report.data_report(config, tmp_path / "photos")
    with pytest.raises(UserError, match="--output: .* is the folder of the photos"):
        report.data_report(config, tmp_path / "photos" / "." / "train")


def test_the_folder_of_the_photos_is_no_workdir(config, photos, tmp_path, monkeypatch):
    config.data.image_size = 32
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(UserError, match="--workdir: .* is the folder of the photos"):
        splits = task.lazy_splits(config)
        task.train(Session(config, splits, Interrupts()), pathlib.Path("."))
    assert not (tmp_path / "photos" / "lock").exists()
    config.data.path = str(tmp_path / "gone")  # which a finished run does not miss
    folder.check_output(config, tmp_path / "photos", "--workdir")


@pytest.mark.parametrize("name", ["report.json", "train.png"])
def test_a_report_that_cannot_be_written_is_one_line(config, photos, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"cannot write .*out/{name}: Is a directory"):
        report.data_report(config, tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_said(config, photos, tmp_path, monkeypatch):
    (tmp_path / "photos" / "train" / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):  # as root, nothing is refused by permissions
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told = []
    dataset = lazy_splits(config, told.append)("train")
    assert dataset.report.closed == (("train/locked", "Permission denied"),)
    words = "1 folder cannot be read, the first train/locked: Permission denied"
    assert words in told[0]
    assert words in report.data_report(config, tmp_path / "out")
    config.data.min_images = 6
    with pytest.raises(UserError, match=words):
        load_split(config, "train")


def test_reasons_do_not_repeat_the_path(config, photos):
    ((_, reason),) = load_split(config, "train").report.broken
    assert reason == "cannot identify image file"
    error = ValueError("/p/x.png is\n not '/p/x.png'")
    with pytest.raises(images.ImageError) as caught, images._naming("/p/x.png"):
        raise error
    assert ds.reason_of(caught.value) == "file is not file"


@pytest.mark.parametrize("read", [images.read_image, images.read_value_map])
def test_errors_of_readers_name_the_file(tmp_path, read):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    good = write(tmp_path / "good.png", noise)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-80])
    with pytest.raises(images.CropError, match="^.*good.png: crop .* fit into 7 x 9"):
        read(good, crop=(8,), image_size=4)
    with pytest.raises(images.ImageError, match="^/.*/cut.png: image file is trunc"):
        read(cut, crop=(), image_size=4)
    wide = write(tmp_path / "wide.tif", np.full((4, 4), 70000, np.int32))
    with pytest.raises(images.ImageError, match="^/.*/wide.tif: 32-bit"):
        read(wide, crop=(9,), image_size=4)
    with pytest.raises(FileNotFoundError, match="gone.png"):
        read(tmp_path / "gone.png", crop=(), image_size=4)


def _special_files(folder):
    """A pipe, a socket's kin and a device, called as photos are."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    return folder / "pipe.jpg", folder / "device.png"


@pytest.mark.timeout(60)
def test_pipes_and_devices_are_counted_not_waited_for(config, tmp_path):
    root = tmp_path / "photos"
    for split in ("train", "test"):
        write(root / split / "face.png", np.zeros((8, 8, 3), np.uint8))
    _special_files(root / "train")
    dataset = load_split(config, "train")
    assert len(dataset) == 1
    reasons = {os.path.basename(n): r for n, r in dataset.report.broken}
    assert reasons.keys() == {"pipe.jpg", "device.png"}
    assert all("not a regular file" in reason for reason in reasons.values())


@pytest.mark.timeout(60)
def test_no_reader_of_files_waits_for_a_pipe(tmp_path):
    from unsup3d_jax.data import keypoint_files
    from unsup3d_jax.nets import vgg16_files

    os.mkfifo(tmp_path / "weights.npz")
    os.mkfifo(tmp_path / "points.csv")
    with pytest.raises(UserError, match="not a regular file"):
        vgg16_files.load_vgg16(str(tmp_path / "weights.npz"), "relu1_2")
    with pytest.raises(UserError, match="not a regular file"):
        keypoint_files.text_lines(tmp_path / "points.csv")
