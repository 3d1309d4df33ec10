"""A key: its type, its default, its text, its limits; and what is said of a value that it can't have.

One form for every dataclass whose fields can be set by name: the options', `generation`, a recipe's file, and the keys of a
command (`sweep.timeout_s=600`). What a field's metadata may say stands in `config.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastdiff.choices.docstrings import key_texts
from fastdiff.config import LARGEST_FLOAT, LARGEST_INT
from fastdiff.errors import UsageError, did_you_mean

_FORMS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "30"),
    float: ("a number", "5.0"),
    bool: ("true or false", "true"),
    str: ("a text", "text"),
    list[int]: ("a list of whole numbers", "[128]"),
    list[str]: ("a list of texts", "[text]"),
    list[list[int]]: ("a list of pairs of whole numbers", "[[640, 640]]"),
    dict: ("a mapping", "{}"),
}
"""Types in words, each with an example."""

_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Key:
    """A key of a schema.

    name: with the dots of the keys that hold it. type: as it is declared. schema: the dataclass that declares it.
    about: its field's metadata.
    """

    name: str
    type: Any
    schema: type
    field: Field[Any]
    about: Mapping[str, Any]

    @property
    def bare(self) -> str:
        """Its name without those that hold it."""
        return self.name.rpartition(".")[2]

    @property
    def text(self) -> str:
        """What is said of it; empty where nothing is."""
        return key_texts(self.schema).get(self.bare, "")

    @property
    def needed(self) -> bool:
        """Whether it has no default."""
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def default(self) -> Any:
        made = self.field.default_factory
        return self.field.default if made is MISSING else made()

    @property
    def place(self) -> str | None:
        """`path`, `path or name` or `code` where it names a place; None where it doesn't."""
        return self.about.get("place")

    @property
    def literal(self) -> bool:
        """Whether what is typed for it is taken as it stands, commas, quotes and dollars included."""
        return "place" in self.about or "literal" in self.about

    @property
    def optional(self) -> bool:
        return NoneType in get_args(self.type)

    @property
    def kind(self) -> Any:
        """Its type beside null."""
        kinds = [each for each in get_args(self.type) if each is not NoneType]
        return kinds[0] if self.optional and len(kinds) == 1 else self.type

    @property
    def inside(self) -> type | None:
        """The dataclass that it holds."""
        return self.kind if is_dataclass(self.kind) and isinstance(self.kind, type) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The values that there are, of one that takes one of a few names."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        return tuple(getattr(self.kind, "__members__", ()))

    @property
    def must_be(self) -> str:
        """What it takes, in words: `a whole number of at least 1 or null`."""
        kind = dict if get_origin(self.kind) is dict else self.kind
        words = self.about.get("words") or _FORMS.get(kind, ("of another form", ""))[0]
        words += f" of at least {self.about['least']}" if "least" in self.about else ""
        words += f" above {self.about['above']}" if "above" in self.about else ""
        return f"{words} or null" if self.optional else words

    @property
    def example(self) -> str:
        """A value that makes sense."""
        if said := self.about.get("example"):
            return str(said)
        default = None if self.needed else self.default
        if isinstance(default, list) and default:
            return f"[{default[0]}]"
        if isinstance(default, int | float | str) and default != "" and self.kind is not bool:
            return f"{default:g}" if isinstance(default, float) else str(default)
        return _FORMS.get(dict if get_origin(self.kind) is dict else self.kind, ("", "null"))[1]

    def value_in(self, owner: Any) -> Any:
        """Its value in an object of its schema, or of the one that holds that."""
        return attrgetter(self.name)(owner)

    def fits(self, value: Any) -> bool:
        """Whether plain data is of its type."""
        if self.names:
            return (value is None and self.optional) or value in self.names
        return _fits(value, self.type)

    def misfit(self, shown: str, form: str = "{}") -> tuple[str, str]:
        """What is said of a value that doesn't fit, and what may have been meant, or an example; form: how one is typed."""
        if self.names:
            return f"can't be '{shown}'", did_you_mean(shown, self.names, form)
        return (
            f"can't be '{shown}': it must be {self.must_be}",
            f"for example: {form.format(self.example)}",
        )

    def refusal(self, typed: str, value: str) -> str:
        """The same of a value as it was typed. typed: the key as it was typed."""
        if self.inside:
            inner = ", ".join(f"{typed}.{name}" for name in keys_of(self.inside))
            return f"{typed} has keys, not a value\n  there are: {inner}"
        reason, hint = self.misfit(value, f"{typed}={{}}")
        return f"{typed} {reason}\n  {hint}"

    def beyond(self, value: float) -> tuple[str, str] | None:
        """Why a number is more or less than it takes, and one that it takes; None for one within its limits."""
        most = self.about.get("most")
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number", "1"
        if isinstance(value, float) and most is None:
            if abs(value) <= LARGEST_FLOAT:
                return None
            return f"must be within {LARGEST_FLOAT:g}, the largest that fp32 holds", "1"
        most, why = most or (LARGEST_INT, "the largest that 32 bits hold")
        if value > most:
            return f"must be at most {most}: {why}", f"{most}"
        if value < -LARGEST_INT:
            return f"must be at least {-LARGEST_INT}, the least that 32 bits hold", "1"
        return None

    def too_little(self, value: float) -> bool:
        """Whether a number is below the least that its field names."""
        low = value < self.about.get("least", -math.inf)
        return bool(low or value <= self.about.get("above", -math.inf))

    def at_most(self, most: float, why: str) -> Key:
        """The same key with another limit."""
        return replace(self, about={**self.about, "most": (most, why)})

    def read(self, typed: str, text: str) -> Any:
        """A value as it was typed behind a command's own key. Raises UsageError."""
        if text == "null" and self.optional:
            return None
        value = self._parsed(text)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (number and (self.too_little(value) or not value < math.inf)):
            raise UsageError(self.refusal(typed, text))
        if number and (found := self.beyond(value)):
            raise UsageError(f"{typed}={shown(value)} {found[0]}\n  instead: {typed}={found[1]}")
        return value

    def _parsed(self, text: str) -> Any:
        """A text as a value of its kind; None if it is none."""
        if self.kind is bool:
            return {"true": True, "false": False}.get(text)
        if self.kind is int:
            return int(text[:4000]) if re.fullmatch(r"-?[0-9]+", text) else None
        if self.kind is float:
            try:
                return float(text)
            except ValueError:
                return None
        fits = (
            text in self.names if self.names else re.fullmatch(self.about.get("form", ".+"), text)
        )
        return text if fits else None

    def json_schema(self) -> dict[str, Any]:
        """Its JSON Schema, with its text and limits."""
        found = _json_schema(self.kind)
        found |= {"minimum": self.about["least"]} if "least" in self.about else {}
        found |= {"maximum": self.about["most"][0]} if "most" in self.about else {}
        if self.kind is not self.type:
            found = {"anyOf": [found, {"type": "null"}]}
        return found | ({"description": self.text} if self.text else {})


def keys_of(schema: Any) -> dict[str, Key]:
    """Keys of a dataclass by name, those of nested dataclasses with dots. Not to be changed: made once."""
    return _keys_of(schema)


@cache
def _keys_of(schema: Any) -> dict[str, Key]:
    hints, found = get_type_hints(schema), {}
    for f in fields(schema):
        found[f.name] = key = Key(f.name, hints[f.name], schema, f, f.metadata)
        if key.inside:
            for name, inner in keys_of(key.inside).items():
                found[f"{f.name}.{name}"] = replace(inner, name=f"{f.name}.{name}")
    return found


def direct_keys(schema: Any) -> dict[str, Key]:
    """The same without those of nested dataclasses."""
    return {name: key for name, key in keys_of(schema).items() if name == key.bare}


def flat(values: Mapping[str, Any], schema: type) -> Iterator[tuple[str, Any]]:
    """Keys and values of plain data, those below a key that holds keys with dots, whether the schema has them or not."""
    known = keys_of(schema)
    for name, value in values.items():
        key = known.get(name)
        if key and key.inside and isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in flat(value, key.inside))
        else:
            yield str(name), value


def anchored(values: Mapping[str, Any], schema: type, folder: Path) -> dict[str, Any]:
    """Plain data, flat, in which what names something below a folder is a whole path."""
    known = keys_of(schema)

    def whole(name: str, value: Any) -> Any:
        named = name in known and known[name].place and isinstance(value, str) and value
        return str(folder / value) if named and (folder / value).exists() else value

    return {name: whole(name, value) for name, value in flat(values, schema)}


def json_schema(schema: type) -> dict[str, Any]:
    """A dataclass as a JSON Schema; without the keys that name folders of code."""
    keys = [key for key in direct_keys(schema).values() if key.place != "code"]
    needed = [key.name for key in keys if key.needed]
    return {
        "type": "object",
        "properties": {key.name: key.json_schema() for key in keys},
        **({"required": needed} if needed else {}),
        "additionalProperties": False,
    }


def _json_schema(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in _JSON_TYPES:
        return {"type": _JSON_TYPES[kind]}
    if is_dataclass(kind) and isinstance(kind, type):
        return json_schema(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": list(kind.__members__)}
    if origin is list:
        return {"type": "array", "items": _json_schema(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _json_schema(inner[1]) if inner else {}}
    if origin in (Union, UnionType):
        others = [_json_schema(each) for each in inner if each is not NoneType]
        return {"anyOf": [*others, {"type": "null"}] if NoneType in inner else others}
    return {"not": {"type": "object"}} if kind is Any else {}


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:  # the option's own check says what it may be
        return not isinstance(value, dict)
    if kind in (int, float):
        number = (int, float) if kind is float else int
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    return isinstance(value, kind)


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in plain data."""
    if isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from numbers_in(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def shown(value: float) -> str:
    """A number as it was typed, or its beginning and its length: nobody reads a thousand digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if value.bit_length() > 10_000:
        return "(a number of more than 3000 digits)"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
