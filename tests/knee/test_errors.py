"""Errors for people: all faults at once, those of a kind together."""

import shlex

import pytest

from knee.errors import Faults, grouped, pasted


def test_many_faults_of_a_kind_are_one_example_and_where_the_others_are():
    faults = [f"m.csv line {line}: image 'x{line}.png' is not a file" for line in (2, 3, 4, 5, 9, 12)]
    faults.insert(3, "m.csv line 7: side 'left' is not L, R or empty; write L")
    assert grouped(faults) == [
        "m.csv line 2: image 'x2.png' is not a file",
        "  … and 5 more of this kind, lines 3–5, 9, 12",
        "m.csv line 7: side 'left' is not L, R or empty; write L",
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_faults_of_a_kind_are_all_written_out(number):
    faults = [f"m.csv line {line}: grade '{line}' is unknown" for line in range(number)]
    assert grouped(faults) == faults


def test_faults_of_many_kinds_are_bounded_and_all_kept_in_the_error():
    faults = [f"m.csv line 2: {'a' * number} is wrong" for number in range(1, 1001)]
    error = Faults(faults, summary="m.csv: 1000 faults:")
    assert error.faults == tuple(faults)
    assert len(str(error).splitlines()) == 202
    assert str(error).endswith("… and 800 more lines")


@pytest.mark.parametrize("value", ["2: 2", "K's grade", "$HOME", 'a "b"', "#N/A", "(?P<patient>[^/]+)"])
def test_a_quoted_value_is_what_a_shell_reads(value):
    assert shlex.split(f"--missing {pasted(value)}") == ["--missing", value]
