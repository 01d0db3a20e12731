"""The batch sampler: labeled and unlabeled images in a fixed ratio.

The order depends only on the seed and the epoch. The sampler keeps a cursor to the next batch, so that a run can stop after
any batch and resume with the one that would have followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from knee.errors import UserError
from knee.nn.processes import part_of

Stream = Literal["labeled", "unlabeled"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One image of a batch, as requested from the data set."""

    stream: Stream
    position: int
    """Number of earlier draws of this stream in the run; together with the run's seed it determines the sample's views."""
    index: int
    """Which image of the stream."""


class TwoStreamBatchSampler:
    """Lists of indices, the labeled ones first; an epoch is one pass over the stream that needs more batches.

    ``labeled`` and ``unlabeled`` hold the indices to draw from, and may overlap. The last partial batch of the longer stream
    is dropped; the other stream repeats, reshuffled each time. If a stream has fewer images than it contributes to a batch,
    images repeat within the batch; otherwise they do not. Without unlabeled images (or with ``unlabeled_per_batch=0``)
    batches have only labeled images, with ``labeled_per_batch=0`` only unlabeled ones. Raises ``UserError`` where labeled
    images are needed and there are none, or a batch would be empty.

    Iterating yields one epoch, shuffled differently each time, and advances the cursor with each batch. It starts at a newly
    loaded state; after an unfinished epoch it starts with the next one. A loader that prefetches must not move the cursor
    early: it iterates over ``batches_from`` and calls ``advance`` when a batch reaches the training step, so that
    ``state_dict`` counts the batches trained on (as in ``knee.data.datasets.TrainLoader``).

    >>> sampler = TwoStreamBatchSampler([0, 1], range(2, 8), labeled_per_batch=1, unlabeled_per_batch=2, seed=0)
    >>> len(sampler), [len(batch) for batch in sampler]
    (3, [3, 3, 3])
    >>> sampler.state_dict()
    {'epoch': 1, 'batch': 0}
    """

    def __init__(
        self,
        labeled: Sequence[int] | npt.NDArray[np.integer],
        unlabeled: Sequence[int] | npt.NDArray[np.integer],
        *,
        labeled_per_batch: int,
        unlabeled_per_batch: int,
        seed: int,
    ) -> None:
        self.labeled = np.asarray(labeled, dtype=np.int64)
        self.unlabeled = np.asarray(unlabeled, dtype=np.int64)
        counts = {"labeled_per_batch": labeled_per_batch, "unlabeled_per_batch": unlabeled_per_batch, "seed": seed}
        for name, count in counts.items():
            if count < 0:
                raise UserError(f"{name} is {count}; give 0 or more")
        if labeled_per_batch > 0 and len(self.labeled) == 0:
            raise UserError(
                f"no labeled image for batches with {labeled_per_batch}; label some, raise the labeled fraction, "
                "or set labeled_per_batch to 0"
            )
        self.labeled_per_batch = labeled_per_batch
        self.unlabeled_per_batch = unlabeled_per_batch if len(self.unlabeled) else 0
        if self.labeled_per_batch + self.unlabeled_per_batch == 0:
            raise UserError(
                f"batches would be empty: labeled_per_batch is {labeled_per_batch}, unlabeled_per_batch "
                f"{unlabeled_per_batch} with {len(self.unlabeled)} unlabeled images; raise one of them"
            )
        self.seed = seed
        self._epoch = 0
        self._batch = 0
        self._loaded = False

    def __len__(self) -> int:
        """Batches of a whole epoch, at least 1."""
        streams = ((self.labeled, self.labeled_per_batch), (self.unlabeled, self.unlabeled_per_batch))
        return max(1, *(len(indices) // count if count else 0 for indices, count in streams))

    def __iter__(self) -> Iterator[list[int]]:
        # An interrupted DataLoader has prefetched some batches, so continuing there would depend on its workers.
        if self._batch > 0 and not self._loaded:
            self.set_epoch(self._epoch + 1)
        self._loaded = False
        for batch in self.batches_from(self._epoch, self._batch):
            self.advance()
            yield batch

    def batches_from(self, epoch: int, batch: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from the given one on; does not move the cursor."""
        batches = len(self)
        labeled = _order(self.labeled, self.labeled_per_batch, batches, [self.seed, epoch, 0])
        unlabeled = _order(self.unlabeled, self.unlabeled_per_batch, batches, [self.seed, epoch, 1])
        for number in range(batch, batches):
            yield [*labeled[number].tolist(), *unlabeled[number].tolist()]

    def advance(self) -> None:
        """Move the cursor past one batch, after the last one to the next epoch."""
        self._batch += 1
        if self._batch >= len(self):
            self._epoch, self._batch = self._epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the cursor to the start of an epoch, counted from 0."""
        self.load_state_dict({"epoch": epoch, "batch": 0})

    def state_dict(self) -> dict[str, int]:
        """The cursor: ``epoch`` and ``batch`` of the next batch, both counted from 0."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Set the cursor; raises ``UserError`` for one that does not fit this sampler."""
        epoch, batch = state["epoch"], state["batch"]
        if epoch < 0 or not 0 <= batch < len(self):
            raise UserError(
                f"epoch {epoch}, batch {batch} do not fit epochs of {len(self)} batches; "
                "resume with the data and batch sizes with which the run was started"
            )
        self._epoch, self._batch, self._loaded = int(epoch), int(batch), True


class SlicesOfKnees:
    """Draws ``count`` slices of each drawn knee: one from each of ``count`` equal parts of its stack.

    ``labeled`` and ``unlabeled`` hold the stacks: for each knee the positions of its slices in the stream, in order, at least
    one. A stack of fewer slices repeats some. The choice depends only on the seed, the stream and the number of the draw.
    """

    def __init__(
        self,
        labeled: Sequence[npt.NDArray[np.int64]],
        unlabeled: Sequence[npt.NDArray[np.int64]],
        *,
        count: int,
        seed: int,
    ) -> None:
        self.stacks: Mapping[Stream, Sequence[npt.NDArray[np.int64]]] = {"labeled": labeled, "unlabeled": unlabeled}
        self.count = count
        self.seed = seed

    def draws(self, knee: Draw) -> list[Draw]:
        """The slices of a drawn knee, whose ``index`` is its stack; ``count`` draws."""
        stack = self.stacks[knee.stream][knee.index]
        rng = np.random.default_rng([self.seed, knee.stream == "unlabeled", knee.position])
        ends = np.arange(self.count + 1) * len(stack) // self.count
        places = rng.integers(ends[:-1], np.maximum(ends[1:], ends[:-1] + 1))
        first = knee.position * self.count
        return [Draw(knee.stream, first + number, int(stack[place])) for number, place in enumerate(places)]


class NumberedBatches:
    """The sampler's batches as ``Draw``s, from its cursor to the end of the epoch; does not move the cursor.

    With ``slices`` the sampler's indices are those of knees, and each is replaced by some of its slices, next to each other.
    Each of n processes gets every n-th image of both streams, in the views that it has in the whole batch.
    """

    def __init__(self, sampler: TwoStreamBatchSampler, slices: SlicesOfKnees | None = None) -> None:
        self.sampler = sampler
        self.slices = slices

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Draw]]:
        sampler = self.sampler
        labeled, unlabeled = sampler.labeled_per_batch, sampler.unlabeled_per_batch
        state = sampler.state_dict()
        first = state["epoch"] * len(sampler) + state["batch"]
        for number, indices in enumerate(sampler.batches_from(state["epoch"], state["batch"]), start=first):
            first_labeled, first_other = number * labeled, number * unlabeled
            draws = [*part_of([Draw("labeled", first_labeled + i, index) for i, index in enumerate(indices[:labeled])])]
            draws += part_of([Draw("unlabeled", first_other + i, index) for i, index in enumerate(indices[labeled:])])
            yield draws if self.slices is None else [one for knee in draws for one in self.slices.draws(knee)]


def _order(indices: npt.NDArray[np.int64], per_batch: int, batches: int, entropy: list[int]) -> npt.NDArray[np.int64]:
    """(batches, per_batch): shuffled passes over the indices, one after the other, cut to the number that the batches need."""
    if per_batch == 0:
        return np.empty((batches, 0), dtype=np.int64)
    rng = np.random.default_rng(entropy)
    count, needed = len(indices), batches * per_batch
    passes = [rng.permutation(count)]
    for drawn in range(count, needed, count):
        following = rng.permutation(count)
        # A pass may end within a batch: images already in that batch move to the end of the next pass.
        open_batch = drawn % per_batch
        if open_batch > 0 and per_batch <= count:
            held = np.isin(following, passes[-1][count - open_batch :])
            following = np.concatenate([following[~held], following[held]])
        passes.append(following)
    return indices[np.concatenate(passes)[:needed]].reshape(batches, per_batch)
