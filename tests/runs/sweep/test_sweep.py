"""Sweeps whose cells end in every way there is: rows, exit codes, files. Cells are fake processes; real ones in test_sweep_real.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiff.__main__ import main
from fastdiff.choices.compose import compose
from fastdiff.machine.files import read_json
from fastdiff.runs.sweep import job

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fake_worker import (  # noqa: E402
    DISK_FULL,
    EXITS_7,
    HANGS,
    KILLED,
    NAN,
    NO_MEMORY,
    NO_REFERENCE,
    RAISES,
)
from sweeping import start_fake  # noqa: E402

PLAIN = ("model=shapes", "device=cpu", "quality=none")
GRID = Path("outputs/sweeps/grid")


@pytest.fixture
def here(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    # Cells of other sweeps on this machine are none of a test's business, and would be waited for.
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def fake(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells are fake processes."""
    monkeypatch.setattr(job, "start", start_fake)
    monkeypatch.setattr(job, "can_fork", lambda plan: False)
    return here


def sweep(*words: str) -> int:
    return main(["-m", *PLAIN, *words])


def data_of(folder: Path = GRID) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def statuses(folder: Path = GRID) -> list[str]:
    return [row["status"] for row in data_of(folder)["rows"]]


def seeds(*numbers: int) -> str:
    return "generation.seed=" + ",".join(map(str, numbers))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PAGES = {"sweep.json", "sweep.csv", "sweep.md", "index.html"}


# Every cell is a row -------------------------------------------------------------------------------


def test_a_cell_that_raises_is_a_row_and_the_others_go_on(fake: Path) -> None:
    assert sweep(seeds(1, RAISES, 2, 3, 4), "sweep.name=grid") == 1
    assert statuses() == ["ok", "failed", "ok", "ok", "ok"]
    row = data_of()["rows"][1]
    assert row["reason"] == "RuntimeError: this cell was meant to fail"
    assert row["log_tail"] == [
        "a library says something",
        "Traceback: this cell was meant to fail",
    ]
    assert (GRID / row["log"]).read_text().endswith("this cell was meant to fail\n")
    assert data_of()["counts"] == {"ok": 4, "failed": 1}
    assert data_of()["state"] == "complete"


def test_other_arguments_of_the_call_can_be_swept(fake: Path) -> None:
    assert sweep("generation.call.clip_skip=1,2", "sweep.name=grid") == 0
    assert [row["values"] for row in data_of()["rows"]] == [
        {"generation.call.clip_skip": "1"},
        {"generation.call.clip_skip": "2"},
    ]
    assert sweep("generation.call={clip_skip:1},{clip_skip:3}", "sweep.name=maps") == 0


def test_every_way_to_end_has_its_status(fake: Path) -> None:
    grid = seeds(1, EXITS_7, KILLED, NAN, HANGS)
    assert sweep(grid, "sweep.name=grid", "sweep.timeout_s=8") == 1
    assert statuses() == ["ok", "crashed", "crashed", "invalid_output", "timeout"]
    reasons = [row["reason"] for row in data_of()["rows"][1:]]
    assert reasons == [
        "the run's process ended with exit code 7 without a word",
        "the run's process was killed by signal 9 (SIGKILL), and not for want of memory: the kernel "
        "counted no such kill",
        "the picture is not a number",
        "the run took longer than 8 s (sweep.timeout_s)",
    ]
    assert data_of()["rows"][4]["instead"] == "a longer sweep.timeout_s, or fewer generation.steps"
    for row in data_of()["rows"]:
        assert {"report.json", "report.md", "log.txt"} <= files(GRID / "cells" / row["cell"])


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_cell_that_needs_more_than_its_memory_is_oom(fake: Path) -> None:
    grid = seeds(NO_MEMORY, 1)
    assert sweep(grid, "sweep.name=grid", "sweep.memory_limit_gb=1") == 1
    assert statuses() == ["oom", "ok"]
    row = data_of()["rows"][0]
    assert row["reason"].startswith(
        "the run needed more than its 1 GB of memory (sweep.memory_limit_gb)"
    )
    assert row["instead"].startswith("a larger sweep.memory_limit_gb")


def test_impossible_cells_and_cells_that_cant_be_composed_are_rows_and_no_failure(
    fake: Path,
) -> None:
    grid = ("quant=none,int8", "quant.swap_conv=false", "attention=sdpa,math", "qkv=fused")
    assert sweep(*grid, "sweep.name=grid") == 0
    assert statuses() == ["incompatible", "incompatible", "ok", "incompatible"]
    rows = data_of()["rows"]
    assert rows[0]["reason"] == "quant=none has no key 'swap_conv'"
    assert "attention=math can't be combined with qkv=fused" in rows[3]["reason"]
    assert rows[3]["instead"]
    assert files(GRID / "cells") == {
        f"{rows[2]['cell']}/{name}"
        for name in (
            *("report.json", "report.md", "log.txt", "image-0.png", "cell.json"),
            *("request.json", "plan.json", "config.yaml"),
        )
    }


def test_cells_that_are_the_same_run_are_run_once(fake: Path) -> None:
    assert sweep("generation.steps=25,null", "sweep.name=grid") == 0
    first, second = data_of()["rows"]
    assert second["same_as"] == first["cell"]
    assert second["latency_s"] == first["latency_s"]
    assert statuses() == ["ok", "ok"]
    assert len(list((GRID / "cells").iterdir())) == 1


def test_a_misspelling_of_the_whole_grid_is_refused_and_leaves_nothing(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("quant=none,imt8") == 2
    assert capsys.readouterr().err == (
        "fastdiff: quant has no option 'imt8'\n  did you mean: quant=int8\n"
    )
    assert list(fake.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sweep.nam=x", "sweep has no key 'nam'\n  did you mean: sweep.name"),
        (
            "sweep.timeout_s=-1",
            "sweep.timeout_s can't be '-1': it must be a number above 0 or null\n  for example: sweep.timeout_s=3600",
        ),
        (
            "sweep.retry=some",
            "sweep.retry can't be 'some'\n  there are: failed, disturbed, none, all",
        ),
        (
            "sweep.name=../x",
            "sweep.name can't be '../x': it must be letters, digits, '.', '_' and '-' (sweep.dir=DIR takes any folder) or null\n"
            "  for example: sweep.name=NAME",
        ),
        (
            "hydra.sweep.subdir=x",
            "hydra.sweep.subdir=x: a sweep has one folder\n  instead: sweep.dir=DIR",
        ),
        (
            "hydra/launcher=jolib",
            "there is no launcher 'jolib'\n  did you mean: hydra/launcher=joblib",
        ),
    ],
)
def test_what_is_said_of_the_sweep_is_checked(
    fake: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert sweep("precision=fp32,bf16", word) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert words == " ".join(f"fastdiff: {said}".split())
    assert list(fake.iterdir()) == []


# The table -----------------------------------------------------------------------------------------


def test_rows_have_figures_commands_and_pages(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(seeds(1, 3), "generation.prompt=a red circle", "sweep.name=grid") == 0
    first, second = data_of()["rows"]
    assert data_of()["baseline"] == first["cell"]
    assert second["speedup"]["ratio"] == pytest.approx(0.11 / 0.13)
    assert first["command"] == (
        "python -m fastdiff model=shapes device=cpu quality=none generation.seed=1 "
        "'generation.prompt=a red circle'"
    )
    assert files(GRID) >= PAGES
    said = capsys.readouterr()
    assert "2 cells: 2 ok" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "  1/2  1: 0.110 s a call, 1.00x\n" in said.err
    assert said.err.endswith("  2/2  3: 0.130 s a call, 0.85x\n")


def test_report_makes_the_pages_anew(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(seeds(1, 2), "sweep.name=grid") == 0
    for name in PAGES - {"sweep.json"}:
        (GRID / name).unlink()
    capsys.readouterr()
    assert main(["report", str(GRID)]) == 0
    assert files(GRID) >= PAGES
    assert "2 cells: 2 ok" in capsys.readouterr().out
    assert main(["report", "elsewhere"]) == 2
    assert capsys.readouterr().err.startswith("fastdiff: elsewhere is no sweep's folder")


def test_hydras_callbacks_are_told_whatever_happens_to_a_cell(fake: Path) -> None:
    (fake / "told.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "class Told(Callback):\n"
        "    def on_multirun_start(self, config, **kwargs): print('start', file=open('said', 'a'))\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        print(job_return.status.name, file=open('said', 'a'))\n"
        "    def on_multirun_end(self, config, **kwargs): print('end', file=open('said', 'a'))\n"
    )
    sys.path.insert(0, str(fake))
    try:
        told = "+hydra.callbacks.told={_target_:told.Told}"
        assert sweep(seeds(1, RAISES), told) == 1
    finally:
        sys.path.remove(str(fake))
    assert (fake / "said").read_text().split() == ["start", "COMPLETED", "COMPLETED", "end"]


def test_a_reference_that_cant_be_drawn_is_tried_once_in_a_sweep(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def counted(module: str, at: Path, variables: Any) -> Any:
        started.append(at)
        return start_fake(module, at, variables)

    monkeypatch.setattr(job, "start", counted)
    words = ["model=shapes", "device=cpu", f"generation.seed={NO_REFERENCE}", "sweep.name=grid"]
    grid = ["-m", *words, "precision=bf16", "qkv=separate,fused"]
    assert main(grid) == 0
    assert len([at for at in started if "references" in at.parts]) == 1
    assert len(started) == 3
    started.clear()
    assert main([*grid, "sweep.retry=all"]) == 0
    assert len(started) == 3  # another call tries again


# Going on ------------------------------------------------------------------------------------------


def untouched(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (folder / "cells").rglob("report.json")
    }


def test_the_same_line_again_runs_only_what_failed(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = (seeds(1, RAISES, 2),)
    assert sweep(*grid) == 1
    (folder,) = Path("outputs/sweeps").iterdir()  # named by its hash
    before = untouched(folder)
    started: list[Path] = []

    def counted(module: str, at: Path, variables: Any) -> Any:
        started.append(at)
        return start_fake(module, at, variables)

    monkeypatch.setattr(job, "start", counted)
    assert sweep("generation.seed=2,1,101") == 1  # the same cells in another order
    assert [at.name.split("-")[0] for at in started] == ["101"]
    after = untouched(folder)
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if "/101-" in name
    }
    assert [row["values"]["generation.seed"] for row in data_of(folder)["rows"]] == [
        "2",
        "1",
        "101",
    ]
    started.clear()
    assert sweep(*grid, "sweep.retry=none") == 1
    assert started == []
    assert main(["resume", str(folder), "sweep.retry=all"]) == 1
    assert len(started) == 3
    assert main(["resume", str(folder), "quant=int8"]) == 2
    assert "resume takes a sweep's folder and sweep.key=value, not 'quant=int8'" in (
        capsys.readouterr().err
    )


def test_rows_that_others_disturbed_are_marked_and_measured_again_when_asked(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(seeds(1, 2), "sweep.name=grid") == 0
    (file,) = (fake / GRID).glob("cells/1-*/report.json")
    report = read_json(file)
    report["conditions"]["host"] = {
        "affinity": [0, 1],
        "processors": 2,
        "threads": 2,
        "load_before": 2.0,
        "other_share": 0.45,
        "steal_share": 0.0,
    }
    report["environment"]["device"] = "cpu"
    file.write_text(json.dumps(report))
    capsys.readouterr()
    assert sweep(seeds(1, 2), "sweep.name=grid") == 0  # by itself it measures nothing again
    said = capsys.readouterr()
    assert "ok, disturbed 0.110 s" in said.out
    doubt = "others took the machine while row 1 ran: every speed-up is doubtful"
    assert doubt in " ".join(said.out.split())
    first, second = data_of(GRID)["rows"]
    why = "others took 45% of this run's 2 CPUs while calls were timed"
    assert (first["disturbed"], second["disturbed"]) == (why, None)
    assert "| ok, disturbed |" in (GRID / "sweep.md").read_text()
    assert (GRID / "sweep.csv").read_text().splitlines()[1].endswith(f",{why}")
    page = (GRID / "index.html").read_text()
    assert f'<strong title="{why.replace(chr(39), "&#39;")}">disturbed</strong>' in page
    assert f'<p id="doubt">O{doubt[1:]}' in page
    started: list[Path] = []

    def counted(module: str, at: Path, variables: Any) -> Any:
        started.append(at)
        return start_fake(module, at, variables)

    monkeypatch.setattr(job, "start", counted)
    assert main(["resume", str(GRID), "sweep.retry=disturbed"]) == 0
    assert [at.name.split("-")[0] for at in started] == ["1"]
    assert [row["disturbed"] for row in data_of(GRID)["rows"]] == [None, None]


def test_a_name_that_another_grid_has_is_refused(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(seeds(1, 2), "sweep.name=grid") == 0
    before = untouched(GRID)
    capsys.readouterr()
    assert sweep(seeds(1, 3), "sweep.name=grid") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"fastdiff: {fake / GRID} holds another sweep: python -m fastdiff -m")
    assert said.endswith("instead: another sweep.name, or remove that folder")
    assert untouched(GRID) == before


def test_what_changed_is_named_and_has_to_be_accepted(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = (seeds(1, 2, RAISES), "sweep.name=grid")
    assert sweep(*grid) == 1
    before = untouched(GRID)
    monkeypatch.setattr("fastdiff.runs.sweep.made_with.FASTDIFF_VERSION", "99.0")
    capsys.readouterr()
    assert sweep(*grid) == 2
    said = " ".join(capsys.readouterr().err.split())
    from fastdiff import __version__

    assert f"2 cells of {fake / GRID} were measured before something changed: " in said
    assert f"fastdiff {__version__}, now 99.0" in said
    assert "instead: sweep.accept_changes=true keeps them" in said
    assert untouched(GRID) == before
    assert sweep(*grid, "sweep.accept_changes=true") == 1
    rows = data_of()["rows"]
    assert any("measured before something changed" in notice for notice in rows[0]["notices"])
    assert not any("changed" in notice for notice in rows[2]["notices"])


def test_changed_weights_are_named(fake: Path, tmp_path: Path) -> None:
    from fastdiff.runs.sweep.made_with import differences

    assert differences({"torch": "2.12", "weights": "a"}, {"torch": "2.13", "weights": "b"}) == [
        "torch 2.12, now 2.13",
        "the weights changed",
    ]


# Interrupted, killed, full -------------------------------------------------------------------------


@pytest.fixture
def begun(here: Path) -> Any:
    """A sweep in a process of its own that hangs in its second cell; returns it and the hanging cell's process."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], int]:
        parent = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "sweeping.py"), "-m", *PLAIN),
                *(seeds(1, HANGS, 2), "sweep.name=grid", *words),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Whoever runs the tests in the background has them ignore Ctrl-C, and what they start with them.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(parent)
        mark = wait_for(lambda: marks("hanging"))
        return parent, mark

    def marks(phase: str) -> int | None:
        for file in (here / GRID / ".running").glob("*.json"):
            if phase in file.read_text():
                return worker_in(file.stem)
        return None

    yield begin
    for parent in started:
        parent.kill()
        parent.wait()


def worker_in(cell: str) -> int | None:
    """The process id of the fake worker of a cell."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(w.endswith(b"fake_worker.py") for w in words) and any(
            cell.encode() in w for w in words
        ):
            return int(folder.name)
    return None


def wait_for(found: Callable[[], Any], patience_s: float = 60.0) -> Any:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if (value := found()) is not None and value is not False:
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def is_gone(process: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def no_half_written_file(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        if ".unfinished" not in path.parts and not path.name.startswith("."):
            json.loads(path.read_text())
    for cell in (folder / "cells").iterdir():
        assert {"report.json", "cell.json"} <= {p.name for p in cell.iterdir()}


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_ctrl_c_ends_the_cell_and_leaves_a_complete_table(begun: Any, here: Path) -> None:
    parent, worker = begun()
    os.kill(parent.pid, signal.SIGINT)
    out, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert wait_for(lambda: is_gone(worker))
    assert statuses() == ["ok", "interrupted", "interrupted"]
    assert data_of()["state"] == "interrupted"
    assert data_of()["rows"][2]["reason"] == "not run: the sweep was interrupted"
    assert files(GRID) >= PAGES
    assert "interrupted" in out
    no_half_written_file(GRID)


@linux
def test_a_killed_sweep_leaves_nothing_running_and_goes_on(
    begun: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, worker = begun()
    parent.kill()
    parent.wait()
    assert wait_for(lambda: is_gone(worker))
    no_half_written_file(GRID)
    before = untouched(GRID)
    assert len(before) == 1
    assert data_of()["state"] == "running"
    monkeypatch.setattr(job, "start", start_fake)
    monkeypatch.setattr(job, "can_fork", lambda plan: False)
    assert main(["resume", str(GRID), "sweep.timeout_s=5"]) == 1
    assert statuses() == ["ok", "timeout", "ok"]
    assert before.items() <= untouched(GRID).items()
    assert not (GRID / ".unfinished").exists()


@linux
def test_a_killed_cell_is_a_row(begun: Any, here: Path) -> None:
    parent, worker = begun()
    os.kill(worker, signal.SIGKILL)
    parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert statuses() == ["ok", "crashed", "ok"]


@linux
def test_two_sweeps_dont_share_a_folder(
    begun: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, _ = begun()
    assert sweep(seeds(1, HANGS, 2), "sweep.name=grid") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        f"fastdiff: process {parent.pid} is working on {here / GRID} "
        "instead: wait for it, or give this sweep another sweep.name"
    )


def test_a_full_disk_stops_the_sweep_and_loses_nothing(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(seeds(1, DISK_FULL, 2), "sweep.name=grid") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no room on the disk" in said
    assert "instead: make room" in said
    assert statuses() == ["ok", "interrupted", "interrupted"]
    assert data_of()["state"] == "stopped"
    assert data_of()["rows"][2]["reason"] == "not run: the sweep stopped"
    assert len(untouched(GRID)) == 1


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, which takes root")
def test_a_small_disk_that_really_fills_up(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = fake / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("this system lets nobody mount")
    try:
        folder = disk / "grid"
        assert sweep(seeds(1), f"sweep.dir={folder}") == 0
        before = untouched(folder)
        assert len(before) == 1
        (disk / "ballast").write_bytes(bytes(30_000_000))
        capsys.readouterr()
        assert main(["resume", str(folder), "sweep.retry=all"]) in (1, 2)
        assert "no room on the disk" in capsys.readouterr().err
        assert untouched(folder) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cant_be_written_is_refused(
    fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastdiff.runs.process.os.access", lambda *_: False
    )  # root may write anywhere
    assert sweep(seeds(1, 2)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"{fake} is read-only for you instead: start where you may write, or sweep.dir=DIR" in said
    )
    assert list(fake.iterdir()) == []


def test_a_folder_below_a_file_is_refused(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "file").write_text("")
    assert sweep(seeds(1, 2), "sweep.dir=file/grid") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{fake / 'file'} is a file" in said
    assert said.endswith("instead: start where you may write, or sweep.dir=DIR")


# Many cells ----------------------------------------------------------------------------------------


@linux
@pytest.mark.exhaustive
def test_the_parents_memory_stays_flat_over_two_hundred_cells(here: Path) -> None:
    program = f"""
import json, sys
sys.path[:0] = [{str(HERE)!r}]
from pathlib import Path
from fake_worker import report_of
from fastdiff import __main__
from fastdiff.measuring.protocol import Request
from fastdiff.machine.files import write_json
from fastdiff.machine.files import read_json
from fastdiff.runs.sweep import job

resident = []

def execute(plan, words, folder, progress, *_):
    run = plan.setting.run
    report = report_of(Request(run.to_dict(), words))
    report["images"] = []
    write_json(folder / "report.json", report)
    status = Path("/proc/self/status").read_text()
    resident.append(int(status.partition("VmRSS:")[2].split()[0]))
    return report

job.execute, job.can_fork = execute, lambda plan: False
code = __main__.main(["-m", *{PLAIN!r}, "generation.seed=range(200)", "sweep.name=grid"])
print(json.dumps({{"code": code, "kilobytes": resident}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert statuses() == ["ok"] * 200
    kilobytes = found["kilobytes"]
    assert len(kilobytes) == 200
    assert kilobytes[-1] - kilobytes[20] < 20_000


def test_the_line_of_a_sweep_can_be_planned(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", *PLAIN, seeds(1, 2), "sweep.name=grid"]) == 0
    assert "2 combinations: 2 ok" in capsys.readouterr().out
    assert list(fake.iterdir()) == []


# What others' eyes found ---------------------------------------------------------------------------


def test_retry_all_and_accept_changes_are_of_one_call(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(seeds(1, 2), "sweep.name=grid") == 0
    assert main(["resume", str(GRID), "sweep.retry=all"]) == 0
    before = untouched(GRID)
    assert main(["resume", str(GRID)]) == 0
    assert untouched(GRID) == before
    monkeypatch.setattr("fastdiff.runs.sweep.made_with.FASTDIFF_VERSION", "99.0")
    assert main(["resume", str(GRID), "sweep.accept_changes=true"]) == 0
    assert main(["resume", str(GRID)]) == 2


@linux
def test_measuring_all_again_keeps_what_it_did_not_reach(begun: Any, here: Path) -> None:
    from fastdiff.runs.sweep.folder import Folder

    parent, worker = begun()
    os.kill(worker, signal.SIGKILL)  # the second cell has crashed, the third is measured
    parent.communicate(timeout=60)
    before = untouched(GRID)
    assert len(before) == 3
    parent, _ = begun("sweep.retry=all")
    os.kill(parent.pid, signal.SIGINT)
    parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert statuses() == ["ok", "interrupted", "ok"]
    after = untouched(GRID)
    third = next(name for name in before if "/2-" in name)
    assert after[third] == before[third]
    first = next(name for name in before if "/1-" in name)
    assert after[first] != before[first]
    names = [row["cell"] for row in data_of()["rows"]]
    home = Folder((here / GRID).absolute())
    attempts = [home.beside(name)["attempt"] for name in names]
    assert attempts[0] != attempts[2]


def test_an_earlier_result_survives_a_kill_between_two_renames(tmp_path: Path) -> None:
    from fastdiff.runs.sweep.folder import Folder

    folder = Folder(tmp_path)
    old = tmp_path / ".unfinished" / "a-1.old"
    old.mkdir(parents=True)
    (old / "report.json").write_text("{}")
    (old / "cell.json").write_text("{}")
    (tmp_path / "cells").mkdir()
    folder.clean()
    assert folder.finished("a-1")
    assert not (tmp_path / ".unfinished").exists()


def test_a_broken_cell_is_measured_again_and_takes_no_page_along(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(seeds(1, 2, 3), "sweep.name=grid") == 0
    first, second, third = (GRID / "cells" / row["cell"] for row in data_of()["rows"])
    (first / "report.json").write_text((first / "report.json").read_text()[:100])
    (second / "cell.json").unlink()
    before = untouched(GRID)
    assert main(["report", str(GRID)]) == 0
    assert statuses() == [None, None, "ok"]
    assert data_of()["rows"][0]["reason"] == (
        "its report is missing or broken; the sweep's line again measures it"
    )
    assert main(["resume", str(GRID)]) == 0
    assert statuses() == ["ok"] * 3
    assert untouched(GRID)[str(third / "report.json")] == before[str(third / "report.json")]


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
@pytest.mark.parametrize("verb", ["report", "resume"])
def test_a_broken_sweep_json_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, verb: str
) -> None:
    GRID.mkdir(parents=True)
    (GRID / "sweep.json").write_text(text)
    assert main([verb, str(GRID)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        f"fastdiff: {here / GRID / 'sweep.json'} is not what a sweep writes, or only a part of it "
        "instead: remove that file and type the sweep's line again; finished cells stay"
    )


@linux
def test_the_report_of_a_killed_sweep_says_interrupted(begun: Any, here: Path) -> None:
    parent, _ = begun()
    assert main(["report", str(GRID)]) == 0
    assert data_of()["state"] == "running"
    parent.kill()
    parent.wait()
    assert main(["report", str(GRID)]) == 0
    assert data_of()["state"] == "interrupted"


def test_a_reader_that_has_seen_enough_ends_no_sweep(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("fastdiff.display.progress.LineBoard.show", closed)
    assert sweep(seeds(1, RAISES), "sweep.name=grid") == 1
    assert statuses() == ["ok", "failed"]
    assert files(GRID) >= PAGES


@pytest.mark.parametrize(
    ("kernel", "host", "status", "reason"),
    [
        (4, None, "crashed", "the process that ran this cell's job died 2 times"),
        (5, "elsewhere", "crashed", "the process that ran this cell's job died 2 times"),
        (
            5,
            None,
            "oom",
            "the process that ran this cell's job died 2 times, and the kernel ended a process for want of "
            "memory meanwhile\n"
            "  instead: fewer jobs at once, precision=bf16, or a smaller generation.height and width",
        ),
    ],
)
def test_a_cell_whose_job_died_too_often_is_oom_only_if_the_kernel_says_so(
    kernel: int,
    host: str | None,
    status: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was marked twice by processes that have died; the kernel had ended four until then."""
    from fastdiff.runs.sweep.folder import Folder

    folder = Folder(tmp_path / "grid")
    folder.path.mkdir()
    said = {"attempt": "a", "starts": 2, "host": host or socket.gethostname(), "oom_kills": 4}
    folder.mark("1-x", said)
    monkeypatch.setattr(job, "oom_kills", lambda files: kernel)
    words = ("model=shapes", "device=cpu", "quality=none")
    task = job.Task("1-x", words, compose(words).to_dict())
    job._TaskRun(folder, task, "a", job.Limits(), lambda: False).run()
    report = read_json(next(folder.path.rglob("report.json")))
    assert (report["status"], report["error"]["message"]) == (status, reason)
