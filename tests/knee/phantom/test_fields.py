"""Distance fields: planes, coverage, smooth unions."""

import numpy as np
import pytest

from knee.phantom.fields import Plane, coverage, ellipse, plane, smooth_union


def test_fields() -> None:
    page = plane(100, 100.0, turn=0.0, shift_mm=(0.0, 0.0), scale=1.0)
    assert page.x[0, 0] == -49.5 and page.y[99, 0] == 49.5 and page.pixel_mm == 1.0
    quarter: Plane = plane(100, 100.0, turn=np.pi / 2, shift_mm=(0.0, 0.0), scale=1.0)
    assert np.allclose(quarter.x, page.y, atol=1e-4)
    disc = ellipse(page, (0.0, 0.0), (20.0, 20.0))
    assert coverage(disc, 1.0).sum() == pytest.approx(np.pi * 400, rel=0.01)
    far = np.full((1, 1), 50.0, dtype=np.float32)
    assert smooth_union(far, -far, 2.0).item() == -50.0
    assert smooth_union(far * 0, far * 0, 2.0).item() == pytest.approx(-0.5)
