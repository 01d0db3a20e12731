"""Recall with ties, chance and bounds against brute force; a leak is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from image_text.retrieval import (
    DIRECTIONS,
    Pairs,
    Places,
    bound,
    chance_recall,
    places,
    refuse_leak,
    retrieval,
    table_lines,
)
from knee.errors import UserError


def brute_recall(above: int, tied: int, matches: int, k: int) -> float:
    """All orders of the tied items."""
    orders = list(itertools.permutations([0] * tied + [1] * matches))
    return sum(any(order[: max(k - above, 0)]) for order in orders) / len(orders)


@pytest.mark.parametrize("above", [0, 1, 4])
@pytest.mark.parametrize("tied", [0, 1, 3])
@pytest.mark.parametrize("matches", [1, 2])
def test_recall_and_rank_of_tied_items(above: int, tied: int, matches: int) -> None:
    one = Places(np.array([above]), np.array([tied]), np.array([matches]))
    for k in (1, 2, 3, 5, 10):
        assert one.recall(k)[0] == pytest.approx(brute_recall(above, tied, matches, k)), k
    orders = itertools.permutations([0] * tied + [1] * matches)
    assert one.rank()[0] == pytest.approx(np.mean([above + 1 + order.index(1) for order in orders]))


def pairs(count: int, distinct: int, *, seed: int, dim: int = 8, aligned: bool = False) -> Pairs:
    rng = np.random.default_rng(seed)
    text_of = np.concatenate([np.arange(distinct), rng.integers(0, distinct, count - distinct)])
    texts = rng.standard_normal((distinct, dim))
    images = texts[text_of] + 0.01 * rng.standard_normal((count, dim)) if aligned else rng.standard_normal((count, dim))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    grades = rng.integers(-1, 4, count)
    return Pairs(images, texts, text_of.astype(np.int64), np.arange(count) // 2, grades, np.arange(count) % 5)


def test_places_are_those_of_a_sorted_list() -> None:
    found = pairs(30, 12, seed=0)
    similar = (found.images @ found.texts.T)[:, found.text_of]
    ranked = found.ranked("image_to_report", found.text_of)
    for query in range(30):
        match = found.text_of == found.text_of[query]
        best = similar[query][match].max()
        assert ranked.above[query] == (similar[query] > best).sum()
        assert ranked.matches[query] == match.sum()
        assert ranked.tied[query] == 0
    exact = found.ranked("image_to_report", np.arange(30))
    assert (exact.tied + exact.matches == ranked.matches).all()


def test_aligned_pairs_reach_the_bound_and_not_more() -> None:
    found = retrieval(pairs(40, 25, seed=1, dim=32, aligned=True))
    for k in (1, 5, 10):
        key = f"recall_at_{k}"
        assert found["image_to_report"]["exact"][key] == pytest.approx(found["bound"][key])
        for direction in DIRECTIONS:
            assert found[direction]["exact"][key] <= found["bound"][key] + 1e-9
            assert found[direction]["equal_report"][key] == pytest.approx(1)


def test_independent_pairs_are_at_chance() -> None:
    found = [retrieval(pairs(60, 40, seed=seed)) for seed in range(40)]
    for direction in DIRECTIONS:
        for name in ("exact", "equal_report", "patient", "equal_grade"):
            for k in (1, 5, 10):
                key = f"recall_at_{k}"
                recall = np.mean([one[direction][name][key] for one in found])
                chance = np.mean([one[direction][name]["chance"][key] for one in found])
                assert recall == pytest.approx(chance, abs=0.05), (direction, name, k)
    assert found[0]["image_to_report"]["exact"]["chance"]["recall_at_5"] == pytest.approx(5 / 60)


def test_bounds() -> None:
    groups = np.array([0, 0, 0, 1, 2])
    assert [bound(groups, k) for k in (1, 2, 5)] == [0.6, 0.8, 1.0]
    assert retrieval(pairs(20, 20, seed=0))["covariates_only"]["recall_at_1"] == 0.25


def test_a_recall_above_its_bound_is_a_leak() -> None:
    refuse_leak(0.5, 0.5, 1, "image_to_report")
    with pytest.raises(UserError, match=r"recall at 1 is 1\.0000, above its bound 0\.5000 .* which is a leak"):
        refuse_leak(1.0, 0.5, 1, "image_to_report")
    # A fused embedding differs for equal reports, so it is handed in as distinct texts that are one text.
    fused = pairs(20, 20, seed=2, dim=32, aligned=True)
    ranked = places(fused.images, fused.texts, np.arange(20), np.arange(20), np.arange(20))
    with pytest.raises(UserError, match="leak"):
        refuse_leak(float(ranked.recall(1).mean()), bound(np.zeros(20, np.int64), 1), 1, "image_to_report")


def test_queries_without_a_match_are_left_out() -> None:
    numbers = np.array([-1, 0, 0])
    ranked = places(np.eye(3), np.eye(3), np.arange(3), numbers, numbers)
    assert ranked.known.tolist() == [False, True, True]
    assert np.isnan(ranked.rank()[0])
    assert ranked.recall(3).tolist() == [0, 1, 1]
    assert chance_recall(numbers, numbers, np.arange(3), 3).tolist() == [0, 1, 1]


def test_chance_of_equal_items() -> None:
    numbers = np.array([0, 1, 2])
    alone = chance_recall(numbers, np.array([0, 0, 1]), np.arange(3), 1)
    np.testing.assert_allclose(alone, [2 / 3, 1 / 3, 0])
    # Two equal items come first together, as often as the third.
    together = chance_recall(numbers, np.array([0, 0, 1]), np.array([0, 0, 1]), 1)
    np.testing.assert_allclose(together, [1 / 2, 1 / 2, 0], atol=0.08)


def test_intervals_are_by_patient_and_contain_the_estimate() -> None:
    found = retrieval(pairs(60, 60, seed=3), samples=200, seed=1)
    one = found["report_to_image"]["exact"]
    low, high = one["intervals"]["recall_at_10"]
    assert low <= one["recall_at_10"] <= high
    lines = table_lines(found)
    assert lines[0].startswith("60 pairs of 30 patients, 60 distinct reports")
    assert any(line.startswith("bound of exact recall: R@1 100.0") for line in lines)
