"""A recipe's file → the recipe, or every problem at once, each with its line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastdiff.choices.keys import Key, direct_keys, numbers_in
from fastdiff.choices.options import option_files
from fastdiff.choices.recipe.format import (
    CHOOSABLE,
    FORMAT,
    NOT_CHOSEN,
    Recipe,
    RecipeFile,
    as_mapping,
)
from fastdiff.choices.recipe.reading import Node, parse, read_bytes, shown
from fastdiff.errors import RecipeError, RecipeProblem, did_you_mean


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a file. Raises RecipeError with every problem: nothing of it was used."""
    place = _place_of(path)
    try:
        state = place.stat()
    except (OSError, ValueError):
        return _recipe(str(path), 0, 0)
    return _recipe(str(path), state.st_size, state.st_mtime_ns)


@cache
def _recipe(path: str, size: int, mtime_ns: int) -> Recipe:
    """Read once as long as the file stays the same: a grid asks for it in every cell."""
    recipe, problems = look_at(path)
    if problems:
        raise RecipeError(path, problems)
    return recipe


def look_at(path: str | Path) -> tuple[Recipe, list[RecipeProblem]]:
    """The recipe in a file as far as it is right, and what isn't. Raises RecipeError if it is no YAML that could be one."""
    place = _place_of(path)
    content = read_bytes(place, str(path))
    document = parse(content, str(path))
    problems = problems_of(document, place.parent)
    return recipe_from(document, place, hashlib.sha256(content).hexdigest(), problems), problems


def _place_of(path: str | Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()


def problems_of(document: Node, folder: Path | None) -> list[RecipeProblem]:
    """Everything that keeps a parsed document from being a recipe, in the order of its lines.

    folder: the file's, within which paths must stay; None lets no path through.
    """
    forbidden = list(_forbidden(document))
    said = {problem.key for problem in forbidden}
    others = [p for p in _fields(document, RecipeFile, "", folder) if p.key not in said]
    found = dict.fromkeys([*forbidden, *others])
    return sorted(found, key=lambda problem: problem.line or 0)


def recipe_from(
    document: Node, place: Path, sha256: str, problems: Iterable[RecipeProblem]
) -> Recipe:
    """The recipe in a document, as far as it is right: a part with a problem is left out."""
    wrong = {problem.key.partition("[")[0] for problem in problems}

    def right(key: str) -> bool:
        return not any(each == key or each.startswith(f"{key}.") for each in wrong)

    plain = document.plain
    said = {key: value for key, value in plain.items() if right(key)}
    made_for, choices = (plain.get(key) for key in ("made_for", "choices"))
    made_for, choices = (d if isinstance(d, dict) else {} for d in (made_for, choices))
    model = made_for.get("model") if right("made_for.model") else None
    return Recipe(
        name=str(said.get("name") or place.stem),
        place=place,
        sha256=sha256,
        description=said.get("description"),
        model=None if model is None else as_mapping(model),
        device=made_for.get("device") if right("made_for.device") else None,
        choices={
            slot: as_mapping(choice)
            for slot, choice in choices.items()
            if slot in CHOOSABLE and right(f"choices.{slot}")
        },
        generation=said.get("generation") or {},
        measured=said.get("measured") or {},
    )


# What a recipe can't say, wherever it stands ----------------------------------------------------------


_HYDRA = "is Hydra's own, and Hydra never composes a recipe"
_FORBIDDEN_NAMES = (
    (r"_\w+_", "would name code, and a recipe is data", "an option's name and its keys"),
    (r"hydra|defaults|.*@.*", _HYDRA, "choices: one line a slot"),
    (
        "trust_remote_code|custom_pipeline|custom_revision",
        "would run code that comes with a model, which fastdiff never does",
        "a model whose classes are in diffusers",
    ),
)
"""Names of keys, why no recipe has one, and the way out; the first that fits counts."""
_INTERPOLATION = ("holds ${...}, and nothing is looked up for a recipe", "the value itself")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXTS = re.compile(r"name|description|generation\.(negative_)?prompt(\[\d+\])?|measured\..*")
"""Keys whose values are words for people, or for the model."""


def _forbidden(document: Node) -> Iterator[RecipeProblem]:
    for key, node in document.walk():
        name, key = key.rpartition(".")[2], shown(key)
        line = node.key_line or node.line
        for pattern, reason, instead in _FORBIDDEN_NAMES:
            if re.fullmatch(pattern, name, re.DOTALL):
                yield RecipeProblem(line, key, reason, instead)
                break
        if "${" in name:
            yield RecipeProblem(line, key, *_INTERPOLATION)
        if isinstance(node.value, str):
            if "${" in node.value:
                yield RecipeProblem(node.line, key, *_INTERPOLATION)
            elif not _TEXTS.fullmatch(key) and (out := outside(node.value)):
                instead = "a name, or a path below the recipe's own folder"
                yield RecipeProblem(node.line, key, out, instead)


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


def _fields(
    node: Node, schema: type, key: str, folder: Path | None, owner: str = "a recipe"
) -> Iterator[RecipeProblem]:
    """A mapping against a dataclass: the file's, a part of it, or an option's.

    owner: whose keys they are, in words.
    """
    known = direct_keys(schema)
    if not isinstance(node.value, dict):
        there_are = f"there are: {', '.join(known)}"
        yield RecipeProblem(node.line, key, "must be a mapping of keys", there_are)
        return
    above = f"{key}." if key else ""
    for name, inner in node.value.items():
        whole = f"{above}{name}"
        if name not in known:
            yield _unknown(inner, whole, name, known, f"{owner} has no such key")
        elif whole in _OF_THEIR_OWN:
            yield from _OF_THEIR_OWN[whole](inner, whole, folder)
        elif known[name].place == "code":
            reason = "is a folder of code that is run, which a recipe can't bring"
            instead = "leave it out; whoever trusts such a folder types it"
            yield RecipeProblem(inner.key_line, whole, reason, instead)
        else:
            yield from _value(inner, known[name], whole, folder)
    for name, each in known.items():
        if each.needed and name not in node.value:
            yield RecipeProblem(node.line, above + name, "is missing", _EXAMPLES[above + name])


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
    elif node.value != FORMAT:
        reason = f"is {shown(str(node.value))}, and this fastdiff reads {FORMAT}"
        older = "the recipe saved anew: python -m fastdiff recipe save RUN_DIR -o FILE"
        instead = "a newer fastdiff" if node.value > FORMAT else older
        yield RecipeProblem(node.line, key, reason, instead)


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
    named = node.value.get("option", node).value if isinstance(node.value, dict) else node.value
    known = not isinstance(named, str) or named in option_files()["model"]
    if known or not re.fullmatch(r"\w{1,100}", str(named)):
        yield from _choice(node, key, folder)


def _choice(node: Node, key: str, folder: Path | None) -> Iterator[RecipeProblem]:
    slot = key.rpartition(".")[2]
    options, keys = option_files()[slot], node.value if isinstance(node.value, dict) else {}
    if keys and "option" not in keys:
        reason, example = "names no option", next(iter(options))
        yield RecipeProblem(node.line, key, reason, f"{{option: {example}, ...}}")
        return
    option = keys.get("option", node)
    if not isinstance(option.value, str):
        reason = "must be an option's name, or a mapping with `option` and its keys"
        yield RecipeProblem(option.line, key, reason, f"there are: {', '.join(options)}")
    elif option.value not in options:
        reason = f"has no option '{shown(option.value)}'"
        yield RecipeProblem(option.line, key, reason, did_you_mean(option.value, options))
    elif schema := options[option.value].schema:
        others = Node(node.line, {name: each for name, each in keys.items() if name != "option"})
        yield from _fields(others, schema, key, folder, f"{slot}={option.value}")


_OF_THEIR_OWN: dict[str, Callable[[Node, str, Path | None], Iterable[RecipeProblem]]] = {
    "format": _format,
    "name": _name,
    "choices": _choices,
    "made_for.model": _model,
}
"""Keys whose values no type describes."""


def _value(node: Node, key: Key, whole: str, folder: Path | None) -> Iterator[RecipeProblem]:
    """A value against its key: its type, its limits, and whether it stays where it may."""
    form = f"{key.bare}: {{}}"
    if node.value is None and key.optional:
        return
    if key.inside:
        yield from _fields(node, key.inside, whole, folder, whole)
    elif not key.fits(node.plain) or any(map(key.too_little, numbers_in(node.plain))):
        yield RecipeProblem(node.line, whole, *key.misfit(shown(str(node.plain)), form))
    elif beyond := list(filter(None, map(key.beyond, numbers_in(node.plain)))):
        for reason, instead in dict.fromkeys(beyond):
            example = f"for example: {form.format(instead)}"
            yield RecipeProblem(node.line, whole, reason, example)
    elif key.place and node.value and outside(str(node.value)) is None:  # else told already
        yield from _place(node, whole, key.place, folder)


def _place(node: Node, key: str, kind: str, folder: Path | None) -> Iterator[RecipeProblem]:
    """A path must stay below the recipe's folder, also after following links."""
    inside = folder / str(node.value) if folder else None
    try:
        if inside and inside.exists() and folder:
            if not inside.resolve().is_relative_to(folder.resolve()):
                reason = "is a link that leads out of the recipe's folder"
                yield RecipeProblem(node.line, key, reason, "the file itself, beside the recipe")
            return
    except (OSError, ValueError, RuntimeError):
        yield RecipeProblem(node.line, key, "is no path", "a path below the recipe's own folder")
        return
    if kind == "path or name" and re.fullmatch(r"[\w.-]+/[\w.-]+", str(node.value)):
        return
    what = "nothing below the recipe's folder"
    what += ", and no name on the hub" if kind == "path or name" else ""
    yield RecipeProblem(node.line, key, f"names {what}", "a file or folder beside the recipe")


def _unknown(node: Node, key: str, name: str, known: Iterable[str], reason: str) -> RecipeProblem:
    hint = did_you_mean(name, known) if known else "leave it out: it has no keys"
    return RecipeProblem(node.key_line or node.line, shown(key), reason, hint)
