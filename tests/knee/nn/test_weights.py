"""Weights files under any common prefix, and weights that an installed package holds, tensor by tensor in order."""

from __future__ import annotations

import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from knee.errors import UserError
from knee.nn import weights
from knee.nn.weights import (
    Packaged,
    can_reach,
    load_in_order,
    misfit,
    near_names,
    no_download,
    no_retries_offline,
    one_channel,
    packaged_file,
    read_state,
    without_prefixes,
)


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


def test_both_formats_give_the_tensors_that_were_saved(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    for name in ("w.safetensors", "plain.pt", "nested.pt"):
        found = read_state(tmp_path / name, "net")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_what_is_not_weights_is_refused_and_never_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Payload()}, tmp_path / "code.pt")
    torch.save({"a": torch.ones(1), "steps": 3}, tmp_path / "mixed.pt")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("code.pt", "mixed.pt", "text.safetensors"):
        with pytest.raises(
            UserError, match=rf"{name} does not hold weights of net \(.*\); it is of another architecture"
        ):
            read_state(tmp_path / name, "net")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        read_state(tmp_path / "none.pt", "net")


def test_reasons_are_one_line_and_the_one_that_matters() -> None:
    loading = RuntimeError("Error(s) in loading state_dict for Net:\n\tsize mismatch for a\n\tsize mismatch for b")
    assert "(RuntimeError: size mismatch for a)" in str(misfit("w.pt", "net", loading))
    assert "(ValueError)" in str(misfit("w.pt", "net", ValueError()))
    missing = OSError("We cannot locate the file on the Hub; please check")
    message = str(no_download("net", "model.pretrained", missing))
    assert "(the hub was not reached, and the file is not in the local cache)" in message
    assert "model.pretrained: false" in message
    assert len(str(misfit("w.pt", "net", ValueError("x" * 5000)))) < 500


def test_near_names_ignore_case_and_nothing_near_is_no_hint() -> None:
    assert near_names("RESNET18", ["resnet18", "resnet34", "vgg"]).startswith("; did you mean resnet18")
    assert near_names("qqqq", ["resnet18", "vgg"]) == ""
    assert near_names("x", []) == ""


@pytest.mark.parametrize("reached", [True, False])
def test_the_hub_is_offline_inside_only_and_only_if_not_reached(reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "can_reach", lambda address: reached)
    with pytest.raises(ZeroDivisionError), no_retries_offline():
        assert constants.HF_HUB_OFFLINE is not reached
        raise ZeroDivisionError
    assert constants.HF_HUB_OFFLINE is False


def test_a_server_that_refuses_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception):
        def urlopen(*_: object, **__: object) -> None:
            raise error

        return urlopen

    refused = urllib.error.HTTPError("https://hub", 403, "Forbidden", None, None)  # type: ignore[arg-type]
    for error, reached in ((refused, True), (urllib.error.URLError("no route"), False), (TimeoutError(), False)):
        monkeypatch.setattr("urllib.request.urlopen", fails(error))
        assert can_reach("https://hub") is reached
