"""The Python door: load a run, grade files, and get maps on each file's own pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import dcmt
from dcmt.commands.predict import predict_command
from dcmt.commands.registry import make_parser
from dcmt.trained.loaded import LoadedRun
from knee.engine.run import RunFolder
from knee.errors import Faults, UserError


@pytest.fixture(scope="module")
def run(trained_run: RunFolder) -> LoadedRun:
    return dcmt.load(trained_run.path, device="cpu")


@pytest.fixture
def files(phantom: Path) -> list[Path]:
    return sorted((phantom.parent / "images").glob("*.png"))[:4]


def test_the_table_has_a_row_a_file_and_a_probability_a_grade(run: LoadedRun, files: list[Path]) -> None:
    table = run.predict(files)
    assert list(table) == ["image", "side", "grade", "name", "p_0", "p_1", "p_2", "familiarity", "reason"]
    assert table["image"].tolist() == [str(path) for path in files]
    probabilities = table[["p_0", "p_1", "p_2"]].to_numpy()
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert table["grade"].tolist() == probabilities.argmax(1).tolist()
    assert table["name"].tolist() == [run.grade_set.names[grade] for grade in table["grade"]]


def test_it_grades_as_the_command_does(run: LoadedRun, files: list[Path], tmp_path: Path) -> None:
    import pandas as pd

    from dcmt.commands import options  # noqa: F401  registers the commands

    arguments = ["predict", str(run.run.path), str(files[0]), "--out", str(tmp_path / "out"), "--no-overlays"]
    assert predict_command(make_parser().parse_args([*arguments, "--device", "cpu"])) == 0
    (row,) = pd.read_csv(tmp_path / "out" / "predictions.csv").to_dict("records")
    (own,) = run.predict(files[0]).to_dict("records")
    assert row["predicted"] == own["grade"]
    assert [row[f"p_{grade}"] for grade in range(3)] == pytest.approx([own[f"p_{grade}"] for grade in range(3)])


def test_attention_is_on_the_pixels_of_each_file(run: LoadedRun, files: list[Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    image = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)
    assert cv2.imwrite(str(wide), np.pad(image, ((0, 0), (0, 30))))
    table = run.predict([files[0], wide], attention=True, network="student")
    assert [one.shape for one in table["attention"]] == [image.shape, (image.shape[0], image.shape[1] + 30)]
    for one in table["attention"]:
        assert one.dtype == np.float32
        assert 0 <= one.min() <= one.max() <= 1


def test_what_cannot_be_graded_is_named(run: LoadedRun, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(Faults, match=r"2 of 3 images cannot be graded") as caught:
        run.predict([files[0], tmp_path / "bad.png", tmp_path / "missing.png"])
    assert "bad.png" in str(caught.value)
    assert "missing.png" in str(caught.value)
    with pytest.raises(UserError, match="the list of paths is empty"):
        run.predict([])
    with pytest.raises(UserError, match=r"has no third; it has student, teacher"):
        run.predict(files, network="third")


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        dcmt.load(tmp_path)


def test_importing_the_package_is_quick(command_environment: dict[str, str]) -> None:
    code = "import sys, dcmt; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], env=command_environment, check=False).returncode == 0
