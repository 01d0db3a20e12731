"""Correction of predictions for the distribution of the training labels, for balanced accuracy."""

from __future__ import annotations

from torch import Tensor, nn

from knee.task import Grader, Grading


class PriorCorrected(nn.Module):
    """Predictions as if all grades were equally frequent: p'_k ∝ p_k / π_k (Menon et al. 2021, arXiv 2007.07314, post hoc).

    π is the distribution of the labels, from their ``counts`` (K,); a grade without labels counts as one. The largest p'
    maximises balanced accuracy if p is calibrated. Class maps stay as they are.
    """

    log_prior: Tensor

    def __init__(self, grader: Grader, counts: Tensor) -> None:
        super().__init__()
        self.grader = grader
        self.register_buffer("log_prior", counts.float().clamp_min(1).log() - counts.sum().float().log())

    def forward(self, images: Tensor) -> Grading:
        """Images (B, 1, H, W) in [0, 1] → corrected logits (B, K), class maps."""
        grading = self.grader(images)
        return Grading(grading.logits.float() - self.log_prior, grading.class_maps)
