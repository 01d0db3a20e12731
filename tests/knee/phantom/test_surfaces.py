"""Surfaces of the drawn bones and the lost share of cartilage."""

import dataclasses

import numpy as np

from knee.phantom.anatomy import draw_patient
from knee.phantom.surfaces import lost


def test_lost_share_at_the_middle_and_beyond() -> None:
    defect = draw_patient(np.random.default_rng(0), 8).lesion.in_slice(0)
    along = np.asarray([0.0, 3.0, 30.0], dtype=np.float32)
    flat = np.zeros(3, dtype=np.float32)
    full = lost(dataclasses.replace(defect, depth=1.0, width_mm=10.0), along, flat)
    assert full.tolist() == [1.0, 1.0, 0.0]
    half = lost(dataclasses.replace(defect, depth=0.5, width_mm=10.0), along, flat)
    assert half.tolist() == [0.5, 0.5, 0.0]
    assert not lost(dataclasses.replace(defect, depth=0.0), along, flat).any()
