"""One case for a reader: the image, the predictions and attention of both networks, and the reasons to review it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from knee.attention import attention_map
from knee.errors import UserError
from knee.grades import Decision, decide
from knee.images.original import Original, Source

MEASURES = ("distance", "flip", "entropy", "overlap", "mismatch")
"""Reasons to review a case; see ``ReviewCase.doubts``."""


@dataclass(frozen=True)
class NetworkView:
    """One network's output for a case. The map is that of the network's own predicted grade, never of the label."""

    probabilities: NDArray[np.float64]
    """(K,), each in [0, 1], sum 1."""
    class_map: NDArray[np.float32]
    """(h, w) ≥ 0 on the grid of the last feature map: the map of the predicted grade, rectified, not scaled."""
    scaled: bool = False
    """Whether the map is x already, in [0, 1], so that its maximum before scaling is unknown."""
    decision: Decision = "likeliest"
    """Of the grade set."""

    @property
    def grade(self) -> int:
        """The predicted grade."""
        return int(decide(self.probabilities[None], self.decision)[0])

    def attention(self, size: int) -> NDArray[np.float32]:
        """x (size, size) in [0, 1], scaled per image; all zero where the class map is the same everywhere."""
        class_map = torch.from_numpy(np.ascontiguousarray(self.class_map, np.float32))[None, None]
        only = torch.zeros(1, dtype=torch.int64)
        return np.asarray(attention_map(class_map, only, (size, size))[0].numpy(), np.float32)

    @property
    def maximum(self) -> float:
        """The largest value before scaling. A scaled map always has a hot spot, even if the class map is weak."""
        return float(np.max(self.class_map))


@dataclass(frozen=True)
class CaseFacts:
    """What is known about an image apart from its pixels."""

    case: str
    """Its salted hash (``knee.data.cases``)."""
    split: str
    grade: int | None = None
    """The recorded grade, where there is one."""
    side: str = ""
    """``L``, ``R`` or empty: the anatomical side."""
    source: Source | None = None
    """The original file. Its name is never exported."""
    familiarity: float | None = None
    """The share of validation images that are at least as unlike the training images, in [0, 1]; None or NaN if unknown."""
    stack: str = ""
    """The pseudonym of the volume that the image is a slice of; empty if it is none. Its slices are one case on the page."""
    place: int = 0
    """Orders the slices of a volume."""
    unlike: str = ""
    """Why the image is unlike the training images; empty if it is not, or this is unknown."""
    patient: str = ""
    """Whose image it is; exported only as a salted hash. Empty: as in the image's DICOM file, if it is one."""
    original: Original | None = None
    """The original, where it was read with the networks' input; else it is read from ``source`` when it is exported."""


@dataclass(frozen=True, kw_only=True)
class ReviewCase(CaseFacts):
    """A case to review: the facts, the networks' input and their predictions."""

    image: NDArray[np.uint8]
    """(S, S): the input of the networks."""
    student: NetworkView
    teacher: NetworkView
    flip_disagreement: float
    """Total variation of the teacher's probabilities for the image and its horizontal flip, in [0, 1]."""
    evidence: NDArray[np.float32] | None = None
    """(S, S) in [0, 1]: the teacher's evidence map (``knee.evaluation.evidence``)."""
    evidence_against: int | None = None
    """The grade that the evidence map compares the teacher's grade with: the most probable other one."""
    cartilage: NDArray[np.bool_] | None = None
    """(S, S), the mask that attention is compared with."""
    overlap: float | None = None
    """IoU of the teacher's thresholded attention and ``cartilage``, in [0, 1]."""

    def attention_on(self, original: Original, network: str) -> NDArray[np.float32]:
        """x of ``student`` or ``teacher`` on the original's pixels (h, w), in [0, 1]."""
        view: NetworkView = getattr(self, network)
        return original.place(view.attention(self.image.shape[0]))

    def evidence_on(self, original: Original) -> NDArray[np.float32] | None:
        """The evidence map on the original's pixels (h, w), in [0, 1]; None where there is none."""
        return None if self.evidence is None else original.place(self.evidence)

    @property
    def distance(self) -> float:
        """Total variation of the student's and the teacher's probabilities, in [0, 1]."""
        return total_variation(self.student.probabilities, self.teacher.probabilities)

    @property
    def entropy(self) -> float:
        """Entropy of the teacher's probabilities as a share of the largest possible, ln K; in [0, 1]."""
        p = np.asarray(self.teacher.probabilities, np.float64)
        return float(-(p * np.log(np.clip(p, 1e-12, 1.0))).sum() / math.log(len(p)))

    @property
    def mismatch(self) -> float | None:
        """One minus the teacher's probability of the recorded grade; None without a recorded grade."""
        return None if self.grade is None else float(1.0 - self.teacher.probabilities[self.grade])

    @property
    def doubts(self) -> dict[str, float]:
        """Reasons to review the case, each in [0, 1], larger is more doubtful; unknown ones are left out."""
        values = {
            "distance": self.distance,
            "flip": self.flip_disagreement,
            "entropy": self.entropy,
            "overlap": None if self.overlap is None else 1.0 - self.overlap,
            "mismatch": self.mismatch,
        }
        return {name: value for name, value in values.items() if value is not None}


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """½ Σ|p − q| of two probability vectors (K,); 0 where they agree, 1 where they share nothing.

    >>> total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    """
    return float(np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum() / 2)


def doubtfulness(case: ReviewCase, by: str = "all") -> float:
    """One of ``MEASURES``, or ``all``: the mean of the known ones. −1 where the measure is unknown.

    Raises UserError for another name.
    """
    if by not in (*MEASURES, "all"):
        raise UserError(f"cases cannot be chosen by {by!r}; choose one of {', '.join((*MEASURES, 'all'))}")
    doubts = case.doubts
    return sum(doubts.values()) / len(doubts) if by == "all" else doubts.get(by, -1.0)


def most_doubtful(cases: Iterable[ReviewCase], count: int, *, by: str = "all") -> list[ReviewCase]:
    """The ``count`` most doubtful cases, most doubtful first; ties keep their order. Keeps ``count`` cases in memory."""
    if count < 1:
        raise UserError(f"{count} cases to review; ask for at least 1")
    return heapq.nlargest(count, cases, key=lambda case: doubtfulness(case, by))
