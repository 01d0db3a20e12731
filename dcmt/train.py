"""Training a grader: from a config to a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_koa.build import build_clip_grader
from clip_koa.prompts import read_prompts
from dcmt.config import GraderConfig
from dcmt.mean_teacher import LossWeights, MeanTeacher
from dcmt.network import build_network
from dcmt.schedules import default_teacher_decay
from dcmt.validation import GraderValidation
from knee.data.prepare import KneeData, describe, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.fit import Progress
from knee.engine.launch import new_or_resumed, start
from knee.engine.lock import RunLock
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, earlier_until_begun, file_hash, open_run
from knee.engine.tracking import Tracker
from knee.engine.training import Streams, train
from knee.errors import UserError
from knee.grades import GradeSet
from knee.task import Task

Say = Callable[[str], None]


def train_command(arguments: Sequence[str], *, say: Say) -> int:
    """``dcmt train`` and ``train.py``."""
    config, run, resume = new_or_resumed(GraderConfig, arguments, kind="grader", program="train.py")
    with earlier_until_begun(run):
        train_grader(config, run, say=say, resume=resume)
    return 0


def train_grader(config: GraderConfig, run: RunFolder, *, say: Say, resume: bool) -> Progress:
    """Train student and teacher in a run folder, from the start or from its last checkpoint."""
    with RunLock(run.path):
        device = start(config.fit.seed, config.fit.threads, config.fit.device, deterministic=config.fit.deterministic)
        data = load_knee_data(config.data, rejected=run.local / "rejected.csv", salt_folder=run.local)
        for line in describe(data, config.data):
            say(line)
        return train(config, run, data, GraderRun(config, data, say), device=device, say=say, resume=resume)


class GraderRun:
    """A ``knee.engine.training.Kind``: student and teacher."""

    command = "python train.py"
    next = "dcmt evaluate {run}"

    def __init__(self, config: GraderConfig, data: KneeData, say: Say) -> None:
        self.config = config
        self.data = data
        self.say = say
        self.streams = Streams(data.labeled, data.unlabeled, config.data.mask_dilation)

    def task(self, *, steps: int, device: torch.device, checkpoint: Checkpoint | None) -> MeanTeacher:
        """Student, teacher and loss weights."""
        return build_task(self.config, self.data, steps=steps, say=self.say, fresh=checkpoint is None)

    def ready(self, task: Task, *, precision: str, device: torch.device, tracker: Tracker) -> None:
        """Validation of both networks, with pictures."""
        assert isinstance(task, MeanTeacher)
        task.validation = GraderValidation(
            self.data,
            device=device,
            precision=precision,
            attention=self.config.attention,
            tracker=tracker,
            cases=self.config.report.cases,
        )

    def state(self, checkpoint: Checkpoint | None) -> Mapping[str, Any]:
        """The phrases of a text head."""
        return prompts_used(self.config, self.data.grade_set, checkpoint)


def build_grader(
    config: GraderConfig,
    grade_set: GradeSet,
    *,
    mean: float | None = None,
    std: float | None = None,
    fresh: bool = True,
) -> nn.Module:
    """The network of a config; ``fresh`` false leaves pretrained weights out, for a checkpoint to fill.

    ``mean`` and ``std`` of the training images normalise where ``model.normalise`` is fixed, whatever the weights were
    trained with; without them a text head's image tower takes its own.
    """
    if config.model.head == "text":
        return build_clip_grader(
            config.clip,
            grade_set,
            image_size=config.data.image_size,
            normalise=config.model.normalise,
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
        normalise=config.model.normalise,
        mean=0.5 if mean is None else mean,
        std=0.25 if std is None else std,
    )


def build_task(config: GraderConfig, data: KneeData, *, steps: int, say: Say, fresh: bool = True) -> MeanTeacher:
    """Student, teacher and loss weights of a config; ``fresh`` as in ``build_grader``.

    Says once where no labeled image has a mask.
    """
    mean, std = data.cache.mean_std(data.split.rows("train"))
    student = build_grader(config, data.grade_set, mean=mean, std=std, fresh=fresh and not config.model.start)
    if fresh and config.model.start:
        load_start(student, config, data.split.path, prompts_used(config, data.grade_set, None))
    loss = config.loss
    weights = LossWeights(**{option.name: getattr(loss, option.name) for option in fields(LossWeights)})
    if weights.attention and not data.cache.has_mask[data.labeled].any():
        say("no labeled image has a mask: the attention loss (Eq. 2) applies to no image and is left out")
        weights = replace(weights, attention=0.0)
    decay = config.teacher.decay
    return MeanTeacher(
        student,
        weights=weights,
        decay=default_teacher_decay(steps) if decay is None else decay,
        ramp_steps=round(loss.ramp * steps),
        ramp_start=round(loss.ramp_start * steps),
        buffers=config.teacher.buffers,
        sharpness=config.attention.sharpness,
        threshold=config.attention.threshold,
        best_metric=f"val_teacher/{data.grade_set.best_metric}",
    )


def load_start(student: nn.Module, config: GraderConfig, split: Path, prompts: Mapping[str, Any]) -> None:
    """Give the student the teacher's weights of the run ``model.start``, its best: training goes on, on more labels say.

    Raises UserError where that run is none, is of another network, was trained with another split file (it may have been
    trained on images that are held out now) or on a larger labeled fraction (its weights know grades that are hidden
    now), matched other phrases than ``prompts`` (they come with its weights), or saw images normalised in another way.
    """
    path, normalise = Path(config.model.start), config.model.normalise
    run, values = open_run(path)
    found = run.checkpoints.best() if values.pop("kind") == "grader" else None
    if found is None:
        raise UserError(
            f"model.start: {path} holds no checkpoint of a trained grader; give the folder of a finished run"
        )
    if found.state.get("split_sha256") != file_hash(split):
        raise UserError(
            f"model.start: {path} was trained with another split than {split}, so it may have seen images that are held out "
            f"here; train with its split file, or start anew"
        )
    try:
        found.load_network("teacher", student)
    except UserError as error:
        raise UserError(f"model.start: {path} is of another network than this config's ({error})") from error
    if prompts and found.state.get("prompts") != json.loads(json.dumps(prompts))["prompts"]:
        raise UserError(
            f"model.start: {path} was trained on other phrases than this config's, and they come with its weights; give its "
            "clip.prompts, or start anew"
        )
    before: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    fractions = before.data.labeled_fraction, config.data.labeled_fraction
    if fractions[0] > fractions[1]:
        raise UserError(
            f"model.start: {path} was trained with {fractions[0]:g} of the labels, this config has {fractions[1]:g}: grades of "
            f"images that count as unlabeled here are in its weights; give --labeled-fraction {fractions[0]:g} or more, or a "
            "run of fewer labels"
        )
    if before.model.normalise != normalise:
        raise UserError(
            f"model.start: {path} was trained with model.normalise {before.model.normalise}, this config says {normalise}; "
            f"give --model.normalise {before.model.normalise}, or start anew"
        )


def prompts_used(config: GraderConfig, grade_set: GradeSet, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The phrases that a text head is trained on, for people to read; the network keeps them as tokens."""
    if checkpoint is not None:
        return {name: checkpoint.state[name] for name in ("prompts",) if name in checkpoint.state}
    if config.model.head != "text" or config.clip.text.endswith(".npy"):
        return {}
    phrases = read_prompts(config.clip.prompts or grade_set.name, grade_set).phrases
    return {"prompts": dict(zip(grade_set.names, phrases, strict=True))}
