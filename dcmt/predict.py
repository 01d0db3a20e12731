"""``dcmt predict``: grade images that no manifest knows, one or a whole folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dcmt.apply import LoadedRun, load_run
from dcmt.pictures import case_pictures
from knee.datasets import EvalImages, eval_loader
from knee.errors import UserError
from knee.evaluate import predictions_table
from knee.folders import IMAGE_SUFFIXES, image_files
from knee.images import Pixels, looks_inverted, prepare, read_image, write_png
from knee.predictions import predict

Say = Callable[[str], None]
_BATCH = 32
_CHUNK = 256


def predict_command(options: argparse.Namespace, *, say: Say) -> int:
    """Grade with the teacher (or the student): ``predictions.csv``, overlays, and ``rejected.csv`` for what is unreadable."""
    loaded = load_run(options.run, checkpoint=options.checkpoint, device=options.device)
    name = "student" if options.student else "teacher"
    if name not in loaded.networks:
        raise UserError(f"{options.run} has no {name}; leave out --student")
    paths = find_images(options.images)
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names the folder for predictions.csv and overlays")
    if out.exists() and any(out.iterdir()) and not options.force:
        raise UserError(f"{out} holds something; choose another --out, or overwrite by --force")
    out.mkdir(parents=True, exist_ok=True)
    root = options.images if options.images.is_dir() else options.images.parent
    reader = ImageReader(loaded)
    tables = []
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
        for start in range(0, len(paths), _CHUNK):
            images, read = reader.read(paths[start : start + _CHUNK])
            bar.update(len(paths[start : start + _CHUNK]))
            if read:
                files = [path.relative_to(root).as_posix() for path in read]
                tables.append(_grade(loaded, name, images, files))
                if not options.no_overlays:
                    _write_overlays(loaded, name, images, files, out / "overlays")
    if reader.rejected:
        pd.DataFrame(reader.rejected, columns=["image", "reason"]).to_csv(out / "rejected.csv", index=False)
        say(f"{len(reader.rejected)} of {len(paths)} files could not be read: {out / 'rejected.csv'}")
    if not tables:
        raise UserError(f"no image in {options.images} could be read; the reasons are in {out / 'rejected.csv'}")
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(out / "predictions.csv", index=False)
    for row in table.head(10).to_dict("records"):
        probability = row[f"p_{row['predicted']}"]
        say(f"{row['image']}: {row['predicted']} {row['predicted_name']} (p {probability:.2f})")
    say(f"{len(table)} images graded by the {name}: {out / 'predictions.csv'}. Research use only.")
    return 0


class ImageReader:
    """Prepares images as the run's training data were; keeps a list of what could not be read."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._data = loaded.config.data
        self._template = loaded.run.template()
        self.rejected: list[tuple[str, str]] = []

    def read(self, paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[Path]]:
        """Prepared images (n, S, S) of the readable ones among ``paths``, and their paths."""
        images, read = [], []
        for path in paths:
            try:
                pixels = read_image(path)
            except UserError as error:
                self.rejected.append((str(path), str(error).removeprefix(f"{path}: ")))
                continue
            image = self._prepare(pixels)
            images.append(image)
            read.append(path)
        size = self._data.image_size
        return np.stack(images) if images else np.zeros((0, size, size), np.uint8), read

    def _prepare(self, pixels: Pixels) -> NDArray[np.uint8]:
        mirror = self._data.mirror_side != "none" and pixels.laterality == self._data.mirror_side
        size, percentiles = self._data.image_size, self._data.percentiles
        image, geometry = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror)
        if self._template is not None and looks_inverted(geometry.content(image), self._template):
            image, _ = prepare(pixels.values, size, percentiles=percentiles, mirror=mirror, invert=True)
        return image


def _loader(images: NDArray[np.uint8]) -> DataLoader[tuple[Tensor, Tensor]]:
    return eval_loader(EvalImages(images, np.arange(len(images))), batch_size=_BATCH)


def _grade(loaded: LoadedRun, name: str, images: NDArray[np.uint8], files: list[str]) -> pd.DataFrame:
    found = predict(
        loaded.networks[name],
        _loader(images),
        device=loaded.device,
        precision=loaded.precision,
        sharpness=loaded.config.attention.sharpness,
        threshold=loaded.config.attention.threshold,
        flip=True,
    )
    table = predictions_table(found, cases=files).rename(columns={"case": "image"}).drop(columns="iou")
    table.insert(2, "predicted_name", [loaded.grade_set.names[grade] for grade in found.predicted])
    return table


def _write_overlays(loaded: LoadedRun, name: str, images: NDArray[np.uint8], files: list[str], folder: Path) -> None:
    for shown in case_pictures(
        {name: loaded.networks[name]},
        _loader(images),
        names=loaded.grade_set.names,
        captions=dict(enumerate(files)),
        device=loaded.device,
        precision=loaded.precision,
        attention=loaded.config.attention,
    ):
        # The whole name is kept: knee.png and knee.dcm in one folder are two cases.
        write_png(folder / f"{files[shown.row]}.png", shown.picture, force=True)


def find_images(path: Path) -> list[Path]:
    """The image itself, or all images of a folder. Raises UserError where there is none, or links lead out of the folder."""
    if path.is_dir():
        found = [path / name for name in image_files(path)]
        if not found:
            raise UserError(f"{path} holds no image; known are {', '.join(IMAGE_SUFFIXES)}")
        return found
    if not path.is_file():
        raise UserError(f"{path} is neither an image nor a folder")
    return [path]
