"""What this machine can do at best: its rates of matrix products, of convolutions and of copying, measured once and kept.

A rate is kept under everything that it depends on. What else computes meanwhile makes it lower, and fractions that are
taken of it higher; so on a CPU it is kept only if this process had the processors to itself, and on an NVIDIA GPU only if
no other process held it and it didn't slow itself down. Nothing tells this of Apple's GPUs.

Convolutions have a rate of their own: they may be computed in another arithmetic than products (cuDNN's of fp32 numbers in
TF32, unless it is told not to), and oneDNN's of bf16 numbers are the quicker ones on some processors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastdiff.config import fingerprint
from fastdiff.machine.cache_folder import KeptFile, cache_folder, doubtful, rates_folder
from fastdiff.machine.environment import available_processors, this_machine
from fastdiff.machine.hardware import Files, processor
from fastdiff.machine.nvml import this_gpu_state
from fastdiff.measuring.conditions import gpu_troubles
from fastdiff.measuring.fields import GpuMoment
from fastdiff.measuring.protocol import speaks_of_memory
from fastdiff.measuring.timing import synchronize

if TYPE_CHECKING:
    import torch

RECIPE = 2
"""Changes with how rates are measured: others are then not taken for these."""

_PRODUCTS_S = 0.7
_CONVOLUTIONS_S = 0.5
_COPIES_S = 0.5
"""Seconds that one kind of measurement may take; convolutions take them in each of two layouts."""

_BUSY = 0.75
"""Below this part of its threads' time, a process has shared the processors with others."""

_LARGEST = {"cuda": 8192}
_CHANNELS = {"cuda": 2048}
_BUFFER = {"cuda": 2**29}
"""By device: rows of the largest square matrices, 4096 elsewhere; channels of the widest convolution, 1024 elsewhere; bytes
that are copied, 2**28 elsewhere, which is more than caches of the last level hold. A processor's cache for a whole socket
may hold more than a virtual machine shows."""

_SIDE, _WINDOW = 64, 3
"""Pixels a side and of the window of convolutions that are timed, as in the levels of UNets that take longest."""


@dataclass(frozen=True)
class Rates:
    """Measured rates of one device in one dtype.

    matmul_flops_per_s: of square matrix products, the best size; a product and an addition are two.
    int8_ops_per_s: of the same in int8 with sums in int32; None where torch can't.
    copy_bytes_per_s: read and written, both counted; int8 and other dtypes move at the same rate.
    processor_share: of the processors' time that its threads could have had, what this process got while it was timed;
        None off the CPU.
    made_for: what they hold for; measured_at: ISO 8601, UTC. notices: what a reader has to know.
    convolution_flops_per_s: of convolutions with a window of 3, the best width and layout; None where torch can't.
    doubt: why they may be too low though they were measured; such rates are used and not kept.
    """

    matmul_flops_per_s: float
    int8_ops_per_s: float | None
    copy_bytes_per_s: float
    processor_share: float | None
    made_for: Mapping[str, Any]
    measured_at: str
    notices: tuple[str, ...] = ()
    convolution_flops_per_s: float | None = None
    doubt: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it is kept."""
        of_this_run = ("notices", "doubt")
        return {name: value for name, value in asdict(self).items() if name not in of_this_run}


def machine_rates(device: str, dtype: torch.dtype) -> Rates:
    """This machine's rates: the kept ones, or measured now, which takes about three seconds.

    Raises whatever torch raises where they can't be measured, without memory for them for example.
    """
    wanted = made_for(device, dtype)
    file = KeptFile(rates_folder() / f"{fingerprint(wanted)}.json")
    notices = []
    reason = _not_private()
    if reason is None:
        kept, doubt = _kept(file, wanted)
        if kept is not None:
            return kept
        if doubt:
            notices.append(f"this machine's rates were measured again: {file.path} {doubt}")
    rates = measure(device, dtype, wanted)
    if rates.doubt:
        notices.append(
            f"{rates.doubt} while this machine's rates were measured: they may be too low, and are not kept"
        )
        return replace(rates, notices=tuple(notices))
    if reason is None and (failed := file.keep(rates.to_dict())):
        reason = f"{file.path.parent} can't be written ({failed})"
    if reason:
        notices.append(f"this machine's rates can't be kept, each run measures them: {reason}")
    return replace(rates, notices=tuple(notices))


def made_for(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What rates depend on, as plain data."""
    import torch

    machine, cuda = this_machine(), device == "cuda"
    return {
        "recipe": RECIPE,
        "device": device,
        "name": torch.cuda.get_device_name() if cuda else machine.cpu,
        "flags": [] if cuda else machine.to_dict()["cpu_flags"],
        "processors": machine.threads,
        "threads": torch.get_num_threads(),
        "cpu_limit": None if cuda else _cpu_limit(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "tf32": cuda and torch.backends.cuda.matmul.allow_tf32,
        "convolutions_tf32": cuda and torch.backends.cudnn.allow_tf32,
    }


def _not_private() -> str | None:
    """Make the folder; why it can't be trusted or used, if so."""
    try:
        return " ".join(map(str, doubtful(cache_folder(), rates_folder()) or ())) or None
    except OSError as error:
        return f"{rates_folder()} can't be made ({error.strerror})"


def _kept(file: KeptFile, wanted: Mapping[str, Any]) -> tuple[Rates | None, str | None]:
    """What is kept; or None and why it can't be taken, if there is something."""
    found, doubt = file.read()
    if found is None:
        return None, doubt
    try:
        if found["made_for"] != wanted:
            return None, "holds another machine's"
        rates = Rates(**found)
        figures = [rates.matmul_flops_per_s, rates.copy_bytes_per_s]
        figures += [rates.int8_ops_per_s or 1.0, rates.convolution_flops_per_s or 1.0]
        if not all(0 < float(figure) < math.inf for figure in figures):
            return None, "holds no rates"
    except (ValueError, KeyError, TypeError):
        return None, "can't be read"
    return rates, None


def measure(device: str, dtype: torch.dtype, wanted: Mapping[str, Any]) -> Rates:
    """Measure all rates of a device in a dtype."""
    import torch

    spent = Spent()
    before = GpuMoment.of(this_gpu_state()) if device == "cuda" else None
    with torch.no_grad():
        in_dtype = best_rate(products(device, dtype, torch.mm), spent)
        in_int8 = _if_it_can(lambda: best_rate(products(device, torch.int8, int8_product), spent))
        convolved = _if_it_can(lambda: convolution_rate(device, dtype, spent))
        copies = copy_rate(device, dtype, spent)
    after = GpuMoment.of(this_gpu_state()) if device == "cuda" else None
    share = spent.share_of(usable_processors(torch.get_num_threads())) if device == "cpu" else None
    doubt = None
    if share is not None and share < _BUSY:
        doubt = f"the machine was busy ({share:.0%} of the processors' time was left)"
    elif before is not None and after is not None:
        doubt = "; ".join(gpu_troubles(before, after)) or None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Rates(in_dtype, in_int8, copies, share, wanted, now, (), convolved, doubt)


def _if_it_can(rate: Callable[[], float]) -> float | None:
    """A rate, or None for a kind of work that torch can't do on this device in this dtype. Raises what memory raises."""
    try:
        return rate()
    except (RuntimeError, NotImplementedError) as error:
        if speaks_of_memory(f"{type(error).__name__}: {error}"):
            raise
        return None


def int8_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product as quantized layers compute it: their weights lie by rows of the output, so the second matrix lies by columns.

    On NVIDIA GPUs cuBLASLt's tensor cores want this layout (`int_scaled_matmul` in torchao/kernel/intmm.py,
    https://github.com/pytorch/ao); with both matrices by rows a product takes several times as long.
    """
    import torch

    return torch._int_mm(left, right.t())


def usable_processors(threads: int) -> float:
    """How many processors so many threads can compute on: those allowed, and what a control group leaves of their time."""
    return min(threads, available_processors(), _cpu_limit() or math.inf)


def _cpu_limit() -> float | None:
    limit: float | None = processor(Files())["cgroup_cpus"]
    return limit


@dataclass
class Spent:
    """Seconds that timed calls took by the clock, and of all processors together. Drawing numbers isn't among them."""

    wall_s: float = 0.0
    computed_s: float = 0.0

    def share_of(self, processors: float) -> float:
        """Of so many processors' time, what was computed."""
        return self.computed_s / max(self.wall_s, 1e-9) / processors


@dataclass(frozen=True)
class Growing:
    """Work of a kind that is timed in growing sizes.

    smallest, largest: sizes, each twice the one before. growth: how much more a size has to do than the one before.
    limit_s: seconds for all sizes. operations: of a size; a product and an addition are two.
    prepared: what is to be timed of a size. The numbers are random, because zeros are multiplied in less time on a GPU.
    """

    device: str
    smallest: int
    largest: int
    growth: int
    limit_s: float
    operations: Callable[[int], int]
    prepared: Callable[[int], Callable[[], Any]]


def products(device: str, dtype: torch.dtype, multiply: Callable[[Any, Any], Any]) -> Growing:
    """The product of two square matrices of so many rows."""

    def prepared(rows: int) -> Callable[[], Any]:
        left, right = (_drawn((rows, rows), device, dtype) for _ in range(2))
        return lambda: multiply(left, right)

    largest = _LARGEST.get(device, 4096)
    return Growing(device, 256, largest, 8, _PRODUCTS_S, lambda rows: 2 * rows**3, prepared)


def convolutions(device: str, dtype: torch.dtype, layout: torch.memory_format) -> Growing:
    """A convolution from so many channels to as many, of two pictures, in one of torch's memory formats."""
    import torch

    def prepared(channels: int) -> Callable[[], Any]:
        shapes = ((2, channels, _SIDE, _SIDE), (channels, channels, _WINDOW, _WINDOW))
        drawn = (_drawn(shape, device, dtype).to(memory_format=layout) for shape in shapes)
        pictures, weights = drawn
        return lambda: torch.nn.functional.conv2d(pictures, weights, padding=_WINDOW // 2)

    def operations(channels: int) -> int:
        return 2 * 2 * _SIDE**2 * (_WINDOW * channels) ** 2

    widest = _CHANNELS.get(device, 1024)
    return Growing(device, 64, widest, 4, _CONVOLUTIONS_S, operations, prepared)


def _drawn(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> torch.Tensor:
    import torch

    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.empty(shape, device=device).uniform_(-8, 8, generator=generator)
    return drawn.to(dtype)


def convolution_rate(device: str, dtype: torch.dtype, spent: Spent) -> float:
    """Operations a second of convolutions, under the process's own flags, in the better of both layouts."""
    import torch

    layouts = (torch.contiguous_format, torch.channels_last)
    return max(best_rate(convolutions(device, dtype, layout), spent) for layout in layouts)


def best_rate(work: Growing, spent: Spent) -> float:
    """Operations a second of growing work, the best of all; ends before it would take more than about its limit.

    Ends too at a size that there is no memory for; raises that only if it is the first.
    """
    best, size, left_s = 0.0, work.smallest, work.limit_s
    while True:
        try:
            seconds, taken_s = shortest(work.prepared(size), work.device, left_s / 2, spent)
        except (RuntimeError, MemoryError) as error:
            if best and speaks_of_memory(f"{type(error).__name__}: {error}"):
                return best
            raise
        best, left_s = max(best, work.operations(size) / seconds), left_s - taken_s
        size *= 2
        # So many times the work, once to warm up and once to time; a naive kernel slows down besides.
        if size > work.largest or 2 * work.growth * seconds > left_s:
            return best


def copy_rate(device: str, dtype: torch.dtype, spent: Spent) -> float:
    """Bytes a second of copying a buffer, those read and those written; it takes an eighth of the free memory at most."""
    import torch

    memory = this_machine().available_memory_bytes if device == "cpu" else None
    if device == "cuda":
        memory = torch.cuda.mem_get_info()[0]
    size = min(_BUFFER.get(device, 2**28), (memory or 2**40) // 8)
    count = max(1, size // dtype.itemsize)
    source = torch.ones(count, dtype=dtype, device=device)
    target = torch.empty_like(source)
    seconds, _ = shortest(lambda: target.copy_(source), device, _COPIES_S, spent)
    return 2 * source.nbytes / seconds


def shortest(
    work: Callable[[], Any], device: str, limit_s: float, spent: Spent
) -> tuple[float, float]:
    """Seconds of the quickest of up to ten calls after one that isn't timed, and of all of them.

    No call begins once limit_s has passed, but one is always timed. A clock that stands still gives a nanosecond.
    spent: what the timed calls took is added to it.
    """
    begun = time.perf_counter()
    work()
    synchronize(device)
    timed_from, computed_s = time.perf_counter(), time.process_time()
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        work()
        synchronize(device)
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended - begun >= limit_s:
            break
    spent.wall_s += ended - timed_from
    spent.computed_s += time.process_time() - computed_s
    return max(best, 1e-9), time.perf_counter() - begun
