"""Cells, structures and numbers out of MATLAB's .mat files, format 5.

By hand, because SciPy's reader, which is made for one's own files, ends the process at
a wrong byte in a stranger's. Every size is compared with what is there.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.nets.file_guard import Budget, Refused, existing, reading

# Kinds of data elements that hold numbers.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8",
            12: "i8", 13: "u8", 16: "u1", 17: "u2", 18: "u4"}  # fmt: skip
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4",
            13: "u4", 14: "i8", 15: "u8"}  # fmt: skip
_DEEPEST, _PIECE = 16, 1 << 20


def read_mat(path: str | Path) -> dict[str, Any]:
    """Reads the variables of a .mat file; what is no cell, structure or number is None.

    Returns:
        {name: value}: arrays of numbers as numpy's, in their order of axes; cells as
        flat lists; a structure as {field: value}, several as a list of such; text as
        str.

    Raises:
        UserError: if the file is missing, damaged, of another format or too large.
    """
    path = existing(path)
    with reading(path, ".mat file of MATLAB 5"):
        content = path.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None:
            raise Refused("is neither a .mat file of MATLAB 5 nor a .h5 file.")
        budget, found, rest = Budget(path), {}, memoryview(content)[128:]
        while len(rest) >= 8:
            kind, size = struct.unpack(f"{order}II", rest[:8])
            body, rest = _cut(rest[8:], size)
            if kind == _COMPRESSED:
                body = _expanded(body, budget)
                kind, body, _ = _element(body, order)
            if kind == _MATRIX:
                name, value = _matrix(body, order, budget, 0)
                found[name] = value
        return found


def _cut(data: memoryview, size: int) -> tuple[memoryview, memoryview]:
    if size > len(data):
        raise Refused("an array is not all there; the file is damaged.")
    return data[:size], data[size:]


def _expanded(body: memoryview, budget: Budget) -> memoryview:
    expander, parts = zlib.decompressobj(), []
    pending = bytes(body)
    while pending:
        part = expander.decompress(pending, _PIECE)
        budget.take(len(part))
        parts.append(part)
        pending = expander.unconsumed_tail
    return memoryview(b"".join(parts))


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Kind and bytes of the first data element, and what follows it."""
    if len(data) < 8:
        raise Refused("an array is not all there; the file is damaged.")
    kind, size = struct.unpack(f"{order}II", data[:8])
    if kind >> 16:  # up to four bytes stand beside their kind
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise Refused("an array has an impossible size; the file is damaged.")
        return kind, data[4 : 4 + size], data[8:]
    body, rest = _cut(data[8:], size)
    return kind, body, rest[-size % 8 :]


def _numbers(data: memoryview, order: str) -> tuple[np.ndarray, memoryview]:
    kind, body, rest = _element(data, order)
    if kind not in _NUMBERS:
        raise Refused(f"numbers of the unknown kind {kind}; the file is damaged.")
    return np.frombuffer(body, np.dtype(f"{order}{_NUMBERS[kind]}")), rest


def _matrix(
    data: memoryview, order: str, budget: Budget, depth: int
) -> tuple[str, Any]:
    """Name and value of what a matrix element holds."""
    if depth > _DEEPEST:
        raise Refused("arrays lie too deep in one another; refused.")
    if not len(data):  # an empty field
        return "", None
    flags, data = _numbers(data, order)
    shape, data = _numbers(data, order)
    name, data = _numbers(data, order)
    if len(flags) != 2 or not 2 <= len(shape) <= 32 or (shape < 0).any():
        raise Refused("an array has an impossible shape; the file is damaged.")
    kind, shape = int(flags[0]) & 0xFF, tuple(map(int, shape))
    count = int(np.prod(shape, dtype=object))
    text = name.tobytes().decode("latin-1")
    if kind in _CLASSES or kind == _CHAR:
        values, _ = _numbers(data, order)
        if len(values) != count:
            raise Refused(f"an array of shape {shape} is not all there.")
        if kind == _CHAR:
            return text, "".join(map(chr, values.tolist()))
        is_complex = int(flags[0]) & 0x0800
        budget.take(count * np.dtype(_CLASSES[kind]).itemsize)
        values = values.astype(_CLASSES[kind]).reshape(shape, order="F")
        return text, None if is_complex else values
    if kind not in (_CELL, _STRUCT):
        return text, None
    fields: list[str] = []
    if kind == _STRUCT:
        width, data = _numbers(data, order)
        names, data = _numbers(data, order)
        raw, step = names.tobytes(), int(width[0]) if len(width) else 0
        if step < 1 or len(raw) % step:
            raise Refused("a structure has no names; the file is damaged.")
        fields = [
            raw[i : i + step].split(b"\0")[0].decode("latin-1")
            for i in range(0, len(raw), step)
        ]
    values = []
    # Each takes eight bytes at least, so that a wrong number ends at once.
    for _ in range(min(count * (len(fields) if kind == _STRUCT else 1), len(data))):
        inner, body, data = _element(data, order)
        if inner != _MATRIX:
            raise Refused("a cell holds no array; the file is damaged.")
        values.append(_matrix(body, order, budget, depth + 1)[1])
    if kind == _CELL:
        return text, values
    records = [
        dict(zip(fields, values[i : i + len(fields)], strict=True))
        for i in range(0, len(values), max(len(fields), 1))
    ]
    return text, records[0] if count == 1 and records else records
