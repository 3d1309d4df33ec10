"""A planned grid's cells: names, single runs, identities."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from fastdiff.choices.compose import compose
from fastdiff.choices.grid import read_grid
from fastdiff.machine.environment import this_machine
from fastdiff.planning.cells import PlannedCell, as_single_run, grid_identity, planned_cells


def entries(*words: str, elsewhere: bool = False) -> list[PlannedCell]:
    grid = read_grid(["model=shapes", "device=cpu", "quality=none", *words])
    return planned_cells(grid, elsewhere)


def test_a_name_tells_the_values_that_vary_and_what_they_resolve_to() -> None:
    found = entries("generation.seed=1,2", "precision=fp32,bf16", "generation.steps=4")
    assert [cell.name.rpartition("-")[0] for cell in found] == [
        *("1-fp32", "1-bf16", "2-fp32", "2-bf16"),
    ]
    digits = [cell.name.rpartition("-")[2] for cell in found]
    assert len(set(digits)) == 4
    assert all(len(d) == 8 for d in digits)
    assert found[0].values == {"generation.seed": "1", "precision": "fp32"}
    (only,) = entries("generation.seed=1")
    assert only.name.startswith("run-")


def test_a_name_is_a_folders_name_whatever_was_typed() -> None:
    prompts = ("'../../a b, c'", "'/'", "'" + "long " * 40 + "'", '"ü; rm -rf *"')
    found = entries("generation.prompt=" + ",".join(prompts))
    assert len({cell.name for cell in found}) == 4
    for cell in found:
        assert "/" not in cell.name
        assert ".." not in cell.name
        assert cell.name == cell.name.strip("-_. ")
        assert len(cell.name) <= 69
        assert cell.name.isascii()


PROMPTS = [
    ('generation.prompt="a, b",c', ["a, b", "c"]),
    ("generation.prompt='a \"b\" c','d'", ['a "b" c', "d"]),
    ("generation.prompt=\"it's\",'x=y'", ["it's", "x=y"]),
    ("generation.prompt='[a]','{b}'", ["[a]", "{b}"]),
    ("generation.prompt=a red circle,'null'", ["a red circle", "null"]),
    (r"generation.prompt='  spaces  ','a \ b'", ["  spaces  ", r"a \ b"]),
]


@pytest.mark.parametrize(("words", "prompts"), PROMPTS)
def test_the_command_of_a_cell_repeats_it_alone(words: str, prompts: list[str]) -> None:
    found = entries(words)
    assert [cell.run.generation.prompt for cell in found if cell.run] == prompts
    for cell in found:
        assert cell.run is not None
        python, minus_m, fastdiff, *typed = shlex.split(cell.command)
        assert (python, minus_m, fastdiff) == ("python", "-m", "fastdiff")
        assert compose(typed).to_dict() == cell.run.to_dict()


def test_texts_of_a_single_run_are_typed_as_they_stand() -> None:
    first, second = entries('generation.prompt="a, b",c')
    assert as_single_run(first.typed)[-1] == "generation.prompt=a, b"
    assert as_single_run(second.typed)[-1] == "generation.prompt=c"
    assert first.command.endswith("quality=none 'generation.prompt=a, b'")


def test_a_grid_is_itself_in_any_order_and_another_with_another_cell() -> None:
    one = grid_identity(entries("generation.seed=1,2", "precision=fp32,bf16"))
    assert one == grid_identity(entries("precision=bf16,fp32", "generation.seed=2,1"))
    assert one != grid_identity(entries("generation.seed=1,3", "precision=fp32,bf16"))


def test_cells_that_are_the_same_run_name_the_first() -> None:
    first, second = entries("generation.steps=25,null")
    assert first.same_as is None
    assert second.same_as is first
    assert (first.to_run, second.to_run) == (True, False)


def test_a_cell_that_cant_be_composed_has_a_row_and_the_line_that_was_typed() -> None:
    bad, good = entries("quant=none,int8", "quant.swap_conv=false")
    assert (bad.possible, good.possible) == (False, True)
    assert bad.run is None
    assert bad.command == (
        "python -m fastdiff model=shapes device=cpu quality=none quant=none quant.swap_conv=False"
    )
    assert bad.name != good.name


def test_on_another_machine_only_that_machine_can_refuse_for_itself() -> None:
    words = ("attention=sdpa,math", "qkv=fused")
    assert [e.possible for e in entries(*words)] == [True, False]
    assert [e.possible for e in entries(*words, elsewhere=True)] == [True, False]


@pytest.mark.parametrize("word", ["device=cuda", "precision=tf32", "precision.tf32=true"])
def test_what_wants_a_gpu_can_run_where_there_is_one(word: str) -> None:
    words = (word, *(["precision=bf16"] if "." in word else []))
    (here,) = entries(*words)
    (there,) = entries(*words, elsewhere=True)
    assert (here.possible, there.possible) == (False, True)


@pytest.mark.parametrize(
    ("words", "wants"),
    [
        (["device=cuda"], True),
        (["device=auto", "quant=fp8", "precision=bf16"], True),
        (["device=auto", "precision=tf32"], True),
        (["device=auto"], False),
        (["device=cpu"], False),
        (["device=auto", "quant=fp8", "precision=bf16", "attention=math", "qkv=fused"], False),
    ],
)
def test_a_cell_that_only_a_gpu_can_run_wants_one(
    words: list[str], wants: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(this_machine(), gpus=(), torch_cuda=None, gpu_unusable=None)
    monkeypatch.setattr("fastdiff.machine.environment.this_machine", lambda: here)
    (cell,) = entries(*words, elsewhere=True)
    assert cell.wants_gpu is wants
