"""DC-MT: student, teacher, and the total loss of Eq. 5 (Huo et al. 2020).

Every row of the paper's ablation table is a choice of weights: supervised training has no consistency terms, the plain mean
teacher no attention terms, DC-MT (NAC) no attention consistency. The flip terms of CLIP-KOA (Jeong and Lee 2025, Eq. 4) work
with any grader: without consistency terms they give that paper's supervised training, with a teacher they are added to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from clip_koa.flip_terms import changed_share, grade_and_flip_terms, grade_with_flips
from dcmt.config import GraderConfig, LossConfig
from dcmt.losses import (
    Mixture,
    attention_consistency,
    attention_loss,
    draw_mixture,
    mixed,
    ordinal_loss,
    probability_consistency,
    soft_cross_entropy,
    soft_labels,
)
from dcmt.schedules import default_teacher_decay, exponential_ramp, teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from knee.attention import SHARPNESS, THRESHOLD, attention_mask, empty_attention, gradient_share
from knee.nn.flips import mean_logits, with_flipped
from knee.nn.padding import content_of
from knee.nn.processes import share_of_mean
from knee.nn.slice_pooling import pool_slices
from knee.task import Batch, Grading, StepLosses, Validation


class MeanTeacher:
    """Student and teacher trained together on labeled and unlabeled images; a ``knee.task.Task``.

    ``ramp_steps`` is τ_max of w(τ), counted from ``ramp_start``. Before ``ramp_start``, only labeled images are used, without
    the teacher and without flip consistency. ``decay`` is α. While the teacher has no forward pass, its normalisation
    statistics are averaged as with ``ema`` even with the policy ``own``, since its own would never be updated. With ``slices``
    above 1 each so many images of a batch are slices of one knee, whose pooled prediction is trained on its grade.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        loss: LossConfig,
        decay: float,
        ramp_steps: int,
        ramp_start: int = 0,
        buffers: BufferPolicy = "own",
        sharpness: float = SHARPNESS,
        threshold: float = THRESHOLD,
        slices: int = 1,
        best_metric: str = "val_teacher/macro_f1",
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        self.loss = loss
        self.decay = decay
        self.ramp_steps = ramp_steps
        self.ramp_start = ramp_start
        self.sharpness = sharpness
        self.threshold = threshold
        self.slices = slices
        self.best_metric = best_metric
        self.uses_teacher = loss.probability_consistency > 0 or loss.attention_consistency > 0
        self.uses_attention = loss.attention > 0 or loss.attention_consistency > 0
        self.buffers: BufferPolicy = buffers if self.uses_teacher or buffers == "copy" else "ema"
        self.validation: Validation | None = None

    @classmethod
    def from_config(cls, config: GraderConfig, student: nn.Module, *, steps: int, best_metric: str) -> MeanTeacher:
        """The task of a config for a run of ``steps`` optimizer steps."""
        decay, loss = config.teacher.decay, config.loss
        return cls(
            student,
            loss=loss,
            decay=default_teacher_decay(steps) if decay is None else decay,
            ramp_steps=round(loss.ramp * steps),
            ramp_start=round(loss.ramp_start * steps),
            buffers=config.teacher.buffers,
            sharpness=config.attention.sharpness,
            threshold=config.attention.threshold,
            slices=config.data.slices_per_knee,
            best_metric=best_metric,
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Forward passes of both networks and the total of Eq. 5 at optimizer step τ = ``step`` (Figure 1)."""
        loss, ramp, labeled = self.loss, self.ramp(step), len(batch.grades)
        if not ramp and not len(batch.targets):
            batch = batch._replace(student=batch.student[:labeled], teacher=batch.teacher[:labeled])
        flips = {"symmetry": loss.symmetry, "consistency": bool(loss.flip_consistency and ramp)}
        mixture = draw_mixture(len(batch.student), loss.mixup) if loss.mixup else None
        images = batch.student if mixture is None else mixed(batch.student, mixture)
        student, flipped = grade_with_flips(self.student, images, labeled=labeled, **flips)
        teacher = self._teach(batch.teacher) if self.uses_teacher and ramp else None

        logits, knees = of_knees(student.logits, batch, self.slices)
        terms = grade_and_flip_terms(logits, flipped, knees.grades, **flips)  # L_c
        terms |= soft_terms(logits, knees, loss, mixture)
        if teacher is not None and loss.probability_consistency:
            terms["probability_consistency"] = probability_consistency(  # L_cc, Eq. 3
                student.logits, teacher.logits, temperature=loss.teacher_temperature
            )
        f_student, f_teacher = self._attention(batch, student, teacher)
        if f_student is not None and loss.attention:
            terms["attention"] = masked_attention_loss(f_student[:labeled], batch, loss)  # L_a, Eq. 2
        if f_student is not None and f_teacher is not None:
            terms["attention_consistency"] = attention_consistency(f_student, f_teacher)  # L_ac, Eq. 4
        return StepLosses(total(terms, loss, ramp), terms, monitors(labeled, student, flipped, teacher, f_student))

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Grading:
        """The teacher's output; with ``loss.teacher_flip`` its predictions are averaged over each image and its flip."""
        if not self.loss.teacher_flip:
            plain: Grading = self.teacher(images)
            return plain
        grading, flipped = with_flipped(self.teacher, images)
        return Grading(mean_logits(grading.logits, flipped.logits), grading.class_maps)

    def _attention(
        self, batch: Batch, student: Grading, teacher: Grading | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """f_θ and f_θ' (B, H, W), if they are used; if only Eq. 2 needs f_θ, only that of the labeled images.

        For both networks the class of the map is the label, or the teacher's prediction for unlabeled images, whose true grade
        is not in the batch.
        """
        if not self.uses_attention:
            return None, None
        labeled = len(batch.grades)
        count = len(student.logits) if self.loss.attention_consistency else labeled
        classes = batch.grades
        if teacher is not None:
            classes = torch.cat([batch.grades, teacher.logits[labeled:count].argmax(1)])

        def soft_mask(class_maps: Tensor) -> Tensor:
            size = (batch.student.shape[-2], batch.student.shape[-1])
            content = content_of(batch.student[: len(class_maps)])
            options = {"sharpness": self.sharpness, "threshold": self.threshold}
            return attention_mask(class_maps, classes, size, content=content, **options)

        uses_both = teacher is not None and self.loss.attention_consistency
        return soft_mask(student.class_maps[:count]), soft_mask(teacher.class_maps) if teacher and uses_both else None

    def ramp(self, step: int) -> float:
        """w(τ) at optimizer step τ = ``step``: 0 before ``ramp_start``, then from e^-5 to 1."""
        return exponential_ramp(step, self.ramp_steps, start=self.ramp_start)

    def after_update(self, step: int) -> Mapping[str, float]:
        """The teacher's update (Eq. 1) after optimizer step τ = ``step``."""
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        ramp = self.ramp(step)
        buffers: BufferPolicy = "ema" if self.buffers == "own" and not ramp else self.buffers
        update_buffers(self.teacher, self.student, decay, policy=buffers)
        return {"teacher_decay": decay, "ramp": ramp}

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics of student and teacher on the validation data."""
        return self.validation(self.networks, step) if self.validation else {}


def of_knees(logits: Tensor, batch: Batch, slices: int) -> tuple[Tensor, Batch]:
    """Pooled logits (L / slices, K) of the labeled knees of a batch, with their grades in it; as given if ``slices`` is 1."""
    if slices == 1:
        return logits, batch
    labeled = logits[: len(batch.grades)].reshape(-1, slices, logits.shape[1])
    return pool_slices(labeled), batch._replace(grades=batch.grades[::slices])


def soft_terms(logits: Tensor, batch: Batch, loss: LossConfig, mixture: Mixture | None) -> dict[str, Tensor]:
    """Terms with soft targets, by name: L_c with soft or mixed labels, the ordinal loss, and self-training; logits (B, K)."""
    labeled = len(batch.grades)
    targets = soft_labels(batch.grades, logits.shape[1], spread=loss.label_spread)
    if len(batch.targets):
        targets = torch.cat([targets, batch.targets.to(targets.dtype)])
    if mixture is not None:
        targets = mixed(targets, mixture)
    terms: dict[str, Tensor] = {}
    if loss.label_spread or mixture is not None:
        terms["grade"] = soft_cross_entropy(logits[:labeled], targets[:labeled])
    if loss.ordinal:
        terms["ordinal"] = ordinal_loss(logits[:labeled], targets[:labeled])
    if len(batch.targets) and loss.self_training:
        terms["self_training"] = soft_cross_entropy(logits[labeled:], targets[labeled:])
    return terms


def masked_attention_loss(attention: Tensor, batch: Batch, loss: LossConfig) -> Tensor:
    """Eq. 2 on the labeled images that have a mask; attention f (L, H, W) → scalar, 0 if none has a mask."""
    f, masks = attention[batch.has_mask], batch.masks[batch.has_mask]
    value = attention_loss(f, masks, mse_weight=loss.mse_weight, inside_weight=loss.inside_weight)
    return value * share_of_mean(len(masks), f.device)


def total(terms: Mapping[str, Tensor], loss: LossConfig, ramp: float) -> Tensor:
    """Eq. 5 with more terms: L_c + L_a + L_self + L_flip + w(τ)(L_cc + L_ac + L_flip of unlabeled images), each weighted."""
    factors = {
        "grade": loss.grade,
        "ordinal": loss.ordinal,
        "attention": loss.attention,
        "self_training": loss.self_training,
        "flip_consistency": loss.flip_consistency,
        "probability_consistency": loss.probability_consistency * ramp,
        "attention_consistency": loss.attention_consistency * ramp,
        "flip_consistency_unlabeled": loss.flip_consistency * ramp,
    }
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()


def monitors(
    labeled: int, student: Grading, flipped: Tensor | None, teacher: Grading | None, attention: Tensor | None
) -> dict[str, Tensor]:
    """Values to monitor that are not minimised: grades changed by a flip, agreement and entropy, the maps' gradient."""
    found: dict[str, Tensor] = {}
    if flipped is not None:
        found["flip/changed"] = changed_share(student.logits[: len(flipped)], flipped)
    if teacher is not None:
        found |= unlabeled_monitors(student.logits[labeled:], teacher.logits[labeled:])
    if attention is not None:
        found |= attention_monitors(attention)
    return found


def attention_monitors(attention: Tensor) -> dict[str, Tensor]:
    """Of soft masks (B, H, W): the share of empty ones, and the share of pixels that pass a gradient."""
    return {"empty_share": empty_attention(attention).float().mean(), "gradient_share": gradient_share(attention)}


def unlabeled_monitors(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    """On unlabeled images: the share with the same grade by both networks, and the teacher's entropy (nats)."""
    if len(teacher_logits) == 0:
        return {}
    probabilities = teacher_logits.detach().float().softmax(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()
    agreement = (student_logits.detach().argmax(1) == teacher_logits.argmax(1)).float().mean()
    return {"unlabeled/agreement": agreement, "unlabeled/entropy": entropy}
