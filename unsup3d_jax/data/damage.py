"""Damaged pixels that decoders forgive: grey, black or smeared, and no error.

Pillow reports files that end too soon, but not what libjpeg only warns of, nor wrong
checksums of a PNG's pixels, nor what a WebP or a TIFF left unread. What damage does to
each format, and what shows it:

JPEG  libjpeg says that data is left over or lacking. It is asked through simplejpeg,
      at an eighth of the size, where it still reads every code.
PNG   checksums of the chunks of pixels, and whether their stream fills the image.
WEBP  has no checksum, and zeros decode to anything. But a sound stream needs its last
      bytes: one that can do without them was written for other pixels.
TIFF  checksums of deflated strips; JPEG strips as JPEG.

Nothing shows damage in pixels that are stored plainly (BMP, PPM, plain TIFF), where
any byte is a pixel, nor in strips of PackBits. Damaged metadata does no harm.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

# What libjpeg says of damaged pixels. Its other words are of odd headers.
_JPEG_DAMAGE = (
    "Corrupt JPEG data",
    "Premature end of JPEG",
    "Inconsistent progression",
)
# Web cameras leave a few bytes before markers; of their photos nothing is lost.
_JPEG_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker")
_JPEG_SLACK = 16
# A marker that ends codes: no byte that is stuffed, no restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_HOLE = bytes(64)
# Most that sound pixels take, also as JPEG, where a coefficient has at most 26 bits;
# and most that stands before them. Films behind a motion photo are not read.
_BYTES_A_PIXEL, _JPEG_HEAD = 16, 1 << 26
# Bytes that libwebp's streams can do without, measured: 0 to 5.
_WEBP_SLACK = 16
_BLOCK = 1 << 20
_DEFLATE = (8, 32946)
_JPEG_IN_TIFF, _JPEG_TABLES = 7, 347
_TILE_OFFSETS, _TILE_LENGTHS = 324, 325


def check(source: str | os.PathLike | bytes, image: Image.Image) -> None:
    """Looks for damage that decoding did not report.

    Args:
        source: the file, or its bytes.
        image: as Pillow opened and loaded it, not copied or turned.

    Raises:
        ValueError: naming what is damaged.
        OSError: if the file cannot be read.
    """
    with (
        io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file
    ):
        if image.format in ("JPEG", "MPO"):
            most = _JPEG_HEAD + _BYTES_A_PIXEL * image.width * image.height
            _check_jpeg(file.read(most), image)
        elif image.format == "PNG":
            _check_png(file)
        elif image.format == "WEBP":
            for kind, stream in _webp_streams(file):
                _check_webp(kind, stream)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(file, image)


def _size(file: BinaryIO) -> int:
    """Bytes of a file, which stays where it stands."""
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


# --- JPEG ---------------------------------------------------------------------


def _check_jpeg(data: bytes, image: Image.Image) -> None:
    tables = getattr(image, "quantization", {}).values()
    if any(0 in table for table in tables):
        raise ValueError("damaged JPEG: a quantization table holds a zero")
    if damage := _code_damage(data, "cmyk" if image.mode == "CMYK" else "gray"):
        raise ValueError(f"damaged JPEG: {damage}")


def _has_hole(data: bytes) -> bool:
    """Whether zeros stand among the codes where they mean no picture.

    libjpeg warns of most holes, but not where the codes behind one fill the image by
    chance. Zeros are the shortest code many times over. In even areas of sound photos
    that code ends a block, or is one of a scan of brightness alone, and says nothing
    here. Else it is a coefficient: then `_HOLE` bytes are blocks of equal coefficients
    without end.
    """
    begin = data.find(b"\xff\xda")
    if begin < 0 or data.find(_HOLE, begin) < 0:
        return False
    # The code of zeros in each table, by the table's class and number.
    at, shortest = 2, dict[int, int]()
    while found := _MARKER.search(data, at):
        kind, at = data[found.end() - 1], found.end()
        length = int.from_bytes(data[at : at + 2], "big")
        body, at = data[at + 2 : at + length], at + length
        if kind == 0xC4:
            while len(body) > 17:
                shortest[body[0]] = body[17]
                body = body[17 + sum(body[1:17]) :]
        elif kind == 0xDA and body:
            tables = [0x10 | number & 15 for number in body[2 : 1 + 2 * body[0] : 2]]
            last, bits = body[-2:]
            after = _MARKER.search(data, at)
            end = after.start() if after else len(data)
            coefficients = last > 0 and bits >> 4 == 0  # not the refinement of some
            if coefficients and any(shortest.get(table, 0) & 15 for table in tables):
                if data.find(_HOLE, at, end) >= 0:
                    return True
            at = end
        elif kind == 0xD9:
            break
    return False


def _code_damage(data: bytes, colours: str) -> str:
    """What is wrong with the codes of a JPEG: "" if nothing."""
    import simplejpeg  # here: machines that render their faces may lack it

    try:
        simplejpeg.decode_jpeg(data, colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:  # also of sound files of kinds that it does not know
        text = str(error)
        left = _JPEG_LEFT_OVER.search(text)
        few = left is not None and int(left[1]) <= _JPEG_SLACK
        if not few and any(words in text for words in _JPEG_DAMAGE):
            return text
    return "a hole of zeros in its pixels" if _has_hole(data) else ""


# --- PNG ----------------------------------------------------------------------


def _check_png(file: BinaryIO) -> None:
    inflater, inflated, rows = zlib.decompressobj(), 0, 0
    for kind, length in _png_chunks(file):
        if kind == b"IHDR":  # the first, and Pillow has checked it
            rows = _png_bytes(file.read(length))
            length = 0
        if kind != b"IDAT":
            file.seek(length + 4, io.SEEK_CUR)
            continue
        crc = zlib.crc32(kind)
        while length and (block := file.read(min(length, _BLOCK))):
            crc = zlib.crc32(block, crc)
            length -= len(block)
            inflated += _inflate(inflater, block, rows - inflated)
        if file.read(4) != crc.to_bytes(4, "big"):
            raise ValueError("damaged PNG: its pixels do not match their checksum")
    if inflated < rows:
        raise ValueError("damaged PNG: it holds fewer rows than its header says")


def _inflate(inflater: Any, data: bytes, most: int) -> int:
    """Bytes that `data` adds to a stream, in small steps; stops at `most`."""
    total = 0
    while total < most and not inflater.eof:
        part = len(inflater.decompress(data, _BLOCK))
        total, data = total + part, inflater.unconsumed_tail
        if part < _BLOCK and not data:  # a full step may have left some inside
            break
    return total


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes of the body) up to the end; the file stands at the body."""
    file.seek(8)  # the signature
    while len(head := file.read(8)) == 8 and not head.endswith(b"IEND"):
        length, kind = struct.unpack(">I4s", head)
        yield kind, length


def _png_bytes(header: bytes) -> int:
    """Bytes of all filtered rows."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # (first column, first row, step of columns, step of rows) of each pass
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
    total = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total


# --- WebP ---------------------------------------------------------------------


def _webp_streams(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kind and stream of the first picture, its transparency as a picture too."""
    file.seek(12)
    size, end = b"", _size(file)
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        after = min(file.tell() + length + length % 2, end)
        if kind == b"VP8X":
            size = file.read(10)[4:]
        elif kind == b"ANMF":  # the chunks of its picture lie in it
            size = file.read(16)[6:12]
            continue
        elif kind == b"ALPH":
            body = file.read(length)
            if body[:1] and body[0] & 3 == 1:  # compressed: VP8L without its head
                w, h = (int.from_bytes(size[i : i + 3], "little") for i in (0, 3))
                yield b"VP8L", struct.pack("<BI", 0x2F, w | h << 14) + body[1:]
        elif kind in (b"VP8 ", b"VP8L"):
            yield kind, file.read(length)
            return
        file.seek(after)


def _check_webp(kind: bytes, stream: bytes) -> None:
    stream = stream[:-_WEBP_SLACK]
    chunk = kind + struct.pack("<I", len(stream)) + stream + bytes(len(stream) % 2)
    riff = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    try:
        with Image.open(io.BytesIO(riff), formats=["WEBP"]) as image:
            image.load()
    except Exception:  # whatever PIL raises: the stream needs all of itself
        return
    raise ValueError("damaged WebP: its pixels end before its data")


# --- TIFF ---------------------------------------------------------------------


def _check_tiff(file: BinaryIO, image: TiffImagePlugin.TiffImageFile) -> None:
    compression = image.tag_v2.get(TiffImagePlugin.COMPRESSION)
    tables = image.tag_v2.get(_JPEG_TABLES, b"")
    unread = _size(file)  # strips may share their bytes
    for offset, length in _tiff_strips(image.tag_v2):
        unread -= length
        if unread < 0 or compression not in (*_DEFLATE, _JPEG_IN_TIFF):
            return
        file.seek(offset)
        strip = file.read(length)
        if compression == _JPEG_IN_TIFF:  # abbreviated: its tables stand in the tag
            strip = tables[:-2] + strip[2:] if tables else strip
            if damage := _code_damage(strip, "gray"):
                raise ValueError(f"damaged TIFF: {damage}")
            continue
        inflater, most = (
            zlib.decompressobj(),
            _BYTES_A_PIXEL * image.width * image.height,
        )
        try:
            inflated = _inflate(inflater, strip, most)
        except zlib.error as error:
            raise ValueError(f"damaged TIFF: {error}") from None
        if inflated < most and not inflater.eof:
            raise ValueError("damaged TIFF: a strip has no end")


def _tiff_strips(tags: Mapping[int, Any]) -> list[tuple[int, int]]:
    """(offset, bytes) of each strip or tile."""
    offsets = tags.get(TiffImagePlugin.STRIPOFFSETS, tags.get(_TILE_OFFSETS, ()))
    lengths = tags.get(TiffImagePlugin.STRIPBYTECOUNTS, tags.get(_TILE_LENGTHS, ()))
    return list(zip(offsets, lengths, strict=False))
