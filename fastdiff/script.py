"""A plain script in the making: diffusers, torch and torchao, nothing of fastdiff.

A model and each pass write their own part of it, beside the code that does the same in a run. It is laid out as ruff
would format it. Whatever text comes from outside becomes a literal, a comment, or a checked name.
"""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.errors import UsageError

WIDTH = 100
"""Columns of a line."""


class ScriptError(UsageError):
    """Something that a plain script can't do.

    choice: what was chosen, as typed; why: a sentence without a full stop; instead: the way out.
    """

    def __init__(self, choice: str, why: str, instead: str) -> None:
        head = f"{choice} can't be written as a plain script"
        super().__init__(f"{head}\n  why: {why}\n  instead: {instead}")


@dataclass
class Script:
    """What a script does, in the order in which it is read.

    names: of the pipeline's components that have weights, and its scheduler.
    imports: names by module; none imports the module itself. arguments: lines of argparse.
    definitions: constants and functions. flags: lines before anything is loaded.
    dtype: of the weights, as torch names it; None keeps the files' own.
    parts: components that are loaded by themselves: by name, their class and the text of where they are.
    paragraphs: what is done to the pipeline once it is there.
    call: arguments of the pipeline's call.
    """

    names: frozenset[str]
    imports: dict[str, set[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    dtype: str | None = None
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)
    paragraphs: list[str] = field(default_factory=list)
    call: tuple[str, ...] = ()
    _loaded: tuple[str, str, tuple[str, ...]] = ("", "", ())

    def use(self, module: str, *names: str) -> None:
        """Import these names from a module, or the module itself."""
        self.imports.setdefault(module, set()).update(map(_checked, names))

    def ask(self, flag: str, what: str) -> str:
        """A required argument of the command line; returns the text of its value."""
        help_ = literal(what)
        self.arguments.append(
            call("parser.add_argument", literal(flag), "required=True", f"help={help_}")
        )
        return f"args.{flag.removeprefix('--')}"

    def define(self, *texts: str) -> None:
        """Constants and functions, each one text; constants will come first."""
        self.definitions += texts

    def flag(self, *lines: str) -> None:
        """What holds for the whole process, before anything is loaded."""
        self.flags += lines

    def then(self, *lines: str) -> None:
        """A paragraph of what is done to the pipeline, after those that are there."""
        self.paragraphs.append("\n".join(lines))

    def take(self, name: str, class_name: str, source: str) -> None:
        """A component from elsewhere, in the place of the pipeline's own. source: the text of where it is."""
        self.use("diffusers", class_name)
        self.parts[_checked(name)] = class_name, source

    def load(self, how: str, source: str, *given: str) -> None:
        """How the pipeline is loaded: a class with its method, the text of where it is, further arguments.

        The dtype and the components from elsewhere are added.
        """
        self.use("diffusers", how.partition(".")[0])
        self._loaded = how, source, given

    def called(self, key: str, names: Iterable[str]) -> list[str]:
        """The components of these names that this pipeline has, as the script calls them.

        key: of the pass that changes them. Raises ScriptError if there is none.
        """
        found = [f"pipe.{_checked(name)}" for name in names if name in self.names]
        if not found:
            why = "nobody knows which component of this model it would change"
            raise ScriptError(key, why, "leave it out")
        return found

    def text(self, header: Iterable[str], drawing: str) -> str:
        """The whole. header: sentences for the top; drawing: the call of the pipeline, and what is done with it."""
        comment = "\n".join(line for sentence in header for line in _comment(sentence))
        parser = [
            "parser = argparse.ArgumentParser()",
            *self.arguments,
            "args = parser.parse_args()",
        ]
        definitions = sorted(self.definitions, key=lambda text: text.startswith("def "))
        blocks = [comment, *_imports(self.imports), *definitions, "\n".join(parser)]
        blocks += ["\n".join(self.flags)] if self.flags else []
        blocks += ["\n".join(self._loading()), *self.paragraphs, drawing]
        text = blocks[0]
        for before, block in itertools.pairwise(blocks):
            defines = any(b.startswith("def ") for b in (before, block))
            text += ("\n\n\n" if defines else "\n\n") + block
        return f"{text}\n"

    def _loading(self) -> Iterator[str]:
        """The lines that load the components from elsewhere, and the pipeline."""
        dtype = [f"dtype=torch.{self.dtype}"] if self.dtype else []
        for name, (class_name, source) in self.parts.items():
            how = f"{name} = {class_name}.from_pretrained"
            yield call(how, source, *dtype, "use_safetensors=True")
        how, source, given = self._loaded
        parts = (f"{name}={name}" for name in self.parts)
        yield call(f"pipe = {how}", source, *dtype, *given, *parts)


def call(head: str, *arguments: str, width: int = WIDTH) -> str:
    """`head(arguments)`, in one line where it fits."""
    return bracketed(f"{head}(", arguments, ")", width)


def bracketed(opening: str, items: Iterable[str], closing: str, width: int = WIDTH) -> str:
    """Items between brackets, in one line where they fit, and else a line each."""
    items = tuple(items)
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) <= width and "\n" not in line:
        return line
    inside = "".join(f"{textwrap.indent(item, '    ')},\n" for item in items)
    return f"{opening}\n{inside}{closing}"


def predicate(name: str, conditions: Iterable[str], *first: str) -> str:
    """A function of a module and its name that answers whether all conditions hold. first: parameters before these."""
    conditions = tuple(conditions)
    line = f"    return {' and '.join(conditions)}"
    if len(line) > WIDTH:
        rest = "".join(f"        and {condition}\n" for condition in conditions[1:])
        line = f"    return (\n        {conditions[0]}\n{rest}    )"
    return f"def {name}({', '.join((*first, 'module', 'name'))}):\n{line}"


def keywords(given: Mapping[str, Any]) -> list[str]:
    """Keyword arguments whose values are literals."""
    return [f"{name}={literal(value)}" for name, value in given.items()]


def literal(value: Any) -> str:
    """A text, a number, None, or a list or tuple of such, as Python spells it and ruff would."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    return repr(value)


def _quoted(text: str) -> str:
    """A text in double quotes, or in single ones where that saves escapes."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    escaped = (f"\\{sign}" if sign in (quote, "\\") else repr(sign)[1:-1] for sign in text)
    return f"{quote}{''.join(escaped)}{quote}"


def _checked(name: str) -> str:
    """A name that stands in code as it is. Raises ScriptError if it is none of Python's."""
    if not name.isidentifier():
        raise ScriptError(ascii(name), "it is no name that Python knows", "another model")
    return name


def _comment(text: str) -> list[str]:
    """A text as lines of a comment, whatever it holds: Python would heed one that names a coding."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    plain = re.sub("coding(?=[:=])", "coding ", plain)
    return textwrap.wrap(plain, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _imports(imports: Mapping[str, set[str]]) -> Iterator[str]:
    """The standard library's, then the others': whole modules first, then names."""
    for standard in (True, False):
        modules = [
            m for m in imports if (m.partition(".")[0] in sys.stdlib_module_names) == standard
        ]
        modules.sort(key=str.lower)
        lines = [f"import {module}" for module in modules if not imports[module]]
        lines += [_from(module, imports[module]) for module in modules if imports[module]]
        if lines:
            yield "\n".join(lines)


def _from(module: str, names: set[str]) -> str:
    ordered = sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), name.lower())
    )
    line = f"from {module} import {', '.join(ordered)}"
    return line if len(line) <= WIDTH else bracketed(f"from {module} import (", ordered, ")")
