"""The value of expressions, and the distribution and the files of random ones."""

import contextlib
import json
from collections import Counter
from random import Random

import lra_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.data.lra import ListOpsLimits, evaluate_listops, generate_listops, read_listops
from subquad.data.lra.listops import DIGITS, OPERATORS, _draw_block, parenthesized, random_expression

SMALL = ListOpsLimits(min_length=8, max_length=64, max_depth=4, max_args=5)


def nesting(tokens):
    depth = greatest = 0
    for token in tokens:
        depth += (token in OPERATORS) - (token == "]")
        greatest = max(greatest, depth)
    return greatest


def test_known_values():
    examples = json.loads(shared("golden", "listops-eval.json").read_text())["examples"]
    for example in examples:
        assert evaluate_listops(example["source"]) == example["label"]
        assert evaluate_listops(example["flat"]) == example["label"]
        plain = example["flat"].split()
        assert " ".join(parenthesized(plain)) == example["source"]
        assert (len(plain), nesting(plain)) == (example["num_tokens"], example["depth"])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("[MED 2 3 ]", 2),
        ("[MED 9 1 2 5 ]", 3),
        ("[SM 9 9 9 ]", 7),
        ("[MAX [MIN 4 7 ] 2 ]", 4),
        (" [SM\n1\t2 ] ", 3),
        ("[MIN 6 ]", 6),
    ],
)
def test_values(expression, value):
    assert evaluate_listops(expression) == value
    assert evaluate_listops(" ".join(parenthesized(expression.split()))) == value


def test_nesting_is_not_limited():
    plain = ["[MAX"] * 20_000 + ["3"] + ["]"] * 20_000
    assert evaluate_listops(" ".join(plain)) == 3
    assert evaluate_listops(" ".join(parenthesized(plain))) == 3


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "empty expression"),
        ("( )", "empty expression"),
        ("[MAX 2 x ]", r"token 3 'x' is none of \[MIN"),
        ("[MAX 2 ٣ ]", "token 3 '٣' is none of"),
        ("[MAX 2 10 ]", "token 3 '10' is none of"),
        ("[MAX 2 9 X", "token 4 'X' is none of"),
        ("[MAX () 9 ]", r"token 2 '\(\)' is none of"),
        ("[MAX 2 [MIN 3 ]", r"\[MAX is not closed"),
        ("[MAX 2", r"\[MAX is not closed"),
        ("]", "token 1 ']' closes no operator"),
        ("[MAX ]", r"token 2 ']': the operator \[MAX has no arguments"),
        ("3 4", "token 2 '4' stands behind the end"),
        ("[MAX 2 9 ] ]", "token 5 ']' stands behind the end"),
        ("( ( [MAX 2 ) 9 ) ] )", r"token 3 is '\[MAX' where .* want '\('"),
        ("( ( ( [MAX 2 ) 9 ) ]", r"token 10 is 'the end' where .* want '\)'"),
        ("( ( ( [MAX 2 ) 9 ) ] ) )", r"token 11 is '\)' where .* want 'the end'"),
        ("( 5 )", r"token 1 is '\(' where .* want '5'"),
    ],
)
def test_malformed_expressions(expression, message):
    with pytest.raises(ValueError, match=message):
        evaluate_listops(expression)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*OPERATORS, "]", "]", "1", "7", "(", ")", "X"]), max_size=12), st.integers(0, 2**32))
def test_any_text_is_evaluated_or_refused(tokens, seed):
    with contextlib.suppress(ValueError):
        assert 0 <= evaluate_listops(" ".join(tokens)) <= 9
    # Whatever the generator draws has a value, and loses it with any of its tokens but a digit.
    expression = random_expression(Random(seed), SMALL) or ["7"]
    value = evaluate_listops(" ".join(expression))
    source = parenthesized(expression)
    assert evaluate_listops(" ".join(source)) == value
    place = seed % len(source)
    if source[place] not in DIGITS:
        with pytest.raises(ValueError, match=r"token|operator|empty"):
            evaluate_listops(" ".join(source[:place] + source[place + 1 :]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_length": 10, "max_length": 11}, "no length is above min_length = 10 and below max_length = 11"),
        ({"min_length": -1}, "no length is above"),
        ({"max_depth": 0}, "max_depth must be 1 or more"),
        ({"max_args": 1}, "max_args 2 or more, got 10 and 1"),
    ],
)
def test_impossible_limits(limits, message):
    with pytest.raises(ValueError, match=message):
        ListOpsLimits(**limits)


def share(hits, total):
    """A share and four standard errors of it."""
    p = hits / total
    return p, 4 * (p * (1 - p) / total) ** 0.5


def test_distribution_of_all_draws():
    """Without a length to keep to, nodes are what the grammar says."""
    random, limits = Random(5), ListOpsLimits(min_length=0, max_length=100_000, max_depth=3, max_args=4)
    draws = [random_expression(random, limits) for _ in range(4000)]
    roots = Counter(draw[0] for draw in draws)
    p, error = share(sum(roots[operator] for operator in OPERATORS), len(draws))
    assert abs(p - 0.25) < error
    counts = Counter(len(draw) - 2 for draw in draws if draw[0] in OPERATORS and nesting(draw) == 1)
    # k arguments, all of them digits: in proportion to (3/4)^k
    total = sum(0.75**k for k in (2, 3, 4))
    for k in (2, 3, 4):
        p, error = share(counts[k], sum(counts.values()))
        assert abs(p - 0.75**k / total) < error
    assert max(map(nesting, draws)) == 2
    assert set().union(*draws) == {*OPERATORS, *DIGITS, "]"}


def test_distribution_of_the_published_limits():
    """20 000 accepted expressions of the original rule gave the numbers that stand here."""
    random, limits = Random(2), ListOpsLimits()
    draws = [random_expression(random, limits) for _ in range(6000)]
    kept = [tokens for tokens in draws if tokens and 500 < len(tokens) < 2000]
    p, error = share(len(kept), len(draws))
    assert abs(p - 0.082) < error
    assert abs(sum(tokens is None or len(tokens) >= 2000 for tokens in draws) / len(draws) - 0.011) < 0.006
    p, error = share(sum(tokens is not None and len(tokens) == 1 for tokens in draws), len(draws))
    assert abs(p - 0.75) < error
    lengths = sorted(map(len, kept))
    mean = sum(lengths) / len(lengths)
    assert abs(mean - 1035) < 4 * 395 / len(lengths) ** 0.5
    assert abs((sum((length - mean) ** 2 for length in lengths) / len(lengths)) ** 0.5 - 395) < 50
    tokens = Counter(token for expression in kept for token in expression)
    for token in tokens:
        expected = 0.0716 if token in DIGITS else 0.1423 if token == "]" else 0.0356
        assert abs(tokens[token] / tokens.total() - expected) < 0.003, token
    assert sum(nesting(expression) == 9 for expression in kept) > 0.9 * len(kept)
    labels = Counter(evaluate_listops(" ".join(expression)) for expression in kept)
    for label in (0, 9):
        assert abs(labels[label] / len(kept) - 0.17) < 4 * (0.17 * 0.83 / len(kept)) ** 0.5


def generate(folder, **options):
    return generate_listops(
        folder, **{"train": 30, "valid": 5, "test": 7, "limits": SMALL, "num_workers": 1, "progress": False, **options}
    )


def test_files(tmp_path):
    files = generate(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "basic_test.tsv",
        "basic_train.tsv",
        "basic_val.tsv",
        "generated.json",
    ]
    sources = []
    for file, count in zip(files, (30, 5, 7), strict=True):
        header, *lines, rest = file.read_bytes().decode("ascii").split("\r\n")
        assert (header, rest, len(lines)) == ("Source\tTarget", "", count)
        for line in lines:
            source, target = line.split("\t")
            assert evaluate_listops(source) == int(target)
            plain = [token for token in source.split() if token not in "()"]
            assert 8 < len(plain) < 64
            assert source.split() == parenthesized(plain)
            sources.append(source)
    assert len(set(sources)) == 42
    assert len(list(read_listops(tmp_path / "made", "valid", strict=True))) == 5


def test_files_depend_on_the_seed_alone(tmp_path, monkeypatch):
    lra_files.work_in_threads(monkeypatch)

    def content(name, **options):
        return b"".join(file.read_bytes() for file in generate(tmp_path / name, **options))

    assert content("three", num_workers=3) == content("one")
    assert content("other", seed=1) != content("one again")


def test_examples_are_those_drawn_first_in_another_order(tmp_path):
    lines = [line for file in generate(tmp_path) for line in file.read_bytes().splitlines(keepends=True)[1:]]
    drawn = list(dict.fromkeys(_draw_block(SMALL, 0, 0)))[:42]
    assert sorted(lines) == sorted(drawn)
    assert lines != drawn


def test_too_few_expressions(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.data.lra.listops.MAX_FRUITLESS_BLOCKS", 2)
    with pytest.raises(DataError, match="2,048 draws brought no new expression: 10 of 42 have been found"):
        generate(tmp_path, limits=ListOpsLimits(min_length=0, max_length=2))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "basic_val.tsv").write_text("mine")
    with pytest.raises(DataError, match=r"already holds basic_val.tsv; give another folder"):
        generate(tmp_path)
    assert (tmp_path / "basic_val.tsv").read_text() == "mine"
    with pytest.raises(ValueError, match="sizes must be 0 or more"):
        generate(tmp_path / "none", train=0, valid=0, test=0)


def test_command(tmp_path):
    sizes = ["--train", "9", "--valid", "2", "--test", "3", "--workers", "1"]
    limits = ["--min-length", "8", "--max-length", "64", "--max-depth", "4", "--max-args", "5"]
    call = ["data", "listops", "--output", str(tmp_path / "cli"), "--seed", "4", *sizes, *limits]
    result = CliRunner().invoke(cli.app, call)
    assert result.exit_code == 0, result.output
    expected = generate(tmp_path / "library", train=9, valid=2, test=3, seed=4)
    made = [tmp_path / "cli" / file.name for file in expected]
    assert [file.read_bytes() for file in made] == [file.read_bytes() for file in expected]
    assert all(str(file) in result.output for file in made)
    result = CliRunner().invoke(cli.app, call)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
