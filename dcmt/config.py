"""The configuration of a run: frozen dataclasses, read from YAML and the command line, checked when built.

Each section holds plain values; the configured classes receive values, never the section. Field docstrings are the help
texts of the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from clip_koa.config import ClipConfig
from knee.attention import AttentionConfig
from knee.data.config import DataConfig
from knee.data.view_config import ViewConfig, strong_views
from knee.engine.config import FitConfig, OptimizerConfig, ReportConfig
from knee.errors import UserError, require
from knee.nn.normalise import Normalise


@dataclass(frozen=True)
class ModelConfig:
    """The network of student and teacher."""

    head: Literal["linear", "text"] = "linear"
    """linear: a timm backbone with a linear classifier, set here; text: images matched to the grades' texts, set under clip."""
    backbone: str = "resnet18"
    """Any timm model by name."""
    pretrained: bool = False
    """Start from ImageNet's weights of this name: those of an installed package (tf_efficientnet_lite0 with the extra
    `weights`), else timm's, which needs the network once."""
    weights: str = ""
    """Start from this local file (safetensors, or a state dict that loads without running code)."""
    start: str = ""
    """Start from the teacher of this run's best checkpoint (a run folder with the same network and split), or from the image
    encoder of an image-text run (method lumbarclip) that saw none of the images held out here."""
    stride: int = 16
    """Input pixels per position of the last feature map; 0 keeps the backbone's own."""
    stage: int = -1
    """The stage whose feature map is graded, in timm's numbering; -1 is the last. Later stages are cut off."""
    frozen_stages: int = 0
    """The stem and this many stages are not trained, which makes a step cheaper; for pretrained weights."""
    dropout: float = 0.0
    """Dropout rate of the pooled features."""
    normalise: Normalise = "image"
    """image: each image by its own mean and deviation; local: each pixel by those of its neighbourhood (radiographs of uneven
    exposure); fixed: all by those of the training set."""

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        require(self.stride >= 0, "model.stride", self.stride, "0 or more")
        require(self.frozen_stages >= 0, "model.frozen_stages", self.frozen_stages, "0 or more")
        both = self.pretrained and self.weights
        require(
            not both,
            "model.weights",
            self.weights,
            "empty if model.pretrained is true (or set model.pretrained to false)",
        )
        twice = self.start and (self.pretrained or self.weights)
        require(not twice, "model.start", self.start, "empty if model.pretrained or model.weights is given")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher (Eq. 1)."""

    decay: float | None = None
    """α of the moving average; empty: chosen so that 1/(1 − α) is 5 % of the run's steps."""
    buffers: Literal["own", "copy", "ema"] = "own"
    """The teacher's normalisation statistics: its own, copies of the student's, or averages of them."""

    def __post_init__(self) -> None:
        require(self.decay is None or 0 <= self.decay <= 1, "teacher.decay", self.decay, "in [0, 1]")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of Eq. 5. A term with weight 0 is not computed."""

    grade: float = 1.0
    """Weight of the cross-entropy of the labeled images."""
    label_spread: float = 0.0
    """Share of each label that goes to the neighbouring grades: soft labels."""
    ordinal: float = 0.0
    """Weight of the ordinal loss of the labeled images, beside the cross-entropy."""
    mixup: float = 0.0
    """α of mixup of the batch's images; 0: no mixup. No attention or flip losses; with consistency in method: mixmatch."""
    attention: float = 1.0
    """Weight of the attention loss (Eq. 2), on labeled images with a mask."""
    mse_weight: float = 0.5
    """λ_a of Eq. 2."""
    inside_weight: float = 0.001
    """λ_r of Eq. 2."""
    probability_consistency: float = 1.0
    """Weight of Eq. 3, on all images; multiplied by the ramp-up."""
    teacher_temperature: float = 1.0
    """Divides the teacher's logits in Eq. 3: 1 as printed; below 1 sharpens the targets."""
    teacher_flip: bool = False
    """The teacher's target in Eq. 3 is averaged over the image and its horizontal flip."""
    attention_consistency: float = 1.0
    """Weight of Eq. 4, on all images; multiplied by the ramp-up."""
    symmetry: bool = False
    """Average the cross-entropy over images and their horizontal flips, ½ (CE + CE^H), as in CLIP-KOA's Eq. 4."""
    flip_consistency: float = 0.0
    """λ of CLIP-KOA's Eq. 4: divergence of the predictions for an image and its flip. On unlabeled images times the ramp-up."""
    self_training: float = 1.0
    """Weight of the cross-entropy with the soft targets of data.targets, if these are given; without the ramp-up."""
    ramp: float = 1.0
    """Length of the ramp-up w(τ), as a share of the run's steps."""
    ramp_start: float = 0.0
    """Share of the run's steps before the ramp-up, with labeled images only and without flip consistency: an early teacher is
    not accurate enough, and an early student would become consistent by predicting the same grade for every image."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            require(value >= 0, f"loss.{option.name}", value, "0 or more")
        require(self.label_spread < 1, "loss.label_spread", self.label_spread, "at least 0 and below 1")
        spatial = ("attention", "attention_consistency", "flip_consistency", "symmetry")
        active = [name for name in spatial if getattr(self, name)]
        require(not (self.mixup and active), "loss.mixup", self.mixup, f"0 if {' and '.join(active)} have a weight")
        both = self.label_spread and self.symmetry
        require(not both, "loss.label_spread", self.label_spread, "0 if loss.symmetry is true")
        require(self.ramp_start < 1, "loss.ramp_start", self.ramp_start, "at least 0 and below 1")
        require(self.teacher_temperature > 0, "loss.teacher_temperature", self.teacher_temperature, "above 0")


@dataclass(frozen=True)
class FixMatchConfig:
    """Use of unlabeled images with ``method: fixmatch``; the other terms are set under loss (grade, attention)."""

    unlabeled_weight: float = 1.0
    """λ_u: weight of the cross-entropy of the pseudo-labels. With 0 unlabeled images are not used."""
    threshold: float = 0.95
    """τ: a pseudo-label is used if its probability is above τ (only with weighting: threshold)."""
    weighting: Literal["threshold", "softmatch"] = "threshold"
    """threshold: pseudo-labels above the threshold have weight 1, others 0; softmatch: weights by a truncated Gaussian."""
    distribution_alignment: Literal["none", "labeled_prior", "uniform"] = "none"
    """labeled_prior: predictions are rescaled so that their mean is that of the labels (ReMixMatch); uniform: only the weights
    are computed from rescaled predictions, whose mean is uniform (SoftMatch)."""
    momentum: float = 0.999
    """Momentum of the moving averages for softmatch and distribution alignment, per batch; short runs need a lower one."""

    def __post_init__(self) -> None:
        require(self.unlabeled_weight >= 0, "fixmatch.unlabeled_weight", self.unlabeled_weight, "0 or more")
        require(0 <= self.threshold <= 1, "fixmatch.threshold", self.threshold, "in [0, 1]")
        require(0 <= self.momentum < 1, "fixmatch.momentum", self.momentum, "at least 0 and below 1")


@dataclass(frozen=True)
class GraderConfig:
    """A run that trains graders: supervised, mean teacher, DC-MT, FixMatch, MixMatch, CLIP-KOA."""

    name: str = ""
    """Name of the run; empty: the config's name, fraction and seed."""
    runs: str = "runs"
    """Folder of the run folders."""
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=strong_views)
    model: ModelConfig = field(default_factory=ModelConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    method: Literal["mean_teacher", "fixmatch", "mixmatch"] = "mean_teacher"
    """How unlabeled images are used. mean_teacher: the losses of Eq. 5, set under loss (supervised training, DC-MT and CLIP-KOA
    are choices of its weights); fixmatch: pseudo-labels, set under fixmatch; mixmatch: the teacher's answers and mixed images,
    set under loss (mixup, probability_consistency, teacher_temperature, teacher_flip)."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fixmatch: FixMatchConfig = field(default_factory=FixMatchConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if self.method == "fixmatch":
            self._check_fixmatch()
        else:
            self._check_mean_teacher()
        if self.method == "mixmatch":
            self._check_mixmatch()
        model = self.model
        if model.head == "text" and model != ModelConfig(head="text", start=model.start, normalise=model.normalise):
            raise ValueError(
                "model.head is text, so the network is set under clip; of model keep only the options head, start and normalise"
            )
        if self.model.head == "linear" and self.clip != ClipConfig():
            raise ValueError(
                "options of clip are given but model.head is linear; write model.head: text, or remove them"
            )

    def refuse_parts(self, count: int) -> None:
        """Raises UserError if ``count`` processes cannot share a batch: its loss is not the mean of those of its parts."""
        whole = {
            "loss.mixup": bool(self.loss.mixup),
            "fixmatch.weighting softmatch": self.fixmatch.weighting == "softmatch",
            "fixmatch.distribution_alignment": self.fixmatch.distribution_alignment != "none",
        }
        if count > 1 and (used := [name for name, is_used in whole.items() if is_used]):
            raise UserError(
                f"{' and '.join(used)}: needs the whole batch in one process; start without torchrun, or leave it out"
            )

    def _check_mean_teacher(self) -> None:
        loss, slices = self.loss, self.data.slices_per_knee
        if slices > 1 and (
            active := [name for name in ("symmetry", "flip_consistency", "mixup") if getattr(loss, name)]
        ):
            raise ValueError(
                f"data.slices_per_knee is {slices}, and the losses {', '.join(active)} compare single images; set them to 0"
            )
        if self.method == "mean_teacher" and loss.mixup and loss.probability_consistency:
            raise ValueError(
                f"loss.mixup is {loss.mixup} and loss.probability_consistency {loss.probability_consistency}; set one to 0, or "
                "method: mixmatch, which mixes the teacher's answers, too"
            )
        consistency = loss.probability_consistency + loss.attention_consistency + loss.flip_consistency
        if self.data.targets:
            consistency += loss.self_training
        if self.data.unlabeled_per_batch and not consistency:
            raise ValueError(
                "data.unlabeled_per_batch is above 0 but no consistency loss has a weight, so the unlabeled images would "
                "have no effect; set data.unlabeled_per_batch to 0, or loss.probability_consistency above 0"
            )
        if self.fixmatch != FixMatchConfig():
            raise ValueError(
                f"options of fixmatch are given but method is {self.method}; write method: fixmatch, or remove them"
            )

    def _check_mixmatch(self) -> None:
        loss = self.loss
        if not loss.mixup or not loss.probability_consistency or not self.data.unlabeled_per_batch or loss.ordinal:
            raise ValueError(
                "method is mixmatch, which mixes labeled and unlabeled images; loss.mixup, loss.probability_consistency and "
                "data.unlabeled_per_batch must be above 0, loss.ordinal 0: stack configs/rows/mixmatch.yaml"
            )
        if self.data.targets or self.data.slices_per_knee > 1:
            raise ValueError("method is mixmatch: remove data.targets and data.slices_per_knee, or use mean_teacher")

    def _check_fixmatch(self) -> None:
        options, unlabeled = self.fixmatch, self.data.unlabeled_per_batch
        if self.data.slices_per_knee > 1:
            raise ValueError("data.slices_per_knee above 1 needs method: mean_teacher; fixmatch trains single images")
        consistency = ("probability_consistency", "attention_consistency", "flip_consistency", "symmetry")
        others = (*consistency, "label_spread", "ordinal", "mixup")
        if active := [name for name in others if getattr(self.loss, name)]:
            hint = " ".join(f"--loss.{name} {'false' if name == 'symmetry' else 0}" for name in active)
            raise ValueError(f"method is fixmatch, which does not have the losses {', '.join(active)}; add {hint}")
        if self.data.targets:
            raise ValueError("method is fixmatch, which makes its own targets; remove data.targets")
        if bool(unlabeled) != bool(options.unlabeled_weight):
            raise ValueError(
                f"method is fixmatch with data.unlabeled_per_batch {unlabeled} and fixmatch.unlabeled_weight "
                f"{options.unlabeled_weight:g}, so unlabeled images would have no effect; set both above 0, or both to 0"
            )
        if unlabeled == 1 and options.weighting == "softmatch":
            raise ValueError(
                "fixmatch.weighting softmatch needs the variance of a batch's confidences, so at least two unlabeled images; "
                "add --data.unlabeled_per_batch 2 or more"
            )
        if unlabeled and self.views.teacher_photometric == "same":
            raise ValueError(
                "method is fixmatch, which takes its pseudo-labels from a weak view, but views.teacher_photometric is same, "
                "so both views are strong; add --views.teacher_photometric weak (or none)"
            )
