"""Texts and images as a model sees them: vocabularies, lengths, splits, padding, and the copies that are kept."""

import lra_files as write
import numpy as np
import pytest
import torch

from subquad.data import DataError
from subquad.data.lra import FrequencyVocabulary, open_lra, random_split
from subquad.data.lra.datasets import cifar_colours, cifar_grey, listops_tokens, luma

pytestmark = pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")


def open_task(task, root, pipeline="s4", **options):
    return open_lra(task, root, pipeline, cache_dir=root / "cache", progress=False, **options)


def ids(examples):
    return [[text.tolist() for text in examples[i]["input_ids"]] for i in range(len(examples))]


# Vocabularies


def test_order_of_a_vocabulary():
    texts = [["b", "a", "c"], ["b", "<eos>", "é", "B"], ["c", "b"]]
    build = FrequencyVocabulary.build
    assert build(texts).tokens == ("<pad>", "<unk>", "b", "c", "<eos>", "B", "a", "é")
    assert build(texts, append_eos=True).tokens == ("<pad>", "<unk>", "<eos>", "b", "c", "B", "a", "é")
    assert build(texts, append_bos=True, append_eos=True).tokens[:4] == ("<pad>", "<unk>", "<bos>", "<eos>")
    assert build(texts, min_frequency=2).tokens == ("<pad>", "<unk>", "b", "c")


@pytest.mark.parametrize(
    ("bos", "eos", "length", "expected"),
    [
        (False, True, 3, [3, 4, 2]),
        (False, True, 4, [3, 4, 5, 2]),
        (False, True, 5, [3, 4, 5, 2]),
        (True, True, 3, [2, 4, 3]),
        (True, False, 3, [2, 3, 4]),
        (False, False, 2, [2, 3]),
        (True, True, 2, [2, 3]),
    ],
)
def test_special_tokens_count(bos, eos, length, expected):
    vocabulary = FrequencyVocabulary.build(["abc"], append_bos=bos, append_eos=eos)
    assert vocabulary.encode("abc", length).tolist() == expected
    assert vocabulary.encode("xyz")[bos : 3 + bos].tolist() == [1, 1, 1]


def write_expressions(root, train, **others):
    for split, texts in {"train": train, "val": train, "test": train, **others}.items():
        lines = "".join(f"{text}\t0\n" for text in texts)
        (root / f"basic_{split}.tsv").write_text(f"Source\tTarget\n{lines}")


def test_the_worked_example(tmp_path):
    write.listops(tmp_path)
    write_expressions(tmp_path, ["[MAX 2 9 ]", "[MIN 2 2 ]"], test=["[SM 2 ]"])
    data = open_task("listops", tmp_path)
    assert (data.num_labels, data.vocab_size, data.validation) == (10, 8, "as in the files")
    assert ids(data.train) == [[[6, 3, 5, 4, 2]], [[7, 3, 3, 4, 2]]]
    assert ids(data.test) == [[[1, 3, 4, 2]]]


@pytest.mark.parametrize(("max_length", "kept"), [(5, 5), (4, 4), (3, 3)])
def test_texts_are_cut_before_the_end_symbol(tmp_path, max_length, kept):
    write.listops(tmp_path)
    data = open_task("listops", tmp_path, max_length=max_length)
    assert [len(text) for (text,) in ids(data.train)] == [kept, kept]
    assert all(text[-1] == 2 for (text,) in ids(data.train))
    # What is cut off is not in the vocabulary either.
    assert data.vocab_size == 3 + len({"[MAX", "[MIN", "2", "9", "X"} if kept == 5 else {"[MAX", "[MIN", "2", "9"}) - (
        kept == 3
    )


def test_listops_tokens():
    assert listops_tokens("( ( ( [MAX 2 ) 9 ) ] )") == ["[MAX", "2", "9", "X"]


def test_characters_of_reviews(tmp_path):
    write.text(tmp_path / "aclImdb")
    data = open_task("text", tmp_path)
    assert data.vocab_size == 3 + len(" ")  # the one character that occurs 15 times in six reviews
    assert [data.train[i]["labels"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert len(data.train[0]["input_ids"][0]) == len("neg 0 é\r\n<br />") + 1


# Splits


@pytest.mark.parametrize(
    ("counts", "starts", "sums"),
    [
        (
            [45_000, 5_000],
            [[37542, 44491, 216, 43688, 41558], [17408, 40845, 3378, 22188, 44921]],
            [125_078_647],
        ),
        (
            [160_000, 20_000, 20_000],
            [
                [37542, 143173, 127710, 58234, 152906],
                [122036, 135593, 30913, 110858, 149407],
                [143170, 45464, 153084, 73281, 46339],
            ],
            [1_993_653_222, 1_988_642_805],
        ),
    ],
)
def test_published_splits(counts, starts, sums):
    parts = random_split(counts)
    assert [part[:5].tolist() for part in parts] == starts
    assert [int(part.sum()) for part in parts[1:]] == sums
    assert sorted(np.concatenate(parts)) == list(range(sum(counts)))


def test_reviews_are_validated_on_the_test_set_unless_told(tmp_path):
    write.text(tmp_path / "aclImdb")
    data = open_task("text", tmp_path)
    assert data.valid is data.test
    assert data.validation.startswith("the test set, as published")
    held_out = open_task("text", tmp_path, valid_fraction=0.4)
    assert (len(held_out.train), len(held_out.valid), len(held_out.test)) == (3, 3, 6)
    parts = sorted(ids(held_out.train) + ids(held_out.valid))
    assert parts == sorted(ids(data.train))
    assert "held out with seed 42" in held_out.validation
    assert held_out.fingerprint != data.fingerprint == open_task("text", tmp_path).fingerprint
    with pytest.raises(ValueError, match="6 examples are too few to be divided"):
        open_task("text", tmp_path, valid_fraction=0.99)


def test_splits_of_images(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    s4, byte = open_task("image", tmp_path), open_task("image", tmp_path, "byte")
    assert s4.train.indices.tolist() == torch.randperm(20, generator=torch.Generator().manual_seed(42)).tolist()[:18]
    assert byte.train.indices.tolist() == list(range(18))
    assert byte.valid.indices.tolist() == [18, 19]
    assert (len(s4.valid), len(s4.test)) == (2, 4)
    write.pathfinder(tmp_path / "pathfinder32")
    paths = open_task("pathfinder", tmp_path)
    assert [len(paths.train), len(paths.valid), len(paths.test)] == [8, 1, 1]
    google = open_task("pathfinder", tmp_path, "google")
    assert [part.indices.tolist() for part in (google.train, google.valid, google.test)] == [[*range(8)], [8], [9]]
    assert open_task("image", tmp_path, "google").train.indices.tolist() == list(range(18))


# Batches


def test_pairs_are_padded_to_one_length(tmp_path):
    write.retrieval(tmp_path)
    data = open_task("retrieval", tmp_path)
    examples = [data.train[i] for i in range(2)]
    batch = data.train.collate(examples)
    lengths = [[9, 9], [4, 8]]  # with the end symbol
    assert batch["input_ids"].shape == (2, 2, 9)
    assert batch["attention_mask"].sum(-1).tolist() == lengths
    assert batch["labels"].tolist() == [1, 0]
    for row, example in zip(batch["input_ids"], examples, strict=True):
        for padded, text in zip(row, example["input_ids"], strict=True):
            assert padded[: len(text)].tolist() == text.tolist()
            assert not padded[len(text) :].any()
    assert data.train.collate(examples[1:])["input_ids"].shape == (1, 2, 8)


def test_bytes(tmp_path):
    write.retrieval(tmp_path)
    write.text(tmp_path / "aclImdb")
    data = open_task("text", tmp_path, "byte")
    text = "neg 0 é\r\n<br />".encode()
    assert data.vocab_size == 257
    assert ids(data.train)[0] == [[byte + 1 for byte in text]]
    batch = data.train.collate([data.train[0]])
    assert batch["input_ids"].shape == (1, 4096)
    assert batch["attention_mask"].sum().item() == len(text)
    (tmp_path / "aclImdb/train/neg/0_1.txt").write_text("x" * 5000)
    assert len(ids(open_task("text", tmp_path, "byte").train)[0][0]) == 4000
    pairs = open_task("retrieval", tmp_path, "byte")
    assert pairs.train.collate([pairs.train[0]])["input_ids"].shape == (1, 2, 4096)


def test_the_google_pipeline_has_the_bytes_without_a_fixed_length(tmp_path):
    write.text(tmp_path / "aclImdb")
    (tmp_path / "aclImdb/train/neg/0_1.txt").write_text("x" * 5000)
    data, byte = (open_task("text", tmp_path, pipeline) for pipeline in ("google", "byte"))
    assert (data.vocab_size, ids(data.train)) == (257, ids(byte.train))
    assert data.train.collate([data.train[1]])["input_ids"].shape == (1, len(ids(data.train)[1][0]))
    assert len(ids(open_task("text", tmp_path, "google", max_length=1000).train)[0][0]) == 1000
    assert data.fingerprint != byte.fingerprint


def test_listops_in_the_byte_pipeline(tmp_path):
    write.listops(tmp_path)
    data = open_task("listops", tmp_path, "byte")
    # by code point: digits, X, [MAX, [MED, [MIN, [SM
    assert ids(data.train) == [[[12, 3, 10, 11]], [[14, 3, 3, 11]]]
    batch = data.train.collate([data.train[0]])
    assert batch["input_ids"].shape == (1, 2048)
    assert batch["attention_mask"].sum().item() == 4
    assert data.vocab_size == 17


# Images


def test_grey_and_colours():
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3)).astype(np.uint8)
    image_module = pytest.importorskip("PIL.Image")
    np.testing.assert_array_equal(luma(pixels), np.asarray(image_module.fromarray(pixels).convert("L")))
    grey = cifar_grey(pixels)
    assert grey.shape == (1024, 1)
    assert grey.dtype == torch.float32
    assert grey[32 * 3 + 5].item() == pytest.approx((luma(pixels)[3, 5] - 122.6) / 61.0, rel=1e-6)
    colours = cifar_colours(pixels)
    assert colours.shape == (1024, 3)
    assert colours[32 * 3 + 5, 2].item() == pytest.approx((pixels[3, 5, 2] / 255 - 0.4465) / 0.261, rel=1e-5)


def test_images_of_the_pipelines(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    write.pathfinder(tmp_path / "pathfinder32")
    write.pathfinder(tmp_path / "pathfinder128", 128)
    grey = open_task("image", tmp_path)
    assert (grey.input_features, grey.vocab_size, grey.num_labels) == (1, None, 10)
    batch = grey.train.collate([grey.train[0], grey.train[1]])
    assert batch["input_values"].shape == (2, 1024, 1)
    assert set(batch) == {"input_values", "labels"}
    assert open_task("image", tmp_path, colour=True).input_features == 3
    tokens = open_task("image", tmp_path, tokenize=True)
    assert (tokens.input_features, tokens.vocab_size) == (None, 256)
    assert set(tokens.train.collate([tokens.train[0]])) == {"input_ids", "labels"}
    assert open_task("pathx", tmp_path).test[0]["input_values"].shape == (128 * 128, 1)
    paths = open_task("pathfinder", tmp_path)
    value = paths.test.images.pixels(int(paths.test.indices[0]))[0, 0]
    assert paths.test[0]["input_values"][0].item() == pytest.approx(value / 255 * 2 - 1, rel=1e-5)


def test_black_pixels_are_padding_in_the_byte_pipeline_alone(tmp_path):
    write.pathfinder(tmp_path / "pathfinder32", files=(0,), per_file=10)
    write.image(tmp_path / "pathfinder32/curv_contour_length_14/imgs/0/sample_3.png", 32, value=0)
    data = open_task("pathfinder", tmp_path, "byte")
    examples = [part[i] for part in (data.train, data.valid, data.test) for i in range(len(part))]
    batch = data.train.collate(examples)
    assert batch["input_ids"].shape == (10, 1024)
    # grey values 0 … 9, and one image that has been blackened
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [0, 0, *[1024] * 8]
    assert batch["position_ids"].tolist() == [list(range(1024))] * 10


def test_augmentation_is_a_function_of_seed_epoch_and_example(tmp_path):
    write.cifar(tmp_path / "cifar-10-batches-py")
    data = open_task("image", tmp_path, colour=True, augment=True)
    plain = open_task("image", tmp_path, colour=True)

    def pixels(examples, index, epoch):
        return examples.example(index, epoch)["input_values"]

    assert torch.equal(pixels(data.train, 3, 1), pixels(data.train, 3, 1))
    seen = [pixels(data.train, 3, epoch) for epoch in range(4)]
    assert not any(torch.equal(a, b) for a, b in zip(seen[1:], seen[:-1], strict=True))
    assert torch.equal(pixels(data.valid, 1, 1), pixels(plain.valid, 1, 0))
    # Every pixel of a crop is one of the image: reflected at the edges, none is made up.
    values = {tuple(pixel) for pixel in pixels(plain.train, 3, 0).tolist()}
    assert all(tuple(pixel) in values for pixel in seen[0].tolist())


# Options and copies


@pytest.mark.parametrize(
    ("task", "pipeline", "options", "message"),
    [
        ("lists", "s4", {}, "no task 'lists' in the Long Range Arena; there are: listops"),
        ("listops", "jax", {}, "no pipeline 'jax'; there are: s4, byte, google"),
        (
            "listops",
            "byte",
            {"max_length": 5},
            "option max_length is not for the task 'listops' in the pipeline 'byte'",
        ),
        ("listops", "s4", {"augment": True}, "option augment is not for the task 'listops'"),
        ("listops", "s4", {"valid_fraction": 0.1}, "option valid_fraction is not for"),
        ("pathfinder", "s4", {"colour": True}, "option colour is not for"),
        ("image", "byte", {"tokenize": True}, "option tokenize is not for"),
        ("image", "s4", {"append_eos": False}, "option append_eos is not for"),
        ("listops", "s4", {"max_length": 1}, "max_length = 1 leaves no room for text"),
        ("text", "s4", {"valid_fraction": 1.5}, r"valid_fraction must be in \[0, 1\), got 1\.5"),
    ],
)
def test_options_that_do_not_fit(tmp_path, task, pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        open_task(task, tmp_path, pipeline, **options)


@pytest.mark.filterwarnings("default")
def test_other_sizes_than_published(tmp_path):
    write.listops(tmp_path)
    with pytest.warns(UserWarning, match=r"Arena listops, split train: 2 examples; the published data has 96,000"):
        open_task("listops", tmp_path)
    with pytest.raises(DataError, match="the published data has 96,000"):
        open_task("listops", tmp_path, strict=True)


def test_copies_are_used_again_and_made_anew(tmp_path, monkeypatch):
    write.listops(tmp_path)
    first = ids(open_task("listops", tmp_path).train)
    (folder,) = (tmp_path / "cache/lra").iterdir()

    def not_needed(*_):
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr("subquad.data.lra.datasets._encode_texts", not_needed)
        assert ids(open_task("listops", tmp_path).train) == first
        for options in ({"max_length": 4}, {"append_bos": True}, {"append_eos": False}, {"pipeline": "byte"}):
            with pytest.raises(AssertionError, match="encoded again"):
                open_task("listops", tmp_path, **options)
    for damage in (lambda content: content[:-1], lambda content: content[:-2], lambda content: b""):
        path = folder / "train.ids"
        path.write_bytes(damage(path.read_bytes()))
        assert ids(open_task("listops", tmp_path).train) == first
    (folder / "header.json").write_text("{}")
    assert ids(open_task("listops", tmp_path).train) == first
    write_expressions(tmp_path, ["[SM 7 7 7 ]"])
    assert len(open_task("listops", tmp_path).train) == 1
    assert all(not path.name.startswith(".") for path in (tmp_path / "cache/lra").iterdir())


@pytest.mark.parametrize("task", ["listops", "text", "image", "pathfinder"])
def test_a_folder_that_is_not_there(tmp_path, task):
    (tmp_path / "file.txt").write_text("A file is no folder.")
    for root in (tmp_path / "nowhere", tmp_path / "file.txt"):
        with pytest.raises(FileNotFoundError, match=f"{root.name}: no such folder; name that of the data"):
            open_lra(task, root)
