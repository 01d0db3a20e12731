"""Case names: the same for an image of a data set, different between data sets, the salt readable by its owner alone."""

import re
from pathlib import Path

import pytest

from knee.data.cases import case_name, case_names, load_salt
from knee.errors import UserError


def test_salt_is_drawn_once_and_private(tmp_path):
    salt = load_salt(tmp_path / "manifest.csv")
    assert len(salt) == 32
    assert load_salt(tmp_path / "manifest.csv") == salt
    assert load_salt(tmp_path / "other_version.csv") == salt
    (tmp_path / "other").mkdir()
    assert load_salt(tmp_path / "other" / "manifest.csv") != salt
    (file,) = tmp_path.glob(".case_salt*")
    assert file.stat().st_mode & 0o777 == 0o600


def test_fallback_where_the_manifest_cannot_be_written(tmp_path, monkeypatch):
    home, away = tmp_path / "data", tmp_path / "local"
    home.mkdir()
    make = Path.mkdir

    def refuse(self, *args, **options):
        if self == home:
            raise PermissionError(13, "Permission denied")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        load_salt(home / "manifest.csv")
    salt = load_salt(home / "manifest.csv", away)
    assert load_salt(home / "manifest.csv", away) == salt
    assert [p.name for p in away.iterdir()] == [".case_salt"]
    assert not list(home.iterdir())


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 8])
def test_damaged_salt_is_refused_not_replaced(tmp_path, content):
    file = tmp_path / ".case_salt"
    file.write_text(content)
    with pytest.raises(UserError, match="restore it"):
        load_salt(tmp_path / "manifest.csv")
    assert file.read_text() == content


def test_names():
    salts = [bytes([i]) * 32 for i in range(2)]
    names = {case_name(salt, f"train/0/{i}L.png") for salt in salts for i in range(500)}
    assert len(names) == 1000
    assert all(re.fullmatch("c[0-9a-f]{10}", name) for name in names)


def test_names_of_a_data_set_are_those_of_its_images_while_no_two_are_alike():
    images = [f"images/{number}.png" for number in range(3000)]
    assert case_names(bytes(32), images) == [case_name(bytes(32), image) for image in images]
    assert case_names(bytes(32), []) == []


def test_images_whose_names_would_be_alike_get_longer_ones(monkeypatch):
    """With two digits, as a million images would with ten."""
    short = case_name
    monkeypatch.setattr(
        "knee.data.cases.case_name",
        lambda salt, image, *, digits=10: short(salt, image, digits=2 if digits == 10 else digits),
    )
    images = [f"{number}.png" for number in range(40)]
    names = case_names(bytes(32), images)
    assert len(set(names)) == 40
    alike = {name: len(name) for name in names}
    assert set(alike.values()) == {3, 21}
    for image, name in zip(images, names, strict=True):
        assert short(bytes(32), image, digits=20).startswith(name)
