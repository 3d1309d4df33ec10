"""Rates are measured within bounds, kept for the machine they hold for, and never taken from a file that may lie."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.bench import rates
from fastdiff.bench.rates import (
    Rates,
    best_rate,
    copy_rate,
    machine_rates,
    made_for,
    shortest,
    unkeepable,
)
from fastdiff.cache_folder import VARIABLE
from fastdiff.errors import RunError

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
    ("key", "value"), [("name", "Another CPU"), ("threads", 3), ("torch", "3.0.0"), ("tf32", True)]
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
def test_a_file_that_others_can_write_is_not_taken(folder: Path, measured: Measured) -> None:
    machine_rates("cpu", torch.float32)
    path = kept_in(folder)
    path.chmod(0o666)
    again = machine_rates("cpu", torch.float32)
    assert again.notices == (
        f"this machine's rates were measured again: {path} can be written by others",
    )
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_in_a_folder_that_others_can_write_nothing_is_kept(
    folder: Path, measured: Measured
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found = machine_rates("cpu", torch.float32)
    assert found.notices == (
        "this machine's rates can't be kept, each run measures them: "
        f"{folder} can be written by others",
    )
    assert list(folder.iterdir()) == []


def test_a_folder_of_the_user_that_is_a_file_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    broken = tmp_path / "file"
    broken.write_text("mine")
    monkeypatch.setenv(VARIABLE, str(broken))
    assert unkeepable() == f"{broken} is a file, not a folder"
    with pytest.raises(RunError) as raised:
        machine_rates("cpu", torch.float32)
    assert str(raised.value) == (
        f"FASTDIFF_CACHE_DIR: {broken} is a file, not a folder, and this machine's rates would be kept there\n"
        "  instead: FASTDIFF_CACHE_DIR=DIR, a folder of your own, or unset it"
    )
    assert measured == []


def test_a_default_folder_that_is_broken_is_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path / "file")
    assert unkeepable() is None
    (notice,) = machine_rates("cpu", torch.float32).notices
    assert notice.startswith(
        f"this machine's rates can't be kept, each run measures them: {tmp_path / 'file'}"
    )
    assert measured


def test_a_disk_that_is_full_is_a_notice(
    folder: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rates, "write_json", full)
    assert machine_rates("cpu", torch.float32).notices == (
        "this machine's rates can't be kept, each run measures them: "
        f"{folder} can't be written (No space left on device)",
    )


def test_rates_of_a_busy_machine_are_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rates, "measure", lambda device, dtype, wanted: Rates(1.0, None, 1.0, 0.5, wanted, "now")
    )
    assert machine_rates("cpu", torch.float32).notices == (
        "the machine was busy while its rates were measured (50% of the processors' time was left): "
        "they are too low, and not kept",
    )
    assert list(folder.iterdir()) == []


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@dataclass
class Products:
    """Products on a machine of so many operations a second, slower by `decline` with each size."""

    clock: Clock
    flops_per_s: float
    decline: float = 1.0
    device: str = "cpu"
    largest: int = 4096

    def prepared(self, rows: int) -> Callable[[], None]:
        self.sizes = [*getattr(self, "sizes", []), rows]
        rate = self.flops_per_s / self.decline ** (rows.bit_length() - 9)

        def work() -> None:
            self.clock.now += 2 * rows**3 / rate

        return work


def test_a_quick_machine_is_measured_up_to_the_largest_size(clock: Clock) -> None:
    products = Products(clock, 1e13)
    assert best_rate(products) == pytest.approx(1e13)  # type: ignore[arg-type]
    assert products.sizes == [256, 512, 1024, 2048, 4096]


def test_a_slow_machine_takes_little_more_than_a_second(clock: Clock) -> None:
    """Of half-precision products on a processor without arithmetic for them: 3 GFLOP/s, and slower with size."""
    products = Products(clock, 3e9, decline=1.5)
    assert best_rate(products) == pytest.approx(3e9)  # type: ignore[arg-type]
    assert products.sizes == [256, 512]
    assert clock.now - 100 < 1.0


def test_a_machine_that_can_hardly_do_one_product_is_measured_all_the_same(clock: Clock) -> None:
    products = Products(clock, 1e7)
    assert best_rate(products) == pytest.approx(1e7)  # type: ignore[arg-type]
    assert products.sizes == [256]


def test_the_quickest_of_ten_calls_counts_and_none_begins_too_late(clock: Clock) -> None:
    takes = iter([9.0, 3.0, 1.0, 2.0, *[5.0] * 20])

    def work() -> None:
        clock.now += next(takes)

    assert shortest(work, "cpu", 100.0) == (1.0, 9 + 3 + 1 + 2 + 5 * 7)
    takes = iter([1.0, 2.0, 0.5])
    assert shortest(work, "cpu", 3.0) == (2.0, 3.0)


def test_a_clock_that_stands_still_divides_nothing_by_zero(clock: Clock) -> None:
    assert shortest(lambda: None, "cpu", 1.0)[0] == 1e-9


def test_a_copy_is_read_and_written(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_BUFFER", {"cpu": 1000})
    monkeypatch.setattr(
        rates, "shortest", lambda work, device, limit_s: (work() is None) or (0.5, 0)
    )
    assert copy_rate("cpu", torch.float32) == 2 * 1000 / 0.5


def test_real_rates_are_numbers_above_zero(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_LARGEST", {"cpu": 256})
    monkeypatch.setattr(rates, "_BUFFER", {"cpu": 2**20})
    monkeypatch.setattr(rates, "_BUSY", 0.0)
    before = torch.random.get_rng_state()
    found = machine_rates("cpu", torch.float32)
    assert found.matmul_flops_per_s > 1e6
    assert found.copy_bytes_per_s > 1e6
    assert found.int8_ops_per_s is None or found.int8_ops_per_s > 1e6
    assert machine_rates("cpu", torch.float32) == found  # as it was written
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpus_rates_are_those_of_a_gpu(dtype: torch.dtype) -> None:
    found = machine_rates("cuda", dtype)
    assert found.matmul_flops_per_s > 1e12
    assert found.copy_bytes_per_s > 1e11
    assert found.made_for["name"] == torch.cuda.get_device_name()
    assert found.processor_share is None
