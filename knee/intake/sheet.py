"""Grades that are kept in a spreadsheet: its columns and fields, read as people write them.

A grade given to the wrong knee is worse than none: what a sheet leaves open is refused with the option that decides it.
``knee.intake.sheet_join`` gives the grades to the images.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from knee.errors import Faults, UserError, counted, quoted
from knee.grades import GradeSet
from knee.intake.patients import SIDES
from knee.io.names import composed
from knee.io.tables import read_sheet_rows, shortened

ROLES = ("image", "patient", "side", "grade", "grade_L", "grade_R")
"""What a column may be; the last two are for sheets with a row a patient."""

_NAMES = {
    "image": {"image", "imagefile", "imagename", "imageid", "imagepath", "img", "file", "filename", "filepath", "path"},
    "patient": {
        "patient",
        "patientid",
        "patientno",
        "subject",
        "subjectid",
        "srcsubjectid",
        "participant",
        "participantid",
    },
    "side": {"side", "laterality", "knee", "kneeside"},
}
_GRADE = {"grade", "label"}
_KL_GRADE = {"kl", "klg", "klgrade", "kellgrenlawrence", "kellgrenlawrencegrade", "xrkl"}
_LOOSE = {"id", "case", "caseid"}
"""Names of a patient's column where no column names images; beside one, they may number the rows."""
_OF_VISIT = re.compile("v[0-9]{2}xrkl")
_SIDE_VALUE = re.compile(r"(?:[0-9]\s*[:=]\s*)?(l|left|r|right)", re.IGNORECASE)
_NO_GRADE = re.compile(r"(?:\.[a-z]?(?:\s*:.*)?|[-–—]|na|n/a|nan|missing)?", re.IGNORECASE)
_GRADE_PREFIX = re.compile(r"^(?:kl|klg|grade|kl[- ]grade|k[-/&]l)(?:-|[: ]*)(?=[0-9])", re.IGNORECASE)
_MOST_TITLES = 20
_MOST_VALUES = 5


class Entry(NamedTuple):
    """What a row says of one knee, or of one image."""

    row: int
    """As the spreadsheet program numbers it (in CSV, the line)."""
    image: str
    patient: str
    side: str
    grade: int | None


@dataclass(frozen=True)
class Sheet:
    """A spreadsheet of grades that was read and found sound."""

    path: Path
    columns: dict[str, str]
    """Which column (by its header) is what."""
    entries: tuple[Entry, ...]
    one_knee: bool = False
    """Whether it was said that no column is the side: a patient's grade is of the knee that is shown."""

    @property
    def names_images(self) -> bool:
        """Whether rows are of images; otherwise of patients, or of their knees."""
        return "image" in self.columns

    @property
    def has_sides(self) -> bool:
        """Whether rows tell the two knees of a patient apart."""
        return "side" in self.columns or "grade" not in self.columns


def read_sheet(
    path: str | Path,
    grade_set: GradeSet,
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    sides: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
    only: Mapping[str, str] | None = None,
) -> Sheet:
    """Read grades from a CSV, Excel or OpenDocument file.

    The header is the first row with two filled fields. Columns are known by their usual names, in any case: image or file;
    patient or ID; side; grade or KL; or, with a row a patient, KL_left and KL_right.

    Args:
        name: which sheet of the file (default: the only one).
        columns: header by role (``ROLES``), before what the names tell; '' for none. Names with KL count in the grade set
            ``kl`` alone.
        sides: 'L' or 'R' by what the sheet writes instead of left and right.
        missing: what the sheet writes for 'not graded', beside '.', '-', 'NA' and nothing.
        only: take the rows that have these values, by header.

    Raises:
        UserError: unreadable, or a column cannot be told; Faults: all fields that are no grade or no side.
    """
    path = Path(path)
    table = read_sheet_rows(path, name)
    header = next((fields for _, fields in table if sum(map(bool, fields)) > 1), [])
    if not header:
        raise UserError(f"{path}: has no row of two columns; its header should name them, such as patient, side, grade")
    rows = table[[fields for _, fields in table].index(header) + 1 :]
    if not rows:
        raise UserError(f"{path}: has a header and no rows")
    roles = _roles(path, header, columns or {}, kl=grade_set.name == "kl")
    _refuse_ragged(path, header, rows)
    for column, value in (only or {}).items():
        place = _place(path, header, column)
        values = quoted(list(dict.fromkeys(_field(fields, place) for _, fields in rows))[:_MOST_VALUES])
        rows = [(number, fields) for number, fields in rows if _field(fields, place) == value]
        if not rows:
            raise UserError(f"{path}: no row has '{value}' in the column '{column}', but {values}; see --only")
    faults: list[str] = []
    reader = _Reader(roles, grade_set, dict(sides or {}), {value.casefold() for value in missing})
    entries: list[Entry] = []
    for number, fields in rows:
        try:
            entries += reader.entries(number, fields)
        except UserError as error:
            faults.append(f"{path.name} row {number}: {error}")
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'row')} cannot be used; mend them:")
    one_knee = (columns or {}).get("side") == ""
    return Sheet(path, {role: header[place] for role, place in roles.items()}, tuple(entries), one_knee)


class _Reader(NamedTuple):
    """How the fields of a row are read."""

    roles: dict[str, int]
    grade_set: GradeSet
    sides: dict[str, str]
    missing: set[str]

    def entries(self, number: int, fields: Sequence[str]) -> Iterator[Entry]:
        """What a row says; nothing where it names neither image nor patient, and has no grade."""
        image, patient = self._text("image", fields), composed(self._text("patient", fields))
        given = [role for role in ("grade", "grade_L", "grade_R") if role in self.roles]
        if not (image or patient):
            if not all(self._is_missing(self._text(role, fields)) for role in given):
                raise UserError(
                    "has a grade and names neither image nor patient; write whose it is (of merged cells only the first has "
                    "the text), or delete the row"
                )
            return
        for role in given:
            grade = self._grade(self._text(role, fields))
            side = role[-1] if role != "grade" else self._side(self._text("side", fields))
            if "side" in self.roles and not (side or image) and grade is not None:
                raise UserError("the side is empty; write which knee this is")
            yield Entry(number, image.replace("\\", "/").removeprefix("./"), patient, side, grade)

    def _text(self, role: str, fields: Sequence[str]) -> str:
        return _field(fields, self.roles[role]) if role in self.roles else ""

    def _is_missing(self, text: str) -> bool:
        return text.casefold() in self.missing or _NO_GRADE.fullmatch(text) is not None

    def _grade(self, text: str) -> int | None:
        if self._is_missing(text):
            return None
        try:
            return self.grade_set.parse(_GRADE_PREFIX.sub("", text, count=1))
        except UserError as error:
            raise UserError(f"{error}; --missing '{text}' takes it for not graded") from error

    def _side(self, text: str) -> str:
        if text in self.sides:
            return self.sides[text]
        match = _SIDE_VALUE.fullmatch(text)
        if not (match or not text):
            raise UserError(f"side '{text}' is not left or right; say what it means by --side '{text}=R' (or =L)")
        return SIDES[match[1].lower()] if match else ""


def _refuse_ragged(path: Path, header: list[str], rows: Sequence[tuple[int, list[str]]]) -> None:
    """Refuse rows of a CSV file that end before the last title, or go on behind the header."""
    least = max(place for place, title in enumerate(header, start=1) if title)
    faults = [
        f"{path.name} row {number}: {counted(len(fields), 'field')} where the header has {len(header)}; put quotation marks "
        "around a field that holds a separator, or delete the row"
        for number, fields in rows
        if len(fields) < least or any(fields[len(header) :])
    ]
    if faults:
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'row')} cannot be used; mend them:")


def _field(fields: Sequence[str], place: int) -> str:
    """A field; '' where the row ends before it."""
    return fields[place] if place < len(fields) else ""


def _roles(path: Path, header: list[str], given: Mapping[str, str], *, kl: bool) -> dict[str, int]:
    """The place of each role's column."""
    unknown = [role for role in given if role not in ROLES]
    if unknown:
        raise UserError(f"--column {unknown[0]}=…: a column is one of {', '.join(ROLES)}")
    roles = {role: _place(path, header, column) for role, column in given.items() if column}
    free = [place for place in range(len(header)) if place not in roles.values()]
    asked = set(ROLES) - given.keys()
    if "grade" in roles and {"grade_L", "grade_R"} & roles.keys():
        raise UserError(f"{path}: --column names a grade and one of a side; write 'grade', or 'grade_L' and 'grade_R'")
    if {"grade_L", "grade_R"} & roles.keys():
        asked -= {"grade", "side"}
    elif {"grade", "side"} & roles.keys():
        asked -= {"grade_L", "grade_R"}
    fitting: dict[str, list[int]] = defaultdict(list)
    for place in free:
        for role in asked & set(_roles_of(header[place], kl=kl)):
            fitting[role].append(place)
    if not fitting["patient"] and "patient" in asked and "image" not in roles and not fitting["image"]:
        fitting["patient"] = [place for place in free if _plain(header[place]) in _LOOSE]
    sided = [place for role in ("grade_L", "grade_R") for place in fitting[role]]
    if fitting["grade"] and sided:
        columns = quoted([header[place] for place in (*fitting["grade"], *sided)])
        raise UserError(
            f"{path}: the columns {columns} may all be grades; write --column 'grade={header[fitting['grade'][0]]}', or name "
            f"both sides: --column 'grade_L=…' --column 'grade_R=…'"
        )
    for role, places in fitting.items():
        if len(places) > 1:
            columns = quoted([header[place] for place in places])
            raise UserError(
                f"{path}: the columns {columns} may all be the {role}; write one: --column '{role}={header[places[0]]}'"
            )
        if places:
            roles[role] = places[0]
    got = ", ".join(title for title in header[:_MOST_TITLES] if title)
    if not {"grade", "grade_L", "grade_R"} & roles.keys():
        raise UserError(f"{path}: which column is the grade? Write --column 'grade=NAME'; there are {got}")
    if not {"image", "patient"} & roles.keys():
        raise UserError(
            f"{path}: which column names the image, or the patient? Write --column 'image=NAME' or --column 'patient=NAME'; "
            f"there are {got}"
        )
    if "grade" not in roles and "image" in roles:
        raise UserError(
            f"{path}: grades of two knees in a row, which names one image; write --column 'image=' to go by patient"
        )
    return {role: roles[role] for role in ROLES if role in roles}


def _roles_of(title: str, *, kl: bool = True) -> Iterator[str]:
    """What a column of this header may be; ``kl``: whether KL grades are asked for.

    >>> list(_roles_of("Kellgren-Lawrence grade")), list(_roles_of("KL_right")), list(_roles_of("Age"))
    (['grade'], ['grade_R'], [])
    """
    plain = _plain(title)
    grades = _GRADE | _KL_GRADE if kl else _GRADE
    if plain in grades or (kl and _OF_VISIT.fullmatch(plain)):
        yield "grade"
    for role, names in _NAMES.items():
        if plain in names:
            yield role
    words = re.findall("[a-z0-9]+", title.lower())
    sides = {SIDES[word] for word in words if word in SIDES}
    rest = "".join(word for word in words if word not in (*SIDES, "knee"))
    if len(sides) == 1 and rest in grades:
        yield f"grade_{sides.pop()}"


def _plain(title: str) -> str:
    return re.sub("[^a-z0-9]", "", title.lower())


def _place(path: Path, header: list[str], column: str) -> int:
    """Where the column of this header is; its case counts only where two differ in nothing else."""
    places = [place for place, title in enumerate(header) if title == column]
    places = places or [place for place, title in enumerate(header) if title.casefold() == column.casefold()]
    if len(places) != 1:
        fault = f"has {len(places)} columns '{column}', so rename one" if places else f"has no column '{column}'"
        raise UserError(f"{path}: {fault}; there are {', '.join(title for title in header[:_MOST_TITLES] if title)}")
    return places[0]
