"""The role of each spreadsheet column: given by the user or inferred from its usual name. Ambiguity is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from knee.errors import UserError, pasted, quoted
from knee.intake.naming import SIDES
from knee.io.tables import some_titles

ROLES = ("image", "patient", "side", "visit", "split", "grade", "grade_L", "grade_R")
"""Roles that a column may have; the last two are for sheets with one row per patient."""
_BY_SIDE = {"grade_L", "grade_R"}
_NAMES = {
    "image": "image|imagefile|imagename|imageid|imagepath|img|file|filename|filepath|path",
    "patient": "patient|patientid|patientno|subject|subjectid|srcsubjectid|mostid|participant|participantid",
    "side": "side|laterality|knee|kneeside",
    "visit": "visit|visitid|visitcode|visitno|timepoint|studydate|examdate|visitdate|xraydate",
    "split": "split|subset|partition",
    "grade": "grade|label",
}
_KL = "|kl|klg|klgrade|kellgrenlawrence|kellgrenlawrencegrade|xrkl|v[0-9]{2}xrkl"
_LOOSE = ("id", "case", "caseid")
"""Names of a patient column in sheets without an image column; next to an image column, they may just number the rows."""
_READER = "readprj|reader|readerid|rater|raterid|readby"
_OF_VISIT = re.compile("v([0-9]{1,2})xrkl([lr]?)")
"""Of the OAI (V00XRKL), and of MOST, whose sheets have a row per patient (V0XRKLL and V0XRKLR)."""
_ANSWER = re.compile(
    r"grade|kellgren|jsn|joint.?space|osteophyt|pfirrmann|disc.?height|xr(kl|js|os|sc)|(?<![a-z])(kl|klg|oarsi)(?![a-z])",
    re.IGNORECASE,
)
"""Names of columns that hold a grade, or findings that determine it."""


def find_columns(
    path: Path, header: list[str], given: Mapping[str, str], *, kl: bool, ungraded: bool = False
) -> dict[str, int]:
    """The index of each role's column: as ``given``, else inferred from its name; '' in ``given`` means no column.

    Args:
        kl: whether the grades wanted are KL grades, so that column names with KL match.
        ungraded: whether the sheet may have no grade column, because other columns are wanted.

    Raises:
        UserError: no such column, none, or several; the message contains the option to give.
    """
    if unknown := [role for role in given if role not in ROLES]:
        raise UserError(f"--column {unknown[0]}=…: a column is one of {', '.join(ROLES)}")
    roles = {role: place_of(path, header, column) for role, column in given.items() if column}
    if "grade" in roles and roles.keys() & _BY_SIDE:
        raise UserError(
            f"{path}: --column gives both 'grade' and a grade of one side; "
            "write either 'grade', or 'grade_L' and 'grade_R'"
        )
    asked = set(ROLES) - given.keys()
    if roles.keys() & _BY_SIDE:
        asked -= {"grade", "side"}
    elif roles.keys() & {"grade", "side"}:
        asked -= _BY_SIDE
    free = [(place, title) for place, title in enumerate(header) if place not in roles.values()]
    fitting: dict[str, list[int]] = {role: [] for role in ROLES}
    for place, title in free:
        if (role := _role_of(title, kl=kl)) in asked:
            fitting[role].append(place)
    if "patient" in asked and not (fitting["patient"] or fitting["image"] or "image" in roles):
        fitting["patient"] = [place for place, title in free if _plain(title) in _LOOSE]
    if fitting["grade"] and (sided := [*fitting["grade_L"], *fitting["grade_R"]]):
        columns, place = quoted([header[place] for place in (*fitting["grade"], *sided)]), fitting["grade"][0]
        raise UserError(
            f"{path}: the columns {columns} may all be grades; write --column {pasted(f'grade={header[place]}')}, or "
            "--column 'grade=' for one grade per side"
        )
    for role, places in fitting.items():
        if len(places) > 1:
            columns, option = quoted([header[place] for place in places]), pasted(f"{role}={header[places[0]]}")
            raise UserError(f"{path}: the columns {columns} may all be the {role}; write one: --column {option}")
        if places:
            roles[role] = places[0]
    _refuse_incomplete(path, header, roles, ungraded=ungraded)
    return {role: roles[role] for role in ROLES if role in roles}


def place_of(path: Path, header: list[str], column: str) -> int:
    """The index of the column with this title; case matters only if two titles differ only in case. Raises UserError."""
    places = [place for place, title in enumerate(header) if title == column]
    places = places or [place for place, title in enumerate(header) if title.casefold() == column.casefold()]
    if len(places) != 1:
        error = f"has {len(places)} columns '{column}', so rename one" if places else f"has no column '{column}'"
        raise UserError(f"{path}: {error}; there are {some_titles(header)}")
    return places[0]


def is_grade_column(title: str) -> bool:
    """Whether a column holds a grade or what a grade is read from: joint space narrowing, osteophytes, sclerosis.

    As an input such a column would give the answer away. Names of the OAI are known.

    >>> is_grade_column("V00XRJSM"), is_grade_column("KL right"), is_grade_column("osteophytes"), is_grade_column("clinic")
    (True, True, True, False)
    """
    return _ANSWER.search(title) is not None


def reader_column(header: list[str]) -> int | None:
    """The index of the column that names the reader; None if there is none, or several."""
    places = [place for place, title in enumerate(header) if re.fullmatch(_READER, _plain(title))]
    return places[0] if len(places) == 1 else None


def visit_of_title(title: str) -> str:
    """The visit in the name of a grade column, as in files of the OAI and of MOST; '' for any other name.

    >>> visit_of_title("V00XRKL"), visit_of_title("V0XRKLL"), visit_of_title("KL")
    ('V00', 'V0', '')
    """
    match = _OF_VISIT.fullmatch(_plain(title))
    return f"V{match[1]}" if match else ""


def _refuse_incomplete(path: Path, header: list[str], roles: Mapping[str, int], *, ungraded: bool) -> None:
    there = f"there are {some_titles(header)}"
    if not ungraded and not roles.keys() & {"grade", *_BY_SIDE}:
        raise UserError(
            f"{path}: which column is the grade? Write --column 'grade=NAME', or --column 'grade=' for a sheet of reports or "
            f"other columns without grades (--report, --table); {there}"
        )
    if not roles.keys() & {"image", "patient"}:
        ways = "--column 'image=NAME' or --column 'patient=NAME'"
        raise UserError(f"{path}: which column names the image, or the patient? Write {ways}; {there}")
    if roles.keys() & _BY_SIDE and "image" in roles:
        raise UserError(
            f"{path}: a row has the grades of two knees but names one image; write --column 'image=' to match by patient"
        )


def _role_of(title: str, *, kl: bool = True) -> str:
    """The role that a column with this title may have, '' for none; ``kl``: whether KL grades are wanted.

    >>> _role_of("Kellgren-Lawrence grade"), _role_of("KL_right"), _role_of("V0XRKLL"), _role_of("Age")
    ('grade', 'grade_R', 'grade_L', '')
    """
    grade = _NAMES["grade"] + (_KL if kl else "")
    for role, names in {**_NAMES, "grade": grade}.items():
        if re.fullmatch(names, _plain(title)):
            return role
    of_visit = _OF_VISIT.fullmatch(_plain(title))
    if kl and of_visit and of_visit[2]:
        return f"grade_{of_visit[2].upper()}"
    words = re.findall("[a-z0-9]+", title.lower())
    sides = {SIDES[word] for word in words if word in SIDES}
    rest = "".join(word for word in words if word not in (*SIDES, "knee"))
    return f"grade_{sides.pop()}" if len(sides) == 1 and re.fullmatch(grade, rest) else ""


def _plain(title: str) -> str:
    return re.sub("[^a-z0-9]", "", title.lower())
