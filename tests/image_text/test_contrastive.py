"""The contrastive task: its losses by kind of target, its teacher, its limits and its warnings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from image_text.batches import PairBatch
from image_text.config import ImageTextConfig
from image_text.contrastive import Contrastive, Guard, Queue
from image_text.losses import Earlier, hard_targets, soft_clip
from image_text.train import build_towers
from knee.engine.config import OptimizerConfig
from knee.engine.fit import make_optimizer
from tests.image_text.two_processes import assert_two_equal_one

Make = Callable[..., ImageTextConfig]


def task_of(config: ImageTextConfig) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(build_towers(config, grades=5, fresh=True), contrast=config.contrast, decay=0.9)


def batch(count: int = 6) -> PairBatch:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(count, 1, 48, 48, generator=generator)
    tokens = torch.randint(3, 200, (count, 48), generator=generator)
    numbers = torch.arange(count)
    return PairBatch(images, images, tokens, numbers // 2, numbers, numbers % 3 - 1)


@pytest.mark.parametrize("targets", ["hard", "self", "labels", "same", "teacher"])
def test_every_target_gives_a_gradient_to_both_towers(make_config: Make, targets: str) -> None:
    task = task_of(make_config(**{"contrast.targets": targets, "contrast.weight": 0.2, "teacher.buffers": "ema"}))
    losses = task.losses(batch(), 0)
    losses.total.backward()
    assert float(losses.monitors["contrast/kl"]) >= 0
    assert 0 < float(losses.monitors["contrast/own_mass"]) <= 1
    for tower in (task.student.image.backbone, task.student.text, task.student.log_scale):
        parameters = [tower] if isinstance(tower, torch.nn.Parameter) else list(tower.parameters())
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


def test_hard_targets_give_clips_loss(make_config: Make) -> None:
    task = task_of(make_config(**{"contrast.targets": "hard"}))
    task.student.eval()
    found = batch()
    images, texts, scale = task.student(found.student, found.tokens)
    expected = soft_clip(images, texts, scale, hard_targets(6)).loss
    torch.testing.assert_close(task.losses(found, 0).total, expected)


def test_the_scale_is_limited_and_the_teacher_follows(make_config: Make) -> None:
    task = task_of(make_config())
    with torch.no_grad():
        task.student.log_scale.fill_(10.0)
    schedules = task.after_update(0)
    assert schedules["scale"] == pytest.approx(100, rel=1e-5)
    assert schedules["teacher_decay"] == 0
    assert float(task.teacher.log_scale.detach()) == pytest.approx(math.log(100))


def test_the_log_scale_has_no_weight_decay(make_config: Make) -> None:
    task = task_of(make_config())
    optimizer = make_optimizer(task, OptimizerConfig(name="adamw", weight_decay=0.5), torch.device("cpu"))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert [id(parameter) for parameter in optimizer.param_groups[1]["params"]] == [id(task.student.log_scale)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in task.parameters()
    )


def test_flat_targets_and_collapse_are_said_once(said: list[str]) -> None:
    guard, low, fine = Guard(), torch.tensor(0.1), torch.tensor(5.0)
    flat = {"contrast/own_mass": low, "contrast/rank_images": fine, "contrast/rank_texts": fine}
    sharp = {**flat, "contrast/own_mass": fine}
    for watched in [flat] * 19 + [sharp] + [flat] * 19:
        guard.check(watched)
    assert said == []
    for _ in range(30):
        guard.check(flat)
    assert len(said) == 1
    assert "less than 0.3 of their mass" in said[0]
    for _ in range(20):
        guard.check({**sharp, "contrast/rank_images": torch.tensor(1.0)})
    assert "embeddings of the images have collapsed" in said[1]


def test_with_the_rest_of_a_batch_in_the_queue_its_parts_have_the_loss_of_the_whole(make_config: Make) -> None:
    whole = batch(8)  # rows 2 i and 2 i + 1 have equal reports, so each part has the other's
    task = task_of(make_config(**{"contrast.weight": 0.2}))
    task.student.eval()
    expected = task.losses(whole, 0).total
    found = []
    for own, rest in ((0, 1), (1, 0)):
        queued = task_of(make_config(**{"contrast.weight": 0.2, "contrast.queue": 6}))
        assert queued.queue is not None
        for network in queued.networks.values():
            network.eval()
        queued.queue.push(queued._embedded(PairBatch(*(part[rest::2] for part in whole))))
        assert len(queued.queue.earlier() or ()) == 4
        losses = queued.losses(PairBatch(*(part[own::2] for part in whole)), 0)
        losses.total.backward()
        assert all(parameter.grad is None for parameter in queued.teacher.parameters())
        found.append(losses.total)
        torch.testing.assert_close(
            queued.queue.texts[:4], queued._embedded(PairBatch(*(p[own::2] for p in whole))).texts
        )
    torch.testing.assert_close((found[0] + found[1]) / 2, expected)


def test_a_queue_keeps_the_newest_pairs_first() -> None:
    queue = Queue(5, 2)
    assert queue.earlier() is None
    for number in range(3):
        values, numbers = torch.full((2, 2), float(number)), torch.full((2,), number)
        queue.push(Earlier(values, values + 10, numbers, numbers + 20))
    found = queue.earlier()
    assert found is not None
    assert found.groups.tolist() == [2, 2, 1, 1, 0]
    assert found.studies.tolist() == [22, 22, 21, 21, 20]
    assert found.images[:, 0].tolist() == [2, 2, 1, 1, 0]
    assert found.texts[:, 0].tolist() == [12, 12, 11, 11, 10]
    queue.push(found)
    assert found.groups.tolist() == [2, 2, 1, 1, 0]  # a copy
    assert int(queue.count) == 5


@pytest.mark.parametrize("targets", ["self", "labels", "same", "teacher"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(make_config: Make, targets: str, tmp_path: Path) -> None:
    task = task_of(make_config(**{"contrast.targets": targets, "contrast.weight": 0.2}))
    task.teacher.eval()
    assert_two_equal_one(task, batch(8), tmp_path)
