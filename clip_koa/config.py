"""The configuration of CLIP-KOA's network as plain values: fast to import, checked when built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScaleKind = Literal["learned", "fixed", "cosine"]
LARGEST_SCALE = 100.0
LARGEST_DIMENSION = 65_536
TIMM = "timm:"


@dataclass(frozen=True)
class ClipConfig:
    """The towers, prompts and similarity scale of a grader that matches images to texts."""

    image: str = "ViT-B-16-quickgelu"
    """Image tower: an open_clip model, biomedclip, hf-hub:ORG/REPO, local-dir:FOLDER, or timm:BACKBONE."""
    text: str = "same"
    """Text tower: same (of the image model), small (tiny, random weights), another open_clip model, or a file with the
    embeddings of the grades (.npy, K rows)."""
    pretrained: bool | str = True
    """Weights of the image tower: true (from the hub), an open_clip tag, a local file or folder, or false (random)."""
    text_pretrained: bool | str = True
    """The same for the text tower, if it is another model."""
    prompts: str = ""
    """Prompt set: a name (kl, cartilage) or the path of a YAML file; empty: the one with the name of the grade set."""
    train_image: bool = True
    """Train the image tower; a new projection is always trained."""
    train_text: bool = True
    """Train the text tower; a frozen one is evaluated only once."""
    embed_dim: int = 128
    """Dimensions of the shared space, if no CLIP model sets them (timm image tower, small text tower)."""
    stride: int = 16
    """Input pixels per patch of a timm image tower; 0 keeps the backbone's own."""
    stage: int = -1
    """The stage of a timm image tower whose feature map is used; -1 is the last. Later stages are cut off."""
    scale: ScaleKind = "learned"
    """The factor of the cosine similarities: learned as in CLIP, fixed, or cosine (1, as printed in the paper)."""
    scale_start: float | None = None
    """Start of a learned scale, or the fixed scale; empty: that of the pretrained model, else 14.3."""

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
