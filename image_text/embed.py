"""Embeddings of images and of reports, each from its own modality; retrieval during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clip_koa.prompts import read_prompts
from image_text.reports import Reports
from image_text.retrieval import DIRECTIONS, Pairs
from image_text.sheet import sheet_figure
from image_text.table import covariate_groups
from image_text.text import Vocabulary, masked, read_grade_words
from image_text.towers import TwoTowers
from knee.data.datasets import images_to
from knee.data.prepare import KneeData
from knee.engine.device import autocast
from knee.engine.tracking import Tracker
from knee.errors import NotFinite, UserError
from knee.evaluation.figures import figure_array
from knee.grades import GradeSet
from knee.metrics import grading_metrics
from knee.nn import processes

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
_TEXTS = 64
_SHEET = 4
"""Queries on the sheet in TensorBoard."""


@torch.no_grad()
def embed_images(
    network: TwoTowers, loader: DataLoader[tuple[Tensor, Tensor]], *, device: torch.device, precision: str
) -> Floats:
    """z_I (N, D) of the loader's images, in order; several processes share them. Raises NotFinite."""
    network.eval()

    def of_batch(batch: tuple[Tensor, Tensor]) -> NDArray[np.float32]:
        images, rows = batch
        with autocast(device, precision):
            found: NDArray[np.float32] = network.embed_image(images_to(images, device)).float().cpu().numpy()
        bad = ~np.isfinite(found).all(1)
        if bad.any():
            raise NotFinite(rows.numpy()[bad], len(rows))
        return found

    return np.concatenate(list(processes.merged(map(of_batch, processes.part_of(loader))))).astype(np.float64)


@torch.no_grad()
def embed_reports(network: TwoTowers, tokens: NDArray[np.int32], *, device: torch.device, precision: str) -> Floats:
    """z_T (N, D) of token rows (N, L); several processes share them."""
    network.eval()

    def of_batch(start: int) -> NDArray[np.float32]:
        batch = torch.from_numpy(tokens[start : start + _TEXTS].astype(np.int64)).to(device)
        with autocast(device, precision):
            found: NDArray[np.float32] = network.embed_report(batch).float().cpu().numpy()
        return found

    starts = processes.part_of(range(0, len(tokens), _TEXTS))
    return np.concatenate(list(processes.merged(map(of_batch, starts)))).astype(np.float64)


def embed_pairs(
    network: TwoTowers,
    data: KneeData,
    reports: Reports,
    rows: Rows,
    *,
    device: torch.device,
    precision: str,
    columns: tuple[str, ...] = (),
) -> Pairs:
    """The pairs among ``rows``; each distinct report is embedded once. Raises UserError if fewer than two have a report."""
    rows = rows[reports.present[rows]]
    if len(rows) < 2:
        raise UserError(f"{len(rows)} images of this split have a report; at least two are needed to retrieve")
    _, first, text_of = np.unique(reports.texts[rows], return_index=True, return_inverse=True)
    patients = np.unique(data.patients.iloc[rows].to_numpy(str), return_inverse=True)[1]
    return Pairs(
        images=embed_images(network, data.loader(rows), device=device, precision=precision),
        texts=embed_reports(network, reports.tokens[rows[first]], device=device, precision=precision),
        text_of=text_of.reshape(-1).astype(np.int64),
        patients=patients.astype(np.int64),
        grades=data.grades[rows],
        covariates=covariate_groups(data.manifest.table.iloc[rows], columns),
    )


class GradeTexts(NamedTuple):
    """The phrases of a grade set's prompts as tokens, for zero-shot grading."""

    tokens: NDArray[np.int32]
    """(P, L)."""
    grades: NDArray[np.int64]
    """(P,) the grade of each phrase."""


def grade_texts(grade_set: GradeSet, *, vocabulary: Vocabulary, length: int, grade_words: str) -> GradeTexts | None:
    """The shipped prompts of a grade set, with the same words masked as in the reports; None if there are none."""
    try:
        phrases, grades = read_prompts(grade_set.name, grade_set).flat
    except UserError:
        return None
    words = read_grade_words(grade_words)
    tokens, _ = vocabulary.encode([masked(phrase, words)[0] for phrase in phrases], length=length)
    return GradeTexts(tokens, np.array(grades))


def zero_shot(images: Floats, texts: Floats, grades: NDArray[np.int64], count: int) -> Floats:
    """Similarities (N, K) of image embeddings (N, D) to each grade: the mean of its phrases' embeddings (P, D), rescaled."""
    means = np.stack([texts[grades == grade].mean(0) for grade in range(count)])
    similar: Floats = images @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    return similar


class RetrievalValidation:
    """Retrieval of each network among the validation pairs: mean reciprocal rank and recall of an equal report.

    With ``prompts`` also zero-shot grading of the graded pairs. The teacher's sheet goes to TensorBoard.
    """

    def __init__(
        self,
        data: KneeData,
        reports: Reports,
        *,
        device: torch.device,
        precision: str,
        tracker: Tracker,
        prompts: GradeTexts | None = None,
    ) -> None:
        rows = data.split.rows("val")
        self.data, self.reports, self.rows = data, reports, rows[reports.present[rows]]
        self.device, self.precision, self.tracker, self.prompts = device, precision, tracker, prompts

    def __call__(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Values such as ``val_teacher/mrr``; empty with fewer than two validation pairs."""
        if len(self.rows) < 2:
            return {}
        values = {}
        for name, network in networks.items():
            assert isinstance(network, TwoTowers)
            pairs = embed_pairs(
                network, self.data, self.reports, self.rows, device=self.device, precision=self.precision
            )
            ranked = [pairs.ranked(direction, pairs.text_of) for direction in DIRECTIONS]
            for direction, one in zip(DIRECTIONS, ranked, strict=True):
                values[f"val_{name}/{direction}_recall_at_5"] = float(one.recall(5).mean())
            values[f"val_{name}/mrr"] = float(np.mean([1 / one.rank() for one in ranked]))
            values |= self._zero_shot(name, network, pairs)
            if name == "teacher" and self.tracker.shows:
                figure = sheet_figure(pairs, self.data, self.rows, queries=_SHEET)
                self.tracker.image("retrieval/sheet", figure_array(figure), step)
        return values

    def _zero_shot(self, name: str, network: TwoTowers, pairs: Pairs) -> dict[str, float]:
        known = pairs.grades >= 0
        if self.prompts is None or len(np.unique(pairs.grades[known])) < 2:
            return {}
        texts = embed_reports(network, self.prompts.tokens, device=self.device, precision=self.precision)
        count = self.data.grade_set.count
        similar = zero_shot(pairs.images[known], texts, self.prompts.grades, count)
        scores = np.exp(float(network.log_scale.exp()) * similar)
        found = grading_metrics(scores / scores.sum(1, keepdims=True), pairs.grades[known], self.data.grade_set)
        return {f"val_{name}/zero_shot_{metric}": found[metric] for metric in ("kappa", "accuracy")}
