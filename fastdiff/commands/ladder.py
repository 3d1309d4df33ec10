"""`ladder NAME`: every rung of a document's ladder, then the table."""

from __future__ import annotations

from fastdiff.errors import UsageError
from fastdiff.planning.outlook import planned


def run(words: list[str]) -> int:
    """`ladder NAME`: every rung of a document's ladder, then the table."""
    from fastdiff.choices.compose import compose
    from fastdiff.choices.experiments import ladders
    from fastdiff.display.ladder import ladder_text
    from fastdiff.display.progress import progress
    from fastdiff.runs.folders import check_folder
    from fastdiff.runs.ladder.climb import Climb, How, exit_code, folder_of
    from fastdiff.runs.ladder.rungs import rungs_of

    name, *others = words or [""]
    if not name or "=" in name or name.startswith("-"):
        raise UsageError(
            "ladder needs the name of a ladder first\n  there are: " + ", ".join(ladders())
        )
    how, overrides = How.read(others)
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
