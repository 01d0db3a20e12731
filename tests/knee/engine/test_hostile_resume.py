"""Resuming a stranger's checkpoint: optimiser, progress and losses that fit, or a refusal before the first step."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from knee.engine.fit import Fit
from knee.errors import UserError
from tests.hostile import IN_JSON, spoil

MakeFit = Callable[..., Fit]
PLACES = [
    *(
        (("progress", name))
        for name in ("step", "best_value", "best_step", "validations_since_best", "bad_steps", "seconds")
    ),
    ("progress",),
    ("scaler",),
    ("optimizer_groups",),
    ("optimizer_groups", 0),
    *(
        (("optimizer_groups", 0, name))
        for name in ("lr", "betas", "weight_decay", "eps", "params", "amsgrad", "maximize")
    ),
]
HARMLESS = {("best_value", "null"), ("best_value", "negative"), ("best_value", "a fraction"), ("seconds", "a fraction")}
HARMLESS |= {("lr", "negative"), ("lr", "a fraction"), ("maximize", "null")}


@pytest.fixture
def checkpoint(make_fit: MakeFit, tmp_path: Path) -> Path:
    """The only checkpoint of a run of four steps."""
    make_fit(steps=4).run()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000003")
    return tmp_path / "run" / "checkpoints" / "step_00000004"


def resume(make_fit: MakeFit) -> None:
    fit = make_fit(steps=5, resume=True)
    fit.run()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_plain_values(place: tuple[Any, ...], checkpoint: Path, make_fit: MakeFit) -> None:
    state, metrics = checkpoint / "state.json", checkpoint.parent.parent / "metrics.csv"
    before, rows, taken = state.read_bytes(), metrics.read_bytes(), []
    for name, raw in IN_JSON.items():
        if (place[-1], name) in HARMLESS:
            continue
        state.write_bytes(before)
        spoil(state, place, raw)
        try:
            resume(make_fit)
            taken.append(name)
        except UserError as error:
            assert str(checkpoint) in str(error)
    assert taken == []
    assert metrics.read_bytes() == rows, "refused before the first step"


def rewrite(checkpoint: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Tensors in the place of a file, checksum included."""
    path = checkpoint / f"{name}.safetensors"
    save_file(tensors, path)
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("0.exp_avg"),
        lambda tensors: tensors.update({"0.exp_avg": torch.zeros(7)}),
        lambda tensors: tensors.update({"0.step": torch.zeros(3)}),
        lambda tensors: tensors.update({"0.more": torch.zeros(())}),
        lambda tensors: tensors.update({"999.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"-1.exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"x.exp_avg": torch.zeros(1)}),
    ],
)
def test_moments(change: Callable[[dict[str, torch.Tensor]], object], checkpoint: Path, make_fit: MakeFit) -> None:
    tensors = load_file(checkpoint / "optimizer.safetensors")
    change(tensors)
    rewrite(checkpoint, "optimizer", tensors)
    with pytest.raises(UserError, match="does not fit this run"):
        resume(make_fit)


@pytest.mark.parametrize(
    "values",
    [torch.zeros(()), torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.complex64)],
)
def test_losses_not_yet_logged(values: torch.Tensor, checkpoint: Path, make_fit: MakeFit) -> None:
    rewrite(checkpoint, "window", {"loss/total": values})
    with pytest.raises(UserError, match="is not a row of losses"):
        resume(make_fit)


@pytest.mark.parametrize(
    "values", [torch.zeros(3), torch.zeros(5056, dtype=torch.uint8), torch.full((5056,), 255).byte()]
)
def test_random_state(values: torch.Tensor, checkpoint: Path, make_fit: MakeFit) -> None:
    rewrite(checkpoint, "random", {"cpu": values})
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="does not fit this run"):
        resume(make_fit)
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    "text", ["inf,loss,1", "9" * 5_000 + ",loss,1", "1,loss,x", "1,loss", "\ud7ff,,", "a" * 100_000]
)
def test_metrics_table(text: str, checkpoint: Path, make_fit: MakeFit) -> None:
    (checkpoint.parent.parent / "metrics.csv").write_text(f"step,name,value\n{text}\n2,loss/total,1\n")
    with pytest.raises(UserError, match=r"metrics\.csv line 2"):
        resume(make_fit)
