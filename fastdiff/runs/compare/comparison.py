"""A comparison from its two sides to its verdict, with everything that was measured kept in its folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from fastdiff.config import fingerprint
from fastdiff.display.compare import write_comparison_page
from fastdiff.display.words import size
from fastdiff.errors import RunError, Status
from fastdiff.latency import Latency
from fastdiff.machine.files import write_json
from fastdiff.measuring.report import run_id
from fastdiff.models.random_weights import kept_for_runs
from fastdiff.models.sources import model_of
from fastdiff.runs.compare import conditions
from fastdiff.runs.compare.how import How
from fastdiff.runs.compare.lives import shared_out
from fastdiff.runs.compare.players import (
    CALLS_A_VISIT,
    AnyPlayer,
    LivePlayer,
    PlayerEnded,
    Seat,
    VisitingPlayer,
)
from fastdiff.runs.compare.seats import Seats, estimated_bytes, from_peak, room_bytes, seats
from fastdiff.runs.compare.sides import Side, same_run
from fastdiff.runs.compare.turns import Round, orders, take_turns
from fastdiff.runs.compare.verdict import AGAIN, FEWEST_PAIRS, A, B, judge, speed_by_life
from fastdiff.runs.folders import entries, leave_nothing
from fastdiff.runs.process import Progress

COMPARISONS = Path("outputs") / "compare"


@dataclass
class Comparison:
    """Two sides that are being compared.

    seats: how many players are alive at a time; crowded: why not all of them, in words.
    life: which of the players' lives it is, from 1 on; players: those of this life; places: where each plays in all of them.
    """

    a: Side
    b: Side
    how: How
    folder: Path
    progress: Progress
    seats: Seats = Seats.TOGETHER
    crowded: str | None = None
    rounds: list[Round] = field(default_factory=list)
    life: int = 1
    players: dict[str, AnyPlayer] = field(default_factory=dict)
    places: dict[str, Seat] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    started_at: str = field(default_factory=lambda: _now())

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """As if nothing had been measured yet."""
        self.rounds, self.players = [], {}
        self.places = {name: self._place(name) for name in (A, B, AGAIN)}
        self.watch = conditions.Watch(
            lambda: [place.heard.ready for place in self.places.values() if place.heard.ready],
            lambda: sum(player.processor_s() for player in self.players.values()),
        )

    @property
    def lives(self) -> list[int]:
        """How many rounds each life has."""
        if self.seats is Seats.IN_TURN:  # every visit is a process of its own
            return [1] * visits(self.how.pairs)
        return shared_out(self.how.pairs, self.how.lives)

    def go(self) -> str:
        """Measure, and write what came of it. Returns `complete` or `interrupted`.

        Raises PlayerEnded, or RunError, after what was measured is written; a run that could not start at all leaves nothing.
        """
        with kept_for_runs(self.folder / ".weights"):
            return self._go()

    def _go(self) -> str:
        before = entries(self.folder)
        _forget(self.folder)
        try:
            self._measure()
        except KeyboardInterrupt:
            return self._write("interrupted")
        except PlayerEnded as ended:
            if ended.exit_code == 2 and not self.rounds:
                leave_nothing(self.folder, before)
                raise
            self.error = {
                "player": ended.name,
                "life": self.life,
                "status": ended.ending.status.value,
                "message": ended.ending.message,
                "log_tail": ended.log_tail,
            }
            self._write("failed")
            raise
        except RunError as error:
            self.error = {
                "player": None,
                "life": self.life,
                "status": "failed",
                "message": str(error),
                "log_tail": [],
            }
            self._write("failed")
            raise
        return self._write("complete")

    def _measure(self) -> None:
        """All at a time if they fit; one after the other if a player ran out of memory after all."""
        self._seat(self._needed(A), self._needed(B))
        while True:
            try:
                return self._play()
            except _Crowded:
                pass
            except PlayerEnded as ended:
                if ended.ending.status is not Status.OOM or self.seats is Seats.IN_TURN:
                    raise
                self.seats = Seats.IN_TURN
                self.crowded = f"memory ran out with more of them ({ended.name})"

    def _needed(self, name: str) -> int | None:
        """Bytes that a side's run needs: its real peak once it is known, judged by the other's, or by its weights."""
        side, other = (self.a, self.b) if name == A else (self.b, self.a)
        estimate = estimated_bytes(side.plan)
        if name in self.peaks:
            return self.peaks[name]
        if other.name in self.peaks and other.plan.device == side.plan.device:
            return from_peak(self.peaks[other.name], estimate, estimated_bytes(other.plan))
        return estimate

    def _seat(self, a: int | None, b: int | None) -> None:
        """Choose how many players may be alive, by what their runs need."""
        if self.a.plan.device != self.b.plan.device:
            return  # each has a device of its own; running out of memory would show otherwise
        room = room_bytes(self.a.plan)
        if self.seats is Seats.TOGETHER and seats(a, b, room) is Seats.IN_TURN:
            self.seats = Seats.IN_TURN
            self.crowded = (
                f"A needs about {size(a)} and B {size(b)}, and {size(room)} are there for them"
            )

    def _play(self) -> None:
        """Take turns as seated, life after life.

        Raises _Crowded once the players' real memory says that fewer must be alive.
        """
        self._begin()
        for life, pairs in enumerate(self.lives, 1):
            self.life = life
            with self._living():
                self._live(pairs)

    def _live(self, pairs: int) -> None:
        """One life: its players start, play so many rounds, and are gone after it."""
        if self.seats is Seats.IN_TURN:
            self.players = {name: VisitingPlayer(place) for name, place in self.places.items()}
        else:
            for name in self._joining():
                self._join(name)
        self._turns(pairs)

    def _joining(self) -> tuple[str, ...]:
        """Who starts first: A in the first life, for its pictures, and another one in each life after it.

        Memory is handed out in the order of the starts, so that a place that were always the same might be worth something.
        """
        first = (self.life - 1) % 3
        return ((A, B, AGAIN) * 2)[first : first + 3]

    def _join(self, name: str) -> None:
        """Start a player; the first time, look whether those to come will fit."""
        self.players[name] = LivePlayer(self.places[name])
        if name == AGAIN or name in self.peaks:
            return
        self.peaks[name] = _peak(self._ready(name))
        self._seat(self._needed(A), self._needed(B))
        if self.seats is Seats.IN_TURN:
            raise _Crowded

    def _turns(self, pairs: int) -> None:
        names = (A, B, AGAIN)
        players = {name: self.players[name] for name in names}
        if self.seats is not Seats.IN_TURN:
            self.progress.say("every process once, not counted")
            for player in players.values():
                player.call()
        what = f"{self._of_lives()}{A}, {B} and {AGAIN} take turns"

        def tell(done: int) -> None:
            _check_latents(self._ready(A), self._ready(B))
            self.progress.tell(what, done, sum(self.lives))

        # The orders go on where the life before left off.
        ordered = orders(names, sum(self.lives), self.how.seed)[len(self.rounds) :][:pairs]
        with self.watch:
            take_turns(players, ordered, self.rounds, tell, self.life)

    def _of_lives(self) -> str:
        """Which life it is, where there are several and a person would see them begin."""
        if self.seats is Seats.IN_TURN or len(self.lives) == 1:
            return ""
        return f"life {self.life} of {len(self.lives)}: "

    def _place(self, name: str) -> Seat:
        """A player's seat. All are compared with A's pictures, A itself too once it has any: all do the same work."""
        side = self.b if name == B else self.a
        return Seat(name, side, self._player_folder(name), self.progress, self._pictures_of_a)

    def _pictures_of_a(self) -> list[Path]:
        folder = self._player_folder(A)
        return [folder / image["path"] for image in self._ready(A).get("images", [])]

    def _player_folder(self, name: str) -> Path:
        return self.folder / name.lower().replace(" ", "-")

    @contextmanager
    def _living(self) -> Iterator[None]:
        """A life: whatever happens within it, no player outlives it."""
        self.players = {}
        try:
            yield
            for player in self.players.values():
                player.end()
        finally:
            for player in self.players.values():
                player.kill()

    def _write(self, state: str) -> str:
        """Write the figures, the page and both pictures."""
        data = self.to_dict(state)
        for name in (A, B):
            for image in data["sides"][name]["images"]:
                drawn = self._player_folder(name) / image["from"]
                if drawn.is_file():
                    shutil.copyfile(drawn, self.folder / image["path"])
                del image["from"]
        write_json(self.folder / "comparison.json", data)
        write_comparison_page(self.folder, data)
        return state

    def to_dict(self, state: str) -> dict[str, Any]:
        """The whole comparison as `comparison.json` has it; state: complete, interrupted or failed.

        ratio: seconds of A / seconds of B. noise: seconds of A / seconds of A again. Both, and the verdict, are null
        unless the state is complete. resolution: with no difference, the part below which one would not have been seen.
        lives: how many times all processes started anew; with several, both intervals are over lives and calls, with one
        they are of the processes at hand. ratio_by_life, noise_by_life: of each life that has a whole round.
        conditions: of the machine while turns were taken, all players' own work left out.
        """
        judged = judge(self.rounds) if state == "complete" else None
        b = self._ready(B)
        return {
            "schema": 1,
            "state": state,
            "error": self.error,
            "verdict": judged.word if judged else None,
            "ratio": judged.ratio.to_dict() if judged and judged.ratio else None,
            "noise": judged.noise.to_dict() if judged and judged.noise else None,
            "resolution": judged.resolution if judged else None,
            "pairs": self.how.pairs,
            "lives": len(self.lives),
            "ratio_by_life": list(speed_by_life(self.rounds, A, B).values()),
            "noise_by_life": list(speed_by_life(self.rounds, A, AGAIN).values()),
            "fewest_pairs": FEWEST_PAIRS,
            "seed": self.how.seed,
            "seats": self.seats.value,
            "seats_reason": self.crowded,
            "calls_a_turn": CALLS_A_VISIT if self.seats is Seats.IN_TURN else 1,
            "rounds": [r.to_dict() for r in self.rounds],
            "same_run": same_run(self.a, self.b),
            "model": model_of(self.a.plan.setting.run).title,
            "generation": {
                side.name: side.plan.setting.run.to_dict()["generation"]
                for side in (self.a, self.b)
            },
            "latents_shape": b.get("latents_shape"),
            "quality": b.get("quality"),
            "conditions": self.watch.to_dict(),
            "notices": self._notices(),
            "sides": {side.name: self._side(side) for side in (self.a, self.b)},
            "again": self._again(),
            "environment": self._ready(A).get("environment"),
            "started_at": self.started_at,
            "finished_at": _now(),
        }

    def _ready(self, name: str) -> dict[str, Any]:
        return self.places[name].heard.ready

    def _ended(self, name: str) -> dict[str, Any]:
        return self.places[name].heard.ended

    def _side(self, side: Side) -> dict[str, Any]:
        """What is known of a side: what was asked, what was applied, what its process measured."""
        plan, ready, ended = side.plan, self._ready(side.name), self._ended(side.name)
        samples = [r.seconds[side.name] for r in self.rounds if side.name in r.seconds]
        images = ready.get("images", [])
        named = [
            {
                **image,
                "from": image["path"],
                "path": f"{side.name.lower()}{f'-{number}' if len(images) > 1 else ''}.png",
            }
            for number, image in enumerate(images)
        ]
        measured = ("import_s", "load_s", "apply_s", "first_call_s", "compile_s", "warmup_s")
        return {
            "title": side.title,
            "source": side.source,
            "overrides": side.overrides,
            "run_id": run_id(plan.setting.run, plan.device),
            "config": plan.setting.run.to_dict(),
            "plan": plan.to_dict(),
            "notices": side.notices
            + [f"{n.choice}: {n.text}" for n in plan.notices]
            + ready.get("notices", [])
            + _notices(ended),
            "effects": ready.get("effects", []),
            "applied": ready.get("applied", []),
            **{name: ready.get(name) for name in measured},
            "warmup": ready.get("warmup"),
            "compile": _compiling(ready, ended),
            "latency_s": Latency(tuple(samples)).to_dict(),
            "peak_memory_bytes": ended.get("peak_memory_bytes") or ready.get("peak_memory_bytes"),
            "images": named,
        }

    def _notices(self) -> list[str]:
        """What the machine did while turns were taken that a reader has to know; what held twice is said once."""
        device = "cpu" if "cpu" in (self.a.plan.device, self.b.plan.device) else self.a.plan.device
        alive = 1 if self.seats is Seats.IN_TURN else 3
        found = self.watch.to_dict()
        return list(dict.fromkeys(conditions.notices(found, device, alive))) if found else []

    def _again(self) -> dict[str, Any]:
        """What the second process of A says, in all lives: whether it drew the first one's picture."""
        return {"identical": self.places[AGAIN].heard.identical}


class _Crowded(Exception):
    """Fewer players may be alive than are now."""


def visits(pairs: int) -> int:
    """Rounds of visits, each with a few calls, in the place of so many pairs: an even number, and six at least."""
    return min(pairs, max(FEWEST_PAIRS, 2 * ceil(pairs / CALLS_A_VISIT / 2)))


def folder_of(a: Side, b: Side, how: How) -> Path:
    """Where results go: the folder asked for, or a new one named by what is compared."""
    if how.dir is not None:
        return Path(os.path.expanduser(how.dir))
    name = fingerprint([a.overrides, b.overrides, how.pairs, how.lives, how.seed])[:8]
    suffixes = ("", *(f"-{number}" for number in range(2, 1000)))
    return next(p for s in suffixes if not (p := COMPARISONS / f"{name}{s}").exists())


def exit_code(state: str) -> int:
    """0 whatever the verdict is, once it is known."""
    return {"complete": 0, "interrupted": 130}.get(state, 1)


def _check_latents(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raises RunError if both sides are known to start from latents of different shapes."""
    one, other = a.get("latents_shape"), b.get("latents_shape")
    if one and other and one != other:
        raise RunError(
            f"the sides don't start from the same latents: A's have the shape {one}, B's {other}\n"
            "  instead: two models, or two settings, of the same latents"
        )


def _peak(ready: dict[str, Any]) -> int:
    """What a player holds on its device: what the allocator reserved on a GPU, all its memory elsewhere."""
    memory = ready["peak_memory_bytes"]
    return int(memory["device_reserved"] or memory["host"] or 0)


def _compiling(ready: dict[str, Any], ended: dict[str, Any]) -> dict[str, Any] | None:
    """What was compiled before the first turn, and how many graphs while turns were taken."""
    if not ready.get("compile"):
        return None
    return {**ready["compile"], "graphs_while_timing": ended.get("graphs_while_timing", 0)}


def _notices(ended: dict[str, Any]) -> list[str]:
    """What only the turns could show."""
    found = []
    if ended.get("graphs_while_timing"):
        found.append(
            f"{ended['graphs_while_timing']} graphs were compiled while turns were taken: the times hold "
            "compiling; a larger bench.warmup leaves it out"
        )
    if ended.get("same_picture") is False:
        found.append(
            "the last call's picture differs from the first's: it doesn't repeat itself exactly"
        )
    return found


def _forget(folder: Path) -> None:
    """Remove an earlier comparison's results, so that nothing old stands beside what is new."""
    for name in ("comparison.json", "comparison.md"):
        (folder / name).unlink(missing_ok=True)
    for path in (*folder.glob("[ab].png"), *folder.glob("[ab]-*.png")):
        path.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
