"""The site's generated texts against the program, and the commands in its written pages. Without Sphinx."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastdiff.choices.experiments import experiments as every_experiment
from fastdiff.choices.experiments import ladder, ladders
from fastdiff.choices.options import OptionFile, option_files
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.choices.recipe.format import Measured, RecipeFile
from fastdiff.choices.verbs import VERBS
from fastdiff.commands.recipe import VERBS as RECIPE_VERBS
from fastdiff.config import SCALARS, SLOTS, Generation
from fastdiff.measuring.fields import Part
from fastdiff.passes import OPTIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import generating  # noqa: E402
from generating import combinations, commands, experiments, options, report  # noqa: E402
from generating.docstrings import comments, type_words, whole_text  # noqa: E402
from generating.markdown import code, definition, sentence, text  # noqa: E402
from generating.signatures import as_restructured_text  # noqa: E402

from fastdiff.choices.docstrings import key_texts, split  # noqa: E402

PAGES = cache(generating.pages)


def page_of(slot: str) -> str:
    return PAGES()[f"options/{slot}.md"]


EVERY_OPTION = [file for files in option_files().values() for file in files.values()]


def name_of(file: OptionFile) -> str:
    return f"{file.slot}={file.name}"


# Options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", EVERY_OPTION, ids=name_of)
def test_an_option_has_a_section_with_its_comment_and_a_row_in_the_overview(
    file: OptionFile,
) -> None:
    page = page_of(file.slot)
    assert f"\n## `{name_of(file)}`\n\n{sentence(text(file.comment))}\n" in page
    assert (
        f"[`{name_of(file)}`](#option-{file.slot.replace('_', '-')}-" in PAGES()["parts/options.md"]
    )


@pytest.mark.parametrize("file", EVERY_OPTION, ids=name_of)
def test_every_key_of_an_option_is_on_its_slots_page(file: OptionFile) -> None:
    page = page_of(file.slot)
    for key in options.keys_of_option(file):
        assert f"[`{file.slot}.{key.name}`]{{#key-" in page


@pytest.mark.parametrize("file", EVERY_OPTION, ids=name_of)
def test_every_key_of_an_option_is_explained(file: OptionFile) -> None:
    said = {key.name: key.said for key in options.keys_of_option(file)}
    unexplained = [
        name for name, words in said.items() if not (words or said.get(name.rpartition(".")[0]))
    ]
    assert unexplained == [], f"a line 'key: what it is' in {file.schema}'s docstring is missing"


def test_every_option_file_shows_its_values_as_they_stand() -> None:
    page = page_of("quant")
    assert "swap_channels: [128] # only those with one of these numbers of channels" in page


def test_the_default_comes_first_and_is_said_to_be_one() -> None:
    for slot in SLOTS:
        page = page_of(slot)
        (line,) = (line for line in page.splitlines() if line.startswith("Options: "))
        assert line.count("(default)") == 1
        assert re.match(rf"Options: \*\*\[`{slot}=\w+`\]\(#[\w-]+\)\*\* \(default\)", line)


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_says_what_it_is_about(slot: str) -> None:
    assert re.match(rf"\(slot-[\w-]+\)=\n# {slot}\n\n[^\n]{{20,}}\.\n\n", page_of(slot))


def test_what_an_option_needs_and_where_it_comes_from_is_said() -> None:
    page = page_of("quant")
    section = page.partition("## `quant=fp8`")[2].partition("\n## ")[0]
    assert (
        "- **Needs**:\n"
        "  - an NVIDIA GPU of compute capability 8.9 or newer. Instead: `quant=int8`\n"
        "  - the package `torchao`. Instead: `quant=none`\n"
    ) in section
    assert "- **Numbers**: lossy: " in section
    assert (
        "- **Source**: <https://huggingface.co/docs/diffusers/tutorials/fast_diffusion>" in section
    )
    assert "`fastdiff.passes.quant.Fp8`" in section


# Which options go together -----------------------------------------------------------------------------


def test_a_declared_conflict_is_named_on_both_sides() -> None:
    declared = [
        (f"{slot}={name}", conflict.choice)
        for slot, kinds in OPTIONS.items()
        for name, kind in kinds.items()
        for conflict in kind.conflicts
    ]
    assert declared
    for one, other in declared:
        assert other in {clash.other for clash in combinations.clashes()[one]}
        assert one in {clash.other for clash in combinations.clashes()[other]}


def test_a_rule_that_is_code_is_found_by_planning() -> None:
    clashes = {c.other: c for c in combinations.clashes()["cache=deepcache"]}
    assert "compile=default" in clashes
    assert "compile=regional" not in clashes
    assert clashes["compile=default"].reason.startswith("what is skipped changes from step to step")
    needs = {c.other: c for c in combinations.clashes()["attention=sdpa_flash"]}
    assert set(needs) == {"precision=fp32", "precision=tf32"}
    assert needs["precision=fp32"].reason == "CUDA's flash kernel computes in fp16 or bf16 only"


def test_options_that_go_together_clash_with_nothing() -> None:
    for slot, name in (("precision", "bf16"), ("compile", "none"), ("quant", "none")):
        assert all(
            c.other.partition("=")[0] != "vae" for c in combinations.clashes()[f"{slot}={name}"]
        )
    assert combinations.clashes()["memory_format=channels_last"] == ()


# Keys outside the slots --------------------------------------------------------------------------------


def test_every_key_beside_the_slots_is_there_and_explained() -> None:
    page = PAGES()["parts/settings.md"]
    keys = [*(f"generation.{name}" for name in Generation.__dataclass_fields__), *SCALARS]
    for key in keys:
        found = re.search(
            rf"^\[`{re.escape(key)}`\]{{#[\w-]+}} \*.+\*\n: (.+) Default: .+\.$", page, re.MULTILINE
        )
        assert found, (
            f"{key}: no text in Generation's docstring, and no comment in conf/config.yaml"
        )
        assert found[1].endswith(".")


@pytest.mark.parametrize(
    ("page", "command", "schema"),
    [
        (commands.sweep, "sweep", commands.Sweep),
        (commands.compare, "compare", commands.Compare),
        (commands.ladder, "ladder", commands.Ladder),
    ],
)
def test_every_key_of_a_command_is_there_and_explained(
    page: Any, command: str, schema: Any
) -> None:
    written = page()
    for key in (field.name for field in fields(schema)):
        found = re.search(
            rf"^\[`{command}\.{key}`\]{{#[\w-]+}} \*.+\*\n: (.+) Default: .+\.$",
            written,
            re.MULTILINE,
        )
        assert found, f"{command}.{key} isn't explained in {schema}'s docstring"


def test_launchers_are_named_with_what_they_do() -> None:
    assert re.findall(
        r"^- `hydra/launcher=(\w+)`: .{20,}$", commands.launchers(), re.MULTILINE
    ) == [
        "joblib",
        "ray",
        "slurm",
    ]


def test_every_public_name_is_on_the_page_of_the_python_api() -> None:
    import fastdiff

    page = commands.python()
    for name in fastdiff.__all__:
        if not name.startswith("__"):
            assert f":: fastdiff.{name}\n" in page


# Experiments -------------------------------------------------------------------------------------------


def test_every_experiment_is_there_with_its_choices_and_what_was_published() -> None:
    page = PAGES()["parts/experiments.md"]
    for experiment in every_experiment().values():
        section = page.partition(f"\n`{experiment.name}`\n")[2].partition("\n`")[0]
        assert section, experiment.name
    for word in (
        "`quant=int8`",
        "Published: 2.43 s, 3.03 times as fast",
    ):
        assert word in page


def test_overrides_of_an_experiment_compose_to_it() -> None:
    from fastdiff.choices.compose import compose

    for experiment in every_experiment().values():
        typed = compose(experiments.overrides(experiment)).to_dict()
        named = compose([f"experiment={experiment.name}"]).to_dict()
        assert {k: v for k, v in typed.items() if k != "experiment"} == {
            k: v for k, v in named.items() if k != "experiment"
        }


def test_every_committed_measurement_has_a_table_with_a_row_for_each_rung() -> None:
    page = experiments.render()
    assert experiments.measured()
    for folder, data in experiments.measured():
        assert f"All figures: `{folder}/`." in page
        for row in data["rows"]:
            assert f"\n| `{row['experiment'].rpartition('/')[2]}` |" in page


def test_what_nobody_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "measured", lambda: ())
    page = experiments.render()
    for name in ladders():
        assert f"`benchmarks/gpu.sh --only ladder-{name}` does it" in page
        never = ", ".join(code(rung.short) for rung in ladder(name))
        assert f"- On no machine so far: {never}.\n" in page


# Recipes ---------------------------------------------------------------------------------------------


def test_the_recipe_that_is_shown_can_be_read(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGES()["parts/recipe-example.md"], re.DOTALL)
    assert shown
    path = tmp_path / "shown.yaml"
    path.write_text(shown[1])
    recipe = read_recipe(path)
    assert recipe.choices["quant"] == {"option": "int8"}
    assert recipe.measured["latency_s"] > 0


def test_every_field_of_a_recipe_is_there() -> None:
    page = PAGES()["parts/recipe-fields.md"]
    for name in RecipeFile.__dataclass_fields__:
        assert f"[`{name}`]{{#recipe-" in page
    for name in Measured.__dataclass_fields__:
        assert f"`{name}` (" in page or f"[`measured.{name}`]" in page


def test_everything_that_can_be_done_with_a_recipe_is_there() -> None:
    for verb in RECIPE_VERBS:
        assert re.search(rf"^\| `recipe {verb}\b", PAGES()["parts/recipe-verbs.md"], re.MULTILINE)


# The report's fields -----------------------------------------------------------------------------------


def test_every_field_of_a_report_is_described(shapes_plan: Any) -> None:
    from fastdiff.measuring.report import blank_report

    page, plan = report.render(), shapes_plan()
    blank = blank_report(plan.setting.run, plan, [], "now").to_dict()
    assert set(blank) | {"weights"} == {
        path.split(".")[0].split("[")[0] for path in report.described()
    }
    for path in report.described():
        assert f"[`{path}`]{{#field-" in page
    assert re.findall("^## (.+)$", page, re.MULTILINE) == list(report.HEADINGS.values())


def test_a_field_without_a_description_fails() -> None:
    @dataclass
    class Fruit(Part):
        """apples: how many."""

        apples: int = 0
        bananas: int = 0

    with pytest.raises(ValueError) as refused:
        list(report._fields(Fruit, "", {}))
    assert str(refused.value) == (
        "Fruit says nothing of bananas\n  instead: a line 'bananas: what it is' in its docstring"
    )


UNITS = {
    "_per_s": r".*/s|pictures a second",
    "_s": r"(list of )?seconds|keys of its own",
    "_bytes": "bytes|keys of its own",
    "_db": "dB",
    "_mhz": "MHz",
    "_w": "watts",
    "_c": "degrees",
}


def test_the_unit_in_a_name_is_the_one_that_is_described() -> None:
    for path, field in report.described().items():
        unit = next((words for ending, words in UNITS.items() if path.endswith(ending)), None)
        assert unit is None or re.match(unit, field.kind), f"{path}: {field.kind}"


# What the texts are made of ----------------------------------------------------------------------------


def test_keys_in_a_docstring_are_told_from_the_rest() -> None:
    whole, keys = split(
        "One graph for all.\n\nsteps: denoising steps,\n    at least 1. seed: of the noise; 0 is one.\n"
        "height, width: pixels.\nThe others are budgets:\nlow: in dB.\n\nMore of it.",
        ["steps", "seed", "height", "width", "low"],
    )
    assert keys == {
        "steps": "denoising steps, at least 1.",
        "seed": "of the noise; 0 is one.",
        "height": "pixels.",
        "width": "pixels.",
        "low": "in dB.",
    }
    assert whole == "One graph for all.\n\nThe others are budgets:\n\nMore of it."


def test_a_key_is_explained_by_the_nearest_class_that_says_something() -> None:
    texts = key_texts(OPTIONS["compile"]["regional"])
    assert texts["fullgraph"] == "a graph break is an error."
    assert (
        texts["epilogue_fusion"] == "Inductor's flags of these names; null leaves Inductor's own."
    )
    assert whole_text(OPTIONS["precision"]["fp32"]) == ""


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "whole number"),
        (float | None, "number or null"),
        (list[list[int]], "list of lists of whole numbers"),
        (dict[str, int], "mapping"),
        (Any, "any value"),
        (Generation, "keys of its own"),
    ],
)
def test_types_are_put_in_words(hint: Any, words: str) -> None:
    assert type_words(hint) == words


def test_comments_behind_values_are_found_by_their_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# top\na: 1  # one\nb:   # two\n  c: 'x#y' # three\n  d: 4\ne: [a, b] #five\n")
    assert comments(path) == {"a": "one", "b": "two", "b.c": "three", "e": "five"}


def test_signs_in_plain_texts_stay_signs() -> None:
    assert text("a * b `c*d` <e> [f]") == r"a \* b `c*d` \<e\> \[f\]"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("model.id=org/name, or quant=none.", "`model.id=org/name`, or `quant=none`."),
        ("(generation.steps=15 to 20)", "(`generation.steps=15` to 20)"),
        ("compile.targets=[denoiser,vae_decode]; x", "`compile.targets=[denoiser,vae_decode]`; x"),
        ("save_pretrained() or model.lcm_lora", "`save_pretrained()` or `model.lcm_lora`"),
        ("null is auto, and nullable isn't", "`null` is `auto`, and nullable isn't"),
    ],
)
def test_overrides_names_and_values_are_set_as_code(words: str, shown: str) -> None:
    assert text(words) == shown


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("steps, at least 1", "Steps, at least 1."),
        ("fp8 weights", "fp8 weights."),
        ("`auto`", "`auto`."),
        ("org/name here.", "org/name here."),
        ("", ""),
    ],
)
def test_sentences_begin_and_end_as_such(words: str, shown: str) -> None:
    assert sentence(words) == shown


def test_a_definition_leaves_out_what_is_empty() -> None:
    assert definition("term", "one", "", "two") == ["term", ": one", "", "  two", ""]


def test_docstrings_become_lists_of_parameters() -> None:
    def load(recipe: str, *, device: str) -> None: ...

    lines = [
        "The pipeline *itself*.",
        "",
        "recipe: a file. device: where it goes.",
        "",
        "Raises `PlanError`s.",
    ]
    as_restructured_text(None, "function", "load", load, None, lines)
    assert "\n".join(lines) == (
        "The pipeline \\*itself\\*.\n\nRaises ``PlanError``\\ s.\n\n:param recipe: a file.\n:param device: where it goes.\n"
    )


# The whole -------------------------------------------------------------------------------------------


def test_pages_are_the_same_every_time() -> None:
    first = generating.pages()
    for cached in (
        options._ordered,
        combinations.clashes,
        report.described,
        experiments.measured,
    ):
        cached.cache_clear()
    assert generating.pages() == first


def test_writing_leaves_what_is_right_and_removes_what_is_gone(tmp_path: Path) -> None:
    generating.write(tmp_path)
    page = tmp_path / "options" / "quant.md"
    before = page.stat().st_mtime_ns
    stale = tmp_path / "options" / "bananas.md"
    stale.write_text("# bananas\n")
    (tmp_path / "options" / "vae.md").write_text("wrong\n")
    generating.write(tmp_path)
    assert not stale.exists()
    assert page.stat().st_mtime_ns == before
    assert (tmp_path / "options" / "vae.md").read_text() == page_of("vae")


def test_generating_imports_nothing_that_computes() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r})\n"
        "import generating\ngenerating.pages()\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'torchao') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def written_commands() -> Iterator[Any]:
    """Every `python -m fastdiff` line of the written pages, with the page."""
    for page in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                if line.startswith("python -m fastdiff "):
                    words = shlex.split(line, comments=True)[3:]
                    yield pytest.param(words, id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize("words", written_commands())
def test_a_command_on_a_page_can_be_read(words: list[str]) -> None:
    from fastdiff.choices.compose import compose
    from fastdiff.choices.grid import read_grid

    verb = words[0] if "=" not in words[0] and not words[0].startswith("-") else None
    assert verb is None or verb in VERBS
    if verb == "recipe":
        assert words[1] in RECIPE_VERBS
    own = ("sweep.", "compare.", "ladder.", "recipe=")
    overrides = [w for w in words if "=" in w and not w.startswith(own)]
    if verb in (None, "plan", "ladder", "compare"):
        if "-m" in words:
            assert all(cell.run for cell in read_grid(overrides).cells)
        else:
            compose(overrides)
    if verb == "ladder":
        assert ladder(words[1])
