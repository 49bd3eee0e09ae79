"""Generated Pathfinder images: what a label means, what images look like, and their files."""

import math

import lra_files
import numpy as np
import pytest
from typer.testing import CliRunner

from subquad import cli
from subquad.data import DataError
from subquad.data.lra import draw_pathfinder, generate_pathfinder, pathfinder_parameters, read_pathfinder

pytest.importorskip("PIL")


def draw(count, resolution=32, difficulty="hard"):
    parameters = pathfinder_parameters(resolution, difficulty)
    return [draw_pathfinder(parameters, np.random.default_rng((3, i))) for i in range(count)]


@pytest.fixture(scope="module")
def images():
    return draw(40)


def test_the_label_says_whether_the_discs_are_on_one_path(images):
    for image in images:
        paths = [set(path) & set(image.markers) for path in image.tips]
        assert sorted(map(len, paths)) == ([0, 2] if image.label else [1, 1])
        # One disc is at the origin of a path, the other at the end of one.
        origins, ends = zip(*image.tips, strict=True)
        assert image.markers[0] in origins
        assert image.markers[1] in ends


def test_labels_and_first_paths_are_balanced(images):
    # 40 fair coins: beyond these with a probability of 3e-5
    assert 7 <= sum(image.label for image in images) <= 33
    assert 7 <= sum(image.markers[0] == image.tips[0][0] for image in images) <= 33


@pytest.mark.parametrize(("resolution", "difficulty"), [(32, "hard"), (64, "easy"), (128, "easy"), (256, "easy")])
def test_images(resolution, difficulty):
    parameters = pathfinder_parameters(resolution, difficulty)
    for image in draw(3, resolution, difficulty):
        assert image.pixels.shape == (resolution, resolution)
        assert image.pixels.dtype == np.uint8
        assert (image.pixels.min(), image.pixels.max()) == (0, 255)
        assert image.margin in parameters.margins
        assert image.num_distractors <= parameters.num_distractors
        # Most is background, and both discs are there.
        assert (image.pixels < 32).mean() > 0.5
        brightness = round(255 / max(parameters.snake_contrast, 1))
        for row, column in image.markers:
            assert image.pixels[row, column] >= brightness - 1
        (row, column), (other_row, other_column) = (path[0] for path in image.tips)
        distance = math.hypot(row - other_row, column - other_column)
        assert abs(distance - parameters.seed_distance) < 1
        # Path by path: no longer than segments and gaps allow, and no end at another's beginning.
        step = parameters.segment_length + 2 * image.margin + 2
        for origin, end in image.tips:
            assert 0 < math.dist(origin, end) <= step * parameters.target_length


def test_parameters():
    assert [pathfinder_parameters(32, difficulty).target_length for difficulty in ("easy", "intermediate", "hard")] == [
        6,
        9,
        14,
    ]
    assert pathfinder_parameters(128).margins == (2, 3)
    with pytest.raises(ValueError, match="resolutions 32, 64, 128, 256, got 28"):
        pathfinder_parameters(28)
    with pytest.raises(ValueError, match="difficulties easy, intermediate, hard, got 'harder'"):
        pathfinder_parameters(32, "harder")


def test_paths_are_straighter_at_a_higher_continuity():
    def reach(continuity):
        parameters = pathfinder_parameters(64, "easy")
        parameters = type(parameters)(**{**vars(parameters), "continuity": continuity})
        drawn = [draw_pathfinder(parameters, np.random.default_rng(i)) for i in range(10)]
        return np.mean([math.dist(*path) for image in drawn for path in image.tips])

    assert reach(5.0) > reach(1.0) + 2


def test_a_limit_of_attempts():
    parameters = pathfinder_parameters(32)
    for i in range(20):
        image = draw_pathfinder(parameters, np.random.default_rng(i))
        if image.attempts > 1:
            with pytest.raises(
                DataError, match=f"in {image.attempts - 1} attempts: two paths of 14 segments never fit"
            ):
                draw_pathfinder(parameters, np.random.default_rng(i), image.attempts - 1)
            return
    raise AssertionError("every image needed one attempt")


def generate(folder, count=5, **options):
    return generate_pathfinder(
        folder, 32, count, **{"difficulty": "easy", "num_workers": 1, "progress": False, **options}
    )


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.data.lra.pathfinder.IMAGES_PER_FILE", 4)
    monkeypatch.setattr("subquad.data.lra.pathfinder.IMAGES_PER_CALL", 2)
    made = generate(tmp_path)
    assert made.folder == tmp_path / "pathfinder32" / "curv_baseline"
    assert list(content(made.folder)) == [
        *(f"imgs/0/sample_{j}.png" for j in range(4)),
        "imgs/1/sample_0.png",
        "metadata/0.npy",
        "metadata/1.npy",
    ]
    drawn = [
        draw_pathfinder(pathfinder_parameters(32, "easy"), np.random.default_rng((0, 32, 6, index)))
        for index in range(5)
    ]
    assert made.attempts == sum(image.attempts for image in drawn)
    assert made.most_attempts == max(image.attempts for image in drawn)
    lines = (made.folder / "metadata/0.npy").read_text().splitlines()
    assert lines[1] == f"imgs/0 sample_1.png 1 {drawn[1].label} 1.0 6 2 2 0.5 1 1"
    read = read_pathfinder(tmp_path, 32, "easy")
    assert read.labels.tolist() == [image.label for image in drawn]
    for index, image in enumerate(drawn):
        np.testing.assert_array_equal(read.pixels(index), image.pixels)


def test_an_image_depends_on_the_seed_and_its_number(tmp_path, monkeypatch):
    first = content(generate(tmp_path / "first").folder)
    monkeypatch.setattr("subquad.data.lra.pathfinder.IMAGES_PER_CALL", 3)
    longer = content(generate(tmp_path / "longer", count=7).folder)
    lra_files.work_in_threads(monkeypatch)
    shared_out = content(generate(tmp_path / "shared out", count=7, num_workers=3).folder)
    assert shared_out == longer
    images = [name for name in first if name.endswith(".png")]
    assert all(longer[name] == first[name] for name in images)
    assert longer["metadata/0.npy"].startswith(first["metadata/0.npy"])
    other = content(generate(tmp_path / "other", seed=1).folder)
    assert all(other[name] != first[name] for name in images)


def test_nothing_is_overwritten(tmp_path):
    generate(tmp_path, count=1)
    with pytest.raises(DataError, match=r"curv_baseline: is there already; give another folder, or remove it"):
        generate(tmp_path)
    with pytest.raises(ValueError, match="the number of images must be 1 or more, got 0"):
        generate(tmp_path / "none", count=0)


def test_command(tmp_path):
    call = ["data", "pathfinder", "--resolution", "32", "--output", str(tmp_path / "cli"), "--count", "2"]
    result = CliRunner().invoke(cli.app, [*call, "--difficulty", "easy", "--seed", "4", "--workers", "1"])
    assert result.exit_code == 0, result.output
    made = generate(tmp_path / "library", count=2, seed=4)
    assert content(tmp_path / "cli/pathfinder32/curv_baseline") == content(made.folder)
    assert f"{made.attempts / 2:,.1f} attempts for each image, {made.most_attempts:,} at most" in result.stdout
