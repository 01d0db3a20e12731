"""Which runs the studies consist of, and that their methods are compared under equal conditions."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from dcmt.config import GraderConfig
from dcmt.train import build_grader
from experiments.results.__main__ import STUDIES
from experiments.results.jobs import flat, make_job, resolved, row_arguments
from experiments.results.phantom import PHANTOM
from experiments.results.radiographs import BACKBONES, RADIOGRAPHS, RADIOGRAPHS_GPU
from experiments.results.study import Cell, Row, Run, Study
from knee.engine.options import read_config
from knee.errors import UserError
from knee.grades import load_grade_set

EQUAL = (
    "views.", "optimizer.", "attention.", "model.", "data.labeled_per_batch", "data.image_size", "data.mask_dilation",
    "fit.steps", "fit.epochs", "fit.accumulation", "fit.precision", "fit.validate_every", "fit.patience",
)  # fmt: skip
"""Options that the methods of a comparison share; model, where they have the same head."""
EQUAL_WITH_A_TEACHER = ("loss.ramp", "loss.ramp_start")


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_claims_and_published_numbers_are_about_cells_that_are_trained(study: Study):
    claimed = {cell for claim in study.claims for cell in (claim.first, claim.second) if isinstance(cell, Cell)}
    assert claimed | set(study.published) <= set(study.cells)
    trained = {run.cell for run in study.trainings(full=True)}
    assert {cell._replace(row=study.trained(cell.row)) for cell in study.cells} == trained


def differences(study: Study, rows: list[Row]) -> list[str]:
    """Options that the rows should share and do not."""
    configs = {row.name: flat(resolved(row_arguments(study, row, 0.1))) for row in rows}
    found = []
    for option in next(iter(configs.values())):
        if option.startswith((*EQUAL, *EQUAL_WITH_A_TEACHER)):
            values = {
                json.dumps(config[option])
                for config in configs.values()
                if not (option in EQUAL_WITH_A_TEACHER and not config["loss.probability_consistency"])
                and not (option.startswith("model.") and config["model.head"] == "text")
            }
            found += [option] if len(values) > 1 else []
    return found


@pytest.mark.parametrize("study", [PHANTOM, RADIOGRAPHS], ids=lambda study: study.name)
def test_methods_differ_only_in_head_losses_and_unlabeled_images(study: Study):
    assert differences(study, list(study.rows)) == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_methods_with_larger_networks_differ_only_in_head_losses_and_unlabeled_images(backbone: str):
    rows = [row for row in RADIOGRAPHS_GPU.rows if row.name.startswith(f"{backbone}-")]
    assert len(rows) == 3
    assert differences(RADIOGRAPHS_GPU, rows) == []


def test_a_difference_is_found():
    base = Row("a", "a", ("kl_xray.yaml", "rows/mean_teacher.yaml"))
    other = dataclasses.replace(base, name="b", options=("--model.backbone=resnet34",))
    assert differences(RADIOGRAPHS, [base, other]) == ["model.backbone"]
    later = dataclasses.replace(base, name="b", options=("--loss.ramp_start=0.25",))
    assert differences(RADIOGRAPHS, [base, later]) == ["loss.ramp_start"]
    without = ("--loss.probability_consistency=0", "--data.unlabeled_per_batch=0")
    supervised = dataclasses.replace(later, options=(*later.options, *without))
    assert differences(RADIOGRAPHS, [base, supervised]) == []


@pytest.mark.parametrize(
    "row", [row for row in RADIOGRAPHS_GPU.rows if "mean_teacher" not in row.name], ids=lambda row: row.name
)
def test_larger_networks_have_a_class_map_of_fourteen_positions(row: Row):
    config = read_config(GraderConfig, row_arguments(RADIOGRAPHS_GPU, row, 0.1), program="train.py")
    with torch.inference_mode():
        grading = build_grader(config, load_grade_set("kl")).eval()(torch.rand(1, 1, 224, 224))
    assert grading.logits.shape == (1, 5)
    assert grading.class_maps.shape == (1, 5, 14, 14)


def test_a_batch_of_radiographs_has_as_many_images_where_all_are_labeled():
    sizes = set()
    for run in RADIOGRAPHS.trainings(full=True):
        data = make_job(RADIOGRAPHS, run, {}).about["config"]["data"]
        unlabeled = data["unlabeled_per_batch"] if run.fraction < 1 else 0
        alone = run.row.startswith(("supervised", "clip_koa_supervised", "self_training"))
        sizes.add((alone, run.fraction == 1, data["labeled_per_batch"] + unlabeled))
    assert sizes == {(False, False, 60), (False, True, 60), (True, False, 30), (True, True, 60)}


def test_the_default_part_of_the_phantom_is_seven_trainings_of_three_seeds():
    found = PHANTOM.trainings(full=False)
    assert len(found) == 7 * 3
    assert found[0].cell == Cell("supervised_attention", 1.0), "the longest run starts first"
    assert set(found) < set(PHANTOM.trainings(full=True))
    assert {run.seed for run in PHANTOM.trainings(full=True)} == {1, 2, 3}, "seed 0 was tuned on"


def test_the_radiographs_have_further_seeds_where_few_labels_make_them_count():
    def seeds(fraction: float, *, full: bool) -> set[int]:
        return {run.seed for run in RADIOGRAPHS.trainings(full=full) if run.fraction == fraction}

    assert seeds(0.1, full=True) == {0, 1, 2}
    assert seeds(0.1, full=False) == seeds(1.0, full=True) == seeds(0.25, full=True) == {0}


def test_runs_are_selected_by_row_fraction_and_seed():
    assert PHANTOM.select(full=False, rows=["supervised_ema"], seeds=[2]) == [Run("supervised", 0.1, 2)]
    assert {run.cell for run in PHANTOM.select(full=False, fractions=[1.0])} == {Cell("supervised_attention", 1.0)}
    both = PHANTOM.select(full=True, rows=["dcmt", "mean_teacher"], fractions=[0.5, 0.3], seeds=[1])
    assert sorted(both) == [Run(row, fraction, 1) for row in ("dcmt", "mean_teacher") for fraction in (0.3, 0.5)]
    with pytest.raises(UserError, match="has no row dcmp; it has supervised, "):
        PHANTOM.select(full=False, rows=["dcmp"])
    with pytest.raises(UserError, match=r"no run of fraction 0\.3 here, only of 0\.1, 1\.0; --full has more"):
        PHANTOM.select(full=False, fractions=[0.3])
    with pytest.raises(UserError, match=r"no run of fraction 0\.3 here, only of 0\.1$"):
        PHANTOM.select(full=True, rows=["supervised_lambda_a"], fractions=[0.3])
    with pytest.raises(UserError, match=r"no run of row mean_teacher_flip here, only of .*; --full has more"):
        RADIOGRAPHS.select(full=False, rows=["mean_teacher_flip"])
    with pytest.raises(UserError, match="no run of seed 0 here, only of 1, 2, 3"):
        PHANTOM.select(full=True, seeds=[0])
