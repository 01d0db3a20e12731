"""Write the phantom to disk as a data set: images, masks and manifest, and separately the true parameters."""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from tqdm import tqdm

from knee.errors import Faults, UserError
from knee.phantom.fields import Image
from knee.phantom.mr import EXTENT_MM, draw_mr_slice
from knee.phantom.radiograph import FILM_MM, draw_radiograph
from knee.phantom.reports import TABLE_COLUMNS, draw_patient, report_of

Kind = Literal["mr", "xray"]
KINDS = ("mr", "xray")
MANIFEST_COLUMNS = ("image", "patient", "side", "grade", "mask", "split", "spacing_mm")
SPLIT_SHARES = (20 / 29, 3 / 29)  # train, val; the rest is test: 200, 30 and 60 of 290 patients


@dataclass(frozen=True)
class Drawn:
    """One image ready to be written, and its row in both tables."""

    name: str
    image: Image
    mask: Image
    row: dict[str, Any]
    truth: dict[str, Any]


def split_of(patient: int, patients: int) -> str:
    """The split by patient number: patients are independent, so the first are for training, the last for testing."""
    val = max(1, round(SPLIT_SHARES[1] * patients))
    train = max(1, min(round(SPLIT_SHARES[0] * patients), patients - val - 1))
    return "train" if patient < train else "val" if patient < train + val else "test"


def masked_slices(train_patients: int, slices: int, drawn_masks: int) -> set[tuple[int, int]]:
    """The training slices that get a drawn mask: from as many patients as possible, in alternating slices.

    >>> sorted(masked_slices(2, 4, 3))
    [(0, 0), (0, 1), (1, 2)]
    """
    drawn_masks = min(drawn_masks, train_patients * slices)
    chosen: set[tuple[int, int]] = set()
    for number in range(drawn_masks):
        patient = number * train_patients // drawn_masks
        index = number % slices
        while (patient, index) in chosen:
            index = (index + 1) % slices
        chosen.add((patient, index))
    return chosen


@dataclass(frozen=True)
class Plan:
    """What to draw. Each patient depends only on this, not on the order or the number of processes."""

    kind: Kind
    patients: int
    slices: int
    size: int
    seed: int
    reports: bool = False

    @property
    def per_patient(self) -> int:
        """Images of one patient."""
        return self.slices if self.kind == "mr" else 2

    def draw(self, patient: int) -> list[Drawn]:
        """All images of one patient, in order."""
        return self._slices(patient) if self.kind == "mr" else self._films(patient)

    def _slices(self, patient: int) -> list[Drawn]:
        sides = np.random.default_rng(np.random.SeedSequence([self.seed, 3])).integers(0, 2, self.patients)
        drawn = []
        for index in range(self.slices):
            picture = draw_mr_slice(seed=self.seed, patient=patient, index=index, slices=self.slices, size=self.size)
            row = {"patient": f"P{patient:04d}", "side": "LR"[sides[patient]], "grade": picture.truth.grade}
            row |= {"split": split_of(patient, self.patients), "spacing_mm": round(EXTENT_MM / self.size, 4)}
            name = f"P{patient:04d}_{index:02d}.png"
            drawn.append(Drawn(name, picture.image, picture.mask, row, asdict(picture.truth)))
        return drawn

    def _films(self, patient: int) -> list[Drawn]:
        """Both knees; one film in a hundred is a negative."""
        sides: tuple[Literal["L"], Literal["R"]] = ("L", "R")
        drawn = []
        for side in sides:
            film = draw_radiograph(seed=self.seed, patient=patient, side=side, size=self.size, negatives=0.01)
            row = {"patient": f"P{patient:04d}", "side": side, "grade": film.truth.grade}
            row |= {"split": split_of(patient, self.patients), "spacing_mm": round(FILM_MM / self.size, 4)}
            if self.reports:
                row["report"] = report_of(self.seed, patient, side, film.truth)
            drawn.append(Drawn(f"P{patient:04d}{side}.png", film.image, film.mask, row, asdict(film.truth)))
        if self.reports:
            grades = [int(picture.row["grade"]) for picture in drawn]
            for picture, cells in zip(drawn, draw_patient(self.seed, patient, grades), strict=True):
                picture.row.update(cells)
        return drawn

    def draw_all(self, processes: int) -> Iterator[Drawn]:
        """All images of all patients, in order."""
        if processes <= 1:
            for patient in range(self.patients):
                yield from self.draw(patient)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for drawn in pool.map(self.draw, range(self.patients), chunksize=4):
                yield from drawn


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that is not empty, unless ``force``."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the name of a new folder")
    if folder.exists() and not force and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give the name of a new folder, or --force to overwrite its files")


def check_numbers(kind: str, patients: int, slices: int, size: int, seed: int, drawn_masks: int) -> None:
    """Refuse sizes that leave a split empty or an image without a visible joint, and seeds below 0; all errors at once."""
    faults = []
    if kind not in KINDS:
        faults.append(f"kind is {kind!r}; write {' or '.join(KINDS)}")
    if patients < 3:
        faults.append(f"patients is {patients}; at least 3 are needed, one each for training, validation and test")
    if slices < 1:
        faults.append(f"slices is {slices}; give at least 1")
    if not 32 <= size <= 1024:
        faults.append(f"size is {size} pixels; give 32 to 1024")
    if seed < 0:
        faults.append(f"seed is {seed}; give a whole number from 0")
    if drawn_masks < 0:
        faults.append(f"drawn_masks is {drawn_masks}; give 0 or more")
    if faults:
        raise Faults(faults, summary="this phantom cannot be drawn:")


def write_image(path: Path, image: Image) -> None:
    """Write a PNG. Raises UserError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 4]):
        raise UserError(f"{path} could not be written; is the disk full, or the folder read-only?")


def write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file with these columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_phantom(
    folder: str | Path,
    *,
    kind: Kind = "mr",
    patients: int = 290,
    slices: int = 8,
    size: int = 96,
    seed: int = 0,
    drawn_masks: int = 40,
    reports: bool = False,
    processes: int = 1,
    force: bool = False,
) -> Path:
    """Draw a data set into `folder` and return the path of its manifest.

    `kind` is "mr" (`slices` sagittal slices per patient, cartilage grades 0–2) or "xray" (two knees per patient, KL
    0–4; `slices` is ignored). `manifest.csv` lists `images/` and `masks/`, split by patient, with masks for `drawn_masks`
    training images and for all of validation and test. `truth.csv` contains the true parameters of every image and
    `truth/` every mask: for experiments, not for training. With `reports` (xray) the manifest has a report, age, sex, BMI and
    pain for each film (`knee.phantom.reports`). More `processes` draw the same images faster; a script that
    uses them needs the usual `if __name__ == "__main__"`. UserError if the folder is not empty and `force` is not set, or
    if a number is out of range.
    """
    folder = Path(folder)
    check_numbers(kind, patients, slices, size, seed, drawn_masks)
    check_folder(folder, force=force)
    if reports and kind != "xray":
        raise UserError(f"a phantom of kind {kind} has no reports; use --kind xray")
    plan = Plan(kind, patients, slices, size, seed, reports)
    train = sum(split_of(patient, patients) == "train" for patient in range(patients))
    masked = masked_slices(train, plan.per_patient, drawn_masks)
    rows, truths = [], []
    total = patients * plan.per_patient
    progress = tqdm(plan.draw_all(processes), total=total, desc="phantom", unit="image", disable=None)
    for number, picture in enumerate(progress):
        has_mask = picture.row["split"] != "train" or divmod(number, plan.per_patient) in masked
        write_image(folder / "images" / picture.name, picture.image)
        write_image(folder / "truth" / picture.name, picture.mask * 255)
        if has_mask:
            write_image(folder / "masks" / picture.name, picture.mask * 255)
        image = f"images/{picture.name}"
        rows.append({**picture.row, "image": image, "mask": f"masks/{picture.name}" if has_mask else ""})
        truths.append({"image": image, **picture.truth})
    write_table(folder / "truth.csv", list(truths[0]), truths)
    columns = (*MANIFEST_COLUMNS, *((*TABLE_COLUMNS, "report") if reports else ()))
    write_table(folder / "manifest.csv", columns, rows)
    return folder / "manifest.csv"
