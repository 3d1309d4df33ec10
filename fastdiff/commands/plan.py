"""`plan`: what would happen, and why not; with -m of every combination."""

from __future__ import annotations

from fastdiff.choices.verbs import SWEEPS
from fastdiff.commands.sweep import with_folder
from fastdiff.commands.words import read_words
from fastdiff.errors import FastdiffError, PlanError, UsageError
from fastdiff.planning.outlook import planned


def run(words: list[str]) -> int:
    """`plan`: what would happen, and why not; with -m of every combination."""
    words = ["-m" if word in SWEEPS else word for word in words]
    read = read_words("plan", "[-m] [--json] [overrides]", words)
    as_json = "--json" in read.flags
    if "-m" in read.flags:
        return _plan_grid(read.overrides, as_json)
    return _plan_json(read.overrides) if as_json else _plan_text(read.overrides)


def _plan_text(overrides: list[str]) -> int:
    from fastdiff.choices.compose import compose
    from fastdiff.display.plan import plan_text

    print(plan_text(planned(compose(overrides))))
    return 0


def _plan_json(overrides: list[str]) -> int:
    import json
    from dataclasses import asdict

    from fastdiff.choices.compose import compose
    from fastdiff.planning.outlook import notices_of
    from fastdiff.planning.plan import ModelAndPlanError

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
    from fastdiff.choices.grid import read_grid
    from fastdiff.choices.hydras_keys import hydras_own
    from fastdiff.planning.cells import as_data, planned_cells
    from fastdiff.runs.sweep.how import read_how
    from fastdiff.runs.sweep.launching import check_launcher

    _, overrides = read_how(with_folder(overrides))
    # A launcher's name may be ours, and none of Hydra's; its keys are read where it is made.
    check_launcher(hydras_own(overrides))
    of_launcher = ("hydra/launcher=", "hydra.launcher.")
    grid = read_grid([o for o in overrides if not o.lstrip("+~").startswith(of_launcher)])
    rows = [cell.to_dict() for cell in planned_cells(grid)]
    if as_json:
        import json

        print(json.dumps(as_data(rows), indent=2))
    else:
        from fastdiff.display.plan import grid_text

        print(grid_text(rows, grid.varied))
    return 0 if any(row["status"] == "ok" for row in rows) else UsageError.exit_code
