"""The split files that come with the project: whole, by patient, and what their README says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from knee.phantom.write import split_of

FOLDER = Path(__file__).parent.parent / "data_splits"
SIZES = {
    "phantom": {"train": (1600, 200), "val": (240, 30), "test": (480, 60)},
    "kl224": {"train": (5778, 2889), "val": (826, 413), "test": (1656, 828)},
}


def read(name: str) -> pd.DataFrame:
    """With the patient: the number in the image's name."""
    table = pd.read_csv(FOLDER / f"{name}.csv")
    assert list(table) == ["image", "split", "rank"]
    return table.assign(patient=table["image"].str.extract(r"(\d+)[^/]*$", expand=False))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_readme_and_no_patient_is_in_two_splits(name: str) -> None:
    table = read(name)
    assert not table["image"].duplicated().any()
    found = {split: (len(rows), rows["patient"].nunique()) for split, rows in table.groupby("split", sort=False)}
    assert found == SIZES[name]
    assert (table.groupby("patient")[["split", "rank"]].nunique() == 1).all(axis=None)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| `{name}\.csv` .*$", text, flags=re.MULTILINE)
    for place in (0, 1):
        numbers = [f"{SIZES[name][split][place]:,}" for split in ("train", "val", "test")]
        assert f"{numbers[0]}, {numbers[1]} and {numbers[2]}" in line


@pytest.mark.parametrize("name", SIZES)
def test_a_fraction_of_the_ranks_is_that_fraction_of_the_training_patients(name: str) -> None:
    ranks = read(name).query("split == 'train'").groupby("patient")["rank"].first()
    assert ranks.between(0, 1, inclusive="left").all()
    for fraction in (0.05, 0.1, 0.5):
        # A stratum may have one patient more or less than its share.
        assert abs((ranks < fraction).sum() - fraction * len(ranks)) < 5


def test_the_phantoms_names_and_splits_are_those_it_is_drawn_with() -> None:
    table = read("phantom")
    assert table["image"].tolist() == [f"images/P{n:04d}_{k:02d}.png" for n in range(290) for k in range(8)]
    assert table["split"].tolist() == [split_of(n, 290) for n in range(290) for _ in range(8)]


def test_the_published_radiographs_keep_their_published_split() -> None:
    table = read("kl224")
    parts = table["image"].str.extract(r"^knee_kl224/(train|val|test)/[0-4]/\d{7}[LR]\.png$")
    assert (parts[0] == table["split"]).all()
