"""Small data sets of images in the forms that users have."""

import gzip
import pickle
import struct

import numpy as np
import pytest

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixels(count, first=0):
    return np.random.default_rng(first).integers(256, size=(count, 3072)).astype(np.uint8)


def cifar10(folder, protocol=2, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        batch = {b"data": pixels(count, k), b"labels": [(k + i) % 10 for i in range(count)], b"batch_label": b"a batch"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    meta = {b"label_names": [name.encode() for name in CIFAR10_NAMES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))


def cifar100(folder, protocol=2, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(("train", "test")):
        labels = [(7 * i + 93 * k) % 100 for i in range(count)]
        batch = {
            b"data": pixels(count, k),
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
            b"filenames": [b"a.png"] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    names = {b"fine_label_names": [f"fine {i}".encode() for i in range(100)], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol))


def idx(path, array):
    """An array of uint8 as an idx file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def mnist(folder, suffix="", count=12, size=9):
    for k, part in enumerate(("train", "t10k")):
        rng = np.random.default_rng(k)
        idx(folder / f"{part}-images-idx3-ubyte{suffix}", rng.integers(256, size=(count, size, size)))
        idx(folder / f"{part}-labels-idx1-ubyte{suffix}", (np.arange(count) + k) % 10)


def picture(path, height=8, width=10, value=(10, 20, 30), mode="RGB"):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = image.new(mode, (width, height), value)
    if mode == "P":
        made.putpalette([0, 0, 0])  # Pillow 12.3 cannot read the empty palette that it writes
    made.save(path)
    return path


def folders(root, parts=("train", "val"), classes=("cat", "ant"), count=3):
    """Image i of class c of part p is red 10 · i, green 50 · c, blue 100 · p."""
    for p, part in enumerate(parts):
        for c, name in enumerate(sorted(classes)):
            for i in range(count):
                picture(root / part / name / f"{i}.png", value=(10 * i, 50 * c, 100 * p))


def lists(root, parts=("train", "val"), count=6):
    """A list for each part; paths hold blanks, and image i is of class i modulo 3 and red 10 · i."""
    for part in parts:
        lines = []
        for i in range(count):
            name = f"{part} images/{i}.png"
            picture(root / name, value=(10 * i, 0, 0))
            lines.append(f"{name} {i % 3}\n")
        (root / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
