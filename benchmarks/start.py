"""How long commands take to start, and how fast a folder of images becomes predictions.csv.

    python benchmarks/start.py --images 300 --size 224

Everything happens in a temporary folder, with a network that has hardly been trained. Start-up is that of new processes;
prediction is timed within this one, next to reading and preparing alone and to the network alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from dcmt.cli import main as dcmt
from dcmt.onnx.reader import Chunk
from dcmt.trained.loaded import load_run
from dcmt.trained.prediction import ImageReader, grade_images
from knee.images.read import read_image, write_png
from knee.phantom import write_phantom

ROOT = Path(__file__).parent.parent
GOAL = 0.9


def write_dicom(path: Path, values: NDArray[np.uint8]) -> None:
    """A radiograph without compression."""
    found = FileDataset(path, {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    found.Modality, found.PhotometricInterpretation = "DX", "MONOCHROME2"
    found.SamplesPerPixel, found.PixelRepresentation = 1, 0
    found.Rows, found.Columns = values.shape
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    found.PixelData = values.tobytes()
    found.save_as(path, enforce_file_format=True)


def make(folder: Path, options: argparse.Namespace) -> Path:
    """A run of two steps, and two folders of images of the phantom: png and dicom; returns the run's folder."""
    manifest = write_phantom(folder / "data", kind="xray", patients=24, size=96, seed=0)
    split = folder / "split.csv"
    config = {
        "runs": str(folder / "runs"), "name": "run",
        "data": {"manifest": str(manifest), "split": str(split), "grade_set": "kl", "image_size": options.size,
                 "labeled_fraction": 1.0, "labeled_per_batch": 4, "unlabeled_per_batch": 0, "allow_missing_grades": True},
        "model": {"backbone": options.backbone, "stage": options.stage, "stride": options.stride},
        "fit": {"steps": 2, "precision": "fp32", "device": options.device, "threads": 1},
        "report": {"tensorboard": False},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    if dcmt(["split", str(manifest), "--out", str(split)]) or dcmt(["train", "--config", str(path)]):
        raise SystemExit("the run could not be made; its message is above")
    images = sorted((folder / "data").rglob("*.png"))
    for kind in ("png", "dicom"):
        (folder / kind).mkdir()
    for number in range(options.images):
        values = np.roll(read_image(images[number % len(images)]).values.astype(np.uint8), number, axis=0)
        write_png(folder / "png" / f"{number:05d}_L.png", values)
        write_dicom(folder / "dicom" / f"{number:05d}_L.dcm", values)
    return folder / "runs" / "run"


def seconds(work: Callable[[], object]) -> float:
    """By the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_up(arguments: list[str], times: int) -> float:
    """Seconds that a command takes in a process of its own: the fastest of some."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)  # noqa: E731
    return min(seconds(run) for _ in range(times))


def compare(run: Path, images: Path, *, device: str) -> None:
    """Print the rates of reading, of the network and of the whole command, for a folder of images."""
    loaded = load_run(run, checkpoint="best", device=device)
    reader, paths = ImageReader(loaded, grade_anyway=True), sorted(images.iterdir())
    found: list[Chunk] = []
    read = seconds(lambda: found.append(reader.read(paths)))
    (chunk,) = found
    names = [file.path.name for file in chunk.files]
    if chunk.rejected:
        raise SystemExit(f"not read: {chunk.rejected[0]}")
    network = seconds(lambda: (grade_images(loaded, "teacher", chunk.images, names), reader.marks(chunk)))
    command = [
        "predict",
        str(run),
        str(images),
        "--format",
        "csv",
        "--grade-anyway",
        "--out",
        str(run.parent / f"of_{images.name}"),
    ]
    whole = seconds(lambda: dcmt(command))
    count, slower = len(names), max(read, network)
    print(
        f"{images.name}: reading and preparing {count / read:.0f} images/s, network {count / network:.0f}, the whole command "
        f"{count / whole:.0f}: {slower / whole:.2f} of the slower one (goal {GOAL})"
    )


def main() -> None:
    """Print start-up times and rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--times", type=int, default=3, help="starts of each command; the fastest counts")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"load before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make(folder, options)
        first = next((folder / "png").iterdir())
        one_image = [
            "-m",
            "dcmt",
            "predict",
            str(run),
            str(first),
            "--format",
            "csv",
            "--grade-anyway",
            "--force",
            "--out",
        ]
        starts = {
            "train.py --help": ["train.py", "--help"],
            "dcmt predict --help": ["-m", "dcmt", "predict", "--help"],
            "dcmt predict, one image": [*one_image, str(folder / "one")],
        }
        for what, arguments in starts.items() if options.times else ():
            print(f"{what:<26}{start_up(arguments, options.times):6.2f} s")
        for kind in ("png", "dicom"):
            compare(run, folder / kind, device=options.device)


if __name__ == "__main__":
    main()
