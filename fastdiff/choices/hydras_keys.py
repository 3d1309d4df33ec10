"""Hydra's own keys: those that fastdiff serves, and what is said of the others instead of letting them change nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

_OWN = re.compile(r"[+~]{0,2}hydra[./@]")

_SERVED = (
    "callbacks",
    "job.env_set",
    "job.env_copy",
    "job.name",
    "job_logging",
    "hydra_logging",
    "verbose",
    "searchpath",
)
"""Below `hydra`, in runs and sweeps alike: variables, log files, and code that is told how it goes."""

_SERVED_IN = {False: ("run.dir", "output_subdir"), True: ("launcher",)}
"""In a run, and in a sweep."""

_REFUSED = {
    "sweeper": ("a grid is parted into its combinations by fastdiff itself", "{swept}"),
    "mode": ("-m alone says whether it is a sweep", "-m before a grid, or leave it out"),
    "launcher": ("a single run is launched by nobody", "-m before it, or leave it out"),
    "sweep": ("is about a sweep, and this is a single run", "hydra.run.dir=DIR"),
    "run": ("of these there is one", "hydra.run.dir=DIR"),
    "output_subdir": ("what a cell's folder holds is fastdiff's to say", "leave it out"),
    "job.chdir": ("paths begin where the command is typed", "leave it out"),
    "help": ("fastdiff has a help of its own", "python -m fastdiff --help"),
    "hydra_help": ("fastdiff has a help of its own", "python -m fastdiff --help"),
    **dict.fromkeys(
        ("job", "runtime", "overrides", "env", "output"),
        ("Hydra fills it in by itself", "leave it out"),
    ),
}
"""The others of Hydra's keys, with the reason and the way out."""

_IN_A_SWEEP = dict.fromkeys(("sweep", "run"), ("a sweep has one folder", "sweep.dir=DIR"))


def hydras_own(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that say something to Hydra, and nothing of the run."""
    return [override for override in overrides if _OWN.match(override)]


def refused_by_name(override: str, of_a_grid: bool = False) -> str | None:
    """Why one of Hydra's own keys isn't for a run, or a grid, to set; None for one that is, or that Hydra hasn't got."""
    key, _, value = override.lstrip("+~").partition("=")
    name = re.split(r"[./@]", key, maxsplit=1)[1].partition("@")[0].replace("/", ".")
    if _below(name, (*_SERVED, *_SERVED_IN[of_a_grid])):
        return None
    rules = {**_REFUSED, **(_IN_A_SWEEP if of_a_grid else {})}
    rule = next((rule for rule in rules if _below(name, (rule,))), None)
    if rule is None:
        return None
    reason, instead = rules[rule]
    param = name.removeprefix("sweeper.params.")
    swept = f"-m {param}={value}" if param != name else "-m slot=option,option"
    return f"{override}: {reason}\n  instead: {instead.format(swept=swept)}"


def _below(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def unread(overrides: Sequence[str], error: Exception) -> str | None:
    """What Hydra stopped at, where it was one of its own keys; None where none was set."""
    own = hydras_own(overrides)
    if not own:
        return None
    named = [o for o in own if o.lstrip("+~").partition("=")[0] in str(error)]
    culprit = (named or own)[0]
    return (
        f"Hydra itself can't read {culprit}\n"
        "  instead: leave it out; of Hydra's own keys fastdiff needs hydra.run.dir=DIR, and sweeps "
        "hydra/launcher=NAME with its keys"
    )
