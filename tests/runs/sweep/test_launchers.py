"""The same grid under every launcher, with and without a folder that all machines share. Cells are fake processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastdiff.errors import UsageError
from fastdiff.machine.environment import this_machine
from fastdiff.runs.sweep.folder import Folder
from fastdiff.runs.sweep.job import Job
from fastdiff.runs.sweep.launching import check_launcher, prepare, runs_elsewhere

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fake_worker import EXITS_7, HANGS, PICTURE, RAISES  # noqa: E402
from sweeping import ENDS_ITS_JOB, FakeJob, start_fake  # noqa: E402

GRID = ("model=shapes", "device=cpu", "quality=none", "attention=sdpa,math", "qkv=fused")
"""Half of its cells are impossible: math can't be had with fused projections."""

CHANGING = {"place", "seconds", "report_sha256", "recipe", "speedup", "finished_at", "pareto"}
"""What two runs of the same cell may say differently, or that depends on a row's neighbours."""

DIED = "the process that ran this cell's job died 2 times"


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(f"hydra_plugins.{name}") is None, reason=f"{name} is not installed"
    )


def started(
    folder: Path, seeds: tuple[int, ...], *words: str, **variables: str
) -> subprocess.Popen[str]:
    """A sweep in a folder and a process group of its own."""
    temporary = folder / "temporary"  # with locks of its own: nothing here computes
    temporary.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [
            *(sys.executable, str(HERE / "sweeping.py"), "-m", *GRID),
            *(f"generation.seed={','.join(map(str, seeds))}", "sweep.name=grid", *words),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
            "TMPDIR": str(temporary),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background has them ignore Ctrl-C, and what they start with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Swept:
    """A sweep that has ended: its exit code, its data, and its files that aren't hidden."""

    def __init__(self, folder: Path, code: int, said: str) -> None:
        self.folder, self.code, self.said = folder / "outputs" / "sweeps" / "grid", code, said
        self.data: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        self.rows: dict[str, dict[str, Any]] = {row["cell"]: row for row in self.data["rows"]}

    def statuses(self) -> dict[str, str]:
        """Of the cells that were run, by their seed."""
        return {
            row["values"]["generation.seed"]: row["status"]
            for row in self.data["rows"]
            if row["values"]["attention"] == "sdpa"
        }

    def row(self, seed: int) -> dict[str, Any]:
        return next(r for n, r in self.rows.items() if n.startswith(f"sdpa-{seed}-"))

    def lasting(self) -> dict[str, dict[str, Any]]:
        """What every launcher's rows have to say alike, by the cell's name."""
        return {
            name: {key: value for key, value in row.items() if key not in CHANGING}
            for name, row in self.rows.items()
            if f"generation.seed={ENDS_ITS_JOB}" not in row["overrides"]
        }

    def files(self) -> set[str]:
        found = (p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file())
        return {
            str(path)
            for path in found
            if not any(part.startswith(".") for part in path.parts)
            and not any(part.startswith(f"sdpa-{ENDS_ITS_JOB}-") for part in path.parts)
        }


def swept(folder: Path, seeds: tuple[int, ...], *words: str, **variables: str) -> Swept:
    sweep = started(folder, seeds, *words, **variables)
    try:
        out, err = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert (folder / "outputs" / "sweeps" / "grid" / "sweep.json").is_file(), out + err
    return Swept(folder, sweep.returncode, out + err)


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """One after another in this process: what every other launcher is compared with."""
    return swept(tmp_path_factory.mktemp("basic"), (1, RAISES, EXITS_7, 2))


def same_as_basic(found: Swept, basic: Swept) -> None:
    assert found.lasting() == basic.lasting()
    assert found.files() == basic.files()
    assert found.code == basic.code == 1
    assert (found.data["state"], found.data["error"]) == ("complete", None)


def test_the_basic_launcher_has_a_row_for_every_end(basic: Swept) -> None:
    assert basic.statuses() == {"1": "ok", "101": "failed", "102": "crashed", "2": "ok"}
    assert basic.data["counts"] == {"ok": 2, "failed": 1, "crashed": 1, "incompatible": 4}
    assert basic.data["launcher"] == "basic"


# One that dies takes nobody along ------------------------------------------------------------------


@pytest.mark.slow
@needs("hydra_joblib_launcher")
def test_joblib_has_the_same_rows_and_a_worker_that_dies_is_a_crashed_one(
    tmp_path: Path, basic: Swept
) -> None:
    seeds = (1, ENDS_ITS_JOB, RAISES, EXITS_7, 2)
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    found = swept(tmp_path, seeds, *joblib)
    same_as_basic(found, basic)
    assert found.row(ENDS_ITS_JOB)["status"] == "crashed"
    assert found.row(ENDS_ITS_JOB)["reason"] == DIED


@pytest.mark.exhaustive
@pytest.mark.slow
@needs("hydra_ray_launcher")
def test_ray_has_the_same_rows_and_a_worker_that_dies_is_a_crashed_one(
    tmp_path: Path, basic: Swept
) -> None:
    seeds = (1, ENDS_ITS_JOB, RAISES, EXITS_7, 2)
    home = Path(tempfile.mkdtemp(prefix="ray"))  # a socket's path may have 107 letters
    init = "+hydra.launcher.ray.init"
    small = (
        f"{init}.num_cpus=2",
        f"{init}._temp_dir={home}",
        f"{init}.object_store_memory=80000000",
    )
    try:
        found = swept(tmp_path, seeds, "hydra/launcher=ray", *small, OMP_NUM_THREADS="2")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    same_as_basic(found, basic)
    assert found.row(ENDS_ITS_JOB)["status"] == "crashed"
    assert found.row(ENDS_ITS_JOB)["reason"] == DIED


@pytest.mark.slow
@needs("hydra_submitit_launcher")
@pytest.mark.exhaustive
def test_submitit_has_the_same_rows(tmp_path: Path, basic: Swept) -> None:
    found = swept(tmp_path, (1, RAISES, EXITS_7, 2), "hydra/launcher=submitit_local")
    same_as_basic(found, basic)


# Without a shared folder ---------------------------------------------------------------------------


@pytest.mark.slow
@needs("hydra_joblib_launcher")
def test_without_a_shared_folder_the_files_come_back_through_the_launcher(
    tmp_path: Path, basic: Swept
) -> None:
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    found = swept(tmp_path, (1, RAISES, EXITS_7, 2), *joblib, SWEEPING_APART="1")
    same_as_basic(found, basic)


def test_without_a_shared_folder_reference_pictures_come_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.runs.sweep import job, sweep

    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("start", "can_fork"):  # which FakeJob takes the place of
        monkeypatch.setattr(job, name, getattr(job, name))
    monkeypatch.setattr(Folder, "is_shared", lambda self, attempt: False)
    monkeypatch.setattr(sweep, "Job", FakeJob)
    words = ("model=shapes", "device=cpu", "quality=reference", "precision=bf16")
    found = sweep.plan_sweep([*words, f"generation.seed=1,{RAISES}", "sweep.dir=grid"])
    data = found.go(Silent())
    good, bad = data["rows"]
    assert (good["status"], bad["status"]) == ("ok", "failed")
    (picture,) = good["reference"]
    assert picture.startswith("references/")
    assert (tmp_path / "grid" / picture).read_bytes() == PICTURE
    assert (tmp_path / "grid" / good["images"][0]).read_bytes() == PICTURE
    assert bad["reason"] == "RuntimeError: this cell was meant to fail"
    assert (tmp_path / "grid" / bad["log"]).is_file()
    assert not list((tmp_path / "temporary").glob(f"fastdiff-{found.attempt}*"))
    assert not list((tmp_path / "grid").rglob(".*.png.*"))


def test_what_comes_back_is_put_into_its_place_whole(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    files = {
        "cells/a-1/report.json": b"{}",
        "cells/a-1/image-0.png": b"picture",
        "references/r/image-0.png": b"reference",
    }
    folder.take("a-1", files)
    assert (folder.cell("a-1") / "image-0.png").read_bytes() == b"picture"
    assert (tmp_path / "references" / "r" / "image-0.png").read_bytes() == b"reference"
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"report.json", "image-0.png"}
    folder.take("b-2", {"references/r/image-0.png": b"reference"})  # it failed before its report
    assert not folder.finished("b-2")


def test_a_disk_that_fills_up_while_files_come_back_leaves_no_cell_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Folder(tmp_path).take("a-1", {"cells/a-1/report.json": b"{}"})
    assert not Folder(tmp_path).finished("a-1")


# Whether anybody waits -----------------------------------------------------------------------------


def job_of(folder: Path, **given: Any) -> Job:
    from fastdiff.runs.process import NO_LIMITS

    return Job(str(folder), "attempt", NO_LIMITS, (), **given)


def test_a_job_of_an_earlier_turn_and_of_a_sweep_that_ended_does_nothing(tmp_path: Path) -> None:
    from fastdiff.runs.sweep.job import Task

    folder, task = Folder(tmp_path), Task("cell", ("generation.seed=1",), {})
    folder.open_attempt("attempt", 2)
    assert folder.is_shared("attempt")
    assert not folder.is_shared("another")
    assert not folder.is_over("attempt", 2)
    assert job_of(tmp_path, turn=1).do(task) == {"cell": "cell"}
    folder.close_attempt("attempt")
    assert job_of(tmp_path, turn=2).do(task) == {"cell": "cell"}
    assert not folder.cell("cell").exists()


def test_a_job_whose_sweep_has_died_on_this_machine_does_nothing(tmp_path: Path) -> None:
    from fastdiff.runs.sweep.job import Task

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Folder(tmp_path).open_attempt("attempt", 1)
    job = job_of(tmp_path, turn=1, process=gone.pid)
    assert job.do(Task("cell", ("generation.seed=1",), {})) == {"cell": "cell"}


def test_a_job_has_the_threads_and_the_folder_of_who_typed_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    job = job_of(tmp_path, process=1)  # another process than this one
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    job._be_as_typed()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
    assert Path.cwd() == tmp_path


# Ctrl-C --------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Any]:
    """A sweep that hangs in its first cell, once it does."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        sweep = started(tmp_path, (HANGS, 1), *words)
        begun.append(sweep)
        marks = tmp_path / "outputs" / "sweeps" / "grid" / ".running"
        wait_for(lambda: any("hanging" in mark.read_text() for mark in marks.glob("*.json")))
        return sweep

    yield begin
    for sweep in begun:
        sweep.kill()
        sweep.communicate()


def wait_for(found: Any, patience_s: float = 120.0) -> None:
    until = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def working_in(folder: Path) -> list[int]:
    """Processes that were started for cells below a folder and still go on."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"fake_worker.py" in words and str(folder).encode() in words:
            found.append(int(process.name))
    return found


@pytest.mark.slow
@linux
@needs("hydra_joblib_launcher")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_schedulers_sigterm_end_joblibs_cells(
    begun: Any, tmp_path: Path, sign: signal.Signals
) -> None:
    sweep = begun("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep.send_signal(sign)
    out, err = sweep.communicate(timeout=120)
    found = Swept(tmp_path, sweep.returncode, out + err)
    assert found.code == 130
    assert found.data["state"] == "interrupted"
    assert set(found.statuses().values()) <= {"interrupted", "ok"}
    wait_for(lambda: not working_in(tmp_path))


@pytest.mark.exhaustive
@pytest.mark.slow
@linux
@needs("hydra_ray_launcher")
def test_a_schedulers_sigterm_ends_rays_cells(begun: Any, tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="ray"))
    init = "+hydra.launcher.ray.init"
    sweep = begun("hydra/launcher=ray", f"{init}.num_cpus=2", f"{init}._temp_dir={home}")
    sweep.send_signal(signal.SIGTERM)  # for which Ray has a handler of its own
    out, err = sweep.communicate(timeout=120)
    shutil.rmtree(home, ignore_errors=True)
    found = Swept(tmp_path, sweep.returncode, out + err)
    assert found.code == 130
    assert found.data["state"] == "interrupted"
    wait_for(lambda: not working_in(tmp_path))


@pytest.mark.slow
@linux
@needs("hydra_submitit_launcher")
def test_a_killed_sweeps_jobs_end_under_submitit(begun: Any, tmp_path: Path) -> None:
    sweep = begun("hydra/launcher=submitit_local")
    sweep.kill()
    wait_for(lambda: not working_in(tmp_path))


# What is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["hydra/launcher=baisc"],
            "there is no launcher 'baisc'\n  did you mean: hydra/launcher=basic",
        ),
        (
            ["hydra.sweep.dir=x"],
            "hydra.sweep.dir=x: a sweep has one folder\n  instead: sweep.dir=DIR",
        ),
        (
            ["hydra.run.dir=x"],
            "hydra.run.dir=x: a sweep has one folder\n  instead: sweep.dir=DIR",
        ),
    ],
)
def test_a_launcher_that_nobody_can_mean_is_refused(
    tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        prepare(words, tmp_path / "grid")
    assert str(refused.value) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("ray", "ray"), ("joblib", "joblib"), ("slurm", "slurm"), ("submitit_local", "slurm")],
)
def test_a_launcher_that_isnt_installed_says_how_to_have_it(
    monkeypatch: pytest.MonkeyPatch, launcher: str, extra: str
) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()
    hydra = ConfigStore.instance().repo["hydra"]
    monkeypatch.setitem(hydra, "launcher", {"basic.yaml": hydra["launcher"].get("basic.yaml")})
    with pytest.raises(UsageError) as refused:
        check_launcher([f"hydra/launcher={launcher}"])
    assert str(refused.value) == (
        f"the launcher '{launcher}' can't be had here\n"
        f'  instead: pip install "fastdiff-inference[{extra}]"'
    )


@needs("hydra_joblib_launcher")
def test_a_launcher_whose_library_is_broken_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.plugins import Plugins

    def broken(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'joblib'")

    monkeypatch.setattr(Plugins, "instantiate_launcher", broken)
    with pytest.raises(UsageError) as refused:
        prepare(["hydra/launcher=joblib"], tmp_path / "grid")
    assert str(refused.value) == (
        "the launcher 'joblib' can't be had here: No module named 'joblib'\n"
        '  instead: pip install "fastdiff-inference[joblib]"'
    )


@pytest.mark.parametrize("name", ["a 'b', c", 'a "b" ${c} $d', "back\\slash\\", "{a: [b"])
def test_hydra_takes_the_folder_as_it_stands(tmp_path: Path, name: str) -> None:
    launch = prepare([], tmp_path / name)
    assert launch.config.hydra.sweep.dir == str(tmp_path / name)
    again = launch.context.config_loader.load_sweep_config(launch.config, ["generation.seed=1"])
    assert again.hydra.sweep.dir == str(tmp_path / name)


@needs("hydra_submitit_launcher")
@pytest.mark.parametrize(("gpus", "asked", "given"), [(0, True, 1), (0, False, 0), (4, False, 1)])
def test_a_job_gets_a_gpu_where_a_cell_asks_for_one_or_this_machine_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, asked: bool, given: int
) -> None:
    from dataclasses import replace

    from fastdiff.machine.environment import Gpu
    from fastdiff.runs.sweep import launching

    here = replace(this_machine(), gpus=(Gpu("H100", (9, 0), 1),) * gpus)
    monkeypatch.setattr(launching, "this_machine", lambda: here)
    monkeypatch.setattr(launching.shutil, "which", lambda name: f"/usr/bin/{name}")
    launch = prepare(["hydra/launcher=slurm"], tmp_path / "grid", asked)
    assert launch.config.hydra.launcher.gpus_per_node == given


@needs("hydra_ray_launcher")
@pytest.mark.parametrize(
    ("words", "variable", "elsewhere"),
    [
        (["hydra/launcher=ray"], None, False),  # a cluster of this machine alone
        (["hydra/launcher=ray", "hydra.launcher.ray.init.address=local"], None, False),
        (["hydra/launcher=ray", "hydra.launcher.ray.init.address=auto"], None, True),
        (["hydra/launcher=ray", "+hydra.launcher.ray.init.address='ray://head:1'"], None, True),
        (["hydra/launcher=ray"], "auto", True),
        ([], "auto", False),
    ],
)
def test_rays_jobs_run_elsewhere_where_a_cluster_is_named(
    words: list[str], variable: str | None, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert runs_elsewhere(words) is elsewhere


@needs("hydra_ray_launcher")
def test_a_ray_without_a_gpu_is_not_asked_for_one_for_ever(tmp_path: Path) -> None:
    launch = prepare(["hydra/launcher=ray"], tmp_path, gpu=True)
    assert launch._waits_for_ever({"CPU": 8.0})
    assert not launch._waits_for_ever({"CPU": 8.0, "GPU": 1.0})
    typed = ["hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=1"]
    assert not prepare(typed, tmp_path, gpu=True)._waits_for_ever({"CPU": 8.0})


@needs("hydra_submitit_launcher")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=slurm"], True),
        (["hydra/launcher=slurm", "device=cuda"], False),
        (["hydra/launcher=slurm", "device=cpu"], False),
        (["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=1"], False),
        ([], False),
    ],
)
def test_a_sweep_that_leaves_the_device_to_a_cluster_says_that_it_asks_for_no_gpu(
    words: list[str], said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.runs.sweep import launching, sweep

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launching.shutil, "which", lambda name: f"/usr/bin/{name}")
    planned = sweep.plan_sweep(["precision=fp32,bf16", "quality=none", *words])
    assert planned.notices == (
        "device=auto asks the cluster for no GPU, because this machine has none: jobs may measure processors\n"
        "  instead: device=cuda asks for one a job",
    ) * (said and not this_machine().has_cuda)


# What goes wrong with a launcher -------------------------------------------------------------------


def planned(folder: Path, *seeds: int) -> Any:
    """A sweep whose launcher a test takes the place of."""
    from fastdiff.runs.sweep.sweep import plan_sweep

    words = [*GRID[:3], f"generation.seed={','.join(map(str, seeds))}", f"sweep.dir={folder}"]
    return plan_sweep(words)


class Silent:
    """A board that nobody sees."""

    def show(self, rows: Any, running: Any) -> None:
        return None


class Scripted:
    """A launcher that does to the tasks of each turn what a test says."""

    name = "scripted"

    def __init__(self, folder: Path, *turns: Any) -> None:
        self.folder, self.turns, self.ended = Folder(folder), list(turns), 0
        self.handed: list[list[str]] = []

    def run(self, job: Job) -> Iterator[Any]:
        self.handed.append([task.overrides[-1].partition("=")[2] for task in job.tasks])
        yield from self.turns.pop(0)(self, job) or ()

    def end(self) -> None:
        self.ended += 1

    def told(self, event: str) -> None:
        return None

    def begin(self, job: Job, *places: int) -> None:
        for place in places:
            name = job.tasks[place].name
            before = self.folder.marked(name)
            starts = before["starts"] + 1 if before else 1
            self.folder.mark(name, {"attempt": job.attempt, "starts": starts, "started_at": 0.0})

    def finish(self, job: Job, *places: int) -> None:
        for place in places:
            task = job.tasks[place]
            (self.folder.begin(task.name) / "report.json").write_text(report_text(task.overrides))
            (self.folder.path / ".unfinished" / task.name / "cell.json").write_text(
                json.dumps(
                    {"seconds": 1.0, "made_with": {}, "references": [], "attempt": job.attempt}
                )
            )
            self.folder.finish(task.name)
            self.folder.unmark(task.name)


def report_text(overrides: tuple[str, ...]) -> str:
    from fake_worker import report_of

    from fastdiff.choices.compose import compose
    from fastdiff.measuring.protocol import Request

    return json.dumps(report_of(Request(compose(overrides).to_dict(), list(overrides))))


def test_a_launcher_that_cant_begin_stops_the_sweep_with_its_words(tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    sweep = planned(folder, 1, 2)

    def refuses(launcher: Scripted, job: Job) -> None:
        raise RuntimeError("no cluster\nand a long tail")

    sweep.launch = Scripted(folder, refuses)
    data = sweep.go(Silent())
    assert data["state"] == "stopped"
    assert data["error"] == (
        "the launcher 'scripted' could not run 2 cells: RuntimeError: no cluster\n"
        "  instead: hydra/launcher=basic, or mend it and type the same line again"
    )
    assert {row["reason"] for row in data["rows"]} == {"not run: the sweep stopped"}
    assert sweep.launch.ended == 2
    assert Folder(folder).is_over(sweep.attempt, sweep.turn)


def test_who_was_beside_a_cell_that_broke_the_launcher_is_run_alone_and_not_blamed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "grid"
    sweep = planned(folder, 1, 2, 3, 4)

    def breaks(launcher: Scripted, job: Job) -> None:
        launcher.finish(job, 0)
        launcher.begin(job, 1, 2)
        raise RuntimeError("a worker died")

    def dies(launcher: Scripted, job: Job) -> None:
        launcher.begin(job, 0)
        raise RuntimeError("a worker died")

    def works(launcher: Scripted, job: Job) -> None:
        starts = launcher.folder.marked(job.tasks[0].name)
        assert starts is None or starts["starts"] <= 2
        launcher.finish(job, *range(len(job.tasks)))

    sweep.launch = Scripted(folder, breaks, dies, works, works, works)
    data = sweep.go(Silent())
    assert sweep.launch.handed == [["1", "2", "3", "4"], ["2"], ["2"], ["3"], ["4"]]
    assert data["counts"] == {"ok": 4}
    assert data["state"] == "complete"


def test_a_job_that_could_not_write_its_cell_holds_up_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    sweep = planned(folder, 1, 2)

    def one_fails(launcher: Scripted, job: Job) -> list[dict[str, str]]:
        launcher.finish(job, 1)
        return [{"cell": job.tasks[0].name, "error": "it can't be written\nTraceback"}]

    def fails(launcher: Scripted, job: Job) -> list[dict[str, str]]:
        return [{"cell": job.tasks[0].name, "error": "it can't be written\nTraceback"}]

    sweep.launch = Scripted(folder, one_fails, fails)
    data = sweep.go(Silent())
    assert [row["status"] for row in data["rows"]] == ["interrupted", "ok"]
    assert data["error"].startswith(
        "the launcher 'scripted' could not run 1 cell: it can't be written\n"
    )


# Folders and words with signs in them --------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "a 'b', c=\"d\" ${e}"])
def test_a_sweep_in_any_folder_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from fastdiff.runs.sweep import job
    from fastdiff.runs.sweep.sweep import exit_code, plan_sweep, resumed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "start", start_fake)
    monkeypatch.setattr(job, "can_fork", lambda plan: False)
    prompts = 'generation.prompt="a, b","it\'s [1]",c'
    first = plan_sweep([*GRID[:3], prompts, f"sweep.dir=below/{name}"])
    assert first.folder.path == tmp_path / "below" / name
    data = first.go(Silent())
    assert exit_code(data) == 0
    reports = {path: path.read_bytes() for path in first.folder.path.rglob("report.json")}
    assert len(reports) == 3
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = plan_sweep(resumed(Path("..") / "below" / name, []))
    assert again.folder.path.resolve() == first.folder.path
    assert [entry.name for entry in again.cells] == [entry.name for entry in first.cells]
    assert exit_code(again.go(Silent())) == 0
    assert {path: path.read_bytes() for path in reports} == reports
