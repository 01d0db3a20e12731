"""``dcmt predict``: grade an image or a folder of images without a manifest."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from dcmt.commands.new_patients.graded_files import (
    EXPORTED,
    KEPT_PX,
    chosen_formats,
    find_slices,
    root_of,
    write_by_knee,
    write_table,
)
from dcmt.onnx.reader import Rejected
from dcmt.trained.loaded import LoadedRun, load_run
from dcmt.trained.prediction import ImageReader, grade_images, image_loader, marked, reference_note
from knee.errors import Faults, NotFinite, UserError, counted
from knee.evaluation.pictures import case_pictures
from knee.images.original import Source
from knee.images.read import write_png
from knee.io.files import LONGEST_NAME
from knee.io.own_folders import MARK, mark_as_own
from knee.io.tables import plain_text, shortened
from knee.nn import processes

log = logging.getLogger(__name__)

_BATCH = 32
_CHUNK = 64
"""Images at a time, and those that one of several processes grades before all exchange what they found."""
_DRAWN = ".drawn.txt"
_BY_KNEE = "predictions_by_knee.csv"


def predict_command(options: argparse.Namespace) -> int:
    """Grade with the teacher (or student): ``predictions.csv``, overlays, and ``rejected.csv`` for files without a grade.

    If there are volumes, ``predictions_by_knee.csv`` has one row for each.
    """
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
    series, root = find_slices(options.images, options.slices), root_of(options.images)
    paths = list(series)
    out: Path = options.out
    earlier: list[Path] = processes.first_decides(_room_in, out, force=options.force)
    if note := reference_note(loaded):
        log.warning(note)
    kept = KEPT_PX if set(EXPORTED) & set(chosen_formats(options.format)) and processes.is_first() else 0
    reader = ImageReader(loaded, grade_anyway=options.grade_anyway, kept_px=kept)
    with ExitStack() as undo:
        tables, rejected = _grade_all(loaded, name, reader, paths, options, earlier=earlier, undo=undo)
        if not processes.is_first():
            return 0
        if not tables and earlier:
            raise Faults(
                shortened([f"{path}: {reason}" for path, reason in rejected]),
                summary=f"no image in {options.images} could be graded; {out} was not changed",
            )
        if rejected:
            write_table(out / "rejected.csv", pd.DataFrame(rejected, columns=["image", "reason"]))
        if tables:
            table = pd.concat(tables, ignore_index=True)
            write_table(out / "predictions.csv", table)
            _export(loaded, name, reader, table, series, options)
            write_by_knee(out / _BY_KNEE, table, series, root, loaded.grade_set, severest=loaded.pools_severest)
    if rejected:
        log.info(f"{len(rejected)} of {len(paths)} files could not be graded: {out / 'rejected.csv'}")
    if not tables:
        raise UserError(f"no image in {options.images} could be graded; see the reasons in {out / 'rejected.csv'}")
    if reader.mirrors and (unknown := int(table["side"].eq("").sum())):
        log.info(
            f"note: the side of {unknown} of {len(table)} images is unknown (neither in the file nor as L or R at "
            f"the end of its name), so they are graded unflipped; the network was trained with {reader.mirrors} knees flipped"
        )
    _report(table, anyway=options.grade_anyway)
    grader = name + (" with flip TTA" if loaded.flip_tta else "")
    graded = table["predicted"].notna().sum()
    log.info(f"{graded} images graded by the {grader}: {out / 'predictions.csv'}. Research use only.")
    return 0


def _export(
    loaded: LoadedRun,
    name: str,
    reader: ImageReader,
    table: pd.DataFrame,
    series: Mapping[Path, str],
    options: argparse.Namespace,
) -> None:
    if set(EXPORTED) & set(chosen_formats(options.format)):
        from dcmt.commands.new_patients.export import export_graded, model_of_run  # slow, and only this needs it

        export_graded(model_of_run(loaded, name, reader, options), table, series, root_of(options.images), options)


def _room_in(out: Path, *, force: bool) -> list[Path]:
    """The files of an earlier call in the folder for the results. Raises UserError if it cannot be used."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for predictions.csv and overlays with --out")
    if out.exists() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty; choose another --out, or overwrite it with --force")
    return _earlier(out)


def _report(table: pd.DataFrame, *, anyway: bool) -> None:
    for row in table.head(10).to_dict("records"):
        log.info(_result(row))
    unlike = table["unlike_training"].sum()
    if unlike:
        hint = "graded because of --grade-anyway" if anyway else "not graded; --grade-anyway grades them, too"
        log.info(f"{counted(int(unlike), 'image')} unlike the training images (column reason): {hint}")


def _result(row: Mapping[Any, Any]) -> str:
    """One line about one image."""
    if pd.isna(row["predicted"]):
        return f"{row['image']}: not graded: {row['reason']}"
    mark = f"; {row['reason']}" if row["reason"] else ""
    return (
        f"{row['image']}: {row['predicted']} {row['predicted_name']} (p {row['p_' + str(row['predicted'])]:.2f}{mark})"
    )


class _Graded(NamedTuple):
    """Of some files: the predictions (None if no file is readable), and the files that cannot be graded."""

    table: pd.DataFrame | None
    rejected: list[Rejected]


def _grade_all(
    loaded: LoadedRun,
    name: str,
    reader: ImageReader,
    paths: Sequence[Path],
    options: argparse.Namespace,
    *,
    earlier: Sequence[Path],
    undo: ExitStack,
) -> tuple[list[pd.DataFrame], list[Rejected]]:
    """Grade all readable images and write overlays; tables, and files without a grade. ``undo`` removes files after an error.

    Several processes share the chunks, and each draws the overlays of its own once the first one has made room.
    """
    tables: list[pd.DataFrame] = []
    rejected: list[Rejected] = []
    chunks = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
    own = _graded(loaded, name, reader, processes.part_of(chunks), options)
    first = processes.is_first()
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None if first else True) as bar:
        for chunk in processes.merged(own):
            rejected += chunk.rejected
            bar.update(len(chunk.rejected))
            if chunk.table is None:
                continue
            bar.update(len(chunk.table))
            if not tables:
                if first:
                    undo.push(partial(_take_back, options.out))
                    _make_room(options.out, earlier, overlays=not options.no_overlays)
                processes.wait_for_first()
            tables.append(chunk.table)
    return tables, rejected


def _graded(
    loaded: LoadedRun, name: str, reader: ImageReader, chunks: Iterable[Sequence[Path]], options: argparse.Namespace
) -> Iterator[_Graded]:
    """Each chunk graded, while the next one is read; its overlays are written after it was yielded."""
    root = root_of(options.images)
    for chunk in reader.chunks(chunks):
        if not chunk.files:
            yield _Graded(None, chunk.rejected)
            continue
        files = [file.path.relative_to(root).as_posix() for file in chunk.files]
        try:
            table = grade_images(loaded, name, chunk.images, files)
        except NotFinite as error:
            raise NotFinite(error.rows, error.size, first=files[error.rows[0]]) from error
        table.insert(1, "side", chunk.sides)
        table = marked(table, reader.marks(chunk), grade_anyway=options.grade_anyway)
        yield _Graded(table, chunk.rejected)
        graded = np.flatnonzero(table["predicted"].notna())
        if not options.no_overlays and len(graded):
            shown = [files[number] for number in graded]
            sources = [chunk.sources[number] for number in graded]
            _note_drawn(options.out, shown)
            _write_overlays(loaded, name, chunk.images[graded], shown, sources, options.out)


def _earlier(out: Path) -> list[Path]:
    """Only the files of an earlier ``dcmt predict`` (also a killed one), which must not be mistaken for new results."""
    tables = ("predictions.csv", _BY_KNEE, "rejected.csv")
    found = (*_overlays(out), *(out / name for name in tables), out / "overlays" / _DRAWN)
    return [path for path in found if path.is_file()]


def _overlays(out: Path) -> list[Path]:
    """Paths of the overlays listed in the table or in the list of drawn files, including missing ones."""
    table = out / "predictions.csv"
    images: list[str] = []
    if table.exists():
        try:
            images = [
                plain_text(name) for name in pd.read_csv(table, dtype=str, keep_default_na=False).get("image", [])
            ]
        except ValueError as error:
            raise UserError(
                f"{table} is not a table of an earlier dcmt predict ({' '.join(str(error).split())}), so the old overlays are "
                "unknown; remove it, or choose another --out"
            ) from error
    overlays, drawn = (out / "overlays").resolve(), out / "overlays" / _DRAWN
    if drawn.exists():
        # A last name without a line end is incomplete, and its overlay was not drawn yet.
        images += drawn.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")[:-1]
    found = [overlay_path(out, image) for image in dict.fromkeys(images)]
    # A foreign table may name any path.
    return [path for path in found if path.resolve().is_relative_to(overlays)]


def _make_room(out: Path, earlier: Sequence[Path], *, overlays: bool) -> None:
    """Remove earlier results, before the first new one is written."""
    out.mkdir(parents=True, exist_ok=True)
    for path in earlier:
        path.unlink()
    if overlays:
        mark_as_own(out / "overlays")


def _take_back(out: Path, kind: type[BaseException] | None, *_: object) -> None:
    """After an error, such as a full disk, remove this call's files, which could be mistaken for complete results.

    After Ctrl-C or a kill the files stay, with the list of drawn overlays, and the next call removes them.
    """
    if kind is None or not issubclass(kind, Exception):
        return
    overlays = out / "overlays"
    folders = {folder for path in _overlays(out) for folder in path.parents if folder.is_relative_to(overlays)}
    for path in _earlier(out):
        path.unlink(missing_ok=True)
    for folder in sorted(folders - {overlays}, reverse=True):
        with suppress(OSError):  # missing, or contains other files
            folder.rmdir()
    if overlays.is_dir() and {path.name for path in overlays.iterdir()} <= {MARK}:
        (overlays / MARK).unlink(missing_ok=True)
        with suppress(OSError):  # a link
            overlays.rmdir()


def _note_drawn(out: Path, files: Sequence[str]) -> None:
    """List overlays before they are drawn, so that a later call can remove them if this one is killed."""
    with (out / "overlays" / _DRAWN).open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{name}\n" for name in files)


def overlay_path(out: Path, image: str) -> Path:
    """The path of an image's overlay. It has the whole file name, since knee.png and knee.dcm in one folder are two cases.

    A name that is too long is shortened and ends with its hash.
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
        grade_set=loaded.grade_set,
        captions=dict(enumerate(files)),
        sources=sources.__getitem__,
        device=loaded.device,
        precision=loaded.precision,
        attention=loaded.config.attention,
    ):
        write_png(overlay_path(out, files[shown.row]), shown.picture, force=True)
