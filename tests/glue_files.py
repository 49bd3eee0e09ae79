"""The official files of GLUE, tiny: the right columns, headers and labels, and sentences that a model can learn."""

from pathlib import Path

# Of each task: train and dev header, test header, and a line of train and dev from number, sentences and label.
CLASSES = {
    "CoLA": ("1", "0"),
    "SST-2": ("1", "0"),
    "MRPC": ("1", "0"),
    "QQP": ("0", "1"),
    "MNLI": ("contradiction", "neutral", "entailment"),
    "QNLI": ("not_entailment", "entailment"),
    "RTE": ("entailment", "not_entailment"),
    "STS-B": ("0.000", "5.000"),
}
HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": "index\tpromptID\tpairID\tgenre\tparse1\tparse2\tparse3\tparse4\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
}


def line(title: str, number: int, first: str, second: str, label: str, *, dev: bool = False) -> str:
    annotators = ["x"] * (5 if dev else 1)
    cells = {
        "CoLA": ["gj04", label, "", first],
        "SST-2": [f"{first} ", label],
        "MRPC": [label, "11", "12", first, second],
        "STS-B": [str(number), *["x"] * 6, first, second, label],
        "QQP": [str(number), "3", "4", first, second, label],
        "MNLI": [str(number), *["x"] * 7, first, second, *annotators, label],
        "QNLI": [str(number), first, second, label],
        "RTE": [str(number), first, second, label],
    }
    return "\t".join(cells[title])


def lines(title: str, count: int, *, dev: bool = False) -> list[str]:
    """The word of the first sentence says the class; the first class is twice as frequent as the last."""
    classes = CLASSES[title]
    order = [*classes, *classes[:-1]]
    rows = []
    for number in range(count):
        label = order[number % len(order)]
        word = "abcd"[classes.index(label)] * 4
        rows.append(line(title, number, f'He said "{word}', f"no {number % 3}", label, dev=dev))
    return rows


def write_glue(folder: Path, *, train: int = 24, valid: int = 12) -> Path:
    """A folder for each of the eight tasks."""
    for title in CLASSES:
        header = [HEADERS[title]] if title in HEADERS else []
        place = folder / title
        place.mkdir(parents=True)
        (place / "train.tsv").write_text("\n".join([*header, *lines(title, train)]) + "\n", encoding="utf-8")
        for dev in ("dev_matched", "dev_mismatched") if title == "MNLI" else ("dev",):
            (place / f"{dev}.tsv").write_text("\n".join([*header, *lines(title, valid, dev=True)]), encoding="utf-8")
    return folder
