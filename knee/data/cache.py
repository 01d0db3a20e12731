"""The image cache: images decoded once into memory-mapped arrays that all workers share."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from knee.data.sources import HINT, Item, Items, Sources, cache_key, read_sources
from knee.errors import Faults, UserError, counted
from knee.images.geometry import Geometry, prepare
from knee.images.negatives import find_negatives
from knee.images.read import read_image, read_mask
from knee.io.checksums import (
    block_checksums,
    digests_in,
    save_digests,
    saved_digests,
)
from knee.io.files import moved_into_place, write_json
from knee.io.own_folders import mark_as_own, remove_unfinished, unfinished_folder
from knee.io.pool import map_in_order
from knee.io.shared_array import create_shards, facts_of, open_shards, pixels_digest
from knee.io.tables import shortened
from knee.nn import processes

Bytes = npt.NDArray[np.uint8]
_log = logging.getLogger(__name__)

_VERSION = 2
"""Increased whenever a code change makes the same file give different pixels."""
_FEWEST_TEMPLATE_IMAGES = 16
_SMALL = ("has_mask", "inverted", "template", "geometries")
_ARRAYS = tuple(f"{name}.npy" for name in ("images", "masks", *_SMALL))
_PICTURES = "pictures.npy"
_SOURCES = "sources.npy"
_SUMS = "checksums.json"
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
    pictures: npt.NDArray[Any]
    """(N,): ``knee.io.shared_array.FACTS`` of each image."""
    pixels_sha256: str
    """SHA-256 of all images and masks, shortened to 16 hex digits; it identifies the data."""

    def geometry(self, row: int) -> Geometry:
        """How the prepared pixels of image ``row`` map to the original ones."""
        return _geometry(self.geometries[row])

    def mean_std(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> tuple[float, float]:
        """Mean and standard deviation of all pixels of the given rows, grey values in [0, 1]."""
        if not len(rows):
            raise UserError("mean and standard deviation need at least one image; give at least one row")
        found = self.pictures[np.asarray(rows)]
        count = len(rows) * int(np.prod(self.images.shape[1:]))
        total, squares = (int(found[name].sum()) for name in ("sum", "squares"))
        return total / (255 * count), math.sqrt(count * squares - total**2) / (255 * count)


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
    place: Callable[[int], str] | None = None,
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
        place: where an image is listed, by its number ('manifest.csv line 7: '), for error messages.

    Raises:
        Faults: every image or mask that cannot be used, with its path and reason.
    """
    if isinstance(invert, str) and invert not in ("auto", "never"):
        raise UserError(f"invert '{invert}' is unknown; write auto or never")
    if not len(paths):
        raise UserError("no images to prepare: the manifest has no rows")
    none = np.zeros(len(paths), np.bool_)
    items = Items(
        place or (lambda row: ""),
        [str(path) for path in paths],
        [str(path or "") for path in mask_paths],
        none if mirror is None else np.asarray(mirror, np.bool_),
        none if isinstance(invert, str) else np.asarray(invert, np.bool_),
    )
    if len({len(column) for column in items[1:]}) > 1:
        raise ValueError("paths, mask_paths, mirror and invert must be of one length")
    options = _Options(size, percentiles, isinstance(invert, str) and invert == "auto")
    return _open_or_build(items, Path(folder).resolve(), options, progress=progress)


def _open_or_build(items: Items, parent: Path, options: _Options, *, progress: bool) -> ImageCache:
    sources: list[Sources] = []

    def look() -> tuple[Path, ImageCache | None]:
        known = saved_digests(sorted(parent.glob(f"*/{_SOURCES}")))
        sources.append(read_sources(items, known))
        final = parent / f"{options.size}px-{cache_key(items, sources[0], [_VERSION, *options])}"
        cache = _open(final)
        if cache is not None and (digests_in(known, sources[0].digests) != sources[0].digests["digest"]).any():
            with suppress(OSError):  # A cache owned by another user may be readable but not writable.
                save_digests(final / _SOURCES, sources[0].digests)
        return final, cache

    # Several processes prepare their parts of the images; the first one reads checksums and writes.
    final, cache = processes.first_decides(look)
    if cache is None:
        prepared = _prepared(items, options, progress=progress)
        try:
            if processes.is_first():
                _build(items, final, options, sources[0], prepared)
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


def _prepared(items: Items, options: _Options, *, progress: bool) -> Iterator[_Prepared | str]:
    """Each image prepared, or why it cannot be, in order."""

    def attempt(item: Item) -> _Prepared | str:
        try:
            return _prepare(item, options.size, options.percentiles)
        except UserError as error:
            return f"{item.place}{error}"

    hidden = None if progress and processes.is_first() else True
    own = (
        list(map_in_order(attempt, block, description="", progress=False))
        for block in processes.part_of(items.blocks())
    )
    with tqdm(total=items.number, desc="preparing images", unit="image", disable=hidden) as bar:
        for block in processes.merged(own):
            bar.update(len(block))
            yield from block


def _open(folder: Path) -> ImageCache | None:
    """The finished cache in ``folder``; None if there is none, or if a checksum shows that it is damaged."""
    if not folder.exists():
        return None
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        damaged = [name for name in sums if name.endswith(".npy") and block_checksums(folder / name) != sums[name]]
        if damaged or not sums.keys() >= set(_ARRAYS):
            raise ValueError(", ".join(damaged))
        small = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _SMALL}
        template = small.pop("template")
        images, masks = open_shards(folder / "images.npy"), open_shards(folder / "masks.npy")
        if _PICTURES in sums:
            pictures, digest = np.load(folder / _PICTURES, allow_pickle=False), str(sums["pixels"])
        else:  # a cache made by an earlier version
            pictures, digest = facts_of(images), pixels_digest(images, masks)
            with suppress(OSError):
                _save_facts(folder, sums, pictures, digest)
        return ImageCache(
            folder=folder,
            images=images,
            masks=masks,
            template=template if template.size else None,
            pictures=pictures,
            pixels_sha256=digest,
            **small,
        )
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        _log.warning("%s: the image cache is damaged (%s) and will be rebuilt", folder, error)
        return None


def _save_facts(folder: Path, sums: dict[str, Any], pictures: npt.NDArray[Any], digest: str) -> None:
    """Remember what needs all pixels, with its checksum. Raises OSError."""
    with moved_into_place(folder / _PICTURES) as scratch, scratch.open("wb") as file:
        np.save(file, pictures)
    write_json(folder / _SUMS, {**sums, _PICTURES: block_checksums(folder / _PICTURES), "pixels": digest})


def _build(items: Items, final: Path, options: _Options, sources: Sources, prepared: Iterable[_Prepared | str]) -> None:
    """Write a cache under a temporary name and move it into place. If two commands do so, the first one's is kept."""
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(final.parent)
    scratch = unfinished_folder(final.parent)
    damaged = final.parent / f"{scratch.name}.damaged"
    try:
        _write_cache(items, scratch, options, prepared)
        if (read_sources(items, sources.digests).digests["digest"] != sources.digests["digest"]).any():
            raise UserError("image files changed while they were read; start again when they are complete")
        save_digests(scratch / _SOURCES, sources.digests)
        arrays = [open_shards(scratch / name) for name in _ARRAYS[:2]]
        sums = {path.name: block_checksums(path) for path in scratch.glob("*.npy") if path.name != _SOURCES}
        _save_facts(scratch, sums, facts_of(arrays[0]), pixels_digest(*arrays))
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


def _write_cache(items: Items, folder: Path, options: _Options, prepared: Iterable[_Prepared | str]) -> None:
    """Write all arrays of a cache, image by image, so that memory use does not grow with the number of images."""
    mark_as_own(folder)
    faults: list[str] = []
    has_mask = np.array([bool(path) for path in items.mask_paths])
    geometries = np.zeros((items.number, 7), np.int32)
    shape = (items.number, options.size, options.size)
    images = create_shards(folder / "images.npy", shape, rows=range(items.number))
    masks = create_shards(folder / "masks.npy", shape, rows=np.flatnonzero(has_mask).tolist())
    for row, got in enumerate(prepared):
        if isinstance(got, str):
            faults.append(got)
            continue
        images[row], geometries[row] = got.image, list(vars(got.geometry).values())
        if got.mask is not None:
            masks[row] = got.mask
    if faults:
        raise Faults(shortened(faults), summary=f"{counted(len(faults), 'image')} cannot be used; {HINT}:")
    inverted, template = items.invert, np.zeros(0, np.float32)
    if options.search and items.number >= _FEWEST_TEMPLATE_IMAGES:
        template, inverted = find_negatives(lambda row: _geometry(geometries[row]).content(images[row]), items.number)
        for row in np.flatnonzero(inverted).tolist():
            images[row] = _prepare(items.item(row)._replace(invert=True), options.size, options.percentiles).image
    for array in (images, masks):
        array.flush()
    for name, small in zip(_SMALL, (has_mask, inverted, template, geometries), strict=True):
        np.save(folder / f"{name}.npy", small)


def _prepare(item: Item, size: int, percentiles: tuple[float, float]) -> _Prepared:
    pixels = read_image(Path(item.path))
    image, geometry = prepare(pixels.values, size, percentiles=percentiles, invert=item.invert, mirror=item.mirror)
    mask = read_mask(Path(item.mask_path), of=pixels) if item.mask_path else None
    return _Prepared(image, None if mask is None else geometry.prepare_mask(mask), geometry)


def _geometry(numbers: npt.NDArray[np.int32]) -> Geometry:
    height, width, top, left, side, size, mirror = (int(number) for number in numbers)
    return Geometry(height, width, top, left, side, size, bool(mirror))
