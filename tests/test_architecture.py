"""Imports point one way, and what plans imports nothing that computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastdiff"

LAYERS = (
    ("machine",),
    (
        "errors",
        "config",
        "environment",
        "result",
        "verbs",
        "cache_folder",
        "ratios",
        "docstrings",
    ),
    ("config_dirs", "scripting", "limits"),
    ("folder_contents", "search_path"),
    ("option_yaml",),
    ("models", "autocast", "own_keys", "protocol", "software", "diff_env"),
    ("passes",),
    ("plugins",),
    ("options",),
    ("experiments",),
    ("grammar", "grid_values", "hydras_keys"),
    ("explaining", "assembling"),
    ("recipe",),
    ("composition",),
    ("calling",),
    ("planning", "grid"),
    ("outlook",),
    ("bench",),
    ("engine",),
    ("undoing",),
    ("report",),
    ("measuring",),
    ("worker",),
    ("process",),
    ("forking",),
    ("pages",),
    ("running",),
    ("ladder", "compare", "sweep"),
    ("live", "screen"),
    ("doctor", "sharing", "api"),
    ("__main__",),
)
"""From below to above: a module imports from layers below its own, and from its own package."""

RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

WITHOUT_TORCH = (
    "config",
    "environment",
    "autocast",
    "cache_folder",
    "errors",
    "result",
    "planning",
    "calling",
    "composition",
    "assembling",
    "grid",
    "grid_values",
    "hydras_keys",
    "limits",
    "outlook",
    "explaining",
    "options",
    "experiments",
    "forking",
    "own_keys",
    "docstrings",
    "config_dirs",
    "folder_contents",
    "search_path",
    "option_yaml",
    "plugins",
    "scripting",
    "undoing",
    "api",
    "live",
    "recipe.reading",
    "recipe.format",
    "recipe.checking",
    "recipe.file",
    "recipe.using",
    "recipe.writing",
    "recipe.schema",
    "recipe.upgrading",
    "sharing.commands",
    "sharing.check",
    "sharing.show",
    "sharing.difference",
    "sharing.verify",
    "sharing.save",
    "sharing.export",
    "grammar",
    "sweep.how",
    "sweep.entries",
    "sweep.folder",
    "sweep.made_with",
    "sweep.devices",
    "sweep.rows",
    "sweep.job",
    "sweep.launching",
    "sweep.sweep",
    "pages.sweep",
    "pages.sweep.page",
    "ladder.climb",
    "ladder.rows",
    "compare.comparison",
    "compare.sides",
    "compare.player",
    "ratios",
    "machine",
    "software",
    "diff_env",
    "pages.environment",
    "models.calls",
    "models.facts",
    "models.names",
    "models.sides",
    "models.whole",
    "models.reading",
    "models.sources",
    "models.given",
    "models.published",
    "models.architectures",
    "passes",
    "report",
    "protocol",
    "measuring",
    "worker",
    "process",
    "running",
    "pages.run",
    "pages.ladder",
    "pages.compare",
    "pages.grid",
    "screen",
    "doctor",
    "__main__",
)
LIBRARIES = ("torch", "torchao", "diffusers", "transformers", "accelerate", "torchmetrics", "PIL")

PROGRAMS = ("models.shapes.train", "models.shapes.score")
"""Programs of their own, which make the embedded model; nothing imports them."""


def modules() -> dict[str, Path]:
    """Modules by name inside the package: `passes.base`, and `passes` for its `__init__.py`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """What a module imports of the package, at its top and inside functions, with the line."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [n for n in inside if n.removeprefix("fastdiff.") in MODULES]
            names = known or [node.module or ""]
        else:
            continue
        yield from ((n.removeprefix("fastdiff."), node.lineno) for n in names if "fastdiff." in n)


def layer_of(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_layer(name: str) -> None:
    assert layer_of(name) in RANKS, (
        f"say in LAYERS which layer fastdiff.{layer_of(name)} belongs to"
    )


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    own = layer_of(name)
    upwards = [
        f"{MODULES[name].name}:{line} imports fastdiff.{other}"
        for other, line in imported(name)
        if layer_of(other) != own and RANKS[layer_of(other)] >= RANKS[own]
    ]
    assert upwards == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PROGRAMS])
def test_the_programs_that_made_the_embedded_model_are_not_imported(name: str) -> None:
    assert not {other for other, _ in imported(name)} & set(PROGRAMS)


@pytest.mark.parametrize("name", [n for n in MODULES if n not in PROGRAMS])
def test_libraries_that_take_seconds_are_imported_inside_functions(name: str) -> None:
    """At the top of a module only where nothing but a run's own process imports it."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in tops
        for alias in node.names
    ]
    heavy = {found.split(".")[0] for found in names} & set(LIBRARIES)
    assert not heavy or layer_of(name) in ("bench", "engine")


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_importing_what_plans_imports_nothing_that_computes(name: str) -> None:
    code = (
        f"import sys, fastdiff.{name}\n"
        f"print(*sorted({set(LIBRARIES)!r} & {{m.split('.')[0] for m in sys.modules}}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    assert ended.stdout.strip() == ""


def test_the_public_surface_is_what_is_listed() -> None:
    import fastdiff

    assert all(hasattr(fastdiff, name) for name in fastdiff.__all__)
