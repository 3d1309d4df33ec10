"""A recipe's text → plain data that knows its lines. YAML without anything that could act.

Read as events, one by one, so that what is refused (a tag, an anchor, a second document, a level too deep) is refused
before anything is made of it. Resolving and constructing scalars is PyYAML's own, of its safe loader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from fastdiff.errors import RecipeError, RecipeProblem

MOST_BYTES = 256_000
MOST_LEVELS = 32
MOST_VALUES = 4_000
"""Of keys and values together; a recipe that says everything has a few hundred."""

_TOO_DEEP = f"is nested deeper than {MOST_LEVELS} levels"

LONGEST_NUMBER = 400
"""Signs; the largest there is has 309 digits."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value with the line that it begins in, from 1. Mappings hold text keys, in the file's order."""

    line: int
    value: Scalar | dict[str, Node] | list[Node]
    key_line: int | None = None

    @property
    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    def walk(self, key: str = "") -> Iterator[tuple[str, Node]]:
        """Every value beneath it, with its key: `choices.quant.option`, `generation.prompt[0]`."""
        if isinstance(self.value, dict):
            for name, node in self.value.items():
                whole = f"{key}.{name}" if key else name
                yield whole, node
                yield from node.walk(whole)
        elif isinstance(self.value, list):
            for at, node in enumerate(self.value):
                yield f"{key}[{at}]", node
                yield from node.walk(f"{key}[{at}]")


def read_bytes(path: Path, name: str) -> bytes:
    """The file's content. Raises RecipeError: not there, not to be read, no file, or too large for a recipe.

    name: what messages call the file.
    """
    try:
        if not path.is_file():
            reason = "is a folder, no file" if path.is_dir() else "is not there"
            raise _error(name, None, "", reason, "the path of a YAML")
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise _error(name, None, "", f"can't be read: {said}", "a YAML that you may read") from None
    if len(found) > MOST_BYTES:
        reason = f"is larger than {MOST_BYTES // 1000} kB, and a recipe is a page of text"
        raise _error(name, None, "", reason, "a file that `recipe save` wrote")
    return found


def parse(content: bytes, name: str) -> Node:
    """The one document of a YAML, a mapping. Raises RecipeError with the first thing that is wrong.

    name: what messages call the file.
    """
    import yaml

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(
            name, None, "", f"is no UTF-8 text ({error.reason})", "save it as UTF-8"
        ) from None
    try:
        return _Composer(name, text).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "")
        reason = f"can't be read as YAML: {shown(said)}" if said else "can't be read as YAML"
        line = mark.line + 1 if mark else None
        if "nesting depth" in said:  # libyaml's own limit, far above ours, in PyYAML 6.0.4
            raise _error(name, line, "", _TOO_DEEP, "fewer levels") from None
        raise _error(
            name, line, "", reason, "mend that line; values with signs go in quotes"
        ) from None


def shown(text: str, most: int = 60) -> str:
    """A piece of a stranger's text that is safe to print: one line, without control characters, not long."""
    line = "".join(sign if sign.isprintable() else "?" for sign in text)
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _error(name: str, line: int | None, key: str, reason: str, instead: str) -> RecipeError:
    return RecipeError(name, [RecipeProblem(line, key, reason, instead)])


class _Composer:
    """Events → nodes, with every limit looked after on the way."""

    def __init__(self, name: str, text: str) -> None:
        import yaml

        self._name = name
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events = yaml.parse(text, Loader=loader)
        self._values = 0

    def document(self) -> Node:
        import yaml

        event = self._next()  # the stream's start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            self._refuse(event, "", "is empty", "a file that `recipe save` wrote")
        if getattr(event, "version", None) or getattr(event, "tags", None):
            self._refuse(event, "", "has a %-directive, and a recipe is plain YAML", "leave it out")
        node = self._node(self._next(), "", 0)
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._refuse(event, "", "holds a second document", "one recipe a file")
        if not isinstance(node.value, dict):
            raise _error(
                self._name,
                node.line,
                "",
                "is no mapping of keys",
                "a file that `recipe save` wrote",
            )
        return node

    def _next(self) -> Any:
        return next(self._events)

    def _node(self, event: Any, key: str, level: int, key_line: int | None = None) -> Node:
        import yaml

        self._values += 1
        if self._values > MOST_VALUES:
            self._refuse(
                event, key, f"has more than {MOST_VALUES} values", "a recipe is a page of text"
            )
        if isinstance(event, yaml.AliasEvent):
            self._refuse(
                event, key, "is an alias (*), and a recipe has none", "write the value out"
            )
        if event.anchor is not None:
            self._refuse(event, key, "has an anchor (&), and a recipe has none", "leave it out")
        if event.tag is not None:
            self._refuse(
                event,
                key,
                f"has the tag {shown(event.tag)}, and tags can name code",
                "plain values",
            )
        line = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            return Node(line, self._scalar(event, key), key_line)
        if level >= MOST_LEVELS:
            self._refuse(event, key, _TOO_DEEP, "fewer levels")
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(event, f"{key}[{len(items)}]", level + 1))
            return Node(line, items, key_line)
        return Node(line, self._mapping(key, level), key_line)

    def _mapping(self, key: str, level: int) -> dict[str, Node]:
        import yaml

        found: dict[str, Node] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            named = self._node(event, key, level + 1)
            if not isinstance(named.value, str):
                self._refuse(
                    event, key, f"has the key {shown(str(named.plain))}, which is no text", "a name"
                )
            name = named.value
            whole = f"{key}.{shown(name)}" if key else shown(name)
            if name in found:
                before = found[name].key_line
                self._refuse(event, whole, f"is here twice, first in line {before}", "one of them")
            found[name] = self._node(self._next(), whole, level + 1, named.line)
        return found

    def _scalar(self, event: Any, key: str) -> Scalar:
        import yaml

        if not event.implicit[0]:
            return str(event.value)
        tag = _resolver().resolve(yaml.ScalarNode, event.value, (True, False))
        kind = tag.rpartition(":")[2]
        if kind == "merge":
            self._refuse(event, key, "merges mappings (<<), and a recipe doesn't", "write them out")
        if kind not in ("null", "bool", "int", "float"):
            return str(event.value)  # a date too: no key of a recipe wants one
        if len(event.value) > LONGEST_NUMBER:
            self._refuse(event, key, f"is no finite number: {shown(event.value)}", "a number")
        try:
            value = getattr(yaml.constructor.SafeConstructor(), f"construct_yaml_{kind}")(
                yaml.ScalarNode(tag, event.value)
            )
        except ValueError:
            value = math.inf
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(event, key, f"is no finite number: {shown(event.value)}", "a number")
        return value  # type: ignore[no-any-return]

    def _refuse(self, event: Any, key: str, reason: str, instead: str) -> NoReturn:
        raise _error(self._name, event.start_mark.line + 1, key, reason, instead)


_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


@cache
def _resolver() -> Any:
    """PyYAML's, which also takes 1e-5 for a number, as Hydra does."""
    import yaml

    class Resolver(yaml.resolver.Resolver):  # type: ignore[misc]
        pass

    Resolver.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Resolver()
