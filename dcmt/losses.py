"""The losses of DC-MT (Huo et al. 2020) as pure functions: without term weights, steps or state.

Weights are applied only in ``dcmt.mean_teacher``, where the total of Eq. 5 is computed. All sums are in float32.
"""

from __future__ import annotations

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
