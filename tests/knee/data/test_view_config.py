"""Options of the views: ranges, presets."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest

from knee.data.views import ViewConfig, strong_views, views_from, weak_views
from knee.errors import Faults, UserError


def test_a_configuration_is_read_without_albumentations() -> None:
    code = "import sys, knee.data.views as v; v.views_from('strong'); print('albumentations' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_values_out_of_range_are_reported_together() -> None:
    with pytest.raises(Faults) as caught:
        ViewConfig(rotate_degrees=-1, noise=2, cutout_count=1.5, teacher_photometric="strong")  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(caught.value.faults) == 4
    for part in ("rotate_degrees is -1", "from 0 to 180", "noise is 2", "a whole number", "same, weak, none"):
        assert part in message
    with pytest.raises(Faults, match="brightness is nan"):
        ViewConfig(brightness=float("nan"))
    with pytest.raises(Faults, match="contrast is 'a lot'"):
        views_from("weak", contrast="a lot")


def test_presets_with_changes() -> None:
    changed = views_from("strong", rotate_degrees=3.0)
    assert changed == replace(strong_views(), rotate_degrees=3.0)
    assert views_from("weak") == weak_views() == ViewConfig()
    strengths = [field.name for field in fields(ViewConfig) if field.name != "teacher_photometric"]
    assert all(getattr(strong_views(), name) >= getattr(weak_views(), name) for name in strengths)
    with pytest.raises(UserError, match="preset 'hard' is not known; give one of weak, strong, none"):
        views_from("hard")
    with pytest.raises(UserError, match="rotation not known; known are preset, horizontal_flip"):
        views_from("weak", rotation=3)
