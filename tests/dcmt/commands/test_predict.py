"""Grading images that no manifest knows: sides, what an earlier call left, slices of volumes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dcmt.cli import main
from dcmt.commands.new_patients.graded_files import find_slices
from dcmt.commands.predict import overlay_path, predict_command
from dcmt.trained.loaded import load_run
from dcmt.trained.prediction import ImageReader
from knee.engine.run import RunFolder
from knee.errors import NotFinite, UserError
from knee.evaluation.predictions import Predictions, predict
from knee.images.read import prepare
from knee.io.console import show_messages


def picture(path: Path, *, seed: int = 0) -> np.ndarray:
    """A grey ramp with noise, darker on the left, and its file."""
    values = np.tile(np.linspace(40, 200, 48), (48, 1)) + np.random.default_rng(seed).normal(0, 9, (48, 48))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), values.clip(0, 255).astype(np.uint8))
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def grade(run: RunFolder, images: Path, out: Path, **changes: object) -> list[str]:
    options = {"run": run.path, "images": images, "out": out, "checkpoint": "best", "device": "cpu"}
    # The pictures are ramps, unlike the training images of any run.
    options |= {"student": False, "no_overlays": False, "force": False, "flip_tta": False, "grade_anyway": True}
    options |= {"slices": None, "format": "csv,png", "keep_identity": False}
    show_messages()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert predict_command(argparse.Namespace(**{**options, **changes})) == 0
    return printed.getvalue().splitlines()


def test_a_knee_is_mirrored_by_the_side_that_its_name_ends_with(trained_run: RunFolder, tmp_path: Path) -> None:
    loaded = load_run(trained_run.path, checkpoint="best", device="cpu")
    data = dataclasses.replace(loaded.config.data, mirror_side="L")
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
    names = ["007_left.png", "007R.png", "knee.png"]
    pixels = [picture(tmp_path / name) for name in names]
    reader = ImageReader(loaded)
    chunk = reader.read([tmp_path / name for name in names])
    images = chunk.images
    assert [file.path.name for file in chunk.files] == names
    assert chunk.sides == ["L", "R", ""]
    for image, values, mirror in zip(images, pixels, (True, False, False), strict=True):
        expected, _ = prepare(values, data.image_size, percentiles=data.percentiles, mirror=mirror)
        np.testing.assert_array_equal(image, expected)
    assert not np.array_equal(images[0], images[1])


def test_unknown_sides_are_told_where_they_count(trained_run: RunFolder, tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "in" / "knee.png")
    picture(tmp_path / "in" / "007_left.png")
    assert not [line for line in grade(trained_run, tmp_path / "in", tmp_path / "out") if "the side of" in line]
    started = ImageReader.__init__

    def mirroring(self: ImageReader, loaded: object, **given: object) -> None:
        started(self, loaded, **given)  # type: ignore[arg-type]
        self.mirrors = "L"

    monkeypatch.setattr(ImageReader, "__init__", mirroring)
    said = grade(trained_run, tmp_path / "in", tmp_path / "out", force=True)
    assert [line for line in said if "the side of 1 of 2 images is unknown" in line]
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    assert dict(zip(table["image"], table["side"], strict=True)) == {"007_left.png": "L", "knee.png": ""}


def test_force_removes_what_the_earlier_call_wrote_and_nothing_else(trained_run: RunFolder, tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "empty.png").touch()
    picture(tmp_path / "two" / "b.png", seed=1)
    out = tmp_path / "out"
    grade(trained_run, tmp_path / "one", out)
    assert (out / "rejected.csv").exists()
    (out / "overlays" / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="--force"):
        grade(trained_run, tmp_path / "two", out)
    grade(trained_run, tmp_path / "two", out, force=True)
    assert {path.name for path in (out / "overlays").glob("*.png")} == {"b.png.png", "mine.png"}
    assert not (out / "rejected.csv").exists()
    assert pd.read_csv(out / "predictions.csv")["image"].tolist() == ["b.png"]


def test_overlays_of_a_call_that_was_killed_go_with_force(
    trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "two" / "b.png", seed=1)
    out = tmp_path / "out"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dcmt.commands.new_patients.graded_files.moved_into_place", killed)
        grade(trained_run, tmp_path / "one", out)
    assert not (out / "predictions.csv").exists()
    assert (out / "overlays" / "a.png.png").exists()
    grade(trained_run, tmp_path / "two", out, force=True)
    assert [path.name for path in (out / "overlays").glob("*.png")] == ["b.png.png"]


def test_what_was_there_stays_where_nothing_can_be_read(trained_run: RunFolder, tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "empty.png").touch()
    out = tmp_path / "out"
    grade(trained_run, tmp_path / "one", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"(?s)no image in .*two could be graded; .*out was not changed.*empty\.png"):
        grade(trained_run, tmp_path / "two", out, force=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_table_from_elsewhere_removes_nothing_outside(trained_run: RunFolder, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    for path in (tmp_path / "mine.png", tmp_path / "out" / "x.png"):
        picture(path)
    table = f"image,side\n{tmp_path / 'mine'},\n../../mine,\n../x,\n"
    (tmp_path / "out" / "predictions.csv").write_text(table, encoding="utf-8")
    grade(trained_run, tmp_path / "in", tmp_path / "out", force=True)
    assert (tmp_path / "mine.png").exists()
    assert (tmp_path / "out" / "x.png").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00image", b'image,side\n"a.png', b"image,side\na,b,c\nd,e,f,g\n"])
def test_table_that_cannot_be_read_is_told_and_kept(content: bytes, trained_run: RunFolder, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_bytes(content)
    with pytest.raises(
        UserError, match=r"predictions\.csv is not a table of an earlier dcmt predict .*; remove it, or"
    ):
        grade(trained_run, tmp_path / "in", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == content


def test_predictions_are_whole_or_not_there(trained_run: RunFolder, tmp_path: Path, monkeypatch) -> None:
    def fill_the_disk(table: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("image,si")
        raise OSError(28, "No space left on device")

    picture(tmp_path / "in" / "a.png")
    monkeypatch.setattr(pd.DataFrame, "to_csv", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        grade(trained_run, tmp_path / "in", tmp_path / "out", no_overlays=True)
    assert list((tmp_path / "out").iterdir()) == []


def fill_the_disk_at(part: str, patch: pytest.MonkeyPatch) -> None:
    """A file whose name has this part is half written when the disk is full."""

    def until_full(write: Callable[..., object], target: int) -> Callable[..., object]:
        def written(*arguments: object, **options: object) -> object:
            path = Path(arguments[target])  # type: ignore[arg-type]
            if part not in path.name:
                return write(*arguments, **options)
            with path.open("ab") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device")

        return written

    patch.setattr(Path, "write_text", until_full(Path.write_text, 0))
    patch.setattr(Path, "write_bytes", until_full(Path.write_bytes, 0))
    patch.setattr(pd.DataFrame, "to_csv", until_full(pd.DataFrame.to_csv, 1))
    if part == ".drawn.txt":  # written in another way
        patch.setattr("dcmt.commands.predict._note_drawn", lambda out, _: (out / "overlays" / part).write_text(""))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "part", ["MADE_BY_DCMT", ".drawn.txt", "a.png.png", "c.png.png", "rejected.csv", "predictions.csv"]
)
def test_a_full_disk_leaves_no_part_of_the_results(
    part: str, own: bool, trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file does not fit: what somebody else put there stays, and with room the same call goes through."""
    for name in ("a.png", "b.png", "more/c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "empty.png").touch()
    out = tmp_path / "out"
    if own:
        picture(out / "overlays" / "half.png")
    before = contents(out)
    with monkeypatch.context() as patch, pytest.raises((OSError, UserError), match="No space left"):
        fill_the_disk_at(part, patch)
        grade(trained_run, tmp_path / "in", out, force=own)
    assert {path: data for path, data in contents(out).items() if path.name != "MADE_BY_DCMT.txt"} == before
    assert own or not list(out.rglob("*"))
    grade(trained_run, tmp_path / "in", out, force=own)
    assert len(list((out / "overlays").rglob("*.png"))) == 3 + own


def test_a_name_of_the_note_that_a_kill_cut_short_removes_nothing(trained_run: RunFolder, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    for name in ("earlier.png", "mine.png"):
        picture(tmp_path / "out" / "overlays" / name)
    (tmp_path / "out" / "overlays" / ".drawn.txt").write_text("earlier\nmine")
    grade(trained_run, tmp_path / "in", tmp_path / "out", force=True)
    assert {path.name for path in (tmp_path / "out" / "overlays").glob("*.png")} == {"a.png.png", "mine.png"}


def test_own_overlays_and_caches_are_not_graded(trained_run: RunFolder, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "knees"
    folder.mkdir()
    names = sorted(path.name for path in (phantom.parent / "images").iterdir())[:3]
    for name in names:
        shutil.copy(phantom.parent / "images" / name, folder / name)
    shutil.copytree(phantom.parent / "cache", folder / "cache")
    arguments = ["predict", str(trained_run.path), str(folder), "--device", "cpu", "--out"]
    for number in range(2):
        assert main([*arguments, str(folder / f"graded{number}")]) == 0
        assert pd.read_csv(folder / f"graded{number}" / "predictions.csv")["image"].tolist() == names
        assert len(list((folder / f"graded{number}").rglob("*.png"))) == 3
    # The folder of the images may be that of the predictions, too: it keeps its images.
    assert main([*arguments, str(folder), "--force"]) == 0
    assert main([*arguments, str(tmp_path / "last")]) == 0
    assert pd.read_csv(tmp_path / "last" / "predictions.csv")["image"].tolist() == names


def test_a_flip_tta_grades_an_image_and_its_mirror_image_alike(trained_run: RunFolder, tmp_path: Path) -> None:
    values = picture(tmp_path / "in" / "a.png")
    cv2.imwrite(str(tmp_path / "in" / "b.png"), values[:, ::-1])
    shares = [
        f"p_{grade}" for grade in range(load_run(trained_run.path, checkpoint="best", device="cpu").grade_set.count)
    ]
    said = grade(trained_run, tmp_path / "in", tmp_path / "pair", flip_tta=True)
    assert "by the teacher with flip TTA" in said[-1]
    grade(trained_run, tmp_path / "in", tmp_path / "alone")
    pair, alone = (
        pd.read_csv(tmp_path / out / "predictions.csv").set_index("image")[shares].to_numpy()
        for out in ("pair", "alone")
    )
    np.testing.assert_allclose(pair[0], pair[1], atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(pair[0], alone.mean(0), atol=1e-5)


def test_an_answer_that_is_not_finite_is_told_by_the_images_name(
    trained_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []

    def second_of_the_second_chunk(*given: object, **named: object) -> Predictions:
        served.append(1)
        if len(served) == 2:
            raise NotFinite(np.array([1]), 2)
        return predict(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("dcmt.trained.prediction.predict", second_of_the_second_chunk)
    monkeypatch.setattr("dcmt.commands.predict._CHUNK", 2)
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / "in" / f"{name}.png")
    with pytest.raises(UserError, match=r"not finite for 1 of 2 images \(first: d\.png\); .*--checkpoint"):
        grade(trained_run, tmp_path / "in", tmp_path / "out", no_overlays=True)


def test_names_as_long_as_file_systems_allow_are_graded(trained_run: RunFolder, tmp_path: Path) -> None:
    """The overlay's name is the image's with .png behind it, which is too long here: a hash stands for the rest."""
    names = ["뼈" * 83 + ".png", "a" * 251 + ".png"]
    for seed, name in enumerate(names):
        picture(tmp_path / "short.png", seed=seed)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "short.png").rename(tmp_path / "in" / name)
    for force in (False, True):
        grade(trained_run, tmp_path / "in", tmp_path / "out", force=force)
        table = pd.read_csv(tmp_path / "out" / "predictions.csv")
        assert sorted(table["image"]) == sorted(names)
        overlays = list((tmp_path / "out" / "overlays").glob("*.png"))
        assert len(overlays) == 2
        assert {path.name for path in overlays} == {overlay_path(tmp_path / "out", name).name for name in names}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_one_image_whose_name_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / os.fsdecode(b"b\xfcd.png")
    (tmp_path / "a.png").rename(path)
    with pytest.raises(UserError, match=r"b\\udcfcd\.png is not valid UTF-8") as caught:
        find_slices(path, None)
    str(caught.value).encode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_an_image_whose_name_holds_a_line_break_is_listed_and_the_rest_is_graded(
    trained_run: RunFolder, tmp_path: Path
) -> None:
    names = ["a\nb.png", "c\rd.png", "e\x1b[2Jf.png", "g\u2028h.png"]
    for seed, name in enumerate(names):
        picture(tmp_path / "in" / "odd.png", seed=seed)
        (tmp_path / "in" / "odd.png").rename(tmp_path / "in" / name)
    picture(tmp_path / "in" / "plain.png")
    picture(tmp_path / "in" / "tab\tand space.png")
    said = grade(trained_run, tmp_path / "in", tmp_path / "out")
    assert any("4 of 6 files could not be graded" in line for line in said)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["image"].tolist() == ["plain.png", "tab\tand space.png"]
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert [Path(path).name for path in rejected["image"]] == [
        r"a\nb.png", r"c\rd.png", r"e\x1b[2Jf.png", r"g\u2028h.png"
    ]  # fmt: skip
    assert rejected["reason"].str.contains("rename it").all()
    assert len((tmp_path / "out" / "rejected.csv").read_text().splitlines()) == 5
