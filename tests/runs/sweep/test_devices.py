"""One cell at a time on a device, whoever runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastdiff.machine.environment import Environment, Gpu
from fastdiff.runs.sweep import devices
from fastdiff.runs.sweep.devices import device_for, lock_folder, visible_gpus


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, of which nothing is hidden; waiting takes no time."""
    here(monkeypatch, "GPU-a", "GPU-b")
    monkeypatch.setattr(devices, "_PATIENCE_S", 0.001)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def here(monkeypatch: pytest.MonkeyPatch, *uuids: str | None) -> None:
    """The GPUs that NVML knows, of those that are visible, by their UUIDs."""
    gpus = tuple(Gpu("H200", (9, 0), 1, uuid) for uuid in uuids)
    machine = Environment("3.11", "Linux", "cpu", frozenset(), 2, None, None, gpus)
    monkeypatch.setattr(devices, "this_machine", lambda: machine)


class Full(Exception):
    """Nothing is free, and a test doesn't wait."""


def give_up() -> None:
    raise Full


def is_free(device: str, folder: Path | None = None) -> bool:
    """Whether a cell could have a device now."""
    try:
        with device_for(device, give_up, folder):
            return True
    except Full:
        return False


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_is_held_by_one_at_a_time(tmp_path: Path, device: str) -> None:
    with device_for(device, folder=tmp_path) as variables:
        assert variables == {}
        assert not is_free(device, tmp_path)
        assert is_free("cuda", tmp_path)  # which leaves the processor to another
    assert is_free(device, tmp_path)
    with pytest.raises(RuntimeError), device_for(device, folder=tmp_path):
        raise RuntimeError
    assert is_free(device, tmp_path)


def test_two_gpus_are_two_cells_at_once_each_with_its_own(tmp_path: Path) -> None:
    with device_for("cuda", give_up, tmp_path) as first:
        with device_for("cuda", give_up, tmp_path) as second:
            assert first == {"CUDA_VISIBLE_DEVICES": "0"}
            assert second == {"CUDA_VISIBLE_DEVICES": "1"}
            assert not is_free("cuda", tmp_path)
        with device_for("cuda", give_up, tmp_path) as third:
            assert third == second


def test_who_waits_is_told_once_and_gets_the_device_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    slept: list[float] = []
    holder = device_for("cpu", folder=tmp_path)
    holder.__enter__()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            holder.__exit__(None, None, None)

    monkeypatch.setattr(devices.time, "sleep", sleep)
    with device_for("cpu", lambda: told.append("waiting"), tmp_path):
        assert told == ["waiting"]
        assert len(slept) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_lock_goes_with_the_process_that_held_it_however_that_ended(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom fastdiff.runs.sweep.devices import device_for\n"
        f"with device_for('cpu', folder=Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(devices.__file__).parents[3])},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not is_free("cpu", tmp_path)  # two processes don't compute on it at once
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert is_free("cpu", tmp_path)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("1", ["1"]),
        ("0, 1,", ["0", "1"]),
        ("GPU-8a3f,GPU-77", ["GPU-8a3f", "GPU-77"]),
        ("MIG-1,MIG-2,MIG-3", ["MIG-1", "MIG-2", "MIG-3"]),
        ("1,-1,0", ["1"]),  # CUDA looks no further than what names no GPU
        ("", [""]),
        ("-1", [""]),
    ],
)
def test_what_a_launcher_made_visible_is_respected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found
    with device_for("cuda", give_up, tmp_path) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": found[0]}


def test_without_a_word_all_gpus_are_visible() -> None:
    assert visible_gpus() == ["0", "1"]


# Names of locks ------------------------------------------------------------------------------------


def test_jobs_that_count_their_gpus_from_0_wait_only_for_the_same_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    here(monkeypatch, "GPU-a")
    with device_for("cuda", folder=tmp_path):
        here(monkeypatch, "GPU-b")  # another job, whose only GPU is another one
        with device_for("cuda", give_up, tmp_path) as second:
            assert second == {"CUDA_VISIBLE_DEVICES": "0"}


def test_an_index_and_a_uuid_of_one_gpu_are_one_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(monkeypatch, "GPU-b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with device_for("cuda", folder=tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
        assert not is_free("cuda", tmp_path)


def test_a_name_that_nvml_does_not_know_is_a_lock_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8a3f/1/0")
    with device_for("cuda", give_up, tmp_path) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "MIG-GPU-8a3f/1/0"}
        assert [file.name for file in tmp_path.iterdir()] == ["fastdiff-gpu-MIG-GPU-8a3f_1_0.lock"]
        assert not is_free("cuda", tmp_path)


def test_names_behind_those_that_cuda_looks_at_are_no_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(monkeypatch, "GPU-a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,9")
    with device_for("cuda", give_up, tmp_path):
        assert not is_free("cuda", tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_cells_on_other_parts_of_the_processor_do_not_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def may_use(*processors: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(processors))

    may_use(0, 1)
    with device_for("cpu", give_up, tmp_path):
        may_use(2, 3)  # another job of a scheduler, on the same machine
        with device_for("cpu", give_up, tmp_path):
            may_use(1, 4)  # shares a part of it with the first
            assert not is_free("cpu", tmp_path)
            may_use(4)  # which nobody holds for having asked
            assert is_free("cpu", tmp_path)


# Their files ---------------------------------------------------------------------------------------


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system with one folder for all users, which belongs to root, and one for temporary files."""
    shared = tmp_path / "lock"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(devices, "_SHARED", (str(shared),))
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    return tmp_path


ROOTS = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="makes folders of root's"
)


@ROOTS
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_users_of_a_machine_share_the_locks(system: Path, umask: int) -> None:
    assert lock_folder() == system / "lock"
    before = os.umask(umask)
    try:
        with device_for("cpu", give_up):
            (lock,) = (system / "lock").iterdir()
            assert lock.name == "fastdiff-cpu-0.lock"
            assert lock.stat().st_mode & 0o777 == 0o444  # others can read, and so lock
            assert not is_free("cpu")
    finally:
        os.umask(before)
    assert is_free("cpu")


@ROOTS
def test_another_user_waits_for_the_same_lock(system: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own are for one user
    folder.chmod(0o1777)
    program = (
        "import fcntl, os, sys\nfrom pathlib import Path\nfrom fastdiff.runs.sweep import devices\n"
        "os.setgid(12345)\nos.setuid(12345)\nos.sched_getaffinity = lambda process: {0}\n"
        "def full(): sys.exit(7)\n"
        "with devices.device_for('cpu', full, Path(sys.argv[1])): pass\n"
    )

    def as_another() -> int:
        environment = {**os.environ, "PYTHONPATH": str(Path(devices.__file__).parents[3])}
        command = [sys.executable, "-c", program, str(folder)]
        return subprocess.run(command, env=environment, check=False).returncode

    try:
        assert as_another() == 0  # it makes the file
        (lock,) = folder.iterdir()
        assert lock.stat().st_uid == 12345
        with device_for("cpu", give_up, folder):
            assert as_another() == 7
        assert as_another() == 0
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["not root's", "closed", "not sticky", "missing"])
def test_a_folder_in_which_files_are_not_safe_is_not_shared(system: Path, kind: str) -> None:
    shared = system / "lock"
    if kind == "closed":
        shared.chmod(0o755)
    elif kind == "not sticky":
        shared.chmod(0o777)
    elif kind == "missing":
        shared.rmdir()
    else:
        # As root the test gives it away; as another user it never was root's.
        if os.getuid() == 0:
            os.chown(shared, 12345, 12345)
    own = system / "tmp" / f"fastdiff-devices-{os.getuid()}"
    assert lock_folder() == own
    assert own.stat().st_mode & 0o777 == 0o700
    with device_for("cpu", give_up):
        assert not is_free("cpu")


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_what_another_user_put_in_a_locks_place_leaves_this_users_cells_waiting_for_one_another(
    system: Path, kind: str
) -> None:
    taken = system / "lock" / "fastdiff-cpu-0.lock"
    if kind == "a link":
        taken.symlink_to(system / "elsewhere")
    elif kind == "a pipe":
        os.mkfifo(taken)
    else:
        taken.mkdir()
    with device_for("cpu", give_up, system / "lock"):
        assert not is_free("cpu", system / "lock")
    assert not (system / "elsewhere").exists()
    own = system / "tmp" / f"fastdiff-devices-{os.getuid()}"
    assert [file.name for file in own.iterdir()] == ["fastdiff-cpu-0.lock"]


def test_a_folder_of_ones_own_that_another_can_write_is_refused(system: Path) -> None:
    (system / "lock").chmod(0o755)
    own = system / "tmp" / f"fastdiff-devices-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    with pytest.raises(OSError) as refused, device_for("cpu", give_up):
        pass
    assert str(refused.value) == (
        f"{own}, in which cells wait for one another, can be written by others\n"
        "  instead: remove it, or TMPDIR=DIR"
    )


def test_a_lock_that_was_removed_while_it_was_taken_counts_for_nothing(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = system / "lock", devices._opened

    def removed_meanwhile(file: Path) -> object:
        found = opened(file)
        file.unlink()
        return found

    monkeypatch.setattr(devices, "_opened", removed_meanwhile)
    assert not is_free("cpu", folder)
    monkeypatch.setattr(devices, "_opened", opened)
    assert is_free("cpu", folder)


def test_a_user_without_a_name_has_locks_too(monkeypatch: pytest.MonkeyPatch, system: Path) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    (system / "lock").chmod(0o755)
    with device_for("cpu", give_up):
        assert [f.name for f in (system / "tmp").iterdir()] == [f"fastdiff-devices-{os.getuid()}"]
