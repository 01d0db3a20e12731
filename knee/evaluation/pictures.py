"""Pictures of where student and teacher looked, case by case: for TensorBoard, overlays and prediction folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knee.attention import AttentionConfig
from knee.evaluation.overlays import Look, Rgb, case_panel, legend_strip, verdict
from knee.evaluation.predictions import Attended, iterate_attention
from knee.images.masks import DilatedMasks
from knee.task import Grader


@dataclass(frozen=True)
class CasePicture:
    """One case: the image, and each network's overlay beside it."""

    row: int
    panel: Rgb
    """Without a legend, for sheets that have their own."""
    cartilage: bool
    """A mask's edge is drawn."""

    @property
    def picture(self) -> Rgb:
        """With its legend."""
        return np.vstack([self.panel, legend_strip(self.panel.shape[1], cartilage=self.cartilage)])


def case_pictures(
    graders: Mapping[str, Grader],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    names: tuple[str, ...],
    captions: Mapping[int, str],
    device: torch.device,
    precision: torch.dtype | None,
    attention: AttentionConfig,
    masks: DilatedMasks | None = None,
    has_mask: NDArray[np.bool_] | None = None,
) -> Iterator[CasePicture]:
    """A picture for every image of the loader, as they come; memory stays flat.

    ``names`` of the grades; ``captions`` by row number, shown below, so without anything that identifies a patient. Each
    network's attention is of the grade that it predicts itself.
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
        )
        for grader in graders.values()
    ]
    for attended in zip(*streams, strict=True):
        for number, row in enumerate(attended[0].rows):
            looks = [_look(name, batch, number, names) for name, batch in zip(graders, attended, strict=True)]
            masked = masks is not None and has_mask is not None and bool(has_mask[row])
            panel = case_panel(
                _grey(attended[0].images[number]),
                looks,
                caption=captions[int(row)],
                cartilage=masks[int(row)] if masks is not None and masked else None,
                legend=False,
            )
            yield CasePicture(int(row), panel, masked)


def _look(name: str, batch: Attended, number: int, names: tuple[str, ...]) -> Look:
    return Look(
        attention=batch.attention[number].cpu().numpy(),
        mask=batch.mask[number].cpu().numpy(),
        text=verdict(name, batch.probabilities[number].cpu().numpy(), names),
    )


def _grey(image: Tensor) -> NDArray[np.uint8]:
    return (image[0] * 255).round().to(torch.uint8).cpu().numpy()
