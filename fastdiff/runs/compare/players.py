"""The parent's side of a player: a process that has its pipeline warm and waits for its turn."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffError, Status
from fastdiff.machine.files import write_text
from fastdiff.machine.hardware import Files, oom_kills
from fastdiff.measuring.protocol import ReferencePictures, Request
from fastdiff.runs.compare.conditions import processor_s
from fastdiff.runs.compare.lives import Heard
from fastdiff.runs.compare.sides import Side
from fastdiff.runs.folders import last_lines
from fastdiff.runs.process import Ending, Progress, end, ending_of, events_of, start

PAUSE_S = 0.02
"""Before each turn. The threads of the player before spin for some milliseconds once their work is done (OpenMP's way of
waiting), and would take a processor from this one."""

CALLS_A_VISIT = 3
"""Calls of a player that begins anew at each turn; the turn's time is their median."""


class PlayerEnded(FastdiffError):
    """A player ended before its time; `ending` says how. Exit code 2 if its run could not start at all."""

    def __init__(self, name: str, ending: Ending, folder: Path) -> None:
        self.name, self.ending, self.folder = name, ending, folder
        self.log_tail = last_lines(folder / "log.txt")
        self.exit_code = 2 if ending.status is Status.INCOMPATIBLE else 1
        said = [f"{name}: {ending.message}", f"  log: {folder / 'log.txt'}"]
        if ending.status is Status.CRASHED:
            said += [f"  | {line}" for line in self.log_tail[-4:]]
        super().__init__("\n".join(said))


@dataclass
class Seat:
    """Where a player plays, life after life: its name, its side, its folder, A's pictures, if there are any yet, to
    compare with, and what was heard from it so far."""

    name: str
    side: Side
    folder: Path
    progress: Progress
    pictures: Callable[[], list[Path]] = list
    heard: Heard = field(default_factory=Heard)

    def request(self) -> Request:
        pictures = self.pictures()
        reference = ReferencePictures(reason="A's pictures were not there")
        if pictures:
            reference = ReferencePictures.drawn(pictures, "A")
        return Request(self.side.plan.setting.run.to_dict(), self.side.overrides, reference)


class LivePlayer:
    """A player's process, from its start to its end. What it says of itself is in its seat: see player.py."""

    def __init__(self, seat: Seat) -> None:
        """Start it. Raises PlayerEnded if it can't be started up to its first turn."""
        self.seat = seat
        self._kills = oom_kills(Files())
        self._process = _start(seat)
        self._lines = events_of(self._process)
        try:
            seat.heard.started(self._heard("ready"))
        except BaseException:
            self.kill()
            raise

    def call(self) -> float:
        """One turn: seconds of one call, the device waited for. Raises PlayerEnded."""
        time.sleep(PAUSE_S)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended_early() from None
        return float(self._heard("seconds"))

    def processor_s(self) -> float:
        """Processor seconds that its process took so far; 0 once it was waited for, and counts as this one's child."""
        return processor_s(self._process.pid) if self._process.returncode is None else 0.0

    def end(self) -> None:
        """No more turns: let it say its last word and wait until it is gone. Raises PlayerEnded. Nothing if it is gone."""
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        self._process.stdin.close()
        self.seat.heard.stopped(self._heard("ended"))
        self._process.wait()

    def kill(self) -> None:
        """End it now, if it is still there."""
        if self._process.poll() is None:
            end(self._process)

    def _heard(self, wanted: str) -> Any:
        """What the next event of this kind says; the others are passed on."""
        progress, name = self.seat.progress, self.seat.name
        for event in self._lines:
            if wanted in event:
                return event[wanted]
            if "say" in event:
                progress.say(f"{name}: {event['say']}")
            elif "phase" in event:
                progress.tell(f"{name}: {event['phase']}", event["done"], event["of"])
            elif "error" in event:
                error = event["error"]
                self._process.wait()
                ending = Ending(Status(error["status"]), error["message"], error["exit_code"])
                raise PlayerEnded(name, ending, self.seat.folder)
        raise self._ended_early()

    def _ended_early(self) -> PlayerEnded:
        """What its exit code means; a line that ended without an error of its own is an early end too."""
        ending = ending_of(self._process.wait(), self._kills)
        if ending.status is Status.OK:
            ending = Ending(Status.CRASHED, "its process ended early, without a word", 1)
        return PlayerEnded(self.seat.name, ending, self.seat.folder)


class VisitingPlayer:
    """A player that begins anew at each turn, for where no two fit beside each other.

    A turn starts its process, lets it warm up, times a few calls and ends it.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def call(self) -> float:
        """One visit: the median of its calls, in seconds. Raises PlayerEnded."""
        player = LivePlayer(self.seat)
        try:
            seconds = statistics.median(player.call() for _ in range(CALLS_A_VISIT))
            player.end()
        finally:
            player.kill()
        return seconds

    def processor_s(self) -> float:
        """None between visits: each was waited for, and counts as this process's child."""
        return 0.0

    def end(self) -> None:
        """Nothing is left to end: every visit ended itself."""

    def kill(self) -> None:
        """Nothing is left to end."""


AnyPlayer = LivePlayer | VisitingPlayer


def _start(seat: Seat) -> subprocess.Popen[bytes]:
    folder = seat.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "log.txt", "")
    seat.request().write(folder)
    return start(
        "fastdiff.runs.compare.player", folder, seat.side.plan.variables, stdin=subprocess.PIPE
    )
