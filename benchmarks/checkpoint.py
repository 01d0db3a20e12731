"""What checkpoints cost, as a share of training time at the default interval.

    python benchmarks/checkpoint.py --backbone seresnext50_32x4d --stage -1 --stride 16 --size 256

Times the writing of a whole checkpoint (both networks, the optimizer, random state; checksums and fsync included) and
divides by the default time between two, ``fit.checkpoint_minutes``. The checkpoints after each validation are a second
share: there are ten in a run of the default settings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from step import add_network_options, make_task, random_batch, whole_step

from knee.engine.checkpoint import Checkpoints
from knee.engine.config import FitConfig


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_options(parser)
    parser.add_argument("--steps", type=int, default=700, help="steps of the run that the second share is of")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    device = torch.device("cpu")
    task = make_task(options, device)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        step, tracker = whole_step(task, random_batch(options, device), device, "fp32", folder)
        step()  # gives the optimiser its moments
        start = time.perf_counter()
        step()
        step_seconds = time.perf_counter() - start
        tracker.close()
        optimizer = {
            f"{number}.{moment}": parameter.detach().clone()
            for number, parameter in enumerate(task.student.parameters())
            for moment in ("exp_avg", "exp_avg_sq")
        }
        seconds = []
        checkpoints = Checkpoints(folder / "checkpoints")
        for number in range(options.times):
            start = time.perf_counter()
            checkpoints.save(number, task.networks, {"optimizer": optimizer}, {})
            seconds.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in next(checkpoints.folder.glob("step_*")).iterdir())
    median, interval = statistics.median(seconds), 60 * FitConfig().checkpoint_minutes
    print(
        f"{options.backbone}: {size / 2**20:.0f} MiB a checkpoint, {median:.2f} s to write (slowest {max(seconds):.2f} s)"
    )
    print(f"{median / interval:.3%} of training at one every {FitConfig().checkpoint_minutes:g} minutes")
    run = options.steps * step_seconds
    print(f"{10 * median / run:.2%} of a run of {options.steps} steps of {step_seconds:.2f} s with ten validations")


if __name__ == "__main__":
    main()
