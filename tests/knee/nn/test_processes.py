"""What processes exchange: each check runs in two processes that talk over the loopback interface."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as spawned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from knee.errors import UserError
from knee.nn import processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def as_one_of(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a process."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {name: str(value) for name, value in found.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _work(work: Callable[[], int], output: Path, variables: dict[str, str]) -> None:
    os.environ |= variables
    code = 70
    with output.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def in_processes(
    work: Callable[[], int], folder: Path, *, count: int = 2, within: float = 120
) -> tuple[list[int], list[str]]:
    """Run a function in forks of this process, as torchrun would; their exit codes and what they printed."""
    port, context = free_port(), multiprocessing.get_context("fork")
    outputs = [folder / f"printed-{rank}.txt" for rank in range(count)]
    started = [
        context.Process(target=_work, args=(work, output, as_one_of(rank, count, port)))
        for rank, output in enumerate(outputs)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(within)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in started], [output.read_text(encoding="utf-8") for output in outputs]


def _enter(rank: int, port: int, check: Callable[[int], None]) -> None:
    os.environ |= as_one_of(rank, 2, port)
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
    assert list(processes.part_of(range(5))) == ([0, 2, 4] if rank == 0 else [1, 3])
    assert processes.first_decides(lambda: f"by {rank}") == "by 0"
    processes.wait_for_first()


def _merges(rank: int) -> None:
    for count in range(5):  # also fewer items than processes
        assert list(processes.merged(map(str, processes.part_of(range(count))))) == [str(one) for one in range(count)]
    numbers = TensorDataset(torch.arange(7))
    loader = DataLoader(numbers, batch_size=2)
    own = [batch.tolist() for (batch,) in processes.part_of(loader)]
    assert own == ([[0, 1], [4, 5]] if rank == 0 else [[2, 3], [6]])
    assert list(processes.merged(own)) == [[0, 1], [2, 3], [4, 5], [6]]

    def nested(item: int) -> tuple[int, int, list[int]]:
        return item, processes.count(), list(processes.merged(processes.part_of(range(item))))

    found = list(processes.merged(map(nested, processes.part_of([1, 2, 3]))))
    assert found == [(item, 1, list(range(item))) for item in (1, 2, 3)], "within an item a process works alone"
    ended = []

    def items(own: Iterable[int]) -> Iterator[int]:
        yield from own
        ended.append(rank)

    assert list(processes.merged(items(processes.part_of(range(3))))) == [0, 1, 2]
    assert ended == [rank], "what follows the last item is run in all"


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


@pytest.mark.parametrize("check", [_exchanges, _merges, _refusals])
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
        assert list(processes.merged(iter([1, 2]))) == [1, 2]
        processes.wait_for_first()
        processes.refuse_several("anything")


def test_what_works_in_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="self-training works in one process only"):
        processes.refuse_several("self-training")


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        for name, value in as_one_of(0, 2, port).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"cannot meet at 127.0.0.1:{port} .*--master-port"), processes.joined():
            pass
