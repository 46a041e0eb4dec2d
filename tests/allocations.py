"""What memory a call really takes: every array NumPy allocates, and the process's peak."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_SET_HANDLER = 304
"""Index of PyDataMem_SetHandler (NumPy 2, numpy/_core/code_generators/numpy_api.py)."""
_MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Handler(ctypes.Structure):
    """PyDataMem_Handler (NEP 49)."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _MALLOC),
        ("calloc", _CALLOC),
        ("realloc", _REALLOC),
        ("free", _FREE),
    )


_libc = ctypes.CDLL(None)
for _name in ("malloc", "calloc", "realloc"):
    getattr(_libc, _name).restype = ctypes.c_void_p
_sizes: list[int] = []


@_MALLOC
def _malloc(_: Any, size: int) -> Any:
    _sizes.append(size)
    return _libc.malloc(ctypes.c_size_t(size))


@_CALLOC
def _calloc(_: Any, count: int, size: int) -> Any:
    _sizes.append(count * size)
    return _libc.calloc(ctypes.c_size_t(count), ctypes.c_size_t(size))


@_REALLOC
def _realloc(_: Any, pointer: Any, size: int) -> Any:
    _sizes.append(size)
    return _libc.realloc(ctypes.c_void_p(pointer), ctypes.c_size_t(size))


@_FREE
def _free(_: Any, pointer: Any, __: int) -> None:
    _libc.free(ctypes.c_void_p(pointer))


# Lives as long as any array that was made while it was set.
_HANDLER = _Handler(b"counting", 1, None, _malloc, _calloc, _realloc, _free)


def _capsule_api() -> Any:
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return api


@contextmanager
def numpy_allocations() -> Iterator[list[int]]:
    """Bytes of every array that this thread allocates through NumPy, OpenCV's results included."""
    api = _capsule_api()
    table = api.PyCapsule_GetPointer(np._core.multiarray._ARRAY_API, None)  # type: ignore[attr-defined]
    address = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[_SET_HANDLER]
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)
    own = api.PyCapsule_New(ctypes.addressof(_HANDLER), b"mem_handler", None)
    before = set_handler(own)
    _sizes.clear()
    sizes: list[int] = []
    try:
        yield sizes
    finally:
        set_handler(before)
        sizes.extend(_sizes)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes by which this process grows at most, whoever allocates them (Linux)."""
    gc.collect()
    _libc.malloc_trim(0)  # or what lies freed would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
    before_bytes = read_memory_bytes("VmRSS")
    peak: list[int] = []
    yield peak
    peak.append(read_memory_bytes("VmHWM") - before_bytes)


def read_memory_bytes(field: str, pid: int | str = "self") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
