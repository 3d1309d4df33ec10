"""Nine rooms: imports point down, and nothing that computes is imported before a run computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdiff.passes import OPTIONS

PACKAGE = Path(__file__).parent.parent / "fastdiff"

ROOMS = (
    ("__main__", "__init__", "api"),
    ("commands",),
    ("runs",),
    ("display",),
    ("measuring",),
    ("planning",),
    ("choices",),
    ("passes",),
    ("models",),
    ("machine",),
    ("config", "latency", "script"),
    ("errors",),
)
"""From above to below: a module imports from rooms below its own, and from its own."""

RANKS = {name: -rank for rank, rooms in enumerate(ROOMS) for name in rooms}

LIBRARIES = ("torch", "torchao", "diffusers", "transformers", "accelerate", "torchmetrics", "PIL")
COMPUTES = "measuring"
"""The one room that may import them at a module's top."""


def modules() -> dict[str, Path]:
    """Modules by name inside the package: `passes.base`, `passes` for its `__init__.py`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = path
    return found


MODULES = modules()


def room_of(name: str) -> str:
    return name.split(".")[0]


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
        for found in names:
            if found == "fastdiff":
                yield "__init__", node.lineno
            elif found.startswith("fastdiff."):
                yield found.removeprefix("fastdiff."), node.lineno


def test_the_root_is_nine_rooms_and_at_most_seven_modules() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert len(folders) == 9
    assert len(files) <= 7
    assert folders | files == set(RANKS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    own = room_of(name)
    upwards = [
        f"{MODULES[name].name}:{line} imports fastdiff.{other}"
        for other, line in imported(name)
        if room_of(other) != own and RANKS[room_of(other)] >= RANKS[own] and name != "__init__"
    ]
    assert upwards == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    """At their tops; an import inside a function waits until it is called."""
    tops = {
        name: {
            other
            for other, line in imported(name)
            if any(
                isinstance(node, (ast.Import, ast.ImportFrom)) and node.lineno == line
                for node in ast.parse(path.read_text(encoding="utf-8")).body
            )
        }
        for name, path in MODULES.items()
    }
    left = dict(tops)
    while left:
        done = [name for name, others in left.items() if not others & set(left) - {name}]
        assert done, f"a circle among {sorted(left)}"
        for name in done:
            del left[name]


def test_every_room_but_measuring_imports_nothing_that_computes() -> None:
    """All modules of all other rooms at once, in a process of its own."""
    names = [f"fastdiff.{name}" for name in MODULES if room_of(name) != COMPUTES]
    code = (
        f"import sys, importlib\n"
        f"for name in {[n for n in names if not n.endswith('__')]!r}: importlib.import_module(name)\n"
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


ABOVE_PASSES = [name for name in MODULES if RANKS[room_of(name)] > RANKS["passes"]]
SHARED = {"passes", "passes.base", "passes.effects", "passes.place"}
"""What of the passes' room is no option: its list, what all options have in common, and the pass that is none."""


@pytest.mark.parametrize("name", ABOVE_PASSES)
def test_above_the_passes_no_option_is_imported(name: str) -> None:
    passes = {other for other, _ in imported(name) if room_of(other) == "passes"}
    assert passes <= SHARED, "ask the pass instead: a property of Option, Setting or Pending"


@pytest.mark.parametrize("name", ABOVE_PASSES)
def test_above_the_passes_no_option_is_compared_by_name(name: str) -> None:
    """Neither `choices["quant"] == "int8"` nor `"quant=int8"`; what an option does, it says itself."""
    names = {option for options in OPTIONS.values() for option in options}
    typed = {f"{slot}={option}" for slot, options in OPTIONS.items() for option in options}
    found = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        texts = {c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)}
        asked = " ".join(ast.unparse(side) for side in sides)
        slots = any(
            f"choices['{slot}']" in asked or f"['{slot}']['option']" in asked for slot in OPTIONS
        )
        if texts & typed or (slots and texts & names):
            found.append(f"line {node.lineno}: {asked}")  # type: ignore[attr-defined]
    assert found == []


def test_the_public_surface_is_what_is_listed() -> None:
    import fastdiff

    assert all(hasattr(fastdiff, name) for name in fastdiff.__all__)
