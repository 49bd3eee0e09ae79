"""Every kind of `--data` value, the splits that are made of it, and what is said about bad ones."""

import gzip
import json
import re

import pytest

from subquad.data import DataError, open_source, python_docs


def texts(source, split, **options):
    return list(source.read(split, **options))


def document_texts(source, split):
    documents, rest = [], ""
    for text in source.read(split):
        rest += text.text
        if text.final:
            documents.append(rest)
            rest = ""
    assert not rest
    return documents


def write_lines(path, count=200):
    path.write_text("".join(f"line {i} of the text\n" for i in range(count)), encoding="utf-8")
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_one_text_is_cut_by_position_at_line_ends(tmp_path, compressed):
    path = write_lines(tmp_path / "novel.txt")
    content = path.read_text()
    if compressed:
        path = tmp_path / "novel.txt.gz"
        path.write_bytes(gzip.compress(content.encode()))
    source = open_source(path)
    parts = ["".join(document_texts(source, split)) for split in ("train", "valid", "test")]
    assert "".join(parts) == content
    assert all(part.endswith("\n") for part in parts)
    assert len(parts[0]) == pytest.approx(0.90 * len(content), abs=25)
    assert len(parts[1]) == pytest.approx(0.05 * len(content), abs=50)
    assert source.split_rule == "last 10 % of each file, cut at line ends: 5 % valid, 5 % test"


def test_text_without_line_ends_is_cut_before_words(tmp_path):
    (tmp_path / "flat.txt").write_text("several words " * 500)
    source = open_source(tmp_path / "flat.txt")
    parts = ["".join(document_texts(source, split)) for split in ("train", "valid", "test")]
    assert "".join(parts) == "several words " * 500
    assert parts[1].startswith(" ")
    assert parts[2].startswith(" ")


@pytest.mark.parametrize(
    "names",
    [
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train.txt", "validation.txt", "test.txt"),
        ("train-00000-of-00001.md", "dev.md", "test.md"),
        ("train/a.txt", "val/b.txt", "test/c.txt"),
    ],
)
def test_named_splits_are_recognised(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    (tmp_path / "README.md").write_text("no part of the data")
    source = open_source(tmp_path)
    assert source.split_rule == "as named"
    for split, name in zip(("train", "valid", "test"), names, strict=True):
        assert document_texts(source, split) == [f"text of {name}\n"]


def test_a_named_part_alone_is_that_split(tmp_path):
    (tmp_path / "wiki.test.raw").write_text("all of it\n")
    source = open_source(tmp_path / "wiki.test.raw")
    assert document_texts(source, "test") == ["all of it\n"]
    with pytest.raises(DataError, match=r"wiki.test.raw: no split 'train'; there are: test$"):
        source.read("train")


def test_names_that_only_look_like_splits(tmp_path):
    for name in ("dev.md", "test-plan.md", "guide.md", ".hidden.md", "test.d/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name)
    source = open_source(tmp_path)
    assert source.split_rule.startswith("last 10 % of each file")
    assert "".join(document_texts(source, "train")).count("line 0 of") == 4
    files = [tmp_path / "guide.md", tmp_path / "dev.md"]
    assert open_source(files).split_rule.startswith("last 10 % of each file")


def test_a_train_part_alone_is_divided(tmp_path):
    source = open_source(write_lines(tmp_path / "train.txt"))
    assert list(source.readers) == ["train", "valid", "test"]


def test_many_files_are_divided_by_document(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i}")
    source = open_source(tmp_path)
    assert document_texts(source, "valid") == ["text 18", "text 38"]
    assert document_texts(source, "test") == ["text 19", "text 39"]
    assert len(document_texts(source, "train")) == 36
    by_glob = open_source(str(tmp_path / "*.txt"))
    assert document_texts(by_glob, "valid") == ["text 18", "text 38"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "saved", "hub folder"])
def test_rows_are_documents(tmp_path, kind):
    rows = [{"body": f"row {i}\nits second line", "id": i} for i in range(7)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_bytes(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        datasets = pytest.importorskip("datasets")
        if kind == "saved":
            datasets.Dataset.from_list(rows).save_to_disk(str(path))
        else:
            path.mkdir()
            (path / "rows.jsonl").write_bytes(lines)
            path = f"hf:{path}"
    source = open_source(path, text_column="body")
    bodies = [row["body"] for row in rows]
    assert document_texts(source, "train") == bodies[:5]
    assert document_texts(source, "valid") == bodies[5:6]
    assert document_texts(source, "test") == bodies[6:]
    with pytest.raises(DataError, match=r"no column 'text'; the columns are: body, id$"):
        open_source(path)


def test_saved_splits_of_a_dataset_keep_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {split: datasets.Dataset.from_list([{"text": split}]) for split in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    source = open_source(tmp_path / "set")
    assert [document_texts(source, split) for split in ("train", "valid", "test")] == [
        ["train"],
        ["validation"],
        ["test"],
    ]


def test_pieces_join_to_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.data.sources.PIECE_BYTES", 64)
    content = "a short line\n" * 20 + "é 灯台 " * 60 + "\n" + "word" * 100 + "\nend"
    (tmp_path / "test.txt").write_text(content, encoding="utf-8")
    source = open_source(tmp_path / "test.txt")
    for whole_lines in (False, True):
        pieces = texts(source, "test", whole_lines=whole_lines)
        assert "".join(piece.text for piece in pieces) == content
        assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text.endswith("\n") for piece in pieces[:-1])
    assert max(len(piece.text.encode()) for piece in texts(source, "test")) <= 128 + 400


def test_the_fingerprint_changes_with_the_data(tmp_path):
    path = write_lines(tmp_path / "a.txt")
    first = open_source(path).fingerprint
    assert open_source(path).fingerprint == first
    write_lines(path, count=201)
    assert open_source(path).fingerprint != first


def test_python_docs_are_prose():
    documents = python_docs.python_docs()
    assert len(documents) == len(set(documents))
    assert min(map(len, documents)) > 10
    assert sum(len(document.encode()) for document in documents) > 2_000_000
    source = open_source("python-docs")
    valid = document_texts(source, "valid")
    assert valid[0] == documents[18]
    assert sum(len(document_texts(source, split)) for split in source.readers) == len(documents)


BAD = {
    "binary.txt": b"text\0more",
    "latin.txt": "caf\xe9 au lait".encode("latin-1"),
    "empty.txt": b"",
    "short.txt": b"one",
    "broken.jsonl": b'{"text": "a"}\n{"text": \n',
    "list.jsonl": b"[1, 2]\n",
    "number.jsonl": b'{"text": 7}\n',
    "few.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    "no.parquet": b"PAR1 but nothing else",
    "cut.txt.gz": gzip.compress(b"text\n" * 1000)[:30],
    "not.txt.gz": b"plain text",
}
MESSAGES = {
    "binary.txt": "{path}: binary data, not text (zero at byte 4)",
    "latin.txt": "{path}: not UTF-8 text at byte 3",
    "empty.txt": "{path}: empty",
    "short.txt": "{path}: too short to be divided into train, valid and test; give each its own file",
    "broken.jsonl": "{path}: line 2 is not JSON",
    "list.jsonl": "{path}: line 1 is not a JSON object",
    "number.jsonl": "{path}: line 1: column 'text' is int, not text",
    "few.jsonl": "{path}: 2 documents cannot be divided into train, valid and test; give each its own file",
    "no.parquet": "{path}: not a Parquet file",
    "cut.txt.gz": "{path}: cannot be read (Compressed file ended before the end-of-stream marker was reached)",
    "not.txt.gz": "{path}: cannot be read (Not a gzipped file (b'pl'))",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(DataError, match=f"^{re.escape(MESSAGES[name].format(path=path))}$"):
        open_source(path)


def test_bad_byte_far_inside(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"some text\n" * 300_000 + b"\xff\n")
    source = open_source(path)
    with pytest.raises(DataError, match=re.escape(f"{path}: not UTF-8 text at byte 3000000")):
        texts(source, "test")


def test_damaged_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[40:400] = b"\xff" * 360
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test.parquet: cannot be read \(.+\)$"):
        texts(open_source(path), "test")


def test_text_without_spaces_is_cut_between_characters(tmp_path):
    (tmp_path / "flat.txt").write_text("灯台" * 701, encoding="utf-8")
    source = open_source(tmp_path / "flat.txt")
    assert "".join("".join(document_texts(source, split)) for split in source.readers) == "灯台" * 701


def test_a_character_cut_at_the_end_of_the_check_is_fine(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"x" * ((1 << 16) - 1) + "é\n".encode())
    assert "".join(document_texts(open_source(path), "test")).endswith("é\n")


def test_missing_data(tmp_path):
    with pytest.raises(DataError, match=r"nothing.txt: no such file or folder \(python-docs is the built-in corpus"):
        open_source(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="no data: give a file, a folder or python-docs"):
        open_source([])
    with pytest.raises(DataError, match=r"\*.txt: no file matches$"):
        open_source(str(tmp_path / "*.txt"))
    with pytest.raises(DataError, match=r"no text in this folder \(looked for .txt "):
        open_source(tmp_path)
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"^hf:.*: cannot be loaded \(.*\)$"):
        open_source(f"hf:{tmp_path / 'nothing'}")
