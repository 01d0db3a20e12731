"""What dcmt predict grades and writes: images found, names quoted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dcmt.commands.new_patients.graded_files import find_slices, root_of, write_table
from knee.errors import UserError


def test_names_are_quoted_for_spreadsheets(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", pd.DataFrame({"image": ["=1+1.png", "a.png"], "p_0": [-0.5, 1.0]}))
    assert (tmp_path / "t.csv").read_text() == "image,p_0\n'=1+1.png,-0.5\na.png,1.0\n"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no image"):
        find_slices(tmp_path, None)
    with pytest.raises(UserError, match="neither an image nor a folder"):
        find_slices(tmp_path / "none.png", None)
    assert root_of(tmp_path / "none.png") == tmp_path
    assert root_of(tmp_path) == tmp_path
