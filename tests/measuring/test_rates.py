"""Rates are measured within bounds, kept for the machine they hold for, and never taken from a file that may lie."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Clock

from fastdiff.machine import cache_folder
from fastdiff.machine.cache_folder import VARIABLE
from fastdiff.measuring import rates
from fastdiff.measuring.rates import (
    Growing,
    Rates,
    Spent,
    best_rate,
    convolutions,
    copy_rate,
    int8_product,
    machine_rates,
    made_for,
    products,
    shortest,
    usable_processors,
)

Measured = list[tuple[str, torch.dtype]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rates are kept; not there yet."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "machines"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What was measured, in the place of measuring."""
    found: Measured = []

    def measure(device: str, dtype: torch.dtype, wanted: Any) -> Rates:
        found.append((device, dtype))
        return Rates(1e12, 2e12, 3e10, 0.99, wanted, "2026-11-21T10:00:00+00:00")

    monkeypatch.setattr(rates, "measure", measure)
    return found


def kept_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_rates_are_measured_once_and_kept_by_dtype(folder: Path, measured: Measured) -> None:
    first = machine_rates("cpu", torch.float32)
    again = machine_rates("cpu", torch.float32)
    assert first == again
    assert (again.matmul_flops_per_s, again.notices) == (1e12, ())
    machine_rates("cpu", torch.bfloat16)
    assert measured == [("cpu", torch.float32), ("cpu", torch.bfloat16)]
    assert len(list(folder.iterdir())) == 2
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("name", "Another CPU"), ("threads", 3), ("torch", "3.0.0"), ("tf32", True)],
        *[("processors", 1234), ("cpu_limit", 0.5), ("convolutions_tf32", True)],
    ],
)
def test_rates_of_another_machine_are_others(
    key: str, value: Any, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_rates("cpu", torch.float32)
    elsewhere = made_for("cpu", torch.float32) | {key: value}
    monkeypatch.setattr(rates, "made_for", lambda device, dtype: elsewhere)
    machine_rates("cpu", torch.float32)
    assert len(measured) == 2


def edit(**fields: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | fields)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda text: text[:40], "can't be read"),
        (lambda text: "[]", "can't be read"),
        (lambda text: "", "can't be read"),
        (lambda text: "[" * 100_000, "can't be read"),
        (edit(further=1), "can't be read"),
        (edit(matmul_flops_per_s="fast"), "can't be read"),
        (edit(matmul_flops_per_s=None), "can't be read"),
        (edit(matmul_flops_per_s=-1.0), "holds no rates"),
        (edit(copy_bytes_per_s=0), "holds no rates"),
        (edit(int8_ops_per_s=-2.0), "holds no rates"),
        (edit(convolution_flops_per_s=-1.0), "holds no rates"),
        (edit(made_for={"device": "cuda"}), "holds another machine's"),
    ],
)
def test_a_file_that_may_lie_is_said_and_written_anew(
    change: Callable[[str], str], doubt: str, folder: Path, measured: Measured
) -> None:
    machine_rates("cpu", torch.float32)
    path = kept_in(folder)
    path.write_text(change(path.read_text()))
    again = machine_rates("cpu", torch.float32)
    assert again.notices == (f"this machine's rates were measured again: {path} {doubt}",)
    assert again.matmul_flops_per_s == 1e12
    assert machine_rates("cpu", torch.float32).notices == ()
    assert len(measured) == 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_what_others_can_write_is_neither_taken_nor_written(
    folder: Path, measured: Measured
) -> None:
    machine_rates("cpu", torch.float32)
    path = kept_in(folder)
    path.chmod(0o666)
    assert machine_rates("cpu", torch.float32).notices == (
        f"this machine's rates were measured again: {path} can be written by others",
    )
    assert path.stat().st_mode & 0o022 == 0
    path.unlink()
    folder.chmod(0o777)
    assert machine_rates("cpu", torch.float32).notices == (
        "this machine's rates can't be kept, each run measures them: "
        f"{folder} can be written by others",
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_cannot_be_made_is_a_notice_whoever_named_it(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    """What planning can't see, such as a file system that holds no folders, must not cost a run its figures."""
    broken = tmp_path / "file"
    broken.write_text("mine")
    if named:
        monkeypatch.setenv(VARIABLE, str(broken / "cache"))
    else:
        monkeypatch.delenv(VARIABLE)
        monkeypatch.setattr("platformdirs.user_cache_path", lambda name: broken / "cache")
    found = machine_rates("cpu", torch.float32)
    assert found.matmul_flops_per_s == 1e12
    assert found.notices == (
        "this machine's rates can't be kept, each run measures them: "
        f"{broken / 'cache' / 'machines'} can't be made (Not a directory)",
    )
    assert measured == [("cpu", torch.float32)]


def test_a_disk_that_is_full_is_a_notice(
    folder: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_folder, "write_json", full)
    assert machine_rates("cpu", torch.float32).notices == (
        "this machine's rates can't be kept, each run measures them: "
        f"{folder} can't be written (No space left on device)",
    )


def test_rates_in_doubt_are_used_and_said_and_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rates,
        "measure",
        lambda device, dtype, wanted: Rates(
            1.0, None, 1.0, 0.5, wanted, "now", doubt="2 processes held the GPU"
        ),
    )
    found = machine_rates("cpu", torch.float32)
    assert found.matmul_flops_per_s == 1.0
    assert found.notices == (
        "2 processes held the GPU while this machine's rates were measured: they may be too low, and are not "
        "kept",
    )
    assert list(folder.iterdir()) == []


@dataclass
class Machine:
    """A machine of so many operations a second, slower by `decline` with each size of products; which sizes it was given.

    largest: size that there is memory for.
    """

    clock: Clock
    flops_per_s: float
    decline: float = 1.0
    largest: int = 4096
    sizes: list[int] = field(default_factory=list)

    def rate(self, smallest: int = 256) -> float:
        work = Growing("cpu", smallest, 4096, 8, 0.7, lambda rows: 2 * rows**3, self.prepared)
        return best_rate(work, Spent())

    def prepared(self, rows: int) -> Callable[[], None]:
        if rows > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB")
        self.sizes.append(rows)
        rate = self.flops_per_s / self.decline ** (rows.bit_length() - 9)

        def work() -> None:
            self.clock.now += 2 * rows**3 / rate

        return work


@pytest.mark.parametrize(
    ("flops_per_s", "facts", "sizes"),
    [
        (1e13, {}, [256, 512, 1024, 2048, 4096]),  # a quick one, up to the largest size
        (3e9, {"decline": 1.5}, [256, 512]),  # half precision without arithmetic for it
        (1e7, {}, [256]),  # one that can hardly do one product
        (1e13, {"largest": 512}, [256, 512]),  # for the others there is no memory
    ],
)
def test_a_machine_is_measured_in_sizes_that_take_about_a_second(
    flops_per_s: float, facts: dict[str, Any], sizes: list[int], clock: Clock
) -> None:
    machine = Machine(clock, flops_per_s, **facts)
    assert machine.rate() == pytest.approx(flops_per_s)
    assert machine.sizes == sizes
    assert clock.now - 100 < 1.0 or len(sizes) == 1


def test_a_machine_without_memory_for_the_smallest_size_says_so(clock: Clock) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Machine(clock, 1e13, largest=512).rate(smallest=1024)


def test_the_quickest_of_ten_calls_counts_and_none_begins_too_late(clock: Clock) -> None:
    takes = iter([9.0, 3.0, 1.0, 2.0, *[5.0] * 20])

    def work() -> None:
        clock.now += next(takes)

    assert shortest(work, "cpu", 100.0, Spent()) == (1.0, 9 + 3 + 1 + 2 + 5 * 7)
    takes = iter([1.0, 2.0, 0.5])
    assert shortest(work, "cpu", 3.0, Spent()) == (2.0, 3.0)


def test_a_clock_that_stands_still_divides_nothing_by_zero(clock: Clock) -> None:
    assert shortest(lambda: None, "cpu", 1.0, Spent())[0] == 1e-9


@pytest.mark.parametrize("processors", [64, 16])
def test_of_the_processors_others_left_a_part_however_numbers_were_drawn(
    processors: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are drawn by one of 64 threads, and first calls have to start the others: that makes no machine busy."""
    computed_s = 7.0

    def compute(seconds: float, by: int = processors) -> None:
        nonlocal computed_s
        clock.now += seconds
        computed_s += seconds * by

    def calls(size: int = 0) -> Callable[[], None]:
        compute(0.5, by=1)
        first = iter([0.3])
        return lambda: compute(next(first, 0.01))

    monkeypatch.setattr(time, "process_time", lambda: computed_s)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(rates, "available_processors", lambda: 64)
    monkeypatch.setattr(rates, "_cpu_limit", lambda: None)
    for kind in ("products", "convolutions"):
        work = Growing("cpu", 64, 1024, 4, 0.5, lambda size: size, calls)
        monkeypatch.setattr(rates, kind, lambda device, dtype, how, work=work: work)
    monkeypatch.setattr(
        rates, "copy_rate", lambda device, dtype, spent: shortest(calls(), device, 0.5, spent)[0]
    )
    found = rates.measure("cpu", torch.float32, {})
    assert found.processor_share == pytest.approx(processors / 64)
    busy = "the machine was busy (25% of the processors' time was left)"
    assert found.doubt == (busy if processors == 16 else None)


@pytest.mark.parametrize(
    ("allowed", "limit", "usable"), [(1, None, 1), (8, None, 2), (8, 1.5, 1.5), (1, 4.0, 1)]
)
def test_threads_that_share_a_processor_can_have_no_more_than_all_of_it(
    allowed: int, limit: float | None, usable: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "available_processors", lambda: allowed)
    monkeypatch.setattr(rates, "_cpu_limit", lambda: limit)
    assert usable_processors(threads=2) == usable
    assert Spent(wall_s=2.0, computed_s=2.0 * usable).share_of(usable) == 1.0


def test_no_time_at_all_is_no_share() -> None:
    assert Spent().share_of(2) == 0.0


def test_a_copy_is_read_and_written(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_BUFFER", {"cpu": 1000})
    monkeypatch.setattr(
        rates, "shortest", lambda work, device, limit_s, spent: (work() is None) or (0.5, 0)
    )
    assert copy_rate("cpu", torch.float32, Spent()) == 2 * 1000 / 0.5


def test_real_rates_are_numbers_above_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_LARGEST", {"cpu": 256})
    monkeypatch.setattr(rates, "_CHANNELS", {"cpu": 64})
    monkeypatch.setattr(rates, "_BUFFER", {"cpu": 2**20})
    monkeypatch.setattr(rates, "_BUSY", 0.0)
    before = torch.random.get_rng_state()
    found = machine_rates("cpu", torch.float32)
    assert found.matmul_flops_per_s > 1e6
    assert found.copy_bytes_per_s > 1e6
    assert found.int8_ops_per_s is None or found.int8_ops_per_s > 1e6
    assert found.convolution_flops_per_s is not None
    assert found.convolution_flops_per_s > 1e6
    assert machine_rates("cpu", torch.float32) == found  # as it was written
    assert torch.equal(torch.random.get_rng_state(), before)


# Kinds of work -------------------------------------------------------------------------------------


def test_a_convolution_counts_two_operations_for_each_number_of_its_windows() -> None:
    work = convolutions("cpu", torch.float32, torch.channels_last)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        pictures = work.prepared(64)()
    assert pictures.shape == (2, 64, 64, 64)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert work.operations(64) == counter.get_total_flops() == 2 * 2 * 64**2 * 64**2 * 9


def test_int8_products_are_timed_in_the_layout_of_quantized_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second matrix by columns, as torchao has it where it transposes a layer's weights."""
    seen: list[tuple[int, ...]] = []

    def int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.extend((left.stride(), right.stride()))
        return left

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    products("cpu", torch.int8, int8_product).prepared(256)()
    assert seen == [(256, 1), (1, 256)]


RATES = {
    torch.float32: 1e12,
    torch.int8: 4e12,
    torch.contiguous_format: 1e12,
    torch.channels_last: 3e12,
}


def work_rates(monkeypatch: pytest.MonkeyPatch, fails: dict[Any, Exception]) -> Rates:
    """Measured rates where products have that of their dtype and convolutions that of their layout; or what fails."""

    def rate(work: Any, spent: Spent) -> float:
        if work in fails:
            raise fails[work]
        return RATES[work]

    monkeypatch.setattr(rates, "products", lambda device, dtype, multiply: dtype)
    monkeypatch.setattr(rates, "convolutions", lambda device, dtype, layout: layout)
    monkeypatch.setattr(rates, "best_rate", rate)
    monkeypatch.setattr(rates, "copy_rate", lambda device, dtype, spent: 1e10)
    return rates.measure("cpu", torch.float32, {})


def test_each_kind_of_work_has_a_rate_of_its_own_or_none_where_torch_cannot_do_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = work_rates(monkeypatch, {})
    assert (found.matmul_flops_per_s, found.int8_ops_per_s) == (1e12, 4e12)
    assert found.convolution_flops_per_s == 3e12  # in the better layout
    cannot = RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")
    found = work_rates(monkeypatch, dict.fromkeys((torch.int8, torch.channels_last), cannot))
    assert (found.int8_ops_per_s, found.convolution_flops_per_s) == (None, None)
    assert found.matmul_flops_per_s == 1e12


def test_no_memory_is_not_taken_for_work_that_torch_cannot_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB")
    with pytest.raises(torch.OutOfMemoryError):
        work_rates(monkeypatch, {torch.channels_last: full})


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, before: Any, after: Any) -> str | None:
    """What is doubted of rates of a GPU that NVML said this of, before and after they were measured."""
    unknown = {"reason": None, "slowed_by": None, "compute_processes": None, "temperature_c": 88}
    said = iter((unknown | before, unknown | after))
    monkeypatch.setattr(rates, "best_rate", lambda work, spent: 1e12)
    monkeypatch.setattr(rates, "copy_rate", lambda device, dtype, spent: 1e10)
    monkeypatch.setattr(rates, "this_gpu_state", lambda: next(said))
    return rates.measure("cuda", torch.float32, {}).doubt


def test_rates_beside_another_process_on_the_gpu_or_in_its_distress_are_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = {"compute_processes": 1, "slowed_by": ["gpu_idle", "sw_power_cap"]}
    assert on_a_gpu(monkeypatch, alone, alone) is None
    assert on_a_gpu(monkeypatch, {"reason": "no NVML"}, {"reason": "no NVML"}) is None
    assert on_a_gpu(monkeypatch, alone, {"compute_processes": 2}) == "2 processes hold this GPU"
    hot = {"slowed_by": ["hw_thermal_slowdown"]}
    assert on_a_gpu(monkeypatch, {**hot, "compute_processes": 3}, alone) == (
        "the GPU slowed itself down (hw_thermal_slowdown; 88 °C); 3 processes hold this GPU"
    )


@pytest.mark.gpu
def test_on_a_gpu_int8_products_in_their_own_layout_are_the_quicker_ones() -> None:
    by_columns = best_rate(products("cuda", torch.int8, int8_product), Spent())
    by_rows = best_rate(products("cuda", torch.int8, torch._int_mm), Spent())
    assert by_columns > 0.9 * by_rows
    if torch.cuda.get_device_capability() >= (8, 0):
        halves = best_rate(products("cuda", torch.bfloat16, torch.mm), Spent())
        assert by_columns > 1.2 * halves


@pytest.mark.gpu
def test_a_gpus_convolutions_in_fp32_follow_cudnns_own_flag() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no TF32 before compute capability 8.0")
    before = torch.backends.cudnn.allow_tf32
    found = {}
    try:
        for allowed in (False, True):
            torch.backends.cudnn.allow_tf32 = allowed
            found[allowed] = rates.convolution_rate("cuda", torch.float32, Spent())
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert found[True] > 1.2 * found[False]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpus_rates_are_those_of_a_gpu(dtype: torch.dtype) -> None:
    found = machine_rates("cuda", dtype)
    assert found.matmul_flops_per_s > 1e12
    assert found.copy_bytes_per_s > 1e11
    assert found.convolution_flops_per_s is not None
    assert found.convolution_flops_per_s > 1e12
    assert found.made_for["name"] == torch.cuda.get_device_name()
    assert found.processor_share is None
