"""``model.start``: a student that starts from the weights of another run, which must not have seen what is held out here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dcmt.config import GraderConfig
from dcmt.network import start_encoder
from knee.data.manifest import read_manifest
from knee.data.prepare import KneeData
from knee.data.splits import read_split
from knee.engine.checkpoint import Checkpoint
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, file_hash, open_run
from knee.errors import UserError


def start_student(student: nn.Module, config: GraderConfig, data: KneeData, *, prompts: Mapping[str, Any]) -> None:
    """Load the weights of ``model.start``, a grader's run or an image-text run, into the student. Raises UserError."""
    if not start_from_pairs(student, config, data):
        load_start(student, config, data, prompts)


def refuse_seen(
    run: RunFolder, values: Mapping[str, Any], found: Checkpoint, data: KneeData, *, fraction: float, uses_grades: bool
) -> None:
    """Raises UserError if a run was trained on a case that is held out here, or this cannot be checked.

    With the same split file, only the labeled fraction is compared, if the run ``uses_grades``. Otherwise its own training
    images, by its manifest and split, are compared by file, and by patient if the manifest is the same; if it uses grades, the
    unlabeled images count as held out, too.
    """
    if found.state.get("split_sha256") == file_hash(data.split.path):
        before = values.get("data", {}).get("labeled_fraction", 1.0)
        if uses_grades and before > fraction:
            raise UserError(
                f"model.start: {run.path} was trained with {before:g} of the labels, this config has {fraction:g}: the "
                f"run's labels include images that are unlabeled here; give --labeled-fraction {before:g} or more, or a "
                "run with fewer labels"
            )
        return
    paths = values.get("data", {})
    names = {str(name): Path(str(paths.get(name, ""))) for name in ("manifest", "split")}
    for name, path in names.items():
        if not path.is_file() or (name, file_hash(path)) != (name, found.state.get(f"{name}_sha256")):
            raise UserError(
                f"model.start: {run.path} was trained with another split than {data.split.path}, and its own {name} is not at "
                f"{path} as it was, so it cannot be checked whether it saw images that are held out here; restore it, or train "
                "with the same split file"
            )
    theirs = read_manifest(names["manifest"], data.grade_set)
    trained = read_split(names["split"], theirs).rows("train")
    held_out = [row for part in ("val", "test") for row in data.split.rows(part)]
    held_out += list(data.unlabeled) if uses_grades else []
    seen = {os.path.realpath(theirs.image_path(row)) for row in trained}
    count = sum(os.path.realpath(data.manifest.image_path(row)) in seen for row in held_out)
    if os.path.realpath(theirs.path) == os.path.realpath(data.manifest.path):
        patients = set(theirs.table["patient"].iloc[trained])
        count = sum(patient in patients for patient in data.patients.iloc[held_out])
    if count:
        raise UserError(
            f"model.start: {run.path} was trained on {count} images that are held out or unlabeled here; train it with the "
            f"split file {data.split.path} and as few labels"
        )


def start_from_pairs(student: nn.Module, config: GraderConfig, data: KneeData) -> bool:
    """If ``model.start`` is an image-text run, load its image encoder into the student; returns whether it is one.

    Raises UserError if it saw a case that is held out here (``refuse_seen``), or has another encoder.
    """
    run, values = open_run(Path(config.model.start))
    if values["kind"] != "image_text":
        return False
    found = run.checkpoints.best()
    if found is None:
        raise UserError(f"model.start: {run.path} has no checkpoint yet; give the folder of a finished run")
    uses_grades = values.get("method") == "beyond_clip" or values.get("contrast", {}).get("targets") == "labels"
    refuse_seen(run, values, found, data, fraction=config.data.labeled_fraction, uses_grades=uses_grades)
    start_encoder(student, found.tensors("teacher"), config.model.normalise, values, where=str(run.path))
    return True


def load_start(student: nn.Module, config: GraderConfig, data: KneeData, prompts: Mapping[str, Any]) -> None:
    """Load the teacher's weights from the best checkpoint of the run ``model.start`` into the student.

    The run may be of other images, such as phantom radiographs. Raises UserError if ``model.start`` is not a grader's run, has
    another network or normalisation, or was trained on what is held out here (``refuse_seen``) or on other ``prompts``.
    """
    path, normalise = Path(config.model.start), config.model.normalise
    run, values = open_run(path)
    found = run.checkpoints.best() if values.pop("kind") == "grader" else None
    if found is None:
        raise UserError(f"model.start: {path} has no checkpoint of a trained grader; give the folder of a finished run")
    refuse_seen(run, values, found, data, fraction=config.data.labeled_fraction, uses_grades=True)
    try:
        found.load_network("teacher", student)
    except UserError as error:
        raise UserError(f"model.start: {path} is of another network than this config's ({error})") from error
    if prompts and found.state.get("prompts") != json.loads(json.dumps(prompts))["prompts"]:
        raise UserError(
            f"model.start: {path} was trained on other phrases than this config's, and they are part of its weights; use its "
            "clip.prompts, or remove model.start"
        )
    before: GraderConfig = config_from_values(GraderConfig, values, where=str(run.config))
    if before.model.normalise != normalise:
        raise UserError(
            f"model.start: {path} was trained with model.normalise {before.model.normalise}, this config has {normalise}; "
            f"give --model.normalise {before.model.normalise}, or remove model.start"
        )
