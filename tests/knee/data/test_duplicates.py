"""A picture in two splits is refused, wherever its copies are; copies within a split are not a leak."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from knee.data.duplicates import refuse_shared_pictures
from knee.errors import Faults

TABLE = pd.DataFrame({"image": [f"{number}.png" for number in range(6)], "line": range(2, 8)})


def split_of(**rows: list[int]) -> Any:
    return SimpleNamespace(rows=lambda name: np.array(rows.get(name, []), dtype=np.int64))


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def test_a_picture_in_two_splits_is_refused_by_line_and_file() -> None:
    images = pictures()
    images[4] = images[1]
    split = split_of(train=[0, 1, 2], val=[3], test=[4, 5])
    with pytest.raises(Faults, match=r"m\.csv: 1 pictures are in two splits") as caught:
        refuse_shared_pictures(images, split, TABLE, where="m.csv")
    assert caught.value.faults == ("line 3 (train): 1.png; line 6 (test): 4.png",)


def test_copies_within_a_split_blank_images_and_unused_rows_are_no_leak() -> None:
    images = pictures()
    images[1] = images[0]  # both train
    images[3] = images[5] = 7  # nothing to see, in val and test
    images[4] = images[2]  # row 4 is in no split
    refuse_shared_pictures(images, split_of(train=[0, 1, 2], val=[3], test=[5]), TABLE, where="m.csv")
    with pytest.raises(Faults, match="1 pictures are in two splits"):  # the same pictures, row 4 in a split now
        refuse_shared_pictures(images, split_of(train=[0, 1, 2], val=[3], test=[4, 5]), TABLE, where="m.csv")
