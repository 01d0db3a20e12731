"""Join the grades of a spreadsheet to the images of a folder: by image name, or by patient, side and visit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from knee.errors import Faults, UserError, counted, quoted
from knee.images.dicom import Subject
from knee.intake.rows import Entry
from knee.intake.scan import stem
from knee.intake.sheet import Sheet
from knee.io.names import composed


def match_images(sheet: Sheet, images: Sequence[str]) -> pd.DataFrame:
    """The sheet's rows; the new column ``of`` contains the image that a row names (None if it names none of ``images``).

    A row may name an image by its path or the end of its path, with or without the suffix.

    Raises:
        Faults: a name that matches several images; two patients, sides or grades of one image.
    """
    rows = pd.DataFrame(sheet.entries, columns=Entry._fields, dtype=object)
    if not sheet.names_images:
        return rows.assign(of=None)
    named = _images_named(dict.fromkeys(rows["image"]), images)
    rows["of"] = pd.Series([named[name][0] if len(named[name]) == 1 else None for name in rows["image"]], dtype=object)
    faults = [
        f"row {row}: '{name}' may be {quoted(sorted(named[name])[:2])}; write the path in the folder"
        for row, name in zip(rows["row"], rows["image"], strict=True)
        if len(named[name]) > 1
    ]
    for image, same in rows.groupby("of", sort=False):
        longest = max(same["image"], key=len)
        for row, name in zip(same["row"], same["image"], strict=True):
            if _ends(stem(name))[0] not in _ends(stem(longest)):
                faults.append(f"row {row}: '{name}' and '{longest}' both match '{image}'; write the path in the folder")
    for column in ("patient", "side", "grade"):
        faults += [
            f"{lines}: '{image}' has another {column} in each ({values}); keep the correct row"
            for (image,), lines, values in _conflicts(rows[rows[column] != ""], ["of"], column)
        ]
    _refuse(sheet, faults)
    return rows


def subjects_of_images(sheet: Sheet, rows: pd.DataFrame) -> dict[str, Subject]:
    """Patient and side by image ('' if not given), from the rows that ``match_images`` returned.

    Raises:
        Faults: patients that differ only in case or in leading zeros.
    """
    named = rows[(rows["patient"] != "") & sheet.names_images].drop_duplicates("patient")
    alike = named.groupby(named["patient"].map(lambda patient: patient.casefold().lstrip("0")), sort=False)
    faults = [
        f"rows {' and '.join(map(str, same['row']))}: patients {quoted(list(same['patient']))}, one person or two? Write one "
        "person the same in all rows; give two persons names that differ in more than that"
        for _, same in alike
        if len(same) > 1
    ]
    _refuse(sheet, faults)
    return {str(image): Subject(max(same["patient"]), max(same["side"])) for image, same in rows.groupby("of")}


def join_sheet(
    sheet: Sheet, shown: pd.DataFrame, rows: pd.DataFrame
) -> tuple[list[Entry | None], list[str], list[str]]:
    """The sheet's graded row (or None) and split (or '') of each image, and sentences that describe the join.

    Args:
        shown: image, patient, side, and the visit (label and date) of each image.
        rows: of ``match_images``. If the sheet names no images, they are joined by patient, side and visit; '007' matches
            '7' if no other patient has that number.

    Raises:
        UserError: no row matches any image; Faults: two grades or splits of one knee; images with a known side, or of
            several visits, if the sheet has no side or visit.
    """
    first = shown.iloc[0]
    shown, key, notes = _keyed(sheet, shown, rows)
    if not sheet.names_images:
        _refuse_two_grades(sheet, rows, key)
    known = shown.dropna(subset=key)
    used = set(rows.merge(known[key].drop_duplicates(), on=key)["row"])
    if not used:
        raise UserError(_nothing_fits(sheet, first))
    rows = rows.assign(at=range(len(rows)))
    knees = rows.dropna(subset="grade").drop_duplicates(key)[[*key, "at"]]
    joined = shown.merge(knees, on=key, how="left", validate="m:1", indicator=True)
    graded = joined[joined["_merge"] == "both"]
    if not sheet.names_images:
        _refuse_unknown_sides(sheet, graded)
        _refuse_several_visits(sheet, graded, key)
        notes += _knee_notes(sheet, known, graded)
    columns = ", ".join(f"{role} is '{header}'" for role, header in sheet.columns.items())
    report = [f"{sheet.path}: {columns}; {len(graded)} of {counted(len(shown), 'image')} have a grade in the sheet."]
    if unused := sorted(set(rows["row"]) - used):
        report.append(f"{counted(len(unused), 'row')} ({unused[0]} first) match no image of the folder.")
    if len(absent := joined.loc[joined["_merge"] != "both", "image"]):
        report.append(f"{counted(len(absent), 'image')} ('{absent.iat[0]}' first) without a grade in the sheet.")
    entries = [None if pd.isna(at) else sheet.entries[int(at)] for at in joined["at"]]
    return entries, _splits(sheet, shown, rows, key), [*report, *notes]


def join_texts(sheet: Sheet, shown: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The further columns (``Sheet.texts``) of each image, joined like its grade; empty texts if no row matches.

    ``shown`` and ``rows`` as for ``join_sheet``. Raises Faults for two different texts of one knee or image.
    """
    shown, key, _ = _keyed(sheet, shown, rows)
    rows = rows[rows["texts"].map(any)]
    faults = [
        f"{lines}: two different texts in the columns {quoted(sheet.texts)} for {quoted([str(part) for part in name])}; "
        "keep one row"
        for name, lines, _ in _conflicts(rows.assign(texts=rows["texts"].map(tuple)), key, "texts")
    ]
    _refuse(sheet, faults)
    known = {tuple(row[:-1]): row[-1] for row in rows[[*key, "texts"]].itertuples(index=False)}
    none = ("",) * len(sheet.texts)
    return [known.get(tuple(row), none) for row in shown[key].itertuples(index=False)]


def _keyed(sheet: Sheet, shown: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The images with the columns that rows are joined by, the names of these columns, and a note on names of patients."""
    shown = shown[["image", "patient", "side", "label", "date"]].astype(object)
    if sheet.names_images:
        return shown.assign(of=shown["image"]), ["of"], []
    written, padded = _as_written(set(rows["patient"]), set(shown["patient"]))
    shown["patient"] = [written.get(patient) for patient in shown["patient"]]
    notes = [f"{counted(padded, 'patient')} matched without the leading zeros of the number."] if padded else []
    key = ["patient", "side"] if sheet.has_sides else ["patient"]
    return shown, [*key, *_visit_key(sheet, shown, rows)], notes


def _splits(sheet: Sheet, shown: pd.DataFrame, rows: pd.DataFrame, key: list[str]) -> list[str]:
    """The split of each image, '' if the sheet gives none."""
    given = rows[rows["split"] != ""]
    whose = "of" if sheet.names_images else "patient"
    faults = [
        f"{lines}: '{name}' is in the splits {values}; put all images of a patient in one"
        for (name,), lines, values in _conflicts(given, [whose], "split")
    ]
    _refuse(sheet, faults)
    by_name = dict(zip(given[whose], given["split"], strict=True))
    return [by_name.get(name, "") for name in shown[whose]]


def _visit_key(sheet: Sheet, shown: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """``["visit"]`` if images and rows have visits, which are then added as a column of ``shown``; else ``[]``."""
    if not sheet.has_visits or sheet.any_visit:
        return []
    dated = rows["visit"].map(lambda visit: len(visit) == 8 and visit.isdigit()).any()
    visits = shown["date" if dated else "label"]
    if not visits.ne("").any():
        return []
    shown["visit"] = visits
    return ["visit"]


def _refuse_several_visits(sheet: Sheet, graded: pd.DataFrame, key: list[str]) -> None:
    """Refuse one grade for images of a knee at several visits, unless the user declared that it applies to all."""
    if "visit" in key or sheet.any_visit:
        return
    faults = []
    for (patient, side), images in graded.groupby(["patient", "side"], sort=False):
        for column in ("label", "date"):
            visits = [visit for visit in images[column].unique() if visit]
            if len(visits) > 1:
                faults.append(
                    f"patient '{patient}'{side and f', side {side}'} has images of visits {quoted(visits[:3])} "
                    "but only one grade"
                )
                break
    if faults:
        raise Faults(
            faults,
            summary=f"{sheet.path}: {counted(len(faults), 'knee')} with images of several visits and a grade without a visit; "
            "give the visit column with --column 'visit=NAME', or --column 'visit=' if a grade applies to all visits:",
        )


def _images_named(names: Iterable[str], images: Sequence[str]) -> dict[str, list[str]]:
    """For each name, the image with that path, else all images whose path differs only in leading folders.

    The same file name in another folder may belong to another patient. The suffix may differ or be absent.
    """
    exact = set(images)
    found = {name: [name] if name in exact else [] for name in names}
    for form in (str, stem):
        whole: dict[str, set[str]] = defaultdict(set)
        by_end: dict[str, set[str]] = defaultdict(set)
        for image in images:
            whole[_ends(form(image))[0]].add(image)
            for end in _ends(form(image)):
                by_end[end].add(image)
        for name in [name for name, fitting in found.items() if name and not fitting]:
            path, *ends = _ends(form(name))
            same, longer = whole.get(path, set()), by_end.get(path, set())
            found[name] = sorted(same if len(same) == 1 else longer.union(*(whole.get(end, ()) for end in ends)))
    return found


def _ends(path: str) -> list[str]:
    """The path and its ends (without leading folders), ignoring case and the Unicode form of accents."""
    parts = composed(path).casefold().split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _refuse_two_grades(sheet: Sheet, rows: pd.DataFrame, key: list[str]) -> None:
    ways = ["keep one", "use only some of the rows (--only COLUMN=VALUE)", "name images instead of patients"]
    ways += [f"choose whose grades take precedence, e.g. {sheet.prefer}"] if sheet.prefer else []
    hint = f"{', '.join(ways[:-1])} or {ways[-1]}"
    faults = [
        f"{lines}: patient '{patient}'{''.join(f', side {one}' for one in side if one)} has the grades {values}; {hint}"
        for (patient, *side), lines, values in _conflicts(rows, key, "grade")
    ]
    _refuse(sheet, faults)


def _refuse_unknown_sides(sheet: Sheet, graded: pd.DataFrame) -> None:
    """Refuse a grade without a side, unless all images of the patient show one knee, known to be the graded one."""
    if sheet.has_sides:
        return
    faults = []
    columns = "--column 'side=NAME', or --column 'grade_L=NAME' --column 'grade_R=NAME'"
    for patient, sides in graded.groupby("patient", sort=False)["side"].agg(set).items():
        if len(sides) > 1:
            faults.append(
                f"patient '{patient}' has images of both knees but only one grade; a column must give the side ({columns})"
            )
        elif any(sides) and not sheet.one_knee:
            faults.append(
                f"patient '{patient}' has images of side {max(sides)} and a grade without a side; give the column of the "
                f"side ({columns}), or --column 'side=' if a patient's grade is that of the knee in the image"
            )
    _refuse(sheet, faults)


def _knee_notes(sheet: Sheet, known: pd.DataFrame, graded: pd.DataFrame) -> list[str]:
    notes = []
    if several := int((graded.groupby(["patient", "side"]).size() > 1).sum()):
        notes.append(f"{counted(several, 'knee')} with several images: each gets the grade of the knee.")
    if sheet.has_sides and len(sideless := known.loc[known["side"] == "", "image"]):
        notes.append(
            f"{counted(len(sideless), 'image')} ('{sideless.iat[0]}' first) without a known side get no grade; "
            "give the side by --pattern with a group 'side'."
        )
    return notes


def _as_written(in_sheet: Collection[str], in_folder: Collection[str]) -> tuple[dict[str, str], int]:
    """The name in the sheet of each patient of the folder, and how many names differ in leading zeros."""
    exact, here = set(in_sheet), set(in_folder)
    numbers: dict[str, set[str]] = defaultdict(set)
    for patient in exact | here:
        numbers[patient.lstrip("0")].add(patient)
    found = {patient: patient for patient in exact & here}
    for patient in here - exact:
        others = numbers[patient.lstrip("0")] - {patient}
        if len(others) == 1 and patient.isdecimal() and others <= exact - here:
            found[patient] = others.pop()
    return found, len(found) - len(exact & here)


def _conflicts(rows: pd.DataFrame, key: list[str], column: str) -> list[tuple[Any, str, str]]:
    """Each key with several values in a column: the key, the first two rows that differ, and their values."""
    firsts = rows.dropna(subset=[*key, column]).drop_duplicates([*key, column])
    return [
        (name, "rows {} and {}".format(*same["row"]), "{} and {}".format(*same[column]))
        for name, same in firsts[firsts.duplicated(key, keep=False)].groupby(key, sort=False)
    ]


def _refuse(sheet: Sheet, faults: Sequence[str]) -> None:
    if faults:
        lines = [f"{sheet.path.name} {fault}" for fault in faults]
        raise Faults(lines, summary=f"{sheet.path}: {counted(len(faults), 'error')}; fix them:")


def _nothing_fits(sheet: Sheet, shown: pd.Series[str]) -> str:
    entry = next((entry for entry in sheet.entries if entry.image or not sheet.names_images), None)
    if entry is None:
        return f"{sheet.path}: no row names an image; --column 'image=' matches by patient"
    if sheet.names_images:
        return (
            f"{sheet.path}: no row matches an image: it has '{entry.image}', the folder has '{shown['image']}'; name images by "
            "their path in the folder, or by its end; see --column"
        )
    knees = (
        (entry.patient, entry.side, entry.visit),
        (shown["patient"], shown["side"], shown["label"] or shown["date"]),
    )
    one, other = (
        f"patient '{name}'{side and f', side {side}'}{visit and f', visit {visit}'}" for name, side, visit in knees
    )
    place = f"the folder has {other} ('{shown['image']}')"
    return f"{sheet.path}: no row matches an image: it has {one}, {place}; see --pattern and --column"
