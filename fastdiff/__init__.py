"""fastdiff: choose, apply and measure optimizations of diffusion pipelines, and share them as a file.

    pipe = fastdiff.load("team.yaml", model="sdxl", device="cuda")     # an ordinary diffusers pipeline, optimized
    pipe = fastdiff.load(precision="bf16", compile="regional")         # the same without a file
    plan = fastdiff.plan("team.yaml", model="sdxl")                    # what load would do here, or every reason why not
    with fastdiff.applied(pipe, "team.yaml") as found:                 # a pipeline of your own, until the end of the block
        picture = found.pipeline("a lighthouse").images[0]

Importing fastdiff imports nothing of this; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.api import Applied, Plan, applied, load, plan
    from fastdiff.errors import (
        FastdiffError,
        InvalidOutputError,
        ModelError,
        NoEffectError,
        PlanError,
        Problem,
        RecipeError,
        RecipeProblem,
        RunError,
        UsageError,
    )
    from fastdiff.machine.environment import FASTDIFF_VERSION as __version__
    from fastdiff.passes.base import Notice
    from fastdiff.passes.effects import Effect
    from fastdiff.planning.plan import Step

__all__ = [
    "Applied",
    "Effect",
    "FastdiffError",
    "InvalidOutputError",
    "ModelError",
    "NoEffectError",
    "Notice",
    "Plan",
    "PlanError",
    "Problem",
    "RecipeError",
    "RecipeProblem",
    "RunError",
    "Step",
    "UsageError",
    "__version__",
    "applied",
    "load",
    "plan",
]

_FROM = {
    "Effect": ("passes.effects", "Effect"),
    "Notice": ("passes.base", "Notice"),
    "Plan": ("api", "Plan"),
    "Step": ("planning.plan", "Step"),
    "__version__": ("machine.environment", "FASTDIFF_VERSION"),
    **{name: ("api", name) for name in ("Applied", "applied", "load", "plan")},
}
"""Where a name is found, if not among the errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _FROM.get(name, ("errors", name))
    found = getattr(import_module(f"fastdiff.{module}"), there)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
