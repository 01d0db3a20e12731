"""Grades of a spreadsheet, joined to the images of a folder: by the images' names, or by patient and side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from knee.dicom import Subject
from knee.errors import Faults, UserError, counted
from knee.scan import stem
from knee.sheet import Entry, Sheet, quoted
from knee.tables import shortened


def subjects_of_images(sheet: Sheet, images: Sequence[str]) -> dict[str, Subject]:
    """Patient and side by image, '' what is not said; none where the sheet names no images. Raises Faults as ``grades_of``."""
    if not sheet.names_images:
        return {}
    return {
        image: Subject(_first(entry.patient for entry in entries), _first(entry.side for entry in entries))
        for image, entries in _by_image(sheet, images).items()
    }


def grades_of(sheet: Sheet, images: Sequence[str], subjects: Sequence[Subject]) -> tuple[list[Entry | None], list[str]]:
    """The sheet's row for each image, None where it has none, and in sentences what was joined.

    A sheet that names images is joined by their paths, their names, or these without suffix, whichever fits one image; the
    others by patient and side, where '007' is '7' if there is no other of that number.

    Raises:
        UserError: no row fits any image; Faults: two grades of one knee or image, a name that fits several images, a patient
            with images of both knees where the sheet does not tell them apart.
    """
    if sheet.names_images:
        by_image = _by_image(sheet, images)
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


def _by_image(sheet: Sheet, images: Sequence[str]) -> dict[str, list[Entry]]:
    """The rows of each image that has any."""
    index: dict[str, set[str]] = defaultdict(set)
    for image in images:
        for key in (image, stem(image), image.rsplit("/", 1)[-1], stem(image.rsplit("/", 1)[-1])):
            index[key.casefold()].add(image)
    found: dict[str, list[Entry]] = defaultdict(list)
    faults = []
    for entry in sheet.entries:
        fitting = _images_named(entry.image, index)
        if len(fitting) > 1:
            some = quoted(sorted(fitting)[:2])
            faults.append(f"row {entry.row}: '{entry.image}' may be {some}; write the path in the folder")
        for image in fitting if len(fitting) == 1 else ():
            found[image].append(entry)
    for image, entries in found.items():
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


def _images_named(name: str, index: Mapping[str, set[str]]) -> set[str]:
    """The images that a field may mean: by its path, else by its name, with or without suffix."""
    if not name:
        return set()
    for key in (name, stem(name)):
        if len(index.get(key.casefold(), ())) == 1:
            return index[key.casefold()]
    last = name.rsplit("/", 1)[-1]
    fitting = index.get(last.casefold()) or index.get(stem(last).casefold()) or set()
    ends = {image for image in fitting if f"/{name}".casefold().endswith(f"/{image}".casefold())}
    return ends if len(ends) == 1 else fitting


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
    both = next((patient for patient, sides in shown.items() if len(sides) > 1), None)
    if both is not None and not sheet.has_sides:
        faults.append(
            f"patient '{both}' has images of both knees and one grade; a column must tell the side (--column 'side=NAME', or "
            "--column 'grade_L=NAME' --column 'grade_R=NAME')"
        )
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
    entry = next(iter(sheet.entries), None)
    if entry is None:
        return f"{sheet.path}: no row names {'an image' if sheet.names_images else 'a patient'}; see --column"
    if sheet.names_images:
        return f"{sheet.path}: no row fits an image: it has '{entry.image}', the folder '{image}'; see --column"
    return (
        f"{sheet.path}: no row fits an image: it has patient '{entry.patient}'{_on(entry.side)}, the folder patient "
        f"'{subject.patient}'{_on(subject.side)} ('{image}'); see --pattern and --column"
    )


def _on(side: str) -> str:
    return f", side {side}" if side else ""
