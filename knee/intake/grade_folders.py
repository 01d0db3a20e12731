"""Grade and split folders. A numbered folder counts as a grade only if its siblings do; otherwise the user must decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from knee.errors import Faults, UserError, counted, quoted
from knee.io.names import composed

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
UNGRADED = ("ungraded", "unlabeled", "unlabelled")
_PREFIXED = re.compile(
    r"(?:kl|klg|kl[-_ ]?grade|grade|kellgren[-_ ]?lawrence(?:[-_ ]?grade)?)[-_ ]*([0-9])", re.IGNORECASE
)
_WITH_NAME = re.compile(r"([0-9])[-_. ]*([a-z][a-z -]*)", re.IGNORECASE)
_KL_WORDS = ("none", "normal", "healthy", "doubtful", "minimal", "mild", "moderate", "severe")
_MOST_NAMED = 5


class Scale(NamedTuple):
    """The grades that folders may be named after: K, and their names in lower case."""

    size: int
    names: tuple[str, ...]

    def grade_of(self, name: str) -> int | None:
        """The grade in a name that is more than a bare number: one of ``names``, ``KL2``, ``grade_2`` or ``2Mild``.

        Raises:
            UserError: a grade beyond the scale, or a number with the name of another grade.

        >>> Scale(5, ("none",)).grade_of("KL_2"), Scale(5, ()).grade_of("4Severe"), Scale(5, ()).grade_of("4")
        (2, 4, None)
        """
        folded = name.lower()
        if folded in self.names:
            return self.names.index(folded)
        named = _WITH_NAME.fullmatch(name)
        word = named[2].lower().strip() if named else ""
        match = _PREFIXED.fullmatch(name) or (named if word in (*self.names, *_KL_WORDS) else None)
        if match is None:
            return None
        grade = int(match[1])
        if grade >= self.size:
            raise UserError(f"'{name}' is not a grade from 0 to {self.size - 1}")
        if word in self.names and self.names.index(word) != grade:
            raise UserError(f"'{name}' has the number of one grade and the name of grade {self.names.index(word)}")
        return grade


class GradeFolders(NamedTuple):
    """The grade of each folder, None for ungraded images. Folders that are not in ``grades`` are not grade folders."""

    grades: dict[str, int | None]

    def split_and_rest(self, file: str) -> tuple[str, list[str]]:
        """The split folder of a file ('' if none), and the file's folders below it."""
        folders = file.split("/")[:-1]
        split = SPLIT_NAMES.get(folders[0].lower(), "") if folders else ""
        return split, folders[1:] if split else folders

    def is_grade(self, folders: Sequence[str]) -> bool:
        """Whether the first of a file's folders below the split is a grade folder, or one of ungraded images."""
        return bool(folders) and folders[0] in self.grades

    def below(self, files: Sequence[str]) -> list[list[str]]:
        """Each file's folders below split and grade; siblings of such folders are treated like them."""
        parted = [self.split_and_rest(file) for file in files]
        any_split = any(split for split, _ in parted)
        any_grade = any(self.is_grade(folders) for _, folders in parted)
        found = []
        for split, folders in parted:
            if any_split and not split and folders and not self.is_grade(folders):
                folders = folders[1:]
            found.append(folders[1:] if any_grade or self.is_grade(folders) else folders)
        return found


def find_grade_folders(folder: object, files: Sequence[str], scale: Scale, layout: str) -> GradeFolders:
    """Find the grade folders among the folders below the split (or the top folders).

    Args:
        layout: ``tree``: a number is a grade. ``plain``: no folder is. ``auto``: numbers are grades if they are all written
            alike, are on the scale, and are two or more or have a sibling that names a grade or 'ungraded'.

    Raises:
        UserError: numbers that may be grades or something else; the message gives the layouts to choose from.
    """
    by_name = GradeFolders({})
    parts = sorted({rest[0] for _, rest in map(by_name.split_and_rest, files) if rest})
    if layout == "plain":
        return by_name
    try:
        grades: dict[str, int | None] = {part: grade for part in parts if (grade := scale.grade_of(part)) is not None}
    except UserError as error:
        raise UserError(
            f"{folder}: folder {error}; rename it, or write --layout plain if no folder is a grade"
        ) from error
    grades |= dict.fromkeys((part for part in parts if part.lower() in UNGRADED), None)
    numbers = [part for part in parts if re.fullmatch("[0-9]{1,2}", part)]
    beyond = [part for part in numbers if int(part) >= scale.size]
    if numbers and layout == "auto":
        padded = [part for part in numbers if len(part) > 1 and part[0] == "0"]
        others = [part for part in parts if part not in (*numbers, *grades)]
        reason = ""
        if padded:
            reason = f"'{padded[0]}' has a zero at the front"
        elif len({*numbers, *grades}) < 2:
            reason = "there is only one"
        elif len(others) > len(numbers):
            reason = f"next to '{others[0]}' and others that are not grades"
        if reason or beyond:
            _ask(folder, numbers, beyond, reason, scale)
    elif beyond:
        raise UserError(
            f"{folder}: folder '{beyond[0]}' is not a grade from 0 to {scale.size - 1}, nor 'ungraded'; rename it"
        )
    return GradeFolders(grades | {part: int(part) for part in numbers})


def _ask(folder: object, numbers: list[str], beyond: list[str], reason: str, scale: Scale) -> None:
    named = quoted(numbers[:_MOST_NAMED]) + (" …" if len(numbers) > _MOST_NAMED else "")
    asked = f"is the folder {named} a grade" if len(numbers) == 1 else f"are the folders {named} grades"
    if beyond:
        raise UserError(
            f"{folder}: {asked}? The folder '{beyond[0]}' is not a grade from 0 to {scale.size - 1}; write --layout plain if "
            "no folder is a grade, otherwise rename it"
        )
    raise UserError(
        f"{folder}: {asked} or, say, of a patient ({reason})? Write --layout tree for grades, --layout plain if no folder is a "
        "grade"
    )


def grades_by_pattern(files: Sequence[str], pattern: str | None, scale: Scale) -> list[int | None] | None:
    """The grades that the group ``grade`` of ``pattern`` finds in the files' paths; None if it has no such group.

    Raises:
        Faults: matches that are not grades.
    """
    if pattern is None or "(?P<grade>" not in pattern:
        return None
    try:
        expression = re.compile(composed(pattern))
    except re.error as error:
        raise UserError(f"pattern '{pattern}' is not a regular expression ({error})") from error
    found: list[int | None] = []
    faults = []
    for file in files:
        match = expression.search(composed(file))
        text = (match and match["grade"]) or ""
        try:
            found.append(_grade_in_name(text, scale))
        except UserError as error:
            faults.append(f"{file}: {error}")
            found.append(None)
    if faults:
        raise Faults(faults, summary=f"pattern '{pattern}' finds {counted(len(faults), 'text')} that are not grades:")
    return found


def _grade_in_name(text: str, scale: Scale) -> int | None:
    if not text or text.lower() in UNGRADED:
        return None
    if re.fullmatch("0*[0-9]{1,2}", text) and int(text) < scale.size:
        return int(text)
    grade = scale.grade_of(text)
    if grade is None:
        raise UserError(f"'{text[:40]}' is not a grade from 0 to {scale.size - 1}")
    return grade


def note_on_unread_folders(
    rows: Sequence[tuple[str, object, int | None]], folders: GradeFolders, scale: Scale
) -> list[str]:
    """A note on folders at the place of grade folders that are not grade folders; none if they are patient folders.

    Args:
        rows: image, patient and grade of each row.
    """
    found: dict[str, set[object]] = {}
    for file, patient, _ in rows:
        _, rest = folders.split_and_rest(file)
        if rest and not folders.is_grade(rest):
            found.setdefault(rest[0], set()).add(patient)
    ungraded = all(grade is None for _, _, grade in rows)
    if not found or (ungraded and all(len(patients) == 1 for patients in found.values())):
        return []
    names = [f"'{name}'" for name in sorted(found)[:_MOST_NAMED]]
    names += [f"{len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
    return [
        f"No grade is read from {'the folder' if len(found) == 1 else 'the folders'} {', '.join(names)}; a grade folder "
        f"is named after its number, 0 to {scale.size - 1} (also as in KL2, grade_2, 2Mild), or its name in the grade set; a "
        "folder of ungraded images is named 'ungraded'."
    ]
