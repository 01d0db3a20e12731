"""Batches of pairs: each image with its own report, in an order that resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from image_text.batches import PairBatches, streams_of, studies_of
from image_text.config import ImageTextConfig
from image_text.reports import Reports
from image_text.train import load_reports, usable_grades
from knee.data.prepare import KneeData, load_knee_data
from knee.errors import UserError

Make = Callable[..., ImageTextConfig]


@pytest.fixture(scope="module")
def loaded(make_config: Make) -> tuple[ImageTextConfig, KneeData, Reports]:
    config = make_config(**{"data.labeled_fraction": 0.5})
    data = load_knee_data(config.data, graded=False)
    return config, data, load_reports(config, data)


def batches(loaded: tuple[ImageTextConfig, KneeData, Reports], **changes: int) -> PairBatches:
    config, data, reports = loaded
    return PairBatches(
        data, replace(config.data, **changes), config.views, reports, rows=data.split.rows("train"),
        grades=usable_grades(config, data), seed=1, device=torch.device("cpu"), channels_last=False,
    )  # fmt: skip


def test_an_image_keeps_its_report(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    _, data, reports = loaded
    batch = next(batches(loaded).from_batch(0))
    rows = [int(np.flatnonzero(reports.texts == text)[0]) for text in batch.texts]
    assert np.array_equal(batch.tokens.numpy(), reports.tokens[rows])
    assert set(rows) <= set(data.split.rows("train").tolist())
    assert batch.student.shape == (8, 1, 48, 48)
    assert batch.studies.tolist() == studies_of(data)[rows].tolist()


def test_grades_that_may_not_be_used_are_hidden(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    config, data, _ = loaded
    grades = usable_grades(config, data)
    known = np.flatnonzero(grades >= 0)
    assert set(known) == set(data.labeled[data.grades[data.labeled] >= 0])
    assert len(known) < len(data.split.rows("train"))


def test_further_grades_count_where_the_own_grade_does(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    config, data, reports = loaded
    grades = usable_grades(config, data)
    found = PairBatches(
        data, config.data, config.views, reports, rows=data.split.rows("train"), grades=grades, seed=1,
        device=torch.device("cpu"), channels_last=False, further=np.stack([data.grades, np.full_like(grades, -1)], 1),
    )  # fmt: skip
    batch = next(found.from_batch(0))
    assert torch.equal(batch.further[:, 0], batch.grades)
    assert (batch.grades < 0).any()
    assert (batch.further[:, 1] == -1).all()


def test_batches_resume(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    stream = batches(loaded).from_batch(0)
    third = [next(stream) for _ in range(4)][3]
    again = next(batches(loaded).from_batch(3))
    assert all(torch.equal(one, two) for one, two in zip(third, again, strict=True))


def test_few_grades_are_in_every_batch(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    _, _, reports = loaded
    stream = batches(loaded, labeled_per_batch=3, unlabeled_per_batch=5).from_batch(0)
    for _ in range(4):
        batch = next(stream)
        assert (batch.grades[:3] >= 0).all()
        rows = [int(np.flatnonzero(reports.texts == text)[0]) for text in batch.texts]
        assert np.array_equal(batch.tokens.numpy(), reports.tokens[rows])
    again = next(batches(loaded, labeled_per_batch=3, unlabeled_per_batch=5).from_batch(3))
    assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))


def test_streams_without_a_grade_are_one(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    config, data, _ = loaded
    rows, none = np.arange(9), np.full(len(data.grades), -1)
    two = replace(config.data, labeled_per_batch=2, unlabeled_per_batch=4)
    first, others, counts = streams_of(rows, none, two)
    assert (first.tolist(), len(others), counts) == (rows.tolist(), 0, (6, 0))
    none[5] = 2
    first, others, counts = streams_of(rows, none, two)
    assert (first.tolist(), others.tolist(), counts) == ([5], rows.tolist(), (2, 4))
    with pytest.raises(UserError, match=r"fewer than data.unlabeled_per_batch \(4\)"):
        streams_of(rows[3:6], none, two)


def test_two_knees_of_a_patient_are_two_studies(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    _, data, _ = loaded
    assert len(np.unique(studies_of(data))) == len(data.manifest.table)


def test_fewer_pairs_than_a_batch(loaded: tuple[ImageTextConfig, KneeData, Reports]) -> None:
    config, data, reports = loaded
    with pytest.raises(UserError, match=r"3 training images have a report, fewer than data.labeled_per_batch \(8\)"):
        PairBatches(
            data, config.data, config.views, reports, rows=np.arange(3), grades=data.grades, seed=1,
            device=torch.device("cpu"), channels_last=False,
        )  # fmt: skip
