"""Self-training in rounds: networks trained on labels predict soft targets for unlabeled images, fresh ones learn from both.

Round 0 trains several networks on the labels alone. In each further round their predictions for the unlabeled training images
are averaged (over networks, and horizontal flips if trained on these), sharpened, and aligned to the distribution of the
labels; fresh networks then train on labeled images and these targets. As "noisy student" training (Xie et al. 2020,
arXiv 1911.04252) with soft targets, sharpened as in MixMatch and aligned as in ReMixMatch (Berthelot et al. 2019, 2020).

With ``twin`` the targets are those of the labeled images, so what the method does without unlabeled images stands apart.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcmt.config import GraderConfig
from dcmt.fixmatch import align_distribution
from dcmt.train import train_grader, training_batches
from dcmt.trained.loaded import LoadedRun, grade_rows, load_run, trains_on_flips
from knee.data.prepare import KneeData, load_knee_data
from knee.data.targets import origin_path, write_targets
from knee.engine.launch import default_name, run_path, split_options
from knee.engine.options import asks_for_help, config_from_values, read_config, train_help
from knee.engine.run import create_run, file_hash, open_run, removed_unless_begun
from knee.engine.state import Progress
from knee.engine.training import count_steps, latest_checkpoint
from knee.errors import UserError, require
from knee.io.files import typed
from knee.nn.processes import refuse_several

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]
_HELP = (
    "  --rounds N             rounds after the one on labels alone (default 2)\n"
    "  --networks N           networks of each round whose predictions are averaged (default 3); the last round has one\n"
    "  --temperature T        sharpens the mean prediction: p ** (1 / T), T in (0, 1] (default 0.5)\n"
    "  --labeled-share S      share of labeled images in a batch from round 1 on (default 0.3)\n"
    "  --student-steps N      optimizer steps of the networks with targets (default 0: as many as the first ones)\n"
    "  --twin                 targets for the labeled images in place of the unlabeled ones, for comparison\n"
    "  To continue after an interruption, give the same command again.\n"
)


@dataclass(frozen=True)
class Rounds:
    """How self-training proceeds."""

    rounds: int = 2
    networks: int = 3
    temperature: float = 0.5
    labeled_share: float = 0.3
    student_steps: int = 0
    """Of the networks with targets, which see all images, not the few labeled ones; 0: as many as the first ones."""
    twin: bool = False

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "--rounds", self.rounds, "1 or more")
        require(self.networks >= 1, "--networks", self.networks, "1 or more")
        require(0 < self.temperature <= 1, "--temperature", self.temperature, "above 0 and at most 1")
        require(self.student_steps >= 0, "--student-steps", self.student_steps, "0 or more")
        require(0 < self.labeled_share < 1, "--labeled-share", self.labeled_share, "above 0 and below 1")


def soft_targets(predictions: Tensor, prior: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Targets q ∝ s · π / mean(s), s ∝ p^(1/T), p the mean of M predictions.

    predictions (M, U, K) and the prior π (K,) are probabilities → (U, K), rows sum to 1. T = 1 does not sharpen. Where the
    mean of s over the images is π already, q = s.
    """
    logits = predictions.mean(0).clamp_min(1e-12).log() / temperature
    sharp = logits.softmax(1)
    return align_distribution(sharp, sharp.mean(0), prior)


def self_train_command(arguments: Sequence[str]) -> int:
    """``dcmt self-train``."""
    if asks_for_help(arguments):
        log.info(train_help(GraderConfig, program="dcmt self-train", resumes=False, more=_HELP))
        return 0
    refuse_several("self-training")
    parser = argparse.ArgumentParser(prog="dcmt self-train", allow_abbrev=False, add_help=False)
    numbers = {"rounds": int, "networks": int, "student-steps": int, "temperature": float, "labeled-share": float}
    for name, kind in numbers.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(Rounds, name.replace("-", "_")))
    parser.add_argument("--twin", action="store_true")
    options, others = parser.parse_known_args(list(arguments))
    rest, resume = split_options(others)
    if resume is not None:
        raise UserError("self-train has no --resume: give the same command again, and it continues")
    config = read_config(GraderConfig, rest, program="dcmt self-train")
    name = config.name or default_name(rest, fraction=config.data.labeled_fraction, seed=config.fit.seed)
    folder = run_path(config.runs, name)
    try:
        rounds = Rounds(**vars(options))
    except ValueError as error:
        raise UserError(str(error)) from error
    last = self_train(config, rounds, folder)
    if last is None:
        log.info("stopped; to continue, give the same command again")
    else:
        log.info(f"the network of the last round: {last}; next: dcmt evaluate {typed(last)}")
    return 0


def self_train(config: GraderConfig, rounds: Rounds, folder: Path) -> Path | None:
    """Train all rounds in ``folder``, or continue; returns the last round's run folder, None if a signal stopped it.

    Without ``rounds.student_steps`` every run takes as many steps as the first ones. Raises UserError if there is nothing to
    predict targets for, or ``folder`` has runs with other options.
    """
    if (
        config.data.targets
        or config.method != "mean_teacher"
        or config.model.head == "text"
        or config.data.slices_per_knee > 1
    ):
        raise UserError(
            "self-train needs method: mean_teacher, a linear head, no data.targets and data.slices_per_knee 1; leave these "
            "options out"
        )
    data = load_knee_data(config.data, salt_folder=None)
    rows = data.labeled if rounds.twin else data.unlabeled
    if not len(rows):
        raise UserError("all training images are labeled; give a lower --labeled-fraction, or --twin")
    cpu = torch.device("cpu")
    steps = count_steps(config.fit, training_batches(config, data, device=cpu).per_epoch)
    config = replace(config, runs=str(folder), name="", fit=replace(config.fit, steps=steps, epochs=0))
    of_round, twin = config, "twin-" if rounds.twin else ""
    trained: list[Path] = []
    for number in range(rounds.rounds + 1):
        if number:
            targets = folder / "local" / f"targets-{twin}round{number}.csv"
            if targets.exists():
                _check_origin(targets, trained, rounds)
            else:
                predict_targets(trained, data, rows, targets, temperature=rounds.temperature)
            of_round = student_config(config, targets, rounds)
        trained = []
        for network in range(1 if number == rounds.rounds else rounds.networks):
            seed = config.fit.seed + network
            path = folder / f"{twin if number else ''}round{number}-s{seed}"
            if not train_or_continue(replace(of_round, fit=replace(of_round.fit, seed=seed)), path):
                return None
            trained.append(path)
    return trained[-1]


def student_config(config: GraderConfig, targets: Path, rounds: Rounds) -> GraderConfig:
    """The config of a round with targets: batches as large as before, in which each image has the same weight."""
    total = max(2, config.data.labeled_per_batch + config.data.unlabeled_per_batch)
    labeled = min(max(1, round(rounds.labeled_share * total)), total - 1)
    data = replace(config.data, targets=str(targets), labeled_per_batch=labeled, unlabeled_per_batch=total - labeled)
    share = labeled / total
    loss = replace(config.loss, grade=config.loss.grade * share, self_training=config.loss.self_training * (1 - share))
    fit = replace(config.fit, steps=rounds.student_steps or config.fit.steps)
    return replace(config, data=data, loss=loss, fit=fit)


def train_or_continue(config: GraderConfig, path: Path) -> bool:
    """Train a run in ``path``, continue it, or leave a finished one as it is; returns whether it is finished."""
    if not (path / "config.yaml").exists():
        run = create_run(path, config, kind="grader")
        log.info(f"\n{path}")
        with removed_unless_begun(run):
            progress = train_grader(config, run, resume=False)
        return progress.complete(steps=config.fit.steps, patience=config.fit.patience)
    run, values = open_run(path)
    values.pop("kind")
    before = config_from_values(GraderConfig, values, where=str(run.config))
    if replace(before, data=replace(before.data, grade_set=config.data.grade_set)) != config:
        raise UserError(f"{path} was trained with other options; give those, or another --name")
    checkpoint = latest_checkpoint(run) if run.checkpoints.folder.exists() else None
    if checkpoint is not None:
        progress = Progress(**checkpoint.state["progress"])
        if progress.complete(steps=config.fit.steps, patience=config.fit.patience):
            return True
    log.info(f"\ncontinuing {path}")
    progress = train_grader(config, run, resume=True)
    return progress.complete(steps=config.fit.steps, patience=config.fit.patience)


def predict_targets(runs: Sequence[Path], data: KneeData, rows: Rows, path: Path, *, temperature: float) -> None:
    """Write the targets that the best teachers of ``runs`` give for training ``rows``, with their origin."""
    if not np.isin(rows, data.split.rows("train")).all():
        raise ValueError("only training images may have targets")
    prior = np.bincount(data.grades[data.labeled], minlength=data.grade_set.count) / len(data.labeled)
    loaded = [_load(run) for run in runs]
    found = [grade_rows(one, data, rows, names=["teacher"])["teacher"].probabilities for one in loaded]
    predictions = torch.from_numpy(np.stack(found)).double()
    targets = soft_targets(predictions, torch.from_numpy(prior), temperature=temperature)
    origin: dict[str, Any] = {
        "networks": [
            {
                "run": one.run.path.name,
                "step": one.checkpoint.step,
                "sha256": one.checkpoint.state["sha256"]["teacher.safetensors"],
            }
            for one in loaded
        ],
        "flip_tta": loaded[0].flip_tta,
        "temperature": temperature,
        "images": len(rows),
        "labeled_images": int(np.isin(rows, data.labeled).sum()),
        "labeled_prior": prior.round(6).tolist(),
        "mean_prediction": predictions.mean((0, 1)).numpy().round(6).tolist(),
        "mean_target": targets.mean(0).numpy().round(6).tolist(),
        "split_sha256": file_hash(data.split.path),
    }
    path.parent.mkdir(mode=0o700, exist_ok=True)  # names images
    write_targets(path, data.manifest.table["image"].iloc[rows].tolist(), targets.numpy(), origin)
    means = ", ".join(" ".join(f"{share:.3f}" for share in origin[name]) for name in ("mean_prediction", "mean_target"))
    log.info(f"targets of {len(rows)} images: {path}; mean prediction and mean target by grade: {means}")


def _check_origin(targets: Path, runs: Sequence[Path], rounds: Rounds) -> None:
    """Raises UserError if the targets were predicted by other networks, or with another temperature."""
    try:
        origin = json.loads(origin_path(targets).read_text(encoding="utf-8"))
        found = [one["run"] for one in origin["networks"]], origin["temperature"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{origin_path(targets)} cannot be read ({error}); remove {targets} to predict it again"
        ) from error
    if found != ([path.name for path in runs], rounds.temperature):
        raise UserError(
            f"{targets} was predicted with other --networks or --temperature; give those, or another --name"
        )


def _load(path: Path) -> LoadedRun:
    run, values = open_run(path)
    values.pop("kind")
    config = config_from_values(GraderConfig, values, where=str(run.config))
    return load_run(path, checkpoint="best", device=config.fit.device, flip_tta=trains_on_flips(config))
