"""Peaks by phase, and what is counted apart in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdiff.measuring.fields import Places
from fastdiff.measuring.memory import (
    PeakMemory,
    _largest_child,
    host_peak_bytes,
    weight_bytes,
)

MB = 1024 * 1024


class Process:
    """A folder like /proc/self whose process holds and once held what a test says, in MB."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.peak = folder, 100, 100
        self.write()

    def write(self) -> None:
        lines = f"Name:\tpython\nVmHWM:\t  {self.peak * 1024} kB\nVmRSS:\t  {self.now * 1024} kB\n"
        (self.folder / "status").write_text(lines)

    def hold(self, now: int, peak: int | None = None) -> None:
        if (self.folder / "clear_refs").is_file() and (self.folder / "clear_refs").read_text():
            assert (self.folder / "clear_refs").read_text() == "5"
            (self.folder / "clear_refs").write_text("")
            self.peak = self.now
        self.peak = max(self.peak, now, peak or 0)
        self.now = now
        self.write()


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


@pytest.fixture
def memory(process: Process) -> PeakMemory:
    return PeakMemory("cpu", process.folder)


@pytest.fixture(autouse=True)
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fastdiff.measuring.memory._largest_child", lambda peak: (None, "no process was started")
    )


def a_run(memory: PeakMemory, process: Process) -> None:
    """Imports 150 MB, loads 50, compiles at a peak of 900, leaves 30 behind, draws with 40 above that."""
    with memory.phase("import"):
        process.hold(250)
    with memory.phase("load"):
        process.hold(300, peak=320)
    with memory.phase("first_call"):
        process.hold(330, peak=900)
    with memory.phase("steady"):
        process.hold(330, peak=370)


def test_phases_are_told_apart_and_the_peak_is_that_of_the_whole_process(
    memory: PeakMemory, process: Process
) -> None:
    a_run(memory, process)
    linear = nn.Linear(1024, 1024 * 5, bias=False)  # 20 MB
    found = memory.parts([linear], compiled=True)
    assert memory.peaks().to_dict() == {
        "device_allocated": None,
        "device_reserved": None,
        "host": 900 * MB,
    }
    assert found.to_dict() == {
        "weights": {"device": None, "host": 20 * MB},
        "held": {"device": None, "host": (330 - 250 - 20) * MB},
        "activations": {"device": None, "host": 40 * MB},
        "first_call": {"device": None, "host": 600 * MB},
        "compile": {"device": None, "host": 530 * MB},
        "compiler_processes": None,
        "reasons": {
            "device": "no device of its own: device=cpu",
            "compiler_processes": "no process was started",
        },
    }


def test_a_peak_from_before_the_first_phase_is_kept_and_of_not_compiling_there_is_none(
    process: Process,
) -> None:
    process.hold(100, peak=2000)
    memory = PeakMemory("cpu", process.folder)
    a_run(memory, process)
    assert memory.peaks().host == 2000 * MB
    found = memory.parts([], compiled=False)
    assert found.compile == Places(None, None)
    assert found.reasons["compile"] == "nothing was compiled"


def test_calls_that_fit_into_what_was_kept_show_no_activations(
    memory: PeakMemory, process: Process
) -> None:
    with memory.phase("import"):
        process.hold(250)
    with memory.phase("first_call"):
        process.hold(400, peak=500)
    with memory.phase("steady"):
        process.hold(400)
    found = memory.parts([], compiled=True)
    assert found.activations.host is None
    assert (
        found.reasons["activations.host"] == "what the allocator kept of earlier calls was enough"
    )
    assert found.compile.host == 100 * MB


def test_a_system_that_keeps_one_peak_tells_no_phases_apart(
    memory: PeakMemory, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeakMemory, "_reset_host", lambda self: False)
    a_run(memory, process)
    found = memory.parts([], compiled=True)
    assert memory.peaks().host == 900 * MB
    assert found.activations == found.compile == Places(None, None)
    assert (
        found.reasons["host"]
        == "the system can't set a process's peak back, so phases can't be told apart"
    )


def test_nothing_is_kept_of_a_phase_that_failed_but_its_peak(
    memory: PeakMemory, process: Process
) -> None:

    def fail() -> None:
        process.hold(100, peak=700)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), memory.phase("steady"):
        fail()
    assert memory.phases == {}
    assert memory.peaks().host == 700 * MB
    assert memory.parts([], compiled=False).reasons["host"] == "no phase was followed"


def test_weights_of_which_less_is_resident_leave_nothing_to_be_told(
    memory: PeakMemory, process: Process
) -> None:
    a_run(memory, process)
    found = memory.parts([nn.Linear(1024, 1024 * 100, bias=False)], compiled=False)  # 400 MB
    assert found.held.host is None
    assert (
        found.reasons["held.host"]
        == "less is resident than the weights take: of a mapped file, what was read"
    )


def test_a_run_that_was_not_followed_from_its_imports_on_says_so(
    memory: PeakMemory, process: Process
) -> None:
    with memory.phase("steady"):
        process.hold(100, peak=120)
    found = memory.parts([], compiled=False)
    assert found.activations.host == 20 * MB
    assert found.held.host is None
    assert found.reasons["held"] == "the run was not followed from its imports on"


class FakeCuda:
    """CUDA's allocator as far as it is asked; in use only from the first tensor on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used, self.now, self.peak, self.resets = False, 0, 0, 0
        for name, answer in {
            "is_initialized": lambda: self.used,
            "memory_allocated": lambda: self.now,
            "max_memory_allocated": lambda: self.peak,
            "max_memory_reserved": lambda: 2 * self.peak,
            "reset_peak_memory_stats": self.reset,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def reset(self) -> None:
        assert self.used
        self.resets, self.peak = self.resets + 1, self.now

    def hold(self, now: int, peak: int) -> None:
        self.used, self.now, self.peak = True, now, max(self.peak, peak)


def test_on_cuda_the_allocators_peaks_are_kept_over_all_phases(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, memory = FakeCuda(monkeypatch), PeakMemory("cuda", process.folder)
    with memory.phase("import"):
        pass
    with memory.phase("load"):
        cuda.hold(50, 50)
    with memory.phase("first_call"):
        cuda.hold(70, 500)
    with memory.phase("steady"):
        cuda.hold(70, 90)
    peaks = memory.peaks()
    assert (peaks.device_allocated, peaks.device_reserved) == (500, 1000)
    found = memory.parts([], compiled=True)
    assert cuda.resets == 2  # nothing to set back before CUDA is used
    assert found.held.device == 70
    assert found.activations.device == 20
    assert found.first_call.device == 450
    assert found.compile.device == 410
    assert "device" not in found.reasons


def test_another_device_has_no_peaks_and_says_so(process: Process) -> None:
    memory = PeakMemory("mps", process.folder)
    a_run(memory, process)
    found = memory.parts([], compiled=False)
    assert found.activations == Places(None, 40 * MB)
    assert found.reasons["device"] == "only CUDA's allocator keeps peaks: device=mps"


def test_a_storage_that_is_shared_counts_once_and_one_without_numbers_not_at_all() -> None:
    tied, other = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    other.weight = tied.weight
    view = nn.Module()
    view.register_buffer("first_rows", tied.weight.detach()[:5])
    meta = nn.Linear(1000, 1000, device="meta")
    assert weight_bytes([tied, other, view, meta]) == {"device": 0, "host": 400}


def test_a_quantized_weight_counts_as_what_it_is_made_of() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = nn.Linear(64, 32, bias=False)
    quantize_(linear, Int8WeightOnlyConfig(set_inductor_config=False))
    scales = 32 * 4 + 32 * (linear.weight.zero_point.element_size())
    assert weight_bytes([linear])["host"] == 64 * 32 + scales


@pytest.mark.parametrize(
    ("children_kb", "own", "found"),
    [
        (0, 10**9, (None, "no process was started")),
        # Linux gives a child its parent's size to begin with.
        (10**6, 1024 * 10**6, (None, "no process that was started was larger than the run's own")),
        (2 * 10**6, 1024 * 10**6, (2048 * 10**6, None)),
        (10**6, None, (None, "no process that was started was larger than the run's own")),
    ],
)
def test_only_a_child_that_was_larger_than_its_parent_is_known(
    children_kb: int,
    own: int | None,
    found: tuple[int | None, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=children_kb))
    assert _largest_child(own) == found


def test_peaks_on_a_cpu_are_the_hosts_alone_and_known_without_proc(tmp_path: Path) -> None:
    peaks = PeakMemory("cpu").peaks()
    assert (peaks.device_allocated, peaks.device_reserved) == (None, None)
    for peak in (peaks.host, host_peak_bytes(tmp_path / "nowhere")):
        assert peak is not None
        assert peak > 50_000_000  # torch alone is more


def told_by(program: str) -> list[int]:
    """Numbers that a program prints in a process of its own: this one's peak may be gigabytes already."""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(word) for word in told.stdout.split()]


def test_the_peak_of_the_host_grows_with_what_is_held_and_never_shrinks() -> None:
    before, during, after = told_by("""
from fastdiff.measuring.memory import host_peak_bytes
before = host_peak_bytes()
held = bytearray(b"1") * 150_000_000
during = host_peak_bytes()
del held
print(before, during, host_peak_bytes())
""")
    assert 140_000_000 < during - before < 200_000_000
    assert after > during - 5_000_000  # the kernel's own count lags by some pages


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets a peak back")
def test_real_phases_are_told_apart_without_torch() -> None:
    first, steady, peak, torch_is_there = told_by("""
import sys
from fastdiff.measuring.memory import PeakMemory
memory = PeakMemory("cpu")
with memory.phase("import"):
    pass
with memory.phase("first_call"):
    held = bytearray(b"1") * 150_000_000
    del held
with memory.phase("steady"):
    held = bytearray(b"1") * 60_000_000
    del held
found = memory.parts([], compiled=True)
print(found.first_call.host, found.activations.host, memory.peaks().host, int("torch" in sys.modules))
""")
    assert 140_000_000 < first < 170_000_000
    assert 50_000_000 < steady < 80_000_000
    assert peak > 150_000_000
    assert not torch_is_there


@pytest.mark.gpu
def test_a_gpus_phases_are_told_apart() -> None:
    """In a process of its own: the largest peak is that of the whole process, whatever ran there before."""
    first, steady, peak = told_by("""
import torch
from fastdiff.measuring.memory import PeakMemory
memory = PeakMemory("cuda")
with memory.phase("import"):
    kept = torch.ones(1_000_000, device="cuda")
with memory.phase("first_call"):
    torch.ones(50_000_000, device="cuda").add_(1)
with memory.phase("steady"):
    torch.ones(10_000_000, device="cuda").add_(1)
found = memory.parts([], compiled=True)
print(found.first_call.device, found.activations.device, memory.peaks().device_allocated)
""")
    assert first == pytest.approx(200_000_000, rel=0.05)
    assert steady == pytest.approx(40_000_000, rel=0.05)
    assert peak == pytest.approx(204_000_000, rel=0.05)
