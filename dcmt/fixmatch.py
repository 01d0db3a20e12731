"""FixMatch: pseudo-labels from a weak view for a strong view (Sohn et al. 2020), with SoftMatch weights (Chen et al. 2023).

q is the student's distribution over the grades for the weak view of an unlabeled image, without gradient, p the one for its
strong view, B_u the number of unlabeled images in the batch:

    L = L_c + λ_u · 1/B_u Σ_b w_b · CE(argmax q_b, p_b)

FixMatch: w_b = 1[max q_b > t]. SoftMatch: w_b is a truncated Gaussian of max q_b. Distribution alignment rescales q first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcmt.config import FixMatchConfig, GraderConfig, LossConfig
from dcmt.mean_teacher import attention_monitors, masked_attention_loss, unlabeled_monitors
from dcmt.schedules import default_teacher_decay, teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from knee.attention import SHARPNESS, THRESHOLD, attention_mask
from knee.grades import load_grade_set
from knee.nn.padding import content_of
from knee.task import Batch, StepLosses, Validation

_SMALLEST_SHARE = 1e-6
_SMALLEST_VARIANCE = 1e-12


class PseudoLabels(NamedTuple):
    """Pseudo-labels from the weak views of B unlabeled images, without gradient."""

    probabilities: Tensor
    """(B, K): distributions whose largest entry gives the label."""
    labels: Tensor
    """(B,) int64 in [0, K)."""
    weights: Tensor
    """(B,) in [0, 1]."""


class Averages(nn.Module):
    """Moving averages over the batches for K grades, saved and restored with the networks."""

    predictions: Tensor
    """(K,) mean prediction for unlabeled images."""
    labels: Tensor
    """(K,) distribution of the labels."""
    confidence: Tensor
    """μ: mean of the confidences max q."""
    variance: Tensor
    """σ²: their variance."""

    def __init__(self, grades: int) -> None:
        super().__init__()
        self.register_buffer("predictions", torch.full((grades,), 1 / grades))
        self.register_buffer("labels", torch.full((grades,), 1 / grades))
        self.register_buffer("confidence", torch.tensor(1 / grades))
        self.register_buffer("variance", torch.tensor(1.0))

    @torch.no_grad()
    def update_distributions(self, probabilities: Tensor, grades: Tensor, momentum: float) -> None:
        """Update with the predictions (B, K) for unlabeled images and the grades (L,) of labeled ones."""
        self.predictions.lerp_(probabilities.mean(0), 1 - momentum)
        self.labels.lerp_(F.one_hot(grades, len(self.labels)).float().mean(0), 1 - momentum)

    @torch.no_grad()
    def update_confidences(self, confidences: Tensor, momentum: float) -> None:
        """Update with the confidences (B,) of a batch, B ≥ 2, using the unbiased variance."""
        self.confidence.lerp_(confidences.mean(), 1 - momentum)
        self.variance.lerp_(confidences.var(), 1 - momentum)


class FixMatch:
    """A student trained on labels and on its own pseudo-labels, and its moving average; a ``knee.task.Task``.

    The batch's teacher view is the weak view, its student view the strong one. Labeled images are graded in the weak view, as
    in the paper. One forward pass of the student grades all views, so they share batch statistics, as in the authors' code.
    Unlike in the paper, both views have the same geometry (crop, flip, rotation), so that masks and attention maps fit both;
    the strong view differs only in brightness, contrast, blur, noise and cutout.

    The teacher (Eq. 1) is used only for evaluation, as the authors evaluate averaged weights. It has no forward pass in
    training, so with the policy ``own`` its normalisation statistics are averaged as with ``ema``.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        grades: int,
        loss: LossConfig,
        options: FixMatchConfig,
        decay: float,
        buffers: BufferPolicy = "ema",
        sharpness: float = SHARPNESS,
        threshold: float = THRESHOLD,
        best_metric: str = "val_teacher/macro_f1",
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.averages = Averages(grades)
        self.networks: Mapping[str, nn.Module] = {
            "student": self.student,
            "teacher": self.teacher,
            "averages": self.averages,
        }
        self.loss = loss
        self.options = options
        self.decay = decay
        self.buffers: BufferPolicy = "copy" if buffers == "copy" else "ema"
        self.sharpness = sharpness
        self.threshold = threshold
        self.best_metric = best_metric
        self.validation: Validation | None = None

    @classmethod
    def from_config(cls, config: GraderConfig, student: nn.Module, *, steps: int, best_metric: str) -> FixMatch:
        """The task of a config for a run of ``steps`` optimizer steps."""
        decay = config.teacher.decay
        return cls(
            student,
            grades=load_grade_set(config.data.grade_set).count,
            loss=config.loss,
            options=config.fixmatch,
            decay=default_teacher_decay(steps) if decay is None else decay,
            buffers=config.teacher.buffers,
            sharpness=config.attention.sharpness,
            threshold=config.attention.threshold,
            best_metric=best_metric,
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """One forward pass over labeled, weak and strong views, and the total, at optimizer step ``step``."""
        labeled = len(batch.grades)
        unlabeled = len(batch.student) - labeled if self.options.unlabeled_weight else 0
        weak, strong = batch.teacher[: labeled + unlabeled], batch.student[labeled : labeled + unlabeled]
        grading = self.student(torch.cat([weak, strong]))
        of_labeled, of_weak, of_strong = grading.logits.split([labeled, unlabeled, unlabeled])

        terms = {"grade": F.cross_entropy(of_labeled.float(), batch.grades)}  # L_c
        monitors: dict[str, Tensor] = {}
        if unlabeled:
            pseudo = self.pseudo_labels(of_weak, batch.grades, step)
            terms["pseudo_label"] = pseudo_label_loss(of_strong, pseudo.labels, pseudo.weights)
            monitors |= pseudo_label_monitors(of_strong, pseudo)
        if self.loss.attention:
            f = attention_mask(
                grading.class_maps[:labeled],
                batch.grades,
                (batch.student.shape[-2], batch.student.shape[-1]),
                sharpness=self.sharpness,
                threshold=self.threshold,
                content=content_of(batch.teacher[:labeled]),
            )
            terms["attention"] = masked_attention_loss(f, batch, self.loss)  # L_a, Eq. 2
            monitors |= attention_monitors(f)
        return StepLosses(self._total(terms), terms, monitors)

    def _total(self, terms: Mapping[str, Tensor]) -> Tensor:
        weights = {
            "grade": self.loss.grade,
            "pseudo_label": self.options.unlabeled_weight,
            "attention": self.loss.attention,
        }
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, grades: Tensor, step: int) -> PseudoLabels:
        """Labels and weights from the weak views' logits (B, K); updates the averages, then uses them, as the authors do.

        ``grades`` are those of the labeled images of the batch. The averages' momentum is min(m, 1 − 1/(step + 2)): their
        starting values count as one batch, so a short run does not depend on them.
        """
        options, averages = self.options, self.averages
        momentum = teacher_decay(step + 1, options.momentum)
        labeling = trusted = weak_logits.float().softmax(1)
        if options.distribution_alignment != "none":
            averages.update_distributions(trusted, grades, momentum)
        if options.distribution_alignment == "labeled_prior":
            labeling = trusted = align_distribution(trusted, averages.predictions, averages.labels)
        elif options.distribution_alignment == "uniform":
            uniform = torch.full_like(averages.predictions, 1 / len(averages.predictions))
            trusted = align_distribution(trusted, averages.predictions, uniform)
        confidences = trusted.amax(1)
        if options.weighting == "softmatch":
            averages.update_confidences(confidences, momentum)
            weights = softmatch_weights(confidences, averages.confidence, averages.variance)
        else:
            weights = threshold_weights(confidences, options.threshold)
        return PseudoLabels(labeling, labeling.argmax(1), weights)

    def after_update(self, step: int) -> Mapping[str, float]:
        """The moving average of the student (Eq. 1) after optimizer step τ = ``step``."""
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        update_buffers(self.teacher, self.student, decay, policy=self.buffers)
        return {"teacher_decay": decay}

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics of student and teacher on the validation data."""
        graders = {"student": self.student, "teacher": self.teacher}
        return self.validation(graders, step) if self.validation else {}


def pseudo_label_loss(strong_logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """1/B Σ_b w_b · CE(y_b, softmax z_b) over all B images, also those of weight 0 (Sohn et al. 2020, Eq. 4).

    strong_logits z (B, K), labels y (B,) int64, weights w (B,) in [0, 1], B ≥ 1 → scalar ≥ 0, float32. The gradient reaches
    ``strong_logits`` only.
    """
    return (weights.detach() * F.cross_entropy(strong_logits.float(), labels, reduction="none")).mean()


def threshold_weights(confidences: Tensor, threshold: float) -> Tensor:
    """w = 1[c > t] (Sohn et al. 2020, Eq. 4); (B,) → (B,) in {0, 1}.

    The comparison is strict, unlike the paper's ≥, so that τ = 1 uses no image even if rounding makes a confidence 1.
    """
    return (confidences > threshold).to(confidences.dtype)


def softmatch_weights(confidences: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """w = exp(−(c − μ)² / 2σ²) below μ, 1 above: a truncated Gaussian (Chen et al. 2023).

    confidences c (B,) in [0, 1], mean μ and variance σ² ≥ 0 scalars → (B,) in [0, 1], non-decreasing in c.
    """
    below = (confidences - mean).clamp_max(0)
    return torch.exp(-below.square() / (2 * variance.clamp_min(_SMALLEST_VARIANCE)))


def align_distribution(probabilities: Tensor, mean: Tensor, target: Tensor) -> Tensor:
    """q̃_k ∝ q_k · target_k / mean_k, scaled to sum 1 (Berthelot et al. 2020, ReMixMatch).

    probabilities q (B, K), mean and target (K,), all in [0, 1] with sum 1 → (B, K). ``mean`` is the average of q over many
    batches. Where mean and target are equal, q̃ = q. Shares below 1e-6 count as 1e-6.
    """
    scaled = probabilities * target.clamp_min(_SMALLEST_SHARE) / mean.clamp_min(_SMALLEST_SHARE)
    return scaled / scaled.sum(1, keepdim=True)


def pseudo_label_monitors(strong_logits: Tensor, pseudo: PseudoLabels) -> dict[str, Tensor]:
    """On unlabeled images: the share with a weight of at least ½, the mean weight, agreement and entropy.

    Agreement is the share of strong views with the same grade as their pseudo-label. The entropy (nats) is that of the
    distributions from which the labels are taken.
    """
    return {
        "unlabeled/used": (pseudo.weights >= 0.5).float().mean(),
        "unlabeled/weight": pseudo.weights.mean(),
        **unlabeled_monitors(strong_logits, pseudo.probabilities.log()),
    }
