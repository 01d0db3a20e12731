"""Files of weights: tensors only, nothing that runs code, and errors that say what to give instead."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from knee.errors import UserError
from knee.nn import weights
from knee.nn.weights import can_reach, misfit, near_names, no_download, no_retries_offline, read_state


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
