"""The data of a study, made once for each seed and known by what they are made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.results.code import ROOT, code_hash
from experiments.results.machine import fast_precision
from knee.engine.options import read_config
from knee.errors import UserError
from knee.intake.folders import CHEN_AGAIN
from knee.intake.scan import image_files
from segmentation.config import SegmenterConfig

Run = Callable[[Sequence[str]], None]
"""Runs ``dcmt ARGUMENTS`` in a process of its own. Raises UserError where it fails."""
_UNET = ROOT / "configs" / "phantom_unet.yaml"


class Data(NamedTuple):
    """Where training finds its data."""

    manifest: Path
    split: Path


class DataPlan(Protocol):
    """What data a study needs."""

    def about(self, seed: int) -> dict[str, Any]:
        """What the data are, without a path: part of the hash of every run on them."""
        ...

    def make(self, seed: int, work: Path, run: Run, *, any_code: bool) -> Data:
        """The data, made below ``work`` unless they are there. Raises UserError."""
        ...


def _data_folder(work: Path, kind: str, about: dict[str, Any], code: tuple[str, ...], *, any_code: bool) -> Path:
    """Where data lie that are told by ``about`` and that this code made; that any code made, where there are some."""
    name = f"{kind}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]}"
    folder = work / "data" / f"{name}-{code_hash(code)[:8]}"
    if any_code:
        folder = next(iter(sorted((work / "data").glob(f"{name}-*/done"))), folder / "done").parent
    return folder


@dataclass(frozen=True)
class PhantomPlan:
    """A phantom a seed, with a split, and masks from a segmenter trained on its drawn ones."""

    patients: int = 290
    segmenter_steps: int = 0
    """Of the segmenter's training; 0: as its config says."""
    code: tuple[str, ...] = ("segmentation.train", "knee.phantom.write", "knee.data.strata")

    def about(self, seed: int) -> dict[str, Any]:
        """Size, seed and the segmenter's config."""
        return {"phantom": {"seed": seed, "patients": self.patients, "segmenter": _segmenter_values(self._segmenter())}}

    def _segmenter(self) -> tuple[str, ...]:
        steps = (f"--fit.steps={self.segmenter_steps}",) if self.segmenter_steps else ()
        return ("--config", str(_UNET), f"--fit.precision={fast_precision()}", *steps)

    def make(self, seed: int, work: Path, run: Run, *, any_code: bool) -> Data:
        """As `experiments/demo.sh`: phantom, split, segmenter, its masks."""
        folder = _data_folder(work, f"phantom-s{seed}", self.about(seed), self.code, any_code=any_code)
        data = Data(folder / "drawn" / "manifest_masks.csv", folder / "split.csv")
        if (folder / "done").exists():
            return data
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left half-made; the name is ours
        drawn = folder / "drawn" / "manifest.csv"
        run(("phantom", f"{drawn.parent}", f"--seed={seed}", f"--patients={self.patients}"))
        run(("split", f"{drawn}", "--grade-set=cartilage", f"--seed={seed}", f"--out={data.split}"))
        where = (f"--data.manifest={drawn}", f"--data.split={data.split}", f"--runs={folder}", "--name=unet")
        run(("segment", "train", *self._segmenter(), *where, f"--fit.seed={seed}", "--fit.threads=1"))
        run(("segment", "predict", f"{folder / 'unet'}", f"--out={drawn.parent / 'masks_unet'}"))
        (folder / "done").touch()
        return data


_FIRST_SEGMENTER: dict[str, dict[str, Any]] = {
    "data": {"image_size": 96, "labeled_per_batch": 16, "mask_dilation": 18.0, "percentiles": (0.5, 99.5)},
    "fit": {"accumulation": 1},
}
"""What the first results' segmenters had in common; their hashes leave it out."""


@cache
def _segmenter_values(arguments: tuple[str, ...]) -> dict[str, Any]:
    """What of the segmenter's config changes its masks; options of `_FIRST_SEGMENTER` only where they differ from it."""
    config = dataclasses.asdict(read_config(SegmenterConfig, arguments, program="dcmt segment train"))
    kept = {name: config[name] for name in ("views", "unet", "optimizer")}
    kept["fit"] = {"steps": config["fit"]["steps"]}
    for section, first in _FIRST_SEGMENTER.items():
        others = {name: config[section][name] for name, value in first.items() if config[section][name] != value}
        if others:
            kept[section] = {**kept.get(section, {}), **others}
    values: dict[str, Any] = json.loads(json.dumps(kept))
    return values


@dataclass(frozen=True)
class RadiographPlan:
    """The published radiographs; their split is kept, the seed draws which training patients are labeled."""

    folder: Path
    code: tuple[str, ...] = ("knee.intake.folders", "knee.data.strata")

    def about(self, seed: int) -> dict[str, Any]:
        """The files' names and sizes, hashed; without the test patients' second crops, which the manifest leaves out."""
        if not self.folder.is_dir():
            raise UserError(f"--radiographs {self.folder} is no folder; give the one with train/0 … test/4")
        digest = hashlib.sha256()
        for name in sorted(image_files(self.folder)):
            if name.startswith(CHEN_AGAIN):
                continue
            digest.update(f"{name} {(self.folder / name).stat().st_size}\n".encode())
        return {"radiographs": {"files_sha256": digest.hexdigest()[:16], "ranks_seed": seed}}

    def make(self, seed: int, work: Path, run: Run, *, any_code: bool) -> Data:
        """A manifest and a split for each seed; others where the radiographs were moved, since a manifest has their path."""
        place = {**self.about(seed), "folder": str(self.folder.resolve())}
        folder = _data_folder(work, f"radiographs-s{seed}", place, self.code, any_code=any_code)
        data = Data(folder / "manifest.csv", folder / "split.csv")
        if not (folder / "done").exists():
            run(("manifest", f"{self.folder.resolve()}", f"--out={data.manifest}", "--layout=chen", "--force"))
            run(("split", f"{data.manifest}", f"--seed={seed}", f"--out={data.split}", "--force"))
            (folder / "done").touch()
        return data
