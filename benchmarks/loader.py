"""How fast two-stream batches are loaded, compared with plain decoding, and how much memory that takes.

    python benchmarks/loader.py --size 96 --workers 0 2

Synthetic images in a temporary folder; nothing outside it is read or written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from knee.batches import TwoStreamBatchSampler
from knee.data.datasets import LabeledImages, TrainLoader, TwoStreams, UnlabeledImages, train_loader
from knee.data.views import PRESETS, Views, views_from
from knee.io.shared_array import open_shared

PNG_COUNT = 300
MASK_DILATION = 18.0


def write_arrays(folder: Path, count: int, size: int) -> None:
    """images.npy and masks.npy, uint8 (count, size, size): smooth random images, a band as mask in each."""
    rng = np.random.default_rng(0)
    shape = (count, size, size)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    masks = np.lib.format.open_memmap(folder / "masks.npy", mode="w+", dtype=np.uint8, shape=shape)
    for image, mask in zip(images, masks, strict=True):
        coarse = rng.integers(0, 256, (size // 8, size // 8), dtype=np.uint8)
        image[:] = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        top = int(rng.integers(size // 3, size // 2))
        mask[top : top + size // 16, size // 6 : -size // 6] = 1


def build_loader(folder: Path, options: argparse.Namespace, *, workers: int, pin_memory: bool = False) -> TrainLoader:
    """A tenth of the images labeled, each with a mask."""
    images, masks = open_shared(folder / "images.npy"), open_shared(folder / "masks.npy")
    rows = np.arange(len(images))
    labeled, unlabeled = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    has_mask = np.ones(len(rows), bool)
    sampler = TwoStreamBatchSampler(
        range(len(labeled)),
        range(len(unlabeled)),
        labeled_per_batch=options.labeled_per_batch,
        unlabeled_per_batch=options.unlabeled_per_batch,
        seed=0,
    )
    streams = TwoStreams(
        LabeledImages(images, labeled, labeled % 3, masks, has_mask, dilation=MASK_DILATION),
        UnlabeledImages(images, unlabeled),
        Views(views_from(options.views), options.size),
        seed=0,
    )
    return train_loader(streams, sampler, workers=workers, pin_memory=pin_memory)


def take(loader: TrainLoader, batches: int) -> int:
    """Images in this many batches, over as many epochs as needed."""
    images = 0
    while True:
        for batch in loader:
            images += len(batch.student)
            batches -= 1
            if batches <= 0:
                return images


def decoding_rate(folder: Path, size: int) -> float:
    """PNG files read per second by one thread, from memory-cached files, with nothing done to them."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    paths = [folder / f"{number}.png" for number in range(min(PNG_COUNT, len(images)))]
    for path, image in zip(paths, images, strict=False):
        cv2.imwrite(str(path), image)
    start = time.perf_counter()
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None and image.shape == (size, size)
    return len(paths) / (time.perf_counter() - start)


def loading_rate(folder: Path, options: argparse.Namespace, *, workers: int) -> float:
    """Images per second of the training loader, two views each, after the workers have started."""
    loader = build_loader(folder, options, workers=workers)
    take(loader, 2 + 4 * workers)
    start = time.perf_counter()
    return take(loader, options.batches) / (time.perf_counter() - start)


def memory_mib() -> tuple[float, float]:
    """Resident memory of this process: its own, and pages of mapped files, which the system can reclaim.

    Where /proc is missing the first is the peak of both together and the second 0.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 0.0
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
    return kib["RssAnon"] / 1024, kib["RssFile"] / 1024


def measure_memory(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Peak of both parts over an epoch: nearly every image has then been read."""
    loader = build_loader(folder, options, workers=0)
    peaks = [memory_mib()]
    for _ in loader:
        peaks.append(memory_mib())
    return max(own for own, _ in peaks), max(mapped for _, mapped in peaks)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="pixels along each side (default 96)")
    parser.add_argument("--views", choices=sorted(PRESETS), default="strong", help="strength of the views")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers to time")
    parser.add_argument("--batches", type=int, default=60, help="batches timed for each")
    parser.add_argument("--labeled-per-batch", type=int, default=20)
    parser.add_argument("--unlabeled-per-batch", type=int, default=10)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000, 4000], help="numbers of images for memory")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print rates and memory."""
    options = parse(arguments)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder, 1000, options.size)
        decoding = decoding_rate(folder, options.size)
        print(f"only decoding, one thread: {decoding:8.0f} images/s   (PNG, {options.size} px, no augmentation)")
        for workers in options.workers:
            rate = loading_rate(folder, options, workers=workers)
            print(f"two-stream loader, workers {workers}: {rate:6.0f} images/s   {rate / decoding:.2f} of decoding")
        print(f"({options.views} views for student and teacher of each image, decoded before)\n")
    print(
        "memory over an epoch, no workers: the process's own, and pages of mapped files, which the system can reclaim"
    )
    # A new process for each: memory is not returned, and would hide what the next one takes.
    context = multiprocessing.get_context("spawn")
    for count in options.images:
        with tempfile.TemporaryDirectory() as name, context.Pool(1) as pool:
            write_arrays(Path(name), count, options.size)
            own, mapped = pool.apply(measure_memory, (Path(name), options))
        print(f"{count:8d} images: own {own:6.0f} MiB, mapped files {mapped:6.0f} MiB")


if __name__ == "__main__":
    main()
