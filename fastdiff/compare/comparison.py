"""A comparison from its two sides to its verdict, with everything that was measured kept in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from fastdiff.compare import conditions
from fastdiff.compare.how import How
from fastdiff.compare.players import (
    CALLS_A_VISIT,
    AnyPlayer,
    LivePlayer,
    PlayerEnded,
    Seat,
    VisitingPlayer,
)
from fastdiff.compare.room import Seats, estimated_bytes, from_peak, room_bytes, seats
from fastdiff.compare.sides import Side, same_run
from fastdiff.compare.turns import Round, take_turns
from fastdiff.compare.verdict import AGAIN, FEWEST_PAIRS, A, B, judge
from fastdiff.config import fingerprint
from fastdiff.errors import RunError
from fastdiff.models.sources import model_of
from fastdiff.pages.compare import write_comparison_page
from fastdiff.pages.words import size
from fastdiff.process import Progress, entries, leave_nothing
from fastdiff.report import run_id
from fastdiff.result import Latency, Status, write_json

COMPARISONS = Path("outputs") / "compare"


@dataclass
class Comparison:
    """Two sides that are being compared.

    seats: how many players are alive at a time; crowded: why not all of them, in words.
    rounds: with A and B; noise_rounds: with A and A again, the same list where all three take turns.
    conditions: of the machine during each stretch of turns, those with A and B first.
    """

    a: Side
    b: Side
    how: How
    folder: Path
    progress: Progress
    seats: Seats = Seats.TOGETHER
    crowded: str | None = None
    rounds: list[Round] = field(default_factory=list)
    noise_rounds: list[Round] = field(default_factory=list)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    players: dict[str, AnyPlayer] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    started_at: str = field(default_factory=lambda: _now())

    def go(self) -> str:
        """Measure, and write what came of it. Returns `complete` or `interrupted`.

        Raises PlayerEnded, or RunError, after what was measured is written; a run that could not start at all leaves nothing.
        """
        before = entries(self.folder)
        _forget(self.folder)
        try:
            self._measure()
        except KeyboardInterrupt:
            return self._write("interrupted")
        except PlayerEnded as ended:
            if ended.exit_code == 2:
                leave_nothing(self.folder, before)
                raise
            self.error = {
                "player": ended.name,
                "status": ended.ending.status.value,
                "message": ended.ending.message,
                "log_tail": ended.log_tail,
            }
            self._write("failed")
            raise
        except RunError as error:
            self.error = {"player": None, "status": "failed", "message": str(error), "log_tail": []}
            self._write("failed")
            raise
        return self._write("complete")

    def _measure(self) -> None:
        """In the roomiest way that fits; in a narrower one if a player ran out of memory after all."""
        self._seat(self._needed(A), self._needed(B))
        while True:
            try:
                return self._play()
            except _Crowded:
                pass
            except PlayerEnded as ended:
                fewer = self.seats.fewer()
                if ended.ending.status is not Status.OOM or fewer is None:
                    raise
                self.seats = fewer
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
        found = seats(a, b, room)
        ways = list(Seats)
        if ways.index(found) > ways.index(self.seats):
            self.seats = found
            self.crowded = (
                f"A needs about {size(a)} and B {size(b)}, and {size(room)} are there for them"
            )

    def _play(self) -> None:
        """Take turns as seated; raises _Crowded once the players' real memory says that fewer must be alive."""
        self.rounds, self.noise_rounds, self.conditions, self.players = [], [], [], {}
        if self.seats is Seats.IN_TURN:
            with self._ended_at_last():
                for name in (A, B, AGAIN):
                    self.players[name] = VisitingPlayer(self._place(name))
                self.noise_rounds = self.rounds
                self._turns((A, B, AGAIN), visits(self.how.pairs), self.rounds)
            return
        with self._ended_at_last():
            self._join(A)
            self._join(B)
            if self.seats is Seats.TOGETHER:
                self._join(AGAIN)
                self.noise_rounds = self.rounds
                self._turns((A, B, AGAIN), self.how.pairs, self.rounds)
                return
            self._turns((A, B), self.how.pairs, self.rounds)
            self.players[B].end()
            self._join(AGAIN)
            self._turns((A, AGAIN), self.how.pairs, self.noise_rounds)

    def _join(self, name: str) -> None:
        """Start a player; then look whether those to come will fit."""
        player = LivePlayer(self._place(name))
        self.players[name] = player
        if name == AGAIN:
            return
        self.peaks[name] = _peak(player.ready)
        seated = self.seats
        self._seat(self._needed(A), self._needed(B))
        if self.seats is Seats.IN_TURN and seated is not Seats.IN_TURN:
            raise _Crowded

    def _turns(self, names: Sequence[str], pairs: int, rounds: list[Round]) -> None:
        players = {name: self.players[name] for name in names}
        if self.seats is not Seats.IN_TURN:
            self.progress.say("every process once, not counted")
            for player in players.values():
                player.call()
        what = " and ".join((", ".join(names[:-1]), names[-1]))

        def tell(done: int, of: int) -> None:
            _check_latents(self._ready(A), self._ready(B))
            self.progress.tell(f"{what} take turns", done, of)

        with self._watched(players):
            take_turns(players, pairs, self.how.seed, rounds, tell)

    @contextmanager
    def _watched(self, players: Mapping[str, AnyPlayer]) -> Iterator[None]:
        """Note what else the machine did meanwhile, however it ends."""
        watch = conditions.Watch(
            lambda: [p.ready for p in players.values() if p.ready],
            lambda: sum(p.processor_s() for p in self.players.values()),
        )
        try:
            with watch:
                yield
        finally:
            found = watch.to_dict()
            if found:
                self.conditions.append(found)

    def _place(self, name: str) -> Seat:
        """A player's seat; A's pictures are what the others are compared with."""
        side = self.b if name == B else self.a
        pictures = self._pictures_of_a if name != A else list
        return Seat(name, side, self._player_folder(name), self.progress, pictures)

    def _pictures_of_a(self) -> list[Path]:
        folder = self._player_folder(A)
        return [folder / image["path"] for image in self._ready(A).get("images", [])]

    def _player_folder(self, name: str) -> Path:
        return self.folder / name.lower().replace(" ", "-")

    @contextmanager
    def _ended_at_last(self) -> Iterator[None]:
        """Whatever happens within it, no player outlives it."""
        try:
            yield
            for player in self.players.values():
                if not player.ended:
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
        conditions: of the machine while turns were taken, all players' own work left out; noise_conditions: the same of
        the noise rounds where they were apart.
        """
        judged = judge(self.rounds, self.noise_rounds) if state == "complete" else None
        apart = self.noise_rounds is not self.rounds
        b = self.players[B].ready if B in self.players else {}
        return {
            "schema": 1,
            "state": state,
            "error": self.error,
            "verdict": judged.word if judged else None,
            "ratio": judged.ratio.to_dict() if judged and judged.ratio else None,
            "noise": judged.noise.to_dict() if judged and judged.noise else None,
            "resolution": judged.resolution if judged else None,
            "pairs": self.how.pairs,
            "fewest_pairs": FEWEST_PAIRS,
            "seed": self.how.seed,
            "seats": self.seats.value,
            "seats_reason": self.crowded,
            "calls_a_turn": CALLS_A_VISIT if self.seats is Seats.IN_TURN else 1,
            "rounds": [r.to_dict() for r in self.rounds],
            "noise_rounds": [r.to_dict() for r in self.noise_rounds] if apart else None,
            "same_run": same_run(self.a, self.b),
            "model": model_of(self.a.plan.setting.run).title,
            "generation": {
                side.name: side.plan.setting.run.to_dict()["generation"]
                for side in (self.a, self.b)
            },
            "latents_shape": b.get("latents_shape"),
            "quality": b.get("quality"),
            "conditions": self.conditions[0] if self.conditions else None,
            "noise_conditions": self.conditions[1] if len(self.conditions) > 1 else None,
            "notices": self._notices(),
            "sides": {side.name: self._side(side) for side in (self.a, self.b)},
            "again": self._again(),
            "environment": self._ready(A).get("environment"),
            "started_at": self.started_at,
            "finished_at": _now(),
        }

    def _ready(self, name: str) -> dict[str, Any]:
        return self.players[name].ready if name in self.players else {}

    def _ended(self, name: str) -> dict[str, Any]:
        return self.players[name].ended if name in self.players else {}

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
            "notices": [f"{n.choice}: {n.text}" for n in plan.notices]
            + ready.get("notices", [])
            + _notices(ended),
            "effects": ready.get("effects", []),
            "applied": ready.get("applied", []),
            **{name: ready.get(name) for name in measured},
            "warmup": ready.get("warmup"),
            "compile": ready.get("compile"),
            "latency_s": Latency(tuple(samples)).to_dict(),
            "peak_memory_bytes": ended.get("peak_memory_bytes") or ready.get("peak_memory_bytes"),
            "images": named,
        }

    def _notices(self) -> list[str]:
        """What the machine did while turns were taken that a reader has to know; what held twice is said once."""
        device = "cpu" if "cpu" in (self.a.plan.device, self.b.plan.device) else self.a.plan.device
        alive = {Seats.TOGETHER: 3, Seats.BY_TWOS: 2, Seats.IN_TURN: 1}[self.seats]
        said = [text for c in self.conditions for text in conditions.notices(c, device, alive)]
        return list(dict.fromkeys(said))

    def _again(self) -> dict[str, Any]:
        """What the second process of A says: whether it drew the first one's picture."""
        quality = self._ready(AGAIN).get("quality") or {}
        return {"identical": quality.get("identical")}


class _Crowded(Exception):
    """Fewer players may be alive than are now."""


def visits(pairs: int) -> int:
    """Rounds of visits, each with a few calls, in the place of so many pairs: an even number, and six at least."""
    return min(pairs, max(FEWEST_PAIRS, 2 * ceil(pairs / CALLS_A_VISIT / 2)))


def folder_of(a: Side, b: Side, how: How) -> Path:
    """Where results go: the folder asked for, or a new one named by what is compared."""
    if how.dir is not None:
        return Path(how.dir).expanduser()
    name = fingerprint([a.overrides, b.overrides, how.pairs, how.seed])[:8]
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
