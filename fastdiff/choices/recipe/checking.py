"""A parsed file against what a recipe may say: every problem at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args, get_origin, get_type_hints

from fastdiff.choices.limits import beyond, numbers_in
from fastdiff.choices.options import OptionFile, option_files
from fastdiff.choices.recipe.format import (
    CHOOSABLE,
    FORMAT,
    NOT_CHOSEN,
    Recipe,
    RecipeFile,
    as_mapping,
)
from fastdiff.choices.recipe.reading import Node, shown
from fastdiff.choices.refusals import form
from fastdiff.errors import RecipeProblem, nearest


def problems_of(document: Node, folder: Path | None) -> list[RecipeProblem]:
    """Everything that keeps a parsed document from being a recipe, in the order of its lines.

    folder: the file's, within which paths must stay; None lets no path through.
    """
    forbidden = list(_forbidden(document))
    said = {problem.key for problem in forbidden}
    others = [p for p in _fields(document, RecipeFile, "", folder) if p.key not in said]
    found = dict.fromkeys([*forbidden, *others])
    return sorted(found, key=lambda problem: problem.line or 0)


def recipe_from(document: Node, place: Path | None, sha256: str) -> Recipe:
    """The recipe in a document, as far as it is right: a part with a problem is left out."""
    folder = place.parent if place else None
    wrong = {problem.key.partition("[")[0] for problem in problems_of(document, folder)}

    def right(key: str) -> bool:
        return not any(each == key or each.startswith(f"{key}.") for each in wrong)

    said = {key: node for key, node in _items(document) if right(key)}
    made_for, choices = (
        dict(_items(dict(_items(document)).get(key))) for key in ("made_for", "choices")
    )
    plain = {key: node.plain for key, node in said.items()}
    model = made_for.get("model") if right("made_for.model") else None
    device = made_for.get("device") if right("made_for.device") else None
    return Recipe(
        name=str(plain.get("name") or (place.stem if place else "recipe")),
        place=place,
        sha256=sha256,
        description=plain.get("description"),
        model=as_mapping(model.plain) if model else None,
        device=device.plain if device else None,
        choices={
            slot: as_mapping(choice.plain)
            for slot, choice in choices.items()
            if slot in CHOOSABLE and right(f"choices.{slot}")
        },
        generation=plain.get("generation") or {},
        measured=plain.get("measured") or {},
    )


# What a recipe can't say, wherever it stands ----------------------------------------------------------


_HYDRAS_KEYS = ("hydra", "defaults")
_REMOTE_CODE = ("trust_remote_code", "custom_pipeline", "custom_revision")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXTS = re.compile(r"name|description|generation\.(negative_)?prompt(\[\d+\])?|measured\..*")
"""Keys whose values are words for people, or for the model."""


def _forbidden(document: Node) -> Iterator[RecipeProblem]:
    for key, node in document.walk():
        name = key.rpartition(".")[2]
        line = node.key_line or node.line
        key = shown(key)
        if re.fullmatch(r"_\w+_", name):
            yield RecipeProblem(
                line, key, "would name code, and a recipe is data", "an option's name and its keys"
            )
        elif name in _HYDRAS_KEYS or "@" in name:
            yield RecipeProblem(
                line,
                key,
                "is Hydra's own, and Hydra never composes a recipe",
                "choices: one line a slot",
            )
        elif name in _REMOTE_CODE:
            yield RecipeProblem(
                line,
                key,
                "would run code that comes with a model, which fastdiff never does",
                "a model whose classes are in diffusers",
            )
        if "${" in name:
            yield _interpolates(line, key)
        if isinstance(node.value, str):
            if "${" in node.value:
                yield _interpolates(node.line, key)
            elif not _TEXTS.fullmatch(key) and (reason := outside(node.value)):
                yield RecipeProblem(
                    node.line, key, reason, "a name, or a path below the recipe's own folder"
                )


def _interpolates(line: int, key: str) -> RecipeProblem:
    return RecipeProblem(
        line, key, "holds ${...}, and nothing is looked up for a recipe", "the value itself"
    )


def outside(text: str) -> str | None:
    """Why a text would lead out of the recipe's folder, or to weights that are code; None if it doesn't."""
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or text.startswith("~"):
        return "is an absolute path, which only its author's machine has"
    if ".." in posix.parts or ".." in windows.parts:
        return "leads out of the recipe's folder (..)"
    if "://" in text:
        return "is an address, and a recipe names models by org/name"
    if posix.suffix.lower() in _PICKLED:
        return "names pickled weights, which can hold code; only safetensors are read"
    return None


# What its schema says -----------------------------------------------------------------------------------


def _items(node: Node | None) -> list[tuple[str, Node]]:
    return list(node.value.items()) if node is not None and isinstance(node.value, dict) else []


def _fields(
    node: Node, schema: type, key: str, folder: Path | None, owner: str = "a recipe"
) -> Iterator[RecipeProblem]:
    """A mapping against a dataclass: the file's, a part of it, or an option's.

    owner: whose keys they are, in words.
    """
    if not isinstance(node.value, dict):
        names = ", ".join(f.name for f in fields(schema))
        yield RecipeProblem(node.line, key, "must be a mapping of keys", f"there are: {names}")
        return
    hints = get_type_hints(schema)
    places = {f.name: f.metadata.get("place") for f in fields(schema)}
    for name, inner in node.value.items():
        whole = f"{key}.{name}" if key else name
        if name not in hints or name not in places:
            yield _unknown(inner, whole, name, list(places), f"{owner} has no such key")
        elif whole in _OF_THEIR_OWN:
            yield from _OF_THEIR_OWN[whole](inner, whole, folder)
        elif places[name] == "code":
            yield RecipeProblem(
                inner.key_line,
                whole,
                "is a folder of code that is run, which a recipe can't bring",
                "leave it out; whoever trusts such a folder types it",
            )
        else:
            problems = list(_value(inner, hints[name], whole, folder))
            yield from problems
            if (kind := places[name]) and not problems and inner.value:
                yield from _place(inner, whole, kind, folder)
    for each in fields(schema):
        needed = each.default is MISSING and each.default_factory is MISSING
        if needed and each.name not in node.value:
            whole = f"{key}.{each.name}" if key else each.name
            yield RecipeProblem(node.line, whole, "is missing", _EXAMPLES[whole])


_EXAMPLES = {
    "format": f"format: {FORMAT}",
    "name": "name: fast-bf16",
    "made_for": "made_for: {model: shapes, device: cpu}",
    "made_for.model": "model: shapes",
    "made_for.device": "device: cpu",
    "choices": "choices: {precision: bf16}, or choices: {} for the defaults",
    "measured.latency_s": "latency_s: 0.41, or no measured at all",
}


def _format(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        yield RecipeProblem(node.line, key, "must be a whole number", f"format: {FORMAT}")
    elif node.value > FORMAT:
        reason = f"is {node.value}, and this fastdiff reads up to {FORMAT}"
        yield RecipeProblem(node.line, key, reason, "a newer fastdiff")
    elif node.value < FORMAT:
        reason = f"is {node.value}, and today's is {FORMAT}"
        yield RecipeProblem(node.line, key, reason, "python -m fastdiff recipe upgrade FILE")


def _name(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    named = node.value
    if not isinstance(named, str) or not named.strip() or "\n" in named or len(named) > 100:
        reason = "must be a text of one line, of at most 100 signs"
        yield RecipeProblem(node.line, key, reason, _EXAMPLES[key])


def _choices(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    if not isinstance(node.value, dict):
        yield RecipeProblem(node.line, key, "must be a mapping of slots", _EXAMPLES[key])
        return
    for slot, choice in node.value.items():
        whole, line = f"{key}.{slot}", choice.key_line
        if slot == "model":
            reason = "is what a recipe is made for, no choice of it"
            yield RecipeProblem(line, whole, reason, "made_for: {model: ...}")
        elif slot in NOT_CHOSEN:
            reason = "says how a run is measured, which is for whoever runs it to choose"
            yield RecipeProblem(line, whole, reason, f"{slot}=... on the command line")
        elif slot not in CHOOSABLE:
            yield _unknown(choice, whole, slot, CHOOSABLE, "there is no such slot")
        else:
            yield from _choice(choice, whole, folder)


def _model(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    """A model that isn't among the options here may be a team's own; it matters only where nobody names another."""
    named = dict(_items(node)).get("option", node).value
    known = not isinstance(named, str) or named in option_files()["model"]
    if known or not re.fullmatch(r"\w{1,100}", str(named)):
        yield from _choice(node, key, folder)


def _choice(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    slot = key.rpartition(".")[2]
    options = option_files()[slot]
    option = node
    if isinstance(node.value, dict):
        if "option" not in node.value:
            reason, example = "names no option", next(iter(options))
            yield RecipeProblem(node.line, key, reason, f"{{option: {example}, ...}}")
            return
        option = node.value["option"]
    if not isinstance(option.value, str) or option.value not in options:
        yield _no_option(option, key, options)
    elif isinstance(node.value, dict) and (schema := options[option.value].schema) is not None:
        keys = {name: inner for name, inner in node.value.items() if name != "option"}
        owner = f"{slot}={option.value}"
        yield from _fields(Node(node.line, keys), schema, key, folder, owner)


def _no_option(node: Node, key: str, options: dict[str, OptionFile]) -> RecipeProblem:
    there_are = f"there are: {', '.join(options)}"
    if not isinstance(node.value, str):
        reason = "must be an option's name, or a mapping with `option` and its keys"
        return RecipeProblem(node.line, key, reason, there_are)
    near = nearest(node.value, options)
    hint = f"did you mean: {near}" if near else there_are
    return RecipeProblem(node.line, key, f"has no option '{shown(node.value)}'", hint)


_OF_THEIR_OWN: dict[str, Callable[[Node, str, Path | None], Iterable[RecipeProblem]]] = {
    "format": _format,
    "name": _name,
    "choices": _choices,
    "made_for.model": _model,
}
"""Keys whose values no type describes."""


def _place(node: Node, key: str, kind: str, folder: Path | None) -> Iterator[RecipeProblem]:
    """A path must stay below the recipe's folder, also after following links."""
    text = str(node.value)
    if outside(text) is not None:
        return  # told wherever it stands
    inside = folder / text if folder else None
    try:
        if inside and inside.exists() and folder:
            if not inside.resolve().is_relative_to(folder.resolve()):
                reason = "is a link that leads out of the recipe's folder"
                yield RecipeProblem(node.line, key, reason, "the file itself, beside the recipe")
            return
    except (OSError, ValueError, RuntimeError):
        yield RecipeProblem(node.line, key, "is no path", "a path below the recipe's own folder")
        return
    if kind == "path or name" and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return
    what = "nothing below the recipe's folder"
    what += ", and no name on the hub" if kind == "path or name" else ""
    yield RecipeProblem(node.line, key, f"names {what}", "a file or folder beside the recipe")


def _value(node: Node, kind: Any, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    kinds = [each for each in get_args(kind) if each is not type(None)]
    optional = type(None) in get_args(kind)
    if node.value is None and optional:
        return
    kind = kinds[0] if optional and len(kinds) == 1 else kind
    if is_dataclass(kind) and isinstance(kind, type):
        yield from _fields(node, kind, key, folder, key or "a recipe")
    elif isinstance(kind, type) and issubclass(kind, Enum):
        if node.value not in kind.__members__:
            near = nearest(str(node.value), kind.__members__)
            hint = f"did you mean: {near}" if near else f"there are: {', '.join(kind.__members__)}"
            yield RecipeProblem(node.line, key, f"can't be '{shown(str(node.plain))}'", hint)
    elif not fits(node.plain, kind):
        words, example = form(dict if get_origin(kind) is dict else kind)
        reason = f"can't be {shown(str(node.plain))!r}: it must be {words}"
        reason += " or null" if optional else ""
        name = key.rpartition(".")[2]
        yield RecipeProblem(node.line, key, reason, f"for example {name}: {example}")
    else:
        yield from _beyond(node, key)


def _beyond(node: Node, key: str) -> Iterator[RecipeProblem]:
    """Numbers that no run would take, or give, as far as a file tells."""
    if key.startswith("measured.") and key.endswith(("_s", "_bytes")) and node.plain < 0:
        name = key.rpartition(".")[2]
        yield RecipeProblem(node.line, key, "can't be negative", f"no {name} at all")
    of_a_run = key.removeprefix("choices.").removeprefix("made_for.")
    found = (beyond(name, value) for name, value in numbers_in(of_a_run, node.plain))
    for reason, instead in dict.fromkeys(each for each in found if each):
        name = key.rpartition(".")[2]
        yield RecipeProblem(node.line, key, reason, f"for example {name}: {instead}")


def fits(value: Any, kind: Any) -> bool:
    """Whether plain data is of a type that a key is declared to be."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:  # the option's own check says what it may be
        return not isinstance(value, dict)
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if kind is int or kind is float:
        number = (int, float) if kind is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    return any(value is None if each is type(None) else fits(value, each) for each in inner)


def _unknown(node: Node, key: str, name: str, known: Iterable[str], reason: str) -> RecipeProblem:
    names = list(known)
    near = nearest(name, names)
    hint = f"did you mean: {near}" if near else f"there are: {', '.join(names)}"
    hint = hint if names else "leave it out: it has no keys"
    return RecipeProblem(node.key_line or node.line, shown(key), reason, hint)
