"""The cache: whole or not there, rebuilt when anything changes, shared between processes."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import knee.data.cache
import knee.io.shared_array
from knee.data.cache import build_cache
from knee.data.manifest import read_manifest, write_manifest
from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.images.read import prepare, read_pixels, write_png
from knee.intake.folders import manifest_from_folder

SIZE = 24
PROJECT = Path(__file__).parents[3]


def radiograph(rng):
    grid = np.mgrid[:40, :30] / 40 - 0.4
    return np.clip(np.exp(-(grid[1] ** 2) / 0.05) * 150 + rng.normal(40, 8, (40, 30)), 0, 255).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths, masks = [], []
    for i in range(20):
        image = radiograph(rng)
        write_png(tmp_path / f"i{i}.png", 255 - image if i in (3, 11) else image)
        write_png(tmp_path / f"m{i}.png", (image > 120).astype(np.uint8))
        paths.append(tmp_path / f"i{i}.png")
        masks.append(tmp_path / f"m{i}.png" if i % 3 == 0 else None)
    return paths, masks


def build(files, folder, **options):
    return build_cache(*files, folder, **{"size": SIZE, "progress": False, **options})


def test_rows_are_what_prepare_gives(files, tmp_path):
    mirror = np.arange(20) % 2 == 0
    cache = build(files, tmp_path / "c", invert="never", mirror=mirror)
    assert cache.images.shape == cache.masks.shape == (20, SIZE, SIZE)
    for row, path in enumerate(files[0]):
        image, geometry = prepare(read_pixels(path).values, SIZE, mirror=bool(mirror[row]))
        np.testing.assert_array_equal(cache.images[row], image)
        assert cache.geometry(row) == geometry
        mask = files[1][row]
        expected = np.zeros((SIZE, SIZE)) if mask is None else geometry.prepare_mask(read_pixels(mask).values)
        np.testing.assert_array_equal(cache.masks[row], expected)
    assert cache.has_mask.tolist() == [i % 3 == 0 for i in range(20)]
    assert cache.template is None
    assert not cache.inverted.any()


def test_negatives_are_found_or_given(files, tmp_path):
    found = build(files, tmp_path / "c")
    assert np.flatnonzero(found.inverted).tolist() == [3, 11]
    assert found.template.shape == (32, 32)
    given = build(files, tmp_path / "c", invert=[i in (3, 11) for i in range(20)])
    np.testing.assert_array_equal(found.images, given.images)
    plain = build(files, tmp_path / "c", invert="never")
    assert (np.flatnonzero((plain.images != found.images).any((1, 2))) == [3, 11]).all()
    few = build((files[0][:5], files[1][:5]), tmp_path / "c")
    assert few.template is None
    with pytest.raises(UserError, match="write auto or never"):
        build(files, tmp_path / "c", invert="yes")


def test_used_again_until_something_changes(files, tmp_path):
    first = build(files, tmp_path / "c")
    stamp = (first.folder / "images.npy").stat().st_mtime_ns
    again = build(files, tmp_path / "c")
    assert again.folder == first.folder
    assert (again.folder / "images.npy").stat().st_mtime_ns == stamp
    folders = {first.folder}
    for options in ({"size": 25}, {"percentiles": (1, 99)}, {"invert": "never"}, {"mirror": [True] + [False] * 19}):
        folders.add(build(files, tmp_path / "c", **options).folder)
    write_png(files[0][4], 255 - read_pixels(files[0][4]).values.astype(np.uint8), force=True)
    changed = build(files, tmp_path / "c")
    folders.add(changed.folder)
    assert len(folders) == 6
    assert changed.inverted[4]


def test_bad_files_are_all_named_and_leave_nothing(files, tmp_path):
    files[0][2].write_bytes(b"no")
    write_png(files[1][6], np.ones((3, 3), np.uint8), force=True)
    with pytest.raises(Faults, match="2 images cannot be used") as caught:
        build(files, tmp_path / "c")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [str(files[0][2]), str(files[1][6])]
    assert "has 3 × 3 pixels, its image 30 × 40" in str(caught.value)
    assert list((tmp_path / "c").iterdir()) == []
    files[0][5].unlink()
    with pytest.raises(Faults, match=r"1 file cannot be read.*\n.*i5\.png"):
        build(files, tmp_path / "c")


def test_pickled_as_a_name_and_parts_as_values(files, tmp_path):
    cache = build(files, tmp_path / "c")
    data = pickle.dumps(cache.images)
    assert len(data) < 400
    copy = pickle.loads(data)
    assert copy.filename == cache.images.filename
    np.testing.assert_array_equal(copy, cache.images)
    part = pickle.loads(pickle.dumps(cache.images[2:4]))
    np.testing.assert_array_equal(part, cache.images[2:4])
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_mean_and_deviation(files, tmp_path):
    cache = build(files, tmp_path / "c")
    rows = np.array([1, 5, 7])
    mean, deviation = cache.mean_std(rows)
    values = cache.images[rows].astype(np.float64) / 255
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert deviation == pytest.approx(values.std(), rel=1e-9)
    with pytest.raises(UserError, match="need at least one image"):
        cache.mean_std([])


SLOW_BUILD = """
import sys, time, pathlib, knee.data.cache
prepare = knee.data.cache._prepare
def slow(item, size, percentiles):
    time.sleep(0.5)
    return prepare(item, size, percentiles)
knee.data.cache._prepare = slow
paths = [pathlib.Path(path) for path in sys.argv[2:]]
knee.data.cache.build_cache(paths, [None] * len(paths), sys.argv[1], size=24, progress=False)
"""


def test_a_kill_leaves_no_half_cache(files, tmp_path):
    """A process is killed while it builds; the next build is whole and removes what was left."""
    folder = tmp_path / "c"
    child = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(folder), *map(str, files[0])], cwd=PROJECT)
    until = time.monotonic() + 60
    while not list(folder.glob(".*/images.npy")):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert len(list(folder.iterdir())) == 1
    cache = build((files[0], [None] * 20), folder)
    assert cache.images.shape[0] == 20
    assert list(folder.iterdir()) == [cache.folder]


def test_two_builds_at_once(files, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(build(files, tmp_path / "c"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({cache.folder for cache in results}) == 1
    assert len(results) == 3
    np.testing.assert_array_equal(results[0].images, results[2].images)
    assert list((tmp_path / "c").iterdir()) == [results[0].folder]


def test_damaged_cache_is_built_again(files, tmp_path):
    cache = build(files, tmp_path / "c")
    before = np.array(cache.images)
    with (cache.folder / "images.npy").open("r+b") as stream:
        stream.truncate(500)
    np.testing.assert_array_equal(build(files, tmp_path / "c").images, before)
    assert len(list((tmp_path / "c").iterdir())) == 1


@pytest.mark.parametrize("array", ["images", "masks", "has_mask", "inverted", "template", "geometries", "pictures"])
def test_a_changed_byte_anywhere_in_the_cache_is_noticed(array, files, tmp_path):
    """Headers stay whole: a checksum of each block shows that the pixels are not those that were written."""
    cache = build(files, tmp_path / "c")
    before = {name: np.array(getattr(cache, name)) for name in ("images", "masks", "has_mask", "geometries")}
    path = cache.folder / f"{array}.npy"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 3).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        again = build(files, tmp_path / "c")
        assert path.read_bytes() == whole
        for name, values in before.items():
            np.testing.assert_array_equal(getattr(again, name), values)
    assert list((tmp_path / "c").iterdir()) == [cache.folder]


@pytest.mark.parametrize("age_seconds", [0, 3600])
@pytest.mark.parametrize("what", ["image", "mask"])
def test_other_content_of_the_same_size_and_date_is_noticed(what, age_seconds, tmp_path):
    rng = np.random.default_rng(1)
    drawn = {"image": rng.integers(0, 200, (2, 30, 30)), "mask": rng.integers(0, 2, (2, 30, 30))}
    paths = {name: tmp_path / f"{name}.npy" for name in drawn}
    for name, (first, _) in drawn.items():
        np.save(paths[name], first)
        date = paths[name].stat().st_mtime_ns - age_seconds * 10**9
        os.utime(paths[name], ns=(date, date))
    files = [paths["image"]], [paths["mask"]]
    first = build(files, tmp_path / "c")
    before = paths[what].stat()
    np.save(paths[what], drawn[what][1])
    os.utime(paths[what], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = paths[what].stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = build(files, tmp_path / "c")
    assert again.folder != first.folder
    assert (getattr(again, f"{what}s") != getattr(first, f"{what}s")).any()


def test_files_with_other_dates_or_in_another_folder_need_no_new_cache(files, tmp_path):
    first = build(files, tmp_path / "c")
    for path in files[0]:
        os.utime(path, (1, 1))
    assert build(files, tmp_path / "c").folder == first.folder
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in {*files[0], *filter(None, files[1])}:
        path.rename(moved / path.name)
    there = [moved / path.name for path in files[0]], [path and moved / path.name for path in files[1]]
    assert build(there, tmp_path / "c").folder == first.folder


def test_files_that_change_while_they_are_read_make_no_cache(files, tmp_path, monkeypatch):
    prepare_one = knee.data.cache._prepare

    def changing(item, *options):
        got = prepare_one(item, *options)
        if item.path == str(files[0][19]):
            write_png(files[0][2], np.eye(40, 30, dtype=np.uint8), force=True)
        return got

    monkeypatch.setattr(knee.data.cache, "_prepare", changing)
    with pytest.raises(UserError, match="changed while they were read"):
        build(files, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_shards_of_bounded_size_hold_the_same_images(files, tmp_path, monkeypatch):
    whole = build(files, tmp_path / "whole")
    monkeypatch.setattr(knee.io.shared_array, "SHARD_BYTES", 6 * SIZE * SIZE)
    parts = build(files, tmp_path / "parts")
    names = {f"{array}{number}.npy" for array in ("images", "masks") for number in ("", ".1", ".2", ".3")}
    assert {path.name for path in parts.folder.iterdir()} >= names
    assert parts.folder.name == whole.folder.name
    for array in ("images", "masks"):
        np.testing.assert_array_equal(getattr(parts, array)[:], getattr(whole, array))
    assert (parts.pictures == whole.pictures).all()
    assert parts.pixels_sha256 == whole.pixels_sha256
    for rows in ([19], [1, 5, 7, 18]):
        assert parts.mean_std(rows) == whole.mean_std(rows)
    path = parts.folder / "images.2.npy"
    content = path.read_bytes()
    for damage in (lambda: path.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), path.unlink):
        damage()
        again = build(files, tmp_path / "parts")
        np.testing.assert_array_equal(again.images[:], whole.images)
        assert path.read_bytes() == content


def test_a_cache_of_an_earlier_version_is_completed(files, tmp_path):
    """It has neither digests of pictures nor sources that numpy reads; its pixels are not made again."""
    cache = build(files, tmp_path / "c")
    sums = json.loads((cache.folder / "checksums.json").read_text())
    before = {name: sums.pop(name) for name in ("pictures.npy", "pixels")}
    (cache.folder / "checksums.json").write_text(json.dumps(sums))
    for name in ("pictures.npy", "sources.npy"):
        (cache.folder / name).unlink()
    stamp = (cache.folder / "images.npy").stat().st_mtime_ns
    again = build(files, tmp_path / "c")
    assert (again.folder / "images.npy").stat().st_mtime_ns == stamp
    assert (again.pictures == cache.pictures).all()
    assert again.pixels_sha256 == cache.pixels_sha256 == before["pixels"]
    assert json.loads((cache.folder / "checksums.json").read_text()) == sums | before
    assert (cache.folder / "sources.npy").is_file()


def test_full_disk_is_reported(files, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knee.data.cache.np, "save", full)
    with pytest.raises(
        UserError, match=r"\(No space left on device\); choose another folder: --data\.cache in training, "
    ):
        build(files, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="no images to prepare"):
        build(([], []), tmp_path / "c")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif("KNEE_KL224" not in os.environ, reason="KNEE_KL224 is not set")
def test_published_radiographs(tmp_path):
    table = manifest_from_folder(os.environ["KNEE_KL224"], relative_to=tmp_path)
    write_manifest(tmp_path / "manifest.csv", table)
    manifest = read_manifest(tmp_path / "manifest.csv", load_grade_set("kl"))
    rows = range(len(manifest.table))
    paths: list[Path] = [manifest.image_path(row) for row in rows]
    mirror = (manifest.table["side"] == "L").to_numpy()
    cache = build_cache(paths, [None] * len(paths), tmp_path / "c", size=112, mirror=mirror)
    assert len(rows) == 8260
    assert manifest.table["patient"].nunique() == 4130
    assert cache.inverted.sum() == 110
    assert manifest.table["patient"][cache.inverted].nunique() == 55
