"""CIFAR-10 (Krizhevsky, 2009) as its pickles of Python hold it; nothing in them is executed."""

import hashlib
import io
import math
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subquad.data.errors import DataError, DataNotFoundError

FILES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
PIXELS = 3 * 32 * 32
BATCH_SIZE = 10_000
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


@dataclass(frozen=True, eq=False)
class CifarImages:
    """The images of one part.

    Args:
        images: `(num_images, 32, 32, 3)` uint8, red, green, blue.
        labels: `(num_images,)` int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: int) -> np.ndarray:
        """An image, `(32, 32, 3)` uint8."""
        return self.images[index]


def cifar10_files(root: str | Path, part: str) -> list[Path]:
    """The batches of a part, in `ROOT[/cifar | /cifar10]/cifar-10-batches-py`.

    Raises:
        DataNotFoundError: The folder or a batch is missing.
    """
    if part not in FILES:
        raise ValueError(f"no part {part!r}; there are: {', '.join(FILES)}")
    folders = [Path(root).absolute() / place / "cifar-10-batches-py" for place in ("", "cifar", "cifar10")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    files = [place / name for place in ([folder] if folder else folders) for name in FILES[part]]
    if missing := [path for path in files if not path.is_file()]:
        raise DataNotFoundError(
            f"CIFAR-10 is not whole: expected {', '.join(name for names in FILES.values() for name in names)} in "
            f"cifar-10-batches-py; lacking {', '.join(str(path) for path in missing)}"
        )
    return files


def read_cifar10(root: str | Path, part: str, *, strict: bool = False) -> CifarImages:
    """Read the images of a part, `train` or `test`.

    Args:
        root: Where the data is; see `cifar10_files`.
        part: train (five batches) or test.
        strict: A whole batch that is not the published one is an error; otherwise a warning.

    Raises:
        DataNotFoundError: The folder or a batch is missing.
        DataError: A batch is not what the data set has.
    """
    batches = [_read_batch(path, strict) for path in cifar10_files(root, part)]
    return CifarImages(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))


def _read_batch(path: Path, strict: bool) -> CifarImages:
    content = path.read_bytes()
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        batch = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # damaged pickles raise almost anything
        raise DataError(f"{path}: not a pickled batch of CIFAR-10 ({type(error).__name__}: {error})") from None
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise DataError(
            f"{path}: expected an array `data` and a list `labels`, got the keys {', '.join(map(str, batch))}"
        )
    pixels = data.uint8()
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        raise DataError(f"{path}: `data` must be uint8 of the shape (10000, {PIXELS}), got {data}")
    if len(labels) != len(pixels) or not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise DataError(f"{path}: `labels` must be a whole number from 0 to 9 for each of {len(pixels)} images")
    # Batches of another size are no copies of the published ones, and are told by their size.
    if len(pixels) == BATCH_SIZE and hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[path.name]:
        message = f"{path}: not the published file, whose MD5 is {MD5[path.name]}"
        if strict:
            raise DataError(message)
        warnings.warn(message, stacklevel=2)
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return CifarImages(images, np.array(labels, dtype=np.int64))


class _Dtype:
    """What a pickle says of a dtype."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
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
        return f"{getattr(self.dtype, 'name', self.dtype)} of the shape {self.shape}"

    def uint8(self) -> np.ndarray | None:
        """The array, or None if it is not one of uint8."""
        whole = isinstance(self.shape, tuple) and all(type(size) is int and size >= 0 for size in self.shape)
        if not whole or not isinstance(self.dtype, _Dtype) or self.dtype.name not in ("u1", "|u1", "uint8"):
            return None
        if not isinstance(self.content, bytes | bytearray) or len(self.content) != math.prod(self.shape):
            return None
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
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
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.KNOWN:
            raise DataError(f"a pickle that asks for {module_name}.{global_name}; only arrays and containers are read")
        return self.KNOWN[module_name, global_name]
