"""What CLIP-KOA's network is made of, as plain values: quick to import, checked when built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScaleKind = Literal["learned", "fixed", "cosine"]
LARGEST_SCALE = 100.0
LARGEST_DIMENSION = 65_536
TIMM = "timm:"
EXTERNAL = "--external-model"
"""The option of a command that lets a run folder name a model of a hub or of a folder."""


@dataclass(frozen=True)
class ClipConfig:
    """The towers, prompts and scale of a grader that matches images to text."""

    image: str = "ViT-B-16-quickgelu"
    """Image tower: a model of open_clip, biomedclip, hf-hub:ORG/REPO, local-dir:FOLDER, or timm:BACKBONE."""
    text: str = "same"
    """Text tower: same (the image model's own), small (random, tiny), another of open_clip's models, or a file of
    embeddings of the grades (.npy, K rows)."""
    pretrained: bool | str = True
    """Weights of the image tower: true (the hub's), a tag of open_clip's, a local file or folder, or false (random)."""
    text_pretrained: bool | str = True
    """The same for the text tower where it is another model."""
    prompts: str = ""
    """Prompt set: a name (kl, cartilage) or the path of a YAML; empty: the one named as the grade set is."""
    train_image: bool = True
    """Train the image tower; a new projection is trained in any case."""
    train_text: bool = True
    """Train the text tower; a frozen one is run once."""
    embed_dim: int = 128
    """Dimensions of the shared space where no CLIP model says (timm image tower, small text tower)."""
    stride: int = 16
    """Input pixels per patch of a timm image tower; 0 keeps the backbone's own."""
    stage: int = -1
    """Which stage's feature map of a timm image tower; -1 is the last; later stages are cut off."""
    scale: ScaleKind = "learned"
    """The factor on the cosines: learned as CLIP's, fixed, or cosine (1, as the paper prints)."""
    scale_start: float | None = None
    """Where a learned scale starts, or the fixed one; empty: the pretrained model's, else 14.3."""

    def __post_init__(self) -> None:
        if self.embed_dim < 2:
            raise ValueError(f"clip.embed_dim is {self.embed_dim}; it must be 2 or more")
        if self.embed_dim > LARGEST_DIMENSION:
            raise ValueError(f"clip.embed_dim is {self.embed_dim}; it must be at most {LARGEST_DIMENSION}")
        if self.stride < 0:
            raise ValueError(f"clip.stride is {self.stride}; it must be 0 or more")
        if self.scale_start is not None and not 0 < self.scale_start <= LARGEST_SCALE:
            raise ValueError(
                f"clip.scale_start is {self.scale_start}; it must be above 0 and at most {LARGEST_SCALE:g}"
            )
        if self.image.startswith(TIMM) and self.text == "same":
            raise ValueError("clip.text is same, but a timm backbone has no text tower; write small, or a CLIP model")
