"""A run that was exported for review, and readers who know the drawn truth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from dcmt.cli import main
from knee.review.key import read_key
from knee.review.verdicts_file import Verdict, verdicts_document

Values = dict[str, Any]


@dataclass(frozen=True)
class Reviewed:
    """A run whose manifest lacks the grades that it did not train with, and has one wrong label."""

    run: Path
    manifest: Path
    planted: str
    """The image whose label is wrong."""

    @property
    def truth(self) -> dict[str, int]:
        table = pd.read_csv(self.manifest.parent / "truth.csv")
        return dict(zip(table["image"], table["grade"].astype(int), strict=True))

    @property
    def model_hash(self) -> str:
        newest = max(self.run.glob("checkpoints/*/state.json"))
        best = self.run / "checkpoints" / "best.json"
        if best.exists():
            newest = self.run / "checkpoints" / f"step_{json.loads(best.read_text())['step']:08d}" / "state.json"
        return str(json.loads(newest.read_text())["sha256"]["teacher.safetensors"])[:16]

    def read(self, cases: Iterable[str], *, reviewer: str = "R1", run: str = "tiny") -> list[Verdict]:
        """What a reader who knows the drawn truth says of the cases."""
        key = read_key(self.run / "local" / "review_key.csv")
        grades = {case: self.truth[key[case].image] for case in cases}
        return [
            Verdict(case, reviewer, "2025-03-01T12:00:00Z", run, self.model_hash, grade, grade, "agree", "")
            for case, grade in grades.items()
        ]


@pytest.fixture(scope="module")
def prepared(trained_run, phantom, tmp_path_factory) -> Reviewed:
    """Exported once as a page and pictures, all unlabeled cases; not to be changed."""
    folder = tmp_path_factory.mktemp("reviewed")
    shutil.copytree(phantom.parent, folder / "data", ignore=shutil.ignore_patterns("cache"))
    run = Path(shutil.copytree(trained_run.path, folder / "tiny"))
    manifest, private = folder / "data" / "manifest.csv", run / "local" / "paths.yaml"
    paths = yaml.safe_load(private.read_text())
    paths |= {"data.manifest": str(manifest), "data.split": str(manifest.parent / "split.csv")}
    private.write_text(yaml.safe_dump(paths))
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    rank = pd.read_csv(manifest.parent / "split.csv").set_index("image")["rank"].loc[table["image"]].to_numpy()
    train = (table["split"] == "train").to_numpy()
    table.loc[train & (rank >= 0.6), "grade"] = ""
    labeled = table.index[train & (rank < 0.6)]
    common = table["grade"].loc[labeled].mode()[0]
    planted = labeled[(table["grade"].loc[labeled] == common).to_numpy()][0]
    table.loc[planted, "grade"] = str((int(common) + 1) % 3)
    table.to_csv(manifest, index=False)
    assert main(["review", "export", str(run), "--format", "html,png"]) == 0
    return Reviewed(run, manifest, str(table.loc[planted, "image"]))


@pytest.fixture
def reviewed(prepared, tmp_path) -> Reviewed:
    """A copy of the run to change; it keeps its name, which verdicts name."""
    return replace(prepared, run=Path(shutil.copytree(prepared.run, tmp_path / "tiny")))


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Writes one reader's verdicts as the page does, with changes to the document's head."""

    def write(verdicts: list[Verdict], **changes: object) -> Path:
        path = tmp_path / f"verdicts_{verdicts[0].reviewer}.json"
        path.write_text(json.dumps(verdicts_document(verdicts, grade_set="cartilage", grades=3) | changes))
        return path

    return write


def _page(folder: Path) -> str:
    return (folder / "review.html").read_text(encoding="utf-8")


def _cases(folder: Path) -> list[Values]:
    return [json.loads(text) for text in re.findall(r'class="case">(.*?)</script>', _page(folder))]


def _unlabeled(manifest: Path) -> int:
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    return int(((table["split"] == "train") & (table["grade"] == "")).sum())


def write_sanity(run: Path, content: bytes = b"the run's", *, step: int = 6) -> None:
    """What ``review sanity`` leaves, of the checkpoint of a step."""
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "sanity.png").write_bytes(content)
    (run / "sanity.json").write_text(json.dumps({"checkpoint_step": step}))
