"""Retrieval between images and reports: recall at k with ties, its chance, its bound, and intervals by patient.

Equal reports have equal embeddings, so they tie. A query's recall is the expectation over random orders of tied items. Then
the exact recall at k cannot exceed Σ over distinct reports of min(k, how often it occurs) / N: a larger value means that an
embedding knows more than its own modality, as when one network sees image and report together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.errors import UserError
from knee.evaluation.intervals import intervals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KS = (1, 5, 10)
_CHUNK = 256
_ORDERS = 400


@dataclass(frozen=True)
class Places:
    """Where the matching items of each query are in its ranking: three counts (Q,)."""

    above: Ints
    """Items without a match that are more similar than the best match."""
    tied: Ints
    """Items without a match that are exactly as similar."""
    matches: Ints
    """Matching items at that similarity; 0 for a query without any match."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """(Q,) queries that have a match."""
        return self.matches > 0

    def recall(self, k: int) -> Floats:
        """(Q,) in [0, 1]: the probability that a match is among the first k, tied items in random order.

        >>> Places(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1, 1, 1])).recall(1)
        array([1. , 0.5, 0. ])
        """
        group = self.tied + self.matches
        drawn = np.clip(k - self.above, 0, group)
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(group.max(initial=0)) + 1)))])
        rest = np.maximum(self.tied - drawn, 0)
        missed = np.exp(logs[self.tied] - logs[rest] + logs[group - drawn] - logs[group])
        found: Floats = np.where(self.known, 1 - np.where(drawn > self.tied, 0.0, missed), 0.0)
        return found

    def rank(self) -> Floats:
        """(Q,) the expected rank of the first match, from 1; NaN without a match."""
        first = self.above + (self.tied + self.matches + 1) / (self.matches + 1)
        return np.where(self.known, first, np.nan)


def places(queries: Floats, gallery: Floats, items: Ints, wanted: Ints, offered: Ints) -> Places:
    """Rank a gallery for each query by the product of embeddings.

    Embeddings (Q, D) of the queries and (U, D) of the distinct items; ``items`` (N,) gives each gallery item's row there, so
    that equal items tie exactly. An item matches if its number in ``offered`` (N,) is the query's in ``wanted`` (Q,);
    negative numbers match nothing.
    """
    counts = [np.zeros(len(queries), np.int64) for _ in range(3)]
    for start in range(0, len(queries), _CHUNK):
        chosen = slice(start, start + _CHUNK)
        similar = (queries[chosen] @ gallery.T)[:, items]
        match = (wanted[chosen, None] == offered) & (offered >= 0)
        best = np.where(match, similar, -np.inf).max(1, initial=-np.inf)[:, None]
        counts[0][chosen] = (similar > best).sum(1)
        counts[1][chosen] = ((similar == best) & ~match).sum(1)
        counts[2][chosen] = ((similar == best) & match).sum(1)
    return Places(*counts)


def chance_recall(wanted: Ints, offered: Ints, items: Ints, k: int) -> Floats:
    """(Q,) the recall at k of embeddings that know nothing. Gallery items with equal ``items`` (N,) stay together.

    Without equal items it is 1 − C(N − m, k) / C(N, k) for m matches; with them the mean over 400 random orders.
    """
    numbers, of = np.unique(offered, return_inverse=True)
    counts = np.bincount(of)
    which = np.searchsorted(numbers, wanted)
    known = (wanted >= 0) & (numbers[np.minimum(which, len(numbers) - 1)] == wanted)
    which = np.where(known, which, 0)
    if len(np.unique(items)) == len(items):
        matches = np.where(known, counts[which], 0)
        return Places(np.zeros(len(wanted), np.int64), len(offered) - matches, matches).recall(k)
    rng, hits = np.random.default_rng(0), np.zeros(len(numbers))
    for _ in range(_ORDERS):
        order = np.lexsort((rng.random(len(items)), rng.random(int(items.max()) + 1)[items]))
        hits[np.unique(of[order[:k]])] += 1
    return np.where(known, hits[which] / _ORDERS, 0.0)


def bound(groups: Ints, k: int) -> float:
    """The largest exact recall at k if items of one group cannot be told apart: Σ min(k, size) / N; groups (N,).

    >>> bound(np.array([7, 7, 8]), 1), bound(np.array([7, 7, 8]), 2)
    (0.6666666666666666, 1.0)
    """
    counts = np.unique(groups, return_counts=True)[1]
    return float(np.minimum(counts, k).sum() / max(len(groups), 1))


@dataclass(frozen=True)
class Pairs:
    """Embedded pairs of a split, one for each image with a report; all arrays have N rows, except ``texts``."""

    images: Floats
    """(N, D) of unit length."""
    texts: Floats
    """(U, D) of unit length, of the distinct reports."""
    text_of: Ints
    """(N,) which of the distinct reports is the image's."""
    patients: Ints
    """(N,) numbers of the patients."""
    grades: Ints
    """(N,) −1 if unknown."""
    covariates: Ints
    """(N,) equal numbers for equal values of the table columns."""

    def __len__(self) -> int:
        return len(self.images)

    def matches(self) -> dict[str, Ints]:
        """By definition of a match, numbers (N,) that are equal for a match; −1 matches nothing."""
        return {
            "exact": np.arange(len(self)),
            "equal_report": self.text_of,
            "patient": self.patients,
            "equal_grade": self.grades,
        }

    def ranked(self, direction: str, numbers: Ints) -> Places:
        """The places of the matches; ``direction``: image_to_report or report_to_image."""
        if direction == "image_to_report":
            return places(self.images, self.texts, self.text_of, numbers, numbers)
        return places(self.texts[self.text_of], self.images, np.arange(len(self)), numbers, numbers)


DIRECTIONS = ("image_to_report", "report_to_image")


def retrieval(pairs: Pairs, *, samples: int = 0, seed: int = 0, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Recall in both directions for each definition of a match, with chance; bound and covariates-only for exact matches.

    With ``samples`` each recall has a 95 % interval from a bootstrap over patients, the gallery fixed.

    Raises:
        UserError: an exact recall is above its bound, so an embedding knows the other modality.
    """
    found: dict[str, Any] = {
        "gallery": len(pairs),
        "patients": len(np.unique(pairs.patients)),
        "distinct_reports": len(pairs.texts),
        "bound": {f"recall_at_{k}": bound(pairs.text_of, k) for k in ks},
        "covariates_only": {f"recall_at_{k}": bound(pairs.covariates, k) for k in ks},
    }
    for direction in DIRECTIONS:
        found[direction] = {}
        for name, numbers in pairs.matches().items():
            ranked = pairs.ranked(direction, numbers)
            if not ranked.known.any():
                continue
            items = pairs.text_of if direction == "image_to_report" else np.arange(len(pairs))
            # An exact match is one item, so equal items do not change its chance.
            items = np.arange(len(pairs)) if name == "exact" else items
            one = _summary(ranked, pairs.patients, ks, samples=samples, seed=seed)
            chance = {f"recall_at_{k}": chance_recall(numbers, numbers, items, k)[ranked.known].mean() for k in ks}
            found[direction][name] = {**one, "chance": {key: float(value) for key, value in chance.items()}}
        for k in ks:
            refuse_leak(found[direction]["exact"][f"recall_at_{k}"], found["bound"][f"recall_at_{k}"], k, direction)
    return found


def refuse_leak(recall: float, most: float, k: int, direction: str) -> None:
    """Raises UserError if an exact recall is above its bound."""
    if recall > most + 1e-9:
        raise UserError(
            f"{direction}: recall at {k} is {recall:.4f}, above its bound {most:.4f} (equal reports cannot be told apart): the "
            "embedding of one modality knows the other, which is a leak; no figure of this run can be trusted"
        )


def _summary(ranked: Places, patients: Ints, ks: Sequence[int], *, samples: int, seed: int) -> dict[str, Any]:
    known = ranked.known
    recalls = {f"recall_at_{k}": ranked.recall(k)[known] for k in ks}
    values: dict[str, Any] = {"queries": int(known.sum())}
    values |= {name: float(recall.mean()) for name, recall in recalls.items()}
    values["median_rank"] = float(np.median(ranked.rank()[known]))
    if samples:

        def statistics(weights: Floats) -> dict[str, Floats]:
            totals = np.maximum(weights.sum(1), 1)
            return {name: weights @ recall / totals for name, recall in recalls.items()}

        values["intervals"] = intervals(statistics, patients[known], samples=samples, seed=seed)
    return values


def table_lines(found: Mapping[str, Any], ks: Sequence[int] = KS) -> list[str]:
    """The figures of ``retrieval`` as lines of text: recall in per cent with interval, chance and bound."""
    sizes = f"{found['gallery']} pairs of {found['patients']} patients, {found['distinct_reports']} distinct reports"
    lines = [f"{sizes}; recall in %, [95 % interval], chance in brackets"]
    for direction in DIRECTIONS:
        for name, one in found[direction].items():
            cells = []
            for key in (f"recall_at_{k}" for k in ks):
                low, high = one.get("intervals", {}).get(key, (np.nan, np.nan))
                interval = "" if np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
                cells.append(f"R@{key[10:]} {100 * one[key]:.1f}{interval} ({100 * one['chance'][key]:.1f})")
            lines.append(f"{direction.replace('_', ' ')}, {name.replace('_', ' ')}: {'  '.join(cells)}  median rank "
                         f"{one['median_rank']:g}")  # fmt: skip
    for name, text in (("bound", "bound of exact recall"), ("covariates_only", "by the table columns alone, exact")):
        lines.append(f"{text}: " + "  ".join(f"R@{k} {100 * found[name][f'recall_at_{k}']:.1f}" for k in ks))
    return lines
