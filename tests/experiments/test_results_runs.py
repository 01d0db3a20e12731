"""Which runs a study needs, by which hashes a finished one is known, and one tiny run for real."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from dcmt.config import GraderConfig
from dcmt.loaded import grade_rows, load_data, load_run
from dcmt.train import build_grader
from experiments.results.__main__ import STUDIES, _options, main
from experiments.results.code import ROOT, code_hash, imported_modules
from experiments.results.data import Data, PhantomPlan, RadiographPlan
from experiments.results.jobs import (
    Job,
    check_seeds,
    decisive,
    differences_between_rows,
    make_job,
    resolved,
    row_arguments,
)
from experiments.results.one import store, train
from experiments.results.phantom import PHANTOM
from experiments.results.radiographs import RADIOGRAPHS
from experiments.results.radiographs_gpu import RADIOGRAPHS_GPU
from experiments.results.run import Runner
from experiments.results.store import Mirrored, grade_test, read_result, write_result
from experiments.results.study import Cell, Row, Study
from knee.engine.options import read_config
from knee.engine.run import RunFolder, split_private
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.task import Grading


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_tables_and_claims_speak_of_cells_that_are_run(study: Study):
    cells = {*study.cells, *study.more_cells}
    spoken = [cell for table in study.tables for cell in table.cells]
    spoken += [cell for claim in study.claims for cell in (claim.first, claim.second) if isinstance(cell, Cell)]
    assert set(spoken) <= cells
    assert set(study.paper) <= cells
    assert {study.row(row.training) for row in study.rows} <= set(study.rows)


def test_rows_of_the_phantom_differ_in_losses_and_unlabeled_images_alone():
    assert differences_between_rows(PHANTOM) == []


@pytest.mark.parametrize("study", [RADIOGRAPHS, RADIOGRAPHS_GPU], ids=lambda study: study.name)
def test_rows_of_the_radiographs_differ_in_head_losses_and_unlabeled_images_alone(study):
    assert differences_between_rows(study) == []


def test_rows_of_one_family_are_compared_and_no_others():
    first, second = (Row(name, name, ("kl_xray.yaml",)) for name in "ab")
    other = dataclasses.replace(second, options=("--model.backbone=resnet34",))
    (difference,) = differences_between_rows(dataclasses.replace(RADIOGRAPHS, rows=(first, other)))
    assert difference == 'model.backbone differs: "resnet18" for a; "resnet34" for b'
    apart = dataclasses.replace(other, family="resnet34")
    assert differences_between_rows(dataclasses.replace(RADIOGRAPHS, rows=(first, apart))) == []


@pytest.mark.parametrize(
    "row", [row for row in RADIOGRAPHS_GPU.rows if "mean_teacher" not in row.name], ids=lambda row: row.name
)
def test_larger_networks_are_built_and_look_at_a_map_of_fourteen(row: Row):
    config = read_config(GraderConfig, row_arguments(RADIOGRAPHS_GPU, row), program="train.py")
    with torch.inference_mode():
        grading = build_grader(config, load_grade_set("kl")).eval()(torch.rand(1, 1, 224, 224))
    assert grading.logits.shape == (1, 5)
    assert grading.class_maps.shape == (1, 5, 14, 14)


def test_a_batch_of_radiographs_has_as_many_images_where_all_are_labeled():
    sizes = set()
    for cell in (*RADIOGRAPHS.cells, *RADIOGRAPHS.more_cells):
        data = make_job(RADIOGRAPHS, cell, 0, PhantomPlan()).config["data"]
        unlabeled = data["unlabeled_per_batch"] if cell.fraction < 1 else 0
        sizes.add(("supervised" in cell.row, cell.fraction == 1, data["labeled_per_batch"] + unlabeled))
    assert sizes == {(False, False, 60), (False, True, 60), (True, False, 30), (True, True, 60)}


def test_the_part_for_two_cores_is_seven_trainings():
    assert len(PHANTOM.trainings(full=False)) == 7
    assert PHANTOM.trainings(full=False)[0] == PHANTOM.cells[-1], "the longest run is begun last"
    assert PHANTOM.trainings(full=False, rows=["supervised_ema"]) == [Cell("supervised", 0.1)]
    assert set(PHANTOM.trainings(full=False)) < set(PHANTOM.trainings(full=True))
    with pytest.raises(UserError, match="has no row dcmp; it has supervised, "):
        PHANTOM.trainings(full=False, rows=["dcmp"])


def test_fractions_narrow_what_is_run():
    assert PHANTOM.trainings(full=False, fractions=[1.0]) == [Cell("supervised_attention", 1.0)]
    both = PHANTOM.trainings(full=True, rows=["dcmt", "mean_teacher"], fractions=[0.5, 0.3])
    assert sorted(both) == [Cell(row, fraction) for row in ("dcmt", "mean_teacher") for fraction in (0.3, 0.5)]
    with pytest.raises(UserError, match=r"has no labeled fraction 0\.3; it has 0\.1, 1; --full has more"):
        PHANTOM.trainings(full=False, fractions=[0.3])
    with pytest.raises(UserError, match=r"has no cell of supervised_lambda_a at 0\.3"):
        PHANTOM.trainings(full=True, rows=["supervised_lambda_a"], fractions=[0.3])
    with pytest.raises(UserError, match=r"no cell of mean_teacher_flip in the part run by default; --full has more"):
        RADIOGRAPHS.trainings(full=False, rows=["mean_teacher_flip"])


def test_what_the_full_part_alone_runs_is_told_with_the_full_command():
    default = [("supervised", 0.1, 0), ("clip_koa", 1.0, 0)]
    assert RADIOGRAPHS.command_of([]) == RADIOGRAPHS.command_of(default) == RADIOGRAPHS.command
    for more in (("supervised", 0.1, 1), ("mean_teacher", 0.1, 0), ("supervised", 0.25, 0)):
        assert RADIOGRAPHS.command_of([*default, more]) == RADIOGRAPHS.full_command


def test_what_differs_from_a_study_is_kept_apart(tmp_path):
    work, published = [f"--work={tmp_path}"], ROOT / "docs" / "results"
    for more in ([], ["--seeds", "1", "2"], ["--rows", "dcmt"], ["--tables-only"]):
        assert _options(["phantom", *work, *more]).out == published
    for more in (["--steps=20"], ["--fit.device=cuda"], ["--seeds", "1", "7"], ["--patients=60"], ["--samples=50"]):
        for how in ([], ["--tables-only"]):  # the tables of a trial are those of the trial's runs
            options = _options(["phantom", *work, *more, *how])
            assert (options.work, options.out) == (tmp_path / "trial", tmp_path / "trial" / "tables")


def test_further_seeds_are_run_where_few_labels_make_them_count():
    assert RADIOGRAPHS.all_seeds == (0, 1, 2)
    assert RADIOGRAPHS.seeds_at(0.1, full=True) == (0, 1, 2)
    assert RADIOGRAPHS.seeds_at(0.1, full=False) == RADIOGRAPHS.seeds_at(1.0, full=True) == (0,)
    assert PHANTOM.all_seeds == PHANTOM.seeds_at(0.3, full=True) == (1, 2, 3)


def test_seeds_asked_for_are_run_at_the_fractions_that_have_them(monkeypatch, tmp_path, capsys):
    asked: list[str] = []
    monkeypatch.setattr(Runner, "run_all", lambda self, jobs, plan: asked.extend(job.name for job in jobs) or [])
    monkeypatch.setattr("experiments.results.__main__.RadiographPlan", lambda folder: PhantomPlan())
    start = ["radiographs", f"--work={tmp_path}", f"--out={tmp_path}", f"--radiographs={tmp_path}", "--rows=supervised"]

    def run(*more: str) -> list[str]:
        asked.clear()
        assert main([*start, *more]) == 0
        return sorted(name.removeprefix("radiographs-supervised-") for name in asked)

    assert run("--full", "--seeds", "1") == run("--seeds", "1") == ["f0.1-s1"]
    assert run() == ["f0.1-s0", "f1-s0"]
    assert run("--seeds", "7") == ["f0.1-s7", "f1-s7"], "a trial's seeds are the user's own"
    assert main([*start, "--seeds", "1", "--fractions", "1"]) == 2
    assert "has none of the seeds 1 at these fractions, only 0" in capsys.readouterr().err


def test_tables_of_nothing_are_refused_and_a_full_disk_is_told(made_up, monkeypatch, tmp_path, capsys):
    command = ["phantom", "--tables-only", f"--out={tmp_path}"]
    assert main(command) == 2
    assert (
        f"no run of phantom is stored in {tmp_path / 'runs'}; give another folder by --out" in capsys.readouterr().err
    )
    run = made_up("dcmt", 0.1, 1)
    write_result(tmp_path / "runs", run.table, run.about)
    (tmp_path / "table3.csv").write_text("of before\n")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    assert main([*command, "--samples=20"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "table3.csv").read_text() == "of before\n"


def test_rows_that_hear_a_teacher_hear_it_from_the_same_step_on():
    first, second = (Row(name, name, ("kl_xray.yaml", "rows/mean_teacher.yaml")) for name in "ab")
    later = dataclasses.replace(second, options=("--loss.ramp_start=0.25",))
    study = dataclasses.replace(RADIOGRAPHS, rows=(first, later))
    assert differences_between_rows(study) == ["loss.ramp_start differs: 0.5 for a; 0.25 for b"]
    without = ("--loss.probability_consistency=0", "--data.unlabeled_per_batch=0")
    alone = dataclasses.replace(later, options=(*later.options, *without))
    assert differences_between_rows(dataclasses.replace(study, rows=(first, alone))) == []


def test_the_seed_that_was_tuned_on_is_refused():
    check_seeds(PHANTOM, PHANTOM.seeds)
    with pytest.raises(UserError, match="tuned"):
        check_seeds(PHANTOM, [0, 1])
    with pytest.raises(UserError, match="each once"):
        check_seeds(PHANTOM, [1, 1])


def test_what_changes_numbers_changes_the_hash_and_nothing_else_does():
    cell, plan = Cell("dcmt", 0.1), PhantomPlan()
    job = make_job(PHANTOM, cell, 1, plan)
    assert job.name == "phantom-dcmt-f0.1-s1"
    assert Job.from_json(job.to_json()) == job
    unlike = make_job(PHANTOM, cell, 1, plan, more=["--fit.threads=4", "--data.manifest=elsewhere.csv", "--name=other"])
    assert unlike.config_hash == job.config_hash
    others = [make_job(PHANTOM, cell, 1, plan, more=["--fit.steps=9"]), make_job(PHANTOM, cell, 2, plan)]
    others += [make_job(PHANTOM, cell, 1, PhantomPlan(patients=30)), make_job(PHANTOM, Cell("dcmt", 0.3), 1, plan)]
    assert len({job.config_hash, *(other.config_hash for other in others)}) == 5
    assert "elsewhere" not in json.dumps(unlike.config)


def test_options_that_have_nothing_to_act_on_do_not_change_the_hash():
    plan = PhantomPlan()

    def hashed(row: str, *more: str) -> str:
        return make_job(PHANTOM, Cell(row, 0.1), 1, plan, more=more).config_hash

    for option in ("--fit.precision=fp32", "--fit.precision=bf16"):
        assert hashed("dcmt", option) == hashed("dcmt")
    for option in ("--loss.ramp=0.7", "--loss.ramp_start=0.1", "--loss.teacher_temperature=0.9"):
        assert hashed("dcmt", option) != hashed("dcmt")
        assert hashed("supervised", option) == hashed("supervised")
    # Options younger than some stored results count from the value on that is not what was done before.
    for option in ("--model.normalise=image", "--loss.teacher_mirror=true"):
        assert hashed("dcmt", option) != hashed("dcmt")


def test_the_code_hash_counts_statements_that_training_can_reach(tmp_path):
    files = {
        "dcmt/train.py": "def run():\n    from knee.loss import cost\n    return cost(1)\n",
        "knee/loss.py": "import knee.evaluation.figures\n\n\ndef cost(x):\n    return x\n",
        "knee/figures.py": "SIZE = 1\n",
        "knee/apart.py": "X = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def after(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        code_hash.cache_clear()
        return code_hash(("dcmt.train",), tmp_path)

    before = after("knee/apart.py", "X = 2\n")
    assert after("knee/figures.py", "SIZE = 2\n") == before
    assert (
        after(
            "knee/loss.py",
            '"""Said."""\nimport knee.evaluation.figures\n\ndef cost(x):\n    """More."""\n    return x  # !\n',
        )
        == before
    )
    assert after("knee/loss.py", "import knee.evaluation.figures\n\ndef cost(x):\n    return 2 * x\n") != before


def test_the_code_behind_training_is_found():
    found = imported_modules(PHANTOM.code)
    assert {"dcmt.losses", "dcmt.teacher", "knee.attention", "knee.phantom.mr", "segmentation.unet"} <= found.keys()
    assert "knee.images.raster" in found, "PNG files are read by it"
    assert not {
        name
        for name in found
        if name.startswith(("knee.review", "knee.evaluation.figures", "dcmt.loaded", "dcmt.commands.evaluate"))
    }


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("image_size: 96", "image_size: 64", {"data": {"image_size": 64}}),
        ("labeled_per_batch: 16", "labeled_per_batch: 8", {"data": {"labeled_per_batch": 8}}),
        ("steps: 100", "steps: 100\n  accumulation: 2", {"fit": {"steps": 100, "accumulation": 2}}),
    ],
)
def test_a_segmenter_of_another_config_makes_other_data(old, new, told, monkeypatch, tmp_path):
    first = PhantomPlan().about(1)["phantom"]["segmenter"]
    assert set(first) == {"views", "unet", "optimizer", "fit"}  # as the stored runs were hashed
    path = tmp_path / "unet.yaml"
    text = (ROOT / "configs" / "phantom_unet.yaml").read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr("experiments.results.data._UNET", path)
    assert PhantomPlan().about(1)["phantom"]["segmenter"] == first | told


def test_the_second_crops_of_the_archive_are_not_part_of_the_radiographs(tmp_path):
    for name in ("train/0/1L.png", "test/4/2R.png"):
        write_png(tmp_path / name, np.zeros((8, 8), np.uint8))
    before = RadiographPlan(tmp_path).about(0)
    write_png(tmp_path / "auto_test/4/2R.png", np.zeros((8, 8), np.uint8))
    assert RadiographPlan(tmp_path).about(0) == before


def test_radiographs_that_were_moved_or_read_by_other_code_have_data_of_their_own(tmp_path):
    for name in ("train/0/1L.png", "test/4/2R.png"):
        write_png(tmp_path / "first" / name, np.zeros((8, 8), np.uint8))
    begun: list[str] = []

    def run(given: Sequence[str]) -> None:
        begun.append(given[0])
        out = next(Path(one.removeprefix("--out=")) for one in given if one.startswith("--out="))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()

    def made(plan: RadiographPlan, *, any_code: bool = False) -> Data:
        return plan.make(0, tmp_path / "work", run, any_code=any_code)

    first = RadiographPlan(tmp_path / "first")
    about = first.about(0)
    data = made(first)
    assert made(first) == data
    assert begun == ["manifest", "split"]
    other = dataclasses.replace(first, code=("knee.grades",))
    assert made(other, any_code=True) == data
    assert begun == ["manifest", "split"]
    assert made(other) != data
    (tmp_path / "first").rename(tmp_path / "second")
    second = RadiographPlan(tmp_path / "second")
    assert second.about(0) == about
    assert made(second) != data
    assert begun == ["manifest", "split"] * 3


def test_a_study_without_its_folder_is_refused(capsys, tmp_path):
    out = [f"--out={tmp_path}", f"--work={tmp_path}"]
    assert main(["radiographs", *out]) == 2
    assert "--radiographs FOLDER" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no folder"):
        RadiographPlan(tmp_path / "none").about(0)


@pytest.fixture
def tiny_job(grader_values, tmp_path) -> Callable[..., Job]:
    """A run of two steps; ``tiny_job(steps=4)``."""

    def build(steps: int = 2) -> Job:
        path = tmp_path / f"tiny{steps}.yaml"
        fit = grader_values["fit"] | {"steps": steps, "validate_every": 1}
        path.write_text(yaml.safe_dump({name: dict(part) for name, part in (grader_values | {"fit": fit}).items()}))
        arguments = ("--config", str(path))
        config = resolved(arguments)
        about = {"config_hash": f"{steps}", "code": (), "code_hash": "d", "checkpoint": "last", "mirror": True}
        return Job("tiny", "phantom", "dcmt", 0.6, 1, arguments, split_private(decisive(config))[0], {}, **about)

    return build


def test_a_run_is_trained_stored_and_resumed(tiny_job, grader_values, tmp_path):
    data = Data(Path(grader_values["data"]["manifest"]), Path(grader_values["data"]["split"]))
    job, folder = tiny_job(), RunFolder(tmp_path / "tiny")
    train(job, data, tmp_path, threads=1)
    store(job, tmp_path, tmp_path / "out")
    found = read_result(tmp_path / "out", "tiny")
    assert found.about["steps"] == found.about["checkpoint_step"] == 2
    assert [path.name for path in folder.checkpoints.folder.glob("step_*")] == ["step_00000002"]
    loaded = load_run(folder.path, checkpoint="best", device="cpu")
    prepared = load_data(loaded)
    rows = prepared.rows("test")
    one = grade_rows(loaded, prepared, rows, flip=True)["teacher"]
    np.testing.assert_allclose(found.probabilities("teacher"), one.probabilities, atol=2e-4)
    np.testing.assert_allclose(found.iou("teacher"), one.iou, atol=1e-4)
    assert len(set(found.patients)) == prepared.patients.iloc[rows].nunique()
    exact = grade_test(loaded, prepared, mirror=True)
    mirrored, images = (exact[[f"teacher_{kind}{grade}" for grade in range(3)]].to_numpy() for kind in "mp")
    np.testing.assert_array_equal(mirrored.argmax(1) != images.argmax(1), one.flip_changed)
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert not [private for private in ("P00", ".png", str(tmp_path), str(data.manifest.parent)) if private in text]
    written = folder.config.stat().st_mtime_ns
    train(job, data, tmp_path, threads=1)  # ends at once
    assert folder.config.stat().st_mtime_ns == written
    train(tiny_job(steps=1), data, tmp_path, threads=1)  # another config: started anew
    assert folder.checkpoints.latest()[0].step == 1


def test_the_seconds_told_are_the_whole_runs_whichever_checkpoint_is_graded(
    tiny_job, grader_values, tmp_path, monkeypatch
):
    data = Data(Path(grader_values["data"]["manifest"]), Path(grader_values["data"]["split"]))
    job = dataclasses.replace(tiny_job(), checkpoint="best")
    monkeypatch.setattr("knee.engine.fit.time", SimpleNamespace(monotonic=itertools.count(step=10).__next__))
    train(job, data, tmp_path, threads=1)
    best = tmp_path / "tiny" / "checkpoints" / "best.json"
    best.write_text(json.dumps(json.loads(best.read_text()) | {"step": 1}))
    store(job, tmp_path, tmp_path / "out")
    about = read_result(tmp_path / "out", "tiny").about
    assert (about["checkpoint_step"], about["seconds"]) == (1, 2 * 10)


def test_the_mirror_image_is_the_one_from_left_to_right():
    """Graded by the upper left quarter alone: of the mirror image that is the upper right one."""

    def quarter(images: torch.Tensor) -> Grading:
        corner = images[:, :, :2, :2].mean((2, 3))
        return Grading(torch.cat([corner, -corner], 1), images.repeat(1, 2, 1, 1) * torch.arange(4))

    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    straight, mirrored = quarter(images), Mirrored(quarter)(images)
    right = images[:, :, :2, 2:].mean((2, 3))
    torch.testing.assert_close(mirrored.logits, torch.cat([right, -right], 1))
    assert not torch.allclose(mirrored.logits, straight.logits)
    # Evidence lies on the image as it is: that of the left edge is found at the right edge of the mirror image.
    torch.testing.assert_close(mirrored.class_maps, images.repeat(1, 2, 1, 1) * torch.arange(4).flip(0))


def test_image_and_mirror_image_together_are_a_mirrored_pair(tiny_job, grader_values, tmp_path):
    data = Data(Path(grader_values["data"]["manifest"]), Path(grader_values["data"]["split"]))
    train(tiny_job(), data, tmp_path, threads=1)
    loaded = load_run(tmp_path / "tiny", checkpoint="last", device="cpu")
    prepared = load_data(loaded)
    exact = grade_test(loaded, prepared, mirror=True)
    images, mirrored = (exact[[f"teacher_{kind}{grade}" for grade in range(3)]].to_numpy() for kind in "pm")
    assert np.abs(images - mirrored).max() > 1e-5
    pair = load_run(tmp_path / "tiny", checkpoint="last", device="cpu", mirrored_pair=True)
    found = grade_rows(pair, prepared, prepared.rows("test"), names=["teacher"])["teacher"]
    np.testing.assert_allclose((images + mirrored) / 2, found.probabilities, atol=1e-6)


class Plan:
    """Data that need not be made."""

    def about(self, seed: int) -> dict[str, int]:
        return {"seed": seed}

    def make(self, seed: int, work: Path, run: object, *, any_code: bool) -> Data:
        return Data(work / "manifest.csv", work / "split.csv")


def test_done_runs_are_skipped_and_a_failed_one_stops_no_other(made_up, tmp_path, monkeypatch, capsys):
    jobs = [make_job(PHANTOM, cell, 1, Plan()) for cell in PHANTOM.trainings(full=False)[:3]]
    runner = Runner(tmp_path, tmp_path / "out")
    begun: list[str] = []

    def process(self: Runner, name: str, command: object) -> None:
        begun.append(name)
        job = next(job for job in jobs if job.name == name)
        if name == jobs[1].name and len(begun) <= 3:
            raise UserError(f"{name} ended with code 2")
        made = made_up(job.row, job.fraction, 1)
        hashes = {"config_hash": job.config_hash, "code_hash": job.code_hash}
        write_result(self.out, made.table, made.about | hashes)

    monkeypatch.setattr(Runner, "_process", process)
    assert runner.run_all(jobs, Plan()) == [f"{jobs[1].name} ended with code 2"]
    assert sorted(begun) == sorted(job.name for job in jobs)
    assert runner.run_all(jobs, Plan()) == []
    assert begun[3:] == [jobs[1].name]
    changed = [dataclasses.replace(job, code_hash="new") for job in jobs]
    assert not any(map(runner.is_done, changed))
    assert all(map(dataclasses.replace(runner, any_code=True).is_done, changed))
    assert not runner.is_done(dataclasses.replace(jobs[0], config_hash="new"))
    assert "3 runs, 2 done already" in capsys.readouterr().out
