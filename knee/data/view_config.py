"""How far views stray from the image: plain numbers, their limits, and three presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from knee.errors import Faults, UserError

TEACHER_PHOTOMETRICS = ("same", "weak", "none")

# Smallest and largest value of each strength. Beyond the largest an image no longer shows what its grade says.
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
    """How far views stray from the image; every strength is the largest, drawn uniformly, and 0 switches it off.

    The defaults are the weak views. Raises ``Faults`` that names every value out of its range.
    """

    horizontal_flip: float = 0.5
    """Probability of a left–right flip."""
    rotate_degrees: float = 5.0
    """Rotation by up to so many degrees, either way."""
    translate: float = 0.03
    """Shift by up to this fraction of the image's side, along each axis and either way."""
    zoom_out: float = 0.05
    """Scale from 1 − zoom_out …; what comes in from outside is black."""
    zoom_in: float = 0.05
    """… to 1 + zoom_in, which crops."""
    brightness: float = 0.05
    """Added to the intensities: up to ± this fraction of the full range."""
    contrast: float = 0.1
    """Intensities are multiplied by 1 ± up to this."""
    gamma: float = 0.0
    """Intensities in [0, 1] are raised to a power in 1 ± gamma."""
    blur_pixels: float = 0.0
    """Standard deviation of a Gaussian blur, up to so many pixels of the prepared image."""
    noise: float = 0.02
    """Standard deviation of Gaussian noise, up to this fraction of the full range."""
    cutout_count: int = 0
    """Black squares: 0 to so many, each number as likely."""
    cutout_size: float = 0.15
    """Sides of the black rectangles: half of this to this fraction of the image's side."""
    teacher_photometric: Literal["same", "weak", "none"] = "same"
    """Strength of the teacher's photometric changes: the student's, the weak views', or none."""

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
    """Small shifts of pose and exposure: what another technician might have taken of the same knee."""
    return ViewConfig()


def strong_views() -> ViewConfig:
    """Views that differ clearly, black squares included, and still show the grade."""
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
    """Both views are the image itself."""
    zeros: dict[str, Any] = dict.fromkeys(_LIMITS, 0)
    return ViewConfig(**zeros)


PRESETS = {"weak": weak_views, "strong": strong_views, "none": no_views}


def views_from(preset: str, **changes: Any) -> ViewConfig:
    """A preset (``weak``, ``strong``, ``none``) with some of its values changed, as configuration files give them.

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
