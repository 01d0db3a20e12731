"""What a contrastive training step costs beside its two encoders alone, on random pairs in memory.

    python benchmarks/pair_step.py [--config configs/lumbarclip.yaml] [--contrast.queue 512] [--data.image_size 64]

The encoders alone: forward, backward and optimizer. The step: also targets, loss, monitors, and the moving average. The
budget is 1.10 times. Prints processor time; the two alternate, and the median of the pairs' ratios counts. A queue costs a
forward pass of the teacher as well.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from flip_step import in_turns

from image_text.batches import PairBatch
from image_text.config import ImageTextConfig
from image_text.contrastive import Contrastive
from image_text.train import build_towers
from knee.engine.device import autocast
from knee.engine.fit import make_optimizer
from knee.engine.options import read_config
from knee.grades import load_grade_set

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "lumbarclip.yaml")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--rounds", type=int, default=15)
    options, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = read_config(ImageTextConfig, ["--config", str(options.config), *rest], program="pair_step")
    steps = {whole: Step(config, options.precision, whole=whole) for whole in (True, False)}
    middle, ratios = in_turns({whole: step.seconds for whole, step in steps.items()}, options.rounds)
    print(
        f"{options.config.stem}, {options.precision}: {middle[False]:.3f} s for the encoders alone, {middle[True]:.3f} s a "
        f"step; {median(ratios):.2f} times, {ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds"
    )


class Step:
    """Towers on random pairs, and one optimizer step at a time: the ``whole`` one, or that of the encoders alone."""

    def __init__(self, config: ImageTextConfig, precision: str, *, whole: bool) -> None:
        self.precision, self.whole = precision, whole
        count, size, text = config.data.labeled_per_batch, config.data.image_size, config.text
        towers = build_towers(config, grades=load_grade_set(config.data.grade_set).count, fresh=False)
        towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.task = Contrastive(towers, contrast=config.contrast, decay=0.99)
        self.optimizer = make_optimizer(self.task, config.optimizer, torch.device("cpu"))
        images, numbers = torch.rand(count, 1, size, size), torch.arange(count)
        tokens = torch.randint(3, text.buckets, (count, text.length))
        self.batch = PairBatch(images, images, tokens, numbers, numbers, numbers % 5)

    def seconds(self) -> float:
        """One step, in processor time."""
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(torch.device("cpu"), self.precision):
            if self.whole:
                total = self.task.losses(self.batch, 50).total
            else:
                images, texts, _ = self.task.student(self.batch.student, self.batch.tokens)
                total = images.square().mean() + texts.square().mean()
        total.backward()
        self.optimizer.step()
        if self.whole:
            self.task.after_update(50)
        return time.process_time() - start


if __name__ == "__main__":
    main()
