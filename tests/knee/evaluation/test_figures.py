from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from knee.evaluation.figures import confusion_figure, figure_array, reliability_figure, roc_figure, save_figure

NAMES = ("none", "doubtful", "mild")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def labels(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


@pytest.fixture
def simulated() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(3), 90), rng.integers(0, 3, 90)


def test_confusion_shows_counts_and_shares_of_the_row() -> None:
    figure = confusion_figure({"teacher": [[6, 2, 0], [0, 0, 0], [0, 0, 1200]]}, NAMES)
    found = texts(figure)
    assert "6\n75%" in found and "2\n25%" in found and "1,200\n100%" in found
    assert found.count("–") == 3, "a grade without cases has no shares"
    assert figure.axes[0].get_title() == "teacher: 99.8% of 1,208 right"


def test_confusion_of_two_runs_side_by_side() -> None:
    matrix = np.eye(3, dtype=int)
    one, two = confusion_figure({"a": matrix}, NAMES), confusion_figure({"a": matrix, "b": 2 * matrix}, NAMES)
    titles = [axis.get_title() for axis in two.axes]
    assert titles[:2] == ["a: 100.0% of 3 right", "b: 100.0% of 6 right"]
    assert two.get_figwidth() > one.get_figwidth()


def test_roc_gives_each_grade_its_area_and_says_what_is_undefined() -> None:
    probabilities = np.array([[0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.4, 0.6, 0.0], [0.1, 0.9, 0.0]])
    found = labels(roc_figure(probabilities, [0, 0, 1, 1], NAMES))
    assert found == [
        "0 none: AUC 1.000 (2 cases)",
        "1 doubtful: AUC 1.000 (2 cases)",
        "2 mild: undefined, 0 of 4 cases",
    ]


def test_reliability_names_each_network_with_its_error(simulated: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, grades = simulated
    sure = np.eye(3)[probabilities.argmax(axis=1)]
    found = labels(reliability_figure({"student": probabilities, "teacher": sure}, grades))
    wrong = (sure.argmax(axis=1) != grades).mean()
    assert found[1].startswith("student (ECE") and found[2] == f"teacher (ECE {wrong:.3f})"


def test_pixels_and_files(simulated: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    before = pyplot.get_fignums()
    figure = roc_figure(*simulated, NAMES)
    pixels = figure_array(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and 500 < pixels.shape[1] < 900
    assert (pixels == 255).mean() > 0.5 and pixels.min() < 50
    save_figure(figure, tmp_path / "deep" / "roc.png")
    assert (tmp_path / "deep" / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == before, "no global state"


def test_refuses(simulated: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="3 grades need a square"):
        confusion_figure({"a": np.eye(2)}, NAMES)
    with pytest.raises(ValueError, match="3 grades but 2 names"):
        roc_figure(*simulated, NAMES[:2])
    with pytest.raises(ValueError, match="sum to 1"):
        reliability_figure({"a": np.ones((90, 3))}, simulated[1])


def test_dollar_signs_in_names_are_letters(simulated: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, grades = simulated
    names = ("cost $_$ x", "$^", "mild")
    confusion = confusion_figure({"runs/a$_$b": np.eye(3, dtype=int)}, names)
    for figure in (
        confusion,
        roc_figure(probabilities, grades, names),
        reliability_figure({"$_$": probabilities}, grades),
    ):
        assert figure_array(figure).std() > 0
