"""A whole comparison: who is alive when, what is written, and every way in which it can end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_players import Told, ended_of, quality_of, ready_of, sides_of

from fastdiff.display import compare as page
from fastdiff.errors import RunError, Status
from fastdiff.latency import counterbalanced
from fastdiff.machine.files import read_json
from fastdiff.models.random_weights import KEPT_IN
from fastdiff.runs.compare import comparison, players
from fastdiff.runs.compare.comparison import Comparison, exit_code, folder_of, visits
from fastdiff.runs.compare.how import How
from fastdiff.runs.compare.players import PlayerEnded, Seat
from fastdiff.runs.compare.seats import Seats
from fastdiff.runs.process import Ending

GB = 10**9


class Stage:
    """Stands for all processes: notes who is alive, and can let one of them fail.

    seconds: of every call, by player. fails: asked before each call and start; raises what should go wrong.
    """

    def __init__(self) -> None:
        self.seconds = {"A": 1.0, "B": 0.8, "A again": 1.0}
        self.host_bytes = {"A": GB, "B": GB, "A again": GB}
        self.ready: dict[str, dict[str, Any]] = {"A": {}, "B": {}, "A again": {}}
        self.ended: dict[str, dict[str, Any]] = {"A": {}, "B": {}, "A again": {}}
        self.fails: Callable[[str, Seat], None] = lambda what, seat: None
        self.alive: list[str] = []
        self.most_alive = 0
        self.events: list[str] = []

    def player(self, seat: Seat) -> FakePlayer:
        return FakePlayer(self, seat)


class FakePlayer:
    """What LivePlayer is to its users."""

    def __init__(self, stage: Stage, seat: Seat) -> None:
        self.stage, self.seat, self.name = stage, seat, seat.name
        self.last_word = False
        stage.fails("start", seat)
        stage.events.append(f"start {self.name}")
        stage.alive.append(self.name)
        stage.most_alive = max(stage.most_alive, len(stage.alive))
        seat.folder.mkdir(parents=True, exist_ok=True)
        (seat.folder / "image-0.png").write_text(f"the picture of {self.name}")
        quality = quality_of() if seat.pictures() else quality_of(ssim=None, reason="none")
        seat.heard.started(
            ready_of(stage.host_bytes[self.name], **{"quality": quality, **stage.ready[self.name]})
        )

    def call(self) -> float:
        assert self.name in self.stage.alive
        self.stage.fails("call", self.seat)
        return self.stage.seconds[self.name]

    def processor_s(self) -> float:
        return 0.0

    def end(self) -> None:
        if not self.last_word:
            self.last_word = True
            self.seat.heard.stopped(ended_of(**self.stage.ended[self.name]))
            self.kill()

    def kill(self) -> None:
        if self.name in self.stage.alive:
            self.stage.events.append(f"end {self.name}")
            self.stage.alive.remove(self.name)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()
    monkeypatch.setattr(comparison, "LivePlayer", stage.player)
    monkeypatch.setattr(players, "LivePlayer", stage.player)
    yield stage
    assert stage.alive == [], "no player outlives a comparison"


def compared(
    folder: Path,
    *words: str,
    pairs: int = 6,
    lives: int = 1,
    available_bytes: int = 100 * GB,
    seed: int = 0,
) -> Comparison:
    a, b = sides_of(*(words or ("", "qkv=fused")), available_bytes=available_bytes)
    return Comparison(a, b, How(pairs, lives, seed), folder, Told())


def fail(ending: Ending) -> Callable[[Seat], None]:
    def raised(seat: Seat) -> None:
        seat.folder.mkdir(parents=True, exist_ok=True)
        (seat.folder / "log.txt").write_text("the log's end\n")
        raise PlayerEnded(seat.name, ending, seat.folder)

    return raised


# What is written -----------------------------------------------------------------------------------


def test_three_live_players_take_turns_and_the_whole_story_is_written(
    stage: Stage, tmp_path: Path
) -> None:
    found = compared(tmp_path, "", "qkv=fused", "generation.steps=3", pairs=6)
    assert found.go() == "complete"
    assert stage.most_alive == 3
    data = read_json(tmp_path / "comparison.json")
    assert data["state"] == "complete"
    assert data["verdict"] == "faster"
    assert data["ratio"] == {
        "ratio": pytest.approx(1.25),
        "ci95_low": pytest.approx(1.25),
        "ci95_high": pytest.approx(1.25),
    }
    assert data["noise"]["ratio"] == 1.0
    assert (data["seats"], data["seats_reason"], data["calls_a_turn"]) == ("all live", None, 1)
    assert len(data["rounds"]) == 6
    assert data["rounds"][0]["order"] == data["rounds"][1]["order"][::-1]
    assert data["rounds"][0]["seconds"] == stage.seconds
    assert data["latents_shape"] == [1, 4, 8, 8]
    assert data["quality"]["identical"] is True
    assert data["again"] == {"identical": True}
    assert data["same_run"] is False
    a, b = data["sides"]["A"], data["sides"]["B"]
    assert b["overrides"] == ["generation.steps=3", "qkv=fused"]
    assert a["latency_s"]["samples"] == [1.0] * 6
    assert b["config"]["qkv"]["option"] == "fused"
    assert b["applied"] == ["attention.sdpa 14 kernel calls a step", "device cpu"]
    assert b["images"] == [{"path": "b.png", "sha256": "0"}]
    assert (tmp_path / "a.png").read_text() == "the picture of A"
    assert (tmp_path / "b.png").read_text() == "the picture of B"
    assert data["environment"]["device"] == "cpu"
    assert data["conditions"]["host"]["threads"] == 1
    assert data["conditions"]["host"]["affinity"] == [0]
    assert data["conditions"]["gpu"] is None
    assert a["warmup"] == {"asked": 1, "calls": 1, "most": 10, "steady": True}
    assert data["resolution"] is None, "there is a difference"


def test_random_weights_are_drawn_once_and_are_gone_at_the_end(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEPT_IN, raising=False)
    told = set()

    def started(what: str, seat: Seat) -> None:
        told.add(os.environ[KEPT_IN])
        Path(os.environ[KEPT_IN]).mkdir(exist_ok=True)

    stage.fails = started
    assert compared(tmp_path).go() == "complete"
    assert told == {str(tmp_path / ".weights")}
    assert not (tmp_path / ".weights").exists()
    assert KEPT_IN not in os.environ


def test_both_sides_say_what_they_generate(stage: Stage, tmp_path: Path) -> None:
    data = compared(tmp_path, "generation.steps=25", "generation.steps=12").to_dict("failed")
    assert {name: g["steps"] for name, g in data["generation"].items()} == {"A": 25, "B": 12}


def test_what_the_machine_did_is_kept_of_an_interrupted_comparison_too(
    stage: Stage, tmp_path: Path
) -> None:
    calls = 0

    def interrupt(what: str, seat: Seat) -> None:
        nonlocal calls
        calls += what == "call"
        if calls == 5:
            raise KeyboardInterrupt

    stage.fails = interrupt
    assert compared(tmp_path).go() == "interrupted"
    assert read_json(tmp_path / "comparison.json")["conditions"]["host"]["watched_s"] >= 0


def test_the_counted_rounds_come_after_one_that_is_not_counted(
    stage: Stage, tmp_path: Path
) -> None:
    calls: list[str] = []
    stage.fails = lambda what, seat: calls.append(seat.name) if what == "call" else None
    compared(tmp_path, pairs=6).go()
    assert calls[:3] == ["A", "B", "A again"]
    assert len(calls) == 3 * 7


def test_several_pictures_are_numbered(stage: Stage, tmp_path: Path) -> None:
    images = [{"path": f"image-{n}.png", "sha256": "0"} for n in range(2)]
    stage.ready["A"] = {"images": images}
    compared(tmp_path, pairs=1).go()
    data = read_json(tmp_path / "comparison.json")
    assert [i["path"] for i in data["sides"]["A"]["images"]] == ["a-0.png", "a-1.png"]
    assert (tmp_path / "a-0.png").is_file()


def test_what_an_earlier_comparison_left_is_gone(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "a-7.png").write_text("old")
    compared(tmp_path, pairs=1).go()
    assert not (tmp_path / "a-7.png").exists()


def test_a_run_against_itself_says_so(stage: Stage, tmp_path: Path) -> None:
    stage.seconds["B"] = 1.0
    found = compared(tmp_path, "", "")
    found.go()
    data = found.to_dict("complete")
    assert (data["same_run"], data["verdict"]) == (True, "no difference")
    assert data["resolution"] == 0.0
    assert ("", "both sides are the same run: this compares it with itself") in page.lines(data)


# Lives ---------------------------------------------------------------------------------------------


def test_all_processes_start_anew_for_each_life_and_the_orders_go_on(
    stage: Stage, tmp_path: Path
) -> None:
    found = compared(tmp_path, pairs=20, lives=5)
    assert found.go() == "complete"
    names = ["A", "B", "A again"]
    lives = [names[life % 3 :] + names[: life % 3] for life in range(5)]
    assert stage.events == [
        f"{what} {name}" for life in lives for what in ("start", "end") for name in life
    ]
    assert stage.most_alive == 3
    data = read_json(tmp_path / "comparison.json")
    assert data["lives"] == 5
    assert [r["life"] for r in data["rounds"]] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    assert [r["order"] for r in data["rounds"]] == list(
        counterbalanced(["A", "B", "A again"], 20, 0)
    )
    assert data["ratio_by_life"] == pytest.approx([1.25] * 5)
    assert data["noise_by_life"] == [1.0] * 5
    assert data["verdict"] == "faster"
    phases = found.progress.phases  # type: ignore[attr-defined]
    assert phases[0] == ("life 1 of 5: A, B and A again take turns", 0, 20)
    assert phases[-1] == ("life 5 of 5: A, B and A again take turns", 20, 20)


def test_luck_that_a_life_keeps_is_no_difference(stage: Stage, tmp_path: Path) -> None:
    """B's processes are by turns 4 % slower and quicker than A's, and no call differs from another of its life."""
    luck = iter([1.04, 0.96, 1.05, 0.97, 1.01])

    def start(what: str, seat: Seat) -> None:
        if what == "start" and seat.name == "B":
            stage.seconds["B"] = next(luck)

    stage.fails = start
    compared(tmp_path, pairs=20, lives=5).go()
    data = read_json(tmp_path / "comparison.json")
    assert data["verdict"] == "no difference"
    assert data["ratio"]["ci95_low"] < 0.96
    assert data["ratio"]["ci95_high"] > 1.04


def test_what_any_life_shows_is_told(stage: Stage, tmp_path: Path) -> None:
    lives = 0

    def start(what: str, seat: Seat) -> None:
        nonlocal lives
        if what == "start" and seat.name == "B":
            lives += 1
            stage.ended["B"] = {"same_picture": lives != 2}

    stage.fails = start
    compared(tmp_path, pairs=6, lives=3).go()
    assert read_json(tmp_path / "comparison.json")["sides"]["B"]["notices"] == [
        "the last call's picture differs from the first's: it doesn't repeat itself exactly"
    ]


def test_memory_that_runs_out_in_a_later_life_begins_all_anew(stage: Stage, tmp_path: Path) -> None:
    starts = 0

    def full(what: str, seat: Seat) -> None:
        nonlocal starts
        if what == "start" and seat.name == "A again":
            starts += 1
            if starts == 2:
                fail(Ending(Status.OOM, "out of memory", 1))(seat)

    stage.fails = full
    compared(tmp_path, pairs=6, lives=3).go()
    data = read_json(tmp_path / "comparison.json")
    assert data["seats"] == "one after the other"
    assert [r["life"] for r in data["rounds"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("exit_code", [1, 2])
def test_a_player_that_dies_in_a_later_life_leaves_what_was_measured(
    stage: Stage, tmp_path: Path, exit_code: int
) -> None:
    """Exit code 2, a model that went away meanwhile for example, doesn't take back what there is."""
    status = Status.CRASHED if exit_code == 1 else Status.INCOMPATIBLE
    starts = 0

    def die(what: str, seat: Seat) -> None:
        nonlocal starts
        if what == "start" and seat.name == "B":
            starts += 1
            if starts == 3:
                fail(Ending(status, "it is gone", exit_code))(seat)

    stage.fails = die
    with pytest.raises(PlayerEnded, match="B: it is gone") as raised:
        compared(tmp_path, pairs=20, lives=5).go()
    assert raised.value.exit_code == exit_code
    data = read_json(tmp_path / "comparison.json")
    assert (data["state"], data["verdict"], data["ratio"]) == ("failed", None, None)
    assert (data["error"]["player"], data["error"]["life"]) == ("B", 3)
    assert [r["life"] for r in data["rounds"]] == [1] * 4 + [2] * 4
    said = dict(page.lines(data))
    assert said["state"] == "failed: no verdict; 8 of 20 pairs were measured, up to life 2 of 5"


def test_ctrl_c_in_a_later_life_keeps_what_was_measured(stage: Stage, tmp_path: Path) -> None:
    calls = 0

    def interrupt(what: str, seat: Seat) -> None:
        nonlocal calls
        calls += what == "call"
        if calls == 2 * 3 * 5 + 3 + 2:
            raise KeyboardInterrupt

    stage.fails = interrupt
    assert compared(tmp_path, pairs=20, lives=5).go() == "interrupted"
    data = read_json(tmp_path / "comparison.json")
    assert [r["life"] for r in data["rounds"]] == [1] * 4 + [2] * 4 + [3]
    assert len(data["rounds"][-1]["seconds"]) == 1
    said = dict(page.lines(data))
    assert said["state"] == (
        "interrupted: no verdict; 8 of 20 pairs were measured, up to life 3 of 5"
    )


# Who is alive --------------------------------------------------------------------------------------


def test_one_after_the_other_where_not_all_fit(stage: Stage, tmp_path: Path) -> None:
    found = compared(tmp_path, available_bytes=round(1.5 * GB / 0.9), pairs=20)
    assert found.go() == "complete"
    assert stage.most_alive == 1
    assert stage.events[:2] == ["start A", "end A"], "A's real memory is what tells"
    data = read_json(tmp_path / "comparison.json")
    assert data["seats"] == "one after the other"
    assert data["calls_a_turn"] == 3
    assert len(data["rounds"]) == visits(20) == 8
    assert data["rounds"][0]["seconds"] == stage.seconds
    assert data["quality"]["identical"] is True
    assert page.turns(data) == (
        "8 pairs of visits, one process after the other, each with 3 calls: both don't fit: "
        "A needs about 1.0 GB and B 1.0 GB, and 1.5 GB are there for them"
    )


def test_one_after_the_other_at_once_where_the_weights_alone_do_not_fit(
    stage: Stage, tmp_path: Path
) -> None:
    compared(tmp_path, available_bytes=1000).go()
    assert stage.most_alive == 1
    assert len([event for event in stage.events if event.startswith("start")]) == 3 * 6


@pytest.mark.parametrize(("who", "starts"), [("A again", ["A", "B", "A"]), ("B", ["A", "A"])])
def test_a_player_that_runs_out_of_memory_makes_room(
    stage: Stage, tmp_path: Path, who: str, starts: list[str]
) -> None:
    def full(what: str, seat: Seat) -> None:
        alive = len(stage.alive)
        if what == "start" and seat.name == who and alive == (2 if who == "A again" else 1):
            fail(Ending(Status.OOM, "out of memory", 1))(seat)

    stage.fails = full
    found = compared(tmp_path)
    assert found.go() == "complete"
    assert found.seats is Seats.IN_TURN
    started = [e.removeprefix("start ") for e in stage.events if e.startswith("start")]
    assert started[: len(starts)] == starts
    data = read_json(tmp_path / "comparison.json")
    assert data["seats_reason"] == f"memory ran out with more of them ({who})"
    assert len(data["rounds"]) == 6, "what was measured before is not mixed in"


def test_out_of_memory_even_alone_is_a_failure(stage: Stage, tmp_path: Path) -> None:
    stage.fails = lambda what, seat: fail(Ending(Status.OOM, "out of memory", 1))(seat)
    found = compared(tmp_path)
    with pytest.raises(PlayerEnded, match="out of memory"):
        found.go()
    assert found.seats is Seats.IN_TURN
    assert read_json(tmp_path / "comparison.json")["error"]["status"] == "oom"


def test_visits_stand_for_pairs() -> None:
    assert [visits(n) for n in (1, 3, 6, 12, 20, 30)] == [1, 3, 6, 6, 8, 10]


# Endings -------------------------------------------------------------------------------------------


def test_a_player_that_dies_ends_the_others_and_leaves_no_verdict(
    stage: Stage, tmp_path: Path
) -> None:
    calls = 0

    def die(what: str, seat: Seat) -> None:
        nonlocal calls
        if what == "call" and seat.name == "B":
            calls += 1
            if calls == 4:
                fail(Ending(Status.CRASHED, "it died of SIGSEGV", 1))(seat)

    stage.fails = die
    with pytest.raises(PlayerEnded) as raised:
        compared(tmp_path).go()
    assert raised.value.exit_code == 1
    assert str(raised.value) == (
        f"B: it died of SIGSEGV\n  log: {tmp_path}/b/log.txt\n  | the log's end"
    )
    data = read_json(tmp_path / "comparison.json")
    assert (data["state"], data["verdict"], data["ratio"]) == ("failed", None, None)
    assert data["error"] == {
        "player": "B",
        "life": 1,
        "status": "crashed",
        "message": "it died of SIGSEGV",
        "log_tail": ["the log's end"],
    }
    assert [("B" in r["seconds"]) for r in data["rounds"]] == [True, True, False]
    assert "it died of SIGSEGV" in (tmp_path / "comparison.md").read_text()


def test_ctrl_c_keeps_what_was_measured_and_gives_no_verdict(stage: Stage, tmp_path: Path) -> None:
    calls = 0

    def interrupt(what: str, seat: Seat) -> None:
        nonlocal calls
        calls += what == "call"
        if calls == 3 + 3 * 7 + 2:
            raise KeyboardInterrupt

    stage.fails = interrupt
    found = compared(tmp_path, pairs=10)
    assert found.go() == "interrupted"
    data = read_json(tmp_path / "comparison.json")
    assert (data["state"], data["verdict"], data["ratio"]) == ("interrupted", None, None)
    assert [len(r["seconds"]) for r in data["rounds"]] == [3] * 7 + [1]
    said = dict(page.lines(data))
    assert said["state"] == "interrupted: no verdict; 7 of 10 pairs were measured"
    assert exit_code("interrupted") == 130


def test_ctrl_c_before_anything_was_measured_is_written_too(stage: Stage, tmp_path: Path) -> None:
    def interrupt(what: str, seat: Seat) -> None:
        raise KeyboardInterrupt

    stage.fails = interrupt
    assert compared(tmp_path).go() == "interrupted"
    data = read_json(tmp_path / "comparison.json")
    assert data["rounds"] == []
    assert page.title(data) == "compare on shapes: nothing measured yet"
    assert dict(page.lines(data))["A"] == "the defaults: not timed"


def test_a_run_that_can_not_start_leaves_nothing(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage.fails = lambda what, seat: fail(Ending(Status.INCOMPATIBLE, "no such model", 2))(seat)
    with pytest.raises(PlayerEnded) as raised:
        compared(Path("outputs/compare/x")).go()
    assert raised.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_sides_whose_latents_have_other_shapes_are_not_compared(
    stage: Stage, tmp_path: Path
) -> None:
    stage.ready["B"] = {"latents_shape": [1, 16, 8, 8]}
    with pytest.raises(RunError) as raised:
        compared(tmp_path).go()
    assert str(raised.value) == (
        "the sides don't start from the same latents: A's have the shape [1, 4, 8, 8], B's "
        "[1, 16, 8, 8]\n  instead: two models, or two settings, of the same latents"
    )
    data = read_json(tmp_path / "comparison.json")
    assert (data["state"], data["rounds"]) == ("failed", [])


def test_a_clock_that_jumps_gives_no_verdict(stage: Stage, tmp_path: Path) -> None:
    stage.seconds["B"] = -5.0
    with pytest.raises(RunError, match="the clock jumped"):
        compared(tmp_path).go()
    data = read_json(tmp_path / "comparison.json")
    assert (data["state"], data["verdict"]) == ("failed", None)


# Folders -------------------------------------------------------------------------------------------


def test_the_folder_is_named_by_what_is_compared_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = sides_of("", "qkv=fused")
    first = folder_of(a, b, How())
    assert first.parent == Path("outputs/compare")
    assert folder_of(a, b, How(seed=1)) != first
    assert folder_of(a, b, How(lives=4)) != first
    assert folder_of(b, a, How()) != first
    first.mkdir(parents=True)
    assert folder_of(a, b, How()) == first.with_name(f"{first.name}-2")
    assert folder_of(a, b, How(dir="~/here")) == Path("~/here").expanduser()


# For real ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(sd_folder: Path) -> tuple[str, ...]:
    size = ("generation.height=32", "generation.width=32", "generation.steps=2")
    return ("model=local", f"model.path={sd_folder}", *size)


def real(
    folder: Path, words: tuple[str, ...], pairs: int, lives: int, available_bytes: int
) -> dict[str, Any]:
    a, b = sides_of("", "qkv=fused", *words, available_bytes=available_bytes)
    assert Comparison(a, b, How(pairs, lives), folder, Told()).go() == "complete"
    found: dict[str, Any] = read_json(folder / "comparison.json")
    assert {name: (folder / f"{name}.png").is_file() for name in "ab"} == {"a": True, "b": True}
    return found


def alive_players(folder: Path) -> list[int]:
    """Processes that were started for this folder and are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(word.startswith(str(folder)) for word in words):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_three_real_processes_take_turns_and_start_anew(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    data = real(tmp_path, tiny, pairs=4, lives=2, available_bytes=100 * GB)
    assert data["seats"] == "all live"
    assert [set(r["seconds"]) for r in data["rounds"]] == [{"A", "B", "A again"}] * 4
    assert [r["life"] for r in data["rounds"]] == [1, 1, 2, 2]
    assert all(s > 0 for r in data["rounds"] for s in r["seconds"].values())
    assert any(text.startswith("qkv.fused") for text in data["sides"]["B"]["applied"])
    assert data["again"]["identical"] is True
    assert data["quality"]["ssim"] > 0.99
    assert data["latents_shape"] == [1, 4, 16, 16]
    assert data["ratio"] is None, "four pairs are too few"
    assert len(data["ratio_by_life"]) == len(data["noise_by_life"]) == 2
    assert alive_players(tmp_path) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_processes_one_after_the_other(tiny: tuple[str, ...], tmp_path: Path) -> None:
    data = real(tmp_path, tiny, pairs=1, lives=1, available_bytes=1000)
    assert data["seats"] == "one after the other"
    assert [set(r["seconds"]) for r in data["rounds"]] == [{"A", "B", "A again"}]
    assert data["sides"]["A"]["first_call_s"] > 0
    assert alive_players(tmp_path) == []
