"""What the streams serve, that nothing leaks, and that neither workers nor restarts change a batch."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knee.batches import Draw, TwoStreamBatchSampler
from knee.data.datasets import (
    EvalImages,
    LabeledImages,
    LabeledViews,
    TargetImages,
    TrainLoader,
    TwoStreams,
    UnlabeledImages,
    UnlabeledViews,
    batch_to,
    collate,
    eval_loader,
    images_to,
    train_loader,
)
from knee.data.views import Views, no_views, strong_views
from knee.errors import UserError
from knee.io.shared_array import open_shared
from knee.task import Batch

COUNT, SIZE = 30, 24
LABELED = np.arange(3, 10)
UNLABELED = np.arange(10, 27)


def arrays() -> tuple[Any, Any, Any]:
    """Images uint8 (COUNT, SIZE, SIZE), masks likewise in {0, 1}, and which rows have one: the even ones."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
    has_mask = np.arange(COUNT) % 2 == 0
    return images, (images > 128).astype(np.uint8) * has_mask[:, None, None], has_mask


def streams(views: Views | None = None, seed: int = 0) -> TwoStreams:
    images, masks, has_mask = arrays()
    return TwoStreams(
        LabeledImages(images, LABELED, LABELED % 3, masks, has_mask),
        UnlabeledImages(images, UNLABELED),
        views or Views(strong_views(), SIZE),
        seed=seed,
    )


def sampler() -> TwoStreamBatchSampler:
    return TwoStreamBatchSampler(
        range(len(LABELED)), range(len(UNLABELED)), labeled_per_batch=3, unlabeled_per_batch=4, seed=1
    )


def copies(batches: Iterator[Batch] | TrainLoader) -> list[list[torch.Tensor]]:
    return [[tensor.clone() for tensor in batch] for batch in batches]


def same(first: list[list[torch.Tensor]], second: list[list[torch.Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def test_unlabeled_images_have_no_room_for_grades_or_masks() -> None:
    images, _, _ = arrays()
    unlabeled = UnlabeledImages(images, UNLABELED)
    assert [field.name for field in fields(unlabeled)] == ["images", "rows"]
    for name in ("grades", "masks", "has_mask"):
        assert not hasattr(unlabeled, name)
        with pytest.raises((AttributeError, TypeError)):
            setattr(unlabeled, name, np.zeros(COUNT, np.int64))
    assert not hasattr(unlabeled, "__dict__")
    item = streams()[Draw("unlabeled", 0, 2)]
    assert type(item) is UnlabeledViews
    assert item._fields == ("student", "teacher", "content")


def test_targets_go_with_their_image_and_unlabeled_images_have_none() -> None:
    images, _, _ = arrays()
    targets = np.random.default_rng(0).dirichlet(np.ones(5), len(UNLABELED)).astype(np.float32)
    labeled = LabeledImages(images, LABELED, np.arange(len(LABELED)) % 5)
    served = TwoStreams(labeled, TargetImages(images, UNLABELED, targets), Views(no_views(), SIZE), seed=0)
    batch = collate([served[Draw("labeled", 0, 0)], served[Draw("unlabeled", 0, 2)], served[Draw("unlabeled", 1, 0)]])
    assert torch.equal(batch.targets, torch.from_numpy(targets[[2, 0]]))
    assert np.array_equal(batch.student[1, 0], images[UNLABELED[2]])
    assert len(batch.grades) == 1
    assert collate([streams()[Draw("unlabeled", 0, 2)]]).targets.shape == (0, 0)
    with pytest.raises(ValueError, match="2 targets for"):
        TargetImages(images, UNLABELED, targets[:2])


def test_each_draw_serves_its_row() -> None:
    images, masks, _ = arrays()
    served = streams(Views(no_views(), SIZE))
    for index, row in enumerate(LABELED):
        item = served[Draw("labeled", 50 + index, index)]
        assert isinstance(item, LabeledViews)
        assert np.array_equal(item.student, images[row])
        assert item.grade == row % 3
        assert item.mask is None if row % 2 else np.array_equal(np.asarray(item.mask), masks[row])
    for index, row in enumerate(UNLABELED):
        assert np.array_equal(served[Draw("unlabeled", 0, index)].teacher, images[row])


def test_masks_are_dilated_before_the_views_when_asked() -> None:
    images, _, has_mask = arrays()
    masks = np.zeros_like(images)
    masks[:, SIZE // 2, SIZE // 2] = 1
    labeled = LabeledImages(images, LABELED, LABELED % 3, masks, has_mask, dilation=5 * 256 / SIZE)
    mask = labeled[1].mask
    assert mask is not None
    # A disc 5 pixels across.
    assert mask.sum(axis=0)[SIZE // 2 - 3 : SIZE // 2 + 4].tolist() == [0, 1, 3, 5, 3, 1, 0]
    undilated = LabeledImages(images, LABELED, LABELED % 3, masks, has_mask)[1].mask
    assert undilated is not None
    assert undilated.sum() == 1


def test_views_depend_on_seed_and_position() -> None:
    first = streams()[Draw("labeled", 7, 2)].student
    assert np.array_equal(first, streams()[Draw("labeled", 7, 2)].student)
    assert not np.array_equal(first, streams()[Draw("labeled", 8, 2)].student)
    assert not np.array_equal(first, streams(seed=1)[Draw("labeled", 7, 2)].student)


def test_one_image_at_one_position_is_seen_differently_in_the_two_streams() -> None:
    images, masks, has_mask = arrays()
    both = TwoStreams(
        LabeledImages(images, LABELED, LABELED % 3, masks, has_mask),
        UnlabeledImages(images, LABELED),
        Views(strong_views(), SIZE),
        seed=0,
    )
    assert not np.array_equal(both[Draw("labeled", 7, 2)].student, both[Draw("unlabeled", 7, 2)].student)


def test_a_batch_is_labeled_first_and_small() -> None:
    loader = train_loader(streams(Views(no_views(), SIZE)), sampler())
    images, masks, has_mask = arrays()
    batch = next(iter(loader))
    assert batch.student.dtype == batch.teacher.dtype == batch.masks.dtype == torch.uint8
    assert batch.student.shape == batch.teacher.shape == (7, 1, SIZE, SIZE)
    assert batch.grades.dtype == torch.int64
    assert batch.has_mask.dtype == torch.bool
    rows = LABELED[next(sampler().batches_from(0))[:3]]
    assert batch.grades.tolist() == (rows % 3).tolist()
    assert batch.has_mask.tolist() == has_mask[rows].tolist()
    assert np.array_equal(batch.student[:3, 0].numpy(), images[rows])
    assert np.array_equal(batch.masks.numpy(), masks[rows])


def test_batches_of_one_stream_alone() -> None:
    labeled, unlabeled = streams()[Draw("labeled", 0, 0)], streams()[Draw("unlabeled", 0, 0)]
    assert collate([labeled]).student.shape == (1, 1, SIZE, SIZE)
    empty = collate([unlabeled, unlabeled])
    assert empty.grades.shape == (0,)
    assert empty.masks.shape == (0, SIZE, SIZE)
    assert empty.has_mask.shape == (0,)
    with pytest.raises(ValueError, match="labeled items must come first"):
        collate([unlabeled, labeled])


@pytest.mark.parametrize("channels_last", [False, True])
def test_on_the_device_images_are_floats_from_0_to_1(channels_last: bool) -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    moved = images_to(images, "cpu", channels_last=channels_last)
    assert moved.dtype == torch.float32
    assert torch.equal(moved.flatten(), torch.arange(256) / 255)
    batch = next(iter(train_loader(streams(), sampler())))
    floats = batch_to(batch, torch.device("cpu"), channels_last=channels_last)
    assert torch.equal(floats.student, batch.student / 255)
    assert torch.equal(floats.teacher, batch.teacher / 255)
    assert floats.masks.dtype == torch.float32
    assert set(floats.masks.flatten().tolist()) == {0.0, 1.0}
    assert floats.grades.dtype == torch.int64
    assert batch.student.dtype == torch.uint8


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_are_the_same_with_0_2_and_4_workers_and_after_a_restart() -> None:
    def three_epochs(workers: int) -> list[list[torch.Tensor]]:
        loader = train_loader(streams(), sampler(), workers=workers)
        return [batch for _ in range(3) for batch in copies(loader)]

    expected = three_epochs(0)
    assert len(expected) == 12
    assert not torch.equal(expected[0][0], expected[4][0])
    assert same(expected, three_epochs(2))
    assert same(expected, three_epochs(4))

    stopped = train_loader(streams(), sampler(), workers=2)
    before = copies(stopped)
    for batch in stopped:
        before.append([tensor.clone() for tensor in batch])
        if len(before) == 6:
            break
    assert stopped.state_dict() == {"epoch": 1, "batch": 2}
    fresh = train_loader(streams(), sampler(), workers=2)
    fresh.load_state_dict(pickle.loads(pickle.dumps(stopped.state_dict())))
    rest = copies(fresh)
    assert len(rest) == 2
    assert same(expected, before + rest + copies(fresh))
    # The one that was stopped goes on as well, whatever its workers had fetched.
    assert same(expected[6:], copies(stopped) + copies(stopped))


def test_loaders_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    copies(train_loader(streams(), sampler()))
    list(eval_loader(EvalImages(arrays()[0], LABELED), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_spawned_workers_are_sent_the_files_name_not_the_images(tmp_path: Path) -> None:
    images, masks, has_mask = arrays()
    for name, array in (("images", images), ("masks", masks)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [open_shared(tmp_path / f"{name}.npy") for name in ("images", "masks")]
    served = TwoStreams(
        LabeledImages(mapped[0], LABELED, LABELED % 3, mapped[1], has_mask),
        UnlabeledImages(mapped[0], UNLABELED),
        Views(strong_views(), SIZE),
        seed=0,
    )
    pickled = pickle.dumps(served)
    assert len(pickled) < 4000 < images.nbytes
    copied = pickle.loads(pickled)
    for draw in (Draw("labeled", 3, 3), Draw("unlabeled", 3, 3)):
        for a, b, c in zip(served[draw], copied[draw], streams()[draw], strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
            assert np.array_equal(np.asarray(a), np.asarray(c))


def test_evaluation_serves_every_row_once_and_in_order() -> None:
    images, _, _ = arrays()
    rows = np.array([5, 2, 29, 11, 0])
    loader = eval_loader(EvalImages(images, rows), batch_size=2)
    batches = list(loader)
    assert [len(numbers) for _, numbers in batches] == [2, 2, 1]
    assert torch.cat([numbers for _, numbers in batches]).tolist() == rows.tolist()
    served = torch.cat([pixels for pixels, _ in batches])
    assert served.dtype == torch.uint8
    assert np.array_equal(served[:, 0].numpy(), images[rows])


def test_data_that_does_not_fit_together_is_refused() -> None:
    images, masks, has_mask = arrays()
    with pytest.raises(ValueError, match="one per row"):
        LabeledImages(images, LABELED, np.zeros(COUNT, np.int64))
    with pytest.raises(ValueError, match="from 0"):
        LabeledImages(images, LABELED, np.full(len(LABELED), -1))
    with pytest.raises(ValueError, match="must be given together"):
        LabeledImages(images, LABELED, LABELED % 3, masks)
    with pytest.raises(ValueError, match="masks"):
        LabeledImages(images, LABELED, LABELED % 3, masks[:, :8], has_mask)
    with pytest.raises(ValueError, match="uint8"):
        UnlabeledImages(images / 255, UNLABELED)
    with pytest.raises(ValueError, match="outside the 30 images"):
        UnlabeledImages(images, np.array([30]))
    far = TwoStreamBatchSampler(range(8), range(3), labeled_per_batch=1, unlabeled_per_batch=1, seed=0)
    with pytest.raises(ValueError, match="labeled: the sampler's indices reach 7, there are 7"):
        train_loader(streams(), far)


class _Dying(UnlabeledImages):
    """Images whose reader is killed, as the system does when memory runs out."""

    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_explained() -> None:
    images, _, _ = arrays()
    served = streams()
    served.unlabeled = _Dying(images, UNLABELED)
    with pytest.raises(UserError, match=r"a process that loads images died.*set workers to 0"):
        next(iter(train_loader(served, sampler(), workers=1)))
