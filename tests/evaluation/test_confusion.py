"""Figures of classifiers, and which classes they confuse."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import assert_close

from subquad.evaluation.accuracy import AccuracyResult, evaluate_accuracy, score_batch
from subquad.evaluation.confusion import save_confusion, worst_confusions
from subquad.evaluation.images import ImageResult, model_inputs


def answering(logits):
    return lambda **batch: SimpleNamespace(logits=logits)


def test_scores_of_a_batch():
    logits = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1], [7.0, 6, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6, 7]])
    labels = torch.tensor([0, 5, 2])
    nll, top5, correct, examples = score_batch(answering(logits), {"labels": labels}, top=5)
    assert (top5, correct, examples) == (2, 1, 3)
    assert_close(nll, -logits.double().log_softmax(-1)[range(3), labels].sum(), torch.float32)
    confusion = score_batch(answering(logits), {"labels": labels}, confusion=True)[1:].view(7, 7)
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[0, 0] = expected[5, 0] = expected[2, 6] = 1
    assert torch.equal(confusion, expected)


def test_half_precision_is_widened():
    logits = torch.randn(4, 10).half()
    scores = score_batch(answering(logits), {"labels": torch.arange(4)})
    expected = F.cross_entropy(logits.float(), torch.arange(4), reduction="sum")
    assert_close(scores[0], expected.double())


def test_figures_of_a_result():
    confusion = torch.tensor([[3, 1], [2, 4]])
    result = ImageResult(6.0, confusion, ("a", "b"), 10)
    assert (result.correct, result.examples, result.accuracy, result.loss) == (7, 10, 0.7, 0.6)
    assert result.to_dict()["task"] == "image-classification"
    assert AccuracyResult(6.0, confusion, ("a", "b")).to_dict() == {
        "loss": 0.6,
        "accuracy": 0.7,
        "correct": 7,
        "examples": 10,
        "task": "sequence-classification",
    }
    assert result.top5_accuracy is None
    assert "top5_accuracy" not in result.to_dict()
    assert [row[1] for row in result.table()] == ["70.00%", "0.6000"]
    many = ImageResult(6.0, torch.ones(6, 1).long() * torch.eye(6)[0].long(), tuple("abcdef"), 3)
    assert many.to_dict()["top5_accuracy"] == 0.5
    assert [row[0] for row in many.table()] == ["accuracy", "accuracy in five answers", "loss (nats per image)"]


class Examples:
    """Numbers of a class; see `subquad.data.lra`."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.labels[index]

    @staticmethod
    def collate(labels):
        return {"labels": torch.tensor(labels)}


class TakesTwoForOne(torch.nn.Module):
    device = torch.device("cpu")
    config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1", 2: "cat"})

    def forward(self, labels):
        answers = torch.tensor([0, 1, 1])[labels]
        return SimpleNamespace(logits=F.one_hot(answers, 3).double())


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_the_confusion_matrix_of_all_examples(batch_size):
    result = evaluate_accuracy(TakesTwoForOne(), Examples([0, 2, 2, 1, 0, 2]), batch_size=batch_size, progress=False)
    assert result.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 3, 0]]
    assert result.classes == ("0", "1", "cat")
    assert (result.correct, result.examples) == (3, 6)


def test_pixels_are_a_sequence_row_after_row():
    images = torch.arange(12).view(1, 2, 2, 3)
    batch = model_inputs({"pixel_values": images, "labels": torch.zeros(1)}, "pixels")
    assert batch["input_values"].tolist() == [[[k, 6 + k] for k in range(6)]]


def test_the_worst_confusions_come_first():
    matrix = torch.tensor([[5, 2, 3], [0, 9, 1], [0, 0, 4]])
    assert worst_confusions(matrix, "abc") == [("a", "c", 3, 0.3), ("a", "b", 2, 0.2), ("b", "c", 1, 0.1)]
    assert worst_confusions(torch.eye(3).long(), "abc") == []


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_pictures_are_readable_for_any_number_of_classes(tmp_path, count):
    image = pytest.importorskip("PIL.Image")
    classes = [f"class {label}" for label in range(count)]
    matrix = torch.randint(3, (count, count)) + 40 * torch.eye(count).long()
    save_confusion(tmp_path, matrix, classes, {"split": "test"})
    content = json.loads((tmp_path / "confusion.json").read_text())
    assert content == {"split": "test", "classes": classes, "matrix": matrix.tolist()}
    assert len((tmp_path / "confusion.csv").read_text().splitlines()) == count + 1
    with image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 1500


@pytest.mark.parametrize("count", [2, 50])
def test_names_of_classes_are_no_formulas(tmp_path, count):
    save_confusion(tmp_path, torch.ones(count, count).long(), ["$a^$", *map(str, range(1, count))], {})
    assert (tmp_path / "confusion.png").is_file()


def test_a_perfect_classifier_has_a_picture(tmp_path):
    save_confusion(tmp_path, torch.eye(50).long(), [str(label) for label in range(50)], {})
    assert (tmp_path / "confusion.png").is_file()


def test_without_matplotlib_there_is_no_picture_but_all_numbers(tmp_path, monkeypatch):
    (tmp_path / "confusion.png").write_bytes(b"of an earlier evaluation")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match=r"confusion\.png is not drawn: .* pip install 'subquad\[plots\]'"):
        save_confusion(tmp_path, torch.tensor([[3, 1], [2, 4]]), ("a", "b"), {"run": "r"})
    assert json.loads((tmp_path / "confusion.json").read_text())["matrix"] == [[3, 1], [2, 4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.csv", "confusion.json"]
