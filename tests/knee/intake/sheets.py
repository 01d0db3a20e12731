"""Spreadsheets of grades, and what their manifests hold, for the tests of sheets."""

import numpy as np
import openpyxl
import pandas as pd
import pytest

from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.intake.folders import manifest_from_folder
from knee.intake.sheet import read_sheet

KL = load_grade_set("kl")


RNG = np.random.default_rng(0)


def touch(folder, *names):
    for name in names:
        write_png(folder / "images" / name, RNG.integers(0, 256, (8, 8), np.uint8))


def csv_sheet(folder, *lines):
    path = folder / "grades.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def excel_sheet(folder, *rows, more=None):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    for name, others in (more or {}).items():
        page = book.create_sheet(name)
        for row in others:
            page.append(list(row))
    book.save(folder / "grades.xlsx")
    return folder / "grades.xlsx"


def joined(folder, path, *, pattern=None, **options):
    """The manifest's table of the folder's images with the sheet at ``path``."""
    return manifest_from_folder(folder / "images", pattern=pattern, sheet=read_sheet(path, KL, **options))


def grades(folder, path, **options):
    """Grade by image, None where ungraded."""
    table = joined(folder, path, **options)
    return dict(zip(table["image"], numbers(table["grade"]), strict=True))


def numbers(column):
    return [None if pd.isna(grade) else int(grade) for grade in column]


def refusal(folder, path, **options):
    with pytest.raises(UserError) as caught:
        joined(folder, path, **options)
    return str(caught.value)


def facts(sheet):
    """Row, image, patient, side and grade of each entry."""
    return [entry[:5] for entry in sheet.entries]


KNEES = ("9001_L.png", "9001_R.png", "9002_L.png", "9002_R.png")


ONE, TWO = "M\u00fcller", "Mu\u0308ller"


"""One name as most programs store it, and as macOS does."""
