"""`compare A B`: both sides planned, then their processes taking turns, then the ratio."""

from __future__ import annotations

from fastdiff.planning.outlook import planned


def run(words: list[str]) -> int:
    """`compare A B`: both sides planned, then their processes taking turns, then the ratio."""
    from fastdiff.choices.compose import compose
    from fastdiff.display.compare import comparison_text
    from fastdiff.display.progress import progress
    from fastdiff.runs.compare.comparison import Comparison, exit_code, folder_of
    from fastdiff.runs.compare.how import read_how
    from fastdiff.runs.compare.sides import read_sides
    from fastdiff.runs.folders import check_folder

    how, others = read_how(words)
    a, b = read_sides(others, lambda words: planned(compose(words)))
    folder = folder_of(a, b, how)
    check_folder(folder, "compare.dir")
    with progress() as shown:
        comparison = Comparison(a, b, how, folder, shown)
        state = comparison.go()
    print(comparison_text(comparison.to_dict(state), folder))
    return exit_code(state)
