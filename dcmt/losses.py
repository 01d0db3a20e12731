"""The losses of DC-MT (Huo et al. 2020) as pure functions: without term weights, steps or state.

Weights are applied only in ``dcmt.mean_teacher``, where the total of Eq. 5 is computed. All sums are in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_SUM = 1e-6
"""Lower bound of denominators, so that empty masks and empty attention give finite values; there is no other smoothing."""


def attention_loss(attention: Tensor, mask: Tensor, *, mse_weight: float = 0.5, inside_weight: float = 0.001) -> Tensor:
    """The attention loss: distance of the attention from the cartilage mask (Huo et al. 2020, Eq. 2), mean over images.

    λ_a · Σ(f − S)² / (Σf + ΣS) + λ_r · (1 − Σ f S / Σf), per image; λ_a is ``mse_weight``, λ_r ``inside_weight``.
    attention f (B, H, W) in [0, 1], mask S (B, H, W) in [0, 1] → scalar in [0, λ_a + λ_r]; 0 for B = 0.
    Only ``attention`` gets a gradient. Pass only the images that have a mask.
    """
    if len(attention) == 0:
        return attention.sum()
    f, s = attention.float(), mask.detach().float()
    distance = relative_squared_distance(f, s)
    inside = (f * s).sum((1, 2)) / f.sum((1, 2)).clamp_min(_SMALLEST_SUM)
    return (mse_weight * distance + inside_weight * (1 - inside)).mean()


def probability_consistency(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean squared difference of class probabilities (Huo et al. 2020, Eq. 3).

    Both (B, K) logits; no gradient reaches the teacher. Scalar in [0, 2 / K].

    The teacher's logits are divided by ``temperature`` T > 0; T = 1 gives Eq. 3. T < 1 sharpens the teacher's probabilities,
    as MixMatch does with its guessed labels (Berthelot et al. 2019, Eq. 7), so that the loss is not zero for a student that
    agrees with the teacher.
    """
    teacher = teacher_logits.detach().float() / temperature
    return F.mse_loss(student_logits.float().softmax(1), teacher.softmax(1))


def soft_labels(grades: Tensor, count: int, *, spread: float = 0.0) -> Tensor:
    """Targets (L, K) of grades (L,): 1 − spread for the grade, and ``spread`` shared by its neighbours on the scale.

    Label smoothing (Szegedy et al. 2016) within ± 1 grade, the usual disagreement of readers of KL grades; spread in [0, 1).
    A grade at an end has one neighbour, which gets all of it.
    """
    kernel = torch.eye(count, device=grades.device)
    neighbours = torch.diag(torch.ones(count - 1, device=grades.device), 1)
    neighbours = neighbours + neighbours.T
    kernel = (1 - spread) * kernel + spread * neighbours / neighbours.sum(1, keepdim=True)
    return kernel[grades]


def ordinal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of P(grade ≥ k), mean over images and the K − 1 thresholds k: a miss by two grades costs more.

    The loss of CORAL (Cao et al. 2020, arXiv 1901.07884), with the cumulative probabilities of the softmax in place of a head
    of its own: logits and targets (B, K) → scalar ≥ 0. (CORN's conditional probabilities, Shi et al. 2023, would give the
    cross-entropy itself.) Only ``logits`` get a gradient.
    """
    log_p = logits.float().log_softmax(1)
    at_least = log_p.flip(1).logcumsumexp(1).flip(1)[:, 1:]
    below = log_p.logcumsumexp(1)[:, :-1]
    wanted = targets.detach().float().flip(1).cumsum(1).flip(1)[:, 1:]
    return -(wanted * at_least + (1 - wanted) * below).mean()


class Mixture(NamedTuple):
    """How the images of a batch are mixed: each with weight λ ≥ ½ with the one at its place in ``order``."""

    weight: float
    order: Tensor


def draw_mixture(count: int, alpha: float) -> Mixture:
    """λ = max(λ', 1 − λ'), λ' ~ Beta(α, α), and a random order of ``count`` images, from torch's global generator.

    Mixup (Zhang et al. 2018, arXiv 1710.09412); λ ≥ ½ as in MixMatch, so that labeled images stay mostly labeled ones.
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    return Mixture(max(weight, 1 - weight), torch.randperm(count))


def mixed(values: Tensor, mixture: Mixture) -> Tensor:
    """λ x + (1 − λ) x[order], of images or targets; (B, …) → (B, …)."""
    return torch.lerp(values[mixture.order.to(values.device)], values, mixture.weight)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_k q_k log p_k, mean over images: cross-entropy with soft targets q; p = softmax of the logits.

    Both (B, K), rows of ``targets`` sum to 1 → scalar ≥ 0; smallest, the mean entropy of q, where p = q. Only ``logits`` get
    a gradient.
    """
    return F.cross_entropy(logits.float(), targets.detach().float())


def attention_consistency(student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
    """Squared difference of the attention relative to its sum (Huo et al. 2020, Eq. 4), mean over images.

    Σ(f_θ − f_θ')² / (Σ f_θ + Σ f_θ'), per image. Both (B, H, W) in [0, 1], of the same class and the same geometry;
    no gradient reaches the teacher. Scalar in [0, 1].
    """
    return relative_squared_distance(student_attention.float(), teacher_attention.detach().float()).mean()


def relative_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Σ(a − b)² / (Σa + Σb) per image: the first term of Eq. 2, and Eq. 4.

    Both (B, H, W) in [0, 1] → (B,) in [0, 1]: 0 where equal or both empty, 1 for disjoint binary masks.
    """
    difference = (a - b).square().sum((1, 2))
    return difference / (a.sum((1, 2)) + b.sum((1, 2))).clamp_min(_SMALLEST_SUM)
