"""A grid's cells are what Hydra would compose of each, one by one; what can't run has a row and a reason."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

import fastdiff.machine.environment
import fastdiff.planning.outlook
from fastdiff.__main__ import main
from fastdiff.choices.compose import compose
from fastdiff.choices.grid import Cell, Grid, read_grid
from fastdiff.choices.grid_values import every_combination
from fastdiff.config import RunConfig
from fastdiff.display.plan import counts, grid_text
from fastdiff.errors import UsageError
from fastdiff.machine.environment import Environment
from fastdiff.models.facts import ModelFacts
from fastdiff.planning.cells import as_data, planned_cells

CPU = Environment(
    python="3.12.1",
    os="Linux 6.1 x86_64",
    cpu="Some CPU",
    cpu_flags=frozenset({"avx512f", "avx512_bf16"}),
    threads=2,
    memory_bytes=16_000_000_000,
    available_memory_bytes=12_000_000_000,
    versions={"torch": "2.13.0"},
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without a GPU."""
    monkeypatch.setattr(fastdiff.machine.environment, "this_machine", lambda: CPU)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GRID = (
    "precision=fp32,bf16",
    "quant=none,int8",
    "quant.min_in_features=16,64",
    "generation.steps=3,abc",
    "generation.prompt=[a cat,a dog],'one, two'",
    "experiment=none,sdxl_tutorial/int8",
    "bench.runs=2",
)
"""Keys, lists, a text with a comma, an experiment, and cells that can't be composed."""


def by_sweeper(overrides: Sequence[str]) -> list[list[str]]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return BasicSweeper.split_arguments(parsed, None)[0]


# Cells ---------------------------------------------------------------------------------------------


def test_cells_come_in_the_order_in_which_hydra_runs_them() -> None:
    assert [list(cell.overrides) for cell in read_grid(GRID).cells] == by_sweeper(GRID)
    assert read_grid(["quant=none,int8", "generation.seed=1,2", "bench=once"]) == Grid(
        cells=tuple(
            Cell(words, compose(words))
            for quant, seed in itertools.product(("none", "int8"), (1, 2))
            for words in [(f"quant={quant}", f"generation.seed={seed}", "bench=once")]
        ),
        varied=("quant", "generation.seed"),
    )


def composed_alone(overrides: Sequence[str]) -> RunConfig | str:
    try:
        return compose(overrides, literal=False)
    except UsageError as error:
        return str(error)


def test_every_cell_is_what_its_overrides_compose_to_alone() -> None:
    cells = read_grid(GRID).cells
    assert len(cells) == 64
    for cell in cells:
        alone = composed_alone(cell.overrides)
        if cell.run is None:
            assert alone in cell.reasons
        else:
            assert alone == cell.run
    assert {cell.run is None for cell in cells} == {True, False}


def test_cells_share_no_option_that_one_of_them_could_change() -> None:
    one, other = (cell.run for cell in read_grid(["generation.seed=1,2", "quant=int8"]).cells)
    assert one is not None
    assert other is not None
    one.quant.skip_shapes.append([1, 1])  # type: ignore[attr-defined]
    assert one.quant != other.quant
    assert compose(["quant=int8"]).quant == other.quant


def test_a_cell_has_every_reason_why_it_makes_no_run() -> None:
    words = ["generation.steps=abc", "bench.runs=x", "quant=none,int8"]
    for cell in read_grid(words).cells:
        assert [reason.splitlines()[0] for reason in cell.reasons] == [
            "generation.steps can't be 'abc': it must be a whole number or null",
            "bench.runs can't be 'x': it must be a whole number",
        ]


def test_a_key_that_an_experiment_sets_and_an_option_lacks_is_a_reason() -> None:
    grid = read_grid(["experiment=sd15_guide/combined", "precision=fp32,fp16"])
    refused, allowed = grid.cells
    assert refused.reasons == (
        "experiment=sd15_guide/combined sets precision.tf32, and precision=fp32 has no such key\n"
        "  instead: leave out precision=fp32, or name the choices without the experiment",
    )
    assert allowed.run == compose(["experiment=sd15_guide/combined"])


def test_cells_that_are_the_same_run_have_one_identity() -> None:
    grid = read_grid(["quant=none,int8,none", "generation.steps=25,null"])
    same = [cell.identity for cell in grid.cells]  # 25 steps are the model's own
    assert same == [same[0], same[0], same[2], same[2], same[0], same[0]]
    assert same[0] != same[2]
    assert Cell(("generation.steps=abc",), None, ("no",)).identity is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quant=none,int9"], "quant has no option 'int9'\n  did you mean: quant=int8"),
        (["qaunt=none,int8"], "there is no key 'qaunt'\n  did you mean: quant"),
        (
            ["generation.seed=interval(1,2)"],
            "generation.seed=interval(1,2) names no values: between its ends there are as many as one likes\n"
            "  instead: list them, as in generation.seed=1,2",
        ),
        (
            ["quant=none,int8", "hydra.foo=1"],
            "Hydra itself can't read hydra.foo=1\n  instead: leave it out; of Hydra's own keys fastdiff "
            "needs hydra.run.dir=DIR, and sweeps hydra/launcher=NAME with its keys",
        ),
    ],
)
def test_what_no_cell_could_read_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_grid(overrides)
    assert str(refused.value) == message


def test_hydras_own_keys_are_none_of_a_cells() -> None:
    (cell,) = read_grid(["hydra.verbose=true", "quant=int8"]).cells
    assert cell.overrides == ("quant=int8",)


# Hydra's grammar for sweeps ------------------------------------------------------------------------

STANDS_FOR = {
    "precision=glob(*)": ["bf16", "fp16", "fp32", "tf32"],
    "precision=glob(*,exclude=fp16)": ["bf16", "fp32", "tf32"],
    "precision=glob([fp*,bf*],exclude=[fp32])": ["bf16", "fp16"],
    "precision= glob(*32)": ["fp32", "tf32"],
    "precision=choice(fp32,bf16)": ["fp32", "bf16"],
    "precision=sort(fp32,bf16)": ["bf16", "fp32"],
    "precision=sort(fp32,bf16,reverse=true)": ["fp32", "bf16"],
    "precision=tag(first,choice(fp32,bf16))": ["fp32", "bf16"],
    "precision=str(choice(fp32,bf16))": ["fp32", "bf16"],
    "generation.steps=range(1,10,3)": ["1", "4", "7"],
    "generation.steps=range(4)": ["0", "1", "2", "3"],
    "generation.steps=range(start=5,stop=1,step=-2)": ["5", "3"],
    "generation.steps=int(choice(1.0,2.0))": ["1", "2"],
    "generation.steps=sort(3,2,1)": ["1", "2", "3"],
    "generation.guidance_scale=range(1.0,3.0,0.5)": ["1.0", "1.5", "2.0", "2.5"],
    "generation.prompt=choice('a, b',\"c\")": ["a\\,\\ b", "c"],
    "compile.targets=[denoiser],[vae]": ["[denoiser]", "[vae]"],
}


@pytest.mark.parametrize("override", STANDS_FOR)
def test_every_way_to_name_values_stands_for_them(override: str) -> None:
    key = override.partition("=")[0]
    expected = [f"{key}={value}" for value in STANDS_FOR[override]]
    assert [cell.overrides for cell in read_grid([override]).cells] == [(e,) for e in expected]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("precision=shuffle(fp32,bf16)", {"fp32", "bf16"}),
        ("bench.runs=shuffle(range(1,4))", set("123")),
    ],
)
def test_shuffled_values_are_all_there(override: str, values: set[str]) -> None:
    cells = read_grid([override]).cells
    assert {cell.overrides[0].partition("=")[2] for cell in cells} == values
    assert len(cells) == len(values)


NO_VALUES = {
    "precision=glob(x*)": "precision=glob(x*) matches nothing\n  there are: bf16, fp16, fp32, tf32",
    "generation.steps=glob(*)": (
        "generation.steps=glob(*): glob(...) picks options of a slot by their names, and generation.steps has none\n"
        "  instead: list the values: generation.steps=A,B,C"
    ),
    "precision=interval(1,3)": (
        "precision=interval(1,3) names no values: between its ends there are as many as one likes\n"
        "  instead: list them, as in precision=bf16,fp16"
    ),
    "precision=shuffle(fp32,bf61)": "precision has no option 'bf61'\n  did you mean: precision=bf16",
    "precision=foo(fp32)": (
        "precision=foo(fp32) can't be read: Unknown function 'foo'\n  instead: precision=bf16,fp16"
    ),
    "precision=choice()": (
        "precision=choice() can't be read: empty choice is not legal\n  instead: precision=bf16,fp16"
    ),
    "generation.seed=json([1])": (
        "generation.seed=json([1]) can't be read: Unknown function 'json'\n"
        "  instead: what the function should give, without a function"
    ),
    "generation.seed=1,2,range(3)": (
        "generation.seed=1,2,range(3) has a range(...), choice(...) or glob(...) among its values, and stands for "
        "no list then\n  instead: it alone, or every value by itself: generation.seed=A,B,C"
    ),
    "generation.steps=range(1,10,0)": (
        "generation.steps=range(1,10,0) has no end\n"
        "  instead: generation.steps=range(1,4), which is 1,2,3, or list the values"
    ),
    "generation.steps=range(0,inf)": (
        "generation.steps=range(0,inf) has no end\n"
        "  instead: generation.steps=range(1,4), which is 1,2,3, or list the values"
    ),
    "generation.steps=range(10,1)": (
        "generation.steps=range(10,1) holds no value: a range goes from its first number to below its second\n"
        "  instead: generation.steps=range(1,4), which is 1,2,3, or list the values"
    ),
    "generation.steps=range(0,1e9)": (
        "generation.steps=range(0,1e9) stands for 1000000000 values, and a sweep takes 10000 combinations at most\n"
        "  instead: a longer step, its third number, or fewer values"
    ),
}


@pytest.mark.parametrize("override", NO_VALUES)
def test_what_stands_for_no_values_is_refused_in_words(override: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_grid([override, "bench=once"])
    assert str(refused.value) == NO_VALUES[override]


def test_a_grid_that_nobody_can_have_meant_is_refused_before_it_is_made() -> None:
    most = "generation.seed=range(100)", "bench.runs=range(1,101)"
    assert len(every_combination(most)) == 10_000
    with pytest.raises(UsageError) as refused:
        read_grid([*most, "generation.steps=range(1,10001)", "bench.warmup=range(10000)"])
    assert str(refused.value) == (
        "this grid has 1000000000000 combinations, and a sweep takes 10000 at most\n"
        "  instead: fewer values, or several sweeps"
    )


@pytest.mark.parametrize(
    ("override", "way_out"),
    [
        ("precision=glob(*)", "precision=bf16, or -m 'precision=glob(*)'"),
        ("precision=choice(fp32,bf16)", "precision=fp32, or -m 'precision=choice(fp32,bf16)'"),
        ("generation.steps=range(1,4)", "generation.steps=1, or -m 'generation.steps=range(1,4)'"),
        ("device=shuffle(cpu,cpu)", "device=cpu, or -m 'device=shuffle(cpu,cpu)'"),
        (
            "experiment=glob(sdxl_tutorial/*)",
            "experiment=sdxl_tutorial/baseline, or -m 'experiment=glob(sdxl_tutorial/*)'",
        ),
    ],
)
def test_a_single_run_takes_none_of_them(override: str, way_out: str) -> None:
    with pytest.raises(UsageError) as refused:
        compose([override])
    assert str(refused.value) == (
        f"{override} gives several values, and a run takes one\n  instead: {way_out} for a run of each"
    )


# Texts in a grid -----------------------------------------------------------------------------------

TEXTS = {
    "(masterpiece:1.2), best quality": (
        ["(masterpiece:1.2), best quality"],
        ["(masterpiece:1.2)", "best quality"],
    ),
    "a (red:1.2) cat": (["a (red:1.2) cat"], None),
    "it's a cat, on a mat": (["it's a cat, on a mat"], ["it's a cat", "on a mat"]),
    "a (cat, dog), $HOME and ${x}": (
        ["a (cat, dog), $HOME and ${x}"],
        ["a (cat, dog)", "$HOME and ${x}"],
    ),
    'the "big" (one)': (['the "big" (one)'], None),
    "(a long one: " + "many words, " * 12 + "and an end)": (
        ["(a long one: " + "many words, " * 12 + "and an end)"],
        None,
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_the_words_for_a_text_that_a_grid_cant_read_work_as_a_shell_takes_them(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is on the screen is given to a real shell, and what it makes of it to a grid."""
    assert main(["plan", "-m", f"generation.prompt={text}", "precision=fp32,bf16"]) == 2
    first, instead = re.split(r"\s+instead:\s+", capsys.readouterr().err)
    assert " ".join(first.split()) == (
        f"fastdiff: generation.prompt={' '.join(text.split())} can't be read in a sweep, where commas part values "
        "and brackets mean something"
    )
    wordings = re.split(
        r",\s+which\s+is\s+one\s+text;\s+or\s+|\s+for\s+a\s+run\s+of\s+each", instead.rstrip()
    )
    wordings = [each for each in wordings if each]
    expected = [given for given in TEXTS[text] if given]
    assert len(wordings) == len(expected)
    for wording, prompts in zip(wordings, expected, strict=True):
        script = f"{sys.executable} -c 'import sys; print(*sys.argv[1:], sep=chr(0))' {wording}"
        typed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        words = typed.stdout.removesuffix("\n").split("\0")
        cells = read_grid([*words, "precision=fp32,bf16"]).cells
        assert [cell.run and cell.run.generation.prompt for cell in cells] == [
            prompt for prompt in prompts for _ in range(2)
        ]


# Outlooks ------------------------------------------------------------------------------------------


def test_what_is_known_of_a_model_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    really = fastdiff.planning.outlook.facts_of

    def counted(run: RunConfig) -> ModelFacts | None:
        asked.append(run.choices["model"])
        return really(run)

    monkeypatch.setattr(fastdiff.planning.outlook, "facts_of", counted)
    words = ["precision=fp32,bf16", "model=shapes,local", "generation.seed=1,2,3"]
    found = planned_cells(read_grid(words))
    assert asked == ["shapes", "local"]
    assert [bool(cell.problems) for cell in found] == [*[False] * 3, *[True] * 3] * 2
    assert found[3].problems == found[4].problems
    assert found[3].to_dict()["problems"] == [
        {
            "choice": None,
            "reason": "model=local needs a folder",
            "instead": "model.path=DIR, a folder that pipeline.save_pretrained(DIR) wrote",
            "source": None,
        }
    ]


# The command ---------------------------------------------------------------------------------------


def test_plan_m_prints_a_row_for_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    words = "attention=math,sdpa qkv=separate,fused precision=fp32,fp32 bench=once"
    assert main(["plan", "-m", *words.split()]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "fastdiff  plan of 8 combinations, each with precision=fp32 bench=once",
        "",
        "     attention  qkv",
        "  1  math       separate  ok",
        "  2  math       separate  ok, the same run as 1",
        "  3  math       fused     incompatible: attention=math can't be combined with",
        "                          qkv=fused: fusing replaces the attention processor",
        "  4  math       fused     incompatible, the same run as 3",
        "  5  sdpa       separate  ok",
        "  6  sdpa       separate  ok, the same run as 5",
        "  7  sdpa       fused     ok",
        "  8  sdpa       fused     ok, the same run as 7",
        "",
        "8 combinations: 6 ok, 2 incompatible; 4 are the same run as another",
    ]


INT8_WARNS = (
    "  [1] quant=int8: without compile int8 is usually slower than no quantization,",
    "      on a GPU by far; compile=regional is the cheapest",
)


def test_a_cell_whose_option_lacks_a_key_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--multirun", "quant=none,int8", "quant.swap_conv=false"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "     quant",
        "  1  none   incompatible: quant=none has no key 'swap_conv'",
        "  2  int8   ok [1]",
        "",
        *INT8_WARNS,
        "",
        "2 combinations: 1 ok, 1 incompatible",
    ]


def test_no_cell_that_can_run_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "attention=math", "qkv=fused"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "fastdiff  plan of 1 combination, each with attention=math qkv=fused",
        "",
        "  1  incompatible: attention=math can't be combined with qkv=fused: fusing",
        "     replaces the attention processor",
        "",
        "1 combination: 1 incompatible",
    ]


def test_json_has_every_problem_of_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    words = "attention=sdpa,math qkv=fused generation.height=64,63"
    assert main(["plan", "-m", "--json", *words.split()]) == 0
    grid = json.loads(capsys.readouterr().out)
    assert {key: grid[key] for key in set(grid) - {"cells"}} == {
        "ok": 1,
        "incompatible": 3,
        "repeated": 0,
    }
    rows = grid["cells"]
    assert [set(row) for row in rows] == [
        {"overrides", "status", "problems", "notices", "same_as"}
    ] * 4
    assert rows[0] == {
        "overrides": ["attention=sdpa", "qkv=fused", "generation.height=64"],
        "status": "ok",
        "problems": [],
        "notices": [],
        "same_as": None,
    }
    assert [problem["choice"] for problem in rows[3]["problems"]] == [
        "generation.height=63",
        "attention=math",
    ]
    assert rows[3]["problems"][1]["instead"] == "qkv=separate, or attention=sdpa_math"


@pytest.mark.parametrize(
    "launcher", [["hydra/launcher=joblib"], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]]
)
def test_a_planned_grid_leaves_nothing_behind(here: Path, launcher: list[str]) -> None:
    assert main(["plan", "-m", "quant=none,int8", *launcher]) == 0
    assert list(here.iterdir()) == []


# The page ------------------------------------------------------------------------------------------


def row(
    *overrides: str,
    problems: Sequence[Any] = (),
    notices: Sequence[Any] = (),
    same_as: int | None = None,
) -> Any:
    status = "incompatible" if problems else "ok"
    return {
        "overrides": list(overrides),
        "status": status,
        "problems": problems,
        "notices": notices,
        "same_as": same_as,
    }


def problem(choice: str | None, reason: str) -> dict[str, Any]:
    return {"choice": choice, "reason": reason, "instead": "", "source": None}


def test_a_wide_row_has_its_verdict_below_and_fits_80_columns() -> None:
    prompts = [f"generation.prompt='a long prompt, number {n}, of many words'" for n in range(9)]
    paths = ["model.path=/somewhere/far/away/in/a/folder", "model.path=x"]
    said = [problem(None, "no such folder " * 9), problem("a=b", "c")]
    rows = [row("model=local", p, q, problems=said) for p in paths for q in prompts]
    text = grid_text(rows, ["model.path", "generation.prompt"])
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[2:6] == [
        "      model.path                generation.prompt",
        "   1  /somewhere/far/away/i...  'a long prompt, numbe...",
        "      incompatible: no such folder no such folder no such folder no such folder",
        "      no such folder no such folder no such folder no such folder no such folder",
    ]
    assert "(and 1 more)" in text


def test_equal_notices_stand_once_below_and_equal_reasons_once_beside() -> None:
    first, second = {"choice": "a=1", "text": "slow " * 20}, {"choice": "b=1", "text": "young"}
    broken = [problem("FASTDIFF_CACHE_DIR=x", "x is a file")]
    rows = [
        row("n=1", notices=[first]),
        row("n=2", notices=[second, first]),
        row("n=3", problems=broken),
        row("n=4", problems=broken),
        row("n=5", problems=[*broken, problem("b=1", "is odd")]),
        row("n=6", notices=[first], same_as=0),
    ]
    assert grid_text(rows, ["n"]).splitlines()[2:] == [
        "     n",
        "  1  1  ok [1]",
        "  2  2  ok [1] [2]",
        "  3  3  incompatible: FASTDIFF_CACHE_DIR=x x is a file",
        "  4  4  incompatible, for the same reason as 3",
        "  5  5  incompatible: FASTDIFF_CACHE_DIR=x x is a file (and 1 more)",
        "  6  6  ok, the same run as 1 [1]",
        "",
        "  [1] a=1: slow slow slow slow slow slow slow slow slow slow slow slow slow slow",
        "      slow slow slow slow slow slow",
        "  [2] b=1: young",
        "",
        "6 combinations: 3 ok, 3 incompatible; 1 is the same run as another",
    ]


def test_what_a_grid_comes_to_as_data() -> None:
    rows = [row("a=1"), row("a=1", same_as=0), row("a=2", problems=[problem("a=2", "no")])]
    assert as_data(rows) == {"cells": rows, "ok": 2, "incompatible": 1, "repeated": 1}
    assert as_data([]) == {"cells": [], "ok": 0, "incompatible": 0, "repeated": 0}


def test_more_choices_than_a_line_holds_go_on_below() -> None:
    keys = [f"compile.some_rather_long_key_{n}" for n in range(6)]
    rows = [row(*(f"{key}={n}" for key in keys)) for n in range(2)]
    text = grid_text(rows, keys)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-4:] == [
        "  2  1  1  1  1  1  1",
        "     ok",
        "",
        "2 combinations: 2 ok",
    ]


def test_one_that_is_the_same_is_counted_in_the_singular() -> None:
    assert counts([row("a=1"), row("a=1", same_as=0)]) == (
        "2 combinations: 2 ok; 1 is the same run as another"
    )
