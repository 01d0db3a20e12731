"""Starting from another run: its weights, and what is refused because the other run has seen it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcmt.config import GraderConfig
from dcmt.start import load_start
from dcmt.train import build_grader, train_grader
from knee.data.prepare import load_knee_data
from knee.engine.run import RunFolder, create_run
from knee.errors import UserError
from knee.grades import load_grade_set

from .conftest import weights

Make = Callable[..., GraderConfig]


def test_run_that_starts_from_another_has_its_teacher_in_both_networks(
    trained_run: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    """One step of rate 1e-30 and decay 1 changes nothing, so what it saves is what it started from."""
    config = grader_config(
        **{
            "model.start": str(trained_run.path),
            "optimizer.learning_rate": 1e-30,
            "optimizer.weight_decay": 0.0,
            "teacher.decay": 1.0,
            "fit.steps": 1,
        }
    )
    run = create_run(tmp_path / "next", config, kind="grader")
    train_grader(config, run, resume=False)
    best = trained_run.checkpoints.best()
    assert best is not None
    wanted = best.tensors("teacher")
    found = weights(run)
    learned = [name for name in wanted if name.endswith((".weight", ".bias"))]
    assert len(learned) > 10
    for name in learned:
        assert torch.equal(found[f"student.{name}"], wanted[name])
        assert torch.equal(found[f"teacher.{name}"], wanted[name])


def test_start_from_another_network_normalisation_or_from_more_labels_is_refused(
    trained_run: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    def load(*, network: torch.nn.Module | None = None, **changes: object) -> None:
        config = grader_config(**{"model.start": str(trained_run.path), **changes})
        network = network or build_grader(config, load_grade_set(config.data.grade_set))
        load_start(network, config, load_knee_data(config.data), {})

    load()
    load(**{"data.labeled_fraction": 1.0})
    with pytest.raises(UserError, match=r"model\.start: .* is of another network"):
        load(network=torch.nn.Linear(2, 2))
    another = "fixed" if grader_config().model.normalise == "image" else "image"
    with pytest.raises(UserError, match=rf"model\.start: .* this config has {another}; give --model\.normalise"):
        load(**{"model.normalise": another})
    with pytest.raises(
        UserError, match=r"was trained with 0\.6 of the labels, this config has 0\.5: .*fraction 0\.6 or"
    ):
        load(**{"data.labeled_fraction": 0.5})


def test_start_from_other_images_is_possible_and_from_images_held_out_here_is_not(
    trained_run: RunFolder, tmp_path: Path, grader_config: Make
) -> None:
    def load(folder: Path, split: Path) -> None:
        files = {"data.manifest": str(folder / "manifest.csv"), "data.split": str(split)}
        config = grader_config(**files, **{"model.start": str(trained_run.path)})
        network = build_grader(config, load_grade_set(config.data.grade_set))
        load_start(network, config, load_knee_data(config.data), {})

    config = grader_config()
    phantom = Path(config.data.manifest)
    other = tmp_path / "other"
    shutil.copytree(phantom.parent, other)
    split = tmp_path / "split.csv"
    split.write_text(Path(config.data.split).read_text() + "\n")
    load(other, split)  # copies: other files, so other images
    with pytest.raises(UserError, match=r"was trained on \d+ images that are held out or unlabeled here"):
        load(phantom.parent, split)  # the images that the split calls unlabeled had a grade there
    shutil.copytree(trained_run.path, tmp_path / "moved")
    text = (tmp_path / "moved" / "config.yaml").read_text()
    (tmp_path / "moved" / "config.yaml").write_text(re.sub(r"manifest: .*", "manifest: gone.csv", text))
    gone = grader_config(**{"data.split": str(split), "model.start": str(tmp_path / "moved")})
    with pytest.raises(UserError, match="so it cannot be checked whether it saw images that are held out here"):
        load_start(torch.nn.Linear(2, 2), gone, load_knee_data(gone.data), {})
