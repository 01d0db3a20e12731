"""Pictures of the attention of student and teacher for each case: for TensorBoard, overlays and prediction folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knee.attention import AttentionConfig
from knee.evaluation.overlays import Look, Rgb, case_panel, contour_of, legend_strip, verdict
from knee.evaluation.predictions import Attended, iterate_attention
from knee.grades import GradeSet
from knee.images.masks import DilatedMasks
from knee.images.original import Original, Source, shown_original
from knee.task import Grader


@dataclass(frozen=True)
class CasePicture:
    """One case: the image, and next to it each network's overlay."""

    row: int
    panel: Rgb
    """Without a legend, for contact sheets, which have their own."""
    cartilage: bool
    """Whether the edge of a mask is drawn."""

    @property
    def picture(self) -> Rgb:
        """The panel with a legend."""
        return np.vstack([self.panel, legend_strip(self.panel.shape[1], cartilage=self.cartilage)])


def case_pictures(
    graders: Mapping[str, Grader],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    grade_set: GradeSet,
    captions: Mapping[int, str],
    sources: Callable[[int], Source],
    device: torch.device,
    precision: torch.dtype | None,
    attention: AttentionConfig,
    masks: DilatedMasks | None = None,
    has_mask: NDArray[np.bool_] | None = None,
) -> Iterator[CasePicture]:
    """A picture for every image of the loader, one batch at a time; memory does not grow with their number.

    The pictures show the originals, up to 1,024 px, in their own orientation. ``captions`` and ``sources`` are by row
    number. Captions are part of the picture, so they must not identify a patient. Each network's
    attention is that of its own predicted grade; the evidence map of the last one comes after it.
    """
    batches = list(loader) if len(graders) > 1 else loader
    streams = [
        iterate_attention(
            grader,
            batches,
            device=device,
            precision=precision,
            sharpness=attention.sharpness,
            threshold=attention.threshold,
            decision=grade_set.decision,
            evidence=place == len(graders) - 1,
        )
        for place, grader in enumerate(graders.values())
    ]
    for attended in zip(*streams, strict=True):
        for number, row in enumerate(attended[0].rows):
            square = _grey(attended[0].images[number])
            original = shown_original(sources(int(row)), square)
            looks = [
                _look(name, batch, number, grade_set.names, original, attention.threshold)
                for name, batch in zip(graders, attended, strict=True)
            ]
            looks.append(_evidence(attended[-1], number, grade_set.names, original))
            masked = masks is not None and has_mask is not None and bool(has_mask[row])
            note = f"  ({original.note})" if original.note else ""
            panel = case_panel(
                original.grey,
                looks,
                caption=captions[int(row)] + note,
                cartilage=original.place(masks[int(row)]) if masks is not None and masked else None,
                legend=False,
            )
            yield CasePicture(int(row), panel, masked)


def _look(
    name: str, batch: Attended, number: int, names: tuple[str, ...], original: Original, threshold: float
) -> Look:
    x = original.place(batch.attention[number].cpu().numpy())
    return Look(
        attention=x,
        mask=contour_of(x, threshold),
        text=verdict(name, int(batch.predicted[number]), batch.probabilities[number].cpu().numpy(), names),
    )


def _evidence(batch: Attended, number: int, names: tuple[str, ...], original: Original) -> Look:
    assert batch.evidence is not None
    assert batch.against is not None
    grade, other = int(batch.predicted[number]), int(batch.against[number])
    text = f"evidence: {grade} {names[grade]} against {other} {names[other]}"
    return Look(original.place(batch.evidence[number].cpu().numpy()), None, text)


def _grey(image: Tensor) -> NDArray[np.uint8]:
    return (image[0] * 255).round().to(torch.uint8).cpu().numpy()
