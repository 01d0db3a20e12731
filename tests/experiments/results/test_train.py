"""The data of a study, and tiny runs that are trained, resumed, evaluated and stored."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from dcmt.mean_teacher import MeanTeacher
from dcmt.trained.loaded import grade_rows, load_data, load_run
from experiments.results import train
from experiments.results.jobs import ROOT, Job, resolved
from experiments.results.store import predict_test, read_result
from experiments.results.train import Data, PhantomPlan, RadiographPlan, last_round, make_data, run_job, run_path
from knee.engine.run import RunFolder, split_private
from knee.errors import UserError
from knee.images.read import write_png


@pytest.fixture
def data(grader_values) -> Data:
    return Data(Path(grader_values["data"]["manifest"]), Path(grader_values["data"]["split"]))


@pytest.fixture
def tiny_job(grader_values, tmp_path) -> Callable[..., Job]:
    """A run of two steps; ``tiny_job(steps=4)``."""

    def build(steps: int = 2, checkpoint: str = "last") -> Job:
        path = tmp_path / f"tiny{steps}.yaml"
        fit = grader_values["fit"] | {"steps": steps, "validate_every": 1}
        path.write_text(yaml.safe_dump({name: dict(part) for name, part in (grader_values | {"fit": fit}).items()}))
        arguments = ("--config", str(path))
        about = {
            "name": "tiny",
            "study": "phantom",
            "row": "dcmt",
            "fraction": 0.6,
            "seed": 1,
            "checkpoint": checkpoint,
        }
        about |= {"data": {}, "config": split_private(resolved(arguments))[0]}
        return Job(about, arguments, tta=True)

    return build


def test_a_run_is_trained_stored_and_resumed(tiny_job, data, tmp_path):
    job = tiny_job()
    run_job(job, data, tmp_path, tmp_path / "out")
    found, folder = read_result(tmp_path / "out", "tiny"), RunFolder(run_path(job, tmp_path))
    assert found.about["steps"] == found.about["checkpoint_step"] == 2
    assert [path.name for path in folder.checkpoints.folder.glob("step_*")] == ["step_00000002"]
    loaded = load_run(folder.path, checkpoint="best", device="cpu")
    prepared = load_data(loaded)
    rows = prepared.rows("test")
    one = grade_rows(loaded, prepared, rows, flip=True)["teacher"]
    np.testing.assert_allclose(found.probabilities("teacher"), one.probabilities, atol=2e-4)
    np.testing.assert_allclose(found.iou("teacher"), one.iou, atol=1e-4)
    assert len(set(found.patients)) == prepared.patients.iloc[rows].nunique()
    exact = predict_test(loaded, prepared, tta=True)
    flipped, images = (exact[[f"teacher_{kind}{grade}" for grade in range(3)]].to_numpy() for kind in "mp")
    np.testing.assert_array_equal(flipped.argmax(1) != images.argmax(1), one.flip_changed)
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert not [private for private in ("P00", ".png", str(tmp_path), str(data.manifest.parent)) if private in text]
    written = folder.config.stat().st_mtime_ns
    run_job(job, data, tmp_path, tmp_path / "out")  # ends at once
    assert folder.config.stat().st_mtime_ns == written
    other = tiny_job(steps=1)
    run_job(other, data, tmp_path, tmp_path / "out")
    assert run_path(other, tmp_path) != folder.path, "another config has a run folder of its own"
    assert read_result(tmp_path / "out", "tiny").about["steps"] == 1


def test_self_training_stores_the_network_of_its_last_round(tiny_job, data, tmp_path):
    job = tiny_job()
    more = ("--data.unlabeled_per_batch=0", "--data.allow_missing_grades=true")
    none = ("--loss.attention=0", "--loss.probability_consistency=0", "--loss.attention_consistency=0")
    rounds = ("--rounds=1", "--networks=1")
    about = {**job.about, "rounds": list(rounds)}
    trained = job._replace(about=about, arguments=(*job.arguments, *more, *none), rounds=rounds)
    assert run_path(trained, tmp_path) != run_path(job, tmp_path)
    with pytest.raises(UserError, match="stopped before its last round; the same command continues it"):
        last_round(run_path(trained, tmp_path))
    run_job(trained, data, tmp_path, tmp_path / "out")
    folder = run_path(trained, tmp_path)
    assert last_round(folder) == folder / "round1-s1"
    loaded = load_run(folder / "round1-s1", checkpoint="last", device="cpu")
    prepared = load_data(loaded)
    one = grade_rows(loaded, prepared, prepared.rows("test"))["teacher"]
    found = read_result(tmp_path / "out", "tiny")
    np.testing.assert_allclose(found.probabilities("teacher"), one.probabilities, atol=2e-4)


def test_a_stopped_run_is_not_stored_and_is_resumed(tiny_job, data, tmp_path, monkeypatch):
    job, out = tiny_job(steps=3), tmp_path / "out"
    update = MeanTeacher.after_update

    def stop(self: MeanTeacher, step: int) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(MeanTeacher, "after_update", stop)
        with pytest.raises(UserError, match="stopped before its last step; the same command resumes it"):
            run_job(job, data, tmp_path, out)
    assert RunFolder(run_path(job, tmp_path)).checkpoints.latest()[0].step == 1
    assert not out.exists()
    run_job(job, data, tmp_path, out)
    stopped = read_result(out, "tiny")
    run_job(job._replace(about={**job.about, "version": 2}), data, tmp_path, tmp_path / "whole")
    np.testing.assert_array_equal(stopped.table, read_result(tmp_path / "whole", "tiny").table)


def test_the_seconds_are_those_of_the_whole_run_whichever_checkpoint_is_evaluated(
    tiny_job, data, tmp_path, monkeypatch
):
    job = tiny_job(checkpoint="best")
    monkeypatch.setattr("knee.engine.fit.time", SimpleNamespace(monotonic=itertools.count(step=10).__next__))
    load = load_run

    def first_step(path: Path, **options):
        best = path / "checkpoints" / "best.json"
        best.write_text(json.dumps(json.loads(best.read_text()) | {"step": 1}))
        return load(path, **options)

    monkeypatch.setattr("experiments.results.train.load_run", first_step)
    run_job(job, data, tmp_path, tmp_path / "out")
    about = read_result(tmp_path / "out", "tiny").about
    assert (about["checkpoint_step"], about["seconds"]) == (1, 2 * 10)


def test_the_mean_of_image_and_flip_is_that_of_flip_tta(tiny_job, data, tmp_path):
    job = tiny_job()._replace(tta=False)
    run_job(job, data, tmp_path, tmp_path / "out")
    path = run_path(job, tmp_path)
    loaded = load_run(path, checkpoint="last", device="cpu")
    prepared = load_data(loaded)
    exact = predict_test(loaded, prepared, tta=True)
    images, flipped = (exact[[f"teacher_{kind}{grade}" for grade in range(3)]].to_numpy() for kind in "pm")
    assert np.abs(images - flipped).max() > 1e-5
    pair = load_run(path, checkpoint="last", device="cpu", flip_tta=True)
    found = grade_rows(pair, prepared, prepared.rows("test"), names=["teacher"])["teacher"]
    np.testing.assert_allclose((images + flipped) / 2, found.probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("image_size: 96", "image_size: 64", {"data.image_size": 64}),
        ("labeled_per_batch: 16", "labeled_per_batch: 8", {"data.labeled_per_batch": 8}),
        ("steps: 100", "steps: 100\n  accumulation: 2", {"fit.accumulation": 2}),
    ],
)
def test_a_segmenter_of_another_config_makes_other_data(old, new, changed, monkeypatch, tmp_path):
    first = PhantomPlan().about(1)["phantom"]["segmenter"]
    path = tmp_path / "unet.yaml"
    text = (ROOT / "configs" / "phantom_unet.yaml").read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(train, "_UNET", path)
    assert PhantomPlan().about(1)["phantom"]["segmenter"] == first | changed


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder in the layout of the published radiographs."""
    for name in ("train/0/1L.png", "test/4/2R.png"):
        write_png(tmp_path / "first" / name, np.zeros((8, 8), np.uint8))
    return tmp_path / "first"


def test_the_second_crops_of_the_archive_are_not_part_of_the_radiographs(images):
    before = RadiographPlan(images).about(0)
    write_png(images / "auto_test/4/2R.png", np.zeros((8, 8), np.uint8))
    assert RadiographPlan(images).about(0) == before


def test_data_are_made_once_and_again_where_radiographs_moved_or_the_version_is_higher(images, tmp_path, monkeypatch):
    called: list[str] = []

    def dcmt(arguments: Sequence[str]) -> int:
        called.append(arguments[0])
        Path(next(one.removeprefix("--out=") for one in arguments if one.startswith("--out="))).touch()
        return 0

    def make(folder: Path, version: int = 1) -> Data:
        return make_data(RadiographPlan(folder), 0, tmp_path / "work", version)

    monkeypatch.setattr(train, "dcmt", dcmt)
    first = make(images)
    assert make(images) == first
    assert called == ["manifest", "split"]
    (first.manifest.parent / "done").unlink()  # as after a kill
    assert make(images) == first
    assert make(images, version=2) != first
    about = RadiographPlan(images).about(0)
    images.rename(tmp_path / "second")
    assert RadiographPlan(tmp_path / "second").about(0) == about
    assert make(tmp_path / "second") != first
    assert called == ["manifest", "split"] * 4


def test_a_failed_command_and_a_missing_folder_are_errors(images, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a folder; give the one with train/0"):
        RadiographPlan(tmp_path / "none").about(0)
    monkeypatch.setattr(train, "dcmt", lambda arguments: 2)
    with pytest.raises(UserError, match=r"dcmt manifest .* failed"):
        make_data(RadiographPlan(images), 0, tmp_path / "work", 1)
