"""What processes exchange: each check runs in two processes that talk over the loopback interface."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing as spawned
from torch import nn

from knee.errors import UserError
from knee.nn import processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _enter(rank: int, port: int, check: Callable[[int], None]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    with processes.joined():
        assert (processes.rank(), processes.count(), processes.is_first()) == (rank, 2, rank == 0)
        check(rank)


def _exchanges(rank: int) -> None:
    cpu = torch.device("cpu")
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 10 * rank))
    processes.average_gradients(network.parameters())
    assert [float(one.grad.mean()) for one in network.parameters()] == [5.0, 6.0, 7.0, 8.0]
    network[1].running_mean.fill_(float(rank))
    network[1].num_batches_tracked.fill_(7)
    processes.average_buffers([network])
    assert network[1].running_mean.tolist() == [0.5, 0.5]
    assert int(network[1].num_batches_tracked) == 7
    assert processes.average({"a": 1.0 + rank, "b": -2.0 * rank}, cpu) == {"a": 1.5, "b": -1.0}
    assert processes.any_of(torch.tensor([rank == 1, False])).tolist() == [True, False]
    # 1 and 3 images with a mask: the mean of the local means 2 and 6, each times its share, is that of all four.
    share = processes.share_of_mean(1 + 2 * rank, cpu)
    assert processes.average({"mean": share * (2.0 + 4 * rank)}, cpu)["mean"] == pytest.approx((2 + 3 * 6) / 4)
    assert processes.share_of_mean(0, cpu) == 0.0
    assert processes.part_of(list(range(5))) == ([0, 2, 4] if rank == 0 else [1, 3])
    assert processes.first_decides(lambda: f"by {rank}") == "by 0"


def _refusals(rank: int) -> None:
    processes.refuse_different({"code": "1", "data": "2"})
    with pytest.raises(UserError, match="process 1 has another data than process 0"):
        processes.refuse_different({"code": "1", "data": str(rank)})
    torch.manual_seed(0)
    network = nn.Linear(2, 2).to(memory_format=torch.contiguous_format)
    processes.refuse_drifted({"teacher": network})
    if rank == 1:
        with torch.no_grad():
            network.bias[0] += 1e-7
    with pytest.raises(UserError, match="process 1 has another teacher network"):
        processes.refuse_drifted({"teacher": network})


@pytest.mark.parametrize("check", [_exchanges, _refusals])
def test_in_two_processes(check: Callable[[int], None]) -> None:
    spawned.spawn(_enter, (free_port(), check), nprocs=2)


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cpu = torch.device("cpu")
    with processes.joined():
        assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
        assert processes.share_of_mean(0, cpu) == 1.0
        assert processes.average({"a": 2.0}, cpu) == {"a": 2.0}
        assert processes.first_decides(int, "7") == 7
        assert processes.part_of([1, 2]) == [1, 2]
        flags = torch.tensor([True, False])
        assert processes.any_of(flags) is flags
        with processes.first_before_others():
            pass
        processes.refuse_several("anything")


def test_what_works_in_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="self-training works in one process only"):
        processes.refuse_several("self-training")
