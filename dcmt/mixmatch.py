"""MixMatch: guessed labels of a teacher, sharpened, and mixup of labeled and unlabeled images (Berthelot et al. 2019).

q is the teacher's distribution over K grades for an unlabeled image, averaged with that for its flip if ``loss.teacher_flip``,
sharpened by the temperature T of ``loss.teacher_temperature``: q ∝ q̄^(1/T). Labeled images (their labels) and the B_u
unlabeled ones (q) are mixed with λ ≥ ½ in a random order; t̃ are the mixed targets, p̃ the student's answers to the mixed images:

    L = CE(t̃, p̃) of the labeled images + w(τ) λ_u · 1/(K B_u) Σ_b ‖t̃_b − p̃_b‖²  of the unlabeled ones

λ_u is ``loss.probability_consistency``, w(τ) the ramp-up of Eq. 5. In the paper the student itself guesses, by the mean over
two augmentations; here it is the teacher, for the image and its flip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dcmt.losses import draw_mixture, mixed, soft_cross_entropy, soft_labels
from dcmt.mean_teacher import MeanTeacher, total, unlabeled_monitors
from knee.task import Batch, StepLosses


class MixMatch(MeanTeacher):
    """A mean teacher whose student learns from mixed images; a ``knee.task.Task``. Needs ``loss.mixup``, the α of λ."""

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Guessed labels, mixup, one forward pass of the student, and the total, at optimizer step τ = ``step``."""
        loss, ramp, labeled = self.loss, self.ramp(step), len(batch.grades)
        count = len(batch.student) if ramp else labeled
        mixture = draw_mixture(count, loss.mixup)
        logits = self.student(mixed(batch.student[:count], mixture)).logits.float()

        targets = soft_labels(batch.grades, logits.shape[1], spread=loss.label_spread)
        if count > labeled:
            guesses = self.guess(batch.teacher[labeled:])
            targets = torch.cat([targets, guesses])
        targets = mixed(targets, mixture)
        terms = {"grade": soft_cross_entropy(logits[:labeled], targets[:labeled])}
        monitors: dict[str, Tensor] = {}
        if count > labeled:
            terms["probability_consistency"] = F.mse_loss(logits[labeled:].softmax(1), targets[labeled:])
            monitors = unlabeled_monitors(logits[labeled:], guesses.log())
        return StepLosses(total(terms, loss, ramp), terms, monitors)

    @torch.no_grad()
    def guess(self, images: Tensor) -> Tensor:
        """The sharpened targets of unlabeled images (U, 1, H, W) → (U, K) float32, rows sum to 1."""
        logits = self._teach(images).logits.float()
        return (logits / self.loss.teacher_temperature).softmax(1)
