"""The two-stream sampler: what is in a batch, what an epoch is, and where a restarted one goes on."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.batches import Draw, NumberedBatches, SlicesOfKnees, TwoStreamBatchSampler
from knee.errors import UserError


def sampler(labeled: int, unlabeled: int, *, per_batch: tuple[int, int], seed: int = 0) -> TwoStreamBatchSampler:
    """Labeled images 0 …, unlabeled ones 1000 …"""
    return TwoStreamBatchSampler(
        range(labeled),
        range(1000, 1000 + unlabeled),
        labeled_per_batch=per_batch[0],
        unlabeled_per_batch=per_batch[1],
        seed=seed,
    )


@settings(max_examples=150, deadline=None)
@given(
    labeled=st.integers(1, 40),
    unlabeled=st.integers(0, 40),
    per_batch=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    seed=st.integers(0, 5),
)
def test_an_epoch_is_one_pass_over_the_stream_that_needs_more_batches(
    labeled: int, unlabeled: int, per_batch: tuple[int, int], seed: int
) -> None:
    batches = list(sampler(labeled, unlabeled, per_batch=per_batch, seed=seed))
    shares = [per_batch[0], per_batch[1] if unlabeled else 0]
    needed = [count // share if share else 0 for count, share in zip((labeled, unlabeled), shares, strict=True)]
    assert len(batches) == max(1, *needed)
    streams = ([b[: shares[0]] for b in batches], [b[shares[0] :] for b in batches])
    for stream, first, count, share in zip(streams, (0, 1000), (labeled, unlabeled), shares, strict=True):
        assert all(len(part) == share for part in stream)
        drawn = Counter(index for part in stream for index in part)
        assert all(first <= index < first + count for index in drawn)
        if share:
            # Whole passes and a part of one: no image is drawn two times more often than another.
            times = [drawn[first + i] for i in range(count)]
            assert max(times) - min(times) <= 1
        if share <= count:
            assert all(len(set(part)) == share for part in stream)


def test_longer_stream_is_seen_once_and_the_shorter_is_reshuffled() -> None:
    batches = list(sampler(4, 40, per_batch=(2, 2)))
    assert len(batches) == 20
    assert sorted(index for batch in batches for index in batch[2:]) == list(range(1000, 1040))
    passes = [batches[i][:2] + batches[i + 1][:2] for i in range(0, 20, 2)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
    assert len({tuple(order) for order in passes}) > 1


def test_last_partial_batch_is_dropped() -> None:
    assert len(sampler(11, 0, per_batch=(4, 2))) == 2
    assert len(list(sampler(11, 0, per_batch=(4, 2)))) == 2


def test_all_labeled_nothing_unlabeled() -> None:
    for batches in (list(sampler(6, 0, per_batch=(3, 2))), list(sampler(6, 9, per_batch=(3, 0)))):
        assert [len(batch) for batch in batches] == [3, 3]
        assert sorted(chain.from_iterable(batches)) == list(range(6))


def test_unlabeled_alone_when_asked_for() -> None:
    batches = list(sampler(0, 6, per_batch=(0, 3)))
    assert sorted(chain.from_iterable(batches)) == list(range(1000, 1006))


def test_fewer_labeled_than_a_batch_needs_are_repeated_evenly() -> None:
    (batch,) = list(sampler(3, 4, per_batch=(8, 4)))
    assert sorted(Counter(batch[:8]).values()) == [2, 3, 3]
    assert sorted(batch[8:]) == [1000, 1001, 1002, 1003]


def test_arrays_and_overlapping_indices() -> None:
    both = TwoStreamBatchSampler(
        np.arange(4), np.arange(4), labeled_per_batch=2, unlabeled_per_batch=2, seed=np.int64(3).item()
    )
    assert all(type(index) is int for batch in both for index in batch)


def test_same_seed_same_order_other_seed_or_epoch_another() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        drawn = sampler(30, 60, per_batch=(5, 5), seed=seed)
        drawn.set_epoch(epoch)
        return list(drawn)

    assert order(1, 4) == order(1, 4)
    assert order(1, 4) != order(2, 4)
    assert order(1, 4) != order(1, 5)


def test_the_streams_are_shuffled_apart() -> None:
    drawn = next(iter(sampler(50, 50, per_batch=(50, 50))))
    assert drawn[:50] != [index - 1000 for index in drawn[50:]]


def test_iterating_again_is_the_next_epoch() -> None:
    drawn = sampler(30, 60, per_batch=(5, 5))
    first, second = list(drawn), list(drawn)
    assert first != second
    assert drawn.state_dict() == {"epoch": 2, "batch": 0}
    drawn.set_epoch(1)
    assert list(drawn) == second


def test_an_epoch_left_half_way_is_followed_by_a_whole_one() -> None:
    drawn = sampler(30, 60, per_batch=(5, 5))
    next(iter(drawn))
    assert len(list(drawn)) == len(drawn) == 12
    assert drawn.state_dict() == {"epoch": 2, "batch": 0}


@pytest.mark.parametrize("taken", [1, 5, 11, 12, 17])
def test_restarted_from_its_state_it_goes_on_with_the_batch_to_come(taken: int) -> None:
    whole = sampler(30, 60, per_batch=(5, 5))
    expected = list(whole) + list(whole) + list(whole)

    stopped = sampler(30, 60, per_batch=(5, 5))
    seen = list(islice(stopped, taken)) if taken <= 12 else list(stopped) + list(islice(stopped, taken - 12))
    fresh = sampler(30, 60, per_batch=(5, 5))
    fresh.load_state_dict(stopped.state_dict())
    # islice stops before the sampler learns that an epoch has ended, and the state must not depend on that.
    rest = list(fresh)
    assert seen + rest == expected[: taken + len(rest)]
    assert len(rest) == (12 - taken % 12)
    assert list(fresh) == expected[taken + len(rest) : taken + len(rest) + 12]


def test_looking_ahead_leaves_the_cursor() -> None:
    drawn = sampler(30, 60, per_batch=(5, 5))
    list(drawn.batches_from(3))
    list(NumberedBatches(drawn))
    assert drawn.state_dict() == {"epoch": 0, "batch": 0}
    for _ in range(13):
        drawn.advance()
    assert drawn.state_dict() == {"epoch": 1, "batch": 1}


def test_positions_count_each_stream_over_the_whole_run() -> None:
    drawn = sampler(4, 9, per_batch=(2, 3))
    numbered = NumberedBatches(drawn)
    draws: list[Draw] = []
    for epoch in range(3):
        drawn.set_epoch(epoch)
        draws += [draw for batch in numbered for draw in batch]
    for stream, per_batch in (("labeled", 2), ("unlabeled", 3)):
        positions = [draw.position for draw in draws if draw.stream == stream]
        assert positions == list(range(per_batch * len(drawn) * 3))
    drawn.load_state_dict({"epoch": 1, "batch": 2})
    assert next(iter(numbered))[0].position == (1 * 3 + 2) * 2
    drawn.set_epoch(1)
    assert [[draw.index for draw in batch] for batch in numbered] == list(drawn.batches_from(1))


def test_refusals_say_the_way_out() -> None:
    with pytest.raises(UserError, match=r"no labeled image.*raise the labeled fraction"):
        sampler(0, 5, per_batch=(2, 2))
    with pytest.raises(UserError, match="batches would be empty"):
        sampler(5, 0, per_batch=(0, 2))
    with pytest.raises(UserError, match="unlabeled_per_batch is -1"):
        sampler(5, 5, per_batch=(1, -1))
    with pytest.raises(UserError, match="seed is -1"):
        sampler(5, 5, per_batch=(1, 1), seed=-1)
    drawn = sampler(10, 0, per_batch=(5, 0))
    for state in ({"epoch": 0, "batch": 2}, {"epoch": -1, "batch": 0}):
        with pytest.raises(UserError, match="do not fit epochs of 2 batches"):
            drawn.load_state_dict(state)


def stacks(*lengths: int) -> list[np.ndarray]:
    """Consecutive positions, one stack of each length."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), count=st.integers(1, 12), position=st.integers(0, 1000), seed=st.integers(0, 5))
def test_one_slice_is_drawn_from_each_part_of_a_stack(length: int, count: int, position: int, seed: int) -> None:
    slices = SlicesOfKnees(stacks(3, length), [], count=count, seed=seed)
    drawn = slices.draws(Draw("labeled", position, 1))
    places = [draw.index - 3 for draw in drawn]
    for number, place in enumerate(places):
        assert number * length // count <= place < max((number + 1) * length // count, number * length // count + 1)
        assert 0 <= place < length
    assert [draw.position for draw in drawn] == list(range(position * count, position * count + count))
    assert drawn == slices.draws(Draw("labeled", position, 1))
    if count <= length:
        assert len(set(places)) == count


def test_batches_of_knees_hold_their_slices_next_to_each_other() -> None:
    slices = SlicesOfKnees(stacks(4, 2, 5), stacks(3, 3, 3, 3), count=3, seed=0)
    knees = TwoStreamBatchSampler(range(3), range(4), labeled_per_batch=2, unlabeled_per_batch=1, seed=0)
    owners = {"labeled": [0] * 4 + [1] * 2 + [2] * 5, "unlabeled": [i for i in range(4) for _ in range(3)]}
    batches = list(NumberedBatches(knees, slices))
    for plain, draws in zip(knees.batches_from(0), batches, strict=True):
        assert [draw.stream for draw in draws] == ["labeled"] * 6 + ["unlabeled"] * 3
        assert [owners[draw.stream][draw.index] for draw in draws] == [knee for knee in plain for _ in range(3)]
    everything = [draw for draws in batches for draw in draws]
    assert len({(draw.stream, draw.position) for draw in everything}) == len(everything)


def test_other_slices_are_drawn_the_next_time() -> None:
    slices = SlicesOfKnees(stacks(40), [], count=4, seed=0)
    drawn = [tuple(draw.index for draw in slices.draws(Draw("labeled", position, 0))) for position in range(20)]
    assert len(set(drawn)) > 15


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_share_a_batch_also_with_fewer_labeled_images_than_processes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images repeat in the batch, as in one process, and every process gets the same number."""
    sampler = TwoStreamBatchSampler([5, 6, 7], range(20), labeled_per_batch=8, unlabeled_per_batch=8, seed=0)
    whole = list(NumberedBatches(sampler))
    parts = []
    for rank in range(count):
        monkeypatch.setattr("knee.nn.processes.count", lambda: count)
        monkeypatch.setattr("knee.nn.processes.rank", lambda rank=rank: rank)
        parts.append(list(NumberedBatches(sampler)))
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert [[draw.stream for draw in share].count("labeled") for share in shares] == [8 // count] * count
        assert sorted(map(str, batch)) == sorted(str(draw) for share in shares for draw in share)


def test_the_order_is_kept_where_the_number_of_processes_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """2, 1, 4 and 2 processes, one after the other: each step has the images and views of one process."""

    def new() -> TwoStreamBatchSampler:
        return TwoStreamBatchSampler(range(13), range(13, 60), labeled_per_batch=4, unlabeled_per_batch=8, seed=3)

    whole = [sorted(map(str, batch)) for batch in NumberedBatches(new())]
    cursor, found = {"epoch": 0, "batch": 0}, []
    for count, steps in ((2, 2), (1, 1), (4, 1), (2, 1)):
        shares = []
        for rank in range(count):
            monkeypatch.setattr("knee.nn.processes.count", lambda count=count: count)
            monkeypatch.setattr("knee.nn.processes.rank", lambda rank=rank: rank)
            sampler = new()
            sampler.load_state_dict(cursor)
            shares.append(list(islice(NumberedBatches(sampler), steps)))
            for _ in range(steps):
                sampler.advance()
        found += [sorted(str(draw) for share in step for draw in share) for step in zip(*shares, strict=True)]
        cursor = sampler.state_dict()
    assert found == whole
    assert cursor == {"epoch": 1, "batch": 0}
