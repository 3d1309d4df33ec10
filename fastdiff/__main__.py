"""The command line: compose, plan, then hand over.

A refusal answers before torch is imported and leaves no folder behind; only a valid run reaches Hydra's own main.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdiff.config_dirs import named_in
from fastdiff.errors import FastdiffError, PlanError, UsageError, wrap_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with named_in(words) as others:
            return _dispatch(others)
    except FastdiffError as error:
        _complain(str(error), error)
        return error.exit_code
    except KeyboardInterrupt as error:
        _complain("interrupted", error)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain(
            f"no room on the disk: {error}\n  instead: make room and type the same line again",
            error,
        )
        return 1


def _complain(text: str, error: BaseException) -> None:
    """The message; with HYDRA_FULL_ERROR=1 the traceback too."""
    said = f"fastdiff: {text}"
    own = isinstance(error, PlanError)  # which lays out its lines itself
    print(said if own else _in_columns(said), file=sys.stderr)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)


def _in_columns(text: str, columns: int = 80) -> str:
    """A text whose long lines go on below themselves, further in than what belongs to them; words stay whole."""
    lines = []
    for line in text.split("\n"):
        inside = " " * (len(line) - len(line.lstrip(" ")))
        lines += wrap_words(line, columns, f"{inside}    ") or [""]
    return "\n".join(lines)


def _dispatch(words: list[str]) -> int:
    if any(word in ("-h", "--help", "help") for word in words):
        from fastdiff.screen import help_text

        print(help_text())
        return 0
    if "--version" in words:
        from fastdiff import __version__

        print(f"fastdiff {__version__}")
        return 0
    verb = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else None
    verbs = {
        "plan": _plan,
        "ladder": _ladder,
        "compare": _compare,
        "resume": _resume,
        "report": _report,
        "diff-env": _diff_env,
        "doctor": _doctor,
        "recipe": _recipe,
    }
    if verb in verbs:
        return verbs[verb](words[1:])
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    unknown = [flag for flag in flags if flag not in _SWEEPS]
    if unknown:
        raise UsageError(
            f"there is no option {unknown[0]}\n  there are: -m (every combination), --config-dir DIR, --help, --version"
        )
    return _sweep(overrides) if flags else _run(overrides)


_SWEEPS = ("-m", "--multirun")


def _plan(words: list[str]) -> int:
    """`plan`: what would happen, and why not; with -m of every combination."""
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    unknown = [flag for flag in flags if flag not in (*_SWEEPS, "--json")]
    if unknown:
        raise UsageError(
            f"plan has no option {unknown[0]}\n  there are: -m (every combination), --json"
        )
    as_json = "--json" in flags
    if set(flags) & set(_SWEEPS):
        return _plan_grid(overrides, as_json)
    return _plan_json(overrides) if as_json else _plan_text(overrides)


def _plan_text(overrides: list[str]) -> int:
    from fastdiff.composition import compose
    from fastdiff.screen import plan_text

    print(plan_text(planned(compose(overrides))))
    return 0


def _plan_json(overrides: list[str]) -> int:
    import json
    from dataclasses import asdict

    from fastdiff.composition import compose
    from fastdiff.outlook import notices_of
    from fastdiff.planning import ModelAndPlanError

    try:
        plan = planned(compose(overrides))
    except ModelAndPlanError as error:
        found = {"error": error.model, "problems": [asdict(p) for p in error.problems]}
        print(json.dumps(found, indent=2))
        return error.exit_code
    except PlanError as error:
        print(json.dumps({"problems": [asdict(p) for p in error.problems]}, indent=2))
        return error.exit_code
    except FastdiffError as error:
        print(json.dumps({"error": str(error)}, indent=2))
        return error.exit_code
    run = plan.setting.run
    notices = [asdict(notice) for notice in notices_of(plan)]
    found = {"device": plan.device, "plan": plan.to_dict(), "notices": notices, "problems": []}
    print(json.dumps(found | {"config": run.to_dict()}, indent=2, default=str))
    return 0


def _plan_grid(overrides: list[str], as_json: bool) -> int:
    """Every combination's row; exit code 2 if none of them can run."""
    from fastdiff.grid import read_grid
    from fastdiff.hydras_keys import hydras_own
    from fastdiff.outlook import as_data, outlooks
    from fastdiff.sweep.how import read_how
    from fastdiff.sweep.launching import check_launcher

    _, overrides = read_how(overrides)
    # A launcher's name may be ours, and none of Hydra's; its keys are read where it is made.
    check_launcher(hydras_own(overrides))
    of_launcher = ("hydra/launcher=", "hydra.launcher.")
    grid = read_grid([o for o in overrides if not o.lstrip("+~").startswith(of_launcher)])
    rows = [outlook.to_dict() for outlook in outlooks(grid)]
    if as_json:
        import json

        print(json.dumps(as_data(rows), indent=2))
    else:
        from fastdiff.pages.grid import grid_text

        print(grid_text(rows, grid.varied))
    return 0 if any(row["status"] == "ok" for row in rows) else UsageError.exit_code


def planned(run: Any) -> Any:
    """The plan of a composed run on this machine. Raises PlanError or ModelError, with the problems of both."""
    from fastdiff.outlook import planned as outlook

    return outlook(run)


def _ladder(words: list[str]) -> int:
    """`ladder NAME`: every rung of a document's ladder, then the table."""
    from fastdiff.composition import compose
    from fastdiff.experiments import ladders
    from fastdiff.ladder.climb import Climb, exit_code, folder_of, read_how
    from fastdiff.ladder.rungs import rungs_of
    from fastdiff.process import check_folder
    from fastdiff.screen import ladder_text, progress

    name, *others = words or [""]
    if not name or "=" in name or name.startswith("-"):
        raise UsageError(
            "ladder needs the name of a ladder first\n  there are: " + ", ".join(ladders())
        )
    how, overrides = read_how(others)
    for word in overrides:
        if word.startswith(("experiment=", "hydra.")):
            raise UsageError(
                f"a ladder chooses {word.partition('=')[0]} itself\n  instead: leave out {word}"
            )
        if word.startswith("quality.reference="):
            raise UsageError(
                "a ladder compares with the pictures of its first row\n"
                f"  instead: leave out {word}, or quality=none"
            )
    rungs = rungs_of(name, overrides, lambda words: planned(compose(words)))
    folder = folder_of(name, overrides, how)
    check_folder(folder, "ladder.dir")
    with progress() as shown:
        climb = Climb(name, rungs, overrides, how, folder, shown)
        state = climb.go()
    data = climb.to_dict(state)
    print(ladder_text(data, folder))
    return exit_code(state, data["rows"])


def _compare(words: list[str]) -> int:
    """`compare A B`: both sides planned, then their processes taking turns, then the ratio."""
    from fastdiff.compare.comparison import Comparison, exit_code, folder_of
    from fastdiff.compare.how import read_how
    from fastdiff.compare.sides import read_sides
    from fastdiff.composition import compose
    from fastdiff.process import check_folder
    from fastdiff.screen import comparison_text, progress

    how, others = read_how(words)
    a, b = read_sides(others, lambda words: planned(compose(words)))
    folder = folder_of(a, b, how)
    check_folder(folder, "compare.dir")
    with progress() as shown:
        comparison = Comparison(a, b, how, folder, shown)
        state = comparison.go()
    print(comparison_text(comparison.to_dict(state), folder))
    return exit_code(state)


def _diff_env(words: list[str]) -> int:
    """`diff-env A B`: what two reports say differently of their machines, settings and choices."""
    from fastdiff.diff_env import difference, read_report

    unknown = [word for word in words if word.startswith("-") and word != "--json"]
    if unknown:
        raise UsageError(f"diff-env has no option {unknown[0]}\n  there is: --json")
    named = [word for word in words if word != "--json"]
    if len(named) != 2:
        raise UsageError(
            f"diff-env needs two reports, not {len(named)}\n"
            "  instead: python -m fastdiff diff-env A/report.json B/report.json"
        )
    found = difference(read_report(named[0]), read_report(named[1]))
    if "--json" in words:
        import json

        print(json.dumps(found, indent=2, allow_nan=False))
        return 0
    from fastdiff.pages.environment import render

    print(render(named[0], named[1], found))
    return 0


def _doctor(words: list[str]) -> int:
    """`doctor`: what this machine can and can't do."""
    from fastdiff.doctor import report

    if words:
        raise UsageError(
            f"doctor takes no arguments, not '{words[0]}'\n  instead: python -m fastdiff doctor"
        )
    print(report())
    return 0


def _recipe(words: list[str]) -> int:
    """`recipe VERB FILE`: look at a shared file, compare, measure again, write."""
    from fastdiff.sharing.commands import run

    return run(words)


def _run(overrides: list[str]) -> int:
    """One run: refuse before anything is written, then let Hydra make the folder."""
    from fastdiff.composition import compose, quote_literal
    from fastdiff.process import check_folder, entries, leave_nothing
    from fastdiff.recipe.using import spelled_out

    run = compose(overrides)
    plan = planned(run)
    quoted = spelled_out([quote_literal(override) for override in overrides], run.recipe)
    asked = [o.partition("=")[2] for o in quoted if o.startswith("hydra.run.dir=")]
    if not asked:
        from fastdiff.running import new_folder

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


def _sweep(words: list[str]) -> int:
    """Every combination in a process of its own, each a row of the sweep's table."""
    from fastdiff.live import board
    from fastdiff.pages.sweep import sweep_row, sweep_text
    from fastdiff.screen import shown
    from fastdiff.sweep.sweep import exit_code, plan_sweep

    sweep = plan_sweep(words)
    for notice in sweep.notices:
        print(_in_columns(f"fastdiff: {notice}"), file=sys.stderr)
    with board() as shown_board:
        data = sweep.go(shown_board)
    try:
        print(sweep_text(data), sweep_row("written", _pages_in(shown(sweep.folder.path))), sep="\n")
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # whoever read our output has seen enough; how the sweep ended counts all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if data["error"]:
        raise FastdiffError(data["error"])
    return exit_code(data)


def _pages_in(folder: str) -> str:
    return f"{folder}/index.html, sweep.md, sweep.csv"


def _resume(words: list[str]) -> int:
    """`resume DIR`: what is missing of a sweep, or failed."""
    from fastdiff.sweep.sweep import resumed

    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UsageError(
            "resume needs a sweep's folder first\n"
            "  instead: python -m fastdiff resume outputs/sweeps/NAME"
        )
    with named_in(resumed(Path(words[0]), words[1:])) as again:
        return _sweep(again)


def _report(words: list[str]) -> int:
    """`report DIR`: a sweep's pages made anew from what lies in its folder, and its table."""
    from fastdiff.pages.sweep import sweep_row, sweep_text, write_sweep_pages
    from fastdiff.screen import shown
    from fastdiff.sweep.sweep import looked_again

    if len(words) != 1 or words[0].startswith("-"):
        raise UsageError(
            "report needs a sweep's folder, and nothing else\n"
            "  instead: python -m fastdiff report outputs/sweeps/NAME"
        )
    folder = Path(words[0])
    data = looked_again(folder)
    write_sweep_pages(folder, data)
    print(sweep_text(data))
    print(sweep_row("written", _pages_in(shown(folder))))
    return 0


def _execute(plan: Any, overrides: list[str], folder: Path) -> int:
    from fastdiff.models.sources import model_of
    from fastdiff.running import execute
    from fastdiff.screen import progress, summary

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

    from fastdiff.composition import register_schemas
    from fastdiff.config import CONF_DIR
    from fastdiff.explaining import explain

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


def console() -> None:
    """The console script. A scheduler's SIGTERM ends a run as Ctrl-C does: with a report that says so."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    console()
