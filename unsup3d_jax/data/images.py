"""One image file -> square 8-bit RGB pixels. PIL and numpy only."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

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

    Raises:
        ValueError: if the image has more than MAX_PIXELS pixels.
        Exception: whatever PIL raises on a file that is broken.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"too large: {width} x {height} pixels")
        # Before the tag is read: PNG may hold it behind the pixels, and PIL
        # turns TIFF by itself while loading.
        image.load()
        transpose = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
        return image.copy() if transpose is None else image.transpose(transpose)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any PIL mode to 8-bit RGB.

    Grey is repeated, 16-bit grey divided by 257, transparency composited over
    white (dropping alpha would show what the artist hid), CMYK converted by
    PIL's formula. Colour profiles are not applied.

    Raises:
        ValueError: for floating-point pixels and 32-bit integers (their range
            is unknown) and for modes PIL cannot convert.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if image.mode.startswith("I"):  # I;16 and its byte orders; I: PGM, 32-bit TIFF
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("32-bit integer pixels are not supported")
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


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

    Returns and raises: as `read_image`.
    """
    image = open_upright(path)
    if image.mode.startswith("I"):
        channel = Image.fromarray(np.asarray(image).astype(np.float32))
        white = np.float32(65535.0)
    else:
        # A bilevel image holds 0 and 1, and PIL converts it to 0 and 255.
        modes = {"P": "RGB", "1": "L"}
        channel = image.convert(modes.get(image.mode, image.mode)).getchannel(0)
        white = np.float32(255.0)
    small = crop_and_resize(channel, crop=crop, image_size=image_size)
    value = np.asarray(small).astype(np.float32) / white
    return np.clip(value, 0.0, 1.0), image.size
