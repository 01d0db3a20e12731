"""Train a grader, from a config to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_koa.prompts import read_prompts
from dcmt.commands.registry import find_function
from dcmt.config import GraderConfig
from dcmt.fixmatch import FixMatch
from dcmt.mean_teacher import MeanTeacher
from dcmt.mixmatch import MixMatch
from dcmt.network import build_network
from dcmt.start import start_student
from dcmt.validation import GraderValidation
from knee.data.prepare import KneeData, TrainingBatches, describe, load_knee_data
from knee.data.targets import read_targets
from knee.engine.checkpoint import Checkpoint
from knee.engine.config import EXTERNAL, EXTERNAL_HELP
from knee.engine.launch import new_or_resumed, split_options
from knee.engine.lock import RunLock
from knee.engine.options import asks_for_help, config_paths, option_of_file, train_help
from knee.engine.record import record_data
from knee.engine.run import RunFolder, file_hash, open_run, removed_unless_begun
from knee.engine.state import Progress
from knee.engine.training import count_steps, fit, latest_checkpoint, start
from knee.errors import UserError
from knee.grades import GradeSet
from knee.nn import processes
from knee.nn.weights import packaged_file
from knee.task import Task

log = logging.getLogger(__name__)
METHODS: Mapping[str, Callable[..., Task]] = {
    "mean_teacher": MeanTeacher.from_config,
    "fixmatch": FixMatch.from_config,
    "mixmatch": MixMatch.from_config,
}
"""The values of ``method`` in a config; each makes the task of a run from (config, student, steps, best_metric)."""
IMAGE_TEXT = ("lumbarclip", "beyond_clip")
"""Further values of ``method``: trained by ``image_text.train``, whose config has other sections."""


def train_command(arguments: Sequence[str]) -> int:
    """``dcmt train`` and ``train.py``: a grader, or another task that ``method`` in the config names."""
    if trains_image_text(arguments):
        code: int = find_function("image_text.train:train_command")(arguments)
        return code
    if asks_for_help(arguments):
        log.info(train_help(GraderConfig, program="train.py", more=EXTERNAL_HELP))
        return 0
    rest = [argument for argument in arguments if argument != EXTERNAL]
    with processes.joined():
        config, run, resume = new_or_resumed(GraderConfig, rest, kind="grader", program="train.py")
        with removed_unless_begun(run, new=not resume):
            train_grader(config, run, resume=resume, external_model=EXTERNAL in arguments)
    return 0


def trains_image_text(arguments: Sequence[str]) -> bool:
    """Whether the arguments are of an image-text run, by ``method`` or by the run that is resumed."""
    resumed = split_options(arguments)[1]
    if resumed is not None:
        return (resumed / "config.yaml").is_file() and open_run(resumed)[1]["kind"] == "image_text"
    methods = [option_of_file(path, "method") for path in config_paths(arguments)]
    following = zip(arguments, [*arguments[1:], ""], strict=False)
    methods += [one.partition("=")[2] or next_one for one, next_one in following if one.partition("=")[0] == "--method"]
    return next((method for method in reversed(methods) if method), "") in IMAGE_TEXT


def keep_reference(config: GraderConfig, run: RunFolder, data: KneeData) -> None:
    """Store the temperatures of the best checkpoint and what its training images are like (``dcmt.trained.reference``)."""
    from dcmt.trained.loaded import load_run, with_reference  # which imports this module

    try:
        with_reference(load_run(run.path, checkpoint="best", device=config.fit.device, external_model=True), data)
    except UserError as error:
        log.warning(f"warning: {error}; the run is complete, and dcmt evaluate measures its images again")


def train_grader(config: GraderConfig, run: RunFolder, *, resume: bool, external_model: bool = False) -> Progress:
    """Train student and teacher in a run folder, from the start or from its last checkpoint.

    A resumed run may be untrusted: nothing is downloaded for it unless ``external_model``.
    """
    with RunLock(run.path):
        config.refuse_parts(processes.count())
        device = start(config.fit)
        bad = run.local / "rejected.csv"
        data = load_knee_data(config.data, rejected=bad, salt_folder=run.local, of_run=resume)
        log.info("\n".join(describe(data, config.data)))
        batches = training_batches(config, data, device=device)
        steps = count_steps(config.fit, batches.per_epoch)
        checkpoint = latest_checkpoint(run) if resume else None
        if resume and not external_model:
            refuse_external(config, fresh=checkpoint is None)
        if checkpoint:
            checkpoint.refuse_other_network("student", partial(build_grader, config, data.grade_set, fresh=False))
        origin = targets_used(config, checkpoint)
        task = build_task(config, data, steps=steps, fresh=checkpoint is None)  # Eq. 1-5
        if checkpoint is None and processes.is_first():
            record_data(run, data)
        progress = fit(
            task,
            batches,
            run,
            config,
            data,
            device=device,
            steps=steps,
            checkpoint=checkpoint,
            command="python train.py --resume {run}",
            next_command="dcmt evaluate {run}",
            state={**prompts_used(config, data.grade_set, checkpoint), **origin},
            validation=partial(
                GraderValidation,
                data,
                device=device,
                attention=config.attention,
                cases=config.report.cases,
                knees=config.data.slices_per_knee > 1,
            ),
        )
        if progress.complete(steps=steps, patience=config.fit.patience):
            processes.wait_for_first()
            keep_reference(config, run, data)
        return progress


def training_batches(config: GraderConfig, data: KneeData, *, device: torch.device) -> TrainingBatches:
    """The two streams of a config: labeled images with dilated masks, and unlabeled ones or those with soft targets."""
    targets = None
    if config.data.targets:
        path = Path(config.data.targets)
        targets = read_targets(path, data.manifest, data.split, grades=data.grade_set.count)
    return TrainingBatches(
        data,
        config.data,
        config.views,
        rows=data.labeled,
        unlabeled=data.unlabeled if targets is None else targets.rows,
        targets=None if targets is None else targets.probabilities,
        dilation=config.data.mask_dilation,
        seed=config.fit.seed,
        device=device,
        channels_last=config.fit.channels_last,
    )


def refuse_external(config: GraderConfig, *, fresh: bool = False) -> None:
    """Raises UserError if the config of a run needs a model of a hub or another folder, which a run folder must not load.

    With ``fresh`` also if pretrained weights would be downloaded.
    """
    if config.model.head == "text":
        from clip_koa.build import refuse_external_models

        refuse_external_models(config.clip, fresh=fresh and not config.model.start)
    elif fresh and config.model.pretrained and packaged_file(config.model.backbone) is None:
        raise UserError(
            f"the run has no checkpoint yet, so resuming would download the weights of {config.model.backbone}; add {EXTERNAL} "
            "if you want that, or start a new run"
        )


def build_grader(
    config: GraderConfig,
    grade_set: GradeSet,
    *,
    mean: float | None = None,
    std: float | None = None,
    fresh: bool = True,
) -> nn.Module:
    """The network of a config; with ``fresh`` false without pretrained weights, to be filled from a checkpoint.

    ``mean`` and ``std`` of the training images are used if ``model.normalise`` is fixed, even for pretrained weights; without
    them a text head uses those of its image tower.
    """
    if config.model.head == "text":
        from clip_koa.build import build_clip_grader  # open_clip takes a second or more to import

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
        frozen_stages=config.model.frozen_stages,
        normalise=config.model.normalise,
        mean=0.5 if mean is None else mean,
        std=0.25 if std is None else std,
    )


def build_task(config: GraderConfig, data: KneeData, *, steps: int, fresh: bool = True) -> Any:
    """Student, teacher and losses by the config's ``method``; ``fresh`` as in ``build_grader``.

    Without masks on labeled images, the attention loss is left out with a message.
    """
    mean, std = data.cache.mean_std(data.split.rows("train"))
    student = build_grader(config, data.grade_set, mean=mean, std=std, fresh=fresh and not config.model.start)
    if fresh and config.model.start:
        start_student(student, config, data, prompts=prompts_used(config, data.grade_set, None))
    if config.loss.attention and not data.cache.has_mask[data.labeled].any():
        log.info("no labeled image has a mask, so the attention loss (Eq. 2) is left out")
        config = replace(config, loss=replace(config.loss, attention=0.0))
    best_metric = f"val_teacher/{data.grade_set.best_metric}"
    return METHODS[config.method](config, student, steps=steps, best_metric=best_metric)


def targets_used(config: GraderConfig, checkpoint: Checkpoint | None) -> dict[str, str]:
    """The hash of the soft targets, if any. Raises UserError if a resumed run was trained with others."""
    if not config.data.targets:
        return {}
    found = file_hash(Path(config.data.targets))
    if checkpoint is not None and checkpoint.state.get("targets_sha256") != found:
        raise UserError(f"{config.data.targets} changed since the run was started; restore it, or start a new run")
    return {"targets_sha256": found}


def prompts_used(config: GraderConfig, grade_set: GradeSet, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The phrases on which a text head is trained, in readable form; the network stores them as tokens."""
    if checkpoint is not None:
        return {name: checkpoint.state[name] for name in ("prompts",) if name in checkpoint.state}
    if config.model.head != "text" or config.clip.text.endswith(".npy"):
        return {}
    phrases = read_prompts(config.clip.prompts or grade_set.name, grade_set).phrases
    return {"prompts": dict(zip(grade_set.names, phrases, strict=True))}
