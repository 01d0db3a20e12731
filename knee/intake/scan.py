"""Find the images in a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from knee.errors import Faults, counted
from knee.images.dicom import is_dicom
from knee.intake.headers import Header, read_header
from knee.io.own_folders import MARK, is_own, mark_as_own
from knee.io.pool import map_in_order

_LOG = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".npy", ".dcm", ".nii", ".nii.gz")
_DOCUMENTS = (
    *(".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".yaml", ".yml", ".toml", ".xls", ".xlsx", ".ods", ".pdf"),
    *(".html", ".xml", ".doc", ".docx", ".log", ".py", ".sh"),
)


class Scan(NamedTuple):
    """The contents of a folder."""

    images: list[str]
    """As ``image_files``."""
    headers: dict[str, Header | None]
    """The header of each image; None if it is not DICOM."""
    left_out: dict[str, list[str]]
    """DICOM files that are not images of a knee (segmentations, reports, captures of results), by kind."""
    passed_over: Counter[str]
    """How many files are neither images nor documents, by suffix."""

    def notes(self) -> list[str]:
        """Sentences that say which files are not used."""
        return [*_left_out_note(self.left_out), *_passed_note(self.passed_over)]


def image_files(folder: str | Path) -> list[str]:
    """Paths of the images below ``folder``, sorted, with '/' between their parts.

    Hidden files are left out, and so are DICOM objects that are not images (a warning lists them) and folders that this
    toolkit wrote (``knee.io.own_folders``). A file without an image suffix is included if its content is DICOM.

    A scan reads only files inside the folder. A link that leads out of the folder might include other people's files, so it
    is refused. A link to an image that is also found under its own name is left out, because the same image under two
    names might end up in both training and test.

    Raises:
        Faults: folders that cannot be read; names that are not UTF-8; links that lead out of the folder, to nowhere or in a
            circle.
    """
    return scan_images(Path(folder)).images


def scan_images(folder: Path) -> Scan:
    """The images of a folder as ``image_files``, with their headers."""
    found = scan(folder)
    for note in _left_out_note(found.left_out):
        _LOG.warning("%s", note)
    return found


def scan(folder: Path) -> Scan:
    """The images of a folder, and the files that are not used. Raises Faults as ``image_files``."""
    names, passed_over = _walk(folder)
    headers: dict[str, Header | None] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    read = map_in_order(read_header, [folder / name for name in names], description="reading headers")
    for name, header in zip(names, read, strict=True):
        if header and header.not_an_image:
            left_out[header.not_an_image].append(name)
        else:
            headers[name] = header
    return Scan(list(headers), headers, dict(left_out), passed_over)


def _walk(folder: Path) -> tuple[list[str], Counter[str]]:
    """The files of a folder that have an image suffix or are DICOM, sorted, and the number of other files by suffix."""
    found: dict[str, Path] = {}
    passed_over: Counter[str] = Counter()
    links: dict[str, Path] = {}
    faults, misnamed = [], []
    unread: list[OSError] = []
    for place, inner, names in os.walk(folder, onerror=unread.append):
        here = Path(place)
        if here != folder and is_own(names, inner):
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in [*names, *(name for name in inner if (here / name).is_symlink())]:
            path = here / name
            shown = path.relative_to(folder).as_posix()
            if name.startswith(".") or (name in names and not _is_image(path, passed_over)):
                continue
            if (printed := printable(shown)) != shown:
                misnamed.append(printed)
            elif not path.is_symlink():
                if path.is_file():
                    found[shown] = path.resolve()
            elif reason := _refused_link(path, folder):
                faults.append(f"{shown}: {reason}")
            elif path.is_file():
                links[shown] = path.resolve()
    _refuse(folder, unread, misnamed, faults)
    known = set(found.values())
    return sorted([*found, *(shown for shown, target in links.items() if target not in known)]), passed_over


def _refuse(folder: Path, unread: list[OSError], misnamed: list[str], links: list[str]) -> None:
    if unread:
        raise Faults(
            sorted(f"{error.filename}: {error.strerror}" for error in unread),
            summary=f"{folder}: {counted(len(unread), 'folder')} cannot be read, so patients may be missing; make "
            "them readable, or move them away:",
        )
    if misnamed:
        raise Faults(
            sorted(misnamed),
            summary=f"{folder}: {counted(len(misnamed), 'file')} whose names are not UTF-8 text, which a table cannot contain; "
            "rename them:",
        )
    if links:
        raise Faults(
            sorted(links),
            summary=f"{folder}: {len(links)} links lead out of the folder; put the files themselves there, give the folder "
            "that contains them, or write the manifest by hand (it may name any path):",
        )


def claim_folder(folder: Path) -> list[str]:
    """Mark a folder as written by this toolkit before images are written into it; returns a note if it was not marked.

    A folder that already contains images is not marked, because scans would then skip those images, too. Raises OSError if
    the mark cannot be written.
    """
    if folder.is_dir() and not (folder / MARK).exists() and _holds_images(folder):
        return [
            f"note: {folder} already contained images, so it is not marked as made by dcmt; dcmt manifest or dcmt predict on a "
            "parent folder would treat the files written there as images of knees; choose an empty --out"
        ]
    mark_as_own(folder)
    return []


def _holds_images(folder: Path) -> bool:
    try:
        return bool(_walk(folder)[0])
    except Faults:
        return True  # by a link that leads out


def printable(name: str) -> str:
    r"""A name with bytes that are not UTF-8 written as escapes; any other name unchanged.

    >>> printable("M\udcfcller"), printable("Müller")
    ('M\\udcfcller', 'Müller')
    """
    return name.encode(errors="backslashreplace").decode()


def _is_image(path: Path, passed_over: Counter[str]) -> bool:
    """Whether a file counts as an image; if not, and it is not a document, it is counted in ``passed_over``."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith(IMAGE_SUFFIXES):
        return True
    if suffix in _DOCUMENTS or name == "dicomdir" or not path.is_file():
        return False
    try:
        taken = not path.is_symlink() and is_dicom(path)
    except OSError:
        taken = False
    if not taken:
        passed_over[suffix if suffix[1:].isalpha() else ""] += 1
    return taken


def _refused_link(path: Path, folder: Path) -> str | None:
    """Why a link is not followed; None if it stays in the folder."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "is a link to nowhere"
    return None if target.is_relative_to(folder.resolve()) else f"is a link to {target}"


def stem(file: str) -> str:
    """The path without the suffix of an image (``.nii.gz`` is one).

    >>> stem("2/a.b.nii.gz"), stem("1.2/IM0001")
    ('2/a.b', '1.2/IM0001')
    """
    suffix = next((end for end in sorted(IMAGE_SUFFIXES, key=len)[::-1] if file.lower().endswith(end)), "")
    return file[: len(file) - len(suffix)]


def _left_out_note(left_out: Mapping[str, list[str]]) -> list[str]:
    if not left_out:
        return []
    kinds = ", ".join(f"{kind}: {len(files)} ('{files[0]}' first)" for kind, files in sorted(left_out.items()))
    total = sum(map(len, left_out.values()))
    return [f"{counted(total, 'DICOM file')} left out, not images of a knee ({kinds})."]


def _passed_note(passed_over: Counter[str]) -> list[str]:
    """A sentence on the number of files passed over; none if there are none."""
    if not passed_over:
        return []
    kinds = ", ".join(f"{suffix or 'without a suffix'}: {count}" for suffix, count in sorted(passed_over.items()))
    return [
        f"{counted(passed_over.total(), 'file')} passed over, neither DICOM nor with an image suffix ({kinds}); image "
        f"suffixes are {', '.join(IMAGE_SUFFIXES)}."
    ]
