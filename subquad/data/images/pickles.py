"""Pickles of Python that hold arrays of uint8 and plain containers; nothing in them is executed."""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, cast

import numpy as np

from subquad.data.errors import DataError


def read_pickle(content: bytes, path: Path, what: str) -> dict[str, Any]:
    """The dictionary that a pickle of NumPy's and Python's own types holds, arrays in it as `PickledArray`.

    Args:
        content: The file.
        path: Where it came from, for messages.
        what: What it should be, for messages.

    Raises:
        DataError: It asks for anything but arrays and containers, or is no pickle of a dictionary.
    """
    try:
        _check_memo(content)
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {as_text(key): value for key, value in loaded.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # damaged pickles raise almost anything
        raise DataError(f"{path}: not a pickled {what} ({type(error).__name__}: {error})") from None


def as_text(value: Any) -> Any:
    """Python 2 wrote text as bytes."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _check_memo(content: bytes) -> None:
    """Refuse numbers of memorised objects that no file of this size has: the unpickler reserves memory for them."""
    for opcode, argument, position in pickletools.genops(content):
        if "PUT" in opcode.name and cast(int, argument) > cast(int, position):
            raise DataError(f"a damaged pickle: object {argument} at byte {position}")


class PickledDtype:
    """What a pickle says of a dtype."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = as_text(name)

    def __setstate__(self, state: Any) -> None:
        pass


class PickledArray:
    """What a pickle says of an array; `uint8` makes it one."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    content: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state

    def __str__(self) -> str:
        dtype = self.dtype.name if isinstance(self.dtype, PickledDtype) else None
        return f"{dtype} of the shape {self.shape if self._has_shape() else None}"

    def _has_shape(self) -> bool:
        return isinstance(self.shape, tuple) and all(type(size) is int and size >= 0 for size in self.shape)

    def uint8(self) -> np.ndarray | None:
        """The array, or None if it is not one of uint8."""
        if not self._has_shape() or not isinstance(self.dtype, PickledDtype):
            return None
        if self.dtype.name not in ("u1", "|u1", "uint8"):
            return None
        if not isinstance(self.content, bytes | bytearray) or len(self.content) != math.prod(self.shape):
            return None
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array.__setstate__((None, shape, dtype, order == "F", content))
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """How older protocols write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise DataError("bytes that are not written as latin1")
    return text.encode("latin-1")


class _Unpickler(pickle.Unpickler):
    """Knows plain containers, and records that stand for arrays and dtypes; nothing else."""

    KNOWN = {  # noqa: RUF012
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): PickledDtype,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.KNOWN:
            raise DataError(f"a pickle that asks for {module_name}.{global_name}; only arrays and containers are read")
        return self.KNOWN[module_name, global_name]
