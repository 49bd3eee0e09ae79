"""ListOps (Nangia and Bowman, 2018, arXiv 1804.06028) as the Long Range Arena has it: nested operations on digits.

    expression = digit | operator expression … expression "]"          in plain spelling, `[MAX 2 9 [MIN 4 7 ] 0 ]`

The files spell a node as nested pairs, ((operator, first), second) … "]"), each printed as "( left right )":
`( ( ( [MAX 2 ) 9 ) ] )`. Length counts the tokens without parentheses. Expressions nest deeply in pairs, so nothing
here recurses.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import IO

from subquad.data.errors import DataError
from subquad.data.lra.parallel import map_in_order


def _median(values: list[int]) -> int:
    """The middle value, or the mean of the two middle ones rounded down."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
}
DIGITS = tuple("0123456789")
PARENTHESES = ("(", ")")
TOKENS = frozenset((*OPERATORS, *DIGITS, *PARENTHESES, "]"))
HEADER = "Source\tTarget"
FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}

OPERATOR_PROBABILITY = 0.25
BLOCK = 1024  # expressions that are drawn from one seed
MAX_FRUITLESS_BLOCKS = 200


def evaluate_listops(expression: str) -> int:
    """The value of an expression, in either spelling.

    Args:
        expression: Tokens with white space between them.

    Returns:
        A digit. The median of an even number of arguments is rounded down, and SM is the sum modulo 10.

    Raises:
        ValueError: The expression is empty, has an unknown token, an operator without arguments or without end, tokens
            behind its end, or parentheses that are not those of its pairs.

    Example:
        >>> evaluate_listops("[MAX 2 9 [MIN 4 7 ] 0 ]"), evaluate_listops("( ( ( [SM 8 ) 5 ) ] )")
        (9, 3)
    """
    tokens = expression.split()
    operators: list[str] = []
    arguments: list[list[int]] = [[]]  # of each open operator; the first takes the value of the whole
    for position, token in enumerate(tokens, start=1):
        if token in PARENTHESES:
            continue
        if arguments[0]:
            raise ValueError(f"token {position} {token!r} stands behind the end of the expression")
        if token in OPERATORS:
            operators.append(token)
            arguments.append([])
        elif token in DIGITS:
            arguments[-1].append(int(token))
        elif token != "]":
            raise ValueError(f"token {position} {token!r} is none of {' '.join(OPERATORS)} ] ( ) and the digits")
        elif not operators:
            raise ValueError(f"token {position} ']' closes no operator")
        elif values := arguments.pop():
            arguments[-1].append(OPERATORS[operators.pop()](values))
        else:
            raise ValueError(f"token {position} ']': the operator {operators[-1]} has no arguments")
    if operators:
        raise ValueError(f"the operator {operators[-1]} is not closed: a ']' is missing at the end")
    if not arguments[0]:
        raise ValueError("empty expression: expected a digit or an operator")
    plain = [token for token in tokens if token not in PARENTHESES]
    if len(plain) < len(tokens) and tokens != (expected := parenthesized(plain)):
        pairs = itertools.zip_longest(tokens, expected, fillvalue="the end")
        position, (found, right) = next((i, pair) for i, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
        raise ValueError(f"token {position} is {found!r} where the parentheses of its pairs want {right!r}")
    return arguments[0][0]


def parenthesized(plain: Iterable[str]) -> list[str]:
    """The tokens of an expression with the parentheses of its pairs.

    Example:
        >>> " ".join(parenthesized("[MAX 2 9 ]".split()))
        '( ( ( [MAX 2 ) 9 ) ] )'
    """
    backwards: list[str] = []
    counts: list[int] = []  # arguments of each node that is open when read from the end
    for token in reversed(list(plain)):
        if token in OPERATORS:
            backwards += [token, *"(" * (counts.pop() + 1)]
            continue
        if counts:
            counts[-1] += 1
            backwards.append(")")
        if token == "]":
            counts.append(0)
            backwards.append(")")
        backwards.append(token)
    return backwards[::-1]


@dataclass(frozen=True)
class ListOpsLimits:
    """What expressions are kept; the defaults are those of the Long Range Arena.

    Args:
        min_length: Kept expressions have more tokens than this, parentheses not counted.
        max_length: Kept expressions have fewer.
        max_depth: Nodes on the longest way from the root to a digit, the digit included.
        max_args: Arguments of an operator, which has at least two.

    Raises:
        ValueError: No expression keeps to these.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self) -> None:
        if self.min_length < 0 or self.max_length < self.min_length + 2:
            raise ValueError(
                f"no length is above min_length = {self.min_length} and below max_length = {self.max_length}"
            )
        if self.max_depth < 1 or self.max_args < 2:
            raise ValueError(
                f"max_depth must be 1 or more and max_args 2 or more, got {self.max_depth} and {self.max_args}"
            )


def random_expression(random: Random, limits: ListOpsLimits) -> list[str] | None:
    """Draw the tokens of an expression in plain spelling; None for one that grows too long.

    Above the greatest depth a node is an operator with probability 1/4, and a digit otherwise.
    """
    draw = random.random  # its sequence for a seed is the same in every version of Python
    operators, num_argument_counts = tuple(OPERATORS), limits.max_args - 1
    tokens: list[str] = []
    missing: list[int] = []  # arguments that each open operator still waits for
    while len(tokens) < limits.max_length:
        if len(missing) + 1 < limits.max_depth and draw() <= OPERATOR_PROBABILITY:
            missing.append(2 + int(draw() * num_argument_counts))
            tokens.append(operators[int(draw() * len(operators))])
            continue
        tokens.append(DIGITS[int(draw() * 10)])
        while missing:
            missing[-1] -= 1
            if missing[-1]:
                break
            missing.pop()
            tokens.append("]")
        if not missing:
            return tokens
    return None


def generate_listops(
    output: str | Path,
    *,
    train: int = 96_000,
    valid: int = 2_000,
    test: int = 2_000,
    limits: ListOpsLimits | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write distinct random expressions as the release has them: basic_train.tsv, basic_val.tsv, basic_test.tsv.

    The files depend on the sizes, the limits and the seed alone. `generated.json` beside them says what they are of.

    Args:
        output: Folder to write; made where it is missing.
        train: Expressions for training.
        valid: Expressions for validation.
        test: Expressions for the test.
        limits: Which expressions are kept.
        seed: Where the choices come from.
        num_workers: Number of processes; None: one for each core.
        progress: Show a progress bar.

    Returns:
        The files.

    Raises:
        DataError: The folder holds such files already, or there are too few distinct expressions within the limits.
        ValueError: A size is negative, or all are zero.
    """
    limits = limits or ListOpsLimits()
    counts = {"train": train, "valid": valid, "test": test}
    if min(counts.values()) < 0 or not sum(counts.values()):
        raise ValueError(f"sizes must be 0 or more and not all 0, got train {train}, valid {valid}, test {test}")
    output = Path(output)
    if there := [name for name in FILES.values() if (output / name).exists()]:
        raise DataError(f"{output}: already holds {', '.join(there)}; give another folder, or remove them")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".") as folder:
        temporary = Path(folder)
        with (temporary / "lines").open("w+b") as lines:
            starts = _write_distinct(lines, sum(counts.values()), limits, seed, num_workers, progress)
            random = Random(f"listops {seed} order")
            order = iter(sorted(starts, key=lambda _: random.random()))
            for split, name in FILES.items():
                _write_table(temporary / name, lines, itertools.islice(order, counts[split]))
        description = {"task": "listops", "seed": seed, **counts, **asdict(limits)}
        (temporary / "generated.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name in [*FILES.values(), "generated.json"]:
            os.replace(temporary / name, output / name)
    return [output / name for name in FILES.values()]


def _write_distinct(
    file: IO[bytes], count: int, limits: ListOpsLimits, seed: int, num_workers: int | None, progress: bool
) -> list[int]:
    """Write `count` distinct lines, in the order in which they are drawn.

    Returns:
        Where each begins.
    """
    from tqdm import tqdm

    seen: set[bytes] = set()
    starts: list[int] = []
    fruitless = 0
    with tqdm(total=count, unit=" expressions", desc="draw ListOps", disable=not progress) as bar:
        for block in map_in_order(partial(_draw_block, limits, seed), itertools.count(), num_workers):
            before = len(starts)
            for line in block:
                digest = hashlib.blake2b(line, digest_size=16).digest()
                if digest not in seen and len(starts) < count:
                    seen.add(digest)
                    starts.append(file.tell())
                    file.write(line)
            bar.update(len(starts) - before)
            if len(starts) == count:
                return starts
            fruitless = fruitless + 1 if len(starts) == before else 0
            if fruitless == MAX_FRUITLESS_BLOCKS:
                raise DataError(
                    f"{fruitless * BLOCK:,} draws brought no new expression: {len(starts)} of {count} have been found "
                    f"within {limits}; ask for fewer, or widen the limits"
                )
    raise AssertionError("the blocks are endless")


def _draw_block(limits: ListOpsLimits, seed: int, block: int) -> list[bytes]:
    """The lines of the expressions that are kept of one block of draws."""
    random = Random(f"listops {seed} {block}")
    drawn: Iterator[list[str] | None] = (random_expression(random, limits) for _ in range(BLOCK))
    kept = [tokens for tokens in drawn if tokens and limits.min_length < len(tokens) < limits.max_length]
    return [
        f"{' '.join(parenthesized(tokens))}\t{evaluate_listops(' '.join(tokens))}\r\n".encode("ascii")
        for tokens in kept
    ]


def _write_table(path: Path, lines: IO[bytes], starts: Iterable[int]) -> None:
    with path.open("wb") as file:
        file.write(f"{HEADER}\r\n".encode("ascii"))
        for start in starts:
            lines.seek(start)
            file.write(lines.readline())
