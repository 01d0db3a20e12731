"""The benchmarks run, in a small form; their numbers are not looked at."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = [
    "--backbone",
    "resnet10t",
    "--stage",
    "2",
    "--stride",
    "8",
    "--size",
    "32",
    "--labeled",
    "4",
    "--unlabeled",
    "4",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("gpu", ["--small"], ["bare timm step", "bf16, loader, 8 workers"]),
        ("processes", [*SMALL, "--steps", "1", "--rounds", "1"], ["1 process", "2 processes", "in processor time"]),
        ("rows", ["--rows", "1000", "2000"], ["2,000 rows  sampler", "split of 2,000 rows", "largest memory"]),
        (
            "start",
            ["--backbone", "resnet10t", "--images", "12", "--size", "32", "--times", "0"],
            ["png: reading", "dicom: reading"],
        ),
        ("step", [*SMALL, "--steps", "1", "--rounds", "1", "--warm-up", "1", "--precision", "fp32"], ["overhead"]),
        (
            "pair_step",
            ["--rounds", "1", "--data.image_size", "32", "--data.labeled_per_batch", "4", "--text.length", "8"],
            ["for the encoders alone", "times,"],
        ),
        ("onnx_runtime", [*SMALL, "--rounds", "1", "--images", "1"], ["torch", "ONNX Runtime", "in int8"]),
    ],
)
def test_a_benchmark_runs(
    name: str,
    arguments: list[str],
    found: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if name == "onnx_runtime":
        pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert [part for part in found if part not in printed] == []
