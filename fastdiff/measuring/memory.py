"""Memory of a run: peaks of the device and of the process, and what can be told apart in them.

A peak is read and set back around each phase, and the largest of all is kept: the whole run's peak stays what it was.
On Linux the kernel sets a process's resident peak back when `5` is written to /proc/self/clear_refs; elsewhere the host's
phases can't be told apart.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.measuring import fields
from fastdiff.measuring.fields import MemoryInParts, Places
from fastdiff.models.content import plain_tensors

if TYPE_CHECKING:
    from torch import nn

IMPORT, LOAD, FIRST_CALL, STEADY = "import", "load", "first_call", "steady"
"""Phases of a run."""

_PLACES = ("device", "host")
_ONE_PROCESS = "the system can't set a process's peak back, so phases can't be told apart"


@dataclass(frozen=True)
class Phase:
    """Bytes by place (`device`: CUDA's allocator, `host`: resident): held when a phase began and ended, and its peak.

    None where they aren't known.
    """

    before: dict[str, int | None]
    peak: dict[str, int | None]
    after: dict[str, int | None]

    def above(self, place: str) -> int | None:
        """Bytes of the peak above what was there before; at least 0, for the system counts in lumps of pages."""
        return _difference(self.peak[place], self.before[place])


class PeakMemory:
    """Follows a run through its phases. A phase that comes again takes the place of the first.

    device: where the run computes; only CUDA's allocator keeps peaks.
    process: what the system says of this process.
    """

    def __init__(self, device: str, process: Path = Path("/proc/self")) -> None:
        self.device = device
        self.phases: dict[str, Phase] = {}
        self._process = process
        self._largest: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Memory of what is done within; nothing is kept of a phase that fails."""
        self._remember()
        resets = {"device": self._reset_device(), "host": self._reset_host()}
        before = self._held()
        yield
        peak = {"device": self._device("max_memory_allocated"), "host": self._host("VmHWM")}
        known = {place: peak[place] if resets[place] else None for place in _PLACES}
        self.phases[name] = Phase(before, known, self._held())
        self._remember()

    def peaks(self) -> fields.PeakMemory:
        """Peaks since the process began."""
        self._remember()
        return fields.PeakMemory(**self._largest)

    def parts(self, modules: Iterable[nn.Module], *, compiled: bool) -> MemoryInParts:
        """What can be told apart, with reasons for the rest.

        held: copies that freezing packs, compiled code, libraries imported later and what allocators keep, which can't be
            told apart.
        activations: on the host a lower bound: what the allocator kept of earlier calls is used again without growing. A
            replayed CUDA graph allocates nothing: what it computes in is a pool that `device_reserved` alone shows.
        """
        first, steady = self.phases.get(FIRST_CALL), self.phases.get(STEADY)
        weights = weight_bytes(modules)
        found: dict[str, dict[str, Any]] = {
            "weights": weights if self._has_device else {**weights, "device": None}
        }
        found["held"] = {place: self._beside_weights(place, weights) for place in _PLACES}
        found["activations"] = {p: steady.above(p) if steady else None for p in _PLACES}
        found["first_call"] = {p: first.above(p) if first else None for p in _PLACES}
        found["compile"] = {
            place: _difference(first.peak[place], steady.peak[place])
            if compiled and first and steady
            else None
            for place in _PLACES
        }
        if found["activations"]["host"] == 0:
            found["activations"]["host"] = None
        largest, reason = _largest_child(self.peaks().host)
        parts = {name: Places(**places) for name, places in found.items()}
        reasons = self._reasons(found, compiled, reason)
        return MemoryInParts(**parts, compiler_processes=largest, reasons=reasons)

    @property
    def _has_device(self) -> bool:
        return self.device != "cpu"

    def _beside_weights(self, place: str, weights: dict[str, int]) -> int | None:
        imported, steady = self.phases.get(IMPORT), self.phases.get(STEADY)
        if imported is None or steady is None:
            return None
        now, before = steady.before[place], imported.after[place]
        beside = None if now is None or before is None else now - before - weights[place]
        return beside if beside is not None and beside >= 0 else None

    def _reasons(self, found: dict[str, Any], compiled: bool, child: str | None) -> dict[str, str]:
        """Why there are nulls, by the field, or by field and place, that they are in."""
        reasons: dict[str, str] = {}
        if not self._has_device:
            reasons["device"] = "no device of its own: device=cpu"
        elif self.device != "cuda":
            reasons["device"] = f"only CUDA's allocator keeps peaks: device={self.device}"
        if not self.phases:
            reasons["host"] = "no phase was followed"
        elif all(phase.peak["host"] is None for phase in self.phases.values()):
            reasons["host"] = _ONE_PROCESS
        elif not {IMPORT, STEADY} <= self.phases.keys():
            reasons["held"] = "the run was not followed from its imports on"
        elif found["held"]["host"] is None:
            reasons["held.host"] = (
                "less is resident than the weights take: of a mapped file, what was read"
            )
        steady = self.phases.get(STEADY)
        if steady and steady.above("host") == 0:
            reasons["activations.host"] = "what the allocator kept of earlier calls was enough"
        if not compiled:
            reasons["compile"] = "nothing was compiled"
        if child:
            reasons["compiler_processes"] = child
        return reasons

    def _remember(self) -> None:
        """Take the peaks so far into the largest ones."""
        now = {
            "device_allocated": self._device("max_memory_allocated"),
            "device_reserved": self._device("max_memory_reserved"),
            "host": host_peak_bytes(self._process),
        }
        for name, value in now.items():
            if value is not None:
                self._largest[name] = max(value, self._largest.get(name, 0))

    def _held(self) -> dict[str, int | None]:
        return {"device": self._device("memory_allocated"), "host": self._host("VmRSS")}

    def _device(self, counter: str) -> int | None:
        """A counter of CUDA's allocator, 0 before CUDA is used; None on other devices."""
        if self.device != "cuda":
            return None
        if not cuda_is_in_use():
            return 0
        import torch

        return int(getattr(torch.cuda, counter)())

    def _host(self, name: str) -> int | None:
        return _status(self._process, name)

    def _reset_device(self) -> bool:
        if self.device != "cuda":
            return False
        if cuda_is_in_use():
            import torch

            torch.cuda.reset_peak_memory_stats()
        return True

    def _reset_host(self) -> bool:
        """Set the resident peak back to what is resident now; False where the system can't."""
        if self._host("VmHWM") is None:
            return False
        try:
            (self._process / "clear_refs").write_text("5")
        except OSError:
            return False
        return True


def cuda_is_in_use() -> bool:
    """Whether this process has CUDA's allocator. Doesn't import torch: imports have a phase of their own."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _difference(larger: int | None, smaller: int | None) -> int | None:
    return None if larger is None or smaller is None else max(0, larger - smaller)


def _largest_child(own_peak: int | None) -> tuple[int | None, str | None]:
    """Peak of the largest child that has ended, its own children included; or None and why it isn't known.

    The system gives a child at least its parent's size, because a process begins as a copy of it. So only a child that
    was larger than this process can be told.
    """
    try:
        import resource
    except ImportError:
        return None, "this system doesn't count children"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    if peak == 0:
        return None, "no process was started"
    if own_peak is None or peak <= own_peak * 1.01:  # both are counted in lumps of pages
        return None, "no process that was started was larger than the run's own"
    return peak, None


def weight_bytes(modules: Iterable[nn.Module]) -> dict[str, int]:
    """Bytes of the modules' parameters and buffers, by place; a storage that several tensors share counts once."""
    sizes: dict[tuple[str, int], int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            for plain in plain_tensors(tensor):
                storage, kind = plain.untyped_storage(), plain.device.type
                if kind != "meta":
                    place = "host" if kind == "cpu" else "device"
                    sizes[place, storage.data_ptr()] = storage.nbytes()
    return {
        place: sum(size for (where, _), size in sizes.items() if where == place)
        for place in _PLACES
    }


def host_peak_bytes(process: Path = Path("/proc/self")) -> int | None:
    """This process's peak resident memory since it began or was set back; None where the system doesn't say."""
    if (process / "status").exists():
        return _status(process, "VmHWM")
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(process: Path, name: str) -> int | None:
    """A line of Linux's own account of a process, in bytes."""
    try:
        status = (process / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
