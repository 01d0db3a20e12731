"""The sections ``optimizer``, ``fit`` and ``report`` of a config: what every training run shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from knee.errors import require

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam and adamw with torch's betas; sgd with Nesterov momentum 0.9."""
    learning_rate: float = 1e-3
    """Base learning rate."""
    weight_decay: float = 1e-4
    """Weight decay (decoupled for adamw)."""
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    """How the learning rate changes over the run."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly at the start (constant and cosine)."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True)
class FitConfig:
    """The loop."""

    steps: int = 1000
    """Optimiser steps of the run; ignored where epochs is given."""
    epochs: int = 0
    """Passes over the stream that needs more batches; 0: count steps instead."""
    accumulation: int = 1
    """Batches whose gradients make one optimiser step."""
    precision: Precision = "auto"
    """auto: bf16 where a short trial is faster than fp32 (CPU) or the GPU supports it, else fp32."""
    device: str = "auto"
    """auto (CUDA, then Apple MPS, then CPU), cpu, cuda, cuda:1, mps."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile the networks."""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice."""
    seed: int = 0
    """Seed of weights, batches and views."""
    deterministic: bool = False
    """Deterministic CUDA kernels (slower); the CPU is deterministic anyway."""
    validate_every: int = 0
    """Steps between validations; 0: ten over the run."""
    log_every: int = 10
    """Steps between rows of metrics.csv and TensorBoard; losses are averaged over them."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, besides those after each validation."""
    patience: int = 0
    """Validations without a better teacher after which training stops; 0: never."""
    most_bad_steps: int = 20
    """Steps in a row with a loss or gradient that is not finite after which the run ends."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("epochs", 0), ("accumulation", 1), ("validate_every", 0), ("log_every", 1)):
            require(getattr(self, name) >= least, f"fit.{name}", getattr(self, name), f"{least} or more")
        require(0 <= self.threads <= 1024, "fit.threads", self.threads, "from 0 to 1,024")
        require(0 <= self.seed < 2**63, "fit.seed", self.seed, "from 0 to 2⁶³ − 1")
        require(
            self.checkpoint_minutes > 0, "fit.checkpoint_minutes", self.checkpoint_minutes, "above 0", infinite=True
        )
        require(self.patience >= 0, "fit.patience", self.patience, "0 or more")
        require(self.most_bad_steps >= 1, "fit.most_bad_steps", self.most_bad_steps, "1 or more")


@dataclass(frozen=True)
class ReportConfig:
    """What a run records of itself."""

    tensorboard: bool = True
    """Write TensorBoard events."""
    cases: int = 8
    """Fixed validation cases whose attention is drawn at every validation, at most 16."""
    bootstrap: int = 1000
    """Bootstrap samples (patients drawn with replacement) of the intervals in metrics_SPLIT.json."""

    def __post_init__(self) -> None:
        require(0 <= self.cases <= 16, "report.cases", self.cases, "from 0 to 16")
        require(100 <= self.bootstrap <= 10**6, "report.bootstrap", self.bootstrap, "from 100 to 1,000,000")
