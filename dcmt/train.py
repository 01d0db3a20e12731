"""Training a grader: from a config to a run folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from clip_koa.build import build_clip_grader
from clip_koa.prompts import read_prompts
from dcmt.checkpoint import Checkpoint
from dcmt.config import GraderConfig
from dcmt.fit import Fit, Progress
from dcmt.launch import (
    count_steps,
    latest_checkpoint,
    new_or_resumed,
    open_tracker,
    place,
    settle_precision,
    start,
    train_help,
)
from dcmt.model import build_network
from dcmt.prepare import KneeData, TrainingBatches, describe, load_knee_data
from dcmt.run import RunFolder, RunLock, file_hash, versions
from dcmt.schedules import default_teacher_decay
from dcmt.task import LossWeights, MeanTeacher
from dcmt.validation import GraderValidation
from knee.grades import GradeSet

Say = Callable[[str], None]


def train_command(arguments: Sequence[str], *, say: Say) -> int:
    """``dcmt train`` and ``train.py``."""
    if "--help" in arguments or "-h" in arguments:
        say(train_help(GraderConfig, program="train.py"))
        return 0
    config, run, resume = new_or_resumed(GraderConfig, arguments, kind="grader", program="train.py")
    train_grader(config, run, say=say, resume=resume)
    return 0


def train_grader(config: GraderConfig, run: RunFolder, *, say: Say, resume: bool) -> Progress:
    """Train student and teacher in a run folder, from the start or from its last checkpoint."""
    with RunLock(run), contextlib.ExitStack() as stack:
        device = start(config.fit.seed, config.fit.threads, config.fit.device, deterministic=config.fit.deterministic)
        data = load_knee_data(config.data, rejected=run.local / "rejected.csv", salt_folder=run.local)
        for line in describe(data, config.data):
            say(line)
        batches = TrainingBatches(
            data,
            config.data,
            config.views,
            rows=data.labeled,
            unlabeled=data.unlabeled,
            dilation=config.data.mask_dilation,
            seed=config.fit.seed,
            device=device,
            channels_last=config.fit.channels_last,
        )
        steps = count_steps(config.fit.steps, config.fit.epochs, config.fit.accumulation, batches.per_epoch)
        checkpoint = latest_checkpoint(run, say=say) if resume else None
        if checkpoint is None:
            record_data(run, data)
        tracker = stack.enter_context(open_tracker(run, checkpoint, tensorboard=config.report.tensorboard))
        task = build_task(config, data, steps=steps, say=say, fresh=checkpoint is None)
        place(task, device, channels_last=config.fit.channels_last)
        precision = (
            str(checkpoint.state["precision"])
            if checkpoint
            else settle_precision(config.fit.precision, task, batches, device, say=say)
        )
        task.validation = GraderValidation(
            data,
            device=device,
            precision=precision,
            attention=config.attention,
            tracker=tracker,
            cases=config.report.cases,
        )
        if config.fit.compile:
            for network in task.networks.values():
                network.compile()
        fit = Fit(
            task=task,
            batches=batches,
            config=config.fit,
            optimizer_config=config.optimizer,
            device=device,
            precision=precision,
            tracker=tracker,
            checkpoints=run.checkpoints,
            steps=steps,
            say=say,
            state=run_state(data, best_metric=task.best_metric) | prompts_used(config, data.grade_set, checkpoint),
            resume_command=f"python train.py --resume {run.path}",
        )
        if checkpoint is not None:
            fit.restore(checkpoint)
            say(f"resuming {run.path} at step {checkpoint.step} of {steps}")
        return fit.run()


def build_grader(
    config: GraderConfig,
    grade_set: GradeSet,
    *,
    mean: float | None = None,
    std: float | None = None,
    fresh: bool = True,
) -> nn.Module:
    """The network of a config; ``fresh`` false leaves pretrained weights out, for a checkpoint to fill.

    ``mean`` and ``std`` of the training images normalise, whatever the weights were trained with; without them a text
    head's image tower takes its own.
    """
    if config.model.head == "text":
        return build_clip_grader(
            config.clip,
            grade_set,
            image_size=config.data.image_size,
            mean=None if mean is None else [mean],
            std=None if std is None else [std],
            detach_texts=config.attention.detach_classifier,
            fresh=fresh,
        )
    return build_network(
        config.model.backbone,
        grades=grade_set.count,
        image_size=config.data.image_size,
        stride=config.model.stride,
        stage=config.model.stage,
        dropout=config.model.dropout,
        detach_classifier=config.attention.detach_classifier,
        pretrained=config.model.pretrained and fresh,
        weights=config.model.weights if fresh else "",
        mean=0.5 if mean is None else mean,
        std=0.25 if std is None else std,
    )


def build_task(config: GraderConfig, data: KneeData, *, steps: int, say: Say, fresh: bool = True) -> MeanTeacher:
    """Student, teacher and loss weights of a config; ``fresh`` as in ``build_grader``.

    Says once where no labeled image has a mask.
    """
    mean, std = data.cache.mean_std(data.split.rows("train"))
    student = build_grader(config, data.grade_set, mean=mean, std=std, fresh=fresh)
    loss = config.loss
    attention = loss.attention
    if attention and not data.cache.has_mask[data.labeled].any():
        say("no labeled image has a mask: the attention loss (Eq. 2) applies to no image and is left out")
        attention = 0.0
    decay = config.teacher.decay
    return MeanTeacher(
        student,
        weights=LossWeights(
            grade=loss.grade,
            attention=attention,
            probability_consistency=loss.probability_consistency,
            attention_consistency=loss.attention_consistency,
            mse_weight=loss.mse_weight,
            inside_weight=loss.inside_weight,
            symmetry=loss.symmetry,
            flip_consistency=loss.flip_consistency,
        ),
        decay=default_teacher_decay(steps) if decay is None else decay,
        ramp_steps=round(loss.ramp * steps),
        buffers=config.teacher.buffers,
        sharpness=config.attention.sharpness,
        threshold=config.attention.threshold,
        best_metric=f"val_teacher/{data.grade_set.best_metric}",
    )


def record_data(run: RunFolder, data: KneeData) -> None:
    """Keep the split used and the key from case names to files in ``local/``, for the owner alone."""
    if data.cache.template is not None:
        np.save(run.template_path, data.cache.template)
    shutil.copyfile(data.split.path, run.local / "split.csv")
    key = data.manifest.table[["image", "patient"]].copy()
    key.insert(0, "case", data.cases(data.manifest.table.index.to_numpy()))
    key.to_csv(run.local / "cases.csv", index=False)
    for path in run.local.iterdir():
        path.chmod(0o600)


def prompts_used(config: GraderConfig, grade_set: GradeSet, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The phrases that a text head is trained on, for people to read; the network keeps them as tokens."""
    if checkpoint is not None:
        return {name: checkpoint.state[name] for name in ("prompts",) if name in checkpoint.state}
    if config.model.head != "text" or config.clip.text.endswith(".npy"):
        return {}
    phrases = read_prompts(config.clip.prompts or grade_set.name, grade_set).phrases
    return {"prompts": dict(zip(grade_set.names, phrases, strict=True))}


def run_state(data: KneeData, *, best_metric: str) -> dict[str, Any]:
    """What every checkpoint says of its origin."""
    return {
        "versions": versions(),
        "manifest_sha256": file_hash(data.manifest.path),
        "split_sha256": file_hash(data.split.path),
        "pixels_sha256": data.pixels_sha256(),
        "labeled_images": len(data.labeled),
        "unlabeled_images": len(data.unlabeled),
        "grade_set": data.grade_set.name,
        "best_metric": best_metric,
    }
