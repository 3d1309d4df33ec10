"""One run: refuse before anything is written, make its folder, and execute it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.planning.outlook import planned


def run(overrides: list[str]) -> int:
    """One run: refuse before anything is written, make its folder, and execute it there."""
    from fastdiff.choices.compose import compose_with_hydra, plain_folder
    from fastdiff.choices.hydras_keys import hydras_own
    from fastdiff.choices.recipe.using import spelled_out
    from fastdiff.runs.folders import check_folder, entries, leave_nothing
    from fastdiff.runs.single import new_folder

    run, hydra = compose_with_hydra(overrides)
    plan = planned(run)
    words, own = spelled_out(overrides, run.recipe), hydras_own(overrides)

    def in_folder(folder: Path) -> int:
        check_folder(folder)
        before = entries(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _execute(plan, words, folder)
        except FastdiffError:
            leave_nothing(folder, before)
            raise

    if hydra is None:
        return in_folder(Path(plain_folder(own) or new_folder()))
    return _under_hydra(hydra, own, in_folder)


def _execute(plan: Any, overrides: list[str], folder: Path) -> int:
    from fastdiff.display.progress import progress
    from fastdiff.display.report import summary
    from fastdiff.models.sources import model_of
    from fastdiff.runs.single import execute

    with progress() as shown:
        report = execute(plan, overrides, folder, shown)
    print(summary(report, folder, model_of(plan.setting.run).title))
    if report["status"] == "interrupted":
        return 130
    return 0 if report["status"] == "ok" else 1


def _under_hydra(config: Any, own: list[str], job: Callable[[Path], int]) -> int:
    """The job's exit code, in the folder and with the variables, logs and callbacks that Hydra's own keys ask for.

    Raises UsageError for what only Hydra can refuse.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log, run_job
    from hydra.types import HydraContext, RunMode
    from omegaconf import read_write

    from fastdiff.choices.compose import hydra_ready
    from fastdiff.choices.refusals import explain
    from fastdiff.runs.folders import check_folder, entries, leave_nothing

    begun: list[bool] = []

    def begin(_: Any) -> int:
        begun.append(True)
        return job(folder)

    made: list[tuple[Path, frozenset[str]]] = []
    with hydra_ready():
        loader = GlobalHydra.instance().config_loader()
        HydraConfig.instance().set_config(config)
        try:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            with read_write(config.hydra):
                config.hydra.mode = RunMode.RUN
            folder = _folder(config, own)
            check_folder(folder)
            made.append((folder, entries(folder)))
            callbacks = Callbacks(config)
            context = HydraContext(loader, callbacks)
            callbacks.on_run_start(config=config, config_name="config")
            ended = run_job(begin, config, "hydra.run.dir", None, context)
            callbacks.on_run_end(config=config, config_name="config", job_return=ended)
            return int(ended.return_value)
        except UsageError:
            raise
        except Exception as error:  # Hydra's, OmegaConf's, logging's, or of a callback's class
            if begun:
                raise
            for folder, before in made:  # what Hydra made before it stopped
                leave_nothing(folder, before)
            raise UsageError(explain(own, error)) from error


def _folder(config: Any, own: list[str]) -> Path:
    """Where the run is to be, as Hydra resolves it; among its keys only this one, or else one that no run has used."""
    from omegaconf import OmegaConf, read_write

    from fastdiff.runs.single import new_folder

    named = [word.partition("=")[2] for word in own if word.startswith("hydra.run.dir=")]
    if not named:
        with read_write(config.hydra.run):
            config.hydra.run.dir = str(new_folder())
    folder = OmegaConf.select(config, "hydra.run.dir", throw_on_missing=False)
    if named and (folder is None or str(folder) == ""):
        raise UsageError(
            f"hydra.run.dir={named[-1]} names no folder\n  instead: hydra.run.dir=DIR, or leave it out"
        )
    return Path(str(folder))
