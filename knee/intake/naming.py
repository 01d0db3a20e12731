"""Infer patient and side from the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from knee.errors import UserError
from knee.images.dicom import Subject
from knee.intake.scan import stem
from knee.io.names import composed

SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
"""Words for a side, in lower case."""
_SIDE_AT_END = re.compile(
    r"(?P<patient>.*[0-9])(?P<side>[LR])|(?P<stem>.+)[-_ ](?P<word>[LRlr]|left|right|LEFT|RIGHT|Left|Right)"
)
_NOBODY = re.compile(
    r"(?:(?:(?:slice|slc|frame)[-_ ]?[0-9]+|left|right|l|r|knee|image|img|scan|xray|x-ray|ap|pa|lat|lateral)(?:[-_ ]+|$))+",
    re.IGNORECASE,
)


class Placed(NamedTuple):
    """An image and its folders below the grade folder (or the split folder, or the top folder)."""

    file: str
    folders: tuple[str, ...]
    """Without the last one if it is named after a side."""


def placed(file: str, folders: Sequence[str]) -> Placed:
    """The image ``file`` in its ``folders``; the last of them may be named left or right.

    >>> placed("2/P7/left/slice01.png", ["P7", "left"])
    Placed(file='2/P7/left/slice01.png', folders=('P7',))
    """
    by_side = bool(folders) and folders[-1].lower() in SIDES
    return Placed(file, tuple(folders[:-1] if by_side else folders))


def side_in_path(file: str) -> str:
    """The side in a file's name or in its folder's name: 'L', 'R', or '' if neither has one.

    A file name that does not identify a patient ('left', 'slice07_L') may contain the side anywhere; any other only at its
    end. A folder may be named after the side or, if the file name does not identify a patient, end with it.

    >>> side_in_path("007_left.png"), side_in_path("7/right_knee.png"), side_in_path("7/left/2.png"), side_in_path("knee.dcm")
    ('L', 'R', 'L', '')
    """
    *folders, name = stem(file).split("/")
    side, nobody = split_side(name)[1], _NOBODY.fullmatch(name) is not None
    words = {SIDES[word] for word in re.split("[-_ ]+", name.lower()) if word in SIDES}
    if not side and nobody and len(words) == 1:
        side = words.pop()
    if side or not folders:
        return side
    return SIDES.get(folders[-1].lower(), "") or (split_side(folders[-1])[1] if nobody else "")


def split_side(name: str) -> tuple[str, str]:
    """A name without the side at its end, and that side, '' if it has none.

    >>> split_side("9001695L"), split_side("P7_right"), split_side("MILLER")
    (('9001695', 'L'), ('P7', 'R'), ('MILLER', ''))
    """
    name = composed(name)
    match = _SIDE_AT_END.fullmatch(name)
    if not match:
        return name, ""
    return match["patient"] or match["stem"], (match["side"] or match["word"])[0].upper()


def by_file(image: Placed) -> Subject:
    """The subject according to the file's name, without a side at its end."""
    return Subject(split_side(last_name(image))[0], side_in_path(image.file))


def by_folder(image: Placed) -> Subject:
    """The subject according to the folder's name. Raises UserError if the file is not in a patient folder."""
    if not image.folders:
        raise UserError(f"{image.file}: is not in a patient folder (folders of splits, grades and sides do not count)")
    return Subject(split_side(image.folders[-1])[0], side_in_path(image.file))


def names_nobody(image: Placed) -> bool:
    """Whether the file's name does not identify a patient, but only a side, a slice or the like."""
    return _NOBODY.fullmatch(last_name(image)) is not None


def last_name(image: Placed) -> str:
    """The file's name without its folders and suffix."""
    return stem(image.file).rsplit("/", 1)[-1]
