"""Splits drawn by patient: free of leaks, stratified, nested, the same for the same seed."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.data.splits import check_split
from knee.data.strata import make_folds, make_split
from knee.errors import UserError

from .samples import as_manifest, tables


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 2**32), st.sampled_from([(0.7, 0.1, 0.2), (1.0, 0.0, 0.0), (0.5, 0.25, 0.25)]))
def test_leak_free_and_stratified(manifest, seed, fractions):
    frame = make_split(manifest.table, fractions=fractions, seed=seed)
    check_split(frame, manifest)
    assert frame["rank"].between(0, 1, inclusive="left").all()
    patients = pd.DataFrame(
        {
            "grade": manifest.table["grade"].fillna(-1).groupby(manifest.table["patient"]).max(),
            "split": frame["split"].groupby(manifest.table["patient"]).first(),
        }
    )
    for _, stratum in patients.groupby("grade"):
        for name, share in zip(("train", "val", "test"), fractions, strict=True):
            assert abs((stratum["split"] == name).sum() - share * len(stratum)) < 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 100), st.integers(3, 6))
def test_folds_test_every_patient_once(manifest, seed, folds):
    if manifest.table["patient"].nunique() < folds:
        with pytest.raises(UserError, match="folds of"):
            make_folds(manifest.table, folds=folds, seed=seed)
        return
    frames = make_folds(manifest.table, folds=folds, seed=seed)
    assert len(frames) == folds
    for frame in frames:
        check_split(frame, manifest)
        assert {"train", "val", "test"} == set(frame["split"])
    tested = np.stack([(frame["split"] == "test").to_numpy() for frame in frames])
    validated = np.stack([(frame["split"] == "val").to_numpy() for frame in frames])
    assert (tested.sum(0) == 1).all()
    assert (validated.sum(0) == 1).all()


def test_same_seed_same_split_whatever_the_order_of_rows():
    manifest = as_manifest([i // 2 for i in range(100)], [i % 5 for i in range(100)])
    frame = make_split(manifest.table, seed=3)
    pd.testing.assert_frame_equal(frame, make_split(manifest.table, seed=3))
    assert not frame["split"].equals(make_split(manifest.table, seed=4)["split"])
    order = np.random.default_rng(0).permutation(100)
    again = make_split(manifest.table.iloc[order].reset_index(drop=True), seed=3)
    pd.testing.assert_frame_equal(again, frame.iloc[order].reset_index(drop=True))


def test_the_manifests_own_split_is_kept():
    places = ["train", "train", "test", "", "val", ""]
    manifest = as_manifest(["a", "a", "b", "b", "c", "d"], [0, 1, 2, 3, 4, 0], split=places)
    frame = make_split(manifest.table, seed=0)
    assert frame["split"].tolist()[:5] == ["train", "train", "test", "test", "val"]
    assert make_split(manifest.table, seed=0, fractions=(1, 0, 0), keep=False)["split"].tolist() == ["train"] * 6
    shared = as_manifest(["a", "a"], [0, 1], split=["train", "test"])
    with pytest.raises(UserError, match="in two splits: a;"):
        make_split(shared.table, seed=0)


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1.2, -0.1, -0.1), (math.nan, 0.5, 0.5), (0.5, 0.5)])
def test_fractions_that_are_not_shares(fractions):
    with pytest.raises(UserError, match="sum to 1"):
        make_split(as_manifest(["a"], [0]).table, fractions=fractions, seed=0)


@pytest.mark.parametrize("draw", [make_split, functools.partial(make_folds, folds=3)])
def test_a_seed_below_zero_is_refused(draw):
    table = as_manifest(["a", "b", "c"], [0, 1, 2]).table
    with pytest.raises(UserError, match="seed is -1; give a whole number from 0"):
        draw(table, seed=-1)
