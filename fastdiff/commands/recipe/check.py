"""`recipe check`: is the file right, and can what it says run here? Every problem at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastdiff.choices.compose import compose
from fastdiff.choices.recipe.checking import look_at
from fastdiff.choices.recipe.format import Recipe
from fastdiff.commands.words import Words, print_json
from fastdiff.display.layout import headline, labelled
from fastdiff.errors import FastdiffError, PlanError, RecipeError, RecipeProblem, UsageError
from fastdiff.planning.outlook import notices_of, planned
from fastdiff.planning.plan import ModelAndPlanError, Plan, make_plan

OWN_MODELS = ("local", "single_file")
"""Models that whoever uses a recipe has to name."""


@dataclass(frozen=True)
class Checked:
    """What was found of a recipe.

    file: what is wrong with the file. here: why what it says can't run here, as one text; None if it can.
    plan: what would be done; None where it can't be. model_named: whether there is a model to plan for; without one,
    what depends on the model's classes hasn't been looked at.
    """

    path: str
    recipe: Recipe
    file: tuple[RecipeProblem, ...]
    here: FastdiffError | None
    plan: Plan | None
    model_named: bool

    @property
    def right(self) -> bool:
        return not self.file and self.here is None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, of strict JSON."""
        here: list[dict[str, Any]] = []
        if isinstance(self.here, PlanError | ModelAndPlanError):
            here = [asdict(problem) for problem in self.here.problems]
        if self.here is not None and not isinstance(self.here, PlanError):
            here.insert(0, {"reason": str(self.here)})
        return {
            "file": self.path,
            "name": self.recipe.name,
            "valid": not self.file,
            "possible_here": self.here is None,
            "problems": [asdict(problem) for problem in self.file],
            "problems_here": here,
            "notices": [asdict(notice) for notice in notices_of(self.plan)] if self.plan else [],
            "model_named": self.model_named,
        }


def run(asked: Words) -> int:
    """`recipe check FILE`."""
    found = check(asked.files[0], asked.overrides)
    if "--json" in asked.flags:
        print_json(found.to_dict())
        return 0 if found.right else UsageError.exit_code
    if not found.right:
        raise refusal(found)
    print(check_text(found))
    return 0


def check(path: str, overrides: Sequence[str] = ()) -> Checked:
    """Look at a recipe's file, and at what is right in it on this machine. Raises RecipeError if it is no YAML that could be one."""
    recipe, problems = look_at(path)
    named = {word.partition("=")[0] for word in overrides}
    option = recipe.model["option"] if recipe.model else None
    model_named = bool(named & {"model", "model.path"}) or option not in OWN_MODELS
    plan, here = None, None
    try:
        plan = _plan(recipe, overrides, model_named)
    except FastdiffError as error:
        here = error
    return Checked(path, recipe, tuple(problems), here, plan, model_named)


def _plan(recipe: Recipe, overrides: Sequence[str], model_named: bool) -> Plan:
    run = compose(overrides, recipe=recipe)
    if model_named:
        return planned(run)
    from fastdiff.machine.environment import this_machine

    return make_plan(run, this_machine(), None)


def refusal(found: Checked) -> FastdiffError:
    """What is wrong with it, in the words of the command line."""
    parts = [str(RecipeError(found.path, found.file))] if found.file else []
    if found.here is not None:
        parts.append(str(found.here))
    return UsageError("\n".join(parts))


def check_text(found: Checked) -> str:
    """A right recipe for people."""
    recipe = found.recipe
    lines = [headline(f"{found.path} is a recipe, and can run here")]
    lines.append(labelled("name", recipe.name))
    if recipe.description:
        lines.append(labelled("description", " ".join(recipe.description.split())))
    made_for = f"model={recipe.model['option']}" if recipe.model else "any model"
    lines.append(labelled("made for", f"{made_for}, device={recipe.device}"))
    lines.append(labelled("choices", choices_in_words(recipe)))
    if found.plan:
        lines += [labelled("notice", f"{n.choice}: {n.text}") for n in notices(found)]
    return "\n".join(lines)


def notices(found: Checked) -> list[Any]:
    """What to know of a recipe that can run; the one about its model is said where it is missing."""
    from fastdiff.passes.base import Notice

    if found.plan is None:
        return []
    if found.model_named:
        return list(notices_of(found.plan))
    option = found.recipe.model["option"] if found.recipe.model else "local"
    missing = Notice(
        f"model={option}",
        f"yours isn't named, so what depends on it wasn't checked: model={option} model.path=...",
    )
    return [*found.plan.notices, missing]


def choices_in_words(recipe: Recipe) -> str:
    """`precision=bf16, quant=int8 (min_in_features=64)`."""
    words = []
    for slot, choice in recipe.choices.items():
        keys = ", ".join(f"{key}={value}" for key, value in choice.items() if key != "option")
        words.append(f"{slot}={choice['option']}" + (f" ({keys})" if keys else ""))
    return ", ".join(words) or "every slot's default"
