"""Names of files and of slices in a volume."""

import pytest

from knee.errors import UserError
from knee.images.read import read_pixels
from knee.images.slices import is_file, split_slice


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x" * 300 + ".nii#3", "y" * 5000 + "/a.png", "a\0b.png"])
def test_a_name_that_cannot_exist_is_refused_as_any_missing_file(tmp_path, name):
    assert not is_file(tmp_path / name)
    assert split_slice(f"{tmp_path}/{name}")[1] == (3 if "#3" in name else None)
    with pytest.raises(UserError):
        read_pixels(tmp_path / name)


def test_split_slice(tmp_path):
    assert split_slice("a/v.nii#12")[1] == 12
    assert split_slice("a/v.nii") == (split_slice("a/v.nii#3")[0], None)
    assert split_slice("a/v#x.nii")[1] is None
    (tmp_path / "odd#3").touch()
    assert split_slice(tmp_path / "odd#3") == (tmp_path / "odd#3", None)
