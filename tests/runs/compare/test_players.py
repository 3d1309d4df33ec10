"""A player's process as its parent sees it: small programs in the place of a real one, and one real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_players import Told, sides_of

from fastdiff.errors import Status
from fastdiff.machine.files import read_json
from fastdiff.measuring.protocol import ReferencePictures
from fastdiff.runs import process
from fastdiff.runs.compare import players
from fastdiff.runs.compare.players import (
    CALLS_A_VISIT,
    LivePlayer,
    PlayerEnded,
    Seat,
    VisitingPlayer,
)

TALK = """
import json, os, signal, sys
def send(**event): print(json.dumps(event), flush=True)
def turns():
    yield from sys.stdin
"""
"""What the small programs have in common."""


@pytest.fixture
def seat(tmp_path: Path) -> Seat:
    a, _ = sides_of("", "")
    return Seat("A", a, tmp_path / "a", Told())


def plays(monkeypatch: pytest.MonkeyPatch, program: str) -> list[int]:
    """Let this program be every player; returns their process ids as they are started."""
    started: list[int] = []

    def start(seat: Seat) -> subprocess.Popen[bytes]:
        seat.folder.mkdir(parents=True, exist_ok=True)
        with (seat.folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", TALK + program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        started.append(process.pid)
        return process

    monkeypatch.setattr(players, "_start", start)
    return started


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


READY = {"notices": [], "quality": {"ssim": None, "identical": None}}

COUNTING = """
send(say="loading"); send(phase="warm-up", done=0, of=1); send(ready={"n": 1, "notices": [], "quality": {"ssim": 1.0, "identical": True}})
for number, _ in enumerate(turns(), 1): send(seconds=float(number))
send(ended={"peak_memory_bytes": {"host": 1}, "graphs_while_timing": 2, "same_picture": True})
"""


def test_a_player_answers_turns_until_its_input_ends(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(monkeypatch, COUNTING)
    player = LivePlayer(seat)
    assert seat.heard.ready["n"] == 1
    assert [player.call(), player.call()] == [1.0, 2.0]
    player.end()
    assert seat.heard.ended["graphs_while_timing"] == 2
    player.end()
    assert seat.heard.ended["graphs_while_timing"] == 2, "it ends once"
    assert seat.progress.said == ["A: loading"]  # type: ignore[attr-defined]
    assert seat.progress.phases == [("A: warm-up", 0, 1)]  # type: ignore[attr-defined]
    player.kill()  # which is nothing now


def test_a_visit_is_a_process_of_its_own_and_the_median_of_its_calls(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    started = plays(monkeypatch, COUNTING)
    player = VisitingPlayer(seat)
    assert [player.call(), player.call()] == [2.0, 2.0]
    assert CALLS_A_VISIT == 3
    assert len(set(started)) == 2
    assert all(gone(pid) for pid in started)
    assert seat.heard.ready["n"] == 1
    assert seat.heard.ended["graphs_while_timing"] == 4, "of both visits"


def test_an_error_of_the_player_is_its_message_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(
        monkeypatch,
        "send(error={'status': 'incompatible', 'message': 'no such model', 'exit_code': 2})",
    )
    with pytest.raises(PlayerEnded) as raised:
        LivePlayer(seat)
    assert str(raised.value) == f"A: no such model\n  log: {seat.folder}/log.txt"
    assert raised.value.exit_code == 2
    assert raised.value.ending.status is Status.INCOMPATIBLE


def test_a_player_that_runs_out_of_memory_says_so(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(monkeypatch, "send(error={'status': 'oom', 'message': 'full', 'exit_code': 1})")
    with pytest.raises(PlayerEnded) as raised:
        LivePlayer(seat)
    assert raised.value.ending.status is Status.OOM
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(("kernel", "status"), [([2, 2], Status.CRASHED), ([2, 3], Status.OOM)])
def test_a_killed_player_ran_out_of_memory_only_if_the_kernel_says_so(
    kernel: list[int], status: Status, monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    counts = iter(kernel)
    for module in (players, process):
        monkeypatch.setattr(module, "oom_kills", lambda files: next(counts))
    plays(
        monkeypatch,
        f"send(ready={READY})\nfor _ in turns(): os.kill(os.getpid(), signal.SIGKILL)",
    )
    player = LivePlayer(seat)
    with pytest.raises(PlayerEnded) as raised:
        player.call()
    assert raised.value.ending.status is status


def test_a_crash_is_told_with_the_end_of_the_log(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(
        monkeypatch,
        f"send(ready={READY})\nfor _ in turns():\n    print('it broke', file=sys.stderr); os._exit(7)",
    )
    player = LivePlayer(seat)
    with pytest.raises(PlayerEnded) as raised:
        player.call()
    assert str(raised.value) == (
        "A: the run's process ended with exit code 7 without a word\n"
        f"  log: {seat.folder}/log.txt\n"
        "  | it broke"
    )
    assert raised.value.log_tail == ["it broke"]


def test_a_player_that_goes_without_a_word_crashed(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(monkeypatch, f"send(ready={READY})")
    player = LivePlayer(seat)
    with pytest.raises(PlayerEnded, match="A: its process ended early, without a word"):
        player.end()


def test_a_player_that_is_gone_at_its_turn_is_no_broken_pipe(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    plays(monkeypatch, f"send(ready={READY})\nsys.stdin.close(); signal.pause()")
    player = LivePlayer(seat)
    os.killpg(player._process.pid, signal.SIGTERM)
    player._process.wait()
    with pytest.raises(PlayerEnded, match="A: the run's process died of SIGTERM"):
        player.call()


def test_a_start_that_is_interrupted_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, seat: Seat
) -> None:
    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    started = plays(monkeypatch, "send(say='loading'); signal.pause()")
    monkeypatch.setattr(seat.progress, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        LivePlayer(seat)
    assert gone(started[0])


def test_a_request_names_as_pictures_once_they_are_there(tmp_path: Path) -> None:
    _, b = sides_of("", "qkv=fused")
    pictures: list[Path] = []
    place = Seat("B", b, tmp_path, Told(), lambda: pictures)
    nobody = ReferencePictures(reason="A's pictures were not there")
    assert place.request().reference == nobody
    pictures.append(tmp_path / "image-0.png")
    assert place.request().reference.pictures == [str(tmp_path / "image-0.png")]
    assert place.request().reference.latents == str(tmp_path / "latents.safetensors")
    assert place.request().overrides == ["qkv=fused"]


@pytest.mark.slow
def test_a_real_player_is_warm_before_its_turns_and_can_be_killed(
    sd_folder: Path, tmp_path: Path
) -> None:
    size = ("generation.height=32", "generation.width=32", "generation.steps=2")
    a, _ = sides_of("", "", "model=local", f"model.path={sd_folder}", *size)
    player = LivePlayer(Seat("A", a, tmp_path / "a", Told()))
    try:
        assert player.seat.heard.ready["latents_shape"] == [1, 4, 16, 16]
        assert len(player.seat.heard.ready["warmup_s"]) >= 1
        assert any(text.startswith("attention.sdpa") for text in player.seat.heard.ready["applied"])
        assert (tmp_path / "a" / player.seat.heard.ready["images"][0]["path"]).is_file()
        assert player.call() > 0
        os.killpg(player._process.pid, signal.SIGKILL)
        with pytest.raises(PlayerEnded) as raised:
            player.call()
        assert raised.value.ending.status is Status.CRASHED  # the kernel counted no want of memory
    finally:
        player.kill()
    assert read_json(tmp_path / "a" / "request.json")["overrides"] == a.overrides
