"""A page for each slot: its options, what they need, and their keys."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fastdiff.choices.docstrings import one_line, split
from fastdiff.choices.keys import keys_of
from fastdiff.choices.options import OptionFile, default_options, shipped_files
from fastdiff.passes.base import Fidelity, Option, Pass, Requirement
from generating.combinations import Clash, clashes
from generating.docstrings import comments, type_words, whole_text
from generating.markdown import anchor, code, definition, fence, marked, sentence, text


def overview() -> str:
    """Every slot with its options, its default first, every option a link to where it is described."""
    lines = []
    for slot, options in _ordered().items():
        lines += [
            f"### [{code(slot)}](reference/options/{slot}.md)",
            "",
            sentence(text(_about(slot))),
            "",
        ]
        for file in options.values():
            lines += definition(_link(file), text(file.comment))
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """The page of each slot."""
    return {slot: "\n".join(_page(slot, options)) for slot, options in _ordered().items()}


@cache
def _ordered() -> Mapping[str, Mapping[str, OptionFile]]:
    """Every option, each slot's default first."""
    default = default_options()
    return {
        slot: {
            name: options[name] for name in sorted(options, key=lambda name: name != default[slot])
        }
        for slot, options in shipped_files().items()
    }


def _page(slot: str, options: Mapping[str, OptionFile]) -> Iterator[str]:
    yield from (f"(slot-{anchor(slot)})=", f"# {slot}", "", sentence(text(_about(slot))), "")
    names = ", ".join(_link(file) for file in options.values())
    yield from (f"Options: {names}.", "")
    for file in options.values():
        yield from _option(file)
    described = list(_keys(slot, options))
    if described:
        yield from (f"## Keys of {code(slot)}", "")
        yield from (
            "Typed with a dot behind the slot. An option that isn't named doesn't have the key.",
            "",
        )
        yield from described


def _about(slot: str) -> str:
    """What a slot is about: the first sentence of the module that holds its options."""
    module = _schema(next(iter(shipped_files()[slot].values()))).__module__
    for name in (module, module.rpartition(".")[0]):
        told = inspect.cleandoc(sys.modules[name].__doc__ or "")
        found = re.match(rf"(?:The slot )?`{slot}`: (.+?)(?:\.\s|\.$|\n\n)", told, re.DOTALL)
        if found:
            return one_line(found[1])
    return _NO_PASSES[slot]


_NO_PASSES = {
    "model": "what draws, and where its weights come from",
    "bench": "how often a picture is drawn to time it",
    "quality": "what the picture is compared with",
}
"""The slots that are no optimizations, and so have no module of their own that says it."""


def _schema(file: OptionFile) -> Any:
    schema = file.schema
    assert schema is not None, f"{file.path} pulls in no schema"
    return schema


def _link(file: OptionFile) -> str:
    words = f"[{code(f'{file.slot}={file.name}')}](#{anchor('option', file.slot, file.name)})"
    default = file.name == default_options()[file.slot]
    return f"**{words}** (default)" if default else words


def _option(file: OptionFile) -> Iterator[str]:
    """An option: what its file and its class say, what it needs, and its values."""
    schema, choice = _schema(file), f"{file.slot}={file.name}"
    yield from (f"({anchor('option', file.slot, file.name)})=", f"## {code(choice)}", "")
    yield from (sentence(text(file.comment)), "")
    for part in whole_text(schema).split("\n\n"):
        if (
            part
            and part.rstrip(".") not in file.comment
            and not part.startswith("Base of the options")
        ):
            yield from (sentence(text(part)), "")
    for label, said in _facts(file, schema, choice):
        yield from _labelled(label, said)
    yield ""
    values = _values(file)
    if values:
        yield from ("Its values, as its file has them:", "")
        yield from fence(values, "yaml")


def _labelled(label: str, said: list[str]) -> Iterator[str]:
    """An entry of a list: what it is about, and one thing or several."""
    if len(said) == 1:
        yield f"- **{label}**: {said[0]}"
    elif said:
        yield f"- **{label}**:"
        yield from (f"  - {each}" for each in said)


def _facts(file: OptionFile, schema: Any, choice: str) -> Iterator[tuple[str, list[str]]]:
    option = _instance(file)
    if isinstance(option, Option):
        steps = option.passes()
        yield "Does", [f"{text(s.does)} (stage {code(s.stage.name.lower())})" for s in steps]
        yield "Numbers", list(dict.fromkeys(text(_fidelity(step)) for step in steps))
        yield "Needs", [_need(need) for need in option.requires]
        yield "Not with", list(_clash_words(clashes()[choice]))
        yield "Source", list(dict.fromkeys(f"<{step.source}>" for step in steps if step.source))
    where = f"`conf/{file.slot}/{file.name}.yaml`, {code(f'{schema.__module__}.{schema.__name__}')}"
    yield "Written in", [where]


def _fidelity(step: Pass) -> str:
    """What a pass does to the numbers, in the words of its kind."""
    _, kinds = split(inspect.cleandoc(Fidelity.__doc__ or ""), [each.name for each in Fidelity])
    return f"{step.fidelity.value}: {kinds[step.fidelity.name]}"


def _need(need: Requirement) -> str:
    said = []
    if need.device:
        said.append("an NVIDIA GPU" if need.device == "cuda" else f"device={need.device}")
    if need.capability:
        said[-1:] = [
            f"{said[-1]} of compute capability {'.'.join(map(str, need.capability))} or newer"
        ]
    if need.module:
        said.append(f"the package `{need.pip or need.module}`")
    return f"{' and '.join(said)}. Instead: {text(need.instead)}"


def _clash_words(found: tuple[Clash, ...]) -> Iterator[str]:
    """Options that clash for the same reason are named together."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for clash in found:
        reasons.setdefault((clash.reason, clash.instead), []).append(clash.other)
    for (reason, instead), others in reasons.items():
        links = [f"[{code(other)}](#{anchor('option', *other.split('='))})" for other in others]
        yield f"{', '.join(links)}: {text(reason)}. Instead: {text(instead)}"


def _values(file: OptionFile) -> list[str]:
    """The file's lines below its comment and its schema."""
    lines = file.path.read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("defaults:"))
    return lines[at + 1 :]


@dataclass(frozen=True)
class Key:
    """A key as one or several options have it. kind: its type in words; said: what the dataclass says of it."""

    name: str
    kind: str
    said: str


def _keys(slot: str, options: Mapping[str, OptionFile]) -> Iterator[str]:
    """Every key once, with the options that have it and what it is in each of them."""
    found: dict[Key, dict[str, Any]] = {}
    for file in options.values():
        for key in keys_of_option(file):
            found.setdefault(key, {})[file.name] = _value(file, key.name)
    names = [key.name for key in found]
    for key, values in found.items():
        several = names.count(key.name) > 1
        name = anchor("key", slot, key.name, *(sorted(values)[:1] if several else ()))
        default = f"Default: {_defaults(values, len(options))}."
        term = marked(f"{slot}.{key.name}", name, key.kind)
        yield from definition(term, sentence(text(key.said)), default)


def keys_of_option(file: OptionFile) -> list[Key]:
    """The keys of an option, in the order of its dataclass; of one that this doesn't explain, the file's comment does."""
    behind = comments(file.path)
    return [
        key if key.said else replace(key, said=behind.get(key.name, ""))
        for key in keys_of_schema(_schema(file))
    ]


def keys_of_schema(schema: type, prefix: str = "") -> list[Key]:
    """The keys of a dataclass, those of nested ones with dots."""
    found = []
    for key in keys_of(schema).values():
        found.append(Key(f"{prefix}{key.name}", type_words(key.type), key.text))
    return found


@cache
def _instance(file: OptionFile) -> Any:
    return file.option()


def _value(file: OptionFile, key: str) -> Any:
    found = _instance(file)
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _defaults(values: Mapping[str, Any], options: int) -> str:
    """What a key is where nobody changes it: in one word where all options agree, and else option by option."""
    shown: dict[str, list[str]] = {}
    for name, value in values.items():
        shown.setdefault(as_typed(value), []).append(name)
    if len(shown) == 1:
        (value,) = shown
        where = "" if len(values) == options else f" (in {', '.join(map(code, values))})"
        return f"{value}{where}"
    return "; ".join(f"{value} in {', '.join(map(code, names))}" for value, names in shown.items())


def as_typed(value: Any) -> str:
    """A value as an override has it; a long one, or one of keys of its own, is left to the file."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, (list, tuple)):
        shown = "[" + ",".join(as_typed(each).strip("`") for each in value) + "]"
        return code(shown) if len(shown) <= _LONGEST else f"{len(value)} entries"
    if hasattr(value, "name"):
        return code(str(value.name))
    if hasattr(value, "__dataclass_fields__"):
        return "as below"
    return code(str(value)) if str(value) else "empty"


_LONGEST = 60
