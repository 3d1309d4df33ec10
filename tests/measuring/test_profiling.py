"""What a profile holds, and that a profile which failed is none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiff.errors import InvalidOutputError, RunError
from fastdiff.measuring import profiling
from fastdiff.measuring.profiling import (
    Row,
    _row,
    heaviest,
    profile_call,
    what_is_missing,
    write_trace,
)

MakePlan = Callable[..., Any]


@pytest.mark.parametrize("family", ["sd_folder", "flux_folder"])
def test_the_trace_holds_every_part_of_at_most_five_steps(
    family: str,
    request: pytest.FixtureRequest,
    local_plan: MakePlan,
    built: Any,
    tmp_path: Path,
) -> None:
    folder = request.getfixturevalue(family)
    pipeline, generation = built(local_plan(folder, "generation.steps=7"))
    found = profile_call(pipeline, generation, "cpu", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert {f"fastdiff: {part}" for part in ("text_encoders", "scheduler", "vae", "call")} <= {
        *names
    }
    assert names.count("fastdiff: denoiser") == 5
    assert (found.trace, found.steps, found.reason) == ("trace.json.gz", 5, None)
    assert found.measured == "host"
    rows = found.heaviest
    assert len(rows) == 10
    assert [row.self_s for row in rows] == sorted((row.self_s for row in rows), reverse=True)
    assert 0 < sum(row.share for row in rows) <= 1
    assert "forward" not in vars(getattr(pipeline, "unet", None) or pipeline.transformer)


def test_a_profiled_call_that_fails_is_an_error_and_leaves_no_trace(
    sd_folder: Path, local_plan: MakePlan, built: Any, tmp_path: Path
) -> None:
    pipeline, generation = built(local_plan(sd_folder))
    assert profile_call(pipeline, generation, "cpu", tmp_path).steps == 2  # the run's own
    (tmp_path / "trace.json.gz").unlink()

    def broken(*given: Any, **named: Any) -> Any:
        raise ValueError("no kernel for this")

    pipeline.vae.decode = broken
    with pytest.raises(RunError) as raised:
        profile_call(pipeline, generation, "cpu", tmp_path)
    assert str(raised.value) == (
        "profile=true: the profiled call failed: ValueError: no kernel for this\n"
        "  instead: profile=false"
    )
    assert list(tmp_path.iterdir()) == []
    assert pipeline.vae.decode is broken
    assert "forward" not in vars(pipeline.unet)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), InvalidOutputError("x")]
)
def test_errors_that_have_a_status_of_their_own_keep_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch, shapes_plain: Any, tmp_path: Path
) -> None:
    def failing(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(profiling, "draw", failing)
    with pytest.raises(type(error)) as raised:
        profile_call(shapes_plain.pipeline, shapes_plain.generation, "cpu", tmp_path)
    assert raised.value is error


def packed(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_a_file_that_is_no_whole_trace_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    assert what_is_missing(path) == "what was written is no compressed JSON (FileNotFoundError)"
    path.write_text("{}")
    assert what_is_missing(path) == "what was written is no compressed JSON (BadGzipFile)"
    assert (
        what_is_missing(packed(path, '{"traceEvents": ['))
        == "what was written is no compressed JSON (JSONDecodeError)"
    )
    for text in ("[]", "{}", '{"traceEvents": [{"name": "fastdiff: call"}, {}]}'):
        assert what_is_missing(packed(path, text)) == "the call is not in it"
    events = [{"name": "fastdiff: call"}, {"name": "fastdiff: denoiser"}]
    assert what_is_missing(packed(path, json.dumps({"traceEvents": events}))) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert what_is_missing(path) == "what was written is no compressed JSON (EOFError)"


def test_a_trace_that_cant_be_written_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"

    def full(name: str) -> None:
        Path(name).write_text("{")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError) as raised:
        write_trace(SimpleNamespace(export_chrome_trace=full), path)
    assert str(raised.value) == (
        f"profile=true: {path} can't be written: No space left on device\n  instead: profile=false"
    )
    half = SimpleNamespace(export_chrome_trace=lambda name: packed(Path(name), '{"trace'))
    with pytest.raises(RunError) as raised:
        write_trace(half, path)
    assert str(raised.value) == (
        f"profile=true: {path} can't be written: what was written is no compressed JSON "
        "(JSONDecodeError)\n  instead: profile=false"
    )
    assert list(tmp_path.iterdir()) == []


def test_on_a_cpu_the_time_outside_of_operators_has_its_name_too() -> None:
    rows = [
        Row("aten::addmm", 8, 600.0, 0.0),
        Row("fastdiff: denoiser", 2, 300.0, 0.0),
        Row("fastdiff: call", 1, 100.0, 0.0),
        Row("aten::empty", 9, 0.0, 0.0),
    ]
    measured, found = heaviest(rows, "cpu")
    assert measured == "host"
    assert [astuple(row) for row in found] == [
        ("aten::addmm", 8, 600e-6, 0.6),
        ("denoiser, outside of operators", 2, 300e-6, 0.3),
        ("call, outside of operators", 1, 100e-6, 0.1),
    ]


KERNEL = "void cutlass_gemm<float, 128>"


def test_on_a_gpu_operators_have_the_time_of_the_kernels_that_they_start() -> None:
    rows = [
        Row("aten::addmm", 8, 50.0, 700.0),
        Row("aten::copy_", 8, 900.0, 300.0),
        Row("fastdiff: denoiser", 2, 9000.0, 0.0),
        Row(KERNEL, 8, 0.0, 700.0, kernel=True),
        Row("Memcpy HtoD", 8, 0.0, 300.0, kernel=True),
    ]
    measured, found = heaviest(rows, "cuda")
    assert measured == "device, by operator"
    assert [(row.operator, row.share) for row in found] == [
        ("aten::addmm", 0.7),
        ("aten::copy_", 0.3),
    ]


def test_a_replayed_cuda_graph_is_shown_by_its_kernels() -> None:
    rows = [
        Row("aten::copy_", 2, 900.0, 100.0),
        Row("cudaGraphLaunch", 2, 900.0, 0.0),
        Row(KERNEL * 10, 8, 0.0, 800.0, kernel=True),
        Row("Memcpy HtoD", 8, 0.0, 200.0, kernel=True),
    ]
    measured, found = heaviest(rows, "cuda")
    assert measured == "device, by kernel"
    assert [row.share for row in found] == [0.8, 0.2]
    name = found[0].operator
    assert (len(name), name[-3:]) == (100, "...")


def test_a_profile_of_nothing_has_no_rows() -> None:
    assert heaviest([], "cpu") == ("host", [])
    assert heaviest([Row("a", 1, 0.0, 0.0)], "cuda")[1] == []


def test_ranges_on_the_gpu_are_nothing_that_ran_there() -> None:
    def event(kind: str, annotation: bool) -> Any:
        return SimpleNamespace(
            key="fastdiff: denoiser",
            count=1,
            self_cpu_time_total=1.0,
            self_device_time_total=5.0,
            device_type=SimpleNamespace(name=kind),
            is_user_annotation=annotation,
        )

    assert _row(event("CUDA", True), "cuda") is None
    assert _row(event("CUDA", False), "cuda") == Row("fastdiff: denoiser", 1, 1.0, 5.0, kernel=True)
    assert _row(event("CPU", True), "cuda") == Row("fastdiff: denoiser", 1, 1.0, 5.0)
    assert _row(event("CPU", True), "cpu") == Row("fastdiff: denoiser", 1, 1.0, 0.0)


@pytest.mark.gpu
def test_on_a_gpu_the_devices_time_is_shared_out(
    shapes_run: Callable[..., Any], tmp_path: Path
) -> None:
    ran = shapes_run("device=cuda", "precision=bf16")
    found = profile_call(ran.pipeline, ran.generation, "cuda", tmp_path)
    assert found.measured == "device, by operator"
    assert found.heaviest[0].operator.startswith("aten::")
