"""What else the machine did while calls were timed: how many of its processors others took, and the GPU's state."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.machine.nvml import this_gpu_state
from fastdiff.measuring.fields import Conditions, GpuMoment, GpuMoments, Host

BUSY = 0.10
"""Of the processors a run may use: what others may take before a notice says so. Its own figures are good to 0.02."""
STOLEN = 0.05
SHORTEST_S = 1.0
"""The kernel counts in ticks of 10 ms: shares of a shorter time would be guesses."""


@dataclass(frozen=True)
class Ticks:
    """One processor's time since boot, in the kernel's ticks: busy for anyone, and taken by the hypervisor."""

    busy: int
    stolen: int


def ticks_of(stat: str) -> dict[int, Ticks]:
    """Each processor's ticks, from the text of Linux's /proc/stat.

    psutil's list leaves out processors that are switched off without saying which, so its places are no numbers.
    """
    found = {}
    for number, times in re.findall(r"^cpu(\d+) +(.+)$", stat, re.MULTILINE):
        # Time of guests, which follows, is in user's and nice's already.
        user, nice, system, _idle, _iowait, irq, softirq, stolen = (
            *map(int, times.split()),
            *([0] * 8),
        )[:8]
        found[int(number)] = Ticks(user + nice + system + irq + softirq, stolen)
    return found


@dataclass(frozen=True)
class Moment:
    """The machine's counters at one moment.

    counted_s: by a clock that only rises.
    own_s: processor seconds of this process, all its threads together.
    load: how many programs wanted to run, the mean of the last minute; None where the system doesn't say.
    ticks: by processor; empty off Linux.
    preempted: how often this process had to give way while it wanted to go on; None off Unix.
    """

    counted_s: float
    own_s: float
    load: float | None
    ticks: Mapping[int, Ticks] = field(default_factory=dict)
    preempted: int | None = None


def this_moment(stat: Path = Path("/proc/stat")) -> Moment:
    """Read the machine's counters now."""
    try:
        ticks = ticks_of(stat.read_text())
    except OSError:
        ticks = {}
    return Moment(
        time.perf_counter(),
        time.process_time(),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        ticks,
        _preempted(),
    )


def _preempted() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Room:
    """What this process computes with.

    threads, interop_threads: of torch, within an operation and beside one another.
    affinity: the processors that it may run on; None where the system doesn't say.
    processors: how many the machine has.
    tick_s: the kernel's tick in seconds.
    """

    threads: int
    interop_threads: int
    affinity: tuple[int, ...] | None
    processors: int
    tick_s: float = 0.01


def this_room() -> Room:
    """What torch in this process computes with."""
    import torch

    linux = sys.platform == "linux"
    return Room(
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        tuple(sorted(os.sched_getaffinity(0))) if linux else None,
        os.cpu_count() or 1,
        1 / os.sysconf("SC_CLK_TCK") if linux else 0.01,
    )


def host_report(room: Room, before: Moment, after: Moment) -> Host:
    """What passed between two moments. The kernel's own work and this process's children count as others."""
    seconds = after.counted_s - before.counted_s
    reason = _not_told(room, before, after, seconds)
    return Host(
        threads=room.threads,
        interop_threads=room.interop_threads,
        affinity=None if room.affinity is None else list(room.affinity),
        processors=room.processors,
        load_before=before.load,
        load_after=after.load,
        watched_s=seconds,
        preempted=None
        if before.preempted is None or after.preempted is None
        else after.preempted - before.preempted,
        reason=reason,
        **({} if reason else _shares(room, before, after, seconds)),
    )


def _not_told(room: Room, before: Moment, after: Moment, seconds: float) -> str | None:
    if room.affinity is None or not before.ticks:
        return "only Linux's /proc/stat tells what other programs took"
    if not set(room.affinity) <= before.ticks.keys() & after.ticks.keys():
        return "/proc/stat doesn't name all processors that this run may use"
    if seconds < SHORTEST_S:
        return f"{seconds:.2f} s are too short to tell; a larger bench.runs makes it longer"
    return None


def _shares(room: Room, before: Moment, after: Moment, seconds: float) -> dict[str, float]:
    allowed = room.affinity or ()
    busy = sum(after.ticks[n].busy - before.ticks[n].busy for n in allowed) * room.tick_s
    stolen = sum(after.ticks[n].stolen - before.ticks[n].stolen for n in allowed) * room.tick_s
    whole = seconds * len(allowed)
    own = after.own_s - before.own_s
    # Ticks are coarse: a share can come out a little below 0 or above 1.
    return {
        "other_share": min(1.0, max(0.0, (busy - own) / whole)),
        "steal_share": min(1.0, max(0.0, stolen / whole)),
    }


def host_notices(host: Host, device: str) -> list[str]:
    """What a reader of the times has to know: others were busy here, or threads crowd.

    device: a run on a GPU needs one processor; others may have the rest.
    """
    notices = []
    allowed = len(host.affinity or ()) or host.processors
    cpus = f"{allowed} CPUs" if allowed > 1 else "one CPU"
    others, stolen, load = host.other_share, host.steal_share, host.load_before
    bearable = BUSY if device == "cpu" else max(BUSY, 1 - 1 / allowed)
    if others is not None and others > bearable:
        notices.append(
            f"others took {others:.0%} of this run's {cpus} while calls were timed: times are too long; "
            "end them and run again, or compare only runs that took turns"
        )
    if stolen is not None and stolen > STOLEN:
        notices.append(
            f"this machine's host took {stolen:.0%} of this run's {cpus} for other machines while calls were "
            "timed: times are too long; run again, or compare only runs that took turns"
        )
    if others is None and load is not None and load > 1.5 * host.processors:
        notices.append(
            f"the load was {load:.1f} on {host.processors} CPUs when timing began: if that was more than "
            "this run's own compiling, times are too long; end other programs and run again"
        )
    if device == "cpu" and host.threads > allowed:
        notices.append(
            f"{host.threads} threads share {cpus}: times are too long; OMP_NUM_THREADS={allowed}"
        )
    return notices


_IN_DISTRESS = {
    *("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"),
}
"""What slows a GPU that is too hot or badly fed; a power cap is everyday life under full load."""


def gpu_troubles(before: GpuMoment, after: GpuMoment) -> dict[str, str]:
    """What makes work on the GPU take longer than it should, by its state before and after it, and what mends it.

    Nothing where the state is unknown.
    """
    if before.reason or after.reason:
        return {}
    slowed = {name for state in (before, after) for name in state.slowed_by or ()}
    processes = max(state.compute_processes or 0 for state in (before, after))
    found = {}
    if distress := ", ".join(sorted(slowed & _IN_DISTRESS)):
        hot = f"the GPU slowed itself down ({distress}; {after.temperature_c} °C)"
        found[hot] = "times may be too long; cool it and run again"
    if processes > 1:
        found[f"{processes} processes hold this GPU"] = (
            "if another computed while calls were timed, times are too long; end it and run again"
        )
    return found


def gpu_notices(before: GpuMoment, after: GpuMoment) -> list[str]:
    """What a reader of the times has to know of the GPU's state before and after them."""
    if reason := before.reason or after.reason:
        return [f"the GPU's clocks and temperature are unknown: {reason}"]
    return [f"{trouble}: {advice}" for trouble, advice in gpu_troubles(before, after).items()]


def disturbances(conditions: Mapping[str, Any], device: str) -> list[str]:
    """What of a report's `conditions` says that times are too long because of others: other programs, machines, a hot GPU.

    A run's own crowding of threads, and a load that may be its own compiling, are none.
    """
    known = Conditions.of(conditions)
    said = host_notices(known.host, device) if known.host else []
    found = [text.partition(":")[0] for text in said if " took " in text]
    return found + (list(gpu_troubles(known.gpu.before, known.gpu.after)) if known.gpu else [])


class Watch:
    """Around the timed calls, and nothing else: what the machine did meanwhile.

    look, room, gpu: who is asked; tests answer themselves.
    """

    def __init__(
        self,
        device: str,
        look: Callable[[], Moment] = this_moment,
        room: Callable[[], Room] = this_room,
        gpu: Callable[[], dict[str, Any]] = this_gpu_state,
    ) -> None:
        self._device, self._look, self._room = device, look, room()
        self._gpu = gpu

    def _asked(self) -> GpuMoment | None:
        return GpuMoment.of(self._gpu()) if self._device == "cuda" else None

    def __enter__(self) -> Watch:
        self._gpu_before = self._asked()
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        self._gpu_after = self._asked()
        self._host = host_report(self._room, self._before, self._look())

    def conditions(self) -> Conditions:
        """What was seen. Known once the watch has ended."""
        before, after = self._gpu_before, self._gpu_after
        return Conditions(self._host, GpuMoments(before, after) if before and after else None)

    def notices(self) -> list[str]:
        """What a reader of the times has to know; empty on a quiet machine."""
        found = host_notices(self._host, self._device)
        if self._gpu_before is not None and self._gpu_after is not None:
            found += gpu_notices(self._gpu_before, self._gpu_after)
        return found
