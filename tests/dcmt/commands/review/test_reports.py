"""Readers' reports of a DICOMweb server: only the studies of the exported cases are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest

from dcmt.commands.review.reports import readers_reports
from knee.data.cases import load_salt
from knee.errors import UserError
from knee.review.dicom.identity import deidentified
from knee.review.key import KeyedCase
from knee.review.verdicts_file import Expected
from tests.knee.review.conftest import _KINDS

URL = "https://pacs.example/dicom-web"


@pytest.fixture
def exported(tmp_path):
    """A run's folder, config and key, of one radiograph."""
    image = _KINDS["CR"](np.zeros((20, 30), np.uint16))
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / "local").mkdir()
    run = SimpleNamespace(path=tmp_path / "run", local=tmp_path / "local")
    values = {"data": {"manifest": str(tmp_path / "manifest.csv")}, "attention": {"threshold": 0.4}}
    key = {"c0": KeyedCase("c0", "a.dcm", "P0", "unlabeled", 1, 1)}
    return run, values, key, Expected("run", "3f9ac2d17be04410", 5, {"c0"})


def test_a_server_is_asked_for_the_studies_of_the_cases_and_their_copies(exported, tmp_path, monkeypatch):
    run, values, key, expected = exported
    asked: list[str] = []
    fetched: list[Path] = []

    def fetch(url: str, studies: set[str], folder: Path, *, timeout_s: float) -> int:
        assert (url, timeout_s) == (URL, 5)
        asked.extend(studies)
        report = pydicom.dcmread(tmp_path / "a.dcm")
        report.Modality = "SR"
        report.save_as(folder / "report.dcm")
        fetched.append(folder / "report.dcm")
        return 1

    monkeypatch.setattr("dcmt.commands.review.reports.fetch_reports", fetch)
    with readers_reports(URL, run, values, key, expected, timeout_s=5) as (paths, read):
        assert paths == fetched and fetched[0].exists()
        faults: list[str] = []
        assert read(paths[0], expected, faults) == []
        assert any("refers to no image" in fault for fault in faults)
    assert not fetched[0].exists(), "the patients' reports do not stay behind"
    image = pydicom.dcmread(tmp_path / "a.dcm")
    salt = load_salt(Path(values["data"]["manifest"]), run.local)
    copy = deidentified(image, "c0", salt, patient="P0")
    assert sorted(asked) == sorted([image.StudyInstanceUID, copy.StudyInstanceUID])


def test_a_server_without_reports_and_cases_that_are_no_dicom_are_named(exported, monkeypatch):
    run, values, key, expected = exported
    monkeypatch.setattr("dcmt.commands.review.reports.fetch_reports", lambda *_, **__: 0)
    message = r"pacs\.example/dicom-web \(0 of the 2 studies .* are there\): contains no structured report"
    with pytest.raises(UserError, match=message), readers_reports(URL, run, values, key, expected, timeout_s=5):
        pass
    pictures = {"c0": replace(key["c0"], image="a.png")}
    with (
        pytest.raises(UserError, match="no exported case is a readable DICOM file"),
        readers_reports(URL, run, values, pictures, expected, timeout_s=5),
    ):
        pass
