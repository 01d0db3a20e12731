"""What this machine is good at."""

from __future__ import annotations

import torch


def fast_precision() -> str:
    """The precision of a CPU's runs: bf16 where the processor multiplies tiles of it (AMX), else fp32.

    Told from what the processor can do: timing both beside another run may choose one for this row and the other for the
    next. Without tiles bf16 takes half as long again as fp32 (`docs/log.md`). A GPU's study leaves it to the run.
    """
    # Not there in the oldest torch that we allow.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "fp32"
