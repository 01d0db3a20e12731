"""Signals: asked to stop, put back as they were, and a worker's death told wherever it is noticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from knee.engine import guards
from knee.engine.guards import refuse_batch_of_one, stop_on_signal
from knee.errors import UserError
from knee.io.termination import Terminated

DEATH = "DataLoader worker (pid 12) is killed by signal: Killed. "


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    # A shell starts what runs in its background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_asked_as_often_as_told_and_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    asked: list[int] = []
    with stop_on_signal(lambda: asked.append(1)):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(asked) == 3
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_first_interrupt_says_what_follows(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signal(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert (
            "stopping after the current step, which is then saved; press Ctrl-C again to stop" in capfd.readouterr().err
        )


def test_worker_death_is_told_and_torch_does_not_raise_again() -> None:
    """As in validation, which no loader of training images wraps."""

    def again(*_: object) -> None:
        raise RuntimeError(DEATH)

    signal.signal(signal.SIGCHLD, again)
    with pytest.raises(UserError, match="a process that loads images died"), stop_on_signal(lambda: None):
        os.kill(os.getpid(), signal.SIGCHLD)
    os.kill(os.getpid(), signal.SIGCHLD)


def test_death_that_the_loader_told_stays_as_it_is() -> None:
    told = UserError("told")

    def raise_told() -> None:
        raise told from RuntimeError(DEATH)

    signal.signal(signal.SIGCHLD, lambda *_: pytest.fail("torch's handler is still there"))
    with pytest.raises(UserError) as caught, stop_on_signal(lambda: None):
        raise_told()
    assert caught.value is told
    os.kill(os.getpid(), signal.SIGCHLD)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError(DEATH), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(type(error)) as caught, stop_on_signal(lambda: None):
        raise error
    assert caught.value is error
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize("waiting", [True, False])
def test_sigterm_ends_a_wait_but_no_work(waiting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []
    monkeypatch.setattr(guards, "end_within", ends.append)
    monkeypatch.setattr(guards, "_PATIENCE", 0.05)

    def run() -> None:
        with stop_on_signal(lambda: None, lambda: waiting):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    if waiting:
        with pytest.raises(Terminated):
            run()
    else:
        run()
    assert len(ends) == waiting
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_batch_of_one_is_refused_where_its_statistics_would_be_of_one_value() -> None:
    shrinks = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Dropout(0.5))
    cpu, before = torch.device("cpu"), torch.get_rng_state()
    with pytest.raises(UserError, match="the batch has one image and the network's last feature map one position"):
        refuse_batch_of_one([shrinks], 8, cpu)
    state = {name: value.clone() for name, value in shrinks.state_dict().items()}
    refuse_batch_of_one([shrinks], 9, cpu)
    assert all(torch.equal(value, state[name]) for name, value in shrinks.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
