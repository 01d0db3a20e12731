"""Configuration of the cartilage segmenter: plain values, quick to import, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass, field

from knee.data.config import DataConfig
from knee.data.view_config import ViewConfig, strong_views
from knee.engine.config import FitConfig, OptimizerConfig, ReportConfig


@dataclass(frozen=True)
class UnetConfig:
    """The U-Net of segmentation-models-pytorch, and the weights of its losses."""

    encoder: str = "resnet18"
    """Any encoder of segmentation-models-pytorch; timm's encoders as tu-NAME, also
    tu-hf-hub:ORG/REPO and tu-local-dir:FOLDER."""
    encoder_weights: str = ""
    """imagenet, or empty for random weights."""
    dice_weight: float = 1.0
    """Weight of the Dice loss."""
    cross_entropy_weight: float = 1.0
    """Weight of the binary cross-entropy."""

    def __post_init__(self) -> None:
        for name in ("dice_weight", "cross_entropy_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"unet.{name} is {getattr(self, name)}; it must be 0 or more")
        if not self.dice_weight + self.cross_entropy_weight:
            raise ValueError("unet.dice_weight and unet.cross_entropy_weight are both 0; one must be above 0")


@dataclass(frozen=True)
class SegmenterConfig:
    """A run that trains the cartilage segmenter."""

    name: str = ""
    """Name of the run; empty: the configuration's name and seed."""
    runs: str = "runs"
    """Folder that contains the run folders."""
    data: DataConfig = field(default_factory=lambda: DataConfig(unlabeled_per_batch=0))
    views: ViewConfig = field(default_factory=strong_views)
    unet: UnetConfig = field(default_factory=UnetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
