"""Images decoded once into file-backed arrays that all workers share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from knee.errors import Faults, UserError
from knee.images.geometry import Geometry, prepare
from knee.images.negatives import looks_inverted, mean_thumbnail, thumbnail
from knee.images.read import read_image, read_mask
from knee.images.slices import split_slice
from knee.io.own_folders import mark_as_own
from knee.io.pool import map_in_order
from knee.io.shared_array import open_shared
from knee.io.tables import shortened

Bytes = npt.NDArray[np.uint8]

_VERSION = 1
_MOST_TEMPLATE_IMAGES = 2048
_FEWEST_TEMPLATE_IMAGES = 16
_WAY_OUT = "mend them, or go on without their rows by --skip-bad"


@dataclass(frozen=True)
class ImageCache:
    """N prepared images and masks of S × S pixels, mapped from files (pickled as their names)."""

    folder: Path
    images: Bytes
    """(N, S, S) uint8."""
    masks: Bytes
    """(N, S, S) uint8 in {0, 1}; all zero where there is no mask."""
    has_mask: npt.NDArray[np.bool_]
    """(N,)."""
    inverted: npt.NDArray[np.bool_]
    """(N,): turned from a negative into a positive, beyond what its file said."""
    template: npt.NDArray[np.float32] | None
    """(32, 32): what ``knee.images.negatives`` compared with; None where negatives were not looked for."""
    geometries: npt.NDArray[np.int32]
    """(N, 7): the fields of each image's ``Geometry``."""

    def geometry(self, row: int) -> Geometry:
        """The way from prepared to original pixels of image ``row``."""
        return _geometry(self.geometries[row])

    def mean_std(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> tuple[float, float]:
        """Mean and standard deviation of all pixels of the given rows, grey values in [0, 1]."""
        if not len(rows):
            raise UserError("mean and deviation of no image at all; give at least one row")
        counts = np.zeros(256, np.int64)
        for row in rows:
            counts += np.bincount(self.images[row].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float((counts * levels).sum() / counts.sum())
        return mean, float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


class _Item(NamedTuple):
    place: str
    path: Path
    mask_path: Path | None
    mirror: bool
    invert: bool


class _Prepared(NamedTuple):
    image: Bytes
    mask: Bytes | None
    geometry: Geometry


def build_cache(
    paths: Sequence[Path],
    mask_paths: Sequence[Path | None],
    folder: str | Path,
    *,
    size: int,
    percentiles: tuple[float, float] = (0.5, 99.5),
    invert: str | Sequence[bool] = "auto",
    mirror: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    places: Sequence[str] | None = None,
    progress: bool = True,
) -> ImageCache:
    """Prepare all images and masks once; what was built before from the same files and options is used again.

    Args:
        folder: where caches lie; each has a folder of its own in it, named by options, file names, sizes and dates.
        size: S.
        percentiles: as in ``prepare``.
        invert: 'auto' finds negatives by comparison with the mean image (from 16 images on), 'never' leaves all as
            their files say, a sequence of N booleans says which to invert.
        mirror: (N,), which to mirror left to right; none by default.
        places: (N,), where each image is named, 'manifest.csv line 7: ', for the messages.

    Raises:
        Faults: every image or mask that cannot be used, with its path and reason.
    """
    search = isinstance(invert, str) and invert == "auto"
    if isinstance(invert, str) and invert not in ("auto", "never"):
        raise UserError(f"invert '{invert}' is unknown; write auto or never")
    given = [False] * len(paths) if isinstance(invert, str) else [bool(flag) for flag in invert]
    mirrored = [False] * len(paths) if mirror is None else [bool(flag) for flag in mirror]
    told = [""] * len(paths) if places is None else places
    items = [
        _Item(place, Path(path), mask_path, flip, negative)
        for place, path, mask_path, flip, negative in zip(told, paths, mask_paths, mirrored, given, strict=True)
    ]
    if not items:
        raise UserError("no images to prepare: the manifest has no rows")
    final = Path(folder).resolve() / _key(items, size, percentiles, search)
    cache = _open(final)
    if cache is None:
        try:
            _build(items, final, size, percentiles, search=search, progress=progress)
        except OSError as error:
            raise UserError(
                f"{final.parent}: the cache cannot be written ({error.strerror}); choose another folder: "
                "--data.cache in training, data.cache in local/paths.yaml or config.yaml of a run that is there"
            ) from error
        cache = _open(final)
    assert cache is not None, final
    return cache


def _key(items: Sequence[_Item], size: int, percentiles: tuple[float, float], search: bool) -> str:
    """A name that changes with the options and with any file's name, size or date."""
    digest = hashlib.sha256(json.dumps([_VERSION, size, list(percentiles), search, len(items)]).encode())
    faults = []
    for item in items:
        parts: list[Any] = [item.mirror, item.invert]
        for path in (item.path, item.mask_path):
            try:
                status = None if path is None else split_slice(path)[0].stat()
            except OSError as error:
                faults.append(f"{item.place}{path}: cannot be read ({error.strerror})")
                continue
            parts += [str(path), None if status is None else [status.st_size, status.st_mtime_ns]]
        digest.update(json.dumps(parts).encode() + b"\n")
    if faults:
        raise Faults(shortened(faults), summary=f"{len(faults)} files cannot be read; {_WAY_OUT}:")
    return f"{size}px-{digest.hexdigest()[:20]}"


def _open(folder: Path) -> ImageCache | None:
    """The finished cache in ``folder``; None where there is none, or a damaged one."""
    try:
        template = np.load(folder / "template.npy", allow_pickle=False)
        return ImageCache(
            folder=folder,
            images=open_shared(folder / "images.npy"),
            masks=open_shared(folder / "masks.npy"),
            has_mask=np.load(folder / "has_mask.npy", allow_pickle=False),
            inverted=np.load(folder / "inverted.npy", allow_pickle=False),
            template=template if template.size else None,
            geometries=np.load(folder / "geometries.npy", allow_pickle=False),
        )
    except (OSError, ValueError, EOFError):
        return None


def _build(
    items: Sequence[_Item],
    final: Path,
    size: int,
    percentiles: tuple[float, float],
    *,
    search: bool,
    progress: bool,
) -> None:
    """Write a cache aside and move it into place. Two processes may do so at once: the first one's stays."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final.parent)
    aside = Path(tempfile.mkdtemp(prefix=f".{socket.gethostname()}.{os.getpid()}.", dir=final.parent))
    try:
        _write_cache(items, aside, size, percentiles, search=search, progress=progress)
        if final.exists() and _open(final) is None:
            final.rename(aside / "damaged")
            (aside / "damaged").rename(final.parent / f"{aside.name}.damaged")
        try:
            aside.rename(final)
        except OSError:
            if _open(final) is None:
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(final.parent / f"{aside.name}.damaged", ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left half-built."""
    for path in folder.glob(f".{socket.gethostname()}.*.*"):
        owner = path.name.removeprefix(f".{socket.gethostname()}.").split(".")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _write_cache(
    items: Sequence[_Item],
    folder: Path,
    size: int,
    percentiles: tuple[float, float],
    *,
    search: bool,
    progress: bool,
) -> None:
    """Write all files of a cache: images and masks one by one, so that memory does not grow with their number."""

    def attempt(item: _Item) -> _Prepared | str:
        try:
            return _prepare(item, size, percentiles)
        except UserError as error:
            return f"{item.place}{error}"

    mark_as_own(folder)
    faults: list[str] = []
    has_mask = np.zeros(len(items), np.bool_)
    geometries = np.zeros((len(items), 7), np.int32)
    # Written, not mapped: a full disk is then an error that can be told, not a signal that kills.
    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        start = max(_start_array(stream, len(items), size) for stream in (images, masks))
        for row, got in enumerate(map_in_order(attempt, items, description="preparing images", progress=progress)):
            if isinstance(got, str):
                faults.append(got)
                continue
            images.write(got.image.tobytes())
            geometries[row] = list(vars(got.geometry).values())
            if got.mask is not None:
                has_mask[row] = True
                masks.seek(start + row * size * size)
                masks.write(got.mask.tobytes())
        if faults:
            raise Faults(shortened(faults), summary=f"{len(faults)} images cannot be used; {_WAY_OUT}:")
        masks.truncate(start + len(items) * size * size)
    np.save(folder / "has_mask.npy", has_mask)
    np.save(folder / "geometries.npy", geometries)
    _write_negatives(items, folder, size, percentiles, search=search)
    for path in folder.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _write_negatives(
    items: Sequence[_Item], folder: Path, size: int, percentiles: tuple[float, float], *, search: bool
) -> None:
    """Find the negatives if asked to, and write them anew as positives."""
    inverted = np.array([item.invert for item in items])
    template = np.zeros(0, np.float32)
    if search and len(items) >= _FEWEST_TEMPLATE_IMAGES:
        images = open_shared(folder / "images.npy")
        geometries = np.load(folder / "geometries.npy", allow_pickle=False)
        template, inverted = _find_negatives(images, [_geometry(numbers) for numbers in geometries])
        with (folder / "images.npy").open("r+b") as stream:
            for row in np.flatnonzero(inverted).tolist():
                stream.seek(images.offset + row * size * size)
                stream.write(_prepare(items[row]._replace(invert=True), size, percentiles).image.tobytes())
    np.save(folder / "inverted.npy", inverted)
    np.save(folder / "template.npy", template)


def _start_array(stream: IO[bytes], count: int, size: int) -> int:
    """Write the .npy header of a (count, size, size) uint8 array; returns where its values start."""
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)})
    return stream.tell()


def _prepare(item: _Item, size: int, percentiles: tuple[float, float]) -> _Prepared:
    values = read_image(item.path).values
    image, geometry = prepare(values, size, percentiles=percentiles, invert=item.invert, mirror=item.mirror)
    if item.mask_path is None:
        return _Prepared(image, None, geometry)
    mask = read_mask(item.mask_path)
    if mask.shape != values.shape:
        sizes = [f"{array.shape[1]} × {array.shape[0]}" for array in (mask, values)]
        raise UserError(f"{item.mask_path}: has {sizes[0]} pixels, its image {sizes[1]}; draw the mask on the image")
    return _Prepared(image, geometry.prepare_mask(mask), geometry)


def _find_negatives(
    images: Bytes, geometries: Sequence[Geometry]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The template made of evenly spaced images, and which of all images are negatives of it; padding does not count."""
    step = -(-len(images) // _MOST_TEMPLATE_IMAGES)
    shown = [geometry.content(image) for geometry, image in zip(geometries, images, strict=True)]
    template = mean_thumbnail(thumbnail(image) for image in shown[::step])
    return template, np.array([looks_inverted(image, template) for image in shown])


def _geometry(numbers: npt.NDArray[np.int32]) -> Geometry:
    height, width, top, left, side, size, mirror = (int(number) for number in numbers)
    return Geometry(height, width, top, left, side, size, bool(mirror))
