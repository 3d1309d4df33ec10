"""One cell at a time on a device, whoever runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.environment import Environment, Gpu
from fastdiff.sweep import devices
from fastdiff.sweep.devices import device_for, lock_folder, visible_gpus


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


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_is_held_by_one_at_a_time(tmp_path: Path, device: str) -> None:
    with device_for(device, folder=tmp_path) as variables:
        assert variables == {}
        with pytest.raises(Full), device_for(device, give_up, tmp_path):
            pass
    with device_for(device, give_up, tmp_path):  # it is free again
        pass


def test_a_cell_on_the_gpu_leaves_the_processor_to_another(tmp_path: Path) -> None:
    with device_for("cuda", give_up, tmp_path), device_for("cpu", give_up, tmp_path):
        pass


def test_two_gpus_are_two_cells_at_once_each_with_its_own(tmp_path: Path) -> None:
    with device_for("cuda", give_up, tmp_path) as first:
        with device_for("cuda", give_up, tmp_path) as second:
            assert first == {"CUDA_VISIBLE_DEVICES": "0"}
            assert second == {"CUDA_VISIBLE_DEVICES": "1"}
            with pytest.raises(Full), device_for("cuda", give_up, tmp_path):
                pass
        with device_for("cuda", give_up, tmp_path) as third:
            assert third == second


def test_a_device_is_free_again_after_a_cell_that_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), device_for("cpu", folder=tmp_path):
        raise RuntimeError
    with device_for("cpu", give_up, tmp_path):
        pass


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
        "import sys, time\nfrom pathlib import Path\nfrom fastdiff.sweep.devices import device_for\n"
        f"with device_for('cpu', folder=Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(devices.__file__).parents[2])},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Full), device_for("cpu", give_up, tmp_path):
            pass  # two processes don't compute on the processor at once
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with device_for("cpu", give_up, tmp_path):
        pass


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
        with pytest.raises(Full), device_for("cuda", give_up, tmp_path):
            pass


def test_a_name_that_nvml_does_not_know_is_a_lock_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-8a3f/1/0")
    with device_for("cuda", give_up, tmp_path) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "MIG-GPU-8a3f/1/0"}
        assert [file.name for file in tmp_path.iterdir()] == ["MIG-GPU-8a3f_1_0.lock"]
        with pytest.raises(Full), device_for("cuda", give_up, tmp_path):
            pass


# Their folder --------------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_all_users_of_a_machine_share_the_locks(temporary: Path) -> None:
    folder = lock_folder()
    assert folder == temporary / "fastdiff-devices" == lock_folder()
    assert folder.stat().st_mode & 0o7777 == 0o1777
    with device_for("cpu"):
        (lock,) = folder.iterdir()
        assert (
            lock.stat().st_mode & 0o777 & ~0o022 == 0o644 & ~0o022
        )  # others can read, and so lock


@pytest.mark.parametrize("kind", ["closed", "a link", "a file"])
def test_where_another_has_taken_the_folder_a_user_has_their_own(
    temporary: Path, kind: str
) -> None:
    taken = temporary / "fastdiff-devices"
    if kind == "closed":
        taken.mkdir(mode=0o700)
    elif kind == "a link":
        (temporary / "target").mkdir()
        taken.symlink_to(temporary / "target")
    else:
        taken.write_text("")
    assert lock_folder() == temporary / f"fastdiff-devices-{os.getuid()}"
    with device_for("cpu"), pytest.raises(Full), device_for("cpu", give_up):
        pass
    assert kind != "a link" or list((temporary / "target").iterdir()) == []


def test_a_lock_is_never_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "cpu.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), device_for("cpu", give_up, tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_user_without_a_name_has_locks_too(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with device_for("cpu", give_up):
        assert [folder.name for folder in temporary.iterdir()] == ["fastdiff-devices"]
