"""Reads pickles, PyTorch's files among them, without running their code.

A pickle is a program: loading it calls whatever functions it names. The
readers here admit a fixed list of names that only build arrays and plain
containers, replace foreign *classes* by inert placeholders where asked, and
refuse everything else. PyTorch is not needed to read its files.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unsup3d_jax.errors import UserError

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
    "BFloat16Storage": "<u2",  # raw bits; widened in `TensorHandle.array`
}


def read_numpy_pickle(path: str | Path) -> Any:
    """Reads a pickle of nested dicts and lists of numeric numpy arrays.

    Raises:
        UserError: if the file is missing or damaged, or names anything but
            numpy arrays.
    """
    path = existing(path)
    with path.open("rb") as file:
        return _unpickle(_NumpyUnpickler(file), path)


def read_torch_file(
    path: str | Path, *, foreign_classes: bool = False
) -> dict[str, Any]:
    """Reads a dictionary saved by PyTorch, in the zip or the older format.

    Args:
        path: a .pth or .pt file.
        foreign_classes: admit instances of unknown classes as inert
            placeholders (their data is dropped); otherwise they are an error.

    Returns:
        The saved dictionary; each tensor is a `TensorHandle`, which reads its
        numbers from the file when asked.

    Raises:
        UserError: if the file is missing, damaged, of another format, or asks
            for a function to be called.
    """
    path = existing(path)
    with path.open("rb") as file:
        start = file.read(4)
    read = _read_zip if start == _ZIP_MAGIC else _read_legacy
    tree = read(path, foreign_classes)
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{path}: expected a dictionary of tensors, found "
            f"{type(tree).__name__}; save model.state_dict() instead."
        )
    return dict(tree)


@dataclass
class _Storage:
    """A flat run of numbers somewhere in the file."""

    dtype: str
    count: int
    path: Path
    name: str
    read: Callable[[], np.ndarray] | None = None  # -> (count,) of dtype


@dataclass(frozen=True)
class TensorHandle:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def array(self) -> np.ndarray:
        """Returns the numbers (bfloat16 as float32), as a fresh array.

        Raises:
            UserError: if the tensor reaches beyond its data.
        """
        store = self.storage
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        sane = self.offset >= 0 and all(
            n >= 0 and s >= 0 for n, s in zip(self.shape, self.strides, strict=True)
        )
        empty = 0 in self.shape
        if not sane or store.read is None or (not empty and last >= store.count):
            raise UserError(
                f"{store.path}: tensor of shape {self.shape} does not fit into "
                f"storage {store.name!r} of {store.count} numbers; the file is "
                "damaged, download it again."
            )
        if empty:
            return np.zeros(self.shape, np.float32)
        flat = store.read()[self.offset : last + 1]
        view = np.lib.stride_tricks.as_strided(
            flat, self.shape, [s * flat.itemsize for s in self.strides]
        )
        # Always native byte order and our own memory.
        array = np.array(view, dtype=view.dtype.newbyteorder("="))
        if store.dtype == "<u2":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array


def existing(path: str | Path) -> Path:
    """The path of a file that is there.

    Raises:
        UserError: if it is not.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    return path


def _unpickle(unpickler: pickle.Unpickler, path: Path) -> Any:
    try:
        return unpickler.load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path}: not a readable pickle ({reason}); the file is damaged or "
            "of another format."
        ) from error


def _array_shell(subtype: type, shape: Any, typecode: Any) -> np.ndarray:
    """numpy's own array reconstruction, for plain arrays only."""
    if subtype is not np.ndarray or shape not in ((0,), [0]):
        raise UserError("asks for an array subclass; refused.")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _numeric_dtype(code: str, align: Any = False, copy: Any = True) -> np.dtype:
    dtype = np.dtype(str(code), copy=True)  # a copy: unpickling sets its state
    if dtype.kind not in "fiub":
        raise UserError(f"asks for arrays of type {code!r}, not numbers; refused.")
    return dtype


_NUMPY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _array_shell,
    ("numpy._core.multiarray", "_reconstruct"): _array_shell,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _numeric_dtype,
    # numpy arrays pickled by Python 3 in protocol 2 carry bytes as latin-1.
    ("_codecs", "encode"): lambda text, codec: text.encode("latin-1"),
    ("collections", "OrderedDict"): OrderedDict,
}


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NUMPY_NAMES[module, name]
        except KeyError:
            raise UserError(
                f"asks for {module}.{name}, which is not a numpy array; refused."
            ) from None


class _InertType(type):
    """Type of placeholders: instances may be made, but never by a call.

    Unpickling an ordinary object allocates it and then sets its state. A
    hostile pickle instead *calls* what it names, which ends here.
    """

    def __call__(cls, *args, **kwargs):
        raise UserError(f"asks for a call of {cls.__name__}; refused.")


def _inert_class(name: str) -> type:
    def drop(self, *args, **kwargs):
        return None

    members: dict[str, Any] = dict.fromkeys(
        ("__init__", "__setstate__", "__setitem__", "append", "extend"), drop
    )
    members["__new__"] = lambda cls, *args, **kwargs: object.__new__(cls)
    members["__slots__"] = ()
    return _InertType(name, (), members)


def _rebuild_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any):
    if not isinstance(storage, _Storage):
        raise UserError("a tensor has no storage; the file is damaged.")
    return TensorHandle(
        storage, int(offset), tuple(map(int, size)), tuple(map(int, stride))
    )


def _reconstruct_object(cls: type, base: type, state: Any) -> Any:
    if not isinstance(cls, _InertType):
        raise UserError(f"asks for an object of {cls!r}; refused.")
    return object.__new__(cls)


_TORCH_NAMES = {
    **_NUMPY_NAMES,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *args: None,
    ("copy_reg", "_reconstructor"): _reconstruct_object,
    ("copyreg", "_reconstructor"): _reconstruct_object,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    # numpy scalars occur in pickled training logs.
    ("numpy.core.multiarray", "scalar"): lambda *args: None,
    ("numpy._core.multiarray", "scalar"): lambda *args: None,
}


class _TorchUnpickler(pickle.Unpickler):
    """Builds `TensorHandle`s; `storages` collects what they refer to."""

    def __init__(self, file: Any, path: Path, foreign_classes: bool):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.foreign_classes = foreign_classes
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TORCH_NAMES:
            return _TORCH_NAMES[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if self.foreign_classes:
            return _inert_class(f"{module}.{name}")
        raise UserError(
            f"asks for {module}.{name}, which is not a tensor; refused. Save "
            "model.state_dict() alone."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, str) or any(view):
            raise UserError(f"holds a storage of an unknown kind: {pid!r:.80}.")
        if key not in self.storages:
            self.storages[key] = _Storage(dtype, int(count), self.path, str(key))
        return self.storages[key]


def _read_zip(path: Path, foreign_classes: bool) -> Any:
    try:
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: damaged zip file ({error}).") from error
    pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path}: a zip file, but not one written by PyTorch.")
    root = pickles[0][: -len("data.pkl")]
    order = f"{root}byteorder"
    if order in names and archive.read(order) != b"little":
        raise UserError(f"{path}: written on a big-endian machine; not supported.")
    unpickler = _TorchUnpickler(
        io.BytesIO(archive.read(pickles[0])), path, foreign_classes
    )
    tree = _unpickle(unpickler, path)

    def reader(storage: _Storage) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                with zipfile.ZipFile(path) as again:
                    data = again.read(f"{root}data/{storage.name}")
                return np.frombuffer(data, storage.dtype, storage.count)
            except (KeyError, ValueError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"{path}: data of storage {storage.name!r} is missing or "
                    f"damaged ({error})."
                ) from error

        return read

    for storage in unpickler.storages.values():
        storage.read = reader(storage)
    return tree


def _read_legacy(path: Path, foreign_classes: bool) -> Any:
    with path.open("rb") as file:
        # Magic number, protocol, system: plain values, so nothing is admitted.
        header = [_unpickle(_NumpyUnpickler(file), path) for _ in range(3)]
        if header[0] != _LEGACY_MAGIC:
            raise UserError(f"{path}: not a file written by PyTorch.")
        if isinstance(header[2], dict) and not header[2].get("little_endian", True):
            raise UserError(f"{path}: written on a big-endian machine; not supported.")
        unpickler = _TorchUnpickler(file, path, foreign_classes)
        tree = _unpickle(unpickler, path)
        keys = _unpickle(_NumpyUnpickler(file), path)
        position = file.tell()
    whole = np.memmap(path, np.uint8, mode="r")
    # The data follow in the order of `keys`: an int64 count, then the numbers.
    for key in keys:
        storage = unpickler.storages.get(key)
        head = whole[position : position + 8]
        if storage is None or head.size != 8:
            raise UserError(f"{path}: ends early or lists an unknown storage.")
        count = int(head.view("<i8")[0])
        size = count * np.dtype(storage.dtype).itemsize
        data = whole[position + 8 : position + 8 + size]
        if count != storage.count or data.size != size:
            raise UserError(
                f"{path}: storage {key!r} should hold {storage.count} numbers, "
                f"found {count}; the file is damaged or incomplete."
            )
        storage.read = lambda d=data, s=storage: np.frombuffer(d.tobytes(), s.dtype)
        position += 8 + size
    return tree
