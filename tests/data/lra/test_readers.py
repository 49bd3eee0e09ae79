"""The files of every task: where they are found, what is read, and what is said about bad ones."""

import itertools
import os
import pickle
import tarfile

import lra_files as write
import numpy as np
import pytest
from damage import mutation
from hypothesis import HealthCheck, given, settings
from support import shared

from subquad.data import DataError
from subquad.data.errors import DataNotFoundError
from subquad.data.lra import read_cifar10, read_listops, read_pathfinder, read_retrieval, read_text
from subquad.data.lra.readers import check_size

RELEASE = ("", "lra_release", "lra_release/lra_release")
HARD = "curv_contour_length_14"


def places(*names):
    return [f"{prefix}/{name}".strip("/") for prefix, name in itertools.product(RELEASE, names)]


@pytest.mark.parametrize("place", places("listops-1000", "listops", ""))
def test_listops(tmp_path, place):
    write.listops(tmp_path / place)
    for split in ("train", "valid", "test"):
        assert [(example.texts[0].split()[3], example.label) for example in read_listops(tmp_path, split)] == [
            ("[MAX", 9),
            ("[MIN", 2),
        ]


def test_the_first_place_wins(tmp_path):
    write.listops(tmp_path / "listops-1000")
    (tmp_path / "basic_train.tsv").write_text("Source\tTarget\n7\t7\n")
    assert len(list(read_listops(tmp_path, "train"))) == 2
    for file in (tmp_path / "listops-1000").iterdir():
        file.unlink()
    assert list(read_listops(tmp_path, "train")) == [(("7",), 7)]


@pytest.mark.parametrize("place", places("tsv_data", "aan", "retrieval", ""))
def test_retrieval(tmp_path, place):
    write.retrieval(tmp_path / place)
    for split in ("train", "valid", "test"):
        assert list(read_retrieval(tmp_path, split)) == [(('said "so', "and more"), 1), (("b\\n", 'no end"'), 0)]


@pytest.mark.parametrize("place", ["aclImdb", "imdb/aclImdb", "text/aclImdb"])
def test_text(tmp_path, place):
    write.text(tmp_path / place)
    expected = [
        (f"{sentiment} {k} é\r\n<br />", label) for label, sentiment in enumerate(["neg", "pos"]) for k in (0, 9, 10)
    ]
    for split in ("train", "test"):
        assert [(example.texts[0], example.label) for example in read_text(tmp_path, split)] == expected


@pytest.mark.parametrize("place", places("pathfinder32", "pathfinder/pathfinder32"))
def test_pathfinder(tmp_path, place):
    write.pathfinder(tmp_path / place)
    images = read_pathfinder(tmp_path)
    assert [int(images.pixels(i)[3, 4]) for i in range(len(images))] == [*range(90, 95), *range(100, 105)]
    assert images.labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert images.pixels(0).shape == (32, 32)
    assert images.pixels(0).dtype == np.uint8


def test_pathfinder_metadata_as_numpy_saves_it(tmp_path):
    write.pathfinder(tmp_path / "pathfinder64", 64)
    expected = read_pathfinder(tmp_path, 64)
    for path in (tmp_path / "pathfinder64" / HARD / "metadata").iterdir():
        np.save(path, np.array([line.split() for line in path.read_text().splitlines()]))
    images = read_pathfinder(tmp_path, 64)
    assert (images.files, images.labels.tolist()) == (expected.files, expected.labels.tolist())


def test_colours_become_grey(tmp_path):
    write.pathfinder(tmp_path / "pathfinder32", files=(0,), per_file=1)
    write.image(tmp_path / "pathfinder32" / HARD / "imgs/0/sample_0.png", 32, "RGB", (255, 0, 0))
    assert read_pathfinder(tmp_path).pixels(0)[0, 0] == 76


def test_the_damaged_image_of_the_release_is_skipped(tmp_path):
    folder = tmp_path / "pathfinder32"
    for difficulty in ("curv_baseline", HARD):
        write.pathfinder(folder, difficulty=difficulty, files=(0,), per_file=173)
        (folder / difficulty / "imgs/0/sample_172.png").write_bytes(b"")
    assert len(read_pathfinder(tmp_path, difficulty="easy")) == 172
    with pytest.raises(DataError, match=r"0.npy, line 173: the image .*sample_172.png is an empty file"):
        read_pathfinder(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["", "cifar", "cifar10"])
def test_cifar(tmp_path, place, protocol):
    write.cifar(tmp_path / place / "cifar-10-batches-py", protocol)
    train, test = read_cifar10(tmp_path, "train"), read_cifar10(tmp_path, "test")
    assert (len(train), len(test)) == (20, 4)
    assert train.labels.tolist() == [k + i for k in range(5) for i in range(4)]
    batch = write.cifar_batch(4, 1)[b"data"]
    assert train.pixels(5)[2, 3].tolist() == batch[1, [2 * 32 + 3, 1024 + 2 * 32 + 3, 2048 + 2 * 32 + 3]].tolist()


def test_reviews_of_the_data_set(tmp_path):
    with tarfile.open(shared("data", "imdb", "aclImdb-labelled.tar.gz")) as archive:
        members = itertools.islice((m for m in archive if m.name.endswith(".txt") and "/t" in m.name), 20)
        reviews = {member.name: archive.extractfile(member).read() for member in members}
    for name, review in reviews.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(review)
    for split, sentiment in itertools.product(("train", "test"), ("neg", "pos")):
        path = tmp_path / "aclImdb" / split / sentiment / "999999_5.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("the last")
    texts = [example.texts[0] for split in ("train", "test") for example in read_text(tmp_path, split)]
    assert sorted(text.encode() for text in texts) == sorted([*reviews.values(), *[b"the last"] * 4])


# Errors

READERS = {
    "listops": lambda root: list(read_listops(root, "train")),
    "strict listops": lambda root: list(read_listops(root, "train", strict=True)),
    "retrieval": lambda root: list(read_retrieval(root, "train")),
    "text": lambda root: list(read_text(root, "train")),
    "image": lambda root: read_cifar10(root, "train"),
    "pathfinder": lambda root: [images.pixels(i) for images in [read_pathfinder(root)] for i in range(len(images))],
}


@pytest.mark.parametrize("task", READERS)
def test_nothing_there(tmp_path, task):
    with pytest.raises(DataNotFoundError, match="expected ") as error:
        READERS[task](tmp_path)
    assert isinstance(error.value, FileNotFoundError)
    assert str(tmp_path) in str(error.value)


def test_every_place_is_named(tmp_path):
    with pytest.raises(DataNotFoundError) as error:
        list(read_listops(tmp_path, "valid"))
    for place in places("listops-1000", "listops", ""):
        assert str(tmp_path / place / "basic_val.tsv") in str(error.value)


def test_a_part_is_missing(tmp_path, monkeypatch):
    write.listops(tmp_path)
    (tmp_path / "basic_val.tsv").unlink()
    with pytest.raises(DataNotFoundError, match=r"no basic_val.tsv: expected basic_train.tsv basic_val.tsv"):
        list(read_listops(tmp_path, "valid"))
    write.cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataNotFoundError, match=r"lacking .*/cifar-10-batches-py/data_batch_3$"):
        read_cifar10(tmp_path, "train")
    write.text(tmp_path / "aclImdb")
    for review in (tmp_path / "aclImdb/test/pos").iterdir():
        review.unlink()
    with pytest.raises(DataNotFoundError, match=r"no review in the folder: .*test/pos"):
        list(read_text(tmp_path, "test"))
    (tmp_path / "aclImdb/test/pos").rmdir()
    with pytest.raises(DataNotFoundError, match=r"no folder of reviews: .*test/pos"):
        list(read_text(tmp_path, "test"))
    (tmp_path / "pathfinder32" / HARD / "metadata").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"no metadata of Pathfinder images: expected metadata/<k>.npy"):
        read_pathfinder(tmp_path)
    (tmp_path / "pathfinder32" / HARD / "metadata/0.npy").write_text("imgs/0 a.png 0 1")
    with pytest.raises(DataNotFoundError, match=r"no Pathfinder images: expected imgs/<k>/sample_<j>.png"):
        read_pathfinder(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataNotFoundError, match=str(tmp_path)):
        list(read_text("nowhere", "train"))


def test_unknown_parts(tmp_path):
    for read in (read_listops, read_retrieval, read_text):
        with pytest.raises(ValueError, match="no split 'dev'; there are: train"):
            list(read(tmp_path, "dev"))
    with pytest.raises(ValueError, match="no part 'valid'; there are: train, test"):
        read_cifar10(tmp_path, "valid")
    with pytest.raises(ValueError, match="resolutions 32, 64, 128, 256, got 28"):
        read_pathfinder(tmp_path, 28)
    with pytest.raises(ValueError, match="difficulties easy, intermediate, hard, got 'harder'"):
        read_pathfinder(tmp_path, 32, "harder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected the header Source<tab>Target, got ''"),
        ("7\t7\n", r"line 1: expected the header Source<tab>Target, got '7\\t7'"),
        ("Source\tTarget\n", "no example behind the header"),
        ("Source\tTarget\n7\t7\n7\n", "line 3: expected 2 columns with a tab between them, got '7'"),
        ("Source\tTarget\n7\t7\t7\n", "line 2: expected 2 columns"),
        ("Source\tTarget\n\n7\t7\n", "line 2: expected 2 columns"),
        ("Source\tTarget\n7\t10\n", "line 2: expected a target from 0 to 9, got '10'"),
        ("Source\tTarget\n7\tseven\n", "line 2: expected a target from 0 to 9, got 'seven'"),
        ("Source\tTarget\n[SUM 7 ]\t7\n", r"line 2: '\[SUM' is no token of ListOps"),
        (b"Source\tTarget\n7\t7\n\xff\t7\n", "line 3: not UTF-8 text at byte 0"),
    ],
)
def test_bad_listops(tmp_path, content, message):
    path = tmp_path / "basic_train.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        list(read_listops(tmp_path, "train"))


def test_strict_listops(tmp_path):
    path = tmp_path / "basic_train.tsv"
    path.write_text("Source\tTarget\n7\t7\n[MAX 2 3 ]\t2\n")
    assert len(list(read_listops(tmp_path, "train"))) == 2
    with pytest.raises(DataError, match="line 3: the target is 2, the value of the expression 3"):
        list(read_listops(tmp_path, "train", strict=True))
    path.write_text("Source\tTarget\n[MAX 2 3\t3\n")
    with pytest.raises(DataError, match=r"line 2: the operator \[MAX is not closed"):
        list(read_listops(tmp_path, "train", strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("1.0\t7\t8\ta\tb\n1.0\t7\t8\n", "line 2: ids only, no text"),
        ("1.0\t7\t8\ta\n", r"line 1: expected 5 columns .* got 4"),
        ("1.0\t7\t8\ta\tb\tc\n", "line 1: expected 5 columns .* got 6"),
        ("0.5\t7\t8\ta\tb\n", "line 1: expected the label 0 or 1, got '0.5'"),
        ("nan\t7\t8\ta\tb\n", "line 1: expected the label 0 or 1, got 'nan'"),
        ("yes\t7\t8\ta\tb\n", "line 1: expected the label 0 or 1, got 'yes'"),
    ],
)
def test_bad_retrieval(tmp_path, content, message):
    (tmp_path / "new_aan_pairs.train.tsv").write_text(content)
    with pytest.raises(DataError, match=f"^{tmp_path}.*{message}"):
        list(read_retrieval(tmp_path, "train"))


def test_retrieval_without_texts(tmp_path):
    (tmp_path / "tsv_data").mkdir()
    (tmp_path / "tsv_data/new_aan_pairs.train.only_ids.tsv").write_text("1.0\t7\t8\n")
    with pytest.raises(DataError, match=r"only_ids.tsv: ids only, no text; expected new_aan_pairs.train.tsv"):
        list(read_retrieval(tmp_path, "train"))


def test_bad_reviews(tmp_path):
    write.text(tmp_path / "aclImdb")
    (tmp_path / "aclImdb/train/neg/9_1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"neg/9_1.txt: not UTF-8 text at byte 3"):
        list(read_text(tmp_path, "train"))
    (tmp_path / "aclImdb/train/neg/notes.txt").write_text("")
    with pytest.raises(DataError, match=r"neg/notes.txt: not the name of a review; expected <id>_<rating>.txt"):
        list(read_text(tmp_path, "train"))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("imgs/9 sample_0.png 0\n", "line 1: expected at least 4 fields .* got 3"),
        ("imgs/9 sample_0.png 0 1\nimgs/9 sample_1.png 0 2\n", "line 2: expected the label 0 or 1, got '2'"),
        ("imgs/9 sample_7.png 7 1\n", "line 1: the image .*sample_7.png is missing"),
        ("../.. secret.png 7 1\n", "line 1: '../../secret.png' is no place inside the folder"),
        ("/etc hostname 7 1\n", "line 1: '/etc/hostname' is no place inside the folder"),
        ("", "the metadata names no image"),
        (b"\xff", "not UTF-8 text at byte 0"),
        (b"\x93NUMPY and nothing else", "not a NumPy file of strings"),
    ],
)
def test_bad_pathfinder_metadata(tmp_path, metadata, message):
    write.pathfinder(tmp_path / "pathfinder32", files=(9,))
    path = tmp_path / "pathfinder32" / HARD / "metadata/9.npy"
    path.write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())
    with pytest.raises(DataError, match=message) as error:
        read_pathfinder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_pickled_metadata_is_not_loaded(tmp_path):
    write.pathfinder(tmp_path / "pathfinder32", files=(9,))
    np.save(tmp_path / "pathfinder32" / HARD / "metadata/9.npy", np.array([["imgs/9", {}]], dtype=object))
    with pytest.raises(DataError, match=r"9.npy: not a NumPy file of strings"):
        read_pathfinder(tmp_path)


def test_bad_images(tmp_path):
    write.pathfinder(tmp_path / "pathfinder32", files=(9,), per_file=3)
    folder = tmp_path / "pathfinder32" / HARD / "imgs/9"
    (folder / "sample_0.png").write_bytes(b"no image")
    (folder / "sample_1.png").write_bytes((folder / "sample_1.png").read_bytes()[:60])
    write.image(folder / "sample_2.png", 64)
    images = read_pathfinder(tmp_path)
    for index, message in enumerate(["not a PNG image", "not a PNG image", "expected 32×32 pixels, got 64×64"]):
        with pytest.raises(DataError, match=f"^{folder}/sample_{index}.png: {message}"):
            images.pixels(index)


class Command:
    def __reduce__(self):
        return os.system, ("echo executed > executed",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": Command()}, r"asks for posix.system; only arrays and containers are read"),
        ({b"labels": np.zeros(4, np.int64)}, "expected an array `data` and a list `labels`"),
        ({b"data": [0] * 3072}, "expected an array `data` and a list `labels`, got the keys data, labels, batch_label"),
        (
            {b"data": np.zeros((4, 3072))},
            r"must be uint8 of the shape \(10000, 3072\), got f8 of the shape \(4, 3072\)",
        ),
        ({b"data": np.zeros((4, 3072), np.int8)}, r"must be uint8 .* got i1"),
        ({b"data": np.zeros((4, 1024), np.uint8)}, r"got u1 of the shape \(4, 1024\)"),
        ({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, r"got u1 of the shape \(0, 3072\)"),
        ({b"labels": [1, 2, 3]}, "`labels` must be a whole number from 0 to 9 for each of 4 images"),
        ({b"labels": [1, 2, 3, 10]}, "`labels` must be"),
        ({b"labels": [1, 2, 3, "4"]}, "`labels` must be"),
    ],
)
def test_bad_cifar(tmp_path, change, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write.cifar(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({**write.cifar_batch(4), **change}, protocol=4))
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        read_cifar10(tmp_path, "train")
    assert not (tmp_path / "executed").exists()


def test_whole_batches_of_cifar_are_the_published_ones(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({b"data": np.zeros((10_000, 3072), np.uint8), b"labels": [0] * 10_000}, 2))
    with pytest.warns(UserWarning, match=f"^{path}: not the published file, whose MD5 is 40351d587109b95175f43aff81"):
        assert len(read_cifar10(tmp_path, "test")) == 10_000
    with pytest.raises(DataError, match="not the published file"):
        read_cifar10(tmp_path, "test", strict=True)


def test_numbers_of_examples():
    check_size("listops", "test", 2000, strict=True)
    with pytest.warns(UserWarning, match="Arena listops, split test: 7 examples; the published data has 2,000"):
        check_size("listops", "test", 7, strict=False)
    with pytest.raises(DataError, match="Arena pathx: 7 examples; the published data has 200,000"):
        check_size("pathx", "all", 7, strict=True)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    write.listops(root)
    write.retrieval(root)
    write.text(root / "aclImdb")
    write.cifar(root / "cifar-10-batches-py")
    write.pathfinder(root / "pathfinder32", files=(9,), per_file=2)
    return root


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("strict listops", "basic_train.tsv"),
        ("retrieval", "new_aan_pairs.train.tsv"),
        ("text", "aclImdb/train/neg/9_1.txt"),
        ("image", "cifar-10-batches-py/data_batch_2"),
        ("pathfinder", f"pathfinder32/{HARD}/metadata/9.npy"),
        ("pathfinder", f"pathfinder32/{HARD}/imgs/9/sample_1.png"),
    ],
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=mutation())
def test_damaged_files_are_read_or_refused(originals, task, file, damage):
    path = originals / file
    content = path.read_bytes()
    try:
        path.write_bytes(damage(content))
        try:
            assert len(READERS[task](originals))
        except DataError as error:
            assert str(originals) in str(error)  # noqa: PT017
    finally:
        path.write_bytes(content)
