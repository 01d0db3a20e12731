"""The losses of CLIP-KOA (Jeong and Lee 2025, section 2.2) on predictions for images and their horizontal flips.

S holds the scaled similarities s_ij of image i to the text of grade j; S^H those of the horizontally flipped images.
The paper's total is L = symmetry_loss + λ · flip_consistency, with λ = 10 (Eq. 4). Sums are in float32 or float64, for any
input type and in any autocast context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from knee.nn import flips

_LEAST = torch.finfo(torch.float32).tiny


def symmetry_loss(similarity: Tensor, similarity_flipped: Tensor, grades: Tensor) -> Tensor:
    """½ (CE(S, Y) + CE(S^H, Y)), the first term of Eq. 4; each cross-entropy is a mean over the images.

    Both (N, K) and already scaled, grades (N,) int64 → scalar ≥ 0. Eq. 2 prints the sum without the ½; Eq. 4 has it.

    >>> symmetry_loss(torch.zeros(1, 5), torch.zeros(1, 5), torch.tensor([3])).exp().round().item()
    5.0
    """
    original = F.cross_entropy(_wide(similarity), grades)
    flipped = F.cross_entropy(_wide(similarity_flipped), grades)
    return 0.5 * (original + flipped)


def flip_consistency(similarity: Tensor, similarity_flipped: Tensor) -> Tensor:
    """Jensen–Shannon divergence of softmax S and softmax S^H, in nats, a mean over the images (Eq. 3).

    Both (N, K) and already scaled → scalar in [0, ln 2]: 0 for equal predictions, ln 2 if both are certain of different
    grades. The value and its gradient are symmetric in the arguments; no labels are needed.
    """
    return jensen_shannon(similarity, similarity_flipped).mean()


def jensen_shannon(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Jensen–Shannon divergence in nats of the softmax of each row: (N, K), (N, K) → (N,) in [0, ln 2].

    Finite with a finite gradient for any finite logits, one-hot softmax included. In float32 the error is about 1e-7.

    >>> certain = torch.tensor([[1000.0, 0.0]])
    >>> (jensen_shannon(certain, certain.flip(1)) / torch.tensor(2.0).log()).tolist()
    [1.0]
    """
    # The smallest float32 replaces 0, where the gradient of the entropy is infinite.
    p, q = (_wide(values).softmax(1).clamp_min(_LEAST) for values in (logits, other_logits))
    return flips.jensen_shannon(p, q)


def _wide(values: Tensor) -> Tensor:
    """float64 unchanged (for gradient checks), all other types as float32."""
    return values if values.dtype == torch.float64 else values.float()
