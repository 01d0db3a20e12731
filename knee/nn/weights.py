"""Pretrained weights by name or from a file; each error is one sentence with hints."""

from __future__ import annotations

import difflib
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from knee.errors import UserError

_REACH_TIMEOUT_S = 5.0


def near_names(name: str, known: Collection[str]) -> str:
    """A hint with the known names most similar to ``name``, ignoring case; empty if there are none.

    >>> near_names("vit-b16", ["ViT-B-16", "RN50"])
    '; did you mean ViT-B-16?'
    """
    by_lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(by_lower[entry] for entry in near)}?" if near else ""


def no_download(name: str, option: str, error: Exception) -> UserError:
    """The error for weights that cannot be downloaded from the hub, with two alternatives as hints."""
    return UserError(
        f"{name} could not be downloaded ({_reason(error)}); give a local file or folder by {option}, or start from "
        f"random weights by {option}: false"
    )


def misfit(path: str | Path, name: str, error: Exception) -> UserError:
    """The error for weights that do not fit the network."""
    return UserError(
        f"{path} does not hold weights of {name} ({_reason(error)}); it is of another architecture, damaged, or not a "
        "state dict that loads without running code (best saved as safetensors): name the model that it was saved from"
    )


@contextmanager
def no_retries_offline() -> Iterator[None]:
    """If the hub cannot be reached, let huggingface_hub use its cache immediately.

    Without this it retries every file for most of a minute, and logs each try.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not can_reach(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def can_reach(address: str) -> bool:
    """Whether a web server at ``address`` responds within five seconds, through the proxies of the environment."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_REACH_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True  # The server responded, although it refused this request.
    except OSError:
        return False


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """A state dict from safetensors or a torch file, read without running code.

    Raises:
        UserError: no such file, or not weights.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("entries that are not tensors")
    except Exception as error:
        raise misfit(path, name, error) from error
    return dict(state)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line only reports that loading failed; the second line gives the reason.
    text = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else (lines or [""])[0]
    if "Weights only load failed" in text:
        return "nothing that loads without running code"
    if "locate the file on the Hub" in text:
        return "the hub was not reached, and the file is not in the local cache"
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
