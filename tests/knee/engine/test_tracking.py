"""The record of a run: a table that survives kills, and TensorBoard beside it."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from knee.engine.run import RunFolder
from knee.engine.tracking import Tracker, read_metrics


def track(folder: Path, steps: range, *, first_step: int = 0, tensorboard: bool = False) -> None:
    tracker = Tracker(folder, tensorboard=tensorboard, first_step=first_step)
    tracker.open()
    for step in steps:
        tracker.scalars({"loss/total": step / 3}, step)
    tracker.close()


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, tensorboard=False)
    assert not tracker.shows
    assert list(tmp_path.iterdir()) == []
    tracker.open()
    tracker.scalars({"loss/total": 1 / 3, "val_teacher/kappa": math.nan}, 10)
    rows = read_metrics(tmp_path / "metrics.csv")  # before it is closed: each row is in the file at once
    assert rows[0] == (10, "loss/total", pytest.approx(1 / 3, rel=1e-8))
    assert math.isnan(rows[1][2])
    tracker.close()


def test_going_on_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    track(tmp_path, range(1, 6))
    track(tmp_path, range(4, 8), first_step=3)
    assert [row[0] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 5, 6, 7]


def test_what_a_kill_left_beside_the_file_is_removed(tmp_path: Path) -> None:
    track(tmp_path, range(1, 6))
    (tmp_path / ".metrics.csv.4711.part").write_text("step,name,value\n1,loss")
    (tmp_path / "notes.part").write_text("of a person")
    track(tmp_path, range(6, 7), first_step=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "notes.part"]


@pytest.mark.parametrize("tail", ["6,loss/tot", "6,loss/total,0.", "6", "\n"])
def test_row_cut_short_by_a_kill_is_dropped(tmp_path: Path, tail: str) -> None:
    track(tmp_path, range(1, 6))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(tail)
    track(tmp_path, range(6, 7), first_step=5)
    assert [row[0] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 5, 6]


def test_tensorboard_shows_no_step_twice(tmp_path: Path) -> None:
    track(tmp_path, range(1, 6), tensorboard=True)
    track(tmp_path, range(4, 8), first_step=3, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_starts_over_where_there_was_no_checkpoint(tmp_path: Path) -> None:
    track(tmp_path, range(1, 4), tensorboard=True)
    # Files of one second and process are read in the order of a counter as text, 10 before 9; a run that resumes is later.
    time.sleep(1.1)
    track(tmp_path, range(1, 5), first_step=0, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4]


def test_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    assert tracker.shows
    tracker.open()
    tracker.image("figure/x", np.zeros((4, 6, 3), np.uint8), 3)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (picture,) = events.Images("figure/x")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)


def test_tags_of_a_trained_run(trained_run: RunFolder) -> None:
    events = EventAccumulator(str(trained_run.path / "tensorboard"))
    events.Reload()
    terms = ("total", "grade", "attention", "probability_consistency", "attention_consistency")
    wanted = {f"loss/{name}" for name in terms}
    wanted |= {f"schedule/{name}" for name in ("lr", "ramp", "teacher_decay")}
    wanted |= {f"unlabeled/{name}" for name in ("agreement", "entropy")}
    wanted |= {f"system/{name}" for name in ("images_per_s", "memory_gib", "skipped_steps")}
    metrics = ("macro_f1", "recall", "auc", "kappa", "adjacent", "ece", "tiou")
    wanted |= {f"val_{network}/{name}" for network in ("student", "teacher") for name in metrics}
    assert wanted <= set(events.Tags()["scalars"])
    pictures = set(events.Tags()["images"])
    assert {"figure/confusion", "figure/reliability", "figure/roc"} <= pictures
    assert len([tag for tag in pictures if tag.startswith("attention/c")]) == 2
    assert [event.step for event in events.Scalars("loss/total")] == [2, 4, 6]
    assert [event.step for event in events.Scalars("val_teacher/macro_f1")] == [3, 6]


def test_table_holds_what_tensorboard_holds(trained_run: RunFolder) -> None:
    events = EventAccumulator(str(trained_run.path / "tensorboard"))
    events.Reload()
    rows = read_metrics(trained_run.path / "metrics.csv")
    for tag in events.Tags()["scalars"]:
        shown = [(event.step, pytest.approx(event.value, rel=1e-5)) for event in events.Scalars(tag)]
        assert [(step, value) for step, name, value in rows if name == tag and math.isfinite(value)] == shown


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"\xef\xbb\xbfstep,name,value\r\n1,loss/total,0.5\r\n2,loss/total,nan\r\n\0\0\0\0")
    assert str(read_metrics(path)) == str([(1, "loss/total", 0.5), (2, "loss/total", float("nan"))])
