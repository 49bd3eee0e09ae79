"""Small copies of the data sets, as the release arranges them, and workers that start at once."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

LISTOPS = "Source\tTarget\r\n( ( ( [MAX 2 ) 9 ) ] )\t9\r\n( ( ( [MIN 2 ) 2 ) ] )\t2\r\n"
RETRIEVAL = '1.0\t7\t8\tsaid "so\tand more\n0.0\t9\t10\tb\\n\tno end"\n'
METADATA = "imgs/{k} sample_{j}.png {j} {label} 1.0 14 4 2 0.5 1 1"


def listops(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        (folder / f"basic_{split}.tsv").write_bytes(LISTOPS.encode())


def retrieval(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{split}.tsv").write_bytes(RETRIEVAL.encode())


def text(folder):
    for split in ("train", "test"):
        for sentiment in ("neg", "pos"):
            (folder / split / sentiment).mkdir(parents=True)
            for number in (10, 9, 0):
                path = folder / split / sentiment / f"{number}_{1 + 8 * (sentiment == 'pos')}.txt"
                path.write_text(f"{sentiment} {number} é\r\n<br />", encoding="utf-8", newline="")
        (folder / split / "unsup").mkdir()


def cifar_batch(count, first_label=0):
    data = np.random.default_rng(first_label).integers(256, size=(count, 3072)).astype(np.uint8)
    return {b"data": data, b"labels": [(first_label + i) % 10 for i in range(count)], b"batch_label": b"a batch"}


def cifar(folder, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(4, k), protocol))


def image(path, resolution, mode="L", value=100):
    module = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    module.new(mode, (resolution, resolution), value).save(path)


def pathfinder(folder, resolution=32, difficulty="curv_contour_length_14", files=(10, 9), per_file=5):
    """Image j of file k is of the grey value 10 · k + j, and on one path if k + j is odd."""
    for k in files:
        lines = []
        for j in range(per_file):
            image(folder / difficulty / f"imgs/{k}/sample_{j}.png", resolution, value=10 * k + j)
            lines.append(METADATA.format(k=k, j=j, label=(k + j) % 2))
        path = folder / difficulty / "metadata" / f"{k}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


class _Workers(ThreadPoolExecutor):
    """Processes that need not import torch: threads, which get work and give results as processes would."""

    def __init__(self, num_workers, context):
        super().__init__(num_workers)

    def submit(self, function, item):
        function, item = pickle.loads(pickle.dumps((function, item)))
        return super().submit(lambda: pickle.loads(pickle.dumps(function(item))))


def work_in_threads(monkeypatch):
    monkeypatch.setattr("subquad.data.lra.parallel.ProcessPoolExecutor", _Workers)
