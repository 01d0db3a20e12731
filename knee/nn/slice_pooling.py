"""One prediction of a knee from those of its slices: the mean logits of its most severe slices.

A knee has the grade of its worst place, which few slices show. So the mean of all slices is wrong in principle, and a network
that is trained to give every slice the knee's grade is asked for what a spared slice cannot show. Instead the pooled
prediction is trained on the knee's grade: multiple-instance learning with top-k pooling. (Attention-based pooling, Ilse et al.
2018, has weights of its own for each network; this has none, so that every grader can be trained and graded so.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SEVEREST = 0.25
"""The share of a knee's slices that is averaged."""


def pool_slices(logits: Tensor, *, share: float = SEVEREST) -> Tensor:
    """Mean logits of the ⌈share · n⌉ slices with the highest expected grade: (M, n, K) of M knees → (M, K).

    The expected grade is Σ k p_k; of equal ones the first count. ``share`` 1 averages all slices. Gradients reach only the
    slices that are averaged. In place of logits also log-probabilities, which give the same probabilities.
    """
    slices, grades = logits.shape[1:]
    expected = logits.detach().float().softmax(2) @ torch.arange(grades, dtype=torch.float32, device=logits.device)
    most = expected.argsort(dim=1, descending=True, stable=True)[:, : max(1, math.ceil(share * slices))]
    return logits.gather(1, most[:, :, None].expand(-1, -1, grades)).mean(1)
