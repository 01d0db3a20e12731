"""The section ``data`` of a configuration: the images, and which of them are labeled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from knee.errors import require


@dataclass(frozen=True)
class DataConfig:
    """The images, and which of them are labeled."""

    manifest: str = "data/phantom/manifest.csv"
    """The manifest: one row per image (see README)."""
    split: str = "data_splits/phantom.csv"
    """The split file; `dcmt split` writes one."""
    grade_set: str = "cartilage"
    """kl, cartilage, or the path of a YAML with a class set of your own."""
    labeled_fraction: float = 1.0
    """Share of the training patients whose grades are used, in (0, 1]; the other training images are unlabeled."""
    image_size: int = 96
    """Side length of the networks' square input image, in pixels."""
    labeled_per_batch: int = 20
    """Labeled images in a batch."""
    unlabeled_per_batch: int = 10
    """Unlabeled images in a batch; 0 trains on the labeled images only."""
    slices_per_knee: int = 1
    """With volumes (column series): the slices of a knee in a batch, which then counts knees; their pooled prediction is
    trained on the knee's grade. 1: each slice is trained on it."""
    targets: str = ""
    """A file of soft targets, as dcmt self-train writes it; its images replace the unlabeled ones."""
    mask_dilation: float = 18.0
    """Diameter of the ellipse that dilates the cartilage masks, in pixels of a 256-pixel image; 0 disables dilation."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Grey values at these percentiles become black and white."""
    mirror_side: Literal["none", "L", "R"] = "none"
    """Flip the knees of this side horizontally, so that medial is on the same side in every image."""
    invert: Literal["auto", "never"] = "never"
    """auto: images that appear to be photographic negatives of the others are inverted."""
    workers: int = 0
    """Processes that prepare batches; 0 prepares them in the main process."""
    cache: str = ""
    """Folder of the decoded-image cache; empty: `cache` next to the manifest."""
    allow_missing_grades: bool = False
    """Train even if no labeled image has one of the grades."""
    skip_bad: bool = False
    """Leave out the manifest's bad rows and list them in local/rejected.csv of the run folder."""

    def __post_init__(self) -> None:
        require(0 < self.labeled_fraction <= 1, "data.labeled_fraction", self.labeled_fraction, "above 0 and at most 1")
        require(16 <= self.image_size <= 2048, "data.image_size", self.image_size, "from 16 to 2048 pixels")
        require(
            1 <= self.labeled_per_batch <= 10_000, "data.labeled_per_batch", self.labeled_per_batch, "from 1 to 10,000"
        )
        require(
            0 <= self.unlabeled_per_batch <= 10_000,
            "data.unlabeled_per_batch",
            self.unlabeled_per_batch,
            "from 0 to 10,000",
        )
        require(
            not self.targets or self.unlabeled_per_batch > 0,
            "data.unlabeled_per_batch",
            self.unlabeled_per_batch,
            "above 0 if data.targets is given",
        )
        require(1 <= self.slices_per_knee <= 256, "data.slices_per_knee", self.slices_per_knee, "from 1 to 256")
        require(
            self.slices_per_knee == 1 or not self.targets,
            "data.slices_per_knee",
            self.slices_per_knee,
            "1 if data.targets is given",
        )
        require(0 <= self.mask_dilation <= 256, "data.mask_dilation", self.mask_dilation, "from 0 to 256 pixels")
        low, high = self.percentiles
        require(0 <= low < high <= 100, "data.percentiles", self.percentiles, "two rising numbers from 0 to 100")
        require(0 <= self.workers <= 256, "data.workers", self.workers, "from 0 to 256 processes")
