"""Table columns as cells: kinds, gaps, scales from training rows, bad columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from image_text.joint.cells import CATEGORIES, read_cells
from knee.errors import Faults, UserError


def table(**columns: list[str]) -> pd.DataFrame:
    found = pd.DataFrame(columns)
    return found.assign(line=range(2, 2 + len(found)))


def test_numbers_categories_and_gaps() -> None:
    cells = read_cells(table(age=["60", "", "7,5"], sex=["F", "f ", "NA"]), ("age", "sex"), where="m.csv")
    np.testing.assert_array_equal(cells.numbers[:, 0], np.float32([60, np.nan, 7.5]))
    assert np.isnan(cells.numbers[:, 1]).all()
    assert cells.categories[0, 1] == cells.categories[1, 1] >= 0
    assert cells.categories[2, 1] == -1
    assert (cells.categories[:, 0] == -1).all()
    assert cells.numeric.tolist() == [True, False]
    assert cells.categories.max() < CATEGORIES
    assert len(set(cells.groups)) == 3


def test_scales_are_those_of_the_given_rows_alone() -> None:
    cells = read_cells(table(age=["10", "20", "", "1000"], one=["5", "5", "5", "5"]), ("age", "one"), where="m.csv")
    mean, std = cells.scales(np.array([0, 1, 2]))
    np.testing.assert_allclose(mean, [15, 5])
    np.testing.assert_allclose(std, [5, 1])


def test_a_row_without_any_cell_has_no_group() -> None:
    assert read_cells(table(age=["", "3"]), ("age",), where="m.csv").groups[0] == -1
    assert read_cells(table(age=["", "3"]), (), where="m.csv").numbers.shape == (2, 0)


def test_bad_columns() -> None:
    with pytest.raises(Faults, match="line 3: column 'age' has a text among numbers"):
        read_cells(table(age=["60", "sixty"]), ("age",), where="m.csv")
    with pytest.raises(UserError, match="column 'age' is empty in every row"):
        read_cells(table(age=["", "NA"]), ("age",), where="m.csv")
    with pytest.raises(UserError, match="has no column 'bmi'"):
        read_cells(table(age=["1"]), ("bmi",), where="m.csv")
