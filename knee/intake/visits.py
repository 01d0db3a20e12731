"""The visit that an image or a row of a sheet belongs to: a label such as ``V00``, or the study date."""

from __future__ import annotations

import re

_LABEL = re.compile(
    r"(?:^|[-_ /])(?:v(?P<oai>[0-9]{2})|(?:visit|timepoint|tp|ses|session)[-_ ]?(?P<number>[0-9]{1,2})|"
    r"(?P<months>[0-9]{1,3})[-_ ]?(?:m|mo|months?)|(?P<first>baseline))(?=$|[-_ /.])",
    re.IGNORECASE,
)
_DATE = re.compile(r"((?:19|20)[0-9]{2})-?([01][0-9])-?([0-3][0-9])(?:[T ].*)?")
_OAI_MONTHS = {"00": 0, "01": 12, "03": 24, "05": 36, "06": 48, "08": 72, "10": 96}


def visit_in_path(path: str) -> str:
    """The visit in an image's path, in one spelling; '' if the path contains none or several.

    >>> visit_in_path("V03/9001_L.dcm"), visit_in_path("9001_L_24m.png"), visit_in_path("baseline/7.png")
    ('24 months', '24 months', '0 months')
    """
    found = {_label(match) for match in _LABEL.finditer(path)}
    return found.pop() if len(found) == 1 else ""


def visit_as_written(text: str) -> str:
    """A visit as written in a sheet, in the spelling of ``visit_in_path`` or as a date of eight digits; else unchanged.

    >>> visit_as_written("V00"), visit_as_written("2004-05-17"), visit_as_written("visit 2"), visit_as_written("24")
    ('0 months', '20040517', 'visit 2', '24')
    """
    date = _DATE.fullmatch(text)
    return "".join(date.groups()) if date else visit_in_path(text) or text.strip().lower()


def _label(match: re.Match[str]) -> str:
    if match["first"]:
        return "0 months"
    if match["months"]:
        return f"{int(match['months'])} months"
    if match["oai"]:
        months = _OAI_MONTHS.get(match["oai"])
        return f"v{match['oai']}" if months is None else f"{months} months"
    return f"visit {int(match['number'])}"
