"""Validation of student and teacher during training: metrics, and pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from knee.attention import AttentionConfig
from knee.data.prepare import KneeData
from knee.engine.device import autocast_type
from knee.engine.tracking import Tracker
from knee.evaluation.by_knee import knee_grades, knee_predictions
from knee.evaluation.pictures import case_pictures
from knee.evaluation.predictions import Predictions, predict
from knee.grades import BEST_METRICS
from knee.metrics import confusion, exceeded_share, grading_metrics

Rows = NDArray[np.int64]
_TRACKED = (*BEST_METRICS, "ece")


class GraderValidation:
    """Grades the validation rows with each network and returns metrics such as ``val_student/macro_f1``.

    Writes to TensorBoard: the attention on ``cases`` fixed validation images, for each network's own predicted grade, and
    figures of confusion, reliability and the teacher's ROC.
    """

    def __init__(
        self,
        data: KneeData,
        *,
        device: torch.device,
        precision: str,
        attention: AttentionConfig,
        tracker: Tracker,
        cases: int,
        knees: bool = False,
    ) -> None:
        """With ``knees`` metrics are those of knees, graded by their pooled slices; the figures remain those of images."""
        self.data = data
        self.knees = knees
        rows = data.split.rows("val")
        self.rows = rows[data.grades[rows] >= 0]
        self.device = device
        self.precision = precision
        self.attention = attention
        self.tracker = tracker
        self.shown = spread_over_grades(self.rows, data.grades, count=min(cases, len(self.rows)))

    def __call__(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Metrics of every network on the validation rows; empty if there are none."""
        if not len(self.rows):
            return {}
        found = {name: self._predict(network) for name, network in networks.items()}
        values: dict[str, float] = {}
        for name, predictions in found.items():
            values |= {f"val_{name}/{metric}": value for metric, value in self._metrics(predictions).items()}
        if self.tracker.shows:
            self._draw(networks, found, step)
        return values

    def _predict(self, network: nn.Module) -> Predictions:
        return predict(
            network,
            self.data.loader(self.rows),
            device=self.device,
            precision=autocast_type(self.precision),
            masks=self.data.masks,
            has_mask=self.data.cache.has_mask,
            sharpness=self.attention.sharpness,
            threshold=self.attention.threshold,
            decision=self.data.grade_set.decision,
        )

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        probabilities, grades = predictions.probabilities, self.data.grades[self.rows]
        if self.knees:
            series = self.data.series(self.rows)
            probabilities = knee_predictions(predictions, series, severest=True).probabilities
            grades = knee_grades(grades, series)
        everything = grading_metrics(probabilities, grades, self.data.grade_set)
        values = {name: everything[name] for name in _TRACKED}
        values["empty_maps"] = float(predictions.empty.mean())
        if not np.isnan(predictions.iou).all():
            values["tiou"] = float(np.nanmean(exceeded_share(predictions.iou)))
        return values

    def _draw(self, networks: Mapping[str, nn.Module], found: Mapping[str, Predictions], step: int) -> None:
        from knee.evaluation.figures import confusion_figure, figure_array, reliability_figure, roc_figure

        grades, names = self.data.grades[self.rows], self.data.grade_set.names
        last = list(found)[-1]
        figures = {
            "confusion": confusion_figure(
                {name: confusion(grades, one.predicted, len(names)) for name, one in found.items()}, names
            ),
            "reliability": reliability_figure({name: one.probabilities for name, one in found.items()}, grades),
            "roc": roc_figure(found[last].probabilities, grades, names),
        }
        for name, figure in figures.items():
            self.tracker.image(f"figure/{name}", figure_array(figure), step)
        cases = dict(zip(self.shown.tolist(), self.data.cases(self.shown), strict=True))
        captions = {row: f"{cases[row]}  reader: {names[self.data.grades[row]]}" for row in cases}
        for shown in case_pictures(
            networks,
            self.data.loader(self.shown),
            grade_set=self.data.grade_set,
            captions=captions,
            sources=self.data.source,
            device=self.device,
            precision=autocast_type(self.precision),
            attention=self.attention,
            masks=self.data.masks,
            has_mask=self.data.cache.has_mask,
        ):
            self.tracker.image(f"attention/{cases[shown.row]}", shown.picture, step)


def spread_over_grades(rows: Rows, grades: NDArray[np.int64], *, count: int) -> Rows:
    """``count`` of ``rows``, spread as evenly as possible over the grades and within each grade; deterministic, ascending.

    Neighboring rows are often slices of one patient, so rows far apart show different knees.

    >>> spread_over_grades(np.arange(6), np.array([0, 0, 0, 0, 1, 2]), count=4).tolist()
    [0, 2, 4, 5]
    """
    piles = [rows[grades[rows] == grade] for grade in np.unique(grades[rows])]
    wanted = [0] * len(piles)
    while sum(wanted) < min(count, len(rows)):
        open_piles = [number for number, pile in enumerate(piles) if wanted[number] < len(pile)]
        wanted[min(open_piles, key=lambda number: wanted[number])] += 1
    picked = [pile[np.arange(number) * len(pile) // max(number, 1)] for number, pile in zip(wanted, piles, strict=True)]
    return np.sort(np.concatenate(picked)) if picked else np.zeros(0, np.int64)
