"""Augmentation strengths: plain numbers, their limits, and three presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from knee.errors import Faults, UserError

TEACHER_PHOTOMETRICS = ("same", "weak", "none")

# Smallest and largest value of each strength. Beyond the largest, an image may no longer show its grade.
_LIMITS: dict[str, tuple[float, float]] = {
    "horizontal_flip": (0.0, 1.0),
    "rotate_degrees": (0.0, 180.0),
    "translate": (0.0, 0.5),
    "zoom_out": (0.0, 0.9),
    "zoom_in": (0.0, 4.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 1.0),
    "gamma": (0.0, 0.9),
    "blur_pixels": (0.0, 20.0),
    "noise": (0.0, 1.0),
    "cutout_count": (0, 64),
    "cutout_size": (0.0, 0.9),
}


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Augmentation strengths. Each is the maximum of a uniform distribution; 0 disables the transform.

    The defaults are the weak views. Raises ``Faults`` naming every value that is out of range.
    """

    horizontal_flip: float = 0.5
    """Probability of a horizontal flip."""
    rotate_degrees: float = 5.0
    """Rotation by up to this many degrees, in either direction."""
    translate: float = 0.03
    """Shift by up to this fraction of the image's side, along each axis, in either direction."""
    zoom_out: float = 0.05
    """Scale from 1 − zoom_out …; the padding is black."""
    zoom_in: float = 0.05
    """… to 1 + zoom_in, which crops."""
    brightness: float = 0.05
    """Offset added to the intensities: up to ± this fraction of the full range."""
    contrast: float = 0.1
    """Intensities are multiplied by a factor within 1 ± this."""
    gamma: float = 0.0
    """Intensities in [0, 1] are raised to a power within 1 ± gamma."""
    blur_pixels: float = 0.0
    """Standard deviation of a Gaussian blur, up to this many pixels of the prepared image."""
    noise: float = 0.02
    """Standard deviation of Gaussian noise, up to this fraction of the full range."""
    cutout_count: int = 0
    """Maximum number of black rectangles (cutout); 0 to this many are equally likely."""
    cutout_size: float = 0.15
    """Side lengths of the black rectangles: from half of this to this fraction of the image's side."""
    teacher_photometric: Literal["same", "weak", "none"] = "same"
    """Photometric augmentation of the teacher's view: as strong as the student's, as in the weak views, or none."""

    def __post_init__(self) -> None:
        faults = []
        for name, (low, high) in _LIMITS.items():
            value: Any = getattr(self, name)
            kinds = (int,) if name == "cutout_count" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                number = "whole number" if name == "cutout_count" else "number"
                faults.append(f"{name} is {value!r}; give a {number} from {low:g} to {high:g}")
        if self.teacher_photometric not in TEACHER_PHOTOMETRICS:
            faults.append(
                f"teacher_photometric is {self.teacher_photometric!r}; give one of {', '.join(TEACHER_PHOTOMETRICS)}"
            )
        if faults:
            raise Faults(faults, summary="views: values out of range")


def weak_views() -> ViewConfig:
    """Small changes of pose and exposure, such as between two acquisitions of the same knee."""
    return ViewConfig()


def strong_views() -> ViewConfig:
    """Views that differ clearly, including cutout, and still show the grade."""
    return ViewConfig(
        rotate_degrees=10.0,
        translate=0.06,
        zoom_out=0.1,
        zoom_in=0.15,
        brightness=0.1,
        contrast=0.2,
        gamma=0.3,
        blur_pixels=1.0,
        noise=0.04,
        cutout_count=2,
        cutout_size=0.2,
    )


def no_views() -> ViewConfig:
    """Unaugmented views: both are the image itself."""
    zeros: dict[str, Any] = dict.fromkeys(_LIMITS, 0)
    return ViewConfig(**zeros)


PRESETS = {"weak": weak_views, "strong": strong_views, "none": no_views}


def views_from(preset: str, **changes: Any) -> ViewConfig:
    """A preset (``weak``, ``strong``, ``none``) with some values changed, as given in configuration files.

    Raises ``UserError`` for an unknown preset or name, ``Faults`` for values out of range.

    >>> views_from("strong", rotate_degrees=3).rotate_degrees
    3
    """
    if preset not in PRESETS:
        raise UserError(f"views: preset {preset!r} is not known; give one of {', '.join(PRESETS)}")
    known = [field.name for field in fields(ViewConfig)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise UserError(f"views: {', '.join(unknown)} not known; known are preset, {', '.join(known)}")
    return replace(PRESETS[preset](), **changes)
