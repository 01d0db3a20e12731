"""Drawn anatomy: lesions have their extents, spots fade with distance, parts of a patient are independent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from knee.phantom.anatomy import (
    FULL,
    LESION_WIDTH_MM,
    NORMAL,
    PARTIAL,
    PARTIAL_DEPTH,
    Blob,
    Defect,
    draw_lesion,
    draw_patient,
)


def lesions(chances: tuple[float, float], slices: int = 12) -> list:
    options = {"chances": chances, "places": (-0.5, 0.5), "drift": 0.1}
    return [draw_lesion(np.random.default_rng(seed), slices, **options) for seed in range(100)]


def grades(lesion) -> list[int]:
    return [lesion.in_slice(index).grade for index in range(len(lesion.depths))]


@pytest.mark.parametrize(("depth", "grade"), [(0.0, NORMAL), (0.38, PARTIAL), (0.99, PARTIAL), (1.0, FULL)])
def test_the_grade_is_that_of_the_depth(depth: float, grade: int) -> None:
    assert Defect(depth=depth, place=0.0, width_mm=9.0, fill=1.0).grade == grade


def test_each_kind_of_lesion_has_its_grades_in_one_piece() -> None:
    assert all(set(grades(lesion)) == {NORMAL} for lesion in lesions((0.0, 0.0)))
    for chances, worst in (((1.0, 0.0), PARTIAL), ((0.0, 1.0), FULL)):
        for lesion in lesions(chances):
            found = grades(lesion)
            assert max(found) == worst
            affected = [index for index, grade in enumerate(found) if grade]
            assert affected == list(range(affected[0], affected[-1] + 1))
            core = [index for index, grade in enumerate(found) if grade == worst]
            assert core == list(range(core[0], core[-1] + 1)), "a full lesion has its rim outside"
            depths = [depth for depth in lesion.depths if 0 < depth < 1]
            assert all(PARTIAL_DEPTH[0] <= depth <= PARTIAL_DEPTH[1] for depth in depths)
            assert all(LESION_WIDTH_MM[0] <= width <= LESION_WIDTH_MM[1] for width in lesion.widths_mm)


def test_places_move_by_the_drift_around_the_middle() -> None:
    lesion = lesions((0.0, 1.0), slices=5)[0]
    places = [lesion.in_slice(index).place for index in range(5)]
    assert np.diff(places) == pytest.approx([lesion.drift] * 4)
    assert places[2] == lesion.place


def test_a_spot_is_widest_at_its_depth_and_gone_at_its_reach() -> None:
    blob = Blob(centre=(0.0, 0.0), radii=(2.0, 2.0), turn=0.0, signal=1.0, depth=0.2, reach=0.5)
    assert blob.width_at(0.2) == 1
    assert [blob.width_at(position) for position in (0.7, -0.3, 3.0)] == pytest.approx([0, 0, 0], abs=1e-6)
    assert blob.width_at(0.5) == pytest.approx(0.8)  # a semicircle: 0.6 of the reach away


def test_a_patient_is_its_seed_and_the_number_of_slices_changes_only_its_lesions() -> None:
    one, same, longer = (draw_patient(np.random.default_rng(4), slices) for slices in (6, 6, 9))
    assert one == same != draw_patient(np.random.default_rng(5), 6)
    assert dataclasses.replace(longer, lesion=one.lesion, tibial_lesion=one.tibial_lesion) == one
