"""How fast ONNX Runtime grades next to torch: one image and 32, one thread, float32 and int8.

    python benchmarks/onnx_runtime.py --backbone tf_efficientnet_lite0 --stage -1 --stride 16 --size 160

Both compute the same outputs (probabilities, attention, soft threshold) of random weights. They alternate, and the median
counts; processor time is less disturbed by other work on the machine than the clock. Needs the extra ``onnx``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from step import add_network_options

from dcmt.network import build_network
from dcmt.onnx.card import Card
from dcmt.onnx.export import Exported, GraderOutputs, onnx_bytes
from dcmt.onnx.int8 import quantized
from dcmt.onnx.runtime import session_of
from knee.attention import AttentionConfig
from knee.grades import load_grade_set

GRADES = 5


def exported(options: argparse.Namespace) -> Exported:
    """A grader with random weights, channels last as ``load_run`` places it."""
    torch.manual_seed(0)
    network = build_network(
        options.backbone, grades=GRADES, image_size=options.size, stride=options.stride, stage=options.stage
    )
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loaded: Any = SimpleNamespace(
        networks={"teacher": network},
        bare={"teacher": network},
        config=SimpleNamespace(attention=AttentionConfig()),
        grade_set=load_grade_set("kl"),
    )
    card = Card(
        kind="grader", network="teacher", grade_set="kl", grades=["0", "1", "2", "3", "4"], image_size=options.size,
        percentiles=[0.5, 99.5], mirror_side="none", template=[], modalities=[], distances=[], farthest=0.0,
        temperature=1.0, flip_tta=False, severest=False, opset=17, weights_sha256="", step=0, license="", version="",
    )  # fmt: skip
    return Exported(
        GraderOutputs(loaded, "teacher", None).eval(), ("probabilities", "attention_x", "attention_f"), card
    )


def seconds(work: Callable[[], object]) -> NDArray[np.float64]:
    """By the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_options(parser)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = exported(options)
    content = onnx_bytes(found)
    float32, int8 = (session_of(one, threads=1) for one in (content, quantized(content)))
    print(f"{options.backbone} at {options.size} px, one thread, load before {os.getloadavg()[0]:.1f}")
    for count in options.images:
        images = torch.randint(1, 256, (count, 1, options.size, options.size), dtype=torch.uint8)

        def by_torch(images: torch.Tensor = images) -> None:
            with torch.inference_mode():
                found.network(images)

        works = {
            "torch": by_torch,
            "ONNX Runtime": lambda images=images: float32(images.numpy()),
            "the same in int8": lambda images=images: int8(images.numpy()),
        }
        rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(options.rounds + 1)][1:]
        for name in works:
            wall, cpu = np.median([one[name] for one in rounds], axis=0)
            ratio = np.median([one["torch"] / one[name] for one in rounds], axis=0)
            print(
                f"{count:>3} images  {name:<17}{1000 * wall:8.1f} ms, {1000 * cpu:8.1f} ms of the processor; "
                f"{ratio[0]:.2f} and {ratio[1]:.2f} times the speed of torch"
            )


if __name__ == "__main__":
    main()
