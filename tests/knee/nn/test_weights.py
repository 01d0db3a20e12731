"""Weights files under any common prefix, and weights that an installed package holds, tensor by tensor in order."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import Tensor, nn

from knee.errors import UserError
from knee.nn import weights
from knee.nn.weights import Packaged, load_in_order, one_channel, packaged_file, read_state, without_prefixes


def state() -> dict[str, Tensor]:
    return {"conv1.weight": torch.ones(2, 1, 3, 3), "bn1.bias": torch.zeros(2)}


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


@pytest.mark.parametrize(
    "saved",
    [
        state(),
        under("module."),
        under("_orig_mod."),
        under("module._orig_mod.backbone."),
        {"state_dict": under("module."), "epoch": 3},
        {"model": state(), "epoch": 3},
        {"model_state_dict": under("model.")},
        {"state_dict": {**under("backbone."), "fc.bias": torch.zeros(3)}},
    ],
)
def test_wrappers_and_prefixes_of_training_programs_are_removed(saved: dict[str, object], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pt")
    found = read_state(tmp_path / "w.pt", "resnet18")
    assert list(found) == list(state())
    assert all(torch.equal(found[name], value) for name, value in state().items())


def test_a_prefix_of_few_tensors_belongs_to_their_names() -> None:
    names = ["model.a", "b", "c"]
    assert list(without_prefixes(dict.fromkeys(names, torch.ones(1)))) == names


def small() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    return network


def renamed(network: nn.Module, *, rgb: bool = False) -> dict[str, Tensor]:
    """The network's tensors under names of other code, with a classifier at the end."""
    found = {}
    for number, (name, value) in enumerate(network.state_dict().items()):
        first = rgb and number == 0
        found[f"layer_{number}.{name.rpartition('.')[2]}"] = (value / 3).repeat(1, 3, 1, 1) if first else value.clone()
    return found | {"fc.weight": torch.zeros(4, 512), "fc.bias": torch.zeros(4)}


def test_tensors_are_loaded_in_order_whatever_their_names(tmp_path: Path) -> None:
    source, target = small(), small()
    with torch.no_grad():
        for value in source.parameters():
            value.add_(torch.randn_like(value))
    torch.save(renamed(source, rgb=True), tmp_path / "w.pt")
    load_in_order(target, tmp_path / "w.pt", "resnet10t")
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value)


@pytest.mark.parametrize("fault", ["shape", "kind", "missing"])
def test_tensors_that_differ_are_refused_and_change_nothing(fault: str, tmp_path: Path) -> None:
    given = renamed(small())
    names = list(given)
    if fault == "shape":
        given[names[5]] = torch.zeros(7)
    elif fault == "kind":  # a weight and a bias of equal shape, swapped
        place = next(i for i, name in enumerate(names) if name.endswith(".bias"))
        names[place - 1], names[place] = names[place], names[place - 1]
        given = {name: given[name] for name in names}
    else:
        given = {name: given[name] for name in names[:9]}
    torch.save(given, tmp_path / "w.pt")
    target = small()
    with pytest.raises(UserError, match=r"w\.pt does not hold weights of resnet10t"):
        load_in_order(target, tmp_path / "w.pt", "resnet10t")
    assert all(
        torch.equal(a, b) for a, b in zip(target.state_dict().values(), small().state_dict().values(), strict=True)
    )


def test_a_package_is_located_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Packaged("knee-weights", "knee_weights_of_a_test", "models/w.pt")
    monkeypatch.setattr(weights, "PACKAGED", {"resnet10t": package})
    assert packaged_file("resnet10t.c3_in1k") is None
    (tmp_path / package.module).mkdir()
    (tmp_path / package.module / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert packaged_file("resnet10t.c3_in1k") == tmp_path / package.module / "models" / "w.pt"
    assert packaged_file("resnet18") is None


def test_a_grey_image_counts_as_three_equal_channels() -> None:
    rgb, like = torch.randn(2, 3, 3, 3), torch.zeros(2, 1, 3, 3)
    assert torch.equal(one_channel(rgb, like=like), rgb.sum(1, keepdim=True))
    assert one_channel(like, like=like) is like
    assert one_channel(torch.zeros(2, 3), like=torch.zeros(2, 1)).shape == (2, 3)


def test_efficientnet_lite0_of_the_extra_recognises_a_uniform() -> None:
    """Class 652 of ImageNet is a military uniform; matplotlib ships a portrait of Rear Admiral Grace Hopper in hers."""
    file = packaged_file("tf_efficientnet_lite0")
    if file is None:
        pytest.skip("the extra weights is not installed")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    load_in_order(network, file, "tf_efficientnet_lite0")
    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    width, height = portrait.size
    square = portrait.crop((0, (height - width) // 2, width, (height + width) // 2)).resize((224, 224))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert int(network((pixels - 0.5) / 0.5).argmax()) == 652
