"""The append-only table of all verdicts of a run, and the import of verdicts files into it."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path

from knee.errors import Faults, UserError, counted
from knee.io.files import write_text as write_whole_text
from knee.io.folder_lock import folder_lock
from knee.io.plain import shown
from knee.io.tables import plain_text, read_csv_rows, read_table, separator_of, shortened, spreadsheet_text
from knee.review.readers import alike_readers, is_unnamed
from knee.review.verdicts_file import GRADES, TIME_LIKE, VERDICTS, Expected, Verdict, is_time, read_verdicts_file

_WRITTEN = ("reviewer", "comment")  # typed by people: must not become a formula in a spreadsheet


COLUMNS = tuple(field.name for field in fields(Verdict))
Reader = Callable[[Path, Expected, list[str]], list[Verdict]]
"""Gives the verdicts of a file, and adds its errors to the list."""


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    added: int
    known: int
    """Verdicts that were in the table already, unchanged."""
    revised: int
    """Added verdicts that replace an earlier one by the same reader."""
    older: int = 0
    """Added verdicts that are older than the same reader's verdict in the table, which stays in force."""


def import_verdicts(
    paths: Sequence[Path],
    table_path: Path,
    *,
    expected: Expected,
    revise: bool = False,
    readers: Mapping[str, str] | None = None,
    read: Reader = read_verdicts_file,
) -> Imported:
    """Check verdicts files and append them to ``verdicts.csv``: all of them or, in case of an error, none.

    Verdicts that are in the table already are skipped, so a reader may hand in a longer version of an earlier file. A changed
    verdict is appended as a new row with ``revise``, and refused otherwise. Rows are never removed; the one with the latest
    time counts (``latest_verdicts``). ``readers`` maps names in the files to the names to record; a new name that may be a
    spelling of another is refused unless it is listed there. ``read`` reads another kind of file. Concurrent imports wait for
    each other.

    Raises Faults with all errors in all files, UserError where a file cannot be read or the table cannot be written.

    A table that is a link, for example to a shared drive, stays a link; its target is extended.
    """
    table_path = Path(table_path)
    if table_path.is_symlink() and not table_path.exists():
        raise UserError(f"{table_path}: is a broken link; restore its target, or remove the link")
    with folder_lock(table_path.resolve().parent):
        faults: list[str] = []
        given = [verdict for path in paths for verdict in read(Path(path), expected, faults)]
        return _import(given, table_path, expected, revise, readers or {}, faults)


def _import(
    found: Sequence[Verdict],
    table_path: Path,
    expected: Expected,
    revise: bool,
    readers: Mapping[str, str],
    faults: list[str],
) -> Imported:
    given = [replace(verdict, reviewer=readers.get(verdict.reviewer, verdict.reviewer)) for verdict in found]
    faults += [*_unnamed(given), *_repeated(given)]
    before = read_verdicts(table_path, run=expected.run, grades=expected.grades) if table_path.exists() else []
    faults += _alike(before, given, readers=readers)
    latest, held = latest_verdicts(before), set(before)
    new: list[Verdict] = []
    revised = older = 0
    for verdict in dict.fromkeys(given):
        earlier = latest.get((verdict.case, verdict.reviewer))
        if verdict in held:
            continue
        if earlier is not None:
            comes_later = _moment(verdict) >= _moment(earlier)
            revised, older = revised + comes_later, older + (not comes_later)
            if not revise:
                faults.append(
                    f"case {verdict.case}: reader {verdict.reviewer} gave another verdict at {earlier.time}; "
                    "import with --revise to let the later verdict count"
                )
        new.append(verdict)
    if faults:
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'error')}; nothing was imported")
    if new:
        _append(table_path, new)
    return Imported(added=len(new), known=len(set(given)) - len(new), revised=revised, older=older)


def _unnamed(given: Sequence[Verdict]) -> list[str]:
    """Errors for readers whom their viewer does not name, who would all count as one."""
    return [
        f"reader {name!r} is nobody's name: the viewer wrote none; keep the reports of each reader in a folder, and import "
        f"each with --reader {shlex.quote(f'{name}=NAME')}"
        for name in dict.fromkeys(verdict.reviewer for verdict in given)
        if is_unnamed(name)
    ]


def _alike(before: Sequence[Verdict], given: Sequence[Verdict], *, readers: Mapping[str, str]) -> list[str]:
    """Errors for new readers whose names may be spellings of a known name."""
    known = {verdict.reviewer for verdict in before} | {name for name, recorded in readers.items() if name == recorded}
    faults = []
    for first, *others in alike_readers(verdict.reviewer for verdict in (*before, *given)):
        for other in (name for name in others if name not in known):
            same, different = (shlex.quote(f"{other}={name}") for name in (first, other))
            faults.append(
                f"reader {other!r} may be {first!r}: if they are one person, add --reader {same}; if not, --reader {different}"
            )
    return faults


def read_verdicts(path: Path, *, run: str, grades: int) -> list[Verdict]:
    """All rows of ``verdicts.csv``, oldest first.

    The table may have been edited by hand, so its rows are checked like those of a verdicts file: they must be of the run
    ``run`` with ``grades`` (K) grades. They may be of any model, since readers may have seen earlier ones.

    Raises UserError where the table cannot be read, Faults with the errors in its rows.
    """
    table, faults = read_table(Path(path), COLUMNS)
    verdicts = []
    for row in table.to_dict("records"):
        texts = {name: str(row[name]) for name in COLUMNS}
        texts |= {name: plain_text(texts[name]) for name in _WRITTEN}
        wrong = _row_faults(texts, run, grades)
        faults += [f"{Path(path).name} line {row['line']}: {fault}" for fault in wrong]
        if not wrong:
            given = {name: texts.pop(name) for name in GRADES}
            numbers = {name: int(grade) if grade else None for name, grade in given.items()}
            verdicts.append(Verdict(**texts, **numbers))  # type: ignore[arg-type]
    if faults:
        hint = "fix these rows, or restore the table from a backup"
        raise Faults(shortened(faults), summary=f"{path}: {counted(len(faults), 'error')}; {hint}:")
    return verdicts


def _row_faults(texts: Mapping[str, str], run: str, grades: int) -> list[str]:
    """The errors in the fields of one row of the table."""
    faults = []
    if texts["run"] != run:
        faults.append(f"is of run {shown(texts['run'])}, not {run!r}; remove the row, or rename the run's folder back")
    known = ("", *map(str, range(grades)))
    faults += [
        f"{name} {shown(texts[name])} is not 0–{grades - 1} or empty" for name in GRADES if texts[name] not in known
    ]
    if texts["verdict"] not in ("", *VERDICTS):
        faults.append(f"verdict {shown(texts['verdict'])} is not one of {', '.join(VERDICTS)} or empty")
    if not is_time(texts["time"]):
        faults.append(f"time {shown(texts['time'])} is not like {TIME_LIKE}")
    return faults


def latest_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Verdict]:
    """The verdict that counts for each (case, reviewer): the row with the latest time, the last one among equal times."""
    latest: dict[tuple[str, str], Verdict] = {}
    for verdict in verdicts:
        key = verdict.case, verdict.reviewer
        if key not in latest or _moment(verdict) >= _moment(latest[key]):
            latest[key] = verdict
    return latest


def _moment(verdict: Verdict) -> datetime:
    return datetime.fromisoformat(verdict.time)


def _repeated(verdicts: Sequence[Verdict]) -> list[str]:
    """Errors for cases with two different verdicts by one reader in the files of this import."""
    seen: dict[tuple[str, str], Verdict] = {}
    faults = []
    for verdict in verdicts:
        first = seen.setdefault((verdict.case, verdict.reviewer), verdict)
        if first != verdict:
            faults.append(
                f"case {verdict.case}: reader {verdict.reviewer} has two different verdicts; keep one of them"
            )
    return faults


def _append(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Add rows at the end and keep the existing ones byte for byte; the table is replaced as a whole or not at all.

    Another program may have saved the table: rows follow its column order and separator, and leave other columns empty.
    """
    before = path.read_bytes().decode() if path.exists() else ""
    header = read_csv_rows(path, COLUMNS)[0] if before else COLUMNS
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, restval="", delimiter=separator_of(before), lineterminator="\n")
    if not before:
        writer.writeheader()
    elif not before.endswith("\n"):
        before += "\n"
    for verdict in verdicts:
        writer.writerow(asdict(verdict) | {name: spreadsheet_text(getattr(verdict, name)) for name in _WRITTEN})
    write_whole_text(path.resolve(), before + text.getvalue(), force=True)
