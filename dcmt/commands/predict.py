"""``dcmt predict``: grade images that no manifest knows, one or a whole folder."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from dcmt.loaded import LoadedRun, load_run
from dcmt.prediction import ImageReader, grade_images, image_loader
from knee.errors import Faults, NotFinite, UserError
from knee.evaluation.pictures import case_pictures
from knee.images.original import Source
from knee.images.read import write_png
from knee.images.slices import is_file
from knee.intake.scan import IMAGE_SUFFIXES, image_files, printable
from knee.io.files import LONGEST_NAME, moved_into_place
from knee.io.own_folders import MARK, mark_as_own
from knee.io.tables import shortened

log = logging.getLogger(__name__)

_BATCH = 32
_CHUNK = 256
_DRAWN = ".drawn.txt"


def predict_command(options: argparse.Namespace) -> int:
    """Grade with the teacher (or the student): ``predictions.csv``, overlays, and ``rejected.csv`` for what is unreadable."""
    loaded = load_run(
        options.run,
        checkpoint=options.checkpoint,
        device=options.device,
        flip_tta=options.flip_tta,
        external_model=getattr(options, "external_model", False),
    )
    name = "student" if options.student else "teacher"
    if name not in loaded.networks:
        raise UserError(f"{options.run} has no {name}; leave out --student")
    paths = find_images(options.images)
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names the folder for predictions.csv and overlays")
    if out.exists() and any(out.iterdir()) and not options.force:
        raise UserError(f"{out} holds something; choose another --out, or overwrite by --force")
    earlier = _earlier(out)
    reader = ImageReader(loaded)
    with ExitStack() as undo:
        tables = _grade_all(loaded, name, reader, paths, options, earlier=earlier, undo=undo)
        if not tables and earlier:
            raise Faults(
                shortened([f"{path}: {reason}" for path, reason in reader.rejected]),
                summary=f"no image in {options.images} could be read; what {out} held before is still there",
            )
        if reader.rejected:
            _write_table(out / "rejected.csv", pd.DataFrame(reader.rejected, columns=["image", "reason"]))
        if tables:
            table = pd.concat(tables, ignore_index=True)
            _write_table(out / "predictions.csv", table)
    if reader.rejected:
        log.info(f"{len(reader.rejected)} of {len(paths)} files could not be read: {out / 'rejected.csv'}")
    if reader.mirrors and (unknown := reader.sides.count("")):
        log.info(
            f"note: the side of {unknown} of {len(reader.sides)} images is unknown (neither the file nor the end of its name "
            f"says L or R), so they are graded as they are; the network was trained with {reader.mirrors} knees mirrored"
        )
    if not tables:
        raise UserError(f"no image in {options.images} could be read; the reasons are in {out / 'rejected.csv'}")
    for row in table.head(10).to_dict("records"):
        probability = row[f"p_{row['predicted']}"]
        log.info(f"{row['image']}: {row['predicted']} {row['predicted_name']} (p {probability:.2f})")
    asked = name + (" by flip TTA" if loaded.flip_tta else "")
    log.info(f"{len(table)} images graded by the {asked}: {out / 'predictions.csv'}. Research use only.")
    return 0


def _grade_all(
    loaded: LoadedRun,
    name: str,
    reader: ImageReader,
    paths: Sequence[Path],
    options: argparse.Namespace,
    *,
    earlier: Sequence[Path],
    undo: ExitStack,
) -> list[pd.DataFrame]:
    """A table a chunk of readable images, their overlays written; ``undo`` gets what takes them back should an error follow."""
    root = options.images if options.images.is_dir() else options.images.parent
    tables: list[pd.DataFrame] = []
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
        for start in range(0, len(paths), _CHUNK):
            images, read = reader.read(paths[start : start + _CHUNK])
            bar.update(len(paths[start : start + _CHUNK]))
            if not read:
                continue
            if not tables:
                undo.push(partial(_take_back, options.out))
                _make_room(options.out, earlier, overlays=not options.no_overlays)
            files = [path.relative_to(root).as_posix() for path in read]
            try:
                table = grade_images(loaded, name, images, files)
            except NotFinite as error:
                raise NotFinite(error.rows, error.size, first=files[error.rows[0]]) from error
            table.insert(1, "side", reader.sides[-len(read) :])
            tables.append(table)
            if not options.no_overlays:
                _note_drawn(options.out, files)
                _write_overlays(loaded, name, images, files, reader.sources[-len(read) :], options.out)
    return tables


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with moved_into_place(path) as scratch:
        table.to_csv(scratch, index=False)


def _earlier(out: Path) -> list[Path]:
    """What an earlier ``dcmt predict`` wrote here, one that was killed too, and nothing else: it would pass for the new."""
    found = (*_overlays(out), out / "predictions.csv", out / "rejected.csv", out / "overlays" / _DRAWN)
    return [path for path in found if path.is_file()]


def _overlays(out: Path) -> list[Path]:
    """The overlays that the table or the note of what was drawn tells of, also those that are not there."""
    table = out / "predictions.csv"
    images: list[str] = []
    if table.exists():
        try:
            images = list(pd.read_csv(table, dtype=str, keep_default_na=False).get("image", []))
        except ValueError as error:
            raise UserError(
                f"{table} is no table of an earlier dcmt predict ({' '.join(str(error).split())}), so it does not tell which "
                "overlays are old; remove it, or choose another --out"
            ) from error
    overlays, drawn = (out / "overlays").resolve(), out / "overlays" / _DRAWN
    if drawn.exists():
        # A last name without its end of line was cut short, and nothing of it was drawn yet.
        images += drawn.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")[:-1]
    found = [overlay_path(out, image) for image in dict.fromkeys(images)]
    # A table from elsewhere may name anything.
    return [path for path in found if path.resolve().is_relative_to(overlays)]


def _make_room(out: Path, earlier: Sequence[Path], *, overlays: bool) -> None:
    """Before the first result is written."""
    out.mkdir(parents=True, exist_ok=True)
    for path in earlier:
        path.unlink()
    if overlays:
        mark_as_own(out / "overlays")


def _take_back(out: Path, kind: type[BaseException] | None, *_: object) -> None:
    """After an error, a full disk say, remove what this call wrote: half of the results would pass for all.

    After Ctrl-C or a kill they stay, with the note of what was drawn, and the next call removes them.
    """
    if kind is None or not issubclass(kind, Exception):
        return
    overlays = out / "overlays"
    folders = {folder for path in _overlays(out) for folder in path.parents if folder.is_relative_to(overlays)}
    for path in _earlier(out):
        path.unlink(missing_ok=True)
    for folder in sorted(folders - {overlays}, reverse=True):
        with suppress(OSError):  # not there, or with something of somebody else in it
            folder.rmdir()
    if overlays.is_dir() and {path.name for path in overlays.iterdir()} <= {MARK}:
        (overlays / MARK).unlink(missing_ok=True)
        with suppress(OSError):  # a link
            overlays.rmdir()


def _note_drawn(out: Path, files: Sequence[str]) -> None:
    """Tell a later call which overlays are ours, should this one be killed before its table is there."""
    with (out / "overlays" / _DRAWN).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{name}\n" for name in files)


def overlay_path(out: Path, image: str) -> Path:
    """Where the overlay of an image lies. The whole name is kept: knee.png and knee.dcm in one folder are two cases.

    A name too long for that ends with a hash of itself instead.
    """
    path = out / "overlays" / f"{image}.png"
    name = os.fsencode(path.name)
    if len(name) <= LONGEST_NAME:
        return path
    return path.with_name(f"{path.name[:32]}-{hashlib.sha256(name).hexdigest()[:16]}.png")


def _write_overlays(
    loaded: LoadedRun, name: str, images: NDArray[np.uint8], files: list[str], sources: Sequence[Source], out: Path
) -> None:
    for shown in case_pictures(
        {name: loaded.networks[name]},
        image_loader(images),
        names=loaded.grade_set.names,
        captions=dict(enumerate(files)),
        sources=sources.__getitem__,
        device=loaded.device,
        precision=loaded.precision,
        attention=loaded.config.attention,
    ):
        write_png(overlay_path(out, files[shown.row]), shown.picture, force=True)


def find_images(path: Path) -> list[Path]:
    """The image itself, or all images of a folder. Raises UserError where there is none, or links lead out of the folder."""
    if path.is_dir():
        found = [path / name for name in image_files(path)]
        if not found:
            raise UserError(f"{path} holds no image; known are {', '.join(IMAGE_SUFFIXES)}")
        return found
    if (printed := printable(str(path))) != str(path):
        raise UserError(f"{printed} is no UTF-8 text, which no table can hold; rename the file")
    if not is_file(path):
        raise UserError(f"{path} is neither an image nor a folder")
    return [path]
