"""The studies of images with reports: the table's means and paired differences, and which trainings they start."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import image_text
from experiments.image_text import ARMS, COMMON, DIFFERENCES, VALIDATION, _draws_page, ablation, resplit, shuffled_page


def test_the_table_has_every_arm_and_paired_differences() -> None:
    grades, patients = np.arange(20) % 5, [f"P{number // 2}" for number in range(20)]
    right = np.eye(5)[grades]
    wrong = np.eye(5)[(grades + 1) % 5]
    found = {arm: [right, right] for arm in ARMS} | {"labels only": [right, wrong]}
    page = _draws_page(
        found, grades, patients, argparse.Namespace(patients=30, size=64, draws=2, steps=9, pair_steps=7)
    )
    lines = page.splitlines()
    assert any(
        line.startswith("| mean teacher | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 1.000, 1.000 |")
        for line in lines
    )
    same = next(line for line in lines if line.startswith(f"| {DIFFERENCES[1][0]} − {DIFFERENCES[1][1]} |"))
    assert "0.000 [0.000, 0.000]" in same
    gain = next(line for line in lines if line.startswith(f"| {DIFFERENCES[0][0]} − {DIFFERENCES[0][1]} |"))
    assert "| 0.500 [0.500, 0.500] |" in gain  # accuracy: half of the draws were all wrong


def test_the_ablation_has_a_row_for_every_encoder_head_and_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def dcmt(arguments: list[str]) -> int:
        called.append(arguments)
        if arguments[0] == "train":
            (tmp_path / next(a for a in arguments if a.startswith("--name="))[7:]).mkdir()
        if arguments[0] == "retrieve":
            exact = {f"recall_at_{k}": k / 20 for k in (1, 5, 10)} | {"median_rank": 7.0}
            one = {"exact": exact | {"chance": exact}}
            document = {"gallery": 20, "image_to_report": one, "report_to_image": one}
            (Path(arguments[1]) / "retrieval_test.json").write_text(json.dumps(document))
        return 0

    monkeypatch.setattr(image_text, "dcmt", dcmt)
    page = ablation(argparse.Namespace(work=tmp_path, patients=30, size=64, steps=9, more=list(COMMON)))
    assert len([line for line in page.splitlines() if "linear |" in line]) == 12
    assert len([arguments for arguments in called if arguments[0] == "train"]) == 12
    assert "| chance | | | 5.0 | 25.0 | 50.0 | 10.5 |" in page


def test_the_first_patients_train_and_most_test(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    lines = [f"P{number:04},{side},test" for number in range(VALIDATION + 8) for side in "LR"]
    path.write_text("patient,side,split\n" + "\n".join(lines) + "\n")
    resplit(path, 5)
    found = [line.split(",")[2] for line in path.read_text().splitlines()[1:]]
    assert found == ["train"] * 10 + ["val"] * 2 * VALIDATION + ["test"] * 6


def test_shuffled_reports_must_be_at_chance() -> None:
    keys = ("recall_at_1", "recall_at_5", "recall_at_10")
    one = dict.fromkeys(keys, 0.1) | {
        "intervals": {key: [0.05, 0.2] for key in keys},
        "chance": dict.fromkeys(keys, 0.06),
    }
    found = {"gallery": 9, "patients": 5, **{name: {"exact": one} for name in ("image_to_report", "report_to_image")}}
    page = shuffled_page(found, argparse.Namespace(pair_steps=3, size=48))
    assert "| image to report | 10.0 [5.0, 20.0] | 10.0 [5.0, 20.0] | 10.0 [5.0, 20.0] |" in page
    for chance in (0.04, 0.21):
        found["report_to_image"] = {"exact": one | {"chance": one["chance"] | {"recall_at_10": chance}}}
        with pytest.raises(RuntimeError, match="not at chance: report_to_image recall_at_10"):
            shuffled_page(found, argparse.Namespace(pair_steps=3, size=48))
