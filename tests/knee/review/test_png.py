"""Pictures of a review: the original's pixels, shown as the network saw them."""

from __future__ import annotations

import cv2
import nibabel
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.original import Source, read_original
from knee.images.read import prepare
from knee.review.nifti import NiftiWriter
from knee.review.png import PngWriter

from .conftest import SIZE


def test_pictures_have_the_originals_pixels_and_are_not_replaced(tmp_path, case_of, run):
    cv2.imwrite(str(tmp_path / "knee.png"), np.tile(np.arange(200, dtype=np.uint8), (150, 1)))
    case = case_of(tmp_path / "knee.png")
    original = read_original(case.source)
    paths = PngWriter(tmp_path / "out", run).add(case, original).files
    assert [path.name for path in paths] == ["000000000001_teacher.png", "000000000001_student.png"]
    picture = cv2.imread(str(paths[0]))
    assert picture.shape[1] == 600 and picture.shape[0] > 450
    assert np.ptp(picture[:450], axis=2).max() > 60
    plain = nibabel.load(NiftiWriter(tmp_path / "out").add(case, original).files[0])
    assert plain.shape == (150, 200, 1)
    with pytest.raises(UserError, match="exists already"):
        PngWriter(tmp_path / "out", run).add(case, original)
    cv2.imwrite(str(tmp_path / "knee.png"), np.zeros((10, 20), np.uint8))
    with pytest.raises(UserError, match="20 × 10 pixels now"):
        read_original(case.source)


def test_a_negative_is_shown_as_the_networks_saw_it(tmp_path, case_of, run):
    """What the cache turned into a positive, between the percentiles of the run's config."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    cv2.imwrite(str(tmp_path / "knee.png"), ramp)
    percentiles = (10.0, 80.0)
    image, geometry = prepare(ramp, SIZE, percentiles=percentiles, invert=True)
    original = read_original(Source(tmp_path / "knee.png", geometry, True, percentiles))
    assert original.grey[0, 0] == 255 and original.grey[0, -1] == 0
    assert (original.grey == 255).sum(1)[0] == pytest.approx(20, abs=1)
    assert (original.grey == 0).sum(1)[0] == pytest.approx(40, abs=1)
    seen = cv2.resize(original.grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(seen.astype(int) - image).max() <= 1
