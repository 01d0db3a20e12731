"""The flip terms in the mean teacher: arithmetic, gradients, what they ask of the forward passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dcmt.config import LossConfig
from dcmt.losses import attention_consistency
from dcmt.mean_teacher import MeanTeacher
from knee.attention import attention_mask
from knee.task import Batch, Grading

LABELED, UNLABELED, GRADES, SIZE = 4, 3, 5, 8


class LinearGrader(nn.Module):
    """Every pixel has a weight for every grade, so that sides matter; counts its images and forward passes."""

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        weight = torch.randn(GRADES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight + weight.flip(2) if symmetric else weight)
        self.symmetric = symmetric
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Grading:
        self.seen.append(len(images))
        maps = images * self.weight
        return Grading(maps.sum((2, 3)), maps)


def make_batch(unlabeled: int = UNLABELED, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(LABELED + unlabeled, 1, SIZE, SIZE, generator=generator)
    noise = torch.rand(images.shape, generator=generator) * 0.1
    masks = torch.zeros(LABELED, SIZE, SIZE)
    masks[:, 2:5, 2:6] = 1
    has_mask = torch.tensor([True, True, False, True])
    return Batch(images, images + noise, torch.tensor([0, 4, 2, 2]), masks, has_mask)


def make_task(network: nn.Module | None = None, **weights) -> MeanTeacher:
    none = {"attention": 0.0, "probability_consistency": 0.0, "attention_consistency": 0.0}
    return MeanTeacher(network or LinearGrader(), loss=LossConfig(**(none | weights)), decay=0.9, ramp_steps=10)


def plain_softmax(rows: Tensor) -> Tensor:
    powers = (rows - rows.max(1, keepdim=True).values).exp()
    return powers / powers.sum(1, keepdim=True)


def plain_divergence(logits: Tensor, others: Tensor) -> Tensor:
    p, q = plain_softmax(logits), plain_softmax(others)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) / 2 + (q * (q / m).log()).sum(1) / 2).mean()


@pytest.mark.parametrize("unlabeled", [0, UNLABELED])
@pytest.mark.parametrize("symmetry", [False, True])
@pytest.mark.parametrize(
    ("flip", "probability", "step"), [(0.0, 0.0, 0), (10.0, 0.0, 3), (3.0, 2.0, 5), (10.0, 1.0, 99)]
)
def test_total_against_a_second_implementation(unlabeled, symmetry, flip, probability, step):
    batch = make_batch(unlabeled)
    task = make_task(symmetry=symmetry, flip_consistency=flip, probability_consistency=probability)
    found = task.losses(batch, step)

    weight = task.student.weight.detach().double()
    logits = (batch.student.double() * weight).sum((2, 3))
    mirrored = (batch.student.double().flip(3) * weight).sum((2, 3))
    teacher = (batch.teacher.double() * weight).sum((2, 3))
    ramp = math.exp(-5 * (1 - step / 10) ** 2) if step < 10 else 1.0
    rows = torch.arange(LABELED)
    expected = -plain_softmax(logits)[rows, batch.grades].log().mean()
    if symmetry:
        expected = (expected - plain_softmax(mirrored)[rows, batch.grades].log().mean()) / 2
    expected = expected + flip * plain_divergence(logits[:LABELED], mirrored[:LABELED])
    if unlabeled:
        expected = expected + flip * ramp * plain_divergence(logits[LABELED:], mirrored[LABELED:])
    expected = expected + probability * ramp * (plain_softmax(logits) - plain_softmax(teacher)).square().mean()
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_unlabeled_images_it_is_equation_4_whatever_the_step():
    task = make_task(symmetry=True, flip_consistency=10.0)
    first, later = (task.losses(make_batch(0), step) for step in (0, 50))
    assert set(first.terms) == {"grade", "flip_consistency"}
    assert first.total.item() == later.total.item()
    assert first.total.item() == pytest.approx((first.terms["grade"] + 10 * first.terms["flip_consistency"]).item())


@pytest.mark.parametrize("step", [0, 4, 99])
def test_a_mirrored_teacher_answers_with_the_mean_of_both_sides(step):
    batch = make_batch()
    found = make_task(probability_consistency=2.0, teacher_flip=True).losses(batch, step)

    weight = LinearGrader().weight.detach().double()
    student, teacher, mirrored = (
        plain_softmax((images.double() * weight).sum((2, 3)))
        for images in (batch.student, batch.teacher, batch.teacher.flip(3))
    )
    wanted = (student - (teacher + mirrored) / 2).square().mean()
    assert found.terms["probability_consistency"].item() == pytest.approx(wanted.item(), rel=1e-5)
    ramp = math.exp(-5 * (1 - step / 10) ** 2) if step < 10 else 1.0
    assert (found.total - found.terms["grade"]).item() == pytest.approx(2 * ramp * wanted.item(), rel=1e-4)


def test_a_mirrored_teacher_teaches_a_student_that_sees_sides_though_both_have_the_same_weights():
    batch = make_batch()
    same = batch._replace(teacher=batch.student)
    plain, mirrored = (
        make_task(probability_consistency=1.0, teacher_flip=mirror).losses(same, 99) for mirror in (False, True)
    )
    assert plain.terms["probability_consistency"].item() == 0
    assert mirrored.terms["probability_consistency"].item() > 0
    symmetric = make_task(LinearGrader(symmetric=True), probability_consistency=1.0, teacher_flip=True)
    assert symmetric.losses(same, 99).terms["probability_consistency"].item() == pytest.approx(0, abs=1e-10)


def test_the_attention_of_a_mirrored_teacher_is_that_of_the_image():
    weights = {"attention": 1.0, "attention_consistency": 1.0, "probability_consistency": 1.0}
    batch = make_batch(0)  # labeled images: the class is the label, whatever the teacher says
    plain, mirrored = (make_task(**weights, teacher_flip=mirror).losses(batch, 4) for mirror in (False, True))
    for name in ("attention", "attention_consistency"):
        assert mirrored.terms[name].item() == pytest.approx(plain.terms[name].item(), abs=1e-7)


def test_a_mirrored_teachers_mean_answer_chooses_the_map_of_an_unlabeled_image():
    batch = make_batch()
    weight = LinearGrader().weight.detach()
    answers, mirrored = (
        plain_softmax((images * weight).sum((2, 3))) for images in (batch.teacher, batch.teacher.flip(3))
    )
    chosen = torch.cat([batch.grades, ((answers + mirrored) / 2)[LABELED:].argmax(1)])
    assert (chosen[LABELED:] != answers[LABELED:].argmax(1)).any()  # one side alone would choose another
    student, teacher = (
        attention_mask(images * weight, chosen, (SIZE, SIZE)) for images in (batch.student, batch.teacher)
    )
    found = make_task(attention_consistency=1.0, teacher_flip=True).losses(batch, 99)
    wanted = attention_consistency(student, teacher).item()
    assert found.terms["attention_consistency"].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "images", "teacher_images"),
    [
        ({}, LABELED + UNLABELED, 0),
        ({"symmetry": True}, 2 * LABELED + UNLABELED, 0),
        ({"flip_consistency": 1.0}, 2 * (LABELED + UNLABELED), 0),
        ({"symmetry": True, "probability_consistency": 1.0}, 2 * LABELED + UNLABELED, LABELED + UNLABELED),
        ({"flip_consistency": 1.0, "attention_consistency": 1.0}, 2 * (LABELED + UNLABELED), LABELED + UNLABELED),
        ({"probability_consistency": 1.0, "teacher_flip": True}, LABELED + UNLABELED, 2 * (LABELED + UNLABELED)),
    ],
)
def test_one_forward_pass_of_no_more_images_than_the_terms_need(weights, images, teacher_images):
    task = make_task(**weights)
    task.losses(make_batch(), 0)
    assert task.student.seen == [images]
    assert task.teacher.seen == ([teacher_images] if teacher_images else [])


def test_a_flip_invariant_grader_has_no_flip_loss_and_an_equal_grade_loss():
    batch = make_batch()
    network = LinearGrader(symmetric=True)
    found = make_task(network, symmetry=True, flip_consistency=10.0).losses(batch, 99)
    plain = make_task(network).losses(batch, 99)
    assert found.terms["flip_consistency"].item() <= 1e-6
    assert found.terms["flip_consistency_unlabeled"].item() <= 1e-6
    assert found.total.item() == pytest.approx(plain.total.item(), abs=2e-5)
    assert found.monitors["flip/changed"].item() == 0


def test_a_grader_that_sees_sides_pays_at_most_ln_2():
    found = make_task(flip_consistency=1.0).losses(make_batch(), 0)
    for name in ("flip_consistency", "flip_consistency_unlabeled"):
        assert 0.01 < found.terms[name].item() <= math.log(2)
    assert 0 < found.monitors["flip/changed"].item() <= 1


def test_the_gradient_makes_the_student_symmetric_and_spares_the_teacher():
    task = make_task(grade=0.0, flip_consistency=10.0)
    batch = make_batch()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    divergences = []
    for step in range(30):
        losses = task.losses(batch, step)
        divergences.append(losses.terms["flip_consistency"].item())
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert divergences[-1] < 0.5 * divergences[0]
    assert task.teacher.weight.grad is None


def test_only_unlabeled_images_move_the_student_through_the_flip_term():
    task = make_task(flip_consistency=1.0)
    losses = task.losses(make_batch(), 10)
    (gradient,) = torch.autograd.grad(losses.terms["flip_consistency_unlabeled"], task.student.weight)
    assert gradient.abs().sum() > 0


def test_attention_terms_are_those_of_the_unflipped_images():
    weights = {"attention": 1.0, "attention_consistency": 1.0, "probability_consistency": 1.0}
    plain = make_task(**weights).losses(make_batch(), 4)
    flipped = make_task(**weights, symmetry=True, flip_consistency=10.0).losses(make_batch(), 4)
    for name in ("attention", "attention_consistency", "probability_consistency"):
        assert flipped.terms[name].item() == pytest.approx(plain.terms[name].item(), abs=1e-7)
    assert flipped.monitors["empty_share"] == plain.monitors["empty_share"]
