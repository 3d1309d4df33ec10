"""What else the machine did while players took turns, with their own work left out of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastdiff.machine.nvml import gpu_state
from fastdiff.measuring.conditions import (
    BUSY,
    STOLEN,
    Moment,
    Room,
    Ticks,
    gpu_notices,
    host_report,
    this_moment,
)
from fastdiff.measuring.fields import GpuMoment


class Watch:
    """Around the turns, in the parent, and nothing else; entered again for each stretch of them. It needs no torch.

    ready: asked for what the players that have started said of themselves: their `room` and `gpu_names`; processes that
        begin anew at each turn have said nothing before their first one, so their GPU is not known then.
    spent: asked for the processor seconds of all players that are alive.
    look, gpu: the machine's counters, and a GPU's state by its names; tests answer themselves.
    """

    def __init__(
        self,
        ready: Callable[[], Sequence[Mapping[str, Any]]],
        spent: Callable[[], float],
        look: Callable[[], Moment] = this_moment,
        gpu: Callable[[Sequence[str]], dict[str, Any]] = gpu_state,
    ) -> None:
        self._ready, self._spent, self._look, self._state = ready, spent, look, gpu
        self._stretches: list[tuple[Moment, Moment]] = []
        self._gpu_before: dict[str, Any] | None = None

    def __enter__(self) -> Watch:
        if not self._stretches:
            self._gpu_before = self._gpu()
        self._before = self._moment()
        return self

    def __exit__(self, *_: object) -> None:
        self._stretches.append((self._before, self._moment()))
        self._gpu_after = self._gpu()

    def to_dict(self) -> dict[str, Any] | None:
        """`host`, and `gpu` before (None where not known then) and after; no `gpu` off CUDA. None if there were no turns, or no player ever got ready.

        What was done between the stretches, starting processes for example, is left out.
        """
        said = self._ready()
        if not said or not self._stretches:
            return None
        host = host_report(_room(said[0]["room"]), *_joined(self._stretches)).to_dict()
        if host["reason"]:
            host["reason"] = host["reason"].replace("bench.runs", "compare.pairs")
        gpu = {"before": self._gpu_before, "after": self._gpu_after}
        return {"host": host, "gpu": gpu if self._gpu_after else None}

    def _moment(self) -> Moment:
        """The machine's counters, with all players' work as our own."""
        moment = self._look()
        own_s = moment.own_s + waited_children_s() + self._spent()
        # How often this process had to give way says nothing of the players.
        return replace(moment, own_s=own_s, preempted=None)

    def _gpu(self) -> dict[str, Any] | None:
        names = next((ready["gpu_names"] for ready in self._ready() if ready["gpu_names"]), None)
        return self._state(names) if names else None


def _joined(stretches: Sequence[tuple[Moment, Moment]]) -> tuple[Moment, Moment]:
    """Before the first and after the last stretch, with the counters of the first moved on by what passed between."""
    first, last = stretches[0][0], stretches[-1][1]
    for (_, ended), (began, _) in pairwise(stretches):
        known = first.ticks.keys() & ended.ticks.keys() & began.ticks.keys()
        first = replace(
            first,
            counted_s=first.counted_s + began.counted_s - ended.counted_s,
            own_s=first.own_s + began.own_s - ended.own_s,
            ticks={n: _moved(first.ticks[n], ended.ticks[n], began.ticks[n]) for n in known},
        )
    return first, last


def _moved(ticks: Ticks, ended: Ticks, began: Ticks) -> Ticks:
    return Ticks(ticks.busy + began.busy - ended.busy, ticks.stolen + began.stolen - ended.stolen)


def _room(said: Mapping[str, Any]) -> Room:
    """A player's room, as it came through JSON."""
    affinity = said["affinity"]
    return Room(**{**said, "affinity": None if affinity is None else tuple(affinity)})


def waited_children_s() -> float:
    """Processor seconds of all children that have ended and were waited for; 0 on Windows, which doesn't say."""
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_s(pid: int, proc: Path = Path("/proc")) -> float:
    """Processor seconds of a process that is alive, and of its children that it waited for; 0 where /proc has none."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return 0.0
    # The name, in brackets, may hold blanks; utime, stime, cutime and cstime are fields 14 to 17.
    ticks = stat.rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def notices(conditions: Mapping[str, Any], device: str, players: int) -> list[str]:
    """What a reader of the ratios has to know; empty on a quiet machine.

    players: how many of them are alive, each of which holds the GPU.
    """
    host, found = conditions["host"], []
    allowed = len(host["affinity"] or ()) or host["processors"]
    cpus = f"{allowed} CPUs" if allowed > 1 else "one CPU"
    bearable = BUSY if device == "cpu" else max(BUSY, 1 - 1 / allowed)
    for share, limit, who in (
        (host["other_share"], bearable, "others took {:.0%} of the players' {}"),
        (host["steal_share"], STOLEN, "the machine's host took {:.0%} of the players' {}"),
    ):
        if share is not None and share > limit:
            found.append(
                f"{who.format(share, cpus)} while turns were taken: the ratios still hold, with wider "
                "intervals, and the seconds are too long"
            )
    if device == "cpu" and host["threads"] > allowed:
        found.append(
            f"{host['threads']} threads share {cpus}: times are too long; OMP_NUM_THREADS={allowed}"
        )
    if gpu := conditions["gpu"]:
        after = _without(players - 1, gpu["after"])
        found += gpu_notices(
            _without(players - 1, gpu["before"]) if gpu["before"] else after, after
        )
    return found


def _without(others: int, state: Mapping[str, Any]) -> GpuMoment:
    """A GPU's state as if one player alone held it: the others are no strangers."""
    held = state["compute_processes"]
    return GpuMoment.of({**state, "compute_processes": None if held is None else held - others})
