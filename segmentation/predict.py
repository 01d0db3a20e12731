"""Predict masks with a trained segmenter, each with a confidence, and write them in the original image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from knee.data.manifest import Manifest
from knee.errors import UserError
from knee.images.geometry import Geometry
from knee.images.masks import dilate
from knee.images.read import write_png
from knee.io.files import relative_name
from knee.nn.processes import is_first, merged
from segmentation.unet import Segmenter


class Segmented(NamedTuple):
    """Masks of a batch."""

    rows: NDArray[np.int64]
    """(B,) row numbers."""
    masks: NDArray[np.uint8]
    """(B, S, S) in {0, 1}: probability above one half."""
    probabilities: NDArray[np.float32]
    """(B, S, S) in [0, 1]."""
    confidence: NDArray[np.float64]
    """(B,) in [0, 1]: the mean probability within the mask; 0 if it is empty."""


@torch.no_grad()
def segment_rows(
    network: Segmenter,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    progress: bool = False,
    total: int | None = None,
) -> Iterator[Segmented]:
    """Segment batches (images uint8 (B, 1, S, S), row numbers (B,)) lazily; the network is in eval mode meanwhile."""
    training = network.training
    network.eval()
    try:
        with tqdm(desc="segment", total=total, unit="image", disable=None if progress and is_first() else True) as bar:
            for images, rows in loader:
                logits = network(images.to(device).float() / 255)
                probabilities = logits.float().sigmoid().cpu().numpy()
                masks = (probabilities > 0.5).astype(np.uint8)
                inside = masks.sum((1, 2))
                confidence = (probabilities * masks).sum((1, 2)) / np.maximum(inside, 1)
                bar.update(len(images))
                yield Segmented(rows.numpy(), masks, probabilities, confidence.astype(np.float64))
    finally:
        network.train(training)


def write_masks(
    found: Iterable[Segmented],
    manifest: Manifest,
    geometry: Callable[[int], Geometry],
    *,
    folder: Path,
    relative_to: Path,
    dilation: float = 0.0,
    force: bool = False,
) -> pd.DataFrame:
    """Write a PNG for every mask, in the original image size, and return the manifest's table with the masks' paths.

    Rows that had a mask keep it. Added columns: ``mask_source`` (drawn, segmenter or empty) and ``mask_confidence``; a mask
    from an earlier segmenter keeps both. Paths of images and masks are relative to the folder ``relative_to``. Written
    masks are dilated by ``dilation``, in pixels at 256; leave it 0 if the training dilates masks. Overwriting a mask needs
    ``force``; the manifest's images and drawn masks are never overwritten. Each of several processes writes what it ``found``,
    and all return the whole table.
    """
    table = manifest.table.drop(columns="line", errors="ignore").copy()
    has_mask = table["mask"].ne("").to_numpy()
    table["image"] = [manifest.named_in(relative_to, name) for name in table["image"]]
    masks = [manifest.named_in(relative_to, name) for name in table["mask"]]
    source = np.where(has_mask, np.where(manifest.by_segmenter, "segmenter", "drawn"), "").astype(object)
    confidence = np.full(len(table), "", dtype=object)
    if "mask_confidence" in table:
        confidence = np.where(source == "segmenter", table["mask_confidence"].to_numpy(object), "")
    paths = [folder / name for name in mask_names(manifest.table["image"])]
    kept = _kept_files(manifest)

    def write(batch: Segmented) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        for row, probabilities in zip(batch.rows, batch.probabilities, strict=True):
            mask = (geometry(int(row)).restore(probabilities) > 0.5).astype(np.uint8)
            if dilation:
                mask = dilate(mask, dilation)
            if paths[row].resolve() in kept:
                raise UserError(
                    f"{paths[row]} is an image or a drawn mask of {manifest.path}, which is not overwritten, even with "
                    "--force; give another folder by --out"
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_png(paths[row], mask * np.uint8(255), force=force)
        return batch.rows, batch.confidence

    for rows, confidences in merged(map(write, found)):
        for row, sure in zip(rows, confidences, strict=True):
            masks[row] = relative_name(paths[row].resolve(), relative_to.resolve())
            source[row], confidence[row] = "segmenter", f"{sure:.4f}"
    table["mask"], table["mask_source"], table["mask_confidence"] = masks, source, confidence
    return table


def _kept_files(manifest: Manifest) -> set[Path]:
    """The files of the manifest's images, and of its masks that a person drew."""
    rows = range(len(manifest.table))
    paths = [manifest.image_path(row) for row in rows]
    paths += [path for row in rows if not manifest.by_segmenter[row] and (path := manifest.mask_path(row))]
    return {path.resolve() for path in paths}


def mask_names(images: Iterable[str]) -> list[str]:
    """A unique file name for the mask of every image; none is a hidden file.

    >>> mask_names(["a/1.png", "a/1.dcm", "2.nii#7", "../3"])
    ['a_1_0.png', 'a_1_1.png', '2.nii_7.png', '3.png']
    """
    stems = []
    for image in images:
        path, mark, number = str(image).partition("#")  # a slice of a volume keeps its number
        stem = path + mark + number if mark else str(Path(path).with_suffix(""))
        parts = [part for part in stem.replace("#", "_").split("/") if part not in ("", ".", "..")]
        stems.append("_".join(parts).lstrip("."))
    often = Counter(stems)
    taken = {stem for stem, times in often.items() if times == 1}
    names = []
    for row, stem in enumerate(stems):
        name = stem
        while often[stem] > 1 and (name == stem or name in taken):
            name = f"{name}_{row}"
        taken.add(name)
        names.append(f"{name}.png")
    return names
