"""Make the cases for readers from student, teacher and images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knee.attention import SHARPNESS, THRESHOLD
from knee.evaluation.predictions import Attended, Masks, iterate_attention
from knee.grades import Decision
from knee.metrics import per_image_iou
from knee.review.cases import CaseFacts, NetworkView, ReviewCase, total_variation
from knee.task import Grader, Grading


def review_cases(
    student: Grader,
    teacher: Grader,
    loader: Iterable[tuple[Tensor, Any]],
    facts: Callable[[int], CaseFacts],
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    masks: Masks | None = None,
    has_mask: NDArray[np.bool_] | None = None,
    doubts: bool = True,
    sharpness: float = SHARPNESS,
    threshold: float = THRESHOLD,
    decision: Decision = "likeliest",
) -> Iterator[ReviewCase]:
    """A case for each image of the loader, in its order; only one batch is kept in memory.

    The loader yields images (B, 1, S, S) uint8 with their row numbers (B,); ``facts`` gives what is known about a row.
    ``masks`` are the dilated masks by row number, as for the metrics. Each network's map is that of its own predicted grade.
    Without ``doubts``, which only the page shows, there are no evidence maps and no predictions for flipped images (NaN).
    """
    for_student, for_teacher = tee(loader)
    recorders = _Recorder(student), _Recorder(teacher)
    options: dict[str, Any] = {"device": device, "precision": precision, "sharpness": sharpness, "threshold": threshold}
    options["decision"] = decision
    batches = zip(
        iterate_attention(recorders[0], for_student, **options),
        iterate_attention(recorders[1], for_teacher, flip=doubts, evidence=doubts, **options),
        strict=True,
    )
    for by_student, by_teacher in batches:
        views = [
            recorder.views(batch, decision) for recorder, batch in zip(recorders, (by_student, by_teacher), strict=True)
        ]
        images = (by_teacher.images[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        flipped = (
            _array(by_teacher.flipped) if doubts else np.full_like(by_teacher.probabilities.cpu(), np.nan, np.float64)
        )
        attended = (by_teacher.mask > 0.5).cpu().numpy()
        evidence = None if by_teacher.evidence is None else by_teacher.evidence.cpu().numpy()
        against = [None] * len(images) if by_teacher.against is None else by_teacher.against.tolist()
        for number, row in enumerate(by_teacher.rows.tolist()):
            fact, cartilage = facts(row), None
            if masks is not None and (has_mask is None or has_mask[row]):
                cartilage = np.asarray(masks[np.array([row])])[0] > 0.5
            yield ReviewCase(
                image=images[number],
                student=views[0][number],
                teacher=views[1][number],
                flip_disagreement=total_variation(views[1][number].probabilities, flipped[number]),
                evidence=None if evidence is None else evidence[number],
                evidence_against=against[number],
                cartilage=cartilage,
                overlap=_overlap(attended[number], cartilage),
                **vars(fact),
            )


class _Recorder(nn.Module):
    """A grader that keeps its output for the last batch, because a case stores the maps on the grid of the network."""

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.grader = grader
        self.outputs: list[Grading] = []

    def forward(self, images: Tensor) -> Grading:
        """The grader's output, which is kept."""
        grading = self.grader(images)
        self.outputs.append(Grading(*(part.detach() for part in grading)))
        return grading

    def views(self, batch: Attended, decision: Decision) -> list[NetworkView]:
        """The network's output for each image of the batch, without the flipped images."""
        maps = self.outputs[0].class_maps
        self.outputs.clear()
        chosen = maps[torch.arange(len(maps), device=maps.device), batch.predicted].float().relu().cpu().numpy()
        return [
            NetworkView(probabilities, class_map, decision=decision)
            for probabilities, class_map in zip(_array(batch.probabilities), chosen, strict=True)
        ]


def _array(probabilities: Tensor | None) -> NDArray[np.float64]:
    assert probabilities is not None
    return np.asarray(probabilities.double().cpu().numpy(), np.float64)


def _overlap(attended: NDArray[np.bool_], cartilage: NDArray[np.bool_] | None) -> float | None:
    if cartilage is None or not cartilage.any():
        return None
    return float(per_image_iou(attended[None], cartilage[None])[0])
