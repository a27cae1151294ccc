"""Numba functions as XLA custom calls on the CPU: no compiler, no build.

XLA calls a handler with the address of a call frame, a C structure that its foreign
function interface keeps stable within a major version (0 here). All its fields are read
as 64-bit words; the numbers below count words. Imported only where Numba is installed.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.np.numpy_support import carray

from .compiled import njit

# XLA_FFI_CallFrame
_FRAME_SIZE, _EXTENSION = 0, 1
_ARGUMENTS, _RESULTS = 9, 14  # arrays of addresses of XLA_FFI_Buffer
_FRAME_BYTES = 120  # up to the end of the results, which is all that is read
# XLA_FFI_Buffer
_DATA, _RANK, _EXTENTS = 3, 4, 5
# XLA_FFI_Metadata_Extension, and the version in XLA_FFI_Metadata as 32-bit words
_KIND, _METADATA, _MAJOR, _MINOR = 1, 3, 6, 7
_IS_METADATA = 1
_API_VERSION = (0, 1)
_PART = 3  # words that describe a part: the frame, which part, of how many


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba hands such a function another first argument than its callers do."""
    return extending.intrinsic(function)


_pthread_create = types.ExternalFunction(
    "pthread_create",
    types.int32(types.voidptr, types.voidptr, types.voidptr, types.voidptr),
)
_pthread_join = types.ExternalFunction(
    "pthread_join", types.int32(types.uintp, types.voidptr)
)


@_intrinsic
def _pointer(typingctx, address):
    """An address as a pointer, for `numba.carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@_intrinsic
def _call(typingctx, function, argument):
    """Calls a C function from words to a word, by its address."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        pointer = ir.FunctionType(word, [word]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], pointer), [arguments[1]])

    return types.intp(types.intp, types.intp), generate


@njit()
def _words(address, count):
    return carray(_pointer(address), count, np.int64)


@njit()
def _buffer(frame, side, number):
    buffers = _words(_words(frame, side + 1)[side], number + 1)
    return _words(buffers[number], _EXTENTS + 1)


@njit()
def argument(frame, number, dtype):
    """The numbers of the call's argument, flat; `dtype` must be its own."""
    return _flat(_buffer(frame, _ARGUMENTS, number), dtype)


@njit()
def result(frame, number, dtype):
    """The numbers of the call's result, flat, to be written."""
    return _flat(_buffer(frame, _RESULTS, number), dtype)


@njit()
def extent(frame, number, axis):
    """Length of an axis of the call's argument."""
    buffer = _buffer(frame, _ARGUMENTS, number)
    return _words(buffer[_EXTENTS], axis + 1)[axis]


@njit()
def _flat(buffer, dtype):
    count: Any = 1
    for length in _words(buffer[_EXTENTS], buffer[_RANK]):
        count *= length
    return carray(_pointer(buffer[_DATA]), count, dtype)


@njit()
def _serve(frame, run_part):
    """Answers a call: its parts on threads, the first one on this."""
    address = _words(frame, _EXTENSION + 1)[_EXTENSION]
    if address != 0:
        extension = _words(address, _METADATA + 1)
        if extension[_KIND] & 0xFFFFFFFF == _IS_METADATA:
            # XLA asks at registration which version this handler was made for. Left
            # unanswered for a frame too short to be one, which XLA then refuses.
            if _words(frame, 1)[_FRAME_SIZE] >= _FRAME_BYTES:
                version = carray(_pointer(extension[_METADATA]), _MINOR + 1, np.int32)
                version[_MAJOR], version[_MINOR] = _API_VERSION
            return
    count = argument(frame, 0, np.int32)[0]
    if count == 0:
        return
    parts = np.empty(_PART * count, np.int64)
    threads = np.empty(count, np.uintp)
    failed = np.ones(count, np.int32)
    for k in range(count):
        at = _PART * k
        parts[at], parts[at + 1], parts[at + 2] = frame, k, count
    address, thread = parts.ctypes.data, threads.ctypes.data
    for k in range(1, count):
        failed[k] = _pthread_create(
            *(_pointer(thread + 8 * k), _pointer(0)),
            *(_pointer(run_part), _pointer(address + 8 * _PART * k)),
        )
    for k in range(count):
        if failed[k] != 0:
            _call(run_part, address + 8 * _PART * k)
    for k in range(1, count):
        if failed[k] == 0:
            _pthread_join(threads[k], _pointer(0))
    # Numba frees an array after its last use, which threads know by address alone.
    parts[0] = 0


@cache
def register(target: str, share: Any, dtype: type) -> tuple:
    """Makes a Numba function callable as `jax.ffi.ffi_call(target, ...)` on the CPU.

    Args:
        share: share(frame, k, n, dtype) does the k-th of n parts of the work of a call,
            and the parts may run at once; it reads and writes by `argument` and
            `result`. The first number of argument 0, an int32 array, is n.
        dtype: np.float32 or np.float64.

    Returns:
        The compiled functions. XLA may call them until the process ends, and the cache
        of this function keeps them that long.
    """

    @numba.cfunc(types.intp(types.intp))
    def run_part(address):
        part = _words(address, _PART)
        share(part[0], part[1], part[2], dtype)
        return 0

    start = run_part.address

    @numba.cfunc(types.intp(types.intp))
    def handle(frame):
        _serve(frame, start)
        return 0

    jax.ffi.register_ffi_target(
        target, jax.ffi.pycapsule(ctypes.c_void_p(handle.address)), platform="cpu"
    )
    return run_part, handle


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
