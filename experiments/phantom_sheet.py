"""Contact sheets of the phantom, to compare with real images: `python -m experiments.phantom_sheet FOLDER`.

Writes three enlarged PNGs: slices of some patients, one patient per row, the last row again with the mask's outline; one slice
of many patients sorted by grade; radiographs, one Kellgren–Lawrence grade per row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from knee.phantom import draw_mr_slice, draw_radiograph
from knee.phantom.fields import Image


def enlarge(image: Image, times: int) -> Image:
    """The image `times` as wide and high, smoothly."""
    return np.asarray(cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def patients_sheet(seed: int, size: int, rows: int = 4) -> Image:
    """Eight slices of each patient; under them the same with the mask's outline."""
    lines = []
    for patient in range(rows):
        slices = [draw_mr_slice(seed=seed, patient=patient, index=index, size=size) for index in range(8)]
        lines.append(np.hstack([drawn.image for drawn in slices]))
        if patient == rows - 1:
            lines.append(np.hstack([outlined(drawn.image, drawn.mask) for drawn in slices]))
    return np.vstack(lines)


def outlined(image: Image, mask: Image) -> Image:
    """The image with the mask's border in white."""
    border = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
    return np.where(border > 0, np.uint8(255), image)


def grades_sheet(seed: int, size: int, columns: int = 8) -> Image:
    """One slice of each of many patients; grade 0 in the first row, 2 in the last."""
    rows: dict[int, list[Image]] = {0: [], 1: [], 2: []}
    patient = 0
    while min(len(row) for row in rows.values()) < columns:
        drawn = draw_mr_slice(seed=seed, patient=patient, index=4, size=size)
        rows[drawn.truth.grade].append(drawn.image)
        patient += 1
    return np.vstack([np.hstack(row[:columns]) for row in rows.values()])


def radiographs_sheet(seed: int, size: int, columns: int = 6) -> Image:
    """One Kellgren–Lawrence grade a row, right and left knees in turn."""
    rows: dict[int, list[Image]] = {grade: [] for grade in range(5)}
    patient = 0
    while min(len(row) for row in rows.values()) < columns:
        film = draw_radiograph(seed=seed, patient=patient, side="L" if patient % 2 else "R", size=size)
        rows[film.truth.grade].append(film.image)
        patient += 1
    return np.vstack([np.hstack(row[:columns]) for row in rows.values()])


def main() -> None:
    """Write the sheets into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    times = max(1, 288 // options.size)
    for name, sheet in {
        "mr_patients": enlarge(patients_sheet(options.seed, options.size), times),
        "mr_grades": enlarge(grades_sheet(options.seed, options.size), times),
        "radiographs": radiographs_sheet(options.seed, 224),
    }.items():
        cv2.imwrite(str(options.folder / f"{name}.png"), sheet)
        print(options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
