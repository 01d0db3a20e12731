"""The configuration of a run: frozen dataclasses, filled from YAML and the command line, checked when built.

Each section holds plain values; the classes they configure receive values, never the section. Field docstrings are the
help texts of the command line.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from clip_koa.config import ClipConfig
from knee.normalise import Normalise
from knee.view_config import ViewConfig, strong_views
from segmentation.config import UnetConfig

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_MAY_BE_INFINITE = ("fit.checkpoint_minutes",)


def _require(condition: bool, option: str, value: object, wanted: str) -> None:
    finite = not isinstance(value, float) or math.isfinite(value) or option in _MAY_BE_INFINITE
    if not (condition and finite):
        raise ValueError(f"{option} is {value!r}; it must be {wanted}")


@dataclass(frozen=True)
class DataConfig:
    """The images, and which of them are labeled."""

    manifest: str = "data/phantom/manifest.csv"
    """The manifest: one row an image (see README)."""
    split: str = "data_splits/phantom.csv"
    """The split file; `dcmt split` writes one."""
    grade_set: str = "cartilage"
    """kl, cartilage, or the path of a YAML with a class set of your own."""
    labeled_fraction: float = 1.0
    """Share of the training patients whose grades are used, in (0, 1]; the other training images are unlabeled."""
    image_size: int = 96
    """Side of the square image the networks see, in pixels."""
    labeled_per_batch: int = 20
    """Labeled images in a batch."""
    unlabeled_per_batch: int = 10
    """Unlabeled images in a batch; 0 trains on the labeled ones alone."""
    mask_dilation: float = 18.0
    """Diameter of the ellipse that dilates the cartilage masks, in pixels of a 256-pixel image; 0 leaves them."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Grey values at these percentiles become black and white."""
    mirror_side: Literal["none", "L", "R"] = "none"
    """Mirror the knees of this side, so that medial is on the same side of every image."""
    invert: Literal["auto", "never"] = "never"
    """auto: images that look like photographic negatives of the others are inverted."""
    workers: int = 0
    """Processes that prepare batches; 0 prepares them in the main process."""
    cache: str = ""
    """Folder of the decoded-image cache; empty: `cache` beside the manifest."""
    allow_missing_grades: bool = False
    """Train even where the labeled images lack a grade."""
    skip_bad: bool = False
    """Go on without the manifest's bad rows, listing them in local/rejected.csv of the run folder."""

    def __post_init__(self) -> None:
        _require(
            0 < self.labeled_fraction <= 1, "data.labeled_fraction", self.labeled_fraction, "above 0 and at most 1"
        )
        _require(16 <= self.image_size <= 2048, "data.image_size", self.image_size, "from 16 to 2048 pixels")
        _require(
            1 <= self.labeled_per_batch <= 10_000, "data.labeled_per_batch", self.labeled_per_batch, "from 1 to 10,000"
        )
        _require(
            0 <= self.unlabeled_per_batch <= 10_000,
            "data.unlabeled_per_batch",
            self.unlabeled_per_batch,
            "from 0 to 10,000",
        )
        _require(0 <= self.mask_dilation <= 256, "data.mask_dilation", self.mask_dilation, "from 0 to 256 pixels")
        low, high = self.percentiles
        _require(0 <= low < high <= 100, "data.percentiles", self.percentiles, "two rising numbers from 0 to 100")
        _require(0 <= self.workers <= 256, "data.workers", self.workers, "from 0 to 256 processes")


@dataclass(frozen=True)
class ModelConfig:
    """The network of student and teacher."""

    head: Literal["linear", "text"] = "linear"
    """linear: a timm backbone and a classifier, set here; text: images matched to the grades' texts, set under clip."""
    backbone: str = "resnet18"
    """Any timm model by name."""
    pretrained: bool = False
    """Start from timm's weights for this name (needs the network once)."""
    weights: str = ""
    """Start from this local file (safetensors, or a state dict that loads without running code)."""
    start: str = ""
    """Start from the best checkpoint of this run: a folder, of the same network and split. Both networks get its teacher."""
    stride: int = 16
    """Input pixels per position of the last feature map; 0 keeps the backbone's own."""
    stage: int = -1
    """Which stage's feature map to grade from, as timm counts them; -1 is the last; later stages are cut off."""
    dropout: float = 0.0
    """Share of pooled features dropped in training."""
    normalise: Normalise = "image"
    """image: each image by its own mean and deviation; local: each pixel by those of its neighbourhood (radiographs of uneven
    exposure); fixed: all by those of the training set."""

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        _require(self.stride >= 0, "model.stride", self.stride, "0 or more")
        both = self.pretrained and self.weights
        _require(
            not both, "model.weights", self.weights, "empty where model.pretrained is true (or the other way round)"
        )
        twice = self.start and (self.pretrained or self.weights)
        _require(not twice, "model.start", self.start, "empty where model.pretrained or model.weights is given")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher (Eq. 1)."""

    decay: float | None = None
    """α of the moving average; empty: such that 1/(1 − α) is 5 % of the run's steps."""
    buffers: Literal["own", "copy", "ema"] = "own"
    """The teacher's normalisation statistics: its own, copies of the student's, or averages of them."""

    def __post_init__(self) -> None:
        _require(self.decay is None or 0 <= self.decay <= 1, "teacher.decay", self.decay, "in [0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of Eq. 5. Zero leaves a term out, forward pass and all."""

    grade: float = 1.0
    """Cross-entropy of the labeled images."""
    attention: float = 1.0
    """Attention loss, Eq. 2, on the labeled images that have a mask."""
    mse_weight: float = 0.5
    """λ_a of Eq. 2."""
    inside_weight: float = 0.001
    """λ_r of Eq. 2."""
    probability_consistency: float = 1.0
    """Eq. 3, all images; times the ramp."""
    teacher_temperature: float = 1.0
    """Divides the teacher's logits in Eq. 3: 1 as printed, below 1 surer answers to learn from."""
    teacher_mirror: bool = False
    """The teacher's answer in Eq. 3 is the mean of those to the image and to its mirror image."""
    attention_consistency: float = 1.0
    """Eq. 4, all images; times the ramp."""
    symmetry: bool = False
    """Cross-entropy of images and mirror images, ½ (CE + CE^H), as CLIP-KOA's Eq. 4."""
    flip_consistency: float = 0.0
    """λ of CLIP-KOA's Eq. 4: divergence of the answers to an image and its mirror image; times the ramp where unlabeled."""
    ramp: float = 1.0
    """Length of the ramp-up w(τ), as a share of the run's steps."""
    ramp_start: float = 0.0
    """Share of the run's steps before the ramp-up, on labeled images alone and without flip consistency: an early teacher has
    nothing to teach, and an early student agrees with itself by saying the same of every image."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            _require(value >= 0, f"loss.{option.name}", value, "0 or more")
        _require(self.ramp_start < 1, "loss.ramp_start", self.ramp_start, "at least 0 and below 1")
        _require(self.teacher_temperature > 0, "loss.teacher_temperature", self.teacher_temperature, "above 0")


@dataclass(frozen=True)
class AttentionConfig:
    """How class maps become attention."""

    sharpness: float = 100.0
    """ω of the soft threshold."""
    threshold: float = 0.4
    """σ₀ of the soft threshold."""
    detach_classifier: bool = True
    """The classifier's weights get no gradient through the class maps."""

    def __post_init__(self) -> None:
        _require(self.sharpness > 0, "attention.sharpness", self.sharpness, "above 0")
        _require(0 < self.threshold < 1, "attention.threshold", self.threshold, "in (0, 1)")


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
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        _require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


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
            _require(getattr(self, name) >= least, f"fit.{name}", getattr(self, name), f"{least} or more")
        _require(0 <= self.threads <= 1024, "fit.threads", self.threads, "from 0 to 1,024")
        _require(0 <= self.seed < 2**63, "fit.seed", self.seed, "from 0 to 2⁶³ − 1")
        _require(self.checkpoint_minutes > 0, "fit.checkpoint_minutes", self.checkpoint_minutes, "above 0")
        _require(self.patience >= 0, "fit.patience", self.patience, "0 or more")
        _require(self.most_bad_steps >= 1, "fit.most_bad_steps", self.most_bad_steps, "1 or more")


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
        _require(0 <= self.cases <= 16, "report.cases", self.cases, "from 0 to 16")
        _require(100 <= self.bootstrap <= 10**6, "report.bootstrap", self.bootstrap, "from 100 to 1,000,000")


@dataclass(frozen=True)
class GraderConfig:
    """A run that trains graders: supervised, mean teacher, DC-MT, CLIP-KOA."""

    name: str = ""
    """Name of the run; empty: the config's name, fraction and seed."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=strong_views)
    model: ModelConfig = field(default_factory=ModelConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        loss = self.loss
        consistency = loss.probability_consistency + loss.attention_consistency + loss.flip_consistency
        if self.data.unlabeled_per_batch and not consistency:
            raise ValueError(
                "data.unlabeled_per_batch is above 0 but no consistency loss has a weight, so the unlabeled images would "
                "teach nothing; set data.unlabeled_per_batch to 0, or loss.probability_consistency above 0"
            )
        model = self.model
        if model.head == "text" and model != ModelConfig(head="text", start=model.start, normalise=model.normalise):
            raise ValueError(
                "model.head is text, so the network is set under clip; leave the rest of model out, but start and normalise"
            )
        if self.model.head == "linear" and self.clip != ClipConfig():
            raise ValueError(
                "options of clip are given but model.head is linear; write model.head: text, or leave them out"
            )


@dataclass(frozen=True)
class SegmenterConfig:
    """A run that trains the cartilage segmenter."""

    name: str = ""
    """Name of the run; empty: the config's name and seed."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    data: DataConfig = field(default_factory=lambda: DataConfig(unlabeled_per_batch=0))
    views: ViewConfig = field(default_factory=strong_views)
    unet: UnetConfig = field(default_factory=UnetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
