"""The image cache: images decoded once into memory-mapped arrays that all workers share."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from knee.errors import Faults, UserError, counted
from knee.images.geometry import Geometry, prepare
from knee.images.negatives import find_negatives
from knee.images.read import read_image, read_mask
from knee.images.slices import split_slice
from knee.io.checksums import block_checksums, remembered_digest
from knee.io.files import write_json
from knee.io.own_folders import mark_as_own
from knee.io.pool import map_in_order
from knee.io.shared_array import create_bytes, open_shared
from knee.io.tables import shortened
from knee.nn import processes

Bytes = npt.NDArray[np.uint8]
_log = logging.getLogger(__name__)

_VERSION = 2
"""Increased whenever a code change makes the same file give different pixels."""
_FEWEST_TEMPLATE_IMAGES = 16
_BLOCK = 64
"""Images that a process prepares before they are written (of several, by the first one); files in one piece of work."""
_HINT = "fix them, or leave out their rows with --skip-bad"
_SMALL = ("has_mask", "inverted", "template", "geometries")
_ARRAYS = tuple(f"{name}.npy" for name in ("images", "masks", *_SMALL))
_NAME = re.compile(r"\d+px-[0-9a-f]{8,}")


@dataclass(frozen=True)
class ImageCache:
    """N prepared images and masks of S × S pixels, memory-mapped (pickled as the files' names)."""

    folder: Path
    images: Bytes
    """(N, S, S) uint8."""
    masks: Bytes
    """(N, S, S) uint8 in {0, 1}; all zero if there is no mask."""
    has_mask: npt.NDArray[np.bool_]
    """(N,)."""
    inverted: npt.NDArray[np.bool_]
    """(N,): detected as a negative and inverted, in addition to the inversion that the file itself declares."""
    template: npt.NDArray[np.float32] | None
    """(32, 32): the mean image that ``knee.images.negatives`` compared with; None if negatives were not searched for."""
    geometries: npt.NDArray[np.int32]
    """(N, 7): the fields of each image's ``Geometry``."""

    def geometry(self, row: int) -> Geometry:
        """How the prepared pixels of image ``row`` map to the original ones."""
        return _geometry(self.geometries[row])

    def mean_std(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> tuple[float, float]:
        """Mean and standard deviation of all pixels of the given rows, grey values in [0, 1]."""
        if not len(rows):
            raise UserError("mean and standard deviation need at least one image; give at least one row")
        counts = np.zeros(256, np.int64)
        for start in range(0, len(rows), _BLOCK):
            counts += np.bincount(self.images[rows[start : start + _BLOCK]].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float((counts * levels).sum() / counts.sum())
        return mean, float(np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum()))


class _Item(NamedTuple):
    place: str
    path: str
    mask_path: str
    """Empty without a mask."""
    mirror: bool
    invert: bool

    @property
    def sources(self) -> list[tuple[str, int | None]]:
        """Files of the image and the mask, each with its slice number."""
        found = (split_slice(path) for path in (self.path, self.mask_path) if path)
        return [(str(file), index) for file, index in found]


class _Options(NamedTuple):
    size: int
    percentiles: tuple[float, float]
    search: bool
    """Whether to search for negatives."""


class _Prepared(NamedTuple):
    image: Bytes
    mask: Bytes | None
    geometry: Geometry


def holds_cache(folder: Path) -> bool:
    """Whether the folder contains a cache of images, of any size and data."""
    return folder.is_dir() and any(_NAME.fullmatch(path.name) and path.is_dir() for path in folder.iterdir())


def build_cache(
    paths: Sequence[Path | str],
    mask_paths: Sequence[Path | str | None],
    folder: str | Path,
    *,
    size: int,
    percentiles: tuple[float, float] = (0.5, 99.5),
    invert: str | Sequence[bool] = "auto",
    mirror: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    places: Sequence[str] | None = None,
    progress: bool = True,
) -> ImageCache:
    """Prepare all images and masks once; a cache with the same file contents and options is reused.

    Args:
        folder: contains one folder per cache, named by a hash of options and file contents.
        size: S.
        percentiles: as in ``prepare``.
        invert: 'auto' finds negatives by comparison with the mean image (from 16 images on), 'never' leaves all as
            their files declare them; a sequence of N booleans selects the images to invert.
        mirror: (N,), which images to flip horizontally; none by default.
        places: (N,), where each image is listed ('manifest.csv line 7: '), for error messages.

    Raises:
        Faults: every image or mask that cannot be used, with its path and reason.
    """
    if isinstance(invert, str) and invert not in ("auto", "never"):
        raise UserError(f"invert '{invert}' is unknown; write auto or never")
    if not len(paths):
        raise UserError("no images to prepare: the manifest has no rows")
    negative = [False] * len(paths) if isinstance(invert, str) else invert
    flipped = [False] * len(paths) if mirror is None else mirror
    named = [""] * len(paths) if places is None else places
    items = [
        _Item(place, str(path), str(mask_path or ""), bool(flip), bool(inverted))
        for place, path, mask_path, flip, inverted in zip(named, paths, mask_paths, flipped, negative, strict=True)
    ]
    options = _Options(size, percentiles, isinstance(invert, str) and invert == "auto")
    return _open_or_build(items, Path(folder).resolve(), options, progress=progress)


def _open_or_build(items: Sequence[_Item], parent: Path, options: _Options, *, progress: bool) -> ImageCache:
    sources: dict[str, Any] = {}

    def look() -> tuple[Path, ImageCache | None]:
        known = _known_sources(parent)
        sources.update(_read_sources(items, known))
        final = parent / _key(items, options, sources)
        cache = _open(final)
        if cache is not None and any(known.get(path) != source for path, source in sources.items()):
            with suppress(OSError):  # A cache owned by another user may be readable but not writable.
                write_json(final / "sources.json", sources)
        return final, cache

    # Several processes prepare their parts of the images; the first one reads checksums and writes.
    final, cache = processes.first_decides(look)
    if cache is None:
        prepared = _prepared(items, options, progress=progress)
        try:
            if processes.is_first():
                _build(items, final, options, sources, prepared)
            else:
                deque(prepared, maxlen=0)
        except OSError as error:
            raise UserError(
                f"{parent}: the cache cannot be written ({error.strerror}); choose another folder: "
                "--data.cache in training, data.cache in local/paths.yaml or config.yaml of an existing run"
            ) from error
        cache = processes.first_decides(_open, final)
    assert isinstance(cache, ImageCache), final
    return cache


def _prepared(items: Sequence[_Item], options: _Options, *, progress: bool) -> Iterator[_Prepared | str]:
    """Each image prepared, or why it cannot be, in order."""

    def attempt(item: _Item) -> _Prepared | str:
        try:
            return _prepare(item, options.size, options.percentiles)
        except UserError as error:
            return f"{item.place}{error}"

    hidden = None if progress and processes.is_first() else True
    blocks = (items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK))
    own = (list(map_in_order(attempt, block, description="", progress=False)) for block in processes.part_of(blocks))
    with tqdm(total=len(items), desc="preparing images", unit="image", disable=hidden) as bar:
        for block in processes.merged(own):
            bar.update(len(block))
            yield from block


def _known_sources(parent: Path) -> dict[str, Any]:
    """The digests of source files that the caches below ``parent`` recorded: entries of ``remembered_digest``, by path."""
    known: dict[str, Any] = {}
    for path in parent.glob("*/sources.json"):
        with suppress(OSError, ValueError, TypeError):
            known |= json.loads(path.read_text(encoding="utf-8"))
    return known


def _read_sources(items: Sequence[_Item], known: dict[str, Any]) -> dict[str, Any]:
    """An entry of ``remembered_digest`` for every source file, by its path. Raises Faults if one cannot be read."""
    files = list({file: None for item in items for file, _ in item.sources})

    def attempt(file: str) -> list[Any] | str:
        try:
            return remembered_digest(file, known)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    blocks = [files[start : start + _BLOCK] for start in range(0, len(files), _BLOCK)]
    read = map_in_order(lambda block: [attempt(file) for file in block], blocks, description="", progress=False)
    found = dict(zip(files, chain.from_iterable(read), strict=True))
    unread = {file for file, entry in found.items() if isinstance(entry, str)}
    if unread:
        faults = [f"{one.place}{file}: {found[file]}" for one in items for file, _ in one.sources if file in unread]
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'file')} cannot be read; {_HINT}:")
    return found


def _key(items: Sequence[_Item], options: _Options, sources: dict[str, Any]) -> str:
    """A name that depends on the options and on the content of every file, but not on the files' location."""
    digest = hashlib.sha256(json.dumps([_VERSION, *options, len(items)]).encode())
    for item in items:
        parts = [item.mirror, item.invert, *((sources[file][1], index) for file, index in item.sources)]
        digest.update(json.dumps(parts).encode() + b"\n")
    return f"{options.size}px-{digest.hexdigest()[:20]}"


def _open(folder: Path) -> ImageCache | None:
    """The finished cache in ``folder``; None if there is none, or if a checksum shows that it is damaged."""
    if not folder.exists():
        return None
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        damaged = [name for name in _ARRAYS if block_checksums(folder / name) != sums[name]]
        if damaged:
            raise ValueError(", ".join(damaged))
        small = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _SMALL}
        template = small.pop("template")
        return ImageCache(
            folder=folder,
            images=open_shared(folder / "images.npy"),
            masks=open_shared(folder / "masks.npy"),
            template=template if template.size else None,
            **small,
        )
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        _log.warning("%s: the image cache is damaged (%s) and will be rebuilt", folder, error)
        return None


def _build(
    items: Sequence[_Item], final: Path, options: _Options, sources: dict[str, Any], prepared: Iterable[_Prepared | str]
) -> None:
    """Write a cache under a temporary name and move it into place. If two commands do so, the first one's is kept."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{socket.gethostname()}.{os.getpid()}.", dir=final.parent))
    damaged = final.parent / f"{scratch.name}.damaged"
    try:
        _write_cache(items, scratch, options, prepared)
        if {path: digest for path, (_, digest) in _read_sources(items, sources).items()} != {
            path: digest for path, (_, digest) in sources.items()
        }:
            raise UserError("image files changed while they were read; start again when they are complete")
        write_json(scratch / "sources.json", sources)
        write_json(scratch / "checksums.json", {name: block_checksums(scratch / name) for name in _ARRAYS})
        if final.exists() and _open(final) is None:
            final.rename(damaged)
        try:
            scratch.rename(final)
        except OSError:
            if _open(final) is None:
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished caches of killed processes of this machine."""
    for path in folder.glob(f".{socket.gethostname()}.*.*"):
        owner = path.name.removeprefix(f".{socket.gethostname()}.").split(".")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _write_cache(items: Sequence[_Item], folder: Path, options: _Options, prepared: Iterable[_Prepared | str]) -> None:
    """Write all arrays of a cache, image by image, so that memory use does not grow with the number of images."""
    mark_as_own(folder)
    faults: list[str] = []
    has_mask = np.array([bool(item.mask_path) for item in items])
    geometries = np.zeros((len(items), 7), np.int32)
    shape = (len(items), options.size, options.size)
    images = create_bytes(folder / "images.npy", shape, rows=range(len(items)))
    masks = create_bytes(folder / "masks.npy", shape, rows=np.flatnonzero(has_mask).tolist())
    for row, got in enumerate(prepared):
        if isinstance(got, str):
            faults.append(got)
            continue
        images[row], geometries[row] = got.image, list(vars(got.geometry).values())
        if got.mask is not None:
            masks[row] = got.mask
    if faults:
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'image')} cannot be used; {_HINT}:")
    inverted, template = np.array([item.invert for item in items]), np.zeros(0, np.float32)
    if options.search and len(items) >= _FEWEST_TEMPLATE_IMAGES:
        template, inverted = find_negatives(lambda row: _geometry(geometries[row]).content(images[row]), len(items))
        for row in np.flatnonzero(inverted).tolist():
            images[row] = _prepare(items[row]._replace(invert=True), options.size, options.percentiles).image
    for array in (images, masks):
        array.flush()
    for name, small in zip(_SMALL, (has_mask, inverted, template, geometries), strict=True):
        np.save(folder / f"{name}.npy", small)


def _prepare(item: _Item, size: int, percentiles: tuple[float, float]) -> _Prepared:
    pixels = read_image(Path(item.path))
    image, geometry = prepare(pixels.values, size, percentiles=percentiles, invert=item.invert, mirror=item.mirror)
    mask = read_mask(Path(item.mask_path), of=pixels) if item.mask_path else None
    return _Prepared(image, None if mask is None else geometry.prepare_mask(mask), geometry)


def _geometry(numbers: npt.NDArray[np.int32]) -> Geometry:
    height, width, top, left, side, size, mirror = (int(number) for number in numbers)
    return Geometry(height, width, top, left, side, size, bool(mirror))
