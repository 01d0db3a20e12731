"""What a training step costs with the flip losses and without: forward, losses, backward and optimizer, no data.

    python benchmarks/flip_step.py [--config configs/clip_koa_small.yaml] [--device cuda]

The budget is 2.1 times. Prints processor time on a CPU (others may share the machine), wall time on a GPU. The two steps
alternate, and the median of the pairs' ratios counts: a processor that changes its speed changes it for both of a
pair, while the fastest step of each kind may come from different moments.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from dcmt.config import GraderConfig, LossConfig
from dcmt.mean_teacher import MeanTeacher
from dcmt.train import build_grader
from knee.engine.device import autocast
from knee.engine.fit import make_optimizer
from knee.engine.options import read_config
from knee.grades import load_grade_set
from knee.task import Batch

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print the two rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "clip_koa_small.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    options, rest = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = read_config(GraderConfig, ["--config", str(options.config), *rest], program="flip_step")
    device = torch.device(options.device)
    steps = {flips: Step(config, device, options.precision, flips=flips) for flips in (True, False)}
    middle, ratios = in_turns({flips: step.seconds for flips, step in steps.items()}, options.pairs)
    print(
        f"{options.config.stem} on {device}, {options.precision}: {middle[False]:.3f} s a step without flips, "
        f"{middle[True]:.3f} s with; {median(ratios):.2f} times, {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs"
    )


def in_turns(timed: Mapping[bool, Callable[[], float]], rounds: int) -> tuple[dict[bool, float], list[float]]:
    """The median time of each of two, called in turns after a first round, and the sorted ratios of the rounds."""
    times = [{which: seconds() for which, seconds in timed.items()} for _ in range(rounds + 1)][1:]
    ratios = sorted(pair[True] / pair[False] for pair in times)
    return {which: median(pair[which] for pair in times) for which in timed}, ratios


class Step:
    """A task on random images, and one optimizer step of it at a time."""

    def __init__(self, config: GraderConfig, device: torch.device, precision: str, *, flips: bool) -> None:
        self.device, self.precision = device, precision
        network = build_grader(config, load_grade_set(config.data.grade_set), fresh=False)
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = config.loss
        weights = LossConfig(
            attention=0.0,
            probability_consistency=loss.probability_consistency,
            attention_consistency=loss.attention_consistency,
        )
        if flips:
            weights = replace(weights, symmetry=True, flip_consistency=10.0)
        self.task = MeanTeacher(network, loss=weights, decay=0.99, ramp_steps=100)
        self.optimizer = make_optimizer(self.task, config.optimizer, device)
        labeled, size = config.data.labeled_per_batch, config.data.image_size
        images = torch.rand(labeled + config.data.unlabeled_per_batch, 1, size, size, device=device)
        masks = torch.zeros(labeled, size, size, device=device)
        grades = torch.arange(labeled, device=device) % load_grade_set(config.data.grade_set).count
        self.batch = Batch(images, images, grades, masks, masks.flatten(1).any(1))

    def seconds(self) -> float:
        """One step."""
        start = self._now()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            total = self.task.losses(self.batch, 50).total
        total.backward()
        self.optimizer.step()
        self.task.after_update(50)
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


if __name__ == "__main__":
    main()
