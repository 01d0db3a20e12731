"""Grades of a spreadsheet, joined to the images of a folder: by the images' names, or by patient and side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from knee.errors import Faults, UserError, counted, quoted
from knee.images.dicom import Subject
from knee.intake.scan import stem
from knee.intake.sheet import Entry, Sheet
from knee.io.names import composed
from knee.io.tables import shortened


def subjects_of_images(sheet: Sheet, by_image: Mapping[str, Sequence[Entry]]) -> dict[str, Subject]:
    """Patient and side by image, '' what is not said, of the rows that ``rows_by_image`` found.

    Raises:
        Faults: patients that differ in case or in zeros at the front.
    """
    if not sheet.names_images:
        return {}
    firsts: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in sheet.entries:
        if entry.patient:
            firsts[entry.patient.casefold().lstrip("0")].setdefault(entry.patient, entry.row)
    _refuse(
        sheet,
        [
            f"rows {' and '.join(map(str, rows.values()))}: patients {quoted(list(rows))}, one person or two? Write one alike "
            "in all rows, two with names that differ in more"
            for rows in firsts.values()
            if len(rows) > 1
        ],
    )
    return {
        image: Subject(_first(entry.patient for entry in entries), _first(entry.side for entry in entries))
        for image, entries in by_image.items()
    }


def grades_of(
    sheet: Sheet, images: Sequence[str], subjects: Sequence[Subject], by_image: Mapping[str, Sequence[Entry]]
) -> tuple[list[Entry | None], list[str]]:
    """The sheet's row for each image, None where it has none, and in sentences what was joined.

    A sheet that names images is joined by ``rows_by_image``; the others by patient and side, where '007' is '7' if there is
    no other of that number.

    Raises:
        UserError: no row fits any image; Faults: two grades of one knee, images of a side where the sheet tells none.
    """
    if sheet.names_images:
        found = [_graded(by_image.get(image, [])) for image in images]
        used = {entry.row for entries in by_image.values() for entry in entries}
        notes: list[str] = []
    else:
        found, used, notes = _by_knee(sheet, images, subjects)
    if not used:
        raise UserError(_nothing_fits(sheet, images[0], subjects[0]))
    columns = ", ".join(f"{role} is '{header}'" for role, header in sheet.columns.items())
    rows = {entry.row for entry in sheet.entries}
    unused = sorted(rows - used)
    graded = sum(entry is not None for entry in found)
    told = [f"{sheet.path}: {columns}; {graded} of {counted(len(images), 'image')} have a grade there."]
    if unused:
        told.append(f"{counted(len(unused), 'row')} ({unused[0]} first) fit no image of the folder.")
    absent = [image for image, entry in zip(images, found, strict=True) if entry is None]
    if absent:
        told.append(f"{counted(len(absent), 'image')} ('{absent[0]}' first) without a grade in the sheet.")
    return found, [*told, *notes]


def rows_by_image(sheet: Sheet, images: Sequence[str]) -> dict[str, list[Entry]]:
    """The rows of each image that has any, by its path or the end of it, without suffix if need be.

    Empty where the sheet names no images.

    Raises:
        Faults: a name that fits several images; two patients, sides or grades of one image.
    """
    if not sheet.names_images:
        return {}
    index = _Index(images)
    named = {name: sorted(index.images_named(name)) for name in {entry.image for entry in sheet.entries}}
    found: dict[str, list[Entry]] = defaultdict(list)
    faults = []
    for entry in sheet.entries:
        fitting = named[entry.image]
        if len(fitting) > 1:
            some = quoted(fitting[:2])
            faults.append(f"row {entry.row}: '{entry.image}' may be {some}; write the path in the folder")
        for image in fitting if len(fitting) == 1 else ():
            found[image].append(entry)
    for image, entries in found.items():
        longest = max(entries, key=lambda entry: len(entry.image))
        ends = set(_ends(_folded(stem(longest.image))))
        other = next((entry for entry in entries if _folded(stem(entry.image)) not in ends), None)
        if other:
            names = quoted([other.image, longest.image])
            faults.append(
                f"rows {other.row} and {longest.row}: {names} both fit '{image}'; write the path in the folder"
            )
        for what, facts in (
            ("patient", {entry.patient for entry in entries if entry.patient}),
            ("side", {entry.side for entry in entries if entry.side}),
        ):
            if len(facts) > 1:
                rows = " and ".join(str(entry.row) for entry in entries[:2])
                faults.append(f"rows {rows}: '{image}' has another {what} in each; keep the row that is right")
        faults += _two_grades(entries, f"'{image}'", "keep the row that is right")
    _refuse(sheet, faults)
    return dict(found)


class _Index:
    """The images of a folder, to be found by what a sheet calls them."""

    def __init__(self, images: Sequence[str]) -> None:
        self._paths: dict[str, set[str]] = defaultdict(set)
        self._ends: dict[str, set[str]] = defaultdict(set)
        self._images = set(images)
        for image in images:
            for path in (_folded(image), _folded(stem(image))):
                self._paths[path].add(image)
                for end in _ends(path):
                    self._ends[end].add(image)

    def images_named(self, name: str) -> set[str]:
        """The images that a field may mean: of that path, else all that differ from it by folders at its front alone.

        A name in another folder may be another patient's. The suffix may differ or be absent.
        """
        if name in self._images:
            return {name}
        texts = (_folded(name), _folded(stem(name))) if name else ()
        for text in texts:
            if len(self._paths.get(text, ())) == 1:
                return self._paths[text]
            fitting = self._ends.get(text, set()).union(*(self._paths.get(end, ()) for end in _ends(text)))
            if fitting:
                return fitting
        return set()


def _folded(path: str) -> str:
    """A path as it is compared: without regard to case, or to how accents are stored."""
    return composed(path).casefold()


def _ends(path: str) -> Iterator[str]:
    """The path, and what is left of it without its first folders."""
    parts = path.split("/")
    return ("/".join(parts[first:]) for first in range(len(parts)))


def _by_knee(
    sheet: Sheet, images: Sequence[str], subjects: Sequence[Subject]
) -> tuple[list[Entry | None], set[int], list[str]]:
    """The row of each image's knee, the rows that were found for any, and remarks."""
    knees: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sheet.entries:
        knees[entry.patient, entry.side].append(entry)
    faults = [
        fault
        for (patient, side), entries in knees.items()
        for fault in _two_grades(
            entries,
            f"patient '{patient}'{f', side {side}' if side else ''}",
            "keep one, take a part of the rows (--only COLUMN=VALUE), or name images instead of patients",
        )
    ]
    written, padded = _as_written(
        list(dict.fromkeys(entry.patient for entry in sheet.entries)),
        list(dict.fromkeys(subject.patient for subject in subjects)),
    )
    found: list[Entry | None] = []
    used: set[int] = set()
    sideless: list[str] = []
    shown: dict[str, set[str]] = defaultdict(set)
    count: dict[tuple[str, str], int] = defaultdict(int)
    for image, subject in zip(images, subjects, strict=True):
        patient = written.get(subject.patient)
        if patient is None:
            found.append(None)
            continue
        if sheet.has_sides and not subject.side:
            sideless.append(image)
        entries = knees.get((patient, subject.side if sheet.has_sides else ""), [])
        used.update(entry.row for entry in entries)
        found.append(_graded(entries))
        if found[-1] is not None:
            shown[patient].add(subject.side)
            count[patient, subject.side] += 1
    if not sheet.has_sides:
        faults += _sides_left_open(sheet, shown)
    _refuse(sheet, faults)
    several = sum(number > 1 for number in count.values())
    notes = []
    if padded:
        notes.append(f"{counted(padded, 'patient')} found without the zeros at the front of the number.")
    if several:
        notes.append(f"{counted(several, 'knee')} with several images: each takes the grade of the knee.")
    if sideless:
        notes.append(
            f"{counted(len(sideless), 'image')} ('{sideless[0]}' first) do not tell the side, so they take no grade; --pattern "
            "with a group 'side' tells it."
        )
    return found, used, notes


def _sides_left_open(sheet: Sheet, shown: dict[str, set[str]]) -> list[str]:
    """What is wrong with grades of patients where images of them show these sides."""
    columns = "--column 'side=NAME', or --column 'grade_L=NAME' --column 'grade_R=NAME'"
    both = next((patient for patient, sides in shown.items() if len(sides) > 1), None)
    if both is not None:
        return [f"patient '{both}' has images of both knees and one grade; a column must tell the side ({columns})"]
    sided = next((patient for patient, sides in shown.items() if any(sides)), None)
    if sided is None or sheet.one_knee:
        return []
    return [
        f"patient '{sided}' has images of side {_first(shown[sided])} and a grade of no side; write which column tells it "
        f"({columns}), or --column 'side=' if the grade of a patient is of the knee that is shown"
    ]


def _as_written(in_sheet: Sequence[str], in_folder: Sequence[str]) -> tuple[dict[str, str], int]:
    """The sheet's name of each patient of the folder that it has, and how many differ in zeros at the front."""
    exact, here = set(in_sheet), set(in_folder)
    numbers: dict[str, set[str]] = defaultdict(set)
    for patient in {*in_sheet, *in_folder}:
        numbers[patient.lstrip("0")].add(patient)
    found, padded = {}, 0
    for patient in in_folder:
        others = numbers[patient.lstrip("0")] - {patient}
        if patient in exact:
            found[patient] = patient
        elif len(others) == 1 and patient.isdecimal() and others <= exact - here:
            found[patient] = others.pop()
            padded += 1
    return found, padded


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _graded(entries: Sequence[Entry]) -> Entry | None:
    """The row that has a grade; rows without one beside it say nothing."""
    return next((entry for entry in entries if entry.grade is not None), None)


def _two_grades(entries: Sequence[Entry], whose: str, way_out: str) -> list[str]:
    firsts = {entry.grade: entry for entry in reversed(entries) if entry.grade is not None}
    if len(firsts) < 2:
        return []
    one, other = sorted(firsts.values(), key=lambda entry: entry.row)[:2]
    return [f"rows {one.row} and {other.row}: {whose} has the grades {one.grade} and {other.grade}; {way_out}"]


def _refuse(sheet: Sheet, faults: Sequence[str]) -> None:
    if faults:
        told = shortened([f"{sheet.path.name} {fault}" for fault in faults])
        raise Faults(told, summary=f"{sheet.path}: {counted(len(faults), 'fault')}; mend them:")


def _nothing_fits(sheet: Sheet, image: str, subject: Subject) -> str:
    entry = next((entry for entry in sheet.entries if entry.image or not sheet.names_images), None)
    if entry is None:
        way_out = "an image; --column 'image=' goes by patient" if sheet.names_images else "a patient; see --column"
        return f"{sheet.path}: no row names {way_out}"
    if sheet.names_images:
        return (
            f"{sheet.path}: no row fits an image: it has '{entry.image}', the folder '{image}'; name images by their path in "
            "the folder, or by its end; see --column"
        )
    return (
        f"{sheet.path}: no row fits an image: it has patient '{entry.patient}'{_on(entry.side)}, the folder patient "
        f"'{subject.patient}'{_on(subject.side)} ('{image}'); see --pattern and --column"
    )


def _on(side: str) -> str:
    return f", side {side}" if side else ""
