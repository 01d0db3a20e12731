"""Work in several processes, started by ``torchrun``: who this process is, and what the processes exchange.

Every process runs the same program on its part of each batch, or of the images. In training, gradients are averaged after each
step, so all have the same weights; results of other work are ``merged``. The first process alone writes and reads the run
folder's lock. Without torchrun there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from knee.errors import UserError

Value = TypeVar("Value")
_LOST = (
    "another process of this command ended, so this one ends, too; its own message tells why. A training has a whole last "
    "checkpoint: continue with --resume, on any number of processes"
)
_WAIT = timedelta(minutes=30)
"""How long a process waits for the others, for example while the first one validates."""


_alone = False


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_first() -> bool:
    """Whether this process writes the run folder."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of ``torchrun``, if there are any, for the time of a command.

    Only the first process prints, but for errors. Raises UserError in the others if one is lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # Processes that share a GPU would each get a part of its memory and no speed: one GPU each.
    on_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=_WAIT)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the processes cannot meet at {place} ({str(error).splitlines()[0][:200]}); give a free port of the first node: "
            "torchrun --master-port 29501, or --rdzv-endpoint NODE:29501 for several nodes"
        ) from error
    if not is_first():
        logging.disable(logging.WARNING)
    try:
        with _told():
            yield
    finally:
        logging.disable(logging.NOTSET)
        dist.destroy_process_group()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError) as error:
        raise UserError(_LOST) from error
    except RuntimeError as error:
        if any(word in str(error) for word in ("gloo", "Connection closed by peer", "ProcessGroup")):
            raise UserError(_LOST) from error
        raise


def refuse_several(what: str) -> None:
    """Raises UserError if ``torchrun`` started several processes for something that works in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what} works in one process only; start it without torchrun")


def first_decides(decide: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a call that only the first process makes, in all of them; it must be a plain value or picklable."""
    if count() == 1:
        return decide(*arguments, **options)
    found = [None]
    if is_first():
        with _working_alone():
            found = [decide(*arguments, **options)]
    dist.broadcast_object_list(found)
    return found[0]


def wait_for_first() -> None:
    """Wait until the first process has come here, too, for example to read what it has written."""
    first_decides(lambda: None)


def refuse_different(values: Mapping[str, Any]) -> None:
    """Raises UserError if a process has other values, such as hashes of code and data."""
    if count() == 1:
        return
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, dict(values))
    for number, other in enumerate(found):
        differing = [name for name, value in found[0].items() if other.get(name) != value]
        if differing:
            raise UserError(
                f"process {number} has another {', '.join(differing)} than process 0; give all the same code and files"
            )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in place; all must have gradients of the same parameters."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    _average(gradients)


def average_buffers(networks: Iterable[nn.Module]) -> None:
    """The same for floating-point buffers: each process has updated batch statistics on its own part of the batch."""
    if count() == 1:
        return
    _average([one for network in networks for one in network.buffers() if one.is_floating_point()])


@torch.no_grad()
def _average(tensors: list[Tensor]) -> None:
    # One message for all, which is much faster than one for each.
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= count()
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over the processes, which must have the same names."""
    if count() == 1:
        return dict(values)
    found = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(found)
    return dict(zip(values, (found / count()).tolist(), strict=True))


def any_of(flags: Tensor) -> Tensor:
    """Booleans (n,): whether each is set in any of the processes."""
    if count() > 1:
        numbers = flags.to(torch.float32)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return numbers > 0
    return flags


def share_of_mean(counted: int, device: torch.device) -> float:
    """The factor that makes the mean over processes of local means the mean over all ``counted`` items of the processes.

    For terms that count only some images, such as those with a mask; 0 in a process without one, and where there is none.
    """
    if count() == 1:
        return 1.0
    everything = torch.tensor([float(counted)], device=device)
    dist.all_reduce(everything)
    return counted * count() / max(float(everything.item()), 1.0)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(count())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[rank() :: count()] * count()


def gathered(own: Tensor) -> Tensor:
    """The rows of all processes (B, …), in the order of the batch of which each has its ``part_of``, with gradient.

    For losses that compare all rows with each other: each process computes the loss of the whole batch, and the gradient of its
    own rows, times the number of processes, so that ``average_gradients`` gives the gradient of one process.
    """
    if count() == 1:
        return own
    found: Tensor = _Gathered.apply(own)  # type: ignore[no-untyped-call]
    return found


def refuse_drifted(networks: Mapping[str, nn.Module]) -> None:
    """Raises UserError if a process has other weights or statistics: compared by hash."""
    if count() > 1:
        refuse_different({f"{name} network": _hash_of(network) for name, network in networks.items()})


def _hash_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def part_of(items: Iterable[Value]) -> Iterable[Value]:
    """This process's items: every ``count()``-th, from ``rank()`` on. Of a loader, only these batches are read."""
    if count() == 1:
        return items
    if isinstance(items, DataLoader) and items.batch_sampler is not None:
        batches = list(islice(iter(items.batch_sampler), rank(), None, count()))
        return DataLoader(items.dataset, batch_sampler=batches, collate_fn=items.collate_fn)
    return islice(items, rank(), None, count())


def merged(own: Iterable[Value]) -> Iterator[Value]:
    """The results of all processes, in all of them, in the order of the items of which each took its ``part_of``.

    Lazy: each computes one result, then all exchange theirs. Within ``own`` a process works as if there were no others.
    """
    if count() == 1:
        yield from own
        return
    results, places = iter(own), count()
    while True:
        with _working_alone():
            mine = list(islice(results, 1))
        found: list[list[Value]] = [[]] * places
        dist.all_gather_object(found, mine)
        if not any(found):
            return
        for one in found:
            yield from one


@contextlib.contextmanager
def _working_alone() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before
