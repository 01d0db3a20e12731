"""Datasets and loaders: two-stream batches for training and plain batches for evaluation, from memory-mapped arrays.

The arrays are read one row at a time, so memory use does not grow with the number of images. The dataset of unlabeled
images has only pixels and row numbers; it cannot hold a grade or a mask. Another one has soft targets that networks predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from knee.batches import Draw, NumberedBatches, SlicesOfKnees, TwoStreamBatchSampler
from knee.data.views import ImageArray, Views, draw_seed
from knee.images.masks import dilate
from knee.io.pool import PATIENCE_S, start_worker, worker_death
from knee.nn.padding import mark_padding, padded_content
from knee.task import Batch

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class UnlabeledImages:
    """Images without labels: ``images`` uint8 (N, S, S), of which those at ``rows`` (U,) are used."""

    images: ImageArray
    rows: Rows

    def __post_init__(self) -> None:
        _check_images(self.images)
        object.__setattr__(self, "rows", _checked_rows(self.rows, len(self.images)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageArray:
        """uint8 (S, S)."""
        return np.asarray(self.images[self.rows[index]])


@dataclass(frozen=True, slots=True, eq=False)
class TargetImages(UnlabeledImages):
    """Images with soft targets: ``targets`` float32 (U, K), predicted probabilities of the grades for each of ``rows``."""

    targets: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        UnlabeledImages.__post_init__(self)
        if len(self.targets) != len(self.rows):
            raise ValueError(f"{len(self.targets)} targets for {len(self.rows)} rows: one per row")


class LabeledItem(NamedTuple):
    """A labeled image with its grade and, if there is one, its mask."""

    image: ImageArray
    grade: int
    mask: ImageArray | None


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImages:
    """Images with grades, some with masks.

    ``images`` uint8 (N, S, S); ``rows`` (L,) those used; ``grades`` (L,) one for each of ``rows``, from 0; ``masks``
    uint8 (N, S, S) in {0, 1} and ``has_mask`` bool (N,), by row like the images, or both None. Masks are dilated on
    access by ``dilation`` (``knee.images.masks.dilate``, in pixels of a 256-pixel image; 0 disables it).
    """

    images: ImageArray
    rows: Rows
    grades: npt.NDArray[np.int64]
    masks: ImageArray | None = None
    has_mask: npt.NDArray[np.bool_] | None = None
    dilation: float = 0.0

    def __post_init__(self) -> None:
        _check_images(self.images)
        object.__setattr__(self, "rows", _checked_rows(self.rows, len(self.images)))
        object.__setattr__(self, "grades", np.asarray(self.grades, dtype=np.int64))
        if self.grades.shape != self.rows.shape or (self.grades < 0).any():
            raise ValueError(f"grades {self.grades.shape} for {len(self.rows)} rows: one per row, from 0")
        if (self.masks is None) != (self.has_mask is None):
            raise ValueError("masks and has_mask must be given together")
        if self.masks is not None and self.has_mask is not None:
            object.__setattr__(self, "has_mask", np.asarray(self.has_mask, dtype=bool))
            if self.masks.shape != self.images.shape or len(self.has_mask) != len(self.images):
                raise ValueError(f"masks {self.masks.shape}, has_mask {len(self.has_mask)}: images {self.images.shape}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabeledItem:
        row = self.rows[index]
        masked = self.masks is not None and self.has_mask is not None and self.has_mask[row]
        mask = dilate(self.masks[row], self.dilation) if masked and self.masks is not None else None
        return LabeledItem(np.asarray(self.images[row]), int(self.grades[index]), mask)


class LabeledViews(NamedTuple):
    """Two views (S, S) uint8 of a labeled image, its grade, and its mask (S, S) if there is one."""

    student: ImageArray
    teacher: ImageArray
    grade: int
    mask: ImageArray | None
    content: ImageArray | None = None
    """(S, S), 0 in the padding; None without padding."""


class UnlabeledViews(NamedTuple):
    """Two views (S, S) uint8 of an unlabeled image."""

    student: ImageArray
    teacher: ImageArray
    content: ImageArray | None = None


class TargetViews(NamedTuple):
    """Two views (S, S) uint8 of an image with a soft target (K,)."""

    student: ImageArray
    teacher: ImageArray
    target: npt.NDArray[np.float32]
    content: ImageArray | None = None


AnyViews = LabeledViews | UnlabeledViews | TargetViews


class TwoStreams(Dataset[AnyViews]):
    """Both streams, indexed by ``Draw``: a sample's views depend only on the seed, its stream and its position."""

    def __init__(self, labeled: LabeledImages, unlabeled: UnlabeledImages, views: Views, *, seed: int) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.views = views
        self.seed = seed

    def __getitem__(self, draw: Draw) -> AnyViews:
        seed = draw_seed(self.seed, draw.stream, draw.position)
        if draw.stream == "unlabeled":
            image = self.unlabeled[draw.index]
            views = self.views(image, content=_content(image), seed=seed)
            if isinstance(self.unlabeled, TargetImages):
                target = self.unlabeled.targets[draw.index]
                return TargetViews(views.student, views.teacher, target, views.content)
            return UnlabeledViews(views.student, views.teacher, views.content)
        item = self.labeled[draw.index]
        views = self.views(item.image, item.mask, content=_content(item.image), seed=seed)
        return LabeledViews(views.student, views.teacher, item.grade, views.mask, views.content)


def _content(image: ImageArray) -> ImageArray | None:
    """Where the image (S, S) is not padding, as uint8; None without padding."""
    content = padded_content(torch.from_numpy(np.array(image))[None, None])[0]
    return None if content.all() else content.numpy().astype(np.uint8)


def collate(items: Sequence[AnyViews]) -> Batch:
    """A batch with images (B, 1, S, S) and masks (L, S, S) as uint8, to keep the transfer small.

    The labeled items must come first, as the sampler yields them; ``batch_to`` converts the batch to floats.
    """
    labeled = [item for item in items if isinstance(item, LabeledViews)]
    if not all(isinstance(item, LabeledViews) for item in items[: len(labeled)]):
        raise ValueError("labeled items must come first in a batch")
    masks = np.zeros((len(labeled), *items[0].student.shape), np.uint8)
    for mask, item in zip(masks, labeled, strict=True):
        if item.mask is not None:
            mask[:] = item.mask
    targets = [item.target for item in items if isinstance(item, TargetViews)]
    return Batch(
        student=torch.from_numpy(np.stack([item.student for item in items])[:, None]),
        teacher=torch.from_numpy(np.stack([item.teacher for item in items])[:, None]),
        grades=torch.tensor([item.grade for item in labeled], dtype=torch.int64),
        masks=torch.from_numpy(masks),
        has_mask=torch.tensor([item.mask is not None for item in labeled], dtype=torch.bool),
        content=_contents(items),
        targets=torch.from_numpy(np.stack(targets)) if targets else torch.zeros(0, 0),
    )


def _contents(items: Sequence[AnyViews]) -> Tensor:
    if all(item.content is None for item in items):
        return torch.zeros(0, 0, 0, dtype=torch.uint8)
    whole = np.ones_like(items[0].student)
    return torch.from_numpy(np.stack([whole if item.content is None else item.content for item in items]))


def images_to(images: Tensor, device: torch.device | str, *, channels_last: bool = False) -> Tensor:
    """uint8 images (B, 1, S, S) → float32 in [0, 1] on the device; the copy is asynchronous if memory is pinned."""
    # Transferred as bytes, a quarter of the size of floats, and converted on the device.
    moved = images.to(device, non_blocking=True).to(torch.float32).div_(255)
    return moved.contiguous(memory_format=torch.channels_last) if channels_last else moved


def batch_to(batch: Batch, device: torch.device | str, *, channels_last: bool = False) -> Batch:
    """The batch of ``collate`` on the device: images float32 in [0, 1] with padding marked, masks float32 in {0, 1}."""
    student = images_to(batch.student, device, channels_last=channels_last)
    teacher = images_to(batch.teacher, device, channels_last=channels_last)
    if len(batch.content):
        content = batch.content.to(device, non_blocking=True)
        student, teacher = mark_padding(student, content), mark_padding(teacher, content)
    return Batch(
        student=student,
        teacher=teacher,
        grades=batch.grades.to(device, non_blocking=True),
        masks=batch.masks.to(device, non_blocking=True).to(torch.float32),
        has_mask=batch.has_mask.to(device, non_blocking=True),
        targets=batch.targets.to(device, non_blocking=True),
    )


class TrainLoader:
    """Yields the remaining batches of the sampler's epoch (as ``collate`` builds them); each new iteration, the next epoch.

    The sampler's cursor moves when a batch is yielded, not when a worker fetches it. So a ``state_dict`` taken after a
    training step counts the steps taken, and a new loader that loads it continues with the next batch and the same views.
    Raises ``UserError`` if a worker process dies.
    """

    def __init__(self, loader: DataLoader[Any], sampler: TwoStreamBatchSampler) -> None:
        self._loader = loader
        self.sampler = sampler

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self._loader:
                self.sampler.advance()
                yield batch
        except RuntimeError as error:
            raise worker_death(error) or error from error

    def state_dict(self) -> dict[str, int]:
        """The next batch: ``epoch`` and ``batch``, counted from 0."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue with that batch at the next iteration; raises ``UserError`` if it does not fit the data."""
        self.sampler.load_state_dict(state)


def train_loader(
    streams: TwoStreams,
    sampler: TwoStreamBatchSampler,
    *,
    slices: SlicesOfKnees | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> TrainLoader:
    """Two-stream batches, identical for any number of workers.

    The sampler's indices are positions in ``streams.labeled`` and ``streams.unlabeled``, or those of the knees of ``slices``.
    OpenCV is limited to one thread here and in the workers: images of this size do not benefit from more.
    """
    both = ("labeled", sampler.labeled, streams.labeled), ("unlabeled", sampler.unlabeled, streams.unlabeled)
    for name, indices, images in both:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(images):
            raise ValueError(f"{name}: the sampler's indices reach {indices.max()}, there are {len(images)} images")
    if workers == 0:
        cv2.setNumThreads(0)
    loader = DataLoader(
        streams,
        batch_sampler=NumberedBatches(sampler, slices),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        timeout=PATIENCE_S if workers else 0,
        # Otherwise each epoch draws a number from torch's global generator, and a resumed run would diverge.
        generator=torch.Generator(),
    )
    return TrainLoader(loader, sampler)


class EvalImages(Dataset[tuple[ImageArray, int]]):
    """Unaugmented images with their row numbers: ``images`` uint8 (N, S, S), ``rows`` (M,) those used, in order."""

    def __init__(self, images: ImageArray, rows: Sequence[int] | Rows) -> None:
        self._served = UnlabeledImages(images, np.asarray(rows))

    def __len__(self) -> int:
        return len(self._served)

    def __getitem__(self, index: int) -> tuple[ImageArray, int]:
        return self._served[index], int(self._served.rows[index])


def eval_loader(
    images: EvalImages, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Yields images uint8 (B, 1, S, S) and row numbers int64 (B,), every row once and in order."""
    return DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=_collate_rows,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )


def _collate_rows(items: Sequence[tuple[ImageArray, int]]) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([image for image, _ in items])[:, None])
    return images, torch.tensor([row for _, row in items], dtype=torch.int64)


def _check_images(images: ImageArray) -> None:
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}; uint8 (N, S, S) is needed")


def _checked_rows(rows: Any, count: int) -> Rows:
    checked = np.asarray(rows, dtype=np.int64)
    if checked.ndim != 1 or (len(checked) and not 0 <= checked.min() <= checked.max() < count):
        raise ValueError(f"rows {checked.shape} reach outside the {count} images")
    return checked
