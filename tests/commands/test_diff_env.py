"""What two reports say differently, and how it is printed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fastdiff.commands.diff_env import difference, read_report
from fastdiff.display.environment import is_empty, render
from fastdiff.errors import UsageError


def report(**environment: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "device": "cpu",
        "device_name": "Some CPU",
        "cpu": "Some CPU",
        "capability": None,
        "torch": "2.13.0",
        "threads": 2,
        "os": "Linux 6.1 x86_64",
        "git": "a" * 40,
        "git_dirty": False,
        "gpu": None,
        "processor": {"physical": 2, "affinity": "0-1", "governor": None},
        "system": {"kernel": "6.1", "container": None},
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        "environment_variables": {},
    }
    return {
        "schema": 1,
        "status": "ok",
        "config": {
            "quant": {"option": "none"},
            "generation": {"steps": 4},
            "device": "auto",
            "experiment": {"name": "none"},
        },
        "environment": known | environment,
        "latency_s": {"median": 0.4},
        "step_latency_s": {"median": None},
        "first_call_s": 30.0,
        "compile_s": 0.0,
        "compile": {"cache": "cold"},
        "peak_memory_bytes": {"device_allocated": None, "host": 800_000_000},
        "quality": {"psnr_db": None, "ssim": None, "identical": True},
    }


def changed(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs, without the groups that have nothing."""
    found = difference(a, b)["environment"]
    return {group: entries for group, entries in found.items() if entries}


def test_nothing_differs() -> None:
    found = difference(report(), report())
    assert is_empty(found)
    assert found["figures"]["latency_s"] == {"a": 0.4, "b": 0.4}
    assert render("x", "y", found).splitlines() == [
        "fastdiff  diff-env, A -> B",
        "  A  x",
        "  B  y",
        "  nothing that is recorded differs",
        "  figures                      A       B ratio",
        "  status                      ok      ok",
        "  latency                0.400 s 0.400 s 1.00x",
        "  first call              30.0 s  30.0 s 1.00x",
        "  compile                0.000 s 0.000 s",
        "  compile cache             cold    cold",
        "  peak memory, host       0.8 GB  0.8 GB 1.00x",
        "  identical to reference     yes     yes",
    ]


def test_what_changed_is_grouped() -> None:
    other = report(
        cpu="Other CPU",
        device_name="Other CPU",
        torch="2.11.0",
        threads=4,
        git_dirty=True,
        processor={"physical": 4, "affinity": "0-3", "governor": None},
        packages={"torch": "2.11.0", "numpy": "2.4.6", "triton": "3.5"},
        environment_variables={"OMP_NUM_THREADS": "4"},
    )
    assert changed(report(), other) == {
        "hardware": {
            "cpu": {"a": "Some CPU", "b": "Other CPU"},
            "processor.physical": {"a": 2, "b": 4},
        },
        "software": {
            "torch": {"a": "2.13.0", "b": "2.11.0"},
            "git_dirty": {"a": False, "b": True},
            "packages.triton": {"a": None, "b": "3.5"},
        },
        "settings": {
            "threads": {"a": 2, "b": 4},
            "processor.affinity": {"a": "0-1", "b": "0-3"},
            "environment_variables.OMP_NUM_THREADS": {"a": None, "b": "4"},
        },
    }
    assert render("x", "y", difference(report(), other)).splitlines()[3:14] == [
        "  hardware",
        "    cpu                 Some CPU -> Other CPU",
        "    processor.physical  2 -> 4",
        "  software",
        "    torch      2.13.0 -> 2.11.0",
        "    git_dirty  no -> yes",
        "    triton     not installed -> 3.5",
        "  settings",
        "    threads             2 -> 4",
        "    processor.affinity  0-1 -> 0-3",
        "    OMP_NUM_THREADS     not set -> 4",
    ]


def test_an_older_report_does_not_record_everything() -> None:
    old = report()
    for field in ("packages", "processor", "gpu", "git_dirty"):
        del old["environment"][field]
    found = changed(old, report())
    assert found == {
        "hardware": {"processor": {"a": None, "b": None, "missing": "a"}},
        "software": {
            "git_dirty": {"a": None, "b": False, "missing": "a"},
            "packages": {"a": None, "b": None, "missing": "a"},
        },
    }
    assert "    processor  not recorded in A" in render("x", "y", difference(old, report()))
    assert "    processor  not recorded in B" in render("x", "y", difference(report(), old))


def test_a_run_on_the_cpu_has_no_gpu_to_compare() -> None:
    gpu = report(device="cuda", gpu={"driver": "580", "mig": False}, device_name="H100")
    assert changed(report(), gpu) == {
        "hardware": {
            "device": {"a": "cpu", "b": "cuda"},
            "device_name": {"a": "Some CPU", "b": "H100"},
        }
    }


def test_a_gpus_driver_is_software_and_its_switches_are_settings() -> None:
    a = report(device="cuda", gpu={"driver": "580", "mig": False, "memory_bytes": 1})
    b = report(device="cuda", gpu={"driver": "570", "mig": True, "memory_bytes": 2})
    assert {group: list(entries) for group, entries in changed(a, b).items()} == {
        "hardware": ["gpu.memory_bytes"],
        "software": ["gpu.driver"],
        "settings": ["gpu.mig"],
    }


def test_choices_are_named_as_typed_and_experiments_are_only_names() -> None:
    other = copy.deepcopy(report())
    other["config"]["quant"] = {"option": "int8", "min_in_features": 17}
    other["config"]["generation"]["steps"] = 8
    other["config"]["experiment"] = {"name": "guide/int8"}
    found = difference(report(), other)
    assert found["choices"] == {
        "quant": {"a": "none", "b": "int8"},
        "generation.steps": {"a": 4, "b": 8},
        "quant.min_in_features": {"a": None, "b": 17, "missing": "a"},
    }
    assert not is_empty(found)


@pytest.mark.parametrize(
    ("shares", "notable"),
    [((0.01, 0.03), False), ((0.01, 0.4), True), ((None, 0.4), False)],
)
def test_load_is_said_where_it_is_notable(shares: tuple[Any, Any], notable: bool) -> None:
    a, b = report(), report()
    for each, share in zip((a, b), shares, strict=True):
        each["conditions"] = {
            "host": {"other_share": share, "load_before": share},
            "gpu": {"before": {"sm_clock_mhz": 1980}, "after": None},
        }
    found = changed(a, b)
    assert found == ({"load": {"other_share": {"a": 0.01, "b": 0.4}}} if notable else {})
    if notable:
        assert "    other_share  1% -> 40%" in render("x", "y", difference(a, b))
    assert changed(a, report()) == {}


def test_a_gpu_that_was_clocked_lower() -> None:
    a, b = report(), report()
    for each, clock in ((a, 1980), (b, 1200)):
        state = {"sm_clock_mhz": clock}
        each["conditions"] = {"host": {}, "gpu": {"before": state, "after": state}}
    assert changed(a, b)["load"]["sm_clock_mhz_after"] == {"a": 1980, "b": 1200}


def test_long_values_stay_within_80_columns() -> None:
    long = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,garbage_collection_threshold:0.8"}
    a = report(environment_variables={"LD_PRELOAD": " ".join(["/usr/lib/libjemalloc.so"] * 6)})
    text = render("x", "y", difference(a, report(environment_variables=long)))
    assert max(map(len, text.splitlines())) <= 80
    assert "    LD_PRELOAD               /usr/lib/libjemalloc.so /usr/lib/libjemalloc.so" in text
    assert "-> not set" in text


def test_values_that_words_make_equal_are_told_exactly() -> None:
    a = report(memory_bytes=25_300_000_000, git="a" * 12 + "b" * 28, governor="none")
    b = report(memory_bytes=25_299_980_288, git="a" * 12 + "c" * 28, governor=None)
    text = render("x", "y", difference(a, b))
    assert "    memory_bytes  25300000000 -> 25299980288\n" in text
    assert f'"aaaaaaaaaaaa{"b" * 28}"' in text
    assert '    governor  "none" -> null\n' in text
    larger = report(memory_bytes=50_600_000_000)
    assert "    memory_bytes  25.3 GB -> 50.6 GB\n" in render("x", "y", difference(a, larger))


def test_figures_that_only_one_run_has() -> None:
    failed = report() | {"status": "failed", "latency_s": {"median": None}}
    lines = render("x", "y", difference(report(), failed)).splitlines()
    assert "  status                      ok  failed" in lines
    assert "  latency                0.400 s       -" in lines


# Reading -------------------------------------------------------------------------------------------


def test_a_report_is_named_by_its_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert read_report(str(tmp_path)) == read_report(str(tmp_path / "report.json")) == report()


WAY = "\n  instead: a run's folder, or its report.json"


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_report(str(path))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    assert refusal(file) == f"there is no {file}{WAY}"
    assert refusal(tmp_path) == f"there is no report.json in {tmp_path}{WAY}"
    for text in ("{", "", "[" * 100_000):
        file.write_text(text)
        assert refusal(file) == f"{file} can't be read: it isn't JSON{WAY}"
    file.write_bytes(b"\xff\xfe\x00")
    assert refusal(file) == f"{file} can't be read: it isn't JSON{WAY}"
    for data in (
        [],
        3,
        {},
        {"rows": []},
        report() | {"environment": None},
        report() | {"config": 1},
    ):
        file.write_text(json.dumps(data))
        assert refusal(file) == f"{file} is no report of a run{WAY}"
    file.write_text(json.dumps(report() | {"schema": 2}))
    assert refusal(file) == (
        f"{file} has the schema 2, and this fastdiff reads 1\n  instead: the fastdiff that wrote it"
    )
    under = file / "report.json"
    assert refusal(under) == f"{under} can't be read: Not a directory{WAY}"
