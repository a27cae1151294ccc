"""PyTorch's files, and pickles of numpy arrays, without PyTorch and running nothing.

`pickles` reads the description of the tensors; here is what the names in it stand
for, and where the numbers lie.
"""

import dataclasses
import io
import math
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError
from unsup3d_jax.nets import pickles, zip_members
from unsup3d_jax.nets.file_guard import (
    Budget,
    Refused,
    StoredArray,
    existing,
    reading,
    shape_of,
    shown,
)

# First pickle of a file in the format of PyTorch < 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_MAGIC = b"PK\x03\x04"

_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<?",
    "BFloat16Storage": "<u2",  # raw bits; widened in `_Tensor`
}
# numpy's codes of types whose arrays are read.
_NUMBERS = {f"{kind}{n}" for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)),
            ("u", (1, 2, 4, 8)), ("b", (1,))) for n in sizes}  # fmt: skip


def read_numpy_pickle(path: str | Path) -> Any:
    """Reads a pickle of nested dicts and lists of numeric numpy arrays.

    Returns:
        What it describes, with a `StoredArray` for each array.

    Raises:
        UserError: if the file is missing or damaged, or names anything but
            numpy arrays.
    """
    path = existing(path)
    with reading(path, "pickle"):
        budget = Budget(path)
        find = _finder(_numpy_names(budget), "a numpy array")
        return pickles.load(io.BytesIO(path.read_bytes()), find, budget)


def read_torch_file(
    path: str | Path, *, foreign_classes: bool = False
) -> dict[str, Any]:
    """Reads a dictionary saved by PyTorch, in the zip or the older format.

    Args:
        path: a .pth or .pt file.
        foreign_classes: admit instances of unknown classes as
            `pickles.Foreign`, without their data; otherwise they are an error.

    Returns:
        The saved dictionary; each tensor is a `StoredArray`, which reads its
        numbers from the file when asked (bfloat16 as float32).

    Raises:
        UserError: if the file is missing, damaged, of another format, or asks
            for a function to be called.
    """
    tree = read_torch_object(path, foreign_classes=foreign_classes)
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{path}: expected a dictionary of tensors, found "
            f"{type(tree).__name__}; save model.state_dict() instead."
        )
    return dict(tree)


def read_torch_object(path: str | Path, *, foreign_classes: bool = False) -> Any:
    """`read_torch_file` of anything that PyTorch saved: a tensor, a list, ...

    Raises:
        UserError: as there.
    """
    path = existing(path)
    with reading(path, "file of PyTorch"):
        with path.open("rb") as file:
            start = file.read(4)
        read = _read_zip if start == _ZIP_MAGIC else _read_legacy
        return read(path, foreign_classes)


# --- numpy's names -------------------------------------------------------------------


class _Dtype(pickles.Stateful):
    """numpy's type of an array, as a pickle makes it: a code, then its byte order."""

    def __init__(self, code: str):
        self._code, self._order = code, "="

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1:2] not in (("<",), (">",), ("|",)):
            raise Refused("has a type of unknown byte order; the file is damaged.")
        self._order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(f"{self._order}{self._code}")


class _Array(StoredArray, pickles.Stateful):
    """An array, as a pickle makes it: empty, then all of it."""

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("has an array of an unknown kind; the file is damaged.")
        _version, shape, kind, in_columns, data = state
        if not isinstance(kind, _Dtype):
            raise Refused("has an array of no numbers; the file is damaged.")
        dtype, self.shape = kind.dtype(), shape_of(shape)
        self.size = math.prod(self.shape) * dtype.itemsize
        if not isinstance(data, bytes | str) or len(data) != self.size:
            raise Refused(
                f"has other numbers than an array of {self.shape} needs; the file is "
                "damaged."
            )

        def read() -> np.ndarray:
            # Python 2 had one type for bytes and text.
            numbers = data.encode("latin-1") if isinstance(data, str) else data
            flat = np.frombuffer(numbers, dtype)
            return flat.reshape(self.shape, order="F" if in_columns else "C")

        self.read = read


class _Marker:
    """A class that is only named, as an argument: never made, never called."""


_NDARRAY, _OBJECT = _Marker(), _Marker()


def _numpy_names(budget: Budget) -> dict[tuple[str, str], Any]:
    """What the names in a pickle of numpy arrays stand for."""

    def array(subtype: Any, shape: Any, typecode: Any) -> _Array:
        if subtype is not _NDARRAY:
            raise Refused("asks for an array subclass; refused.")
        return _Array(budget)

    def dtype(code: Any, align: Any = False, copy: Any = True) -> _Dtype:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise Refused(
                f"asks for arrays of type {shown(code)}, not numbers; refused."
            )
        return _Dtype(code)

    def encode(text: Any, codec: Any) -> bytes:
        # Arrays pickled by Python 3 in protocol 2 carry bytes as latin-1.
        if not isinstance(text, str):
            raise Refused("encodes what is no text; the file is damaged.")
        budget.take(len(text))
        return text.encode("latin-1")

    def ordered(pairs: Any = ()) -> dict[str, Any]:
        if not isinstance(pairs, list | tuple | dict):
            raise Refused("has a dictionary of no pairs; the file is damaged.")
        budget.take(pickles.PLACE * len(pairs))
        return pickles.as_mapping(pairs)

    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): pickles.Function(dtype),
        ("_codecs", "encode"): pickles.Function(encode),
        ("collections", "OrderedDict"): pickles.Function(ordered),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "_reconstruct"] = pickles.Function(array)
    return names


# --- PyTorch's names -----------------------------------------------------------------


@dataclasses.dataclass
class _Storage:
    """A flat run of numbers somewhere in the file.

    Attributes:
        count: of its numbers, as the description says.
        read: gives them, (count,) of `dtype`; None: they are not in the file.
    """

    name: str
    dtype: str
    count: int
    read: Callable[[], np.ndarray] | None = None


def _rebuild_object(cls: Any, base: Any, state: Any) -> pickles.Foreign:
    if not isinstance(cls, pickles.Foreign):
        raise Refused("asks for an object of what is no class; refused.")
    return pickles.Foreign(cls.name)


def _torch_names(budget: Budget) -> dict[tuple[str, str], Any]:
    """What the names in PyTorch's pickles stand for."""

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if not isinstance(storage, _Storage):
            raise Refused("a tensor has no storage; the file is damaged.")
        return _Tensor(budget, storage, offset, size, stride)

    nothing = pickles.Function(lambda *args: None)
    parameter = pickles.Function(lambda data, *_: data)
    names = _numpy_names(budget) | {
        ("torch._utils", "_rebuild_tensor"): pickles.Function(tensor),
        ("torch._utils", "_rebuild_tensor_v2"): pickles.Function(tensor),
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): parameter,
        # A size is pickled as a call with one tuple.
        ("torch", "Size"): pickles.Function(lambda sizes=(): sizes),
        ("torch", "device"): nothing,
        ("copy_reg", "_reconstructor"): pickles.Function(_rebuild_object),
        ("copyreg", "_reconstructor"): pickles.Function(_rebuild_object),
        ("__builtin__", "object"): _OBJECT,
        ("builtins", "object"): _OBJECT,
        # numpy scalars occur in pickled training logs.
        ("numpy.core.multiarray", "scalar"): nothing,
        ("numpy._core.multiarray", "scalar"): nothing,
    }
    for module in ("torch", "torch.cuda"):
        names |= {(module, name): dtype for name, dtype in _STORAGE_DTYPES.items()}
    return names


class _Tensor(StoredArray):
    """A tensor: a storage's numbers in steps."""

    def __init__(
        self, budget: Budget, storage: _Storage, offset: Any, size: Any, stride: Any
    ):
        shape, steps = shape_of(size), shape_of(stride)
        (offset,) = shape_of((offset,))
        if len(steps) != len(shape):
            raise Refused("a tensor has other steps than sizes; the file is damaged.")
        last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
        if 0 not in shape and last >= storage.count:
            raise Refused(
                f"tensor of shape {shape} does not fit into storage "
                f"{storage.name!r} of {storage.count} numbers; the file is damaged, "
                "download it again."
            )
        # Beyond what the storage has: steps of 0 repeat numbers.
        more = math.prod(shape) - storage.count
        size = max(more, 0) * np.dtype(storage.dtype).itemsize
        super().__init__(budget, shape, size, self._numbers)
        self._storage, self._range, self._steps = storage, (offset, last + 1), steps

    def _numbers(self) -> np.ndarray:
        storage, (start, stop) = self._storage, self._range
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        if storage.read is None:
            raise Refused(f"the data of storage {storage.name!r} are missing.")
        flat = storage.read()[start:stop]
        steps = [step * flat.itemsize for step in self._steps]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, steps)
        if storage.dtype == _STORAGE_DTYPES["BFloat16Storage"]:
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view


class _TorchPickle:
    """Reads the pickles of one file; `storages` collects what they refer to."""

    def __init__(self, path: Path, foreign_classes: bool):
        self.budget = Budget(path)
        self.storages: dict[str, _Storage] = {}
        self._foreign_classes = foreign_classes
        self._names = _torch_names(self.budget)

    def load(self, file: Any) -> Any:
        """The tree that one pickle describes."""
        return pickles.load(file, self._find, self.budget, self._storage_of)

    def plain(self, file: Any) -> Any:
        """What a pickle of plain values describes."""
        return pickles.load(file, _finder({}, "a plain value"), self.budget)

    def _find(self, module: str, name: str) -> Any:
        if (module, name) not in self._names and self._foreign_classes:
            return pickles.Foreign(f"{module}.{name}")
        return _finder(self._names, "a tensor")(module, name)

    def _storage_of(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        known = isinstance(dtype, str) and dtype in _STORAGE_DTYPES.values()
        if kind != "storage" or not known or any(view):
            raise Refused(f"holds a storage of an unknown kind: {shown(pid)}.")
        if not isinstance(key, str | int):
            raise Refused("holds a storage without a name; the file is damaged.")
        (count,) = shape_of((count,))
        return self.storages.setdefault(str(key), _Storage(str(key), dtype, count))


def _finder(names: Mapping[tuple[str, str], Any], wanted: str) -> Callable:
    def find(module: str, name: str) -> Any:
        try:
            return names[module, name]
        except KeyError:
            raise Refused(
                f"asks for {module}.{name}, which is not {wanted}; refused. Save "
                "numbers alone, such as model.state_dict()."
            ) from None

    return find


# --- PyTorch's two formats -----------------------------------------------------------


def _read_zip(path: Path, foreign_classes: bool) -> Any:
    pickle = _TorchPickle(path, foreign_classes)
    archive = zip_members.Archive(path, pickle.budget)
    names = [n for n in archive.sizes if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(names) != 1:
        raise Refused("a zip file, but not one written by PyTorch.")
    root = names[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.sizes and archive.read(order) != b"little":
        raise Refused("written on a big-endian machine; not supported.")
    tree = pickle.load(io.BytesIO(archive.read(names[0])))

    def reader(name: str, storage: _Storage) -> Callable[[], np.ndarray]:
        return lambda: np.frombuffer(archive.read(name), storage.dtype, storage.count)

    for storage in pickle.storages.values():
        name = f"{root}data/{storage.name}"
        if name in archive.sizes:
            storage.read = reader(name, storage)
    return tree


def _read_legacy(path: Path, foreign_classes: bool) -> Any:
    pickle = _TorchPickle(path, foreign_classes)
    with path.open("rb") as file:
        # Its `read` gives no more room than there are bytes.
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Magic number, protocol, system: plain values, so nothing is admitted.
    magic, _protocol, system = (pickle.plain(whole) for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise Refused("not a file written by PyTorch.")
    if isinstance(system, dict) and not system.get("little_endian", True):
        raise Refused("written on a big-endian machine; not supported.")
    tree, keys = pickle.load(whole), pickle.plain(whole)
    if not isinstance(keys, list):
        raise Refused("has no list of its storages; the file is damaged.")
    position, numbers = whole.tell(), np.frombuffer(whole, np.uint8)
    # The data follow in the order of `keys`: an int64 count, then the numbers.
    for key in keys:
        storage = pickle.storages.get(key) if isinstance(key, str) else None
        head = numbers[position : position + 8]
        if storage is None or head.size != 8:
            raise Refused("ends early or lists an unknown storage.")
        count = int(head.view("<i8")[0])
        size = storage.count * np.dtype(storage.dtype).itemsize
        data = numbers[position + 8 : position + 8 + size]
        if count != storage.count or data.size != size:
            raise Refused(
                f"storage {key!r} should hold {storage.count} numbers, found {count}; "
                "the file is damaged or incomplete."
            )
        storage.read = lambda data=data, dtype=storage.dtype: data.view(dtype)
        position += 8 + size
    return tree
