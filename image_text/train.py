"""Training on pairs of images and reports, from a config to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcmt.network import build_network
from dcmt.schedules import default_teacher_decay
from image_text.batches import PairBatches
from image_text.config import ImageTextConfig, TextConfig
from image_text.contrastive import Contrastive
from image_text.embed import RetrievalValidation, grade_texts
from image_text.joint.build import JointValidation, build_joint, build_joint_task, table_cells, table_grades
from image_text.joint.cells import Cells
from image_text.joint.model import JointModel
from image_text.pretrained_text import PretrainedText, PretrainedVocabulary
from image_text.reports import Reports, each_report, encode_reports
from image_text.text import HashedWords, Vocabulary
from image_text.towers import TextTower, TwoTowers
from knee.data.prepare import KneeData, load_knee_data
from knee.engine.config import EXTERNAL
from knee.engine.launch import new_or_resumed
from knee.engine.lock import RunLock
from knee.engine.options import asks_for_help, train_help
from knee.engine.record import record_data
from knee.engine.run import RunFolder, removed_unless_begun
from knee.engine.state import Progress
from knee.engine.training import count_steps, fit, latest_checkpoint, start
from knee.errors import UserError
from knee.nn import processes
from knee.nn.weights import packaged_file
from knee.task import Task

log = logging.getLogger(__name__)
KIND = "image_text"


def train_command(arguments: Sequence[str]) -> int:
    """``dcmt train`` for a config with an image-text ``method``."""
    if asks_for_help(arguments):
        log.info(train_help(ImageTextConfig, program="train.py"))
        return 0
    rest = [argument for argument in arguments if argument != EXTERNAL]
    with processes.joined():
        config, run, resume = new_or_resumed(ImageTextConfig, rest, kind=KIND, program="train.py")
        with removed_unless_begun(run, new=not resume):
            train_image_text(config, run, resume=resume, external_model=EXTERNAL in arguments)
    return 0


def train_image_text(
    config: ImageTextConfig, run: RunFolder, *, resume: bool, external_model: bool = False
) -> Progress:
    """Train the towers in a run folder, from the start or from its last checkpoint.

    A resumed run may be untrusted: nothing is downloaded for it unless ``external_model``.
    """
    with RunLock(run.path):
        device = start(config.fit)
        rejected = run.local / "rejected.csv"
        data = load_knee_data(config.data, rejected=rejected, salt_folder=run.local, graded=False, of_run=resume)
        vocabulary = vocabulary_of(config.text, download=not resume or external_model)
        reports = load_reports(config, data, vocabulary)
        log.info(reports.describe())
        joint = (table_cells(config, data), table_grades(config, data)) if config.method == "beyond_clip" else None
        cells, further = joint or (None, None)
        rows = training_rows(config, data, reports)
        batches = PairBatches(
            data,
            config.data,
            config.views,
            reports,
            rows=rows,
            grades=usable_grades(config, data),
            seed=config.fit.seed,
            device=device,
            channels_last=config.fit.channels_last,
            cells=cells,
            further=further.grades if further else None,
        )
        steps = count_steps(config.fit, batches.per_epoch)
        checkpoint = latest_checkpoint(run) if resume else None
        fresh = checkpoint is None
        if resume and fresh:
            refuse_download(config, external_model=external_model)
        task = build_task(config, data, steps=steps, fresh=fresh, cells=cells)
        if fresh and processes.is_first():
            record_data(run, data)
        text = config.text
        prompts = grade_texts(data.grade_set, vocabulary=vocabulary, length=text.length, grade_words=text.grade_words)
        pairs = partial(RetrievalValidation, data, reports, device=device, prompts=prompts)
        return fit(
            task,
            batches,
            run,
            config,
            data,
            device=device,
            steps=steps,
            checkpoint=checkpoint,
            command="python train.py --resume {run}",
            next_command="dcmt retrieve {run} --split test",
            validation=partial(JointValidation, data, reports, *joint, device=device) if joint else pairs,
        )


def training_rows(config: ImageTextConfig, data: KneeData, reports: Reports) -> NDArray[np.int64]:
    """The training rows of a config: those with a report, and with method beyond_clip all."""
    rows = data.split.rows("train")
    paired = rows[reports.present[rows]]
    log.info(f"{len(paired)} training pairs of {data.patients.iloc[paired].nunique()} patients")
    return paired if config.method == "lumbarclip" else rows


def refuse_download(config: ImageTextConfig, *, external_model: bool) -> None:
    """Raises UserError if a run without a checkpoint would download weights when it is resumed, unless ``external_model``."""
    if config.model.pretrained and not external_model and packaged_file(config.model.backbone) is None:
        raise UserError(
            f"the run has no checkpoint yet, so resuming would download the weights of {config.model.backbone}; add {EXTERNAL} "
            "if you want that, or start a new run"
        )


def vocabulary_of(text: TextConfig, *, download: bool = False) -> Vocabulary:
    """The vocabulary of the text encoder. Raises UserError if a pretrained one is not there; it may ``download`` one."""
    if not text.encoder:
        return HashedWords(text.buckets)
    return PretrainedVocabulary(text.encoder, download=download)


def load_reports(config: ImageTextConfig, data: KneeData, vocabulary: Vocabulary | None = None) -> Reports:
    """The reports of all rows as tokens. Raises UserError or Faults where they cannot be read."""
    text = config.text
    vocabulary = vocabulary or vocabulary_of(text)
    return encode_reports(
        each_report(data.manifest), vocabulary=vocabulary, length=text.length, grade_words=text.grade_words
    )


def usable_grades(config: ImageTextConfig, data: KneeData) -> NDArray[np.int64]:
    """(N,) grades of the labeled training images, −1 elsewhere. Raises UserError if targets labels have none."""
    grades = np.full(len(data.grades), -1, np.int64)
    grades[data.labeled] = data.grades[data.labeled]
    if config.contrast.targets == "labels" and not (grades >= 0).any():
        raise UserError("contrast.targets is labels, but no training image has a grade; use contrast.targets same")
    return grades


def build_text_tower(text: TextConfig, *, fresh: bool) -> TextTower | PretrainedText:
    """The text encoder of a config, as in ``build_towers``."""
    if text.encoder:
        return PretrainedText(PretrainedVocabulary(text.encoder, download=fresh), length=text.length, fresh=fresh)
    return TextTower(buckets=text.buckets, length=text.length, width=text.width, layers=text.layers, heads=text.heads)


def build_towers(
    config: ImageTextConfig,
    *,
    grades: int,
    mean: float = 0.5,
    std: float = 0.25,
    fresh: bool,
    scales: tuple[Any, Any] | None = None,
) -> TwoTowers:
    """The towers of a config; with ``fresh`` false without pretrained weights, to be filled from a checkpoint.

    With method beyond_clip a ``JointModel``; ``scales`` as in ``build_joint``.
    """
    model, text, contrast = config.model, config.text, config.contrast
    image = build_network(
        model.backbone,
        grades=grades,
        image_size=config.data.image_size,
        stride=model.stride,
        stage=model.stage,
        dropout=model.dropout,
        pretrained=model.pretrained and fresh,
        weights=model.weights if fresh else "",
        frozen_stages=model.frozen_stages,
        normalise=model.normalise,
        mean=mean,
        std=std,
    )
    tower = build_text_tower(text, fresh=fresh)
    if config.method == "beyond_clip":
        return build_joint(config, image, tower, scales)
    return TwoTowers(
        image,
        tower,
        embed_dim=contrast.embed_dim,
        head=contrast.head,
        scale=contrast.scale_start,
        train_image=contrast.train_image,
        train_text=contrast.train_text,
    )


def build_task(config: ImageTextConfig, data: KneeData, *, steps: int, fresh: bool, cells: Cells | None = None) -> Task:
    """Student, teacher and losses of a config for a run of ``steps`` optimizer steps; ``cells`` with method beyond_clip."""
    train = data.split.rows("train")
    mean, std = data.cache.mean_std(train)
    scales = cells.scales(train) if cells else None
    student = build_towers(config, grades=data.grade_set.count, mean=mean, std=std, fresh=fresh, scales=scales)
    if isinstance(student, JointModel):
        return build_joint_task(config, data, student, steps=steps)
    decay = config.teacher.decay
    return Contrastive(
        student,
        contrast=config.contrast,
        decay=default_teacher_decay(steps) if decay is None else decay,
        buffers=config.teacher.buffers,
    )
