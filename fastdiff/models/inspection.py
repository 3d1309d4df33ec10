"""What diffusers' classes can do, found out from the classes themselves.

A pipeline class is read (its call's source, by `ast`); a model class is built without weights on the meta device and
looked at. `python -m fastdiff.models.inspection` writes library.json anew from the installed diffusers; a class that
isn't in the file is looked at by the same functions once somebody hands over a pipeline of it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastdiff.models.library import MODEL_CLASSES, PIPELINE_CLASSES, ModelClass, PipelineClass
from fastdiff.models.rows import without_weights

_NOT_READING = ("check_inputs", "deprecate", "warning", "warn", "info", "debug")
"""Calls that look at an argument without letting it change what is drawn."""


def pipeline_facts(kind: type) -> dict[str, Any]:
    """One pipeline class.

    arguments: names of its call's arguments.
    defaults: of those that have one other than None; what JSON can't hold is told as text.
    required: those without a default.
    unread: those that nothing in the class reads but its checks and warnings.
    gives: the fields of what it returns; [] where it returns no class of its own.
    each_step: components that its loops over timesteps call, in the order of their first call.
    contexts: names of the cache contexts that it enters.
    """
    call = _Source(kind, "__call__")
    arguments = dict(call.arguments())
    return {
        "arguments": list(arguments),
        "defaults": {
            name: _plain(default)
            for name, default in arguments.items()
            if default not in (None, inspect.Parameter.empty)
        },
        "required": [n for n, default in arguments.items() if default is inspect.Parameter.empty],
        "unread": [name for name in arguments if not call.reads(name)],
        "gives": call.gives(),
        "each_step": call.each_step(),
        "contexts": call.contexts(),
        "fuses_qkv": hasattr(kind, "fuse_qkv_projections"),
    }


def _plain(value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value


class _Source:
    """A method of a class as a syntax tree, and the other methods and properties of its class that it uses."""

    def __init__(self, kind: type, method: str) -> None:
        self._kind = kind
        self._function = getattr(kind, method)
        self._tree = _parsed(self._function)
        self._components = set(inspect.signature(kind).parameters)

    def arguments(self) -> Iterator[tuple[str, Any]]:
        if self._tree is None:
            return
        for name, parameter in inspect.signature(self._function).parameters.items():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if name != "self" and not variadic:
                yield name, parameter.default

    def gives(self) -> list[str]:
        """Fields of the output class that its last `return Output(...)` makes."""
        from diffusers.pipelines import pipeline_utils

        module = sys.modules[getattr(self._function, "__module__", __name__)]
        made = [getattr(node.value, "func", None) for node in _nodes(self._tree, ast.Return)]
        names = [function.id for function in made if isinstance(function, ast.Name)]
        # A combined pipeline hands on what its last part gives, and says so in its documentation.
        names += re.findall(r"(\w+Output)`\]", self._function.__doc__ or "")
        for name in names:
            known = getattr(module, name, None) or getattr(pipeline_utils, name, None)
            if isinstance(known, type) and dataclasses.is_dataclass(known):
                return [field.name for field in dataclasses.fields(known)]
        return []

    def contexts(self) -> list[str]:
        names = []
        for node in _nodes(self._tree, ast.Call):
            if getattr(node.func, "attr", None) == "cache_context" and node.args:
                names += [n.value for n in _nodes(node.args[0], ast.Constant)]
        return list(dict.fromkeys(map(str, names)))

    def each_step(self) -> list[str]:
        """Components called within a loop over timesteps, by their own name or by one that they were given."""
        called: dict[str, None] = {}
        for loop in _nodes(self._tree, ast.For):
            if "step" not in ast.unparse(loop.iter):
                continue
            called |= dict.fromkeys(self._called_in(loop, self._aliases(self._tree), set()))
        return list(called)

    def _called_in(
        self, tree: ast.AST | None, aliases: Mapping[str, list[str]], seen: set[str]
    ) -> Iterator[str]:
        for node in _nodes(tree, ast.Call):
            name = _own(node.func)
            if isinstance(node.func, ast.Name):
                yield from aliases.get(node.func.id, [])
            elif name in self._components and name != "scheduler":
                yield name
            elif name and name not in seen and inspect.isfunction(getattr(self._kind, name, None)):
                # A step that lies in a method of its own.
                method = _parsed(getattr(self._kind, name))
                yield from self._called_in(method, self._aliases(method), seen | {name})

    def _aliases(self, tree: ast.AST | None) -> dict[str, list[str]]:
        """Names that components were given: `model = self.transformer`."""
        found: dict[str, list[str]] = {}
        for node in _nodes(tree, ast.Assign):
            names = [_own(value) for value in _values(node.value)]
            for target in node.targets:
                if isinstance(target, ast.Name):
                    known = [n for n in names if n in self._components and n != "scheduler"]
                    if known:
                        found.setdefault(target.id, []).extend(known)
        return found

    def reads(self, name: str) -> bool:
        """Whether an argument reaches anything but checks, warnings, and an attribute that nobody reads."""
        return self._tree is None or self._reads(self._tree, name)

    def _reads(self, tree: ast.AST, name: str) -> bool:
        for node in _loads(tree):
            if isinstance(node, ast.Name) and node.id == name:
                return True
        kept = {
            target
            for node in _nodes(tree, ast.Assign)
            if isinstance(node.value, ast.Name) and node.value.id == name
            for target in map(_own, node.targets)
            if target
        }
        return any(self._attribute_is_read(attribute) for attribute in kept)

    def _attribute_is_read(self, attribute: str) -> bool:
        """Whether a method or property reads it, and, where that is a property, whether somebody reads the property."""
        for name, member in _members(self._kind):
            tree = _parsed(member)
            if tree is None or not any(_own(node) == attribute for node in _loads(tree)):
                continue
            if not isinstance(member, property) or self._attribute_is_read(name):
                return True
        return False


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that its own classes define, not those of every pipeline."""
    for base in kind.__mro__:
        if (
            base.__module__.startswith("diffusers.pipelines.")
            and base.__name__ != "DiffusionPipeline"
        ):
            for name, member in vars(base).items():
                if inspect.isfunction(member) or isinstance(member, property):
                    yield name, member


def _loads(tree: ast.AST) -> Iterator[ast.AST]:
    """Every name and attribute that is read, those left out that only a check, a warning or an attribute takes."""
    if (
        isinstance(tree, ast.Call)
        and getattr(tree.func, "attr", getattr(tree.func, "id", "")) in _NOT_READING
    ):
        return
    if (
        isinstance(tree, ast.Assign)
        and isinstance(tree.value, ast.Name)
        and all(map(_own, tree.targets))
    ):
        return
    if isinstance(tree, ast.Name | ast.Attribute) and isinstance(tree.ctx, ast.Load):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _loads(child)


def _own(node: ast.AST) -> str:
    """The name in `self.name`; "" for any other expression."""
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ):
        return node.attr
    return ""


def _values(node: ast.AST) -> list[ast.AST]:
    return [*_values(node.body), *_values(node.orelse)] if isinstance(node, ast.IfExp) else [node]


def _nodes(tree: ast.AST | None, kind: Any) -> list[Any]:
    """The nodes of a kind in the order of the source."""
    found = [node for node in ast.walk(tree) if isinstance(node, kind)] if tree else []
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _parsed(function: Any) -> ast.AST | None:
    """The tree of a function or property; None where there is no source."""
    if isinstance(function, property):
        function = function.fget
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return None
    try:
        known = _functions(function.__code__.co_filename)
    except (OSError, SyntaxError):  # typed into a notebook
        return None
    return known.get(function.__code__.co_firstlineno)


@cache
def _functions(file: str) -> dict[int, ast.AST]:
    """Functions of a source file by the line that they begin on, with their decorators."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {
        min([node.lineno, *(d.lineno for d in node.decorator_list)]): node
        for node in _nodes(tree, ast.FunctionDef)
    }


def model_facts(kind: type, model: Any = None) -> dict[str, Any]:
    """One model class; where a model of it is given (on the meta device is enough), what only instances show as well.

    repeated_blocks: class names that compile_repeated_blocks() compiles.
    step_cache: it is a CacheMixin.
    context_parallel, tensor_parallel: it has a plan for it.
    group_offload: diffusers lets its groups be offloaded.
    default_attention, attention_processors: it has set_default_attn_processor(), set_attn_processor().
    fuses_qkv: it has fuse_qkv_projections(), and an attention processor of its reads what that makes.

    Of a model:
    dispatched, attention: how many of its attention layers set_attention_backend() reaches, and how many it has.
    conv_weights: dimensions of its largest convolution weights; 0 if it has none.
    cached_blocks: classes of its lists of blocks that diffusers' hooks for step caches know.
    tiling, slicing: enable_tiling() and enable_slicing() change how it decodes.
    """
    from diffusers.models.cache_utils import CacheMixin

    facts = {
        "repeated_blocks": list(getattr(kind, "_repeated_blocks", None) or ()),
        "step_cache": issubclass(kind, CacheMixin),
        "context_parallel": bool(getattr(kind, "_cp_plan", None)),
        "tensor_parallel": bool(getattr(kind, "_tp_plan", None)),
        "group_offload": bool(getattr(kind, "_supports_group_offloading", True)),
        "default_attention": hasattr(kind, "set_default_attn_processor"),
        "attention_processors": hasattr(kind, "set_attn_processor"),
    }
    return facts if model is None else facts | _of_model(model)


def _of_model(model: Any) -> dict[str, Any]:
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention, MochiAttention
    from torch.nn.modules.conv import _ConvNd

    classes = (Attention, MochiAttention, AttentionModuleMixin)
    layers = [module for module in model.modules() if isinstance(module, classes)]
    processors = [getattr(layer, "processor", None) for layer in layers]
    convolutions = [m.weight.dim() for m in model.modules() if isinstance(m, _ConvNd)]
    return {
        "attention": len(layers),
        "dispatched": sum(hasattr(processor, "_attention_backend") for processor in processors),
        "processors": sorted({type(p).__name__ for p in processors if p is not None}),
        "conv_weights": max(convolutions, default=0),
        "cached_blocks": _cached_blocks(model),
        "tiling": _divides(model, "tiling"),
        "slicing": _divides(model, "slicing"),
        "fuses_qkv": _fuses(model),  # last, because it changes the model
    }


def _fuses(model: Any) -> bool:
    """Whether fusing makes projections, and the code of an attention layer or of its processor reads them."""
    try:
        model.fuse_qkv_projections()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return False
    fused = [layer for layer in model.modules() if getattr(layer, "fused_projections", False)]
    return any(_reads_joined(layer) for layer in fused if {*dict(layer.named_children())} & _JOINED)


_JOINED = {"to_qkv", "to_kv", "to_added_qkv"}


def _reads_joined(layer: Any) -> bool:
    """Whether its forward, or its processor's call, calls a joined projection, itself or in functions that it calls."""
    processor = getattr(layer, "processor", None)
    todo = [type(layer).forward, *([type(processor).__call__] if processor else [])]
    seen: set[Any] = set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        calls = [node.func for node in _nodes(_parsed(function), ast.Call)]
        if any(getattr(call, "attr", "") in _JOINED for call in calls):
            return True
        names = [call.id for call in calls if isinstance(call, ast.Name)]
        known = vars(sys.modules[function.__module__])
        todo += [known[name] for name in names if inspect.isfunction(known.get(name))]
    return False


def _cached_blocks(model: Any) -> list[str]:
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from torch import nn

    lists = [part for part in model.children() if isinstance(part, nn.ModuleList)]
    kinds = dict.fromkeys(type(block) for blocks in lists for block in blocks)
    known = []
    for kind in kinds:
        try:
            TransformerBlockRegistry.get(kind)
        except ValueError:
            continue
        known.append(kind.__name__)
    return known


def _divides(model: Any, way: str) -> bool:
    """Whether a VAE lets itself be told to divide its work in this way, and asks for it when it decodes."""
    try:
        getattr(model, f"enable_{way}")()
    except (AttributeError, NotImplementedError):
        return False
    decoding = (getattr(type(model), name, None) for name in ("decode", "_decode"))
    nodes = (
        node for method in decoding if method for node in _nodes(_parsed(method), ast.Attribute)
    )
    return any(node.attr == f"use_{way}" for node in nodes)


def learn(pipeline: Any) -> None:
    """Look at the classes of a live pipeline that library.json doesn't know: of a later release, or its user's own."""
    import diffusers

    kind = type(pipeline)
    if kind.__name__ not in PIPELINE_CLASSES:
        PIPELINE_CLASSES.learn(kind.__name__, PipelineClass.of(pipeline_facts(kind)))
    for part in pipeline.components.values():
        kind = type(part)
        if isinstance(part, diffusers.ModelMixin) and kind.__name__ not in MODEL_CLASSES:
            try:
                copy = without_weights(part)
            except Exception:  # a constructor of its own: what its class shows has to do
                copy = None
            MODEL_CLASSES.learn(kind.__name__, ModelClass.of(model_facts(kind, copy)))


def of_library() -> dict[str, Any]:
    """Facts of every pipeline and model class that the installed diffusers exports, by name."""
    import diffusers

    pipelines, models = {}, {}
    for name in sorted(dir(diffusers)):
        kind = _class(name)
        if kind is None:
            continue
        if issubclass(kind, diffusers.ModelMixin) and kind is not diffusers.ModelMixin:
            models[name] = model_facts(kind, _without_weights(kind))
        elif (
            issubclass(kind, diffusers.DiffusionPipeline)
            and kind is not diffusers.DiffusionPipeline
        ):
            pipelines[name] = pipeline_facts(kind)
    return {"diffusers": diffusers.__version__, "pipelines": pipelines, "models": models}


def _class(name: str) -> type | None:
    """A class that diffusers exports; also one that a stand-in takes the place of, because a package is missing here."""
    import diffusers

    try:
        kind = getattr(diffusers, name)
    except (ImportError, RuntimeError):
        return None
    if not isinstance(kind, type) or "dummy" not in kind.__module__:
        return kind if isinstance(kind, type) else None
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        if f"class {name}(" in file.read_text(encoding="utf-8"):
            parts = file.relative_to(Path(diffusers.__file__).parents[1]).with_suffix("").parts
            try:
                found = getattr(importlib.import_module(".".join(parts)), name)
            except (ImportError, RuntimeError):
                return None
            return found if isinstance(found, type) else None
    return None


_LAYERS = ("num_layers", "num_single_layers", "num_mmdit_layers", "num_single_dit_layers", "depth")


def _without_weights(kind: Any) -> Any:
    """A small model of a class on the meta device; None where smallest.json would have to say how one is made."""
    import torch

    known = inspect.signature(kind.__init__).parameters
    small = json.loads(Path(__file__).with_name("smallest.json").read_text(encoding="utf-8"))
    few_layers = {key: 1 for key in _LAYERS if key in known}
    configs: tuple[dict[str, Any], ...] = (small.get(kind.__name__, few_layers), {})
    for config in configs:
        try:
            with torch.device("meta"):
                return kind(**config)
        except (AssertionError, IndexError, TypeError, ValueError):
            continue
    return None


def written(facts: Mapping[str, Any]) -> str:
    """The facts as JSON, a class a line, so that the next release's differences can be read; what is false is left out."""
    lines = []
    for key, table in facts.items():
        if not isinstance(table, dict):
            lines.append(f"{json.dumps(key)}: {json.dumps(table)}")
            continue
        rows = [
            f"{json.dumps(name)}: {json.dumps({k: v for k, v in row.items() if v or k in _FALSE_TELLS})}"
            for name, row in table.items()
        ]
        lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


_FALSE_TELLS = ("attention",)
"""A model without attention layers was looked at; one without this key could not be built."""


if __name__ == "__main__":
    Path(__file__).with_name("library.json").write_text(written(of_library()), encoding="utf-8")
