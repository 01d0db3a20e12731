"""Files of soft targets: read back as written, for training images only."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from knee.data.manifest import Manifest, read_manifest
from knee.data.splits import Split, read_split
from knee.data.targets import origin_path, read_targets, write_targets
from knee.errors import Faults, UserError
from knee.grades import load_grade_set


@pytest.fixture
def known(phantom: Path) -> tuple[Manifest, Split]:
    manifest = read_manifest(phantom, load_grade_set("cartilage"))
    return manifest, read_split(phantom.parent / "split.csv", manifest)


def names(known: tuple[Manifest, Split], part: str, count: int) -> list[str]:
    manifest, split = known
    return manifest.table["image"].iloc[split.rows(part)[:count]].tolist()


def test_read_back_as_written(known: tuple[Manifest, Split], tmp_path: Path) -> None:
    images, path = names(known, "train", 4)[::-1], tmp_path / "t.csv"
    values = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    write_targets(path, images, values, {"round": 1})
    found = read_targets(path, *known, grades=3)
    assert known[0].table["image"].iloc[found.rows].tolist() == images
    np.testing.assert_allclose(found.probabilities, values, atol=1e-6)
    assert json.loads(origin_path(path).read_text()) == {"round": 1}
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (path, origin_path(path)))


@pytest.mark.parametrize("part", ["val", "test"])
def test_targets_of_held_out_images_are_refused(part: str, known: tuple[Manifest, Split], tmp_path: Path) -> None:
    held_out = names(known, part, 1)
    write_targets(tmp_path / "t.csv", names(known, "train", 2) + held_out, np.full((3, 3), 1 / 3), {})
    with pytest.raises(Faults, match=rf"t\.csv line 4: '{held_out[0]}' is in {part}: only training images may have"):
        read_targets(tmp_path / "t.csv", *known, grades=3)


def test_images_twice_or_unknown_and_numbers_that_are_not_probabilities(
    known: tuple[Manifest, Split], tmp_path: Path
) -> None:
    one, two, three = names(known, "train", 3)
    rows = [
        f"{one},1,0,0",
        f"{one},1,0,0",
        "x.png,1,0,0",
        f"{two},0.6,0.6,0",
        f"{three},1.5,-0.5,0",
        f"{three},nan,1,0",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,p_0,p_1,p_2", *rows, f"{three},a,1,0", ""]))
    with pytest.raises(Faults) as caught:
        read_targets(tmp_path / "t.csv", *known, grades=3)
    text = str(caught.value)
    assert f"line 3: '{one}' occurs twice" in text
    assert "line 4: 'x.png' is not in the manifest" in text
    assert "line 5: ['0.6', '0.6', '0'] are not probabilities of the grades" in text
    assert "and 3 more of this kind, lines 6–8" in text


def test_another_number_of_grades_is_refused(known: tuple[Manifest, Split], tmp_path: Path) -> None:
    write_targets(tmp_path / "t.csv", names(known, "train", 1), np.full((1, 5), 0.2), {})
    with pytest.raises(UserError, match="has targets for more than 3 grades"):
        read_targets(tmp_path / "t.csv", *known, grades=3)
    write_targets(tmp_path / "two.csv", names(known, "train", 1), np.full((1, 2), 0.5), {})
    with pytest.raises(Faults, match="column 'p_2' is missing"):
        read_targets(tmp_path / "two.csv", *known, grades=3)
