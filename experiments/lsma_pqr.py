"""A manifest of LSMA-PQR: lumbar MR images with radiologists' notes and Pfirrmann grades (doi:10.17632/p3r4xd2488, CC BY 4.0).

    python -m experiments.lsma_pqr FOLDER --out data/lumbar.csv
    dcmt split data/lumbar.csv --grade-set data/pfirrmann.yaml --out data_splits/lumbar.csv
    dcmt train --config configs/lumbarclip.yaml --data.grade_set data/pfirrmann.yaml --data.manifest data/lumbar.csv …

FOLDER is what the archive holds: images_png/ with axial_T2_0042_D4.png (patient, disc) and sag_T2_0042_S8.png, the grades of
each patient's discs D3, D4, D5 (1 to 5), their heights, and one note for each patient. The names of files and columns are
those of the published description, which spells some in two ways; both are read. The archive itself was not at hand.

An axial image has the grade of its disc, as 0 to 4, and the patient's note; a sagittal one shows several discs, so it has the
note alone. Disc heights determine the grade, so they are refused as inputs. Masks have several classes and are not used.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from knee.data.manifest import write_manifest
from knee.errors import Faults, UserError, counted
from knee.grades import GradeSet, grade_set_yaml
from knee.io.files import refuse_existing, relative_name, write_text
from knee.io.tables import csv_rows, shortened

DISCS = ("D3", "D4", "D5")
FILES = {
    "grades": ("PfirrmannGrades.csv", "PfirrmannGrade.csv"),
    "heights": ("IVDHeights.csv",),
    "notes": ("RadiologicalNotes.csv", "structured_notes.csv"),
}
COLUMNS = {
    "grades": DISCS,
    "heights": tuple(f"{disc}_Ht" for disc in DISCS),
    "notes": ("ClinicalNotes",),
}
_NAME = re.compile(r"(?:(axial|sag)_)?(T[12])_([0-9]{4})_(D[345]|S[0-9]+) ?\.png", re.IGNORECASE)
_PATIENT = ("patientid", "patient_id", "patient id")
_HEADER = ("image", "patient", "side", "grade", "mask", "report", "sequence", "level", "disc_height_mm")
PFIRRMANN = GradeSet(
    name="pfirrmann",
    title="Disc degeneration on MR after Pfirrmann et al. (Spine 2001;26:1873-1878), grades I to V as 0 to 4",
    names=("I", "II", "III", "IV", "V"),
    descriptions=(
        "Homogeneous bright disc of normal height.",
        "Inhomogeneous bright disc, with or without horizontal bands; normal height.",
        "Inhomogeneous gray disc, nucleus and annulus not clearly distinct; height normal or slightly reduced.",
        "Inhomogeneous dark disc, nucleus and annulus not distinct; height normal or moderately reduced.",
        "Collapsed black disc space.",
    ),
    best_metric="kappa",
    disease_from=2,
)
Values = dict[str, dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the manifest, and its grade set next to it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.lsma_pqr", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="with images_png/ and the three tables")
    parser.add_argument("--out", type=Path, required=True, help="the manifest, data/NAME.csv")
    parser.add_argument("--view", choices=("axial", "sag"), default="axial")
    parser.add_argument("--sequence", choices=("T1", "T2"), help="only this one (default: both)")
    options = parser.parse_args(arguments)
    try:
        grades = options.out.parent / "pfirrmann.yaml"
        for path in (options.out, grades):
            refuse_existing(path, force=False)
        rows = rows_of(options.folder, options.out.parent, view=options.view, sequence=options.sequence)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(options.out, pd.DataFrame(rows, columns=list(_HEADER)))
        write_text(grades, grade_set_yaml(PFIRRMANN))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    graded, noted = (sum(bool(row[place]) for row in rows) for place in (3, 5))
    print(f"{len(rows)} images of {len({row[1] for row in rows})} patients, {graded} with a grade and {noted} with a note: "
          f"{options.out}; grade set: {grades}")  # fmt: skip
    return 0


def rows_of(folder: Path, out: Path, *, view: str, sequence: str | None) -> list[tuple[str, ...]]:
    """The manifest's rows for a manifest in ``out``. Raises UserError, or Faults that name every file or row."""
    tables = {kind: read_table(folder, kind) for kind in FILES}
    images = folder / "images_png"
    if not images.is_dir():
        raise UserError(f"{folder}: has no folder images_png; give the folder that the archive was unpacked to")
    rows, odd = [], []
    base = out.resolve()
    for path in sorted(images.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            odd.append(f"{path.name}: is not named like axial_T2_0042_D4.png or sag_T2_0042_S8.png")
            continue
        _, kind, patient, place = match.groups()
        place = place.upper()
        if (place in DISCS) != (view == "axial") or (sequence and kind.upper() != sequence):
            continue
        rows.append(_row(relative_name(path.resolve(), base), patient, kind.upper(), place, tables))
    if odd:
        raise Faults(shortened(odd), summary=f"{images}: {counted(len(odd), 'file')} of another layout:")
    if not rows:
        raise UserError(f"{images}: has no image of view {view}{f' and sequence {sequence}' if sequence else ''}")
    return rows


def _row(image: str, patient: str, sequence: str, place: str, tables: Mapping[str, Values]) -> tuple[str, ...]:
    found = {kind: values.get(patient, {}) for kind, values in tables.items()}
    grade = found["grades"].get(place, "")
    report = found["notes"].get("ClinicalNotes", "")
    height = found["heights"].get(f"{place}_Ht", "")
    return image, patient, "", str(int(grade) - 1) if grade else "", "", report, sequence, place, height


def read_table(folder: Path, kind: str) -> Values:
    """The cells of one of the tables by patient and column. Raises UserError, or Faults that name every row."""
    path = next((folder / name for name in FILES[kind] if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has no table {' or '.join(FILES[kind])}; give the folder of the unpacked archive")
    columns = COLUMNS[kind]
    rows = csv_rows(path, ("PatientID", *columns))
    header = [title.removeprefix("\ufeff") for title in next(rows)[1]]
    patient = next((place for place, title in enumerate(header) if title.casefold() in _PATIENT), None)
    lacking = [column for column in columns if column not in header] + (["PatientID"] if patient is None else [])
    if patient is None or lacking:
        raise UserError(
            f"{path}: has no column {' or '.join(lacking)}; there are {', '.join(header)}. This is not the published layout: "
            "join the table by dcmt manifest --grades instead"
        )
    found: Values = {}
    faults: list[str] = []
    for line, fields in rows:
        cells = dict(zip(header, fields, strict=False))
        number = fields[patient] if patient < len(fields) else ""
        bad = [cells.get(column, "") for column in columns if not _fits(kind, cells.get(column, ""))]
        if not re.fullmatch(r"[0-9]{1,4}", number) or len(fields) != len(header):
            faults.append(f"line {line}: patient '{number}', {len(fields)} of {len(header)} cells")
        elif f"{int(number):04}" in found:
            faults.append(f"line {line}: patient {number} is there twice")
        elif bad:
            faults.append(
                f"line {line}: '{bad[0]}' is not a {'grade from 1 to 5' if kind == 'grades' else 'height in mm'}"
            )
        else:
            found[f"{int(number):04}"] = {column: cells[column] for column in columns}
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'row')} that cannot be read:")
    return found


def _fits(kind: str, cell: str) -> bool:
    patterns = {"grades": r"[1-5]?", "heights": r"([0-9]+(\.[0-9]*)?)?"}
    return kind not in patterns or re.fullmatch(patterns[kind], cell) is not None


if __name__ == "__main__":
    sys.exit(main())
