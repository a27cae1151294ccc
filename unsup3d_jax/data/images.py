"""One image file -> square 8-bit RGB pixels. PIL and numpy only.

Turned upright by hand, not by `PIL.ImageOps.exif_transpose`: that also writes the
rest of the EXIF block anew, and raises where a tag there is odd. Of 4,500 files with
one to three damaged bytes of EXIF it lost 86 whose orientation can be read.
"""

import io
import os
import pathlib
import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from unsup3d_jax.files import need_regular

# Extensions of the authors' loader, compared in lower case.
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
)
# Formats PIL may recognise by content, whatever the extension says. A closed
# list: others start external programs (EPS) or are seldom meant as photos.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Larger files are refused before decoding (decompression bombs): PIL's own
# warning limit, 300 MB of pixels.
MAX_PIXELS = 89_478_485

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of PNG: what PIL inflates on opening, and its words where that is too large.
_TEXT_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
_TEXT_LIMITS = ("Decompressed data too large", "Too much memory used in text chunks")


class CropError(ValueError):
    """The crop does not fit into the image: a wrong option, not a bad file."""


def crop_box(crop: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    """Returns the kept box (y0, x0, h, w), pixels, of an image.

    Args:
        crop: () keeps all; (s,) a centred s x s square, (0,) the largest one;
            (y0, x0, h, w) itself. The centre offset is round((H - s) / 2),
            halves to even, as in the authors' code.
        height, width: of the upright image, pixels.

    Raises:
        CropError: if the box leaves the image.
        ValueError: if `crop` has another length or is not positive.
    """
    if len(crop) == 0:
        return 0, 0, height, width
    if len(crop) == 1 and crop[0] >= 0:
        side = crop[0] or min(height, width)
        y0, x0, h, w = round((height - side) / 2), round((width - side) / 2), side, side
    elif len(crop) == 4 and min(crop[:2]) >= 0 and min(crop[2:]) > 0:
        y0, x0, h, w = crop
    else:
        raise ValueError(f"crop must be (), (s,) or (y0, x0, h, w), got {tuple(crop)}.")
    if y0 < 0 or x0 < 0 or y0 + h > height or x0 + w > width:
        raise CropError(
            f"crop {tuple(crop)} does not fit into {width} x {height} pixels"
        )
    return y0, x0, h, w


def open_upright(path: str | pathlib.Path) -> Image.Image:
    """Opens and decodes the first frame of a file, EXIF orientation applied.

    An orientation that cannot be read is upright. Texts and colour profiles of a PNG
    may be of any size: they are not used, and large ones not inflated.

    Raises:
        ValueError: if the image has more than MAX_PIXELS pixels.
        OSError: if it is no regular file: a pipe would be waited for, for ever.
        Exception: whatever PIL raises on a file that is broken.
    """
    need_regular(path)
    try:
        return _open_upright(path)
    except ValueError as error:
        if not any(limit in str(error) for limit in _TEXT_LIMITS):
            raise
    return _open_upright(_without_texts(path))


def _open_upright(file: str | pathlib.Path | io.BytesIO) -> Image.Image:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"too large: {width} x {height} pixels")
        # Before the tag is read: PNG may hold it behind the pixels, and PIL
        # turns TIFF by itself while loading.
        image.load()
        try:
            transpose = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # PIL raises nearly anything; the pixels are sound
            transpose = None
        return image.copy() if transpose is None else image.transpose(transpose)


def _without_texts(path: str | pathlib.Path) -> io.BytesIO:
    """A PNG without its texts and colour profile, which PIL refuses to skip.

    Raises:
        ValueError: if the file ends inside a chunk.
    """
    kept = io.BytesIO()
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        kept.write(file.read(8))  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _TEXT_CHUNKS:
                file.seek(length + 4, io.SEEK_CUR)  # the body and its checksum
                continue
            if file.tell() + length + 4 > size:  # before memory is asked for
                raise ValueError("image file is truncated")
            kept.write(head + file.read(length + 4))
    kept.seek(0)
    return kept


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any PIL mode to 8-bit RGB.

    Grey is repeated, 16-bit grey divided by 257, transparency composited over
    white (dropping alpha would show what the artist hid), CMYK converted by
    PIL's formula. Colour profiles are not applied.

    Raises:
        ValueError: for floating-point pixels and 32-bit integers (their range
            is unknown) and for modes PIL cannot convert.
    """
    if _is_wide(image):
        wide = _wide_pixels(image)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    """Whether pixels have more than 8 bits: I;16 and its byte orders, I, F."""
    return image.mode == "F" or image.mode.startswith("I")


def _wide_pixels(image: Image.Image) -> Int[np.ndarray, "h w"]:
    """Pixels 0 to 65535 (mode I: PGM and 32-bit TIFF hold such too).

    Raises:
        ValueError: for pixels whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported, save 8 or 16 bits")
    wide = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("32-bit integer pixels are not supported, save 8 or 16 bits")
    return wide


def crop_and_resize(
    image: Image.Image, *, crop: Sequence[int], image_size: int
) -> Image.Image:
    """Crops, then resizes to a square with PIL's antialiased bilinear filter."""
    y0, x0, h, w = crop_box(crop, image.height, image.width)
    # Not resize(box=...): its filter would read pixels outside the crop.
    image = image.crop((x0, y0, x0 + w, y0 + h))
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR)


def read_image(
    path: str | pathlib.Path, *, crop: Sequence[int], image_size: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[int, int]]:
    """Reads one photo.

    Returns:
        The (image_size, image_size, 3) pixels, and the (width, height) of the
        upright file before the crop.

    Raises:
        CropError: if the crop does not fit.
        Exception: whatever PIL raises on a file that is broken.
    """
    image = open_upright(path)
    small = crop_and_resize(to_rgb(image), crop=crop, image_size=image_size)
    return np.asarray(small), image.size


def read_value_map(
    path: str | pathlib.Path, *, crop: Sequence[int], image_size: int
) -> tuple[Float[np.ndarray, "s s"], tuple[int, int]]:
    """Reads channel 0 of an 8- or 16-bit file as values in [0, 1].

    8-bit files are resized in 8 bits, as the authors do; 16-bit files in
    float, which keeps their precision.

    Returns:
        The (image_size, image_size) float32 values, and the (width, height) of the
        upright file before the crop.

    Raises:
        ValueError: for floating-point pixels and 32-bit integers.
        CropError, Exception: as `read_image`.
    """
    image = open_upright(path)
    if _is_wide(image):
        channel = Image.fromarray(_wide_pixels(image).astype(np.float32))
        white = np.float32(65535.0)
    else:
        # A bilevel image holds 0 and 1, and PIL converts it to 0 and 255.
        modes = {"P": "RGB", "1": "L"}
        channel = image.convert(modes.get(image.mode, image.mode)).getchannel(0)
        white = np.float32(255.0)
    small = crop_and_resize(channel, crop=crop, image_size=image_size)
    value = np.asarray(small).astype(np.float32) / white
    return np.clip(value, 0.0, 1.0), image.size
