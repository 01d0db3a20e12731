"""``dcmt retrieve`` and ``dcmt embed``: files, refusals, and reports only where they were asked for."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dcmt.cli import main
from image_text.commands import load_towers
from knee.engine.run import RunFolder
from knee.errors import UserError
from tests.knee.nn.test_processes import in_processes


@pytest.fixture
def run(pair_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of the tiny run."""
    shutil.copytree(pair_run.path, tmp_path / "run")
    return tmp_path / "run"


def test_retrieval_of_a_split(run: Path, said: list[str]) -> None:
    arguments = ["retrieve", str(run), "--device", "cpu", "--covariate", "age", "--queries", "2"]
    assert main(arguments) == 0
    found = json.loads((run / "retrieval_test.json").read_text())
    ranks = pd.read_csv(run / "local" / "retrieval_test.csv")
    assert found["gallery"] == len(ranks) == found["distinct_reports"]
    assert ranks["case"].str.fullmatch("c[0-9a-f]{10}").all()
    one = found["image_to_report"]["exact"]
    assert one["recall_at_5"] == pytest.approx((ranks["image_to_report"] <= 5).mean())
    assert one["chance"]["recall_at_1"] == pytest.approx(1 / len(ranks))
    assert found["covariates_only"]["recall_at_1"] < 1
    assert len(one["intervals"]["recall_at_1"]) == 2
    assert (run / "figures" / "retrieval_test.png").stat().st_size > 1000
    assert not (run / "local" / "retrieval_test_reports.png").exists()
    assert any(line.startswith("bound of exact recall") for line in said)
    before = (run / "retrieval_test.json").read_bytes()
    assert main([*arguments, "--show-reports"]) == 0
    assert (run / "retrieval_test.json").read_bytes() == before
    assert (run / "local" / "retrieval_test_reports.png").stat().st_mode & 0o777 == 0o600


def test_training_pairs_are_refused_and_grades_are_no_covariates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrieve", str(run), "--split", "train", "--device", "cpu"]) == 2
    assert "add --trained-on" in capsys.readouterr().err
    assert main(["retrieve", str(run), "--covariate", "grade", "--device", "cpu"]) == 2
    assert "so it is no input" in capsys.readouterr().err


def test_a_grader_is_another_kind_of_run(trained_run: RunFolder) -> None:
    with pytest.raises(UserError, match="is a run of kind grader; this command needs an image-text run"):
        load_towers(trained_run.path, checkpoint="best", device="cpu")


def test_embeddings_of_a_folder(run: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.npz"
    images = films.parent / "images"
    assert main(["embed", str(run), str(images), "--out", str(out), "--device", "cpu"]) == 0
    with np.load(out) as found:
        assert len(found["image"]) == 32
        assert found["embedding"].shape == (32, 16)
        np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-5)
        assert found["features"].shape[0] == 32
        whole = found["embedding"]
    one = sorted(images.iterdir())[3]
    assert main(["embed", str(run), str(one), "--out", str(out), "--device", "cpu", "--force"]) == 0
    with np.load(out) as found:
        np.testing.assert_allclose(found["embedding"][0], whole[3], atol=1e-5)
    assert main(["embed", str(run), str(one), "--out", str(out), "--device", "cpu"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["embed", str(run), str(one), "--out", str(tmp_path / "e.csv"), "--device", "cpu"]) == 2
    assert "ends with .npz" in capsys.readouterr().err


def test_two_processes_embed_to_the_same_bytes(
    pair_run: RunFolder, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_text.commands._CHUNK", 5)
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.npz"
        arguments = ["embed", str(pair_run.path), str(films.parent / "images"), "--out", str(out), "--device", "cpu"]
        codes, printed = in_processes(partial(main, arguments), tmp_path, count=count)
        assert codes == [0] * count, printed
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_two_processes_train_a_pair_run(values: dict[str, Any], tmp_path: Path) -> None:
    """Retrieval is validated by both, and the first one's checkpoint opens."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**values, "runs": str(tmp_path), "name": "two"}))
    codes, printed = in_processes(partial(main, ["train", "--config", str(path)]), tmp_path)
    assert codes == [0, 0], printed
    assert load_towers(tmp_path / "two", checkpoint="last", device="cpu").checkpoint.step == 4
