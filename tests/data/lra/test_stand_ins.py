"""Stand-ins for Text, Retrieval and Image: read like the releases, and their classes can be told apart."""

import pytest
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.data.lra import make_stand_ins, open_lra, read_cifar10, read_retrieval, read_text
from subquad.data.lra.stand_ins import OPINIONS, TOPICS

pytestmark = pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("lra")
    make_stand_ins(output, train=40, test=20)
    return output


@pytest.mark.parametrize("task", ["text", "retrieval", "image"])
@pytest.mark.parametrize("pipeline", ["s4", "byte", "google"])
def test_every_pipeline_reads_them(folder, tmp_path, task, pipeline):
    data = open_lra(task, folder, pipeline, cache_dir=tmp_path, progress=False)
    assert len(data.train) + len(data.valid if task == "image" else ()) == 40
    assert len(data.test) == 20


def test_a_review_has_words_of_its_class_alone(folder):
    for (text,), label in read_text(folder, "train"):
        own, other = OPINIONS["pos" if label else "neg"], OPINIONS["neg" if label else "pos"]
        assert sum(word in own for word in text.split()) == 15
        assert not set(text.split()) & set(other)


def test_documents_are_a_pair_if_they_share_a_topic(folder):
    labels = []
    for documents, label in read_retrieval(folder, "test"):
        first, second = (set(document.split()) & set(TOPICS) for document in documents)
        assert len(first) == len(second) == 1
        assert (first == second) == label
        labels.append(label)
    assert sum(labels) == 10


def test_the_bright_part_of_a_picture_is_its_class(folder):
    split = read_cifar10(folder, "test")
    parts = split.images[:, :30].reshape(-1, 5, 6, 2, 16, 3).mean((2, 4, 5)).reshape(-1, 10)
    assert parts.argmax(1).tolist() == split.labels.tolist() == 2 * list(range(10))


def test_files_depend_on_the_seed_alone(folder, tmp_path):
    for seed, is_equal in ((0, True), (1, False)):
        make_stand_ins(tmp_path / str(seed), train=40, test=20, seed=seed)
        for path in (
            "aclImdb/test/pos/0_10.txt",
            "tsv_data/new_aan_pairs.eval.tsv",
            "cifar-10-batches-py/data_batch_3",
        ):
            assert ((tmp_path / str(seed) / path).read_bytes() == (folder / path).read_bytes()) is is_equal


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "tsv_data").mkdir()
    with pytest.raises(DataError, match="tsv_data: exists already"):
        make_stand_ins(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tsv_data"]
    with pytest.raises(ValueError, match="`train` and `test` must be 2 at least, got 1 and 50"):
        make_stand_ins(tmp_path / "new", train=1)


def test_command(tmp_path):
    result = CliRunner().invoke(
        cli.app, ["data", "stand-ins", "--output", str(tmp_path), "--train", "4", "--test", "2"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / name) for name in ("aclImdb", "tsv_data", "cifar-10-batches-py")]
