"""Build the joint model and its task from a config; validate it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcmt.schedules import default_teacher_decay
from image_text.config import ImageTextConfig
from image_text.embed import RetrievalValidation
from image_text.joint.cells import Cells, read_cells
from image_text.joint.grades import FurtherGrades, grade_columns, read_further_grades
from image_text.joint.model import JointModel, TableTower
from image_text.joint.task import Joint, grade_with_all
from image_text.pretrained_text import PretrainedText
from image_text.reports import Reports
from image_text.table import column_names
from image_text.towers import TextTower
from knee.data.datasets import images_to
from knee.data.prepare import KneeData
from knee.engine.device import autocast, autocast_type
from knee.engine.tracking import Tracker
from knee.evaluation.predictions import predict
from knee.grades import GradeSet
from knee.metrics import grading_metrics
from knee.nn.processes import merged, part_of
from knee.task import Task

Rows = NDArray[np.int64]
_METRICS = ("kappa", "macro_f1", "accuracy", "auc")


def table_cells(config: ImageTextConfig, data: KneeData) -> Cells:
    """The cells of ``joint.columns``. Raises UserError or Faults."""
    columns = column_names(config.joint.columns, option="joint.columns")
    return read_cells(data.manifest.table, columns, where=str(data.manifest.path))


def table_grades(config: ImageTextConfig, data: KneeData) -> FurtherGrades:
    """The grades of ``joint.further_grades``. Raises UserError or Faults."""
    return read_further_grades(data.manifest.table, config.joint.further_grades, where=str(data.manifest.path))


def build_joint(
    config: ImageTextConfig, image: Any, text: TextTower | PretrainedText, scales: tuple[Any, Any] | None = None
) -> JointModel:
    """The joint model around an image encoder and a text tower.

    ``scales`` are mean and deviation (C,) of the table columns; without them they are to be filled from a checkpoint.
    """
    columns = column_names(config.joint.columns, option="joint.columns")
    mean, std = (
        (torch.zeros(len(columns)), torch.ones(len(columns))) if scales is None else map(torch.from_numpy, scales)
    )
    size, contrast = config.data.image_size, config.contrast
    image.eval()
    with torch.no_grad():
        maps = image.features(torch.zeros(1, 1, size, size))
    return JointModel(
        image,
        text,
        TableTower(len(columns), text.width, mean, std),
        grid=(maps.shape[2], maps.shape[3]),
        layers=config.joint.layers,
        heads=config.text.heads,
        embed_dim=contrast.embed_dim,
        head=contrast.head,
        scale=contrast.scale_start,
        train_image=contrast.train_image,
        train_text=contrast.train_text,
        further=tuple(one.count for one in grade_columns(config.joint.further_grades).values()),
    )


def build_joint_task(config: ImageTextConfig, data: KneeData, student: JointModel, *, steps: int) -> Task:
    """The task of a run of ``steps`` steps. The best checkpoint is chosen by grading, or else by retrieval."""
    rows = data.split.rows("val")
    graded = len(np.unique(data.grades[rows][data.grades[rows] >= 0])) > 1 and config.joint.grade > 0
    decay, start = config.teacher.decay, config.joint.ramp_start
    return Joint(
        student,
        joint=config.joint,
        contrast=config.contrast,
        decay=default_teacher_decay(steps) if decay is None else decay,
        ramp_start=round(start * steps),
        ramp_steps=round(start * steps),
        best_metric=f"val_teacher/{data.grade_set.best_metric}" if graded else "val_teacher/mrr",
        buffers=config.teacher.buffers,
    )


class JointValidation:
    """Grading of the validation images by each network, from the image alone and from all modalities, and retrieval."""

    def __init__(
        self,
        data: KneeData,
        reports: Reports,
        cells: Cells,
        further: FurtherGrades,
        *,
        device: torch.device,
        precision: str,
        tracker: Tracker,
    ) -> None:
        self.retrieve = RetrievalValidation(data, reports, device=device, precision=precision, tracker=tracker)
        self.data, self.reports, self.cells, self.further = data, reports, cells, further
        self.device, self.precision = device, precision
        rows = data.split.rows("val")
        self.rows = rows[data.grades[rows] >= 0]

    def __call__(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Values such as ``val_teacher/kappa`` (image alone) and ``val_teacher/fused_kappa``."""
        values = self.retrieve(networks, step)
        inputs = (self.data, self.reports, self.cells)
        device, precision = self.device, self.precision
        for name, network in networks.items():
            assert isinstance(network, JointModel)
            if len(self.rows):
                found = grades_by_input(network, *inputs, self.rows, device=device, precision=precision)
                for prefix, metrics in (("", found["image"]), ("fused_", found["fused"])):
                    values |= {f"val_{name}/{prefix}{metric}": value for metric, value in metrics.items()}
            rows = self.data.split.rows("val")
            further = further_by_input(network, *inputs, self.further, rows, device=device, precision=precision)
            for column, both in further.items():
                values |= {f"val_{name}/{column}_{kind}_kappa": metrics["kappa"] for kind, metrics in both.items()}
        return values


def grades_by_input(
    network: JointModel,
    data: KneeData,
    reports: Reports,
    cells: Cells,
    rows: Rows,
    *,
    device: torch.device,
    precision: str,
) -> dict[str, dict[str, float]]:
    """Metrics of the grades of graded ``rows``: from the ``image`` alone, and ``fused`` from all that each row has."""
    grades = data.grades[rows]
    alone = predict(network.image, data.loader(rows), device=device, precision=autocast_type(precision))
    fused = probabilities(network, data, reports, cells, rows, fused=True, device=device, precision=precision)[0]
    both: dict[str, NDArray[Any]] = {"image": alone.probabilities, "fused": fused}
    return {kind: _metrics(found, grades, data.grade_set) for kind, found in both.items()}


def further_by_input(
    network: JointModel,
    data: KneeData,
    reports: Reports,
    cells: Cells,
    further: FurtherGrades,
    rows: Rows,
    *,
    device: torch.device,
    precision: str,
) -> dict[str, dict[str, dict[str, float]]]:
    """By further column, as ``grades_by_input`` of those ``rows`` that have its grade; without columns with fewer than two."""
    graded = rows[(further.grades[rows] >= 0).any(1)]
    known = further.grades[graded] >= 0
    places = [
        place
        for place in range(len(further.columns))
        if len(np.unique(further.grades[graded[known[:, place]], place])) > 1
    ]
    found: dict[str, dict[str, dict[str, float]]] = {further.columns[place]: {} for place in places}
    for kind in ("image", "fused") if found else ():
        by_set = probabilities(
            network, data, reports, cells, graded, fused=kind == "fused", device=device, precision=precision
        )
        for place in places:
            here = known[:, place]
            grades = further.grades[graded[here], place]
            found[further.columns[place]][kind] = _metrics(by_set[1 + place][here], grades, further.sets[place])
    return found


def _metrics(found: NDArray[Any], grades: NDArray[np.int64], grade_set: GradeSet) -> dict[str, float]:
    metrics = grading_metrics(found, grades, grade_set)
    return {name: metrics[name] for name in _METRICS}


@torch.no_grad()
def probabilities(
    network: JointModel,
    data: KneeData,
    reports: Reports,
    cells: Cells,
    rows: Rows,
    *,
    fused: bool,
    device: torch.device,
    precision: str,
) -> list[NDArray[np.float64]]:
    """(N, K) probabilities of the grades, and of each further grade set, from the image alone.

    With ``fused`` they are those of the joint transformer, from all modalities that each row has.
    """
    network.eval()

    def of_batch(batch: tuple[Tensor, Tensor]) -> list[NDArray[np.float32]]:
        images, batch_rows = batch
        chosen = batch_rows.numpy()
        tokens = torch.from_numpy(reports.tokens[chosen].astype(np.int64)).to(device)
        numbers, categories = (
            torch.from_numpy(values[chosen]).to(device) for values in (cells.numbers, cells.categories)
        )
        with autocast(device, precision):
            pictures = images_to(images, device)
            if fused:
                both = grade_with_all(network, pictures, tokens, numbers, categories)
                logits = (both.logits, *both.further)
            else:
                logits = network.image_grades(network.image.pooled(pictures))
        return [one.float().softmax(1).cpu().numpy() for one in logits]

    parts = zip(*merged(map(of_batch, part_of(data.loader(rows)))), strict=True)
    return [np.concatenate(part).astype(np.float64) for part in parts]
