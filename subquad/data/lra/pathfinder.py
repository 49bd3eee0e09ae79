"""Pathfinder (Linsley et al., 2018, arXiv 1805.08315) as the Long Range Arena has it: are two discs on one path?

Coordinates are (row, column). A path is a chain of segments of length ℓ. Between the end of one and the start of the
next lies a gap of twice the margin m, and its middle is the *pivot* around which the next segment may turn.
"""

import functools
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subquad.data.errors import DataError
from subquad.data.lra.parallel import map_in_order
from subquad.data.lra.readers import DIFFICULTIES, check_pathfinder
from subquad.data.pillow import pillow

ANTIALIAS = 2  # lines are drawn so many times larger, and reduced
COLLISION = 1.8  # a segment whose mask and the occupied places add up to this does not fit
SEGMENT_ATTEMPTS = 3
SEED_ATTEMPTS = 3
DISTRACTOR_ATTEMPTS = 5
MAX_ATTEMPTS = 10_000
IMAGES_PER_FILE = 1000
IMAGES_PER_CALL = 20

Point = tuple[int, int]


@dataclass(frozen=True)
class PathfinderParameters:
    """What images of a resolution and a difficulty look like; lengths are pixels, or segments for paths.

    Args:
        resolution: Height and width.
        padding: Width of the border that stays free.
        segment_length: ℓ.
        thickness: Of a segment; a multiple of ½.
        margins: One of these is the margin m of an image.
        seed_distance: Between the beginnings of the two long paths.
        marker_radius: Of the two discs.
        continuity: The larger, the straighter the paths.
        num_distractors: Number of short paths.
        snake_contrast: Brightness of short paths.
        segment_contrast: Brightness of long paths, in units of `snake_contrast`.
        target_length: Of the two long paths.
        distractor_length: Of the short paths.
    """

    resolution: int
    padding: int
    segment_length: int
    thickness: float
    margins: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    continuity: float
    num_distractors: int
    snake_contrast: float
    segment_contrast: float
    target_length: int = 14
    distractor_length: int = 4


_HARD = {
    32: PathfinderParameters(32, 1, 2, 0.5, (1,), 7, 1.5, 1.0, 5, 2.0, 0.75),
    64: PathfinderParameters(64, 1, 5, 1.0, (1,), 12, 2.5, 1.8, 5, 0.8, 1.0),
    128: PathfinderParameters(128, 1, 5, 1.5, (2, 3), 20, 3.0, 1.8, 8, 0.9, 1.0),
    256: PathfinderParameters(256, 22, 5, 2.0, (3,), 27, 5.0, 1.8, 7, 1.0, 1.0),
}
_LENGTHS = {"easy": (6, 2), "intermediate": (9, 3), "hard": (14, 4)}


def pathfinder_parameters(resolution: int, difficulty: str = "hard") -> PathfinderParameters:
    """The parameters of the Long Range Arena.

    Raises:
        ValueError: There is no such resolution or difficulty.
    """
    check_pathfinder(resolution, difficulty)
    target, distractor = _LENGTHS[difficulty]
    return replace(_HARD[resolution], target_length=target, distractor_length=distractor)


class PathfinderImage(NamedTuple):
    """An image and how it came about.

    Args:
        pixels: (resolution, resolution) uint8.
        label: 1 if the discs are on one path.
        margin: m.
        markers: Where the discs are.
        tips: Both ends of the two long paths.
        num_distractors: Short paths that found a place.
        attempts: How often the drawing was begun.
    """

    pixels: np.ndarray
    label: int
    margin: int
    markers: tuple[Point, Point]
    tips: list[tuple[Point, Point]]
    num_distractors: int
    attempts: int


def draw_pathfinder(
    parameters: PathfinderParameters, rng: np.random.Generator, max_attempts: int = MAX_ATTEMPTS
) -> PathfinderImage:
    """Draw an image: two long paths, short ones that distract, and two discs.

    Label and margin are drawn once, so attempts that fail leave their distribution as it is.

    Args:
        parameters: What it looks like.
        rng: Where the choices come from.
        max_attempts: How often the long paths may be begun.

    Raises:
        DataError: The long paths did not fit in any attempt.
    """
    label, first = int(rng.integers(2)), int(rng.integers(2))
    margin = int(rng.choice(parameters.margins))
    for attempts in range(1, max_attempts + 1):
        drawing = _Drawing(parameters, margin, rng)
        if (targets := drawing.target_paths()) is not None:
            return _finished(drawing, targets, label, first, attempts)
    raise DataError(
        f"no image of Pathfinder in {max_attempts} attempts: two paths of {parameters.target_length} segments never fit"
    )


def _finished(drawing: "_Drawing", targets: list["_Snake"], label: int, first: int, attempts: int) -> PathfinderImage:
    """The image of two long paths, with the rest of it; one disc is on path `first`."""
    parameters = drawing.parameters
    contrast = parameters.snake_contrast
    image = drawing.lines(targets) * (contrast * parameters.segment_contrast)
    distractors = drawing.distractors()
    image = np.maximum(image, drawing.lines(distractors) * contrast)
    markers = targets[first].tail, targets[first if label else 1 - first].head
    rows, columns = np.indices(image.shape)
    for row, column in markers:
        disc = (rows - row) ** 2 + (columns - column) ** 2 <= parameters.marker_radius**2
        image[disc] = np.maximum(image[disc], 1.0)
    pixels = np.rint((image - image.min()) / (image.max() - image.min()) * 255).astype(np.uint8)
    tips = [(snake.tail, snake.head) for snake in targets]
    return PathfinderImage(pixels, label, drawing.margin, markers, tips, len(distractors), attempts)


@dataclass
class _Snake:
    """A path as far as it has grown: its first tip, its last pivot, head and direction, and its segments."""

    tail: Point
    pivot: Point
    head: Point
    angle: float
    segments: list["_Segment"]


class _Segment(NamedTuple):
    """A segment as it is drawn: from where, and its patch of lines and of places that it occupies, around there."""

    start: Point
    line: np.ndarray
    mask: np.ndarray


class _Drawing:
    """One attempt at an image.

    Args:
        parameters: What it looks like.
        margin: m.
        rng: Where the choices come from.
    """

    def __init__(self, parameters: PathfinderParameters, margin: int, rng: np.random.Generator) -> None:
        self.parameters, self.margin, self.rng = parameters, margin, rng
        size, padding = parameters.resolution, parameters.padding
        # Around the window lies a border, free and never drawn, so that no patch has to be cut.
        self.border = _patch_radius(parameters.segment_length, parameters.thickness, margin)
        self.occupied = np.pad(np.zeros([size - 2 * padding] * 2), padding, constant_values=1.0)
        self.occupied = np.pad(self.occupied, self.border)

    def target_paths(self) -> list[_Snake] | None:
        """The two long paths, or None if they do not fit."""
        distance = self.parameters.seed_distance
        snakes = [self._seed(partial(self._free_place, 2 * distance))]
        if snakes[0] is not None:
            row, column = snakes[0].tail

            def beside() -> Point:
                angle = self._whole_degree()
                return round(row + distance * math.sin(angle)), round(column + distance * math.cos(angle))

            snakes.append(self._seed(beside))
        grown = [snake for snake in snakes if snake is not None]
        if len(grown) < 2:
            return None
        for _ in range(self.parameters.target_length - 1):
            if not all(self._grow(snake) for snake in grown):
                return None
        # The last segments have not been held against each other. Where they meet, one disc would be on both paths.
        ends = np.zeros_like(self.occupied)
        for snake in grown:
            ends[self._patch(snake.segments[-1].start)] += snake.segments[-1].mask
            self._occupy(snake.segments[-1])
        return grown if ends.max() < COLLISION else None

    def distractors(self) -> list[_Snake]:
        """Short paths; those that do not fit are left out."""
        found = []
        for _ in range(self.parameters.num_distractors):
            before = self.occupied.copy()
            for _ in range(DISTRACTOR_ATTEMPTS):
                snake = self._seed(partial(self._free_place, 0))
                if snake is not None and all(self._grow(snake) for _ in range(self.parameters.distractor_length - 1)):
                    self._occupy(snake.segments[-1])
                    found.append(snake)
                    break
                self.occupied = before.copy()
        return found

    def lines(self, snakes: list[_Snake]) -> np.ndarray:
        """The segments of paths, `(resolution, resolution)` from 0 to 1."""
        canvas = np.zeros_like(self.occupied)
        for snake in snakes:
            for segment in snake.segments:
                patch = canvas[self._patch(segment.start)]
                np.maximum(patch, segment.line, out=patch)
        inside = slice(self.border, -self.border)
        return canvas[inside, inside]

    def _seed(self, place: Callable[[], Point | None]) -> _Snake | None:
        """A path of one segment that begins where `place` says; None if none of a few fits."""
        length = self.parameters.segment_length
        for _ in range(SEED_ATTEMPTS):
            if (tail := place()) is None:
                return None
            angle = self._whole_degree()
            head = _translate(tail, angle, length)
            pivot = _translate(head, angle + math.pi, length + self.margin)
            if all(0 <= coordinate < self.parameters.resolution for coordinate in (*head, *pivot)):
                segment = self._segment(head, angle + math.pi)
                if self._fits(segment):
                    return _Snake(tail, pivot, head, angle, [segment])
        return None

    def _grow(self, snake: _Snake) -> bool:
        """Add a segment to a path, if one fits."""
        p = self.parameters
        pivot = _translate(snake.pivot, snake.angle, p.segment_length + 2 * self.margin)
        offsets, angles = _circle(p.segment_length + self.margin)
        heads = offsets + pivot
        inside = ((heads >= 0) & (heads < p.resolution)).all(1)
        heads, angles = heads[inside], angles[inside]
        turn = np.abs(angles - snake.angle % math.tau)
        turn = np.minimum(turn, math.tau - turn)
        straightness = np.cos(np.minimum(p.continuity * turn, math.pi / 2)) ** 2
        cumulative = np.cumsum(straightness * (1 - self._occupied_around(heads)))
        if not len(heads) or cumulative[-1] < 1e-9:
            return False
        for _ in range(SEGMENT_ATTEMPTS):
            choice = int(np.searchsorted(cumulative, self.rng.random() * cumulative[-1], side="right"))
            head, angle = (int(heads[choice, 0]), int(heads[choice, 1])), float(angles[choice])
            segment = self._segment(head, angle + math.pi)
            if self._fits(segment):
                # The segment before is in nobody's way until now: its successor begins right beside it.
                self._occupy(snake.segments[-1])
                snake.pivot, snake.head, snake.angle = pivot, head, angle
                snake.segments.append(segment)
                return True
        return False

    def _segment(self, start: Point, angle: float) -> _Segment:
        p = self.parameters
        return _Segment(start, *_draw_segment(angle, p.segment_length, p.thickness, self.margin))

    def _patch(self, center: Point) -> tuple[slice, slice]:
        size = 2 * self.border + 1
        return slice(center[0], center[0] + size), slice(center[1], center[1] + size)

    def _fits(self, segment: _Segment) -> bool:
        return float((self.occupied[self._patch(segment.start)] + segment.mask).max()) < COLLISION

    def _occupy(self, segment: _Segment) -> None:
        patch = self.occupied[self._patch(segment.start)]
        np.maximum(patch, segment.mask, out=patch)

    def _occupied_around(self, points: np.ndarray) -> np.ndarray:
        """The largest occupation within the margin of each of `points` (num_points, 2)."""
        near = points[:, None] + _disc(self.margin) + self.border
        return self.occupied[near[..., 0], near[..., 1]].max(1)

    def _free_place(self, distance: int) -> Point | None:
        """A place that is free within the margin, at least `distance` from every edge; None if there is none."""
        places = np.arange(distance, self.parameters.resolution - distance)
        points = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)
        free = points[self._occupied_around(points) == 0]
        if not len(free):
            return None
        row, column = free[self.rng.integers(len(free))]
        return int(row), int(column)

    def _whole_degree(self) -> float:
        return math.radians(int(self.rng.integers(360)))


def _translate(point: Point, angle: float, distance: float) -> Point:
    return math.ceil(point[0] + distance * math.sin(angle)), math.ceil(point[1] + distance * math.cos(angle))


def _patch_radius(length: int, thickness: float, margin: int) -> int:
    return length + math.ceil(thickness) + margin


@functools.cache
def _disc(radius: int) -> np.ndarray:
    """The points within `radius` of the origin, `(num_points, 2)`."""
    points = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    return points[(points**2).sum(1) <= radius**2]


@functools.cache
def _circle(radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on a circle around the origin, one for each pixel of its length, and their directions from 0 to 2π."""
    angles = np.linspace(0, math.tau, int(math.tau * radius), endpoint=False)
    points = np.unique(np.floor(radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)).astype(int), axis=0)
    return points, np.arctan2(points[:, 0], points[:, 1]) % math.tau


@functools.lru_cache(maxsize=4096)
def _draw_segment(angle: float, length: int, thickness: float, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """A segment from the middle of a patch, and the places within the margin of it: both from 0 to 1."""
    from PIL import ImageDraw

    image_module = pillow()
    radius = _patch_radius(length, thickness, margin)
    center, size = ANTIALIAS * radius, 2 * radius + 1
    large = image_module.new("L", [2 * center + 1] * 2)
    end = center + ANTIALIAS * length * math.cos(angle), center + ANTIALIAS * length * math.sin(angle)
    ImageDraw.Draw(large).line([(center, center), end], fill=255, width=round(thickness * ANTIALIAS))
    points = np.argwhere(np.asarray(large))[:, None] + _disc(ANTIALIAS * margin)
    occupied = np.zeros_like(np.asarray(large))
    rows, columns = points.reshape(-1, 2).clip(0, 2 * center).T
    occupied[rows, columns] = 255

    def reduced(image) -> np.ndarray:
        return np.asarray(image.resize((size, size), image_module.Resampling.LANCZOS)) / 255

    return reduced(large), reduced(image_module.fromarray(occupied))


# Files


class PathfinderFiles(NamedTuple):
    """What was written.

    Args:
        folder: The folder of the difficulty.
        attempts: How often drawings were begun, over all images.
        most_attempts: The same for the image with the most.
    """

    folder: Path
    attempts: int
    most_attempts: int


def generate_pathfinder(
    output: str | Path,
    resolution: int,
    count: int,
    *,
    difficulty: str = "hard",
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> PathfinderFiles:
    """Write images as the release has them: OUTPUT/pathfinderRESOLUTION/DIFFICULTY/{metadata,imgs}.

    An image depends on the seed and its number alone.

    Args:
        output: Folder of the data.
        resolution: 32, 64, 128 (Path-X) or 256.
        count: Number of images.
        difficulty: easy, intermediate or hard; the Long Range Arena's is hard.
        seed: Where the choices come from.
        num_workers: Number of processes; None: one for each core.
        progress: Show a progress bar.

    Raises:
        DataError: The folder is there already, or an image failed too often.
        ImportError: Pillow is not installed.
        ValueError: There is no such resolution or difficulty, or no image is asked for.
    """
    from tqdm import tqdm

    check_pathfinder(resolution, difficulty)
    pillow()
    if count < 1:
        raise ValueError(f"the number of images must be 1 or more, got {count}")
    folder = Path(output) / f"pathfinder{resolution}" / DIFFICULTIES[difficulty]
    if folder.exists():
        raise DataError(f"{folder}: is there already; give another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    attempts = most_attempts = 0
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary,
        tqdm(total=count, unit=" images", desc=f"draw Pathfinder {resolution}", disable=not progress) as bar,
    ):
        made = Path(temporary) / folder.name
        (made / "metadata").mkdir(parents=True)
        for file in range(math.ceil(count / IMAGES_PER_FILE)):
            (made / "imgs" / str(file)).mkdir(parents=True)
        calls = [range(start, min(start + IMAGES_PER_CALL, count)) for start in range(0, count, IMAGES_PER_CALL)]
        write = partial(_write_images, made, resolution, difficulty, seed)
        for indices, written in zip(calls, map_in_order(write, calls, num_workers), strict=True):
            with (made / "metadata" / f"{indices[0] // IMAGES_PER_FILE}.npy").open("a", encoding="ascii") as file:
                file.writelines(f"{line}\n" for line, _ in written)
            numbers = [number for _, number in written]
            attempts, most_attempts = attempts + sum(numbers), max(most_attempts, *numbers)
            bar.update(len(written))
        os.rename(made, folder)
    return PathfinderFiles(folder, attempts, most_attempts)


def _write_images(folder: Path, resolution: int, difficulty: str, seed: int, indices: range) -> list[tuple[str, int]]:
    """Draw and write images.

    Returns:
        For each its line of the metadata, and how many attempts it took.
    """
    parameters, written = pathfinder_parameters(resolution, difficulty), []
    for index in indices:
        image = draw_pathfinder(parameters, np.random.default_rng((seed, resolution, parameters.target_length, index)))
        file, place = divmod(index, IMAGES_PER_FILE)
        pillow().fromarray(image.pixels).save(folder / "imgs" / str(file) / f"sample_{place}.png")
        fields = (
            f"imgs/{file}",
            f"sample_{place}.png",
            place,
            image.label,
            parameters.continuity,
            parameters.target_length,
            parameters.distractor_length,
            parameters.segment_length,
            parameters.thickness,
            image.margin,
            1,
        )
        written.append((" ".join(map(str, fields)), image.attempts))
    return written
