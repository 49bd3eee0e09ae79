import csv
import json
import re
from html.parser import HTMLParser

import pytest
from run_folders import write_run, write_text

from subquad.data import DataError
from subquad.evaluation import Efficiency, GenerationSpeed, TrainingSpeed, compare, report
from subquad.evaluation.charts import NUM_COLOURS, Axis, Series, bar_chart, line_chart

VOID = {"meta", "br", "img", "line", "rect", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Checks that tags match, and collects what a reader and a browser see."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())


def extrapolated(run, lengths=(16, 32, 64)):
    rows = [{"length": n, "perplexity": 7 + n / 64, "bits_per_byte": 2 + n / 64} for n in lengths]
    (run / "extrapolation.json").write_text(json.dumps({"training_length": 16, "results": rows}))


@pytest.fixture
def runs(tmp_path):
    data = write_text(tmp_path / "text")
    runs = [write_run(tmp_path / name, data, mixer=name, seed=i) for i, name in enumerate(("hgru", "tno", "softmax"))]
    for run in runs:
        extrapolated(run)
    return runs


@pytest.fixture
def measured(monkeypatch):
    calls = []
    load = 0.0

    def fake(folder, *, length):
        calls.append((folder.name, length))
        generation = [GenerationSpeed(n, 1.0, n / 100 if folder.name == "softmax" else 1.5) for n in (128, 256)]
        return Efficiency("a machine", load, TrainingSpeed(8, length, 777.0, 123_000_000), generation)

    monkeypatch.setattr(report, "measure_run", fake)
    return calls


def edit(run, name, **changes):
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | changes))


def test_page_and_table(runs, measured, tmp_path):
    path = compare(runs, tmp_path / "new" / "folder")
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    text = " ".join(page.text)
    for run in runs:
        assert run.name in text
    for title in ("Loss while training", "Length extrapolation", "Time per generated token", "Peak memory in training"):
        assert title in page.text
    assert "trained at 16" in page.text
    assert "subquad compare" in text
    assert "a token is byte" in text.lower()
    assert "a test machine" in text
    assert "8 sequences of 16 tokens" in text
    assert measured == [("hgru", 16), ("tno", 16), ("softmax", 16)]
    assert "Busy machine" not in text
    assert page.tags.count("figcaption") == 6
    rows = list(csv.DictReader((path.parent / "comparison.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["hgru", "tno", "softmax"]
    assert float(rows[2]["generation_ms_at_256"]) == 2.56
    assert float(rows[0]["perplexity_at_64"]) == 8
    assert rows[0]["word_perplexity"] == ""
    assert not list(path.parent.glob(".*"))


def test_page_is_self_contained(runs, measured, tmp_path):
    source = compare(runs, tmp_path / "out").read_text(encoding="utf-8")
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "xlink:href"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", source)
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source


def test_pictures_are_in_the_page_and_may_be_shown(runs, tmp_path):
    (runs[0] / "confusion.png").write_bytes(b"\x89PNG")
    page = Page(compare(runs, tmp_path / "out", measure=False).read_text(encoding="utf-8"))
    (picture,) = [value for name, value in page.attributes if name == "src"]
    assert picture.startswith("data:image/png;base64,")
    (policy,) = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert "img-src data:" in policy


def test_best_values_are_marked(runs, measured, tmp_path):
    source = compare(runs, tmp_path / "out").read_text(encoding="utf-8")
    table = source[source.index("<table>") : source.index("</table>")]
    best = {row.split("</span>")[0].rsplit(">")[-1]: row.count("class=best") for row in table.split("<tr>")[2:]}
    # Lowest losses: the first run. Speed and memory are equal, so every run is best.
    assert best == {"hgru": 6, "tno": 4, "softmax": 3}


def test_without_measuring_the_records_of_training_are_shown(runs, measured, tmp_path):
    source = compare(runs, tmp_path / "out", measure=False).read_text(encoding="utf-8")
    assert measured == []
    assert "Time per generated token" not in source
    assert "as recorded in training" in source
    assert "--no-measure" in source


def test_a_busy_machine_is_said(runs, monkeypatch, tmp_path):
    busy = Efficiency("a machine", 1e4, TrainingSpeed(8, 16, 777.0, None), [])
    monkeypatch.setattr(report, "measure_run", lambda folder, length: busy)
    assert "Busy machine" in compare(runs, tmp_path / "out").read_text(encoding="utf-8")


def test_missing_values_are_dashes(runs, measured, tmp_path):
    for name in ("metrics.json", "log.jsonl", "run.json"):
        (runs[0] / name).unlink()
    (runs[1] / "extrapolation.json").unlink()
    page = Page(compare(runs, tmp_path / "out", measure=False).read_text(encoding="utf-8"))
    assert "–" in page.text
    assert not {"None", "nan", "inf"} & set(page.text)


def test_different_vocabularies_are_said(runs, measured, tmp_path):
    edit(runs[0], "metrics.json", vocabulary="bpe:512")
    text = " ".join(Page(compare(runs, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Different vocabularies" in text
    assert "Fewest bits per byte" in text
    assert "Lowest perplexity" not in text
    assert "bits per byte against evaluation length" not in text
    assert "Bits per byte at length 64" in text


def test_training_data_may_differ_where_the_evaluation_does_not(runs, measured, tmp_path):
    edit(runs[0], "run.json", data={"name": "larks", "fingerprint": "beef"})
    text = " ".join(Page(compare(runs, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Different training data" in text
    assert "sparrows, larks" in text or "larks, sparrows" in text
    assert "Lowest perplexity" in text
    # The fingerprint is one of ids: in another vocabulary it says nothing about the text.
    edit(runs[0], "metrics.json", vocabulary="bpe:512")
    text = " ".join(Page(compare(runs, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Different training data" not in text


def test_extrapolation_of_different_texts_is_said(runs, measured, tmp_path):
    edit(runs[0], "extrapolation.json", split="valid")
    text = " ".join(Page(compare(runs, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Length extrapolation on different texts" in text
    assert "Best at length" not in text


def test_different_data_are_said_and_nothing_is_best(runs, measured, tmp_path):
    edit(runs[0], "metrics.json", bytes=393)
    text = " ".join(Page(compare(runs, tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Different data" in text
    assert "Lowest perplexity" not in text
    assert "Fewest bits per byte" not in text
    assert "Fastest training" in text


def make_masked(run):
    """As if the run had been of masked tokens."""
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(content | {"architectures": ["SubquadForMaskedLM"]}))
    edit(run, "metrics.json", bits_per_byte=None, bytes=None, words=None)
    (run / "extrapolation.json").unlink()


def test_perplexities_of_different_tasks_are_never_ranked_together(runs, measured, tmp_path):
    make_masked(runs[0])
    page = compare(runs, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    seen = Page(text).text
    assert "Different tasks" in text
    assert "per masked token" in seen
    assert "Loss while training (masked-lm)" in seen
    assert "Loss while training (causal-lm)" in seen
    assert "Lowest perplexity of masked tokens" not in text  # there is one run of the task
    rows = list(csv.DictReader(page.with_suffix(".csv").read_text().splitlines()))
    assert [row["task"] for row in rows] == ["masked-lm", "causal-lm", "causal-lm"]
    assert [bool(row["perplexity"]) for row in rows] == [False, True, True]
    assert [bool(row["masked_perplexity"]) for row in rows] == [True, False, False]
    # The masked run has the lowest number; the best perplexity is that of the causal run below it.
    best = re.findall(r"Lowest perplexity</div><div class=\"figure\">([0-9.]+)", text)
    assert best == [f"{float(rows[1]['perplexity']):.2f}"]


def test_masked_runs_are_ranked_where_the_masking_is_the_same(runs, measured, tmp_path):
    for run in runs:
        make_masked(run)
    text = compare(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "Lowest perplexity of masked tokens" in text
    assert "per byte" not in text
    assert "Different" not in text
    recipe = runs[0] / "recipe.yaml"
    plain = recipe.read_text()
    for masking, is_other in (("{type: fairseq, probability: 0.15}", False), ("{type: bernoulli}", True)):
        recipe.write_text(plain.replace("data:", f"data:\n  masking: {masking}"))
        text = compare(runs, tmp_path / "out").read_text(encoding="utf-8")
        assert ("Different masking" in text) == is_other
        assert ("Lowest perplexity of masked tokens" in text) != is_other


def make_classifier(run, task, accuracies, score="eval_accuracy", **metrics):
    """As if the run had been of classes."""
    recipe = run / "recipe.yaml"
    recipe.write_text(f"task: {task}\n{recipe.read_text()}")
    (run / "extrapolation.json").unlink()
    figures = dict.fromkeys(("perplexity", "bits_per_byte", "bytes", "words", "tokens", "vocabulary"))
    edit(run, "metrics.json", **figures, **metrics)
    lines = [json.dumps({"step": 10 * i, "time": 60 * i, score: value}) for i, value in enumerate(accuracies, start=1)]
    with (run / "log.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")


def test_classifiers_are_compared_by_accuracy(runs, measured, tmp_path):
    figures = {"accuracy": 0.4567, "last_accuracy": 0.4, "validation": "the test set, as published"}
    make_classifier(runs[0], "sequence-classification", (0.3, 0.5), **figures)
    make_classifier(runs[1], "sequence-classification", (0.2, 0.6), accuracy=0.4321)
    path = compare(runs[:2], tmp_path / "out")
    source = path.read_text(encoding="utf-8")
    seen = Page(source).text
    assert re.findall(r'Highest accuracy</div><div class="figure">([0-9.]+%)', source) == ["45.67%"]
    for title in ("Accuracy while training", "Accuracy against time", "last weights", "43.21%"):
        assert title in seen
    assert "Perplexity" not in seen
    assert "Checkpoints chosen by validation: the test set, as published." in source
    assert "Different" not in source
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [row["accuracy"] for row in rows] == ["0.4567", "0.4321"]
    assert [row["last_accuracy"] for row in rows] == ["0.4", ""]
    edit(runs[0], "run.json", data={"name": "larks", "fingerprint": "beef"})
    source = compare(runs[:2], tmp_path / "out").read_text(encoding="utf-8")
    assert "Different data" in source
    assert "Highest accuracy" not in source


def test_classifiers_of_several_tasks_have_curves_of_their_own(runs, measured, tmp_path):
    make_classifier(runs[0], "glue", (0.3, 0.5), "eval_score", accuracy=0.6, f1=0.7, glue_task="mrpc")
    make_classifier(runs[1], "glue", (-0.3, -0.2), "eval_score", pearson=0.8125, spearman=0.75, glue_task="stsb")
    make_classifier(runs[2], "image-classification", (0.2, 0.6), accuracy=0.9, top5_accuracy=0.99)
    path = compare(runs, tmp_path / "out")
    seen = Page(path.read_text(encoding="utf-8")).text
    for text in ("Accuracy while training (glue)", "Accuracy while training (image-classification)", "0.8125", "F1"):
        assert text in seen
    glue = seen[seen.index("Accuracy while training (glue)") :]
    assert glue[1:3] == ["hgru", "accuracy"]  # scores of STS-B are no accuracy
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [(row["accuracy"], row["f1"], row["pearson"], row["top5_accuracy"]) for row in rows] == [
        ("0.6", "0.7", "", ""),
        ("", "", "0.8125", ""),
        ("0.9", "", "", "0.99"),
    ]


def test_training_is_counted_in_the_unit_of_the_task(runs, measured, tmp_path):
    make_classifier(runs[0], "image-classification", (0.2, 0.6), accuracy=0.9)
    edit(runs[0], "metrics.json", unit="images", images_per_second=55.0, images_trained=960)
    path = compare(runs, tmp_path / "recorded", measure=False)
    seen = Page(path.read_text(encoding="utf-8")).text
    for text in ("images/s", "tokens/s", "Training speed (images per second)", "Fastest training (tokens)", "960"):
        assert text in seen
    assert "Fastest training (images)" not in seen  # there is one run of images
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [(row["images_per_second"], row["tokens_per_second"]) for row in rows] == [
        ("55.0", ""),
        ("", "1001.0"),
        ("", "1002.0"),
    ]
    path = compare(runs, tmp_path / "measured")
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert float(rows[0]["images_per_second"]) == 777 / 16  # of 16 patches each
    assert "Measured here, 8 images a step." in path.read_text(encoding="utf-8")


def test_files_of_other_forms_are_missing_values(runs, measured, tmp_path):
    edit(runs[0], "metrics.json", vocabulary=5, perplexity="low", parameters=True)
    edit(runs[0], "extrapolation.json", results=[3, {"length": "long"}])
    edit(runs[1], "extrapolation.json", results={"length": 3})
    assert "Lowest perplexity" in compare(runs, tmp_path / "out").read_text(encoding="utf-8")


def test_names_of_others_are_text(runs, measured, tmp_path):
    edit(runs[0], "metrics.json", vocabulary="<script>alert(1)</script>")
    edit(runs[0], "run.json", command="<img src=x>", hardware="<b>")
    evil = runs[0].rename(tmp_path / "<i onclick=x>&")
    page = Page(compare([evil, runs[1]], tmp_path / "out").read_text(encoding="utf-8"))
    assert not {"script", "img", "i"} & set(page.tags)
    assert any("<i onclick=x>&" in text for text in page.text)


def test_a_single_run(runs, measured, tmp_path):
    text = " ".join(Page(compare(runs[:1], tmp_path / "out").read_text(encoding="utf-8")).text)
    assert "Lowest" not in text
    assert "Fastest" not in text


def test_equal_names_are_told_apart(runs, measured, tmp_path):
    twin = write_run(tmp_path / "elsewhere" / "hgru", tmp_path / "text", seed=4)
    path = compare([runs[0], twin], tmp_path / "out")
    assert [row["run"] for row in csv.DictReader((path.parent / "comparison.csv").read_text().splitlines())] == [
        str(runs[0]),
        str(twin),
    ]


def test_refuses(runs, measured, tmp_path):
    with pytest.raises(DataError, match="at least one"):
        compare([], tmp_path)
    with pytest.raises(DataError, match="twice"):
        compare([runs[0], runs[0]], tmp_path)
    with pytest.raises(DataError, match="not a run folder"):
        compare([runs[0], tmp_path / "text"], tmp_path / "out")
    (runs[2] / "extrapolation.json").write_text("{")
    with pytest.raises(DataError, match=r"extrapolation.json: not JSON"):
        compare(runs, tmp_path / "out")
    assert measured == []
    assert not (tmp_path / "out").exists()


def ticks(svg):
    return re.findall(r'class="tick"[^>]*>([^<]*)<', svg)


def test_axes_have_round_ticks():
    axis = Axis("y", "{:g}".format)
    svg = line_chart([Series("a", 0, [(0, 3.02), (100, 3.79)])], Axis("x", "{:g}".format), axis)
    assert ticks(svg) == ["3", "3.2", "3.4", "3.6", "3.8", "0", "20", "40", "60", "80", "100"]
    log = Axis("x", "{:g}".format, "log")
    assert ticks(line_chart([Series("a", 0, [(1, 5), (1000, 7)])], log, axis))[-4:] == ["1", "10", "100", "1000"]


@pytest.mark.parametrize(
    "points", [[(1, 1)], [(1, 2), (2, 2)], [(1, 0), (2, 0)], [(5, -3), (6, -1)], [(1, 1e-9), (2, 1e9)]]
)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_charts_of_odd_values(points, scale):
    svg = line_chart([Series("a", 0, points)], Axis("x", "{:g}".format, scale), Axis("y", "{:g}".format, scale))
    Page(svg)
    numbers = [float(n) for n in re.findall(r'points="([^"]*)"', svg)[0].replace(",", " ").split()]
    assert all(0 <= n <= 480 for n in numbers)


def test_many_runs_are_told_apart():
    series = [Series(str(i), i, [(1, i + 1), (2, i + 2)]) for i in range(NUM_COLOURS + 1)]
    svg = line_chart(series, Axis("x", "{:g}".format), Axis("y", "{:g}".format))
    assert svg.count("stroke-dasharray") == 1


def test_bars_of_nothing():
    svg = bar_chart([("a", 0, None), ("b", 1, 0.0)], "speed", "{:g}".format)
    Page(svg)
    assert "–" in svg
