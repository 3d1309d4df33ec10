"""What a cell was measured with: versions, the device, the weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdiff import __version__
from fastdiff.choices.compose import compose
from fastdiff.machine.environment import Environment, Gpu
from fastdiff.runs.sweep import made_with as module
from fastdiff.runs.sweep.made_with import differences, made_with, weights_content

PLAIN = ["model=shapes", "quality=none"]


def machine(*gpus: str, threads: int = 2) -> Environment:
    found = tuple(Gpu(name, (9, 0), 1) for name in gpus)
    versions = {"torch": "2.13.0"}
    return Environment(
        "3.11.2", "Linux", "EPYC", frozenset(), threads, None, None, found, versions=versions
    )


def test_a_cell_on_the_processor_names_it_and_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: machine("H200"))
    found = made_with(compose(PLAIN), "cpu")
    assert found.pop("weights")
    assert found == {
        "torch": "2.13.0",
        "fastdiff": __version__,
        "python": "3.11.2",
        "processor": "EPYC, 2 threads",
    }


def test_a_cell_on_a_gpu_names_the_kinds_that_it_may_have_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: machine("H200", "H200"))
    found = made_with(compose(PLAIN), "cuda")
    assert found["gpu"] == "H200"
    assert "processor" not in found
    monkeypatch.setattr(module, "this_machine", lambda: machine("L4", "H200"))
    assert made_with(compose(PLAIN), "cuda")["gpu"] == "H200 or L4"


def test_what_changed_is_said_in_words() -> None:
    before = {"torch": "2.12.0", "gpu": "L4", "weights": "a", "python": "3.11"}
    now = {"torch": "2.13.0", "gpu": "H200", "weights": "b", "python": "3.11", "torchao": "0.15"}
    assert differences(before, now) == [
        "torch 2.12.0, now 2.13.0",
        "the GPU L4, now H200",
        "the weights changed",
        "torchao none, now 0.15",
    ]
    assert differences(now, now) == []


def test_weights_are_known_by_what_is_in_them(smallest_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(smallest_folder, folder)
    run = compose(["model=local", f"model.path={folder}", "quality=none"])
    before = weights_content(run)
    weights = next(folder.glob("unet/*.safetensors"))
    content, state = weights.read_bytes(), weights.stat()
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert weights_content(run) == before  # touched, and the same
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert weights_content(run) != before
