"""Files are whole or absent."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import UserError
from knee.io.files import (
    existing_files,
    moved_into_place,
    normal_paths,
    paths_below,
    refuse_inputs,
    whole_file,
    write_json,
    write_text,
)


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_replaced_only_when_whole_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_json(path, {"a": 2})
        with pytest.raises(UserError, match=r"a\.json: cannot be written \(No space left on device\); free some"):
            write_text(path, "{}", force=True)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), moved_into_place(tmp_path / "new" / "a") as scratch:
        scratch.write_text("half")
        raise KeyError
    assert not list((tmp_path / "new").iterdir())


def test_what_exists_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"), whole_file(tmp_path / "gone"):
        raise AssertionError("the block must not run")
    write_text(tmp_path / "gone", "é", force=True)
    assert (tmp_path / "gone").read_bytes() == "é".encode()
    assert not (tmp_path / "nowhere").exists()


def test_the_reason_is_the_systems_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \((File exists|Not a directory)\)"):
        write_text(tmp_path / "file" / "a.txt", "")
    with pytest.raises(UserError, match=r"\(No space left on device\)"), whole_file(tmp_path / "b"):
        try:
            full(0)
        except OSError as error:
            raise OSError("a whole traceback\nof a library") from error


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "뼈" * 83 + ".csv"])
def test_a_name_as_long_as_file_systems_allow_is_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "1")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(KeyError), moved_into_place(tmp_path / name) as scratch:
        scratch.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "grades.csv").write_text("a")
    (tmp_path / "link.csv").symlink_to(tmp_path / "grades.csv")
    refuse_inputs(tmp_path / "other.csv", spreadsheet=tmp_path / "grades.csv", manifest=None)
    for target in (tmp_path / "grades.csv", tmp_path / "link.csv", tmp_path / "x" / ".." / "grades.csv"):
        with pytest.raises(UserError, match=r"is also the list of bad rows, so it is not overwritten"):
            refuse_inputs(target, list_of_bad_rows=tmp_path / "grades.csv")


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b.png", ".", "..", "", "/", "c/d", ".h", "x y", "..."]), max_size=4), max_size=3
)


@given(PATHS, st.sampled_from([".", "data", "/", "/data/x", "../y"]))
def test_many_paths_are_those_of_one_by_one(parts: list[list[str]], folder: str) -> None:
    names = ["/".join(one) for one in parts]
    assert normal_paths(names) == [os.path.normpath(name) for name in names]
    assert paths_below(Path(folder), names) == [str(Path(folder) / name) if name else "" for name in names]


def test_files_in_the_lists_of_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knee.io.files._FEWEST_TO_LIST", 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "folder.png").mkdir()
    for name in "123":
        (tmp_path / "a" / name).write_text("")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "1")
    (tmp_path / "a" / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "alone").write_text("")
    names = [
        "a/1",
        "a/2",
        "a/link",
        "a/broken",
        "a/folder.png",
        "a/missing",
        "none/1",
        "none/2",
        "b/alone",
        "a/1#3",
        "1",
        "2",
    ]
    found = existing_files([f"{tmp_path}/{name}" for name in names] + ["x", "y"])
    assert {f"{tmp_path}/a/{name}" for name in ("1", "2", "link")} <= found
    assert all(Path(path).is_file() for path in found)
    assert f"{tmp_path}/b/alone" not in found, "one file of a folder is looked at by itself"
