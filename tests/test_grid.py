"""A grid's cells are what Hydra would compose of each, one by one; what can't run has a row and a reason."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

import fastdiff.environment
import fastdiff.outlook
from fastdiff.__main__ import main
from fastdiff.composition import compose
from fastdiff.config import RunConfig
from fastdiff.environment import Environment
from fastdiff.errors import UsageError
from fastdiff.grid import Cell, Grid, read_grid
from fastdiff.models.facts import ModelFacts
from fastdiff.outlook import as_data, outlooks
from fastdiff.pages.grid import counts, grid_text

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
    monkeypatch.setattr(fastdiff.environment, "this_machine", lambda: CPU)
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
            "BasicSweeper does not support sweep type : INTERVAL_SWEEP\n"
            "  instead: list the values, as in generation.steps=10,20,30",
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
    (cell,) = read_grid(["hydra.sweep.dir=x", "quant=int8"]).cells
    assert cell.overrides == ("quant=int8",)


# Outlooks ------------------------------------------------------------------------------------------


def test_what_is_known_of_a_model_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    really = fastdiff.outlook.facts_of

    def counted(run: RunConfig) -> ModelFacts | None:
        asked.append(run.choices["model"])
        return really(run)

    monkeypatch.setattr(fastdiff.outlook, "facts_of", counted)
    words = ["precision=fp32,bf16", "model=shapes,local", "generation.seed=1,2,3"]
    found = outlooks(read_grid(words))
    assert asked == ["shapes", "local"]
    assert [o.status for o in found] == [*["ok"] * 3, *["incompatible"] * 3] * 2
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


def test_a_planned_grid_leaves_nothing_behind(here: Path) -> None:
    main(["plan", "-m", "quant=none,int8", "hydra.sweep.dir=here"])
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
