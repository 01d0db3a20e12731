"""Choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from knee.engine.device import autocast, autocast_type, choose_device, choose_precision, memory_gib, out_of_memory
from knee.errors import UserError


def test_precision_auto_takes_the_faster_one() -> None:
    import time

    slow = {"bf16": 0.0, "fp32": 0.01}
    chosen = choose_precision("auto", torch.device("cpu"), lambda precision: time.sleep(slow[precision]))
    assert chosen == "bf16"
    assert choose_precision("fp16", torch.device("cpu"), lambda _: None) == "fp16"


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"fit\.device 'abacus' cannot be used here"):
        choose_device("abacus")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cpu; rm", "cuda:1:2", "meta", "", "CPU", "x" * 5000])
def test_names_that_are_not_devices_are_refused_in_one_short_sentence(name: str) -> None:
    with pytest.raises(UserError, match="take auto, cpu, cuda or mps") as caught:
        choose_device(name)
    assert len(str(caught.value)) < 300


def test_auto_precision_off_the_cpu_needs_no_trial() -> None:
    def trial(precision: str) -> None:
        raise AssertionError(precision)

    assert choose_precision("auto", torch.device("mps"), trial) == "fp32"
    assert choose_precision("bf16", torch.device("cpu"), trial) == "bf16"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_multiplies_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert autocast_type(precision) == (None if precision == "fp32" else dtype)


def test_exhausted_memory_is_distinguished_from_other_errors() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not out_of_memory(RuntimeError("size mismatch"))
    assert 0.01 < memory_gib(torch.device("cpu")) < 1000
