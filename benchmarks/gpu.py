"""What a GPU changes: precision, memory layout, compiled step and pinned loading, next to a bare timm step.

    benchmarks/gpu.sh                 # at most 8 minutes on one GPU
    benchmarks/gpu.sh --small         # the same code in seconds on a CPU, to see that it runs

Each line is a whole step of DC-MT (``knee.engine.fit``) in another setting, on one batch in the device's memory, or from the
two-stream loader. The bare step is one timm network, forward, backward and optimizer; the floor adds the teacher's forward
pass.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from loader import build_loader, write_arrays
from step import add_network_options, floor_step, make_task, random_batch, timed, whole_step

from dcmt.mean_teacher import MeanTeacher
from knee.data.datasets import TrainLoader, batch_to
from knee.engine.device import autocast, choose_device, memory_gib
from knee.engine.training import place
from knee.task import Batch


class Setting(NamedTuple):
    """One line of the table."""

    name: str
    precision: str
    channels_last: bool = True
    compiled: bool = False
    workers: int | None = None
    """Of the loader; None: one batch in the device's memory."""


SETTINGS = (
    Setting("fp32, contiguous", "fp32", channels_last=False),
    Setting("fp32", "fp32"),
    Setting("bf16, contiguous", "bf16", channels_last=False),
    Setting("bf16", "bf16"),
    Setting("fp16", "fp16"),
    Setting("bf16, compiled", "bf16", compiled=True),
    Setting("bf16, loader without workers", "bf16", workers=0),
    Setting("bf16, loader, 8 workers", "bf16", workers=8),
    Setting("bf16, compiled, loader, 8 workers", "bf16", compiled=True, workers=8),
)


class Loaded:
    """Batches of the loader on the device, as a training has them; pinned and copied while the device computes."""

    def __init__(self, loader: TrainLoader, device: torch.device, *, channels_last: bool) -> None:
        self.loader, self.device, self.channels_last = loader, device, channels_last
        self.per_epoch = len(loader)

    def from_batch(self, batch: int) -> Iterator[Batch]:
        """Endless batches from the loader's first one."""
        while True:
            for found in self.loader:
                yield batch_to(found, self.device, channels_last=self.channels_last)


def bare_step(options: argparse.Namespace, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Forward, backward and optimizer of the backbone as timm makes it, with one head."""
    network = timm.create_model(options.backbone, in_chans=1, num_classes=3).to(
        device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    targets = torch.zeros(len(batch.student), dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, "bf16"):
            loss = F.cross_entropy(network(batch.student), targets)
        loss.backward()
        optimizer.step()

    return step


def rate(step: Callable[[], None], images: int, device: torch.device, seconds: float) -> float:
    """Images per second, after three steps that are not counted."""
    for _ in range(3):
        timed(step, device)
    started, count, spent = time.perf_counter(), 0, 0.0
    while count < 2 or time.perf_counter() - started < seconds:
        spent += timed(step, device)[0]
        count += 1
    return images * count / spent


def rate_of(setting: Setting, options: argparse.Namespace, device: torch.device, folder: Path) -> float:
    """Images per second of whole steps in a setting."""
    task: MeanTeacher = make_task(options, device)
    place(task.networks, device, channels_last=setting.channels_last)
    if setting.compiled:
        for network in task.networks.values():
            network.compile()
    batch = random_batch(options, device)
    batches: Batch | Loaded = batch
    if setting.workers is not None:
        workers = min(setting.workers, options.most_workers)
        loader = build_loader(folder, options, workers=workers, pin_memory=device.type == "cuda")
        batches = Loaded(loader, device, channels_last=setting.channels_last)
    with tempfile.TemporaryDirectory() as run:
        step, tracker = whole_step(task, batches, device, setting.precision, Path(run))
        found = rate(step, len(batch.student), device, options.seconds)
        tracker.close()
    return found


def parse() -> argparse.Namespace:
    """The options; ``--small`` replaces those that decide how long it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_options(parser)
    parser.set_defaults(backbone="convnext_tiny", stage=-1, stride=16, size=224, labeled=48, unlabeled=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long each setting is timed")
    parser.add_argument("--budget", type=float, default=400.0, help="no setting is started after so many seconds")
    parser.add_argument("--images", type=int, default=2000, help="images of the loader")
    parser.add_argument("--small", action="store_true", help="tiny and not compiled, for a CPU")
    options = parser.parse_args()
    options.most_workers, options.views = 8, "strong"
    if options.small:
        small = {"backbone": "resnet10t", "stage": 2, "stride": 8, "size": 32, "labeled": 4, "unlabeled": 4}
        small |= {"seconds": 0.0, "images": 40, "most_workers": 1, "device": "cpu"}
        vars(options).update(small)
    options.labeled_per_batch, options.unlabeled_per_batch = options.labeled, options.unlabeled
    return options


def main() -> None:
    """Print the table."""
    options, started = parse(), time.monotonic()
    device = choose_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    batch = random_batch(options, device)
    images = f"{options.labeled} + {options.unlabeled} images"
    print(f"{options.backbone}, {options.size} px, {images}, {name}, torch {torch.__version__}")
    bare = rate(bare_step(options, batch, device), len(batch.student), device, options.seconds)
    floor = rate(
        floor_step(make_task(options, device), batch, device, "bf16"), len(batch.student), device, options.seconds
    )
    print(f"{'bare timm step, bf16':<36}{bare:9.1f} images/s")
    print(f"{'floor (with teacher), bf16':<36}{floor:9.1f} images/s   {floor / bare:.2f} of the bare step")
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder), options.images, options.size)
        for setting in SETTINGS:
            if options.small and (setting.compiled or setting.precision == "fp16"):
                continue
            if time.monotonic() - started > options.budget:
                print(f"{setting.name:<36}not measured: {options.budget:g} s are over")
                continue
            found = rate_of(setting, options, device, Path(folder))
            memory = f"peak {memory_gib(device):.2f} GiB"
            print(f"{setting.name:<36}{found:9.1f} images/s   {found / floor:.2f} of the floor, {memory}", flush=True)


if __name__ == "__main__":
    main()
