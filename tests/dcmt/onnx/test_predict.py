"""dcmt predict with an exported file: the grades of the run, without torch, and refusals."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from knee.engine.run import RunFolder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def exported(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher of the tiny run."""
    path = tmp_path_factory.mktemp("exported") / "knee.onnx"
    assert main(["export", str(trained_run.path), "--out", str(path)]) == 0
    return path


@pytest.fixture
def images(phantom: Path, tmp_path: Path) -> Path:
    """Four images of the phantom, one of them cut to a portrait, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((phantom.parent / "images").glob("*.png"))[:4]:
        shutil.copyfile(path, folder / path.name)
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(folder / "portrait.png"), image[:, 8:-9])
    (folder / "=damaged.png").write_bytes(b"no image")
    return folder


def test_grades_are_those_of_the_run_and_torch_is_not_imported(
    exported: Path, images: Path, trained_run: RunFolder, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    program = (
        "import sys\nfrom dcmt.cli import main\n"
        f"assert main(['predict', {str(exported)!r}, {str(images)!r}, '--out', {str(tmp_path / 'by')!r}]) == 0\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 6 files could not be graded" in done.stdout
    run = str(trained_run.path)
    assert main(["predict", run, str(images), "--out", str(tmp_path / "run"), "--no-overlays", "--device", "cpu"]) == 0
    found, wanted = (pd.read_csv(tmp_path / name / "predictions.csv", keep_default_na=False) for name in ("by", "run"))
    assert len(found) == 5
    for name in found.columns:
        if name.startswith("p_") or name == "familiarity":
            one, other = (pd.to_numeric(table[name]).to_numpy() for table in (found, wanted))
            np.testing.assert_allclose(one, other, atol=1e-5, equal_nan=True)
        else:
            assert found[name].tolist() == wanted[name].tolist(), name
    rejected = [(tmp_path / name / "rejected.csv").read_text() for name in ("by", "run")]
    assert rejected[0] == rejected[1]
    assert "'=damaged.png" in rejected[0] or "=damaged" in rejected[0]


def test_the_script_of_the_docs_gives_the_same(
    exported: Path, images: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "dcmt." not in script and "import dcmt" not in script and len(script.splitlines()) <= 24
    assert main(["predict", str(exported), str(images), "--out", str(tmp_path / "out"), "--grade-anyway"]) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("image")
    for name in ("portrait.png", table.index[0]):
        done = subprocess.run(
            [sys.executable, "-c", script, str(exported), str(images / name)],
            env=command_environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        shown = [float(line.rsplit(": ", 1)[1]) for line in done.stdout.splitlines()[:3]]
        np.testing.assert_allclose(shown, table.loc[name, ["p_0", "p_1", "p_2"]].astype(float), atol=1e-4)
        assert "not a medical device" in done.stdout


def test_what_is_no_file_of_export_is_refused(
    exported: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    other = onnx.load(str(exported))
    del other.metadata_props[:]
    onnx.save(other, str(tmp_path / "other.onnx"))
    (tmp_path / "text.onnx").write_text("no model")
    shutil.copyfile(exported, tmp_path / "spoiled.onnx")
    spoiled = onnx.load(str(exported))
    spoiled.metadata_props[0].value = spoiled.metadata_props[0].value.replace('"image_size": 48', '"image_size": 1e9')
    onnx.save(spoiled, str(tmp_path / "spoiled.onnx"))
    for name, told in {
        "none.onnx": "is not a file of dcmt export",
        "text.onnx": "not a model that ONNX Runtime can run",
        "other.onnx": "was not written by dcmt export",
        "spoiled.onnx": "its metadata are not valid",
    }.items():
        assert main(["predict", str(tmp_path / name), str(images), "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err
    assert main(["predict", str(exported), str(images), "--out", str(tmp_path / "out"), "--student"]) == 2
    assert "holds one network" in capsys.readouterr().err
    assert main(["predict", str(exported), str(images), "--out", str(images)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
