"""Passes of other packages: chosen like ours, named when something is wrong with them, and in the report by their version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from by_hydra import composed_by_hydra

from fastdiff.__main__ import main
from fastdiff.choices.compose import compose, restore
from fastdiff.choices.experiments import names
from fastdiff.choices.options import keys_of, option_files, origins, schemas
from fastdiff.choices.plugins import GROUP, plugins
from fastdiff.errors import UsageError
from fastdiff.passes import OPTIONS
from fastdiff.runs.sweep.made_with import made_with

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parents[1] / "plugin"

Install = Callable[..., Path]


def write_metadata(folder: Path, name: str, version: str, points: dict[str, str]) -> None:
    """What pip writes of an installed distribution, as far as its entry points are found by it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))


def install_example(folder: Path) -> None:
    """The package in tests/plugin as pip would install it, from what its pyproject.toml says."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    write_metadata(folder, project["name"], project["version"], project["entry-points"][GROUP])
    package = "fastdiff_plugin_example"
    (folder / package).symlink_to(EXAMPLE / package, target_is_directory=True)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where this process looks for packages, and nobody's plug-ins but those in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    plugins.cache_clear()
    yield folder
    plugins.cache_clear()
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


@pytest.fixture
def example(path: Path) -> Path:
    install_example(path)
    return path


@pytest.fixture
def install(path: Path) -> Install:
    """`install("quant.ours", source)`: a plug-in whose class is `Ours` in a module of this source."""

    def with_source(point: str, source: str = "", name: str = "ours-fast") -> Path:
        module = name.replace("-", "_")
        (path / f"{module}.py").write_text(source)
        write_metadata(path, name, "1.2", {point: f"{module}:Ours"})
        return path

    return with_source


GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from fastdiff.passes.base import Option, Pass, Stage
from fastdiff.passes.effects import Effect

@dataclass
class Ours(Option, Pass):
    slot: ClassVar[str] = "quant"
    key: ClassVar[str] = "quant.ours"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    does: ClassVar[str] = "do nothing much"
    size: int = 3

    def apply(self, pipeline, context):
        return Effect(self.key, 1, "things")
"""


def refusal() -> str:
    with pytest.raises(UsageError) as refused:
        option_files()
    return str(refused.value)


# Chosen like any other -----------------------------------------------------------------------------


def test_a_plugin_is_an_option_of_its_slot_with_its_keys_and_comment(example: Path) -> None:
    file = option_files()["quant"]["example_rounded"]
    assert file.comment == (
        "Weights of the denoiser's linear layers rounded to a few bits, one scale a row."
    )
    assert file.schema is schemas()["quant"]["example_rounded"]
    assert [(k.name, k.type) for k in keys_of(schemas()["quant"]["example_rounded"]).values()] == [
        ("bits", int)
    ]
    run = compose(["quant=example_rounded", "quant.bits=3"])
    assert run.to_dict()["quant"] == {"option": "example_rounded", "bits": 3}
    assert restore(run.to_dict()) == run


def test_hydra_composes_a_plugin_as_the_option_files_alone_do(example: Path) -> None:
    words = ["quant=example_rounded", "quant.bits=3"]
    assert composed_by_hydra(words).quant == compose(words).quant
    with pytest.raises(UsageError, match="quant=example_rounded has no key"):
        compose(["quant=example_rounded", "quant.bit=3"])


def test_a_plugin_is_in_plans_spelling_suggestions_help_and_doctor(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example)
    assert main(["plan", "quant=example_rounded", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "quant.example_rounded: round the weights of linear layers (unet)" in said
    assert main(["quant=exampel_rounded"]) == 2
    assert "did you mean: quant=example_rounded" in capsys.readouterr().err
    assert main(["plan", "quant=example_rounded", "quant.bits=1", "device=cpu"]) == 2
    assert "must be from 2 to 16" in capsys.readouterr().err
    for verb in ("help", "doctor"):
        assert main([verb]) == 0
        said = capsys.readouterr().out
        assert "  quant=        example_rounded: fastdiff-plugin-example 0.3.1\n" in f"{said}\n"
        quant = said.partition("  quant  ")[2].partition("  cache  ")[0]
        assert "example_rounded" in quant
        assert max(map(len, said.splitlines())) <= 80


def test_a_report_can_say_which_package_and_version_an_option_comes_from(example: Path) -> None:
    assert origins(compose(["quant=example_rounded"]).choices) == {
        "quant=example_rounded": {"distribution": "fastdiff-plugin-example", "version": "0.3.1"}
    }
    assert origins(compose(["quant=int8"]).choices) == {}


def test_a_plugins_other_version_is_another_way_to_measure_its_cells(example: Path) -> None:
    assert (
        made_with(compose(["quant=example_rounded"]), "cpu")["fastdiff-plugin-example"] == "0.3.1"
    )
    assert "fastdiff-plugin-example" not in made_with(compose([]), "cpu")


def test_other_defaults_of_a_plugin_under_another_name_are_a_yaml(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "team" / "quant" / "rougher.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [/schema/quant/example_rounded@_here_, _self_]\nbits: 2\n")
    monkeypatch.setenv("FASTDIFF_CONFIG_DIR", str(tmp_path / "team"))
    run = compose(["quant=rougher"])
    assert run.to_dict()["quant"] == {"option": "rougher", "bits": 2}
    assert composed_by_hydra(["quant=rougher"]).quant == run.quant


def test_without_a_docstring_the_comment_is_what_it_does(install: Install) -> None:
    install("quant.ours", GOOD)
    assert option_files()["quant"]["ours"].comment == "do nothing much"


# Named when something is wrong ---------------------------------------------------------------------

WITHOUT = "pip uninstall ours-fast"
MEND = f"\n  instead: mend it, or {WITHOUT}"


def test_a_plugin_that_fails_to_import_is_named_with_its_reason(install: Install) -> None:
    install("quant.ours", "import there_is_none_of_this_name")
    assert refusal() == (
        "the plug-in quant.ours of ours-fast can't be imported: "
        "ModuleNotFoundError: No module named 'there_is_none_of_this_name'\n"
        f'  instead: mend it (python -c "import ours_fast" shows where), or {WITHOUT}'
    )


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("", "AttributeError: module 'ours_fast' has no attribute 'Ours'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("x = (", "SyntaxError: '(' was never closed"),
    ],
)
def test_however_it_fails_its_last_line_is_told(install: Install, source: str, last: str) -> None:
    install("quant.ours", source)
    assert f"the plug-in quant.ours of ours-fast can't be imported: {last}\n" in refusal()


@pytest.mark.parametrize(
    ("point", "reason", "instead"),
    [
        ("ours", "isn't named SLOT.OPTION", "a name such as quant.ours_int4"),
        ("quant.null", "isn't named SLOT.OPTION", "a name such as quant.ours_int4"),
        ("qaunt.ours", "is for a slot that takes none, 'qaunt'", "quant.ours"),
        (
            "bench.ours",
            "is for a slot that takes none, 'bench'",
            f"one of {', '.join(OPTIONS)}",
        ),
        ("quant.int8", "has the name of an option of fastdiff's own", "quant.ours_int8"),
    ],
)
def test_a_name_that_cant_be_one_of_an_option_is_refused(
    install: Install, point: str, reason: str, instead: str
) -> None:
    install(point, GOOD)
    assert refusal() == f"the plug-in {point} of ours-fast {reason}\n  instead: {instead}"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("class Ours(Option, Pass)", "class Ours(Option)", "is no class derived from Option and Pass: ours_fast:Ours"),
        ("class Ours(Option, Pass)", "class Ours(Pass)", "is no class derived from Option and Pass: ours_fast:Ours"),
        ("@dataclass\n", "", "is no dataclass: @dataclass is missing above Ours"),
        ('    key: ClassVar[str] = "quant.ours"\n', "", "lacks key"),
        ("    def apply", "    def apply_it", "lacks apply()"),
        ("    stage: ClassVar[Stage] = Stage.QUANTIZE\n    does: ClassVar[str] = \"do nothing much\"\n", "", "lacks does, stage"),
        ('= "quant.ours"', '= "quant.int8"', "must have key = 'quant.ours', and has 'quant.int8'"),
        ('= "quant"', '= "cache"', "must have slot = 'quant', and has 'cache'"),
        ("= Stage.QUANTIZE", "= 7", "must have one of Stage's members as its stage, and has 7"),
        ("size: int", "option: int", "has a key called option, which is what reports call its name"),
        ("size: int = 3", "size: set = 3", "has keys that can't be read: Unexpected type annotation: set"),
        ("size: int = 3", "size: int", "has keys that can't be read: Structured config of type `Ours` has missing mandatory value: size"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_option_is_refused(
    install: Install, old: str, new: str, reason: str
) -> None:
    assert old in GOOD
    install("quant.ours", GOOD.replace(old, new))
    assert refusal() == f"the plug-in quant.ours of ours-fast {reason}{MEND}"


def test_an_option_of_precision_must_be_what_other_passes_build_on(install: Install) -> None:
    install("precision.ours", GOOD.replace("quant", "precision"))
    assert refusal() == (
        "the plug-in precision.ours of ours-fast doesn't derive from Precision, as every option of "
        f"precision does{MEND}"
    )


def test_two_plugins_of_one_name_are_both_named(install: Install) -> None:
    install("quant.ours", GOOD)
    install("quant.ours", GOOD, name="theirs")
    assert refusal() == (
        "the plug-in quant.ours of theirs has the name of one of ours-fast 1.2\n"
        "  instead: pip uninstall theirs, or ours-fast"
    )


def test_a_distribution_that_stands_before_another_of_its_name_hides_it(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metadata(tmp_path / "before", "FastDiff_plugin.example", "9", {})
    monkeypatch.syspath_prepend(str(tmp_path / "before"))
    assert "example_rounded" not in option_files()["quant"]


def test_every_command_is_refused_and_help_and_doctor_say_why(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(install("quant.ours", "1 / 0"))
    commands = (
        *([], ["-m", "precision=fp32,bf16"], ["plan"], ["plan", "-m", "quant=int8,none"]),
        *(["ladder", "guide"], ["compare", "", "quant=int8"], ["plan", "quant=int8"]),
    )
    for words in commands:
        assert main(list(words)) == 2, words
        said = capsys.readouterr().err
        assert "the plug-in quant.ours of ours-fast can't be imported" in said.replace(
            "\n    ", " "
        )
    for verb in ("help", "doctor"):
        assert main([verb]) == 0
        said = capsys.readouterr().out
        assert "\n  problem       the plug-in quant.ours of ours-fast can't be imported:\n" in said
        assert "ZeroDivisionError: division by zero" in said
        assert max(map(len, said.splitlines())) <= 80
    assert main(["--version"]) == 0


def test_what_is_wrong_is_told_together(install: Install) -> None:
    install("quant.ours", "1 / 0")
    install("theirs", GOOD, name="theirs")
    said = refusal()
    assert said.startswith("2 things are wrong with options that folders and plug-ins bring\n")
    assert "\n  the plug-in quant.ours of ours-fast can't be imported" in said
    assert "\n  the plug-in theirs of theirs isn't named SLOT.OPTION\n    instead: " in said


def test_without_plugins_nothing_but_what_ships_can_be_chosen(path: Path) -> None:
    assert plugins().plugins == ()
    assert names()


# A whole run ---------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_plugins_pass_works_in_a_run_of_its_own_process(tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    install_example(site)
    work.mkdir()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "fastdiff", "quant=example_rounded", "quant.bits=3"),
            *("bench=once", "generation.steps=2", "device=cpu", "hydra.run.dir=run"),
        ],
        cwd=work,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads((work / "run" / "report.json").read_text())
    assert report["config"]["quant"] == {"option": "example_rounded", "bits": 3}
    (step,) = (s for s in report["plan"] if s["pass"] == "quant.example_rounded")
    assert (step["stage"], step["components"]) == ("quantize", ["unet"])
    (effect,) = (e for e in report["effects"] if e["pass"] == "quant.example_rounded")
    assert effect["changed"] > 50
    assert f"quant.example_rounded {effect['changed']} linears" in report["applied"]
    assert report["origins"] == {
        "quant=example_rounded": {"distribution": "fastdiff-plugin-example", "version": "0.3.1"}
    }
    assert report["quality"]["identical"] is False
    assert report["quality"]["psnr_db"] < 60
