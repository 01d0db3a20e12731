"""Parse the fields of a spreadsheet's row as people write them: grades, sides, patients, splits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from knee.errors import UserError, pasted
from knee.grades import GradeSet
from knee.intake.grade_folders import SPLIT_NAMES
from knee.intake.naming import SIDES, split_side
from knee.intake.visits import visit_as_written
from knee.io.excel import cell_name
from knee.io.names import composed

_SIDE_VALUE = re.compile(r"(?:[0-9]\s*[:=]\s*)?(l|left|r|right)", re.IGNORECASE)
_NO_GRADE = re.compile(r"(?:\.[a-z]?(?:\s*:.*)?|[-–—]|na|n/a|nan|missing)?", re.IGNORECASE)
_GRADE_PREFIX = re.compile(r"^(?:kl|klg|grade|kl[- ]grade|k[-/&]l)(?:-|[: ]*)(?=[0-9])", re.IGNORECASE)
_CODED = re.compile(r"([0-9]{1,3})\s*[:=]\s*(.*)")
"""A grade exported with its label: ``2: Minimal``."""
_ERROR = re.compile(r"#(?:N/A|[A-Z0-9_/]+[!?])")
_LONGEST = 40


class Entry(NamedTuple):
    """The data of one knee, or of one image, from a row."""

    row: int
    """The row number in the spreadsheet program (in CSV, the line)."""
    image: str
    patient: str
    side: str
    grade: int | None
    visit: str = ""
    split: str = ""
    priority: int = 0
    """If a knee has several graded rows, those with the lowest priority value are used."""
    texts: tuple[str, ...] = ()
    """The fields of the further columns that are wanted, in their order."""


class RowReader(NamedTuple):
    """Parses the fields of a row."""

    roles: Mapping[str, int]
    grade_set: GradeSet
    sides: Mapping[str, str]
    missing: set[str]
    visit: str
    """The visit of all rows if there is no visit column."""
    order: Mapping[int, Sequence[str]]
    """By column, the preferred values, best first."""
    texts: Sequence[int] = ()
    """Further columns that are wanted."""

    def entries(self, number: int, fields: Sequence[str]) -> Iterator[Entry]:
        """The entries of a row; none if it names neither image nor patient and has no grade."""
        self._refuse_errors(number, fields)
        image, (patient, own) = self._text("image", fields), split_side(composed(self._text("patient", fields)))
        given = [role for role in ("grade", "grade_L", "grade_R") if role in self.roles]
        if not (image or patient):
            if not all(self._is_missing(self._text(role, fields)) for role in given):
                raise UserError(
                    "has a grade but names neither image nor patient; write the image or the patient (of merged cells, only "
                    "the first contains the text), or delete the row"
                )
            return
        visit = visit_as_written(self._text("visit", fields) or self.visit)
        split = self._split(self._text("split", fields))
        priority = self._priority(fields)
        texts = tuple(fields[place] for place in self.texts)
        for role in given or ["grade"]:
            grade = self._grade(self._text(role, fields))
            side = role[-1] if role != "grade" else self._side(self._text("side", fields))
            if own and side not in ("", own):
                raise UserError(
                    f"patient '{patient}{own}' ends with side {own}, but the side is {side}; correct one, or write the "
                    "patient without a side"
                )
            side = side or own
            if "side" in self.roles and not (side or image) and grade is not None:
                raise UserError("the side is empty; write which knee this is")
            path = image.replace("\\", "/").removeprefix("./")
            yield Entry(number, path, patient, side, grade, visit, split, priority, texts)

    def _text(self, role: str, fields: Sequence[str]) -> str:
        return fields[self.roles[role]] if role in self.roles else ""

    def _refuse_errors(self, number: int, fields: Sequence[str]) -> None:
        """Refuse cells that contain an error, or a formula without a result."""
        for role, place in self.roles.items():
            text = fields[place]
            if role.startswith("grade") and text.casefold() in self.missing:
                continue
            cell = f"the {role} in cell {cell_name(number, place + 1)}" if text else ""
            if _ERROR.fullmatch(text):
                hint = f"; or treat it as not graded with --missing {pasted(text)}" if role.startswith("grade") else ""
                raise UserError(f"{cell} is the error {text}; fix the sheet{hint}")
            if text.startswith("="):
                raise UserError(
                    f"{cell} is a formula without a result ({text[:_LONGEST]}); open the file in a spreadsheet program and "
                    "save it again"
                )

    def _is_missing(self, text: str) -> bool:
        return text.casefold() in self.missing or _NO_GRADE.fullmatch(text) is not None

    def _grade(self, text: str) -> int | None:
        if self._is_missing(text):
            return None
        coded = _CODED.fullmatch(text)
        number, label = coded.groups() if coded else (_GRADE_PREFIX.sub("", text, count=1), "")
        names = self.grade_set.names
        try:
            grade = self.grade_set.parse(number)
            if (label.isdigit() and label != number) or (
                label.lower() in names and names.index(label.lower()) != grade
            ):
                raise UserError(f"grade '{text}' contains two grades; write one")
        except UserError as error:
            if len(text) > _LONGEST:
                raise UserError(f"grade '{text[:_LONGEST]}…' is not {self.grade_set.span} or empty") from error
            hint = f"; or treat it as not graded with --missing {pasted(text)}"
            raise UserError(f"{error}{hint}") from error
        return grade

    def _side(self, text: str) -> str:
        if text in self.sides:
            return self.sides[text]
        match = _SIDE_VALUE.fullmatch(text)
        if not (match or not text):
            raise UserError(
                f"side '{text}' is not left or right; give its meaning with --side {pasted(f'{text}=R')} (or =L)"
            )
        return SIDES[match[1].lower()] if match else ""

    def _split(self, text: str) -> str:
        split = SPLIT_NAMES.get(text.lower(), "")
        if text and not split:
            raise UserError(
                f"split '{text}' is not train, val or test; write one of these, or ignore the column with --column 'split='"
            )
        return split

    def _priority(self, fields: Sequence[str]) -> int:
        return sum(
            values.index(fields[place]) if fields[place] in values else len(values)
            for place, values in self.order.items()
        )
