"""Items mapped in threads: results in order, errors passed on, no more than one window ahead."""

from __future__ import annotations

import time

import pytest

from knee.io.pool import map_in_order


def test_results_come_in_order_whatever_each_takes() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 8 == 0 else 0)
        return number * number

    found = map_in_order(slow_first, range(600), description="squares", progress=False)
    assert list(found) == [number * number for number in range(600)]
    assert list(map_in_order(slow_first, [], description="none", progress=False)) == []


def test_items_are_computed_at_most_one_window_ahead() -> None:
    done: list[int] = []
    found = map_in_order(done.append, range(2000), description="ahead", progress=False)
    for taken in range(1, 300):
        next(found)
        assert len(done) <= 256 * (1 + (taken - 1) // 256)
    found.close()  # type: ignore[attr-defined]
    assert len(done) <= 512


def test_an_error_is_raised_at_its_place() -> None:
    found = map_in_order(lambda number: 1 / (number - 3), range(9), description="errors", progress=False)
    assert [next(found) for _ in range(3)] == [1 / -3, 1 / -2, 1 / -1]
    with pytest.raises(ZeroDivisionError):
        next(found)
