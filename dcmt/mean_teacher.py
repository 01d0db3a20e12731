"""DC-MT as a task: student and teacher, and the total of Eq. 5, in one place (Huo et al. 2020).

Every row of the paper's ablations is a choice of weights: supervised training has no consistency, the plain mean teacher no
attention terms, DC-MT (NAC) no attention consistency. The flip terms of CLIP-KOA (Jeong and Lee 2025, Eq. 4) hold for any
grader: with them alone this is that paper's supervised training, with a teacher they are one more consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_koa.losses import flip_consistency, symmetry_loss
from dcmt.losses import attention_consistency, attention_loss, probability_consistency
from dcmt.schedules import exponential_ramp, teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher
from knee.attention import SHARPNESS, THRESHOLD, attention_mask, empty_attention, gradient_share
from knee.nn.flips import mean_logits, with_flipped
from knee.task import Batch, Grading, StepLosses

Validation = Callable[[Mapping[str, nn.Module], int], Mapping[str, float]]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of Eq. 5 and of the flip terms; 0 leaves a term out."""

    grade: float = 1.0
    attention: float = 1.0
    probability_consistency: float = 1.0
    attention_consistency: float = 1.0
    mse_weight: float = 0.5
    inside_weight: float = 0.001
    teacher_temperature: float = 1.0
    """Of the teacher's answers in Eq. 3; not a weight, but 1 is what is printed."""
    teacher_mirror: bool = False
    """The teacher's answer is the mean of its probabilities of the image and of its mirror image; not printed either."""
    symmetry: bool = False
    """The grade term is that of images and mirror images, ½ (CE + CE^H)."""
    flip_consistency: float = 0.0
    """λ: of the labeled images, from the start of the ramp on; λ · w(τ) of the unlabeled ones."""


class MeanTeacher:
    """Student and teacher trained together on labeled and unlabeled images; a ``knee.task.Task``.

    ``ramp_steps`` is τ_max of w(τ), counted from ``ramp_start``: before it, unlabeled images, the teacher's answers and flip
    consistency are left out of the step altogether, as a weight of 0 leaves them out. ``decay`` is α. Where the teacher's
    forward pass is left out, its buffers follow the student's by ``ema`` where the policy is ``own``, since statistics of its
    own would never move.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        weights: LossWeights,
        decay: float,
        ramp_steps: int,
        ramp_start: int = 0,
        buffers: BufferPolicy = "own",
        sharpness: float = SHARPNESS,
        threshold: float = THRESHOLD,
        best_metric: str = "val_teacher/macro_f1",
    ) -> None:
        self.student = student
        self.teacher = make_teacher(student)
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        self.weights = weights
        self.decay = decay
        self.ramp_steps = ramp_steps
        self.ramp_start = ramp_start
        self.sharpness = sharpness
        self.threshold = threshold
        self.best_metric = best_metric
        self.uses_teacher = weights.probability_consistency > 0 or weights.attention_consistency > 0
        self.uses_attention = weights.attention > 0 or weights.attention_consistency > 0
        self.buffers: BufferPolicy = buffers if self.uses_teacher or buffers == "copy" else "ema"
        self.validation: Validation | None = None

    def parameters(self) -> Iterable[nn.Parameter]:
        """The student's parameters; the teacher follows by averaging."""
        return self.student.parameters()

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Forward passes of both networks and the total of Eq. 5 at optimiser step τ = ``step``."""
        labeled = len(batch.grades)
        ramp = self._ramp(step)
        if not ramp:
            batch = batch._replace(student=batch.student[:labeled], teacher=batch.teacher[:labeled])
        flip_weight = self.weights.flip_consistency if ramp else 0.0
        student, mirrored = self._grade(batch, flip_weight)
        teacher: Grading | None = None
        if self.uses_teacher and ramp:
            teacher = self._teach(batch.teacher)
        terms = self._grade_terms(student.logits, mirrored, batch.grades, flip_weight)
        monitors: dict[str, Tensor] = {}
        if mirrored is not None:
            monitors["flip/changed"] = _changed(student.logits[: len(mirrored)], mirrored)
        if teacher is not None:
            monitors |= _unlabeled_monitors(student.logits[labeled:], teacher.logits[labeled:])
            if self.weights.probability_consistency:
                terms["probability_consistency"] = probability_consistency(
                    student.logits, teacher.logits, temperature=self.weights.teacher_temperature
                )
        if self.uses_attention:
            more, seen = self._attention_terms(batch, student, teacher)
            terms |= more
            monitors |= seen
        return StepLosses(_total(terms, self.weights, ramp), terms, monitors)

    def _grade(self, batch: Batch, flip_weight: float) -> tuple[Grading, Tensor | None]:
        """The student's gradings, and its logits of the mirror images that the flip terms need: labeled ones first."""
        if not (self.weights.symmetry or flip_weight):
            return self.student(batch.student), None
        count = len(batch.student if flip_weight else batch.grades)
        student, mirrored = with_flipped(self.student, batch.student, count=count)
        return student, mirrored.logits

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Grading:
        """The teacher's gradings: class maps of the images; logits of them, or of the mean with their mirror images."""
        if not self.weights.teacher_mirror:
            grading: Grading = self.teacher(images)
            return grading
        seen, mirrored = with_flipped(self.teacher, images)
        return Grading(mean_logits(seen.logits, mirrored.logits), seen.class_maps)

    def _grade_terms(
        self, logits: Tensor, mirrored: Tensor | None, grades: Tensor, flip_weight: float
    ) -> dict[str, Tensor]:
        labeled = len(grades)
        if mirrored is None:
            return {"grade": F.cross_entropy(logits[:labeled].float(), grades)}
        pair = logits[:labeled], mirrored[:labeled]
        terms = {
            "grade": symmetry_loss(*pair, grades) if self.weights.symmetry else F.cross_entropy(pair[0].float(), grades)
        }
        if flip_weight:
            terms["flip_consistency"] = flip_consistency(*pair)
            if len(logits) > labeled:
                terms["flip_consistency_unlabeled"] = flip_consistency(logits[labeled:], mirrored[labeled:])
        return terms

    def _attention_terms(
        self, batch: Batch, student: Grading, teacher: Grading | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        labeled, size = len(batch.grades), (batch.student.shape[-2], batch.student.shape[-1])
        count = len(student.logits) if self.weights.attention_consistency else labeled
        # The label where there is one, else the teacher's prediction, for both networks: an unlabeled image's true
        # grade is not in the batch, so it cannot choose the map.
        classes = batch.grades
        if teacher is not None:
            classes = torch.cat([batch.grades, teacher.logits[labeled:count].argmax(1)])
        f_student = self._attention(student.class_maps[:count], classes, size)
        monitors = {
            "empty_share": empty_attention(f_student).float().mean(),
            "gradient_share": gradient_share(f_student),
        }
        terms: dict[str, Tensor] = {}
        if self.weights.attention:
            rows = batch.has_mask
            terms["attention"] = attention_loss(
                f_student[:labeled][rows],
                batch.masks[rows],
                mse_weight=self.weights.mse_weight,
                inside_weight=self.weights.inside_weight,
            )
        if self.weights.attention_consistency and teacher is not None:
            f_teacher = self._attention(teacher.class_maps, classes, size)
            terms["attention_consistency"] = attention_consistency(f_student, f_teacher)
        return terms, monitors

    def _ramp(self, step: int) -> float:
        return exponential_ramp(step, self.ramp_steps, start=self.ramp_start)

    def _attention(self, class_maps: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
        return attention_mask(class_maps, classes, size, sharpness=self.sharpness, threshold=self.threshold)

    def after_update(self, step: int) -> Mapping[str, float]:
        """The teacher's update (Eq. 1) after optimiser step τ = ``step``."""
        decay = teacher_decay(step, self.decay)
        update_teacher(self.teacher, self.student, decay)
        ramp = self._ramp(step)
        buffers: BufferPolicy = "ema" if self.buffers == "own" and not ramp else self.buffers
        update_buffers(self.teacher, self.student, decay, policy=buffers)
        return {"teacher_decay": decay, "ramp": ramp}

    def validate(self, step: int) -> Mapping[str, float]:
        """Metrics of student and teacher on the validation data."""
        return self.validation(self.networks, step) if self.validation else {}


def _total(terms: Mapping[str, Tensor], weights: LossWeights, ramp: float) -> Tensor:
    """Eq. 5 and the flip terms: L_c + L_a + L_flip + w(τ)(L_cc + L_ac + L_flip of the unlabeled), each with its weight."""
    factors = {
        "grade": weights.grade,
        "attention": weights.attention,
        "flip_consistency": weights.flip_consistency,
        "probability_consistency": weights.probability_consistency * ramp,
        "attention_consistency": weights.attention_consistency * ramp,
        "flip_consistency_unlabeled": weights.flip_consistency * ramp,
    }
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()


def _changed(logits: Tensor, mirrored: Tensor) -> Tensor:
    """The share of images whose mirror image gets another grade."""
    return (logits.detach().argmax(1) != mirrored.detach().argmax(1)).float().mean()


def _unlabeled_monitors(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    if len(teacher_logits) == 0:
        return {}
    probabilities = teacher_logits.detach().float().softmax(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()
    agreement = (student_logits.detach().argmax(1) == teacher_logits.argmax(1)).float().mean()
    return {"unlabeled/agreement": agreement, "unlabeled/entropy": entropy}
