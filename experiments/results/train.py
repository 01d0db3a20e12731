"""One run in a process of its own: its data, its training or resuming, and its result."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dcmt.cli import main as dcmt
from dcmt.trained.loaded import LoadedRun, load_data, load_run
from experiments.results.jobs import ROOT, Job, deciding, digest, fingerprint
from experiments.results.store import predict_test, write_result
from experiments.results.study import fast_precision
from knee.engine.options import read_config
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.intake.folders import CHEN_AGAIN
from knee.intake.scan import image_files
from segmentation.config import SegmenterConfig

_UNET = ROOT / "configs" / "phantom_unet.yaml"
_XRAY_UNET = ROOT / "configs" / "xray_unet.yaml"


class Data(NamedTuple):
    """Where training finds its data."""

    manifest: Path
    split: Path


@dataclass(frozen=True)
class PhantomPlan:
    """A phantom for each seed with a split, and masks from a segmenter trained on its drawn ones."""

    patients: int = 290
    segmenter_steps: int = 0
    """Of the segmenter's training; 0: as its config says."""
    manifest = "drawn/manifest_masks.csv"

    def about(self, seed: int) -> dict[str, Any]:
        """Seed, size and the segmenter's config."""
        config = read_config(SegmenterConfig, self._segmenter(), program="dcmt segment train")
        segmenter = deciding(SegmenterConfig, dataclasses.asdict(config))
        return {"phantom": {"seed": seed, "patients": self.patients, "segmenter": segmenter}}

    def _segmenter(self) -> tuple[str, ...]:
        steps = (f"--fit.steps={self.segmenter_steps}",) if self.segmenter_steps else ()
        return (f"--config={_UNET}", f"--fit.precision={fast_precision()}", *steps)

    def commands(self, seed: int, folder: Path) -> Iterator[Sequence[str]]:
        """As `experiments/demo.sh`: phantom, split, segmenter, its masks."""
        drawn, split = folder / "drawn" / "manifest.csv", folder / "split.csv"
        yield "phantom", f"{drawn.parent}", f"--seed={seed}", f"--patients={self.patients}"
        yield "split", f"{drawn}", "--grade-set=cartilage", f"--seed={seed}", f"--out={split}"
        where = (f"--data.manifest={drawn}", f"--data.split={split}", f"--runs={folder}", "--name=unet")
        yield "segment", "train", *self._segmenter(), *where, f"--fit.seed={seed}", "--fit.threads=1"
        yield "segment", "predict", f"{folder / 'unet'}", f"--out={drawn.parent / 'masks_unet'}"


@dataclass(frozen=True)
class RadiographPlan:
    """The published radiographs with their own split; the seed draws which training patients are labeled."""

    folder: Path
    manifest = "manifest.csv"

    def about(self, seed: int) -> dict[str, Any]:
        """A hash of the files' names and sizes, without the test patients' second crops, which the manifest omits."""
        if not self.folder.is_dir():
            raise UserError(f"--radiographs {self.folder} is not a folder; give the one with train/0 … test/4")
        files = hashlib.sha256()
        for name in sorted(image_files(self.folder)):
            if not name.startswith(CHEN_AGAIN):
                files.update(f"{name} {(self.folder / name).stat().st_size}\n".encode())
        return {"radiographs": {"files_sha256": files.hexdigest()[:16], "ranks_seed": seed}}

    def commands(self, seed: int, folder: Path) -> Iterator[Sequence[str]]:
        """A manifest and a split."""
        manifest, split = folder / "manifest.csv", folder / "split.csv"
        yield "manifest", f"{self.folder.resolve()}", f"--out={manifest}", "--layout=chen"
        yield "split", f"{manifest}", f"--seed={seed}", f"--out={split}"


@dataclass(frozen=True)
class JointPlan(RadiographPlan):
    """The published radiographs with masks of the joint, by a segmenter that has seen masks of phantom radiographs only."""

    manifest = "manifest_masks.csv"

    def about(self, seed: int) -> dict[str, Any]:
        """That of the radiographs, and the segmenter's config."""
        config = read_config(SegmenterConfig, [f"--config={_XRAY_UNET}"], program="dcmt segment train")
        return {"joint": {"segmenter": deciding(SegmenterConfig, dataclasses.asdict(config))}, **super().about(seed)}

    def commands(self, seed: int, folder: Path) -> Iterator[Sequence[str]]:
        """As docs/training.md: phantom radiographs, segmenter, its masks of the radiographs."""
        yield from super().commands(seed, folder)
        drawn, split = folder / "drawn" / "manifest.csv", folder / "drawn.csv"
        yield "phantom", f"{drawn.parent}", "--kind=xray", "--patients=250", "--size=160", "--seed=11"
        yield "split", f"{drawn}", "--grade-set=kl", f"--out={split}"
        train = (f"--config={_XRAY_UNET}", f"--fit.precision={fast_precision()}", "--fit.threads=1")
        where = (f"--data.manifest={drawn}", f"--data.split={split}", f"--runs={folder}", "--name=unet")
        yield "segment", "train", *train, *where
        of_images = (f"--manifest={folder / 'manifest.csv'}", f"--split={folder / 'split.csv'}", "--rows=all")
        masks = (f"--out={folder / 'masks'}", f"--manifest-out={folder / self.manifest}")
        yield "segment", "predict", f"{folder / 'unet'}", *of_images, *masks


DataPlan = PhantomPlan | RadiographPlan


def make_data(plan: DataPlan, seed: int, work: Path, version: int) -> Data:
    """The data of a seed, made below ``work`` unless they exist. Raises UserError."""
    # A manifest names its images by path: radiographs that were moved need another one.
    place = str(plan.folder.resolve()) if isinstance(plan, RadiographPlan) else ""
    about = plan.about(seed)
    folder = work / "data" / f"{next(iter(about))}-s{seed}-{digest([about, place, version])[:8]}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)  # left unfinished by a process that was killed
        folder.mkdir(parents=True)
        for arguments in plan.commands(seed, folder):
            if dcmt(arguments):
                raise UserError(f"dcmt {' '.join(arguments[:2])} failed")
        (folder / "done").touch()
    return Data(folder / plan.manifest, folder / "split.csv")


def run_job(job: Job, data: Data, work: Path, out: Path, threads: int = 1) -> None:
    """Train the run below ``work``, or resume it, and store its result in ``out``. Raises UserError."""
    path = run_path(job, work)
    where = [f"--data.manifest={data.manifest}", f"--data.split={data.split}", f"--runs={work}", f"--name={path.name}"]
    arguments = ["train", *job.arguments, *where, f"--fit.threads={threads}"]
    if job.rounds:  # continues by itself
        arguments[:1] = ["self-train", *job.rounds]
    elif path.exists():
        arguments = ["train", "--resume", str(path)]
    if dcmt(arguments):
        raise UserError(f"{job.name}: training failed")
    if job.rounds:
        path = last_round(path)
    last = RunFolder(path).checkpoints.latest()[0]
    fit = job.about["config"]["fit"]
    if last is None or (last.step < fit["steps"] and not fit["epochs"]):
        raise UserError(f"{job.name}: stopped before its last step; the same command resumes it")
    loaded = load_run(path, checkpoint=job.about["checkpoint"], device=fit["device"])
    table = predict_test(loaded, load_data(loaded), tta=job.tta)
    write_result(out, table, _about(job, loaded, seconds=last.state["progress"]["seconds"]))
    _keep_one_checkpoint(loaded)


def last_round(folder: Path) -> Path:
    """The run of the last round of self-training. Raises UserError if it has not been reached."""
    runs = sorted(folder.glob("*round*-s*/config.yaml"), key=lambda path: path.parent.name.partition("round")[2])
    if not runs or runs[-1].parent.name.startswith("round0"):
        raise UserError(f"{folder}: stopped before its last round; the same command continues it")
    return runs[-1].parent


def run_path(job: Job, work: Path) -> Path:
    """The run folder: another config, data or version has another one."""
    return work / f"{job.name}-{fingerprint(job.about)[:8]}"


def _about(job: Job, loaded: LoadedRun, *, seconds: float) -> dict[str, Any]:
    """What is stored beside the predictions."""
    state = loaded.checkpoint.state
    return {
        **{name: value for name, value in job.about.items() if name not in ("data", "config")},
        "commit": state["versions"]["dcmt"],
        "steps": loaded.config.fit.steps if not loaded.config.fit.epochs else state["progress"]["step"],
        "checkpoint_step": loaded.checkpoint.step,
        "seconds": round(float(seconds), 1),
        "device": _device(loaded),
        "precision": state["precision"],
        "torch": torch.__version__,
        **{name: state[name] for name in ("labeled_images", "unlabeled_images", "pixels_sha256")},
        "data": job.about["data"],
        "config": job.about["config"],
    }


def _device(loaded: LoadedRun) -> str:
    if loaded.device.type == "cuda":
        return torch.cuda.get_device_name(loaded.device)
    return f"{loaded.device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _keep_one_checkpoint(loaded: LoadedRun) -> None:
    """Remove the checkpoints that were not evaluated: a study has dozens of runs."""
    checkpoints = loaded.run.checkpoints
    best = checkpoints.best()
    if best is not None and best.step != loaded.checkpoint.step:
        (checkpoints.folder / "best.json").unlink(missing_ok=True)
    for folder in checkpoints.folder.glob("step_*"):
        if folder != loaded.checkpoint.folder:
            shutil.rmtree(folder)
