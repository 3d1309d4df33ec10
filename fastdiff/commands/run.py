"""One run: refuse before anything is written, then let Hydra make the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.planning.outlook import planned


def run(overrides: list[str]) -> int:
    """One run: refuse before anything is written, then let Hydra make the folder."""
    from fastdiff.choices.compose import compose
    from fastdiff.choices.overrides import quote_literal
    from fastdiff.choices.recipe.using import spelled_out
    from fastdiff.runs.folders import check_folder, entries, leave_nothing

    run = compose(overrides)
    plan = planned(run)
    quoted = spelled_out([quote_literal(override) for override in overrides], run.recipe)
    asked = [o.partition("=")[2] for o in quoted if o.startswith("hydra.run.dir=")]
    if not asked:
        from fastdiff.runs.single import new_folder

        asked.append(str(new_folder()))
        quoted.append(f'hydra.run.dir="{asked[0]}"')
    if asked[-1].strip("'\"") in ("", "???"):
        raise UsageError(
            f"hydra.run.dir={asked[-1]} names no folder\n  instead: hydra.run.dir=DIR, or leave it out"
        )
    named = None if "${" in asked[-1] else Path(asked[-1].strip("'\""))
    if named is not None:  # Hydra alone knows what others will be
        check_folder(named)
    found = entries(named) if named is not None else frozenset()
    endings: list[int | FastdiffError] = []

    def job(_: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        before = entries(folder) - {".hydra"}
        try:
            endings.append(_execute(plan, spelled_out(overrides, run.recipe), folder))
        except FastdiffError as error:  # Hydra would print a traceback and exit with 1
            leave_nothing(folder, before)
            endings.append(error)

    try:
        _hand_over(job, quoted)
    except UsageError:
        if named is not None:  # what Hydra made before it stopped
            leave_nothing(named, found)
        raise
    (ending,) = endings
    if isinstance(ending, FastdiffError):
        raise ending
    return ending


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


def _hand_over(job: Any, arguments: list[str]) -> None:
    """Let Hydra compose once more, make the run's folder, and call the job. Raises UsageError for what only Hydra can refuse."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    from fastdiff.choices.compose import register_schemas
    from fastdiff.choices.refusals import explain
    from fastdiff.config import CONF_DIR

    begun = []

    def begin(run: Any) -> None:
        begun.append(True)
        job(run)

    register_schemas()
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("fastdiff", create_config_search_path(str(CONF_DIR)))
    try:
        hydra.run("config", begin, arguments)
    except Exception as error:  # Hydra's, OmegaConf's, logging's, or of a callback's class
        if begun:
            raise
        raise UsageError(explain(arguments, error)) from error
    finally:
        GlobalHydra.instance().clear()
