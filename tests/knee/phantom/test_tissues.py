"""Painted tissues: each stays within its outline, and lost cartilage shows what fills the defect."""

from __future__ import annotations

import numpy as np

from knee.phantom.anatomy import Blob
from knee.phantom.fields import Field, Lattice, plane
from knee.phantom.tissues import Cartilage, paint_blob, paint_bone, paint_cartilage

from .samples import patient

PAGE = plane(80, 40.0, turn=0.0, shift_mm=(0.0, 0.0), scale=1.0)
GRAIN = Lattice(np.random.default_rng(0))


def canvas(value: float = 0.5) -> Field:
    return np.full((80, 80), value, np.float32)


def test_a_bone_has_a_black_cortex_around_its_marrow() -> None:
    drawn = canvas()
    distance = np.asarray(np.sqrt(PAGE.x**2 + PAGE.y**2) - 12, np.float32)
    paint_bone(drawn, PAGE, distance, 0.25, GRAIN, cortex_mm=1.5)
    assert (drawn[distance > 1] == 0.5).all()
    assert np.abs(drawn[np.abs(distance + 0.9) < 0.15]).max() < 0.12
    marrow = drawn[distance < -3]
    assert 0.2 < marrow.mean() < 0.3 and marrow.min() > 0.25 * 0.6 and marrow.max() < 0.25 * 1.4


def test_a_spot_stays_inside_and_is_not_drawn_when_cut_at_its_end() -> None:
    blob = Blob(centre=(0.0, 0.0), radii=(6.0, 6.0), turn=0.0, signal=0.8, depth=0.0, reach=1.0)
    inside = np.asarray(PAGE.x < 0, np.float32)
    drawn = canvas()
    paint_blob(drawn, PAGE, blob, inside, position=0.0, signal=1.0, soft_mm=1.0)
    assert (drawn[PAGE.x > 0] == 0.5).all()
    assert drawn[40, 36] == np.float32(0.8)
    for position in (0.99, -0.99, 2.0):
        drawn = canvas()
        paint_blob(drawn, PAGE, blob, inside, position=position, signal=1.0, soft_mm=1.0)
        assert (drawn == 0.5).all()


def test_lost_cartilage_shows_what_fills_the_defect() -> None:
    person = patient(0)
    bone = PAGE.y.astype(np.float32)  # the bone's surface is y = 0, the plate lies in y from 0 to 4
    thickness, full = canvas(4.0), np.asarray(np.abs(PAGE.x) < 5, np.float32)
    middle, beside = (PAGE.y > 1) & (PAGE.y < 3) & (np.abs(PAGE.x) < 4), (PAGE.y > 1) & (PAGE.y < 3) & (PAGE.x > 6)
    for fill in (0.0, 1.0):
        drawn = canvas(0.0)
        paint_cartilage(drawn, PAGE, person, Cartilage(bone, thickness, full, fill), GRAIN)
        wanted = person.tissue.fluid if fill else 0.35
        assert np.allclose(drawn[middle], wanted, atol=1e-5)
        ratio = drawn[beside] / person.tissue.cartilage
        assert ratio.min() >= 0.86 * 0.93 and ratio.max() <= 1.06 * 1.07
        assert (drawn[(PAGE.y < -1) | (PAGE.y > 5)] == 0).all()
