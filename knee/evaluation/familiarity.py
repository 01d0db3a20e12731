"""How much an image resembles the training images: class-wise Mahalanobis distance with a shared covariance (Lee et al. 2018).

The features of an image are the pooled features of the teacher, which its classifier sees, and a 16 × 16 thumbnail of the
prepared image, which knows where things are. On radiographs either of them alone misses some kind of foreign image
(docs/log.md, 2026-11-30). The classes are the teacher's own predictions, so hidden grades of unlabeled images are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from knee.nn.padding import area_pooled

Floats = NDArray[np.float64]

THUMBNAIL = 16
PASSED = 0.95
"""The share of images like the validation images that must pass."""
_CONFIDENCE = 0.95
_SHRINKAGE = 0.1


@dataclass(frozen=True)
class Familiarity:
    """What the training images are like, and how far validation images are from them."""

    center: NDArray[np.float32]
    """(D,) mean of the training features."""
    whitening: NDArray[np.float32]
    """(D, D): (features − center) @ whitening have the shared covariance 1."""
    means: NDArray[np.float32]
    """(K', D) whitened mean of each class, at least one."""
    distances: NDArray[np.float32]
    """(n,) distances of the validation images, ascending, at least one."""

    @property
    def threshold(self) -> float:
        """Images that are further away are marked."""
        return float(self.distances[passing_rank(len(self.distances)) - 1])

    def distance(self, features: NDArray[Any]) -> Floats:
        """Distance (N,) of features (N, D) from the nearest class mean."""
        white = (np.asarray(features, np.float64) - self.center) @ self.whitening.astype(np.float64)
        means = self.means.astype(np.float64)
        squares = (white**2).sum(1)[:, None] + (means**2).sum(1) - 2 * white @ means.T
        return np.asarray(np.sqrt(np.maximum(squares.min(1), 0)))

    def share(self, distance: Floats) -> Floats:
        """Familiarity in [0, 1]: the share of validation images at least as far from the training images. (N,) → (N,)."""
        return 1 - np.searchsorted(self.distances, distance.astype(np.float32), side="left") / len(self.distances)


def passing_rank(count: int) -> int:
    """The rank (from 1) of the validation distance that is the threshold.

    The smallest rank for which at least 95 % of further images pass, with 95 % confidence: a tolerance limit (Wilks 1941).
    With fewer than 59 images no rank is high enough, and the largest distance is used.

    >>> passing_rank(826), passing_rank(58), passing_rank(59)
    (796, 58, 59)
    """
    return min(int(binom.ppf(_CONFIDENCE, count, PASSED)) + 1, count)


def fit_familiarity(training: NDArray[Any], classes: NDArray[np.int64], validation: NDArray[Any]) -> Familiarity:
    """From features of training (N, D) and validation images (n, D), N and n ≥ 1; classes (N,) of the training images.

    Features are standardised, and the covariance is shrunk by 0.1 towards a multiple of the identity, so that it can be
    inverted even for few images.
    """
    training = np.asarray(training, np.float64)
    center, scale = training.mean(0), np.maximum(training.std(0), 1e-6)
    scaled = (training - center) / scale
    names, place = np.unique(classes, return_inverse=True)
    means = np.stack([scaled[place == number].mean(0) for number in range(len(names))])
    within = scaled - means[place]
    covariance = within.T @ within / len(within)
    level = max(float(np.trace(covariance)) / len(covariance), 1e-6)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    found = Familiarity(
        center.astype(np.float32),
        (whitening / scale[:, None]).astype(np.float32),
        (means @ whitening).astype(np.float32),
        np.zeros(1, np.float32),
    )
    return Familiarity(
        found.center, found.whitening, found.means, np.sort(found.distance(validation)).astype(np.float32)
    )


def thumbnails(images: Tensor) -> Tensor:
    """Images (B, 1, S, S) in [0, 1] → (B, 256): their 16 × 16 thumbnails."""
    return area_pooled(images, (THUMBNAIL, THUMBNAIL)).flatten(1)


def features(pooled: Tensor, images: Tensor) -> NDArray[np.float32]:
    """The features (B, D) of images (B, 1, S, S) in [0, 1] whose pooled features of the teacher are (B, C)."""
    return np.asarray(torch.cat([pooled.float().cpu(), thumbnails(images).cpu()], 1).numpy(), np.float32)
