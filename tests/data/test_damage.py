"""Photos whose pixels are damaged are no photos; sound ones of odd kinds are."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from configs import default
from unsup3d_jax.data import damage, images
from unsup3d_jax.data.load import load_split


def photo(size=96, seed=0):
    """Soft shapes with some grain: what codes of photos look like."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 4, (size, size, 3))
    for cell in (8, 32):
        small = rng.integers(0, 256, (size // cell, size // cell, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(small).resize((size, size))) / 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image, kind, **options) -> bytearray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return bytearray(buffer.getvalue())


def hole(raw, start=0.4, share=0.15):
    """Zeros in place of a part of the bytes."""
    first, count = int(len(raw) * start), int(len(raw) * share)
    return raw[:first] + bytes(count) + raw[first + count :]


def tail(raw):
    return hole(raw, 0.6, 0.4)


def early_end(raw):
    return raw[: len(raw) // 2] + b"\xff\xd9"


def more_rows(raw):
    """The header says 40 rows more than there are."""
    if raw.startswith(b"\x89PNG"):
        raw[23] += 40
        raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    else:
        frame = max(raw.find(b"\xff\xc0"), raw.find(b"\xff\xc2"))
        raw[frame + 6] += 40
    return raw


def no_quantization(raw):
    first = raw.index(b"\xff\xdb") + 20
    raw[first : first + 8] = bytes(8)
    return raw


def read(tmp_path, raw, name="x.jpg"):
    path = tmp_path / name
    path.write_bytes(raw)
    return images.read_image(path, crop=(), image_size=16)[0]


TRANSPARENT = photo()
TRANSPARENT.putalpha(photo(seed=1).convert("L"))
DAMAGED = {
    "JPEG, hole": (photo(), "JPEG", {}, hole),
    "JPEG, progressive, hole": (photo(), "JPEG", {"progressive": True}, hole),
    "JPEG, restarts, hole": (photo(), "JPEG", {"restart_marker_rows": 1}, hole),
    "JPEG, early end": (photo(), "JPEG", {}, early_end),
    "JPEG, more rows": (photo(), "JPEG", {}, more_rows),
    "JPEG, quantization": (photo(), "JPEG", {}, no_quantization),
    "JPEG, CMYK, early end": (photo().convert("CMYK"), "JPEG", {}, early_end),
    "PNG, tail": (photo(), "PNG", {}, tail),
    "PNG, more rows": (photo(), "PNG", {}, more_rows),
    "WebP, tail": (photo(), "WEBP", {"quality": 60}, tail),
    "WebP, hole": (photo(), "WEBP", {}, hole),
    "WebP, lossless, tail": (photo(), "WEBP", {"lossless": True}, tail),
    "WebP, transparency": (TRANSPARENT, "WEBP", {}, lambda raw: hole(raw, 0.1)),
    "TIFF, JPEG": (photo(), "TIFF", {"compression": "jpeg"}, hole),
    "TIFF, deflated": (
        photo(), "TIFF", {"compression": "tiff_deflate"}, lambda raw: hole(raw, 0.8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_that_decoders_forgive_is_found(tmp_path, name):
    image, kind, options, harm = DAMAGED[name]
    raw = saved(image, kind, **options)
    read(tmp_path, raw)
    path = tmp_path / "harmed"
    path.write_bytes(harm(raw))
    with Image.open(path) as opened:
        opened.load()  # the decoder says nothing
    with pytest.raises(images.ImageError, match=f"(?i)harmed: damaged {kind}: "):
        images.read_image(path, crop=(), image_size=16)


def test_a_damaged_photo_is_reported_and_not_trained_on(tmp_path):
    config = default.get_config()
    config.data.path, config.data.cache_dir = str(tmp_path), str(tmp_path / "cache")
    config.data.image_size, config.data.min_images = 16, 1
    config.data.split = "folder"
    (tmp_path / "train").mkdir()
    for i in range(3):
        raw = saved(photo(seed=i), "JPEG")
        (tmp_path / "train" / f"{i}.jpg").write_bytes(hole(raw) if i == 1 else raw)
    dataset = load_split(config, "train")
    assert len(dataset) == 2
    ((name, reason),) = dataset.report.broken
    assert name == "train/1.jpg" and reason.startswith("damaged JPEG: ")


def test_a_hole_that_happens_to_fill_the_image_is_found(tmp_path, monkeypatch):
    """libjpeg says nothing of it: the codes after the hole end where they should."""
    raw = saved(photo(), "JPEG")
    assert not damage._has_hole(bytes(raw)) and damage._has_hole(bytes(hole(raw)))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: None)
    with pytest.raises(images.ImageError, match="damaged JPEG: a hole of zeros"):
        read(tmp_path, hole(raw))
    # The shortest code of an even image ends a block: sound, and full of zeros.
    for options in ({"optimize": True}, {"progressive": True}):
        even = bytes(saved(Image.new("L", (2000, 2000), 90), "JPEG", **options))
        assert damage._HOLE in even and not damage._has_hole(even)


def sound_files(seed):
    """(name, bytes) of files that look odd, and of which nothing is lost."""
    rng = random.Random(seed)
    image = photo(rng.choice([32, 64, 96]), seed)
    if seed % 3 == 0:  # zeros in their codes
        image = Image.new("RGB", image.size, rng.randrange(1 << 24))
    quality = rng.choice([1, 30, 75, 92, 100])
    plain = saved(image, "JPEG", quality=quality)
    yield "plain", plain
    yield "something behind", plain + rng.choice([bytes(999), plain, b"ftypmp42"])
    yield (
        "a few bytes before the end",
        plain[:-2] + bytes(rng.randrange(8)) + plain[-2:],
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(6) + saved(image.resize((9, 9)), "JPEG")
    for options in (
        {"progressive": True},
        {"optimize": True, "subsampling": rng.randrange(3)},
        {"restart_marker_blocks": rng.randrange(1, 5)},
        {"exif": bytes(exif)},
    ):
        yield str(options)[:30], saved(image, "JPEG", quality=quality, **options)
    for mode in ("L", "CMYK"):
        yield mode, saved(image.convert(mode), "JPEG", quality=quality)
    for sampling in ("440", "411"):
        pixels = np.ascontiguousarray(image)
        yield sampling, simplejpeg.encode_jpeg(pixels, quality, "rgb", sampling)
    yield "MPO", saved(image, "MPO", save_all=True, append_images=[image])
    png = saved(image, "PNG")
    end = png.index(b"IEND") - 4
    yield "PNG, text with a wrong sum", png[:end] + b"\0\0\0\1tEXtx1234" + png[end:]
    for mode in ("RGBA", "LA", "P", "1", "I;16"):
        wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        yield mode, saved(wide if mode == "I;16" else image.convert(mode), "PNG")
    image.putalpha(photo(image.width, seed + 1).convert("L"))
    for options in ({"quality": quality}, {"lossless": True}, {"method": 0}):
        yield f"WebP, {options}", saved(image, "WEBP", **options)
        several = {"save_all": True, "append_images": [image.rotate(90)]}
        yield f"WebP, {options}, two", saved(image, "WEBP", **options, **several)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        colours = image.convert("RGB")
        yield compression, saved(colours, "TIFF", compression=compression)


@pytest.mark.parametrize("seed", range(3))
def test_sound_files_of_odd_kinds_are_read(tmp_path, seed):
    for name, raw in sound_files(seed):
        assert read(tmp_path, raw).shape == (16, 16, 3), name


def test_rows_of_a_png_are_counted_as_written():
    def written(width, height, depth, colour, interlaced):
        """By laying out the pixels of each pass, PNG specification 8.2."""
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        grid, total = np.zeros((height, width)), 0
        passes = ["0::8 0::8", "0::8 4::8", "4::8 0::4", "0::4 2::4"]
        passes += ["2::4 0::2", "0::2 1::2", "1::2 0::1"]
        for part in passes if interlaced else ["0::1 0::1"]:
            rows, columns = part.split()
            (y, dy), (x, dx) = (map(int, p.split("::")) for p in (rows, columns))
            kept = grid[y::dy, x::dx]
            total += sum(1 + -(-len(row) * bits // 8) for row in kept if len(row))
        return total

    for width, height in ((1, 1), (2, 3), (5, 1), (8, 8), (9, 17), (3, 10)):
        for depth, colour in ((1, 0), (4, 3), (8, 2), (16, 6), (8, 4)):
            for interlaced in (0, 1):
                fields = (width, height, depth, colour, 0, 0, interlaced)
                expected = written(width, height, depth, colour, interlaced)
                assert damage._png_bytes(struct.pack(">IIBBBBB", *fields)) == expected


def test_what_is_inflated_in_steps_is_counted_whole():
    for size in (damage._BLOCK - 1, damage._BLOCK, 3 * damage._BLOCK + 100):
        inflater = zlib.decompressobj()
        packed = zlib.compress(bytes(size))
        assert damage._inflate(inflater, packed, 2 * size) == size and inflater.eof


@pytest.mark.slow
def test_nearly_all_random_damage_is_found_and_no_sound_file_refused(tmp_path):
    rng, missed = random.Random(0), {}
    for seed in range(150):
        for name, raw in sound_files(seed):
            assert read(tmp_path, raw).shape == (16, 16, 3), name
        for name, (_, kind, options, harm) in DAMAGED.items():
            image = photo(rng.choice([64, 96, 192]), seed)
            if "transparency" in name:
                image.putalpha(photo(image.width, seed + 1).convert("L"))
            raw = saved(
                image.convert("CMYK") if "CMYK" in name else image, kind, **options
            )
            sound = read(tmp_path, raw)
            # A hole behind the tables.
            somewhere = rng.uniform(0.3, 0.6), rng.uniform(0.03, 0.3)
            harmed = hole(raw, *somewhere) if harm is hole else harm(raw)
            try:
                got = read(tmp_path, harmed)
            except images.ImageError:
                continue
            missed[name] = missed.get(name, 0) + (not np.array_equal(got, sound))
    assert all(count <= 8 for count in missed.values()), missed  # of 150
