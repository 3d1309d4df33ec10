"""A recipe → overrides, beside those that were typed; what was typed wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastdiff.choices.keys import anchored
from fastdiff.choices.options import option_files
from fastdiff.choices.overrides import Layer, written
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.choices.recipe.format import Recipe, as_mapping
from fastdiff.config import SLOTS, UsedRecipe
from fastdiff.errors import UsageError, nearest

KEY = "recipe"
"""What names a recipe among overrides: `recipe=team.yaml`."""


def words_of(choices: Mapping[str, Any]) -> list[str]:
    """Choices as overrides in Hydra's grammar.

    choices: by slot, an option's name, or a mapping with `option` and its keys; keys beside slots (`device`,
    `generation`) with their values, or a mapping of them; or single keys with their dots.
    """
    return [word for key, choice in choices.items() for word in _words(key, choice)]


def with_recipe(words: Sequence[str]) -> tuple[list[str], UsedRecipe, Layer]:
    """The words without `recipe=FILE`, and what that recipe brings beside them. Raises UsageError, RecipeError."""
    named = [word.partition("=")[2] for word in words if word.startswith(f"{KEY}=")]
    others = [word for word in words if not word.startswith(f"{KEY}=")]
    if not named:
        return others, UsedRecipe(), Layer()
    if len(named) > 1:
        raise UsageError(
            f"a run takes one recipe, not {len(named)}\n"
            f"  instead: recipe={named[-1]}, or -m recipe={','.join(named)} for a run of each"
        )
    for word in others:
        if word.startswith("experiment=") and word != "experiment=none":
            raise UsageError(
                f"recipe={named[0]} and {word} both make choices\n  instead: one of them"
            )
    return others, *used(read_recipe(_unquoted(named[0])), others)


def _unquoted(text: str) -> str:
    """A file's name; quotes around it are the shell's or Hydra's."""
    if not text:
        raise UsageError("recipe= names no file\n  instead: recipe=FILE, a YAML")
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def used(recipe: Recipe, typed: Sequence[str] = ()) -> tuple[UsedRecipe, Layer]:
    """What a recipe brings to a run beside typed overrides: where one picks another option, the recipe's keys of that
    slot go with its option. Raises UsageError if its model can't be had and nobody named another one.
    """
    options = dict(word.partition("=")[::2] for word in typed if word.partition("=")[0] in SLOTS)
    brought: dict[str, dict[str, Any]] = {}
    replaced: list[list[str]] = []
    model = recipe.model or {"option": None}
    if "model" not in options and model["option"] is not None:
        _check_model(recipe, str(model["option"]))
        brought["model"] = _anchored(recipe, "model", model)
    for slot, choice in recipe.choices.items():
        name, option = choice["option"], options.get(slot)
        if option is None or option == name:
            brought[slot] = _anchored(recipe, slot, choice)
            continue
        keys = [key for key in choice if key != "option"]
        gone = f", and with it {', '.join(keys)}" if keys else ""
        text = f"takes the place of the recipe's {slot}={name}{gone}"
        replaced.append([f"{slot}={option}", text])
    choices = {slot: str(choice["option"]) for slot, choice in brought.items()}
    keys_of_slots = {
        slot: {key: value for key, value in choice.items() if key != "option"}
        for slot, choice in brought.items()
    }
    generation = {"generation": recipe.generation} if recipe.generation else {}
    words = words_of(brought | generation)
    option = model["option"] and str(model["option"])
    said = UsedRecipe(recipe.name, recipe.sha256, option, recipe.device, words, replaced)
    return said, Layer(choices, keys_of_slots | generation)


def spelled_out(words: Sequence[str], recipe: UsedRecipe) -> list[str]:
    """Overrides with what a recipe brought in its place: they mean the same where the file isn't."""
    return [*recipe.overrides, *(word for word in words if not word.startswith(f"{KEY}="))]


def _check_model(recipe: Recipe, name: str) -> None:
    models = option_files()["model"]
    if name in models:
        return
    near = nearest(name, models)
    hint = f"model={near}" if near else "model=..., the one that it is to be used for"
    raise UsageError(
        f"recipe '{recipe.name}' was made for model={name}, which isn't among the options here\n"
        f"  instead: {hint}, or --config-dir DIR with the folder that has {name}.yaml"
    )


def _anchored(recipe: Recipe, slot: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice whose paths begin at the recipe's folder, wherever the command is typed."""
    file = option_files()[slot].get(str(choice["option"]))
    if file is None or file.schema is None or recipe.place is None:
        return dict(choice)
    return anchored(choice, file.schema, recipe.place.parent)


def _words(key: str, choice: Any) -> Iterator[str]:
    if key in SLOTS:
        mapping = as_mapping(choice)
        yield f"{key}={mapping['option']}"
        choice = {name: value for name, value in mapping.items() if name != "option"}
    if not isinstance(choice, Mapping):
        yield f"{key}={written(choice)}"
        return
    for name, value in choice.items():
        yield from _words(f"{key}.{name}", value)
