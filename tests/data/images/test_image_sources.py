"""Readers of images: every form of data, what is in it, and every error with its file and line."""

import gzip
import os
import pickle
import pickletools
import shutil
import sys

import image_files as write
import numpy as np
import pytest
import torch
from damage import mutation
from hypothesis import HealthCheck, given, settings
from support import shared

from subquad.data import DataError
from subquad.data.errors import DataNotFoundError
from subquad.data.images import open_images
from subquad.data.images.splits import decode_image

# The forms of data


def test_mnist():
    data = open_images(shared("data", "mnist"))
    assert (len(data.train), len(data.valid), len(data.test)) == (60_000, 10_000, 10_000)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.train.labels.dtype == np.int64
    assert data.classes == tuple("0123456789")
    assert (data.num_channels, data.mean, data.std) == (1, (0.1307,), (0.3081,))
    image = data.train[0]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 28, 28)
    assert image[0, 5, 12] == 3  # the first pixel of the first image that is not black
    assert (image[0, :5] == 0).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_idx(tmp_path, place, suffix):
    write.mnist(tmp_path / place, suffix)
    data = open_images(tmp_path)
    expected = np.random.default_rng(0).integers(256, size=(12, 9, 9))
    assert torch.stack([data.train[i] for i in range(12)]).squeeze(1).tolist() == expected.tolist()
    assert data.test.labels.tolist() == [i % 10 for i in range(1, 13)]
    assert data.mean == pytest.approx([expected.mean() / 255], abs=1e-4)
    assert data.std == pytest.approx([expected.std() / 255], abs=1e-4)


def test_idx_with_a_point_in_the_name(tmp_path):
    write.mnist(tmp_path, ".gz")
    before = open_images(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert open_images(tmp_path).fingerprint == before.fingerprint


@pytest.mark.parametrize("protocol", range(6))
def test_cifar10(tmp_path, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    write.cifar10(folder, protocol)
    for source in (tmp_path, folder):
        data = open_images(source)
        assert data.classes == tuple(write.CIFAR10_NAMES)
        assert data.train.labels.tolist() == [k + i for k in range(5) for i in range(4)]
        assert data.test.labels.tolist() == [5, 6, 7, 8]
        assert data.num_channels == 3
        row = write.pixels(4, 1)[1]
        assert data.train[5][:, 2, 3].tolist() == [row[67], row[1024 + 67], row[2048 + 67]]


def test_two_data_sets_in_one_folder_are_named(tmp_path):
    write.cifar10(tmp_path / "cifar-10-batches-py", 2)
    write.cifar100(tmp_path / "cifar-100-python")
    message = r"holds two data sets, CIFAR-10 in .*cifar-10-batches-py and CIFAR-100 in .*cifar-100-python: give the"
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)
    assert len(open_images(tmp_path / "cifar-10-batches-py").classes) == 10
    assert len(open_images(tmp_path / "cifar-100-python").classes) == 100


def test_cifar100_has_the_fine_classes(tmp_path):
    write.cifar100(tmp_path / "cifar-100-python")
    data = open_images(tmp_path)
    assert data.train.labels.tolist() == [0, 7, 14, 21, 28, 35]
    assert data.test.labels.tolist() == [93, 0, 7, 14, 21, 28]
    assert (len(data.classes), data.classes[7]) == (100, "fine 7")
    assert torch.equal(data.test[2].flatten(), torch.from_numpy(write.pixels(6, 1)[2]))


@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
def test_folders(tmp_path, valid):
    write.folders(tmp_path, ("train", valid, "test"))
    write.picture(tmp_path / "train" / "ant" / "below" / "UPPER.JPEG", 5, 7)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    write.picture(tmp_path / "train" / ".hidden" / "0.png")
    data = open_images(tmp_path)
    assert data.classes == ("ant", "cat")
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.train[2][:, 0, 0].tolist() == [20, 0, 0]
    assert data.train[3].shape == (3, 5, 7)
    assert data.train[5][:, 7, 9].tolist() == [10, 50, 0]
    assert data.valid[5][:, 0, 0].tolist() == [20, 50, 100]
    assert data.test[0][:, 0, 0].tolist() == [0, 0, 200]
    assert data.split_rule == "as in the files"
    assert data.mean == (0.485, 0.456, 0.406)


def test_unlabelled_test_images_are_left_alone(tmp_path):
    write.folders(tmp_path)
    write.picture(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert len(open_images(tmp_path).test) == 6


def test_classes_may_be_links(tmp_path):
    write.folders(tmp_path / "whole", classes=("ant", "bee", "cat"))
    for part in ("train", "val"):
        (tmp_path / "some" / part).mkdir(parents=True)
        for name in ("ant", "cat"):
            (tmp_path / "some" / part / name).symlink_to(tmp_path / "whole" / part / name)
    assert open_images(tmp_path / "some").classes == ("ant", "cat")


def test_lists(tmp_path):
    write.lists(tmp_path)
    data = open_images(tmp_path)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == ("0", "1", "2")
    assert data.train[4][:, 0, 0].tolist() == [40, 0, 0]
    (tmp_path / "lists").mkdir()
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).rename(tmp_path / "lists" / name)
    again = open_images(tmp_path / "lists", image_root=tmp_path)
    assert again.fingerprint == data.fingerprint
    with pytest.raises(DataNotFoundError, match=r"train.txt: no such list"):
        open_images(tmp_path, image_root=tmp_path)


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [("L", 70, ".png", 70), ("CMYK", (0, 0, 0, 155), ".jpg", 100), ("1", 1, ".tiff", 255), ("P", 0, ".bmp", 0)],
)
def test_images_of_every_mode_become_colours(tmp_path, mode, value, suffix, expected):
    image = decode_image(write.picture(tmp_path / f"image{suffix}", 4, 6, value, mode))
    assert image.shape == (3, 4, 6)
    assert (image.int() - expected).abs().max() <= 2


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", ".png"), ("I", ".tiff"), ("F", ".tiff")])
def test_values_of_more_than_8_bits_are_refused(tmp_path, mode, suffix):
    path = write.picture(tmp_path / f"image{suffix}", 4, 6, 1000, mode)
    with pytest.raises(DataError, match=f"^{path}: grey values of more than 8 bits .*convert the file to 8 bits"):
        decode_image(path)


def test_headers_that_would_fill_the_memory_are_refused(tmp_path):
    pytest.importorskip("PIL")
    path = tmp_path / "image.ppm"
    path.write_bytes(b"P6 60000 60000 255\n" + bytes(100))
    with pytest.raises(DataError, match=f"^{path}: not a readable image .*decompression bomb"):
        decode_image(path)


def test_lack_of_pillow_is_found_when_the_folder_is_opened(tmp_path, monkeypatch):
    write.folders(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install subquad\[vision\]"):
        open_images(tmp_path)


# Division


def test_a_part_of_the_training_images_is_held_out(tmp_path):
    write.mnist(tmp_path, count=20)
    whole = open_images(tmp_path)
    data = open_images(tmp_path, valid_fraction=0.25)
    assert (len(data.train), len(data.valid), len(data.test)) == (15, 5, 20)
    assert data.split_rule == "0.25 of the training images, held out with seed 42"
    shown = [tuple(split[i].flatten().tolist()) for split in (data.train, data.valid) for i in range(len(split))]
    assert sorted(shown) == sorted(tuple(whole.train[i].flatten().tolist()) for i in range(20))
    labels = {tuple(whole.train[i].flatten().tolist()): int(whole.train.labels[i]) for i in range(20)}
    assert [labels[image] for image in shown] == [*data.train.labels, *data.valid.labels]
    other = open_images(tmp_path, valid_fraction=0.25, seed=1)
    assert other.valid.labels.tolist() != data.valid.labels.tolist()
    assert len({whole.fingerprint, data.fingerprint, other.fingerprint}) == 3


def test_without_a_fraction_the_test_set_is_both(tmp_path):
    write.mnist(tmp_path)
    data = open_images(tmp_path)
    assert data.valid is data.test
    assert data.split_rule.startswith("the test set, as published: whatever is chosen by it is chosen on the test set")


def test_folders_without_a_validation_part(tmp_path):
    write.folders(tmp_path / "parts", ("train",))
    write.folders(tmp_path, ("classes",))
    for root in (tmp_path / "parts", tmp_path / "classes"):
        with pytest.raises(ValueError, match="training images only: hold some out for validation with valid_fraction"):
            open_images(root)
        data = open_images(root, valid_fraction=0.5)
        assert (len(data.train), len(data.valid), data.test) == (3, 3, None)
        assert list(data.splits) == ["train", "valid"]
    with pytest.raises(ValueError, match=r"6 examples are too few to be divided: .* \[6, 0\]"):
        open_images(tmp_path / "parts", valid_fraction=0.01)
    with pytest.raises(ValueError, match=r"valid_fraction must be in \[0, 1\), got 1"):
        open_images(tmp_path / "parts", valid_fraction=1)


def test_no_fraction_beside_a_validation_part(tmp_path):
    write.folders(tmp_path, ("train", "val", "test"))
    with pytest.raises(ValueError, match="valid_fraction must be 0"):
        open_images(tmp_path, valid_fraction=0.1)


def test_fingerprints_follow_the_content(tmp_path):
    write.folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_images(tmp_path / "a").fingerprint == open_images(tmp_path / "b").fingerprint
    path = tmp_path / "b" / "val" / "cat" / "0.png"
    path.rename(path.with_name("00.png"))
    renamed = open_images(tmp_path / "b").fingerprint
    path.with_name("00.png").rename(path)
    write.picture(path, 30, 40)
    assert len({open_images(tmp_path / name).fingerprint for name in "ab"} | {renamed}) == 3
    write.mnist(tmp_path / "c")
    before = open_images(tmp_path / "c").fingerprint
    write.idx(tmp_path / "c" / "t10k-labels-idx1-ubyte", np.arange(12)[::-1] % 10)
    assert open_images(tmp_path / "c").fingerprint != before


# Errors


def test_nothing_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images; looked for ") as error:
        open_images(tmp_path)
    for file in ("data_batch_1", "cifar-100-python", "images-idx3", "{train,val,test}.txt", "CLASS/*.jpg"):
        assert file in str(error.value)


def test_missing_files(tmp_path):
    write.cifar10(tmp_path / "cifar")
    (tmp_path / "cifar" / "batches.meta").unlink()
    with pytest.raises(DataNotFoundError, match=r"test_batch, batches.meta in .*lacking .*/cifar/batches.meta$"):
        open_images(tmp_path / "cifar")
    write.cifar100(tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "test").unlink()
    with pytest.raises(DataNotFoundError, match=r"CIFAR-100 is not whole: .*lacking .*/cifar-100-python/test$"):
        open_images(tmp_path)
    write.mnist(tmp_path / "mnist", ".gz")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFoundError, match=r"mnist: lacking t10k-labels-idx1-ubyte, gzipped or not"):
        open_images(tmp_path / "mnist")
    write.lists(tmp_path / "lists")
    (tmp_path / "lists" / "val images" / "3.png").unlink()
    with pytest.raises(DataNotFoundError, match=r"val.txt: line 4: .*/val images/3.png: no such image"):
        open_images(tmp_path / "lists")
    write.folders(tmp_path / "folders")
    (tmp_path / "folders" / "val" / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataNotFoundError, match=r"val/cat/9.png: no such image"):
        open_images(tmp_path / "folders")


def test_bad_folders(tmp_path):
    write.folders(tmp_path)
    shutil.copytree(tmp_path / "val" / "cat", tmp_path / "val" / "dog")
    (tmp_path / "val" / "ant").rename(tmp_path / "val" / "bee")
    with pytest.raises(DataError, match=r"/val: other classes than in .*/train; lacking ant, more than there bee, dog"):
        open_images(tmp_path)
    shutil.rmtree(tmp_path / "val")
    write.picture(tmp_path / "val" / "0.png")
    with pytest.raises(DataError, match=r"/val: no folder for a class; images are expected in .*/val/CLASS/"):
        open_images(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "train" / "bee").mkdir()
    with pytest.raises(DataError, match=r"/train/bee: no image of this class \(looked for \.jpg \.jpeg"):
        open_images(tmp_path)
    (tmp_path / "train" / "bee" / "0.png").touch()
    with pytest.raises(DataError, match=r"/train/bee/0.png: an empty file, not an image"):
        open_images(tmp_path)


def test_folders_that_are_no_classes(tmp_path):
    write.folders(tmp_path / "one", classes=("images",))
    with pytest.raises(DataError, match="all images are of one class, 'images'"):
        open_images(tmp_path / "one")
    write.folders(tmp_path / "parts", ("training", "Val"))
    with pytest.raises(DataNotFoundError, match=r"/parts: holds Val, but no .*/parts/train$"):
        open_images(tmp_path / "parts", valid_fraction=0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"train images/1.png", "line 2 is not a path, a blank and the number of a class"),
        (b"train images/1.png one", "line 2 is not a path"),
        (b"1", "line 2 is not a path"),
        (b"\xff\xfe 1", "line 2 is not a path"),
        (b"train images/1.png -1", "line 2: class -1 is outside 0 … 5"),
        (b"train images/1.png 6", "line 2: class 6 is outside 0 … 5"),
        (b"train images/1.png " + b"9" * 40, "line 2: class 9+ is outside 0 … 5"),
        (b"train images/1.png 5", "no image of class 3, though one of class 5"),
        (b"empty.png 1", "line 2: .*empty.png: an empty file, not an image"),
    ],
)
def test_bad_lists(tmp_path, line, message):
    write.lists(tmp_path)
    (tmp_path / "empty.png").touch()
    path = tmp_path / "train.txt"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        open_images(tmp_path)


def test_lists_name_classes_of_the_training_images(tmp_path):
    write.lists(tmp_path)
    (tmp_path / "val.txt").write_text("val images/0.png 0\nval images/1.png 3\n")
    with pytest.raises(DataError, match=r"val.txt: line 2: class 3 is outside 0 … 2"):
        open_images(tmp_path)
    (tmp_path / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val.txt: an empty list"):
        open_images(tmp_path)


def test_unreadable_images_are_named(tmp_path):
    write.folders(tmp_path)
    path = tmp_path / "train" / "cat" / "1.png"
    content = path.read_bytes()
    for damaged in (b"no image", content[:20], content[:45]):
        path.write_bytes(damaged)
        data = open_images(tmp_path)
        assert data.train[3].shape == (3, 8, 10)
        with pytest.raises(DataError, match=f"^{path}: not a readable image"):
            data.train[4]


def test_bad_idx(tmp_path):
    write.mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    cases = {
        labels.read_bytes(): "not an idx file of 3 dimensions .it begins with 00000801",
        content[:10]: "not an idx file of 3 dimensions",
        content[:-1]: "the file is cut off|there are 971",
        content + b"1": r"the header says 972 bytes of \(12, 9, 9\), there are more",
        content[:4] + b"\xff" * 12: "the file is cut off",
        content[:4] + bytes(12): "the header says that there is nothing in it",
    }
    for damaged, message in cases.items():
        images.write_bytes(damaged)
        with pytest.raises(DataError, match=f"^{images}: .*({message})"):
            open_images(tmp_path)
    images.write_bytes(content)
    write.idx(labels, np.arange(11) % 10)
    with pytest.raises(DataError, match=rf"^{labels}: 11 labels for 12 images"):
        open_images(tmp_path)
    write.idx(labels, np.arange(12) % 10)
    write.idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((12, 8, 8)))
    with pytest.raises(DataError, match=r"training images are \(1, 9, 9\), test images \(1, 8, 8\)"):
        open_images(tmp_path)


def test_damaged_archives(tmp_path):
    write.mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    with pytest.raises(DataError, match=f"^{path}: cannot be read .Compressed file ended before"):
        open_images(tmp_path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=f"^{path}: cannot be read .Not a gzipped file"):
        open_images(tmp_path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\x7f" * 12))
    with pytest.raises(DataError, match="the file is cut off"):
        open_images(tmp_path)


class Command:
    def __reduce__(self):
        return os.system, ("echo executed > executed",)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train", {b"fine_labels": Command()}, "asks for posix.system; only arrays and containers are read"),
        ("meta", {b"fine_label_names": Command()}, "asks for posix.system"),
        ("meta", {b"fine_label_names": [b"one"]}, "`fine_label_names` must be a list of the names of 100 classes"),
        ("meta", {b"fine_label_names": None}, "`fine_label_names` must be a list"),
        ("train", {b"fine_labels": [0, 1, 2, 3, 4, 100]}, "`fine_labels` must be a whole number from 0 to 99"),
        ("test", {b"fine_labels": None}, "expected an array `data` and a list `fine_labels`"),
        ("test", {b"data": np.zeros((6, 1024), np.uint8)}, r"uint8 of the shape \(10000, 3072\), got u1 of the shape"),
    ],
)
def test_bad_cifar100(tmp_path, monkeypatch, file, change, message):
    monkeypatch.chdir(tmp_path)
    write.cifar100(tmp_path)
    path = tmp_path / file
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **change}, protocol=2))
    with pytest.raises(DataError, match=f"^{path}: .*{message}"):
        open_images(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_numbers_of_objects_that_would_fill_the_memory_are_refused(tmp_path):
    write.cifar100(tmp_path)
    content = (tmp_path / "meta").read_bytes()
    put = next(position for opcode, _, position in pickletools.genops(content) if opcode.name == "BINPUT")
    (tmp_path / "meta").write_bytes(content[:put] + b"r\xff\xff\xff\x7f" + content[put + 2 :])
    with pytest.raises(DataError, match=r"/meta: a damaged pickle: object 2147483647 at byte"):
        open_images(tmp_path)


def test_whole_files_of_cifar_are_the_published_ones(tmp_path):
    write.cifar100(tmp_path)
    with pytest.raises(DataError, match="/train: not the published file"):
        open_images(tmp_path, strict=True)
    batch = {"data": np.zeros((10_000, 3072), np.uint8), "fine_labels": [0] * 10_000}
    (tmp_path / "test").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.warns(UserWarning, match="/test: not the published file, whose MD5 is f0ef6b0ae62326f3e7ffdfab6717acf"):
        assert len(open_images(tmp_path).test) == 10_000
    with pytest.raises(DataError, match="not the published file"):
        open_images(tmp_path, strict=True)


# Damaged files


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    write.mnist(root / "mnist")
    write.mnist(root / "mnist-gz", ".gz")
    write.cifar10(root / "cifar10")
    write.cifar100(root / "cifar100", protocol=4)
    write.lists(root / "lists")
    write.folders(root / "folders", count=1)
    return root


FILES = [
    "mnist/train-images-idx3-ubyte",
    "mnist/train-labels-idx1-ubyte",
    "mnist-gz/t10k-images-idx3-ubyte.gz",
    "cifar10/data_batch_2",
    "cifar10/batches.meta",
    "cifar100/test",
    "lists/train.txt",
    "folders/train/cat/0.png",
]


def read_damaged(root, file, damage):
    path = root / file
    content = path.read_bytes()
    try:
        path.write_bytes(damage(content))
        try:
            data = open_images(root / file.split("/")[0])
            assert all(data.train[i].dtype == torch.uint8 for i in range(len(data.train)))
        except (DataError, FileNotFoundError) as error:
            assert str(root) in str(error)  # noqa: PT017
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=mutation())
def test_damaged_files_of_images_are_read_or_refused(originals, file, damage):
    read_damaged(originals, file, damage)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=mutation())
def test_many_damaged_files_of_images_are_read_or_refused(originals, file, damage):
    read_damaged(originals, file, damage)
