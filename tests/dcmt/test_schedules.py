"""The ramp of the consistency weights and the teacher's decay."""

from __future__ import annotations

import pytest

from dcmt.schedules import default_teacher_decay, exponential_ramp, teacher_decay


def test_ramp_limits_and_monotony() -> None:
    values = [exponential_ramp(step, 40) for step in range(60)]
    assert values[0] == pytest.approx(2.718281828**-5)
    assert values == sorted(values)
    assert values[40:] == [1.0] * 20
    assert exponential_ramp(0, 0) == 1.0


def test_a_later_start_moves_the_ramp_and_is_0_before_it() -> None:
    assert [exponential_ramp(step, 40, start=25) for step in range(25)] == [0.0] * 25
    assert [exponential_ramp(step + 25, 40, start=25) for step in range(60)] == [
        exponential_ramp(step, 40) for step in range(60)
    ]


def test_decay_rises_to_its_value_and_the_warm_up_is_a_plain_average() -> None:
    values, average = [3.0, -1.0, 4.0, 2.0, 9.0], 0.0
    for step, value in enumerate(values):
        decay = teacher_decay(step, 0.99)
        average = decay * average + (1 - decay) * value
        assert average == pytest.approx(sum(values[: step + 1]) / (step + 1))
    decays = [teacher_decay(step, 0.99) for step in range(300)]
    assert decays == sorted(decays)
    assert decays[98] < 0.99 == decays[100] == decays[-1]


@pytest.mark.parametrize("steps", [100, 1000, 15_000])
def test_default_decay_averages_over_a_share_of_the_run(steps: int) -> None:
    assert 1 / (1 - default_teacher_decay(steps, share=0.05)) == pytest.approx(0.05 * steps)
    assert default_teacher_decay(steps, share=1.0, highest=0.5) == 0.5
    assert default_teacher_decay(1) == 0
