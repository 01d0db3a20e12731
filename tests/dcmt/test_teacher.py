"""The teacher against the closed form of the moving average, and its three buffer policies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcmt.schedules import teacher_decay
from dcmt.teacher import BufferPolicy, make_teacher, update_buffers, update_teacher


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def test_teacher_starts_as_a_copy_without_gradient() -> None:
    student = network()
    teacher = make_teacher(student)
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
        assert ours.data_ptr() != theirs.data_ptr()
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_closed_form_after_many_updates() -> None:
    student, decay = nn.Linear(1, 1, bias=False).double(), 0.9
    teacher = make_teacher(student)
    start = float(student.weight.item())
    values = [0.5, -2.0, 3.0, 7.0, 1.0]
    for value in values:
        with torch.no_grad():
            student.weight.fill_(value)
        update_teacher(teacher, student, decay)
    n = len(values)
    wanted = decay**n * start + sum((1 - decay) * decay ** (n - 1 - k) * value for k, value in enumerate(values))
    assert float(next(teacher.parameters())) == pytest.approx(wanted, rel=1e-12)


def test_warm_up_is_the_plain_average_of_the_first_steps() -> None:
    student = nn.Linear(1, 1, bias=False).double()
    teacher = make_teacher(student)
    for step, value in enumerate([4.0, 8.0, 3.0]):
        with torch.no_grad():
            student.weight.fill_(value)
        update_teacher(teacher, student, teacher_decay(step, 0.99))
    assert float(next(teacher.parameters())) == pytest.approx(5.0)


@pytest.mark.parametrize("policy", ["own", "copy", "ema"])
def test_buffer_policies(policy: BufferPolicy) -> None:
    student = network()
    teacher = make_teacher(student)
    student(torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(1)))
    before, after = teacher[1].running_mean.clone(), student[1].running_mean  # type: ignore[index]
    update_buffers(teacher, student, 0.75, policy=policy)
    wanted = {"own": before, "copy": after, "ema": 0.75 * before + 0.25 * after}[policy]
    assert torch.allclose(teacher[1].running_mean, wanted)  # type: ignore[index]
    counted = int(teacher[1].num_batches_tracked)  # type: ignore[index]
    assert counted == (0 if policy == "own" else 1)


def test_weights_are_not_touched_by_the_buffer_update_nor_buffers_by_the_weights() -> None:
    student = network()
    teacher = make_teacher(student)
    student[1].running_mean.fill_(5.0)  # type: ignore[index, operator, union-attr]
    with torch.no_grad():
        student[0].weight.fill_(1.0)  # type: ignore[index, operator, union-attr]
    update_teacher(teacher, student, 0.0)
    assert torch.equal(teacher[0].weight, student[0].weight)  # type: ignore[index]
    assert torch.equal(teacher[1].running_mean, torch.zeros(3))  # type: ignore[index]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="decay must be in"):
        update_teacher(network(), network(), 1.5)
    with pytest.raises(ValueError, match="parameters"):
        update_teacher(nn.Linear(1, 1), network(), 0.5)
