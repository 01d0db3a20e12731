"""Batch normalisation over the images of all processes, so that several processes train as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from knee.nn import processes

FEW_IMAGES = 16
"""With fewer images in each process, "auto" synchronises: their own mean and variance would be noisy."""
Norm = nn.modules.batchnorm._BatchNorm


def _summed(own: Tensor) -> Tensor:
    """The sum over the processes; its gradient is that of the losses of all."""
    found: Tensor = all_reduce(own)  # type: ignore[no-untyped-call]
    return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _normalised(norm: Norm, images: Tensor) -> Tensor:
    values = images if images.dtype == torch.float64 else images.float()
    axes, shape = [0, *range(2, images.ndim)], [1, -1, *[1] * (images.ndim - 2)]
    own = values.sum(axes)
    total = _summed(torch.cat([own, own.new_tensor([values.numel() / len(own)])]))
    counted = float(total[-1].item())
    mean = total[:-1] / counted
    centered = values - mean.view(shape)
    variance = _summed(centered.square().sum(axes)) / counted
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
            norm.running_var.lerp_((variance * counted / max(counted - 1, 1)).to(norm.running_var.dtype), rate)
    found = centered * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    return found.to(images.dtype)


_KINDS: dict[type[Norm], type[Norm]] = {}


def _synchronised(kind: type[Norm]) -> type[Norm]:
    class Synchronised(kind):  # type: ignore[misc, valid-type]
        def forward(self, images: Tensor) -> Tensor:
            if not self.training or processes.count() == 1:
                found: Tensor = super().forward(images)
                return found
            found = _normalised(self, images)
            if hasattr(self, "act"):  # timm's layers add dropout and an activation
                found = self.act(self.drop(found))
            return found

    return Synchronised


def synchronise(networks: Iterable[nn.Module]) -> int:
    """Let the batch normalisation of the networks use the images of all processes, in place; how many layers do.

    On any device: torch's own ``SyncBatchNorm`` works only on GPUs. Names and values in a checkpoint stay the same, and with
    one process nothing changes.
    """
    norms = [layer for network in networks for layer in network.modules() if isinstance(layer, Norm)]
    for layer in norms:
        kind = type(layer)
        if kind not in _KINDS:
            _KINDS[kind] = _synchronised(kind)
        layer.__class__ = _KINDS[kind]
    return len(norms)
