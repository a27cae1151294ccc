"""One image file -> square 8-bit RGB pixels. PIL and numpy only.

Turned upright by hand, not by `PIL.ImageOps.exif_transpose`: that also writes the
rest of the EXIF block anew, and raises where a tag there is odd. Of 4,500 files with
one to three damaged bytes of EXIF it lost 86 whose orientation can be read.
"""

import contextlib
import io
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, features

from unsup3d_jax.data import damage
from unsup3d_jax.data.budget import Budget
from unsup3d_jax.files import need_regular

# Extensions compared in lower case: the authors' loader's, and JPEG's others.
_ALWAYS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_ALWAYS += (".jpe", ".jfif", ".jif", ".jfi")
_HEIF, _AVIF = (".heic", ".heif", ".hif"), (".avif",)
# Formats PIL may recognise by content, whatever the extension says. A closed
# list: others start external programs (EPS) or are seldom meant as photos.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


def _has_heif() -> bool:
    """Teaches PIL what phones write, where somebody has installed the means.

    That changes PIL for the whole process, once: but opened by PIL, such a file has its
    size checked before it is decoded and its orientation read as all others have.
    """
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


_OPTIONAL = (
    (_HEIF, "HEIF", _has_heif(), "pip install pillow-heif"),
    (_AVIF, "AVIF", features.check("avif"), "pip install 'pillow>=11.3'"),
)
EXTENSIONS = frozenset(_ALWAYS).union(*(e for e, _, here, _ in _OPTIONAL if here))
FORMATS = (*_FORMATS, *(name for _, name, here, _ in _OPTIONAL if here))
# extension of a photo that cannot be read here -> the command that changes it.
REMEDIES = {s: need for e, _, here, need in _OPTIONAL if not here for s in e}
# Larger files are refused before decoding (decompression bombs). Phones make 108
# million.
MAX_PIXELS = 128_000_000
# What all threads of the process decode at once needs at most so many bytes.
_MEMORY = Budget(2 << 30)

Source = str | pathlib.Path | bytes  # a file, or its bytes

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


class ImageError(ValueError):
    """A file that is no image that can be used.

    Attributes:
        reason: one line, without the file's name.
        path: of the file; "" if it is not known.
    """

    def __init__(self, reason: str, path: str = ""):
        super().__init__(reason, path)
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class CropError(ImageError):
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


@contextlib.contextmanager
def open_upright(
    path: str | pathlib.Path, content: bytes | None = None
) -> Iterator[Image.Image]:
    """The first frame of a file, decoded, EXIF orientation applied, for the body.

    An orientation that cannot be read is upright. Texts and colour profiles of a PNG
    may be of any size: they are not used, and large ones not inflated.

    Large images wait until others are done: what all threads decode at once has a
    bound. In the body no other image may be opened.

    Args:
        path: the file; with `content` only its name in errors.
        content: the file's bytes, where these are known already.

    Raises:
        ImageError: if it cannot be read, its pixels are damaged, or it has more than
            MAX_PIXELS of them; also what the body raises, with the file's name.
        OSError: if the system refuses the file, or it is no regular file: a pipe would
            be waited for, for ever.
        MemoryError: if it does not fit.
    """
    with _naming(path), contextlib.ExitStack() as held:
        if content is None:
            need_regular(path)
        source = path if content is None else content
        try:
            image = _decoded(source, source, held)
        except ValueError as error:
            if not any(limit in str(error) for limit in _TEXT_LIMITS):
                raise
            held.close()
            image = _decoded(source, _without_texts(source), held)
        yield image


@contextlib.contextmanager
def _naming(path: str | pathlib.Path) -> Iterator[None]:
    """Errors of the body name the file."""
    try:
        yield
    except MemoryError:  # no fault of the file
        raise
    except ImageError as error:
        raise type(error)(error.reason, str(path)) from None
    except Exception as error:  # PIL raises nearly anything on hostile bytes
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        raise ImageError(_reason(error, str(path)), str(path)) from error


def _reason(error: Exception, path: str) -> str:
    """What is wrong with a file, on one line and without its path.

    PIL repeats the path, which whoever reports the reason names already.
    """
    text = str(error) or type(error).__name__
    text = text.replace(f" file {path!r}", " file")  # needs no second "file"
    text = text.replace(repr(path), "file").replace(path, "file")
    return " ".join(text.split())


def _decoded(source: Source, used: Source, held: contextlib.ExitStack) -> Image.Image:
    """Decodes `used`, which is the file or what of it is used, and turns it."""
    most = f"more than {MAX_PIXELS / 1e6:g} million pixels"
    try:
        file = io.BytesIO(used) if isinstance(used, bytes) else used
        opened = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # PIL's own limit, which lies above ours
        raise ValueError(f"too large: {most}") from None
    with opened as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"too large: {width} x {height}, {most}")
        held.enter_context(_MEMORY.hold(_bytes_needed(image, source)))
        # Before the tag is read: PNG may hold it behind the pixels, and PIL
        # turns TIFF by itself while loading.
        image.load()
        damage.check(source, image)
        try:
            transpose = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # PIL raises nearly anything; the pixels are sound
            transpose = None
        # The pixels outlive the closed file.
        return image if transpose is None else image.transpose(transpose)


def _bytes_needed(image: Image.Image, source: Source) -> int:
    """Estimates what reading an opened image takes at its peak, its crop the whole."""
    mode = image.mode
    stored = 2 if mode.startswith("I;16") else 1 if mode in ("1", "L", "P") else 4
    each = 2 * stored + 4  # decoded, turned or cropped, and as RGB
    if _is_wide(image):
        each += 4  # counted in 32 bits
    if image.has_transparency_data or image.format == "WEBP":
        each += 12  # as RGBA, over white; WebP's frames
    if "progressive" in image.info:
        each += 6  # coefficients of all scans, in 16 bits
    return image.width * image.height * each + _length(source)


def _length(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else os.path.getsize(source)


def _without_texts(source: Source) -> bytes:
    """A PNG without its texts and colour profile, which PIL refuses to skip.

    Raises:
        ValueError: if the file ends inside a chunk.
    """
    kept = io.BytesIO()
    size = _length(source)
    with (
        io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file
    ):
        kept.write(file.read(8))  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _TEXT_CHUNKS:
                file.seek(length + 4, io.SEEK_CUR)  # the body and its checksum
                continue
            if file.tell() + length + 4 > size:  # before memory is asked for
                raise ValueError("image file is truncated")
            kept.write(head + file.read(length + 4))
    return kept.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any PIL mode to 8-bit RGB.

    Grey is repeated, 16-bit grey divided by 257, transparency composited over
    white (dropping alpha would show what the artist hid), CMYK converted by
    PIL's formula. Colour profiles are not applied.

    Raises:
        ValueError: for floating-point pixels and 32-bit integers (their range
            is unknown) and for modes PIL cannot convert.
    """
    _need_known_range(image)
    if _is_wide(image):
        wide = np.asarray(image).astype(np.int32)
        wide += 128
        wide //= 257
        image = Image.fromarray(wide.astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")


def _is_wide(image: Image.Image) -> bool:
    """Whether pixels have more than 8 bits: I;16 and its byte orders, I, F."""
    return image.mode == "F" or image.mode.startswith("I")


def _need_known_range(image: Image.Image) -> None:
    """Refuses pixels whose range is unknown; 0 to 65535 may also lie in 32 bits.

    Raises:
        ValueError: for floating-point pixels and integers outside of 16 bits.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported, save 8 or 16 bits")
    if image.mode == "I":
        low, high = cast(tuple[float, float], image.getextrema())  # of one channel
        if low < 0 or high > 65535:
            raise ValueError(
                "32-bit integer pixels are not supported, save 8 or 16 bits"
            )


def _cropped(image: Image.Image, crop: Sequence[int]) -> Image.Image:
    y0, x0, h, w = crop_box(crop, image.height, image.width)
    if (w, h) == image.size:
        return image
    return image.crop((x0, y0, x0 + w, y0 + h))


def _resized(image: Image.Image, image_size: int) -> Image.Image:
    # Of the crop, not by resize(box=...): its filter would read pixels outside.
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR)


def rgb_square(
    image: Image.Image, *, crop: Sequence[int], image_size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Crops, converts to RGB and resizes by PIL's antialiased bilinear filter.

    Raises:
        CropError: if the crop does not fit.
        ValueError: see `to_rgb`.
    """
    _need_known_range(image)
    # Cropped first: what is converted is smaller.
    return np.asarray(_resized(to_rgb(_cropped(image, crop)), image_size))


def rgb_box(
    image: Image.Image, box: Sequence[int], *, image_size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """A box, which may reach out of the image and repeats its edge there.

    What is not square becomes so. Resized by the filter of `rgb_square`.

    Args:
        box: (x0, y0, w, h), pixels.

    Raises:
        ValueError: if the box lies beside the image, or is sixteen times as large; see
            `to_rgb`.
    """
    x0, y0, w, h = box
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + w, image.width), min(y0 + h, image.height)
    if right <= left or bottom <= top:
        raise ValueError(f"its box {tuple(box)} lies beside the image")
    if w * h > min(16 * image.width * image.height, MAX_PIXELS):
        raise ValueError(f"its box {tuple(box)} is far larger than the image")
    _need_known_range(image)
    part = np.asarray(to_rgb(image.crop((left, top, right, bottom))))
    beside = ((top - y0, y0 + h - bottom), (left - x0, x0 + w - right), (0, 0))
    whole = Image.fromarray(np.pad(part, beside, mode="edge"))
    return np.asarray(_resized(whole, image_size))


def rgb_part(
    image: Image.Image, *, left: float, top: float, side: float, image_size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """A square part, which may reach out of the image and is black there.

    Resized by the filter of `rgb_square`, which here reads the photo's own pixels
    beyond the part's edges. It takes no more memory than the image itself.

    Args:
        left, top, side: of the part, pixels; the image begins at 0, so that the centre
            of its first pixel is at 0.5.

    Raises:
        ValueError: if no pixel of the result lies in the image; see `to_rgb`.
    """
    scale = image_size / side
    start, sides = np.array([left, top]), np.array(image.size)
    # Pixels of the result that lie in the image as a whole.
    first = np.ceil(np.maximum(-start, 0.0) * scale - 1e-6).astype(int)
    last = np.floor((sides - start) * scale + 1e-6)
    last = np.minimum(last, image_size).astype(int)
    if (last <= first).any():
        raise ValueError("nothing of the photo lies where it is to be cut")
    low, high = start + first / scale, start + last / scale
    box = (*np.maximum(low, 0.0), *np.minimum(high, sides))
    _need_known_range(image)
    size = (int(last[0] - first[0]), int(last[1] - first[1]))
    part = to_rgb(image).resize(size, Image.Resampling.BILINEAR, box=box)
    result = np.zeros((image_size, image_size, 3), np.uint8)
    result[first[1] : last[1], first[0] : last[0]] = np.asarray(part)
    return result


def read_image(
    path: str | pathlib.Path, *, crop: Sequence[int], image_size: int
) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[int, int]]:
    """Reads one photo.

    Returns:
        The (image_size, image_size, 3) pixels, and the (width, height) of the
        upright file before the crop.

    Raises:
        CropError: if the crop does not fit.
        ImageError, OSError, MemoryError: see `open_upright`.
    """
    with open_upright(path) as image:
        return rgb_square(image, crop=crop, image_size=image_size), image.size


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
        CropError: if the crop does not fit.
        ImageError: see `open_upright`; also for floating-point pixels and 32-bit
            integers.
        OSError, MemoryError: see `open_upright`.
    """
    with open_upright(path) as image:
        size = image.size
        _need_known_range(image)
        kept = _cropped(image, crop)
        if _is_wide(kept):
            channel = Image.fromarray(np.asarray(kept).astype(np.float32))
            white = np.float32(65535.0)
        else:
            # A bilevel image holds 0 and 1, and PIL converts it to 0 and 255.
            modes = {"P": "RGB", "1": "L"}
            channel = kept.convert(modes.get(kept.mode, kept.mode)).getchannel(0)
            white = np.float32(255.0)
        small = _resized(channel, image_size)
    value = np.asarray(small).astype(np.float32) / white
    return np.clip(value, 0.0, 1.0), size
