"""Table columns: names, refusals, groups of equal rows."""

from __future__ import annotations

import pandas as pd
import pytest

from image_text.table import column_names, covariate_groups, require_columns
from knee.errors import UserError


@pytest.mark.parametrize(
    "name", ["grade", "KL", "V00XRJSM", "osteophytes", "Joint space", "kl_right", "Pfirrmann", "disc_height_mm"]
)
def test_grades_are_no_inputs(name: str) -> None:
    with pytest.raises(UserError, match="is a grade, or a finding that determines it"):
        column_names(f"age,{name}")


def test_names() -> None:
    assert column_names(" age , sex,") == ("age", "sex")
    with pytest.raises(UserError, match="'age' is given twice"):
        column_names("age,sex,age")
    with pytest.raises(UserError, match="has no column 'bmi'; join it with dcmt manifest … --table bmi"):
        require_columns(pd.DataFrame({"age": []}), ("age", "bmi"), where="m.csv")


def test_groups() -> None:
    table = pd.DataFrame({"age": ["60", "60", "", "60"], "sex": ["F", "M", "", "F"]})
    assert covariate_groups(table, ("age", "sex")).tolist() == [0, 1, 2, 0]
    assert covariate_groups(table, ()).tolist() == [0, 0, 0, 0]
