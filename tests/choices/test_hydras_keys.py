"""Hydra's own keys, every one: served, or refused in words with exit code 2, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastdiff.machine.environment
from fastdiff.__main__ import main
from fastdiff.choices.compose import hydra_ready
from fastdiff.choices.hydras_keys import hydras_own, refused_by_name
from fastdiff.machine.environment import Environment

CPU = Environment(
    python="3.12.1",
    os="Linux 6.1 x86_64",
    cpu="Some CPU",
    cpu_flags=frozenset(),
    threads=1,
    memory_bytes=16_000_000_000,
    available_memory_bytes=12_000_000_000,
    versions={"torch": "2.13.0"},
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without a GPU, where a run that would begin is an error."""

    def begun(*_: object) -> int:
        raise AssertionError("a run began")

    monkeypatch.setattr(fastdiff.machine.environment, "this_machine", lambda: CPU)
    monkeypatch.setattr("fastdiff.commands.run._execute", begun)
    monkeypatch.setattr("fastdiff.runs.sweep.sweep.Sweep.go", begun)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(value: Any, key: str = "hydra") -> Iterator[str]:
    yield key
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from keys(inner, f"{key}.{name}")


@pytest.fixture(scope="module")
def every_key() -> list[str]:
    """Of Hydra's whole configuration, and its groups."""
    from hydra import compose
    from omegaconf import OmegaConf

    with hydra_ready():
        whole = compose("config", [], return_hydra_config=True).hydra
    names = list(keys(OmegaConf.to_container(whole, resolve=False)))[1:]
    groups = [name for name in names if name.startswith("hydra.runtime.choices.hydra/")]
    return [*names, *(name.removeprefix("hydra.runtime.choices.") for name in groups)]


def first_two(key: str) -> str:
    return ".".join(
        key.replace("/", ".").split(".")[:3][: 3 if ".job." in key or ".run" in key else 2]
    )


def test_every_key_is_served_or_refused(every_key: list[str]) -> None:
    """What is served is listed here; whatever else Hydra has, or will have, is refused with a way out."""
    both = {"callbacks", "job_logging", "hydra_logging", "verbose", "searchpath"}
    both |= {"job.env_set", "job.env_copy", "job.name"}
    served = {False: both | {"run.dir", "output_subdir"}, True: both | {"launcher"}}
    assert len(every_key) > 80
    for of_a_grid in (False, True):
        taken = set()
        for key in every_key:
            said = refused_by_name(f"{key}=x", of_a_grid)
            if said is None:
                taken.add(first_two(key).removeprefix("hydra."))
            else:
                assert said.startswith(f"{key}=x: ")
                assert "\n  instead: " in said
        assert taken == served[of_a_grid]


def test_only_hydras_keys_are_hydras() -> None:
    words = [
        "hydra.run.dir=x",
        "+hydra.callbacks.a={}",
        "~hydra.run",
        "hydra/launcher=ray",
        "hydra@x=1",
    ]
    assert hydras_own([*words, "quant=int8", "hydrant=1", "generation.prompt=hydra.x"]) == words


LAUNCHED = "a single run is launched by nobody\n  instead: -m before it, or leave it out"

SAID = {
    ("hydra.sweeper.params.precision=fp32",): (
        "hydra.sweeper.params.precision=fp32: a grid is parted into its combinations by fastdiff itself\n"
        "  instead: -m precision=fp32"
    ),
    ("hydra.sweeper.max_batch_size=2",): (
        "hydra.sweeper.max_batch_size=2: a grid is parted into its combinations by fastdiff itself\n"
        "  instead: -m slot=option,option"
    ),
    ("hydra/sweeper=basic",): (
        "hydra/sweeper=basic: a grid is parted into its combinations by fastdiff itself\n"
        "  instead: -m slot=option,option"
    ),
    ("hydra.mode=MULTIRUN",): (
        "hydra.mode=MULTIRUN: -m alone says whether it is a sweep\n"
        "  instead: -m before a grid, or leave it out"
    ),
    ("hydra/launcher=joblib",): f"hydra/launcher=joblib: {LAUNCHED}",
    ("hydra.launcher.n_jobs=2",): f"hydra.launcher.n_jobs=2: {LAUNCHED}",
    ("hydra.sweep.dir=x",): (
        "hydra.sweep.dir=x: is about a sweep, and this is a single run\n  instead: hydra.run.dir=DIR"
    ),
    ("hydra.job.chdir=true",): (
        "hydra.job.chdir=true: paths begin where the command is typed\n  instead: leave it out"
    ),
    ("hydra.job.num=3",): "hydra.job.num=3: Hydra fills it in by itself\n  instead: leave it out",
    ("hydra.help.app_name=x",): (
        "hydra.help.app_name=x: fastdiff has a help of its own\n  instead: python -m fastdiff --help"
    ),
    ("-m", "quant=none,int8", "hydra.sweeper.params.precision=fp32"): (
        "hydra.sweeper.params.precision=fp32: a grid is parted into its combinations by fastdiff itself\n"
        "  instead: -m precision=fp32"
    ),
    ("-m", "quant=none,int8", "hydra.run.dir=x"): (
        "hydra.run.dir=x: a sweep has one folder\n  instead: sweep.dir=DIR"
    ),
    ("-m", "quant=none,int8", "hydra.output_subdir=x"): (
        "hydra.output_subdir=x: what a cell's folder holds is fastdiff's to say\n  instead: leave it out"
    ),
}


@pytest.mark.parametrize("words", SAID, ids=" ".join)
@pytest.mark.parametrize("plan", [(), ("plan",)], ids=["run", "plan"])
def test_a_key_that_would_do_nothing_is_refused(
    words: tuple[str, ...], plan: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*plan, *words]) == 2
    said = capsys.readouterr().err
    assert " ".join(said.split()) == " ".join(f"fastdiff: {SAID[words]}".split())
    assert list(here.iterdir()) == []


BROKEN = (
    "hydra.run.dir=${nope}",
    "hydra.run.dir=???",
    "hydra.run.dir=",
    "hydra.run.dir=a,b",
    "hydra.job_logging=${nope}",
    "hydra.job_logging.root=fp32",
    "hydra.hydra_logging=???",
    "hydra.job.env_set=${nope}",
    "hydra.job.env_copy=[NO_SUCH_VARIABLE]",
    "hydra.job.name=null",
    "hydra.verbose=null",
    "hydra/job_logging=nope",
    "+hydra.callbacks.ours={_target_:nope.Nope}",
    "hydra.callbacks=fp32",
    "~hydra.run",
)
"""Keys that are served, with values that only Hydra, or logging, can refuse."""


@pytest.mark.parametrize("word", BROKEN)
def test_a_value_that_hydra_cant_use_is_no_traceback(
    word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert word.partition("=")[0] in said
    assert "instead: " in said
    assert "Traceback" not in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "word",
    [w for w in BROKEN if not w.startswith(("hydra.run", "~"))]
    + ["hydra.launcher.nope=1", "hydra.launcher=fp32"],
)
def test_nor_in_a_sweep(word: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "quant=none,int8", word]) == 2
    said = capsys.readouterr().err
    assert "instead: " in said
    assert "Traceback" not in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "word", ["hydra/job_logging=default", "hydra.verbose=true", "+hydra.job.env_set.A=b"]
)
@pytest.mark.parametrize("words", [(), ("-m", "quant=none,int8")], ids=["run", "sweep"])
def test_what_is_served_gets_as_far_as_a_run(words: tuple[str, ...], word: str) -> None:
    with pytest.raises(AssertionError, match="a run began"):
        main([*words, word])
