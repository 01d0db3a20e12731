"""Predictions and attention of a network for many images; maps are kept only for one batch.

The attention is always that of the grade predicted by the network, never of the label, as for an ungraded image. Works with
any ``Grader``, such as a CNN or a CLIP model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knee.attention import SHARPNESS, THRESHOLD, attention_map, soft_threshold
from knee.errors import NotFinite
from knee.evaluation.evidence import evidence_maps
from knee.grades import Decision, decide
from knee.metrics import per_image_iou
from knee.nn.flips import jensen_shannon
from knee.nn.padding import as_input, content_of
from knee.nn.processes import merged, part_of
from knee.task import Grader, Grading

Floats = NDArray[np.float64]


class Masks(Protocol):
    """Dilated cartilage masks by row number: an (N, S, S) array, or an object that reads them on demand."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The masks (n, S, S) in {0, 1} of an array of row numbers (n,)."""
        ...


class Attended(NamedTuple):
    """A graded batch with the attention for the predicted grades, on the grader's device."""

    rows: NDArray[np.int64]
    """(B,) row numbers."""
    images: Tensor
    """(B, 1, S, S) float32 in [0, 1], padding marked."""
    probabilities: Tensor
    """(B, K) float32."""
    predicted: Tensor
    """(B,) int64."""
    attention: Tensor
    """x: (B, S, S) float32 in [0, 1]; all zero for an empty map."""
    mask: Tensor
    """f = σ(ω(x − σ₀)): (B, S, S) float32 in [0, 1]; all zero for an empty map."""
    map_maximum: Tensor
    """(B,) float32: the largest value of the rectified class map before scaling, which x no longer contains."""
    flipped: Tensor | None
    """(B, K) float32 probabilities for the horizontally flipped images; None unless requested."""
    evidence: Tensor | None = None
    """(B, S, S) float32 in [0, 1]: evidence maps (``knee.evaluation.evidence``); None unless requested."""
    against: Tensor | None = None
    """(B,) int64: the grade that ``evidence`` compares the predicted one with."""


@dataclass(frozen=True)
class Predictions:
    """One network's predictions for N images; arrays of length N in the loader's order."""

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    """(N, K)."""
    predicted: NDArray[np.int64]
    entropy: Floats
    """Of the probabilities, in nats: 0 to ln K."""
    map_maximum: Floats
    empty: NDArray[np.bool_]
    """Whether the attention map is empty."""
    iou: Floats
    """IoU of {f > 0.5} and the mask; NaN where there is no mask or an empty one."""
    flip_divergence: Floats | None = None
    """Jensen–Shannon divergence of the predictions for image and horizontal flip, in nats: 0 to ln 2."""
    flip_changed: NDArray[np.bool_] | None = None
    """Whether the horizontal flip gets another grade."""

    def __len__(self) -> int:
        return len(self.rows)


def iterate_attention(
    grader: Grader,
    loader: Iterable[tuple[Tensor, Any]],
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    sharpness: float = SHARPNESS,
    threshold: float = THRESHOLD,
    decision: Decision = "likeliest",
    flip: bool = False,
    evidence: bool = False,
) -> Iterator[Attended]:
    """Grades one batch at a time and yields it with its maps; memory does not grow with the number of batches.

    The loader yields images (B, 1, S, S), uint8 or float in [0, 1], with their row numbers (B,). ``precision`` is the
    autocast type (None: float32). The network is in eval mode meanwhile. Raises `NotFinite` for outputs that are not finite.
    ``decision`` is that of the grade set. ``flip`` also grades the horizontal flips; ``evidence`` adds evidence maps, for a
    backward pass.
    """
    device = torch.device(device)
    with _eval_mode(grader):
        for images, rows in loader:
            images = as_input(images.to(device, non_blocking=True))
            yield _attend(grader, images, np.asarray(rows), precision, sharpness, threshold, decision, flip, evidence)


def predict(
    grader: Grader,
    loader: Iterable[tuple[Tensor, Any]],
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    masks: Masks | None = None,
    has_mask: NDArray[np.bool_] | None = None,
    sharpness: float = SHARPNESS,
    threshold: float = THRESHOLD,
    decision: Decision = "likeliest",
    flip: bool = False,
) -> Predictions:
    """Grades every image of the loader (as `iterate_attention`); keeps only numbers, not the maps.

    Several processes share the batches, and all get the predictions of all.

    ``masks`` by row number with ``has_mask`` (rows,) give the IoU of the attention; ``flip`` also grades the horizontal
    flips. ValueError for an empty loader.
    """
    batches = iterate_attention(
        grader,
        part_of(loader),
        device=device,
        precision=precision,
        sharpness=sharpness,
        threshold=threshold,
        decision=decision,
        flip=flip,
    )
    found = list(merged(_numbers(batch, masks, has_mask, decision) for batch in batches))
    if not found:
        raise ValueError("there are no images to grade: the loader is empty")
    return Predictions(**{name: np.concatenate([columns[name] for columns in found]) for name in found[0]})


def _numbers(
    batch: Attended, masks: Masks | None, has_mask: NDArray[np.bool_] | None, decision: Decision
) -> dict[str, NDArray[Any]]:
    """The columns of ``Predictions`` for a batch."""
    probabilities = batch.probabilities.cpu()
    columns = {
        "rows": batch.rows,
        "probabilities": probabilities.numpy(),
        "predicted": batch.predicted.cpu().numpy(),
        "entropy": torch.special.entr(probabilities.double()).sum(1).numpy(),
        "map_maximum": batch.map_maximum.cpu().double().numpy(),
        "empty": (batch.mask.amax((1, 2)) == 0).cpu().numpy(),
        "iou": _attention_iou(batch, masks, has_mask),
    }
    if batch.flipped is not None:
        flipped = batch.flipped.cpu()
        columns["flip_divergence"] = jensen_shannon(probabilities.double(), flipped.double()).numpy()
        columns["flip_changed"] = (decide(flipped, decision) != batch.predicted.cpu()).numpy()
    return columns


@contextlib.contextmanager
def _eval_mode(grader: Grader) -> Iterator[None]:
    modules = list(grader.modules()) if isinstance(grader, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


@torch.no_grad()
def _attend(
    grader: Grader,
    images: Tensor,
    rows: NDArray[Any],
    precision: torch.dtype | None,
    sharpness: float,
    threshold: float,
    decision: Decision,
    flip: bool,
    evidence: bool,
) -> Attended:
    found = evidence_maps(grader, images, precision=precision, decision=decision) if evidence else None
    grading = _checked(found.grading, rows) if found else _grade(grader, images, precision, rows)
    probabilities = grading.logits.float().softmax(1)
    predicted = decide(probabilities, decision)
    batch = torch.arange(len(images), device=images.device)
    size = (images.shape[2], images.shape[3])
    attention = attention_map(grading.class_maps, predicted, size, content=content_of(images))
    shows = attention.amax((1, 2), keepdim=True) > 0
    return Attended(
        rows=rows.astype(np.int64),
        images=images,
        probabilities=probabilities,
        predicted=predicted,
        attention=attention,
        mask=soft_threshold(attention, sharpness=sharpness, threshold=threshold) * shows,
        map_maximum=grading.class_maps[batch, predicted].float().relu().amax((1, 2)),
        flipped=_grade(grader, images.flip(-1), precision, rows).logits.float().softmax(1) if flip else None,
        evidence=found.maps if found else None,
        against=found.against if found else None,
    )


def _grade(grader: Grader, images: Tensor, precision: torch.dtype | None, rows: NDArray[Any]) -> Grading:
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        return _checked(grader(images), rows)


def _checked(grading: Grading, rows: NDArray[Any]) -> Grading:
    if not torch.isfinite(grading.logits).all():
        wrong = rows[(~torch.isfinite(grading.logits)).any(1).cpu().numpy()]
        raise NotFinite(wrong, len(rows))
    return grading


def _attention_iou(batch: Attended, masks: Masks | None, has_mask: NDArray[np.bool_] | None) -> Floats:
    iou = np.full(len(batch.rows), np.nan)
    if masks is None:
        return iou
    known = np.ones(len(iou), dtype=bool) if has_mask is None else np.asarray(has_mask)[batch.rows]
    if known.any():
        attended = (batch.mask > 0.5).cpu().numpy()[known]
        iou[known] = per_image_iou(attended, np.asarray(masks[batch.rows[known]]))
    return iou
