"""The sections ``optimizer``, ``fit`` and ``report``, which the configs of all training runs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from knee.errors import require

Precision = Literal["auto", "fp32", "bf16", "fp16"]
EXTERNAL = "--external-model"
"""The option of a command that allows a run folder to name a model of a hub or of another folder."""
EXTERNAL_HELP = (
    f"  {EXTERNAL}       with --resume: allow a model of a hub or a folder in the run; only for runs that you trust\n"
)
"""Its line in the help of a training command."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

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
    """Maximum norm of the gradient; 0: no clipping."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True)
class FitConfig:
    """The training loop."""

    steps: int = 1000
    """Optimizer steps of the run; ignored if epochs is given."""
    epochs: int = 0
    """Passes over the stream that needs more batches; 0: use steps instead."""
    accumulation: int = 1
    """Batches whose gradients are averaged for one optimizer step."""
    precision: Precision = "auto"
    """auto: bf16 if it is faster than fp32 in a short trial (CPU) or supported by the GPU, else fp32."""
    device: str = "auto"
    """auto (CUDA, then Apple MPS, then CPU), cpu, cuda, cuda:1, mps."""
    channels_last: bool = True
    """Use the memory layout that is faster for convolutions."""
    sync_batch_norm: Literal["auto", "always", "never"] = "auto"
    """Normalise over the images of all processes, as one process does; auto: with fewer than 16 images in each process."""
    compile: bool = False
    """torch.compile the networks."""
    threads: int = 0
    """CPU threads of torch; 0: torch's own choice."""
    seed: int = 0
    """Seed of weights, batches and views."""
    deterministic: bool = False
    """Use deterministic CUDA kernels (slower); the CPU is always deterministic."""
    validate_every: int = 0
    """Steps between validations; 0: ten validations in the run."""
    log_every: int = 10
    """Steps between rows of metrics.csv and TensorBoard; losses are averaged over them."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, in addition to those after each validation."""
    patience: int = 0
    """Stop after this many validations without a better teacher; 0: never."""
    most_bad_steps: int = 20
    """Stop after this many consecutive steps with a loss or gradient that is not finite."""

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
    """What a run records."""

    tensorboard: bool = True
    """Write TensorBoard events."""
    cases: int = 8
    """Fixed validation cases whose attention is drawn at every validation, at most 16."""
    bootstrap: int = 1000
    """Bootstrap samples (patients drawn with replacement) of the intervals in metrics_SPLIT.json."""

    def __post_init__(self) -> None:
        require(0 <= self.cases <= 16, "report.cases", self.cases, "from 0 to 16")
        require(100 <= self.bootstrap <= 10**6, "report.bootstrap", self.bootstrap, "from 100 to 1,000,000")
