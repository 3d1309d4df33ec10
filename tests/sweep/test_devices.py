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
from fastdiff.sweep.devices import device_for, visible_gpus


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, of which nothing is hidden; waiting takes no time."""
    gpu = Gpu("H200", (9, 0), 1)
    machine = Environment("3.11", "Linux", "cpu", frozenset(), 2, None, None, (gpu, gpu))
    monkeypatch.setattr(devices, "this_machine", lambda: machine)
    monkeypatch.setattr(devices, "_PATIENCE_S", 0.001)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


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
