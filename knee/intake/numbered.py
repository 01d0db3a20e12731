"""Names that differ only in a number or a side at the end may be of one person. The user must decide."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from knee.errors import UserError, counted, pasted

_SIDE = r"(?P<side>(?i:left|right|[lr]))"
_NUMBER = r"(?i:(?:visit|view|scan|slice|slc|img|im|rep|v|t|s)[-_ ]?)?[0-9]{1,3}"
_LAST_NUMBER = re.compile(rf"(?P<rest>.+?)(?:[-_ ]?\([0-9]{{1,3}}\)|[-_ ]{_NUMBER})")
_LAST_SIDE = re.compile(rf"(?P<rest>.*[0-9])[LR]|(?P<stem>.+)[-_ ]{_SIDE}")
_PERSON = re.compile(
    r"(?:^|.*[-_ ])(?:patients?|pat|pt|cases?|subjects?|subj|sub|persons?|participants?|id|p|no|nr)", re.IGNORECASE
)
"""A number after such a word identifies the patient, not the image."""
_SUGGESTIONS = (
    rf"(?P<patient>[^/]+?)(?:[-_ ]{_SIDE}(?=[-_ .]))?(?:[-_ ][^/]*)?\.[^/.]+$",
    rf"(?P<patient>[^/]+?)(?:[-_ ]{_SIDE})?(?:[-_ ]?\([0-9]{{1,3}}\)|[-_ ]{_NUMBER})?\.[^/.]+$",
    rf"(?P<patient>[^/]+?)(?:[-_ ]{_NUMBER})?(?:[-_ ]{_SIDE})?\.[^/.]+$",
    r"(?P<patient>[^/]*?[0-9]+)(?P<side>[LR])?(?:[-_ ][^/]*)?\.[^/.]+$",
)


def base_name(name: str) -> str:
    """A name without sides and small numbers at its end.

    >>> base_name("7_L_2"), base_name("9001R_v1"), base_name("knee (3)"), base_name("patient_12_L"), base_name("IM0001")
    ('7', '9001', 'knee', 'patient_12', 'IM0001')
    """
    while True:
        side, number = _LAST_SIDE.fullmatch(name), _LAST_NUMBER.fullmatch(name)
        if side:
            name = side["rest"] or side["stem"]
        elif number and not _PERSON.fullmatch(number["rest"]):
            name = number["rest"]
        else:
            return name


def refuse_numbered(patients: Mapping[str, str], files: Sequence[str]) -> None:
    """Refuse names that would count as several patients but differ only in a number or a side.

    Args:
        patients: the patient that each image's name would give.
        files: all images of the folder; a suggested pattern must match them.

    Raises:
        UserError: the message gives the options to choose from.
    """
    groups: dict[str, dict[str, str]] = {}
    for file, patient in patients.items():
        groups.setdefault(base_name(patient), {}).setdefault(patient, file)
    shared = [list(group.values()) for group in groups.values() if len(group) > 1]
    if not shared:
        return
    first, second = shared[0][:2]
    pattern = suggested_pattern(files)
    hint = (
        f"--pattern {pasted(pattern)}" if pattern else "--pattern with a regular expression that has a group 'patient'"
    )
    raise UserError(
        f"{first} and {second}: one patient or two ({counted(len(shared), 'such name')})? Write {hint} if they are one, "
        "--pattern file if each name (without a side at its end) is a patient"
    )


def suggested_pattern(files: Sequence[str]) -> str:
    """A regular expression that matches each file's base name as its patient, and its side; '' if none does."""
    for pattern in _SUGGESTIONS:
        for file in files:
            name = file.rpartition("/")[2]
            match = re.search(pattern, file)
            stem = re.sub(r"(?:\.nii)?\.[^.]+$", "", name)
            sided = re.search(rf"(?:^|[-_ ]){_SIDE}(?=[-_ ]|$)|[0-9](?P<letter>[LR])(?=[-_ ]|$)", stem)
            side = (sided["side"] or sided["letter"])[0].upper() if sided else ""
            if not match or match["patient"] != base_name(stem) or (match["side"] or "")[:1].upper() != side:
                break
        else:
            return pattern
    return ""
