"""Writes what torch.save writes, without torch: nested dictionaries of float arrays."""

import io
import zipfile
from collections import OrderedDict

import numpy as np

_STORAGES = {"float32": b"FloatStorage", "float16": b"HalfStorage"}


def save(tree, path):
    """A zip with a pickle of protocol 2, spelt out, and one member an array."""
    out, arrays = io.BytesIO(), []

    def text(value):
        data = value.encode()
        out.write(b"X" + len(data).to_bytes(4, "little") + data)

    def number(value):
        out.write(b"J" + int(value).to_bytes(4, "little", signed=True))

    def numbers(values):
        out.write(b"(")
        for value in values:
            number(value)
        out.write(b"t")

    def tensor(array):
        strides = [step // array.itemsize for step in array.strides]
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        text("storage")
        out.write(b"ctorch\n" + _STORAGES[array.dtype.name] + b"\n")
        text(str(len(arrays)))
        text("cpu")
        number(array.size)
        out.write(b"tQ")
        number(0)
        numbers(array.shape)
        numbers(strides)
        out.write(b"\x89ccollections\nOrderedDict\n)RtR")
        arrays.append(array)

    def put(value):
        if isinstance(value, dict):
            ordered = isinstance(value, OrderedDict)
            out.write(b"ccollections\nOrderedDict\n)R(" if ordered else b"}(")
            for key, inner in value.items():
                text(key)
                put(inner)
            out.write(b"u")
        elif isinstance(value, np.ndarray):
            tensor(np.ascontiguousarray(value))
        else:
            number(value)

    out.write(b"\x80\x02")
    put(tree)
    out.write(b".")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", array.tobytes())
