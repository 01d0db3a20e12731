"""A study from a server is graded like a folder, and its objects are stored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.review.dicom.send import Sent
from tests.knee.review.conftest import _KINDS

URL = "https://pacs.example/dicom-web"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """A server of one radiograph, and what it was asked for and got."""
    seen: dict[str, list[Path]] = {"fetched": [], "stored": []}
    y, x = np.mgrid[0:60, 0:50]
    image = _KINDS["CR"]((800 + 9 * x + 7 * y).astype(np.uint16))
    image.save_as(tmp_path / "there.dcm", enforce_file_format=True)

    def fetch(url: str, study: str, folder: Path, *, timeout_s: float) -> list[Path]:
        if study != "1.2.3":
            raise UserError(f"{url}: has no study {study} (404); check its UID")
        seen["fetched"].append(Path(shutil.copy(tmp_path / "there.dcm", folder / "00000.dcm")))
        return seen["fetched"]

    def stored(given: Iterator[Path], url: str, *, timeout_s: float) -> Sent:
        assert (url, timeout_s) == (URL, 5)
        paths = list(given)
        seen["stored"] += paths
        return Sent(tuple(paths[1:]), ((paths[0], "it is larger than the server accepts (413)"),))

    monkeypatch.setattr("dcmt.commands.new_patients.web.fetch_study", fetch)
    monkeypatch.setattr("dcmt.commands.new_patients.web.store", stored)
    return seen


def test_a_study_is_graded_its_objects_stored_and_its_images_removed(
    trained_run: RunFolder, server: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = ["--from", URL, "--study", "1.2.3", "--to", URL, "--timeout", "5", "--format", "csv,dicom", "--grade-anyway"]
    assert main(["predict", str(trained_run.path), *told, "--out", str(out), "--device", "cpu"]) == 1
    assert len(pd.read_csv(out / "predictions.csv")) == 1
    assert sorted(server["stored"]) == sorted((out / "dicom").iterdir()) and len(server["stored"]) == 3
    assert not server["fetched"][0].exists(), "the patient's images do not stay behind"
    printed = capsys.readouterr().out
    assert f"2 of 3 objects were accepted by {URL}" in printed and "(413)" in printed
    assert main(["predict", str(trained_run.path), "--from", URL, "--study", "1.9", "--out", str(tmp_path / "no")]) == 2
    assert "has no study 1.9" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_sources_and_formats_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "knee.png"), np.zeros((9, 9), np.uint8))
    image, run, out = str(tmp_path / "knee.png"), str(tmp_path / "run"), ["--out", str(tmp_path / "out")]
    for more in ([], [image, "--from", URL, "--study", "1.2"], ["--from", URL], [image, "--study", "1.2"]):
        assert main(["predict", run, *more, *out]) == 2
        assert "either a path of images, or a study" in capsys.readouterr().err
    assert main(["predict", run, image, "--to", URL, *out]) == 2
    assert "--to sends DICOM objects; write them with --format csv,dicom" in capsys.readouterr().err
    assert main(["predict", run, image, "--to", "pacs:8042", "--format", "dicom", *out]) == 2
    assert "is not the address of a DICOMweb server" in capsys.readouterr().err, "before anything is graded"
