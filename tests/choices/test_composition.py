"""Overrides to a run and back: every option, every text, and what other ways in there are."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from by_hydra import composed_by_hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import fastdiff.choices.compose
from fastdiff.__main__ import main
from fastdiff.choices.compose import compose, restore, with_option
from fastdiff.choices.experiments import experiments
from fastdiff.choices.grid import read_grid
from fastdiff.choices.options import every_key, is_literal, keys_of, option_files, schemas
from fastdiff.choices.overrides import quote_literal
from fastdiff.config import SLOTS, Generation, RunConfig, fingerprint
from fastdiff.errors import UsageError, nearest
from fastdiff.machine.files import write_json
from fastdiff.models import MODELS
from fastdiff.models.sources import Shapes

EVERY_OPTION = [f"{slot}={name}" for slot, files in option_files().items() for name in files]


# Options -------------------------------------------------------------------------------------------


def test_the_defaults_are_one_option_per_slot() -> None:
    run = compose([])
    assert tuple(run.choices) == (*SLOTS, "experiment")
    assert run.choices | {"bench": "quick"} == {
        "model": "shapes",
        "precision": "fp32",
        "vae": "default",
        "scheduler": "default",
        "lora": "none",
        "attention": "sdpa",
        "qkv": "separate",
        "memory_format": "contiguous",
        "quant": "none",
        "cache": "none",
        "memory": "none",
        "compile": "none",
        "allocator": "default",
        "experiment": "none",
        "bench": "quick",
        "quality": "reference",
    }
    assert (run.device, run.allow_no_effect) == ("auto", False)


@pytest.mark.parametrize("choice", EVERY_OPTION)
def test_every_option_says_in_its_first_line_what_it_is(choice: str) -> None:
    slot, name = choice.split("=")
    file = option_files()[slot][name]
    assert len(file.comment) > 10
    assert file.schema is not None


@pytest.mark.parametrize("choice", EVERY_OPTION)
def test_every_key_of_a_file_is_a_key_of_its_schema(choice: str) -> None:
    slot, name = choice.split("=")
    file = option_files()[slot][name]
    values = OmegaConf.to_container(OmegaConf.load(file.path))
    assert isinstance(values, dict)
    assert file.schema is not None
    assert set(values) - {"defaults"} <= set(keys_of(file.schema))


@functools.cache
def nth_of_each_slot_by_hydra(place: int) -> RunConfig:
    """The options at this place in their slots' lists, composed together: Hydra is slow, and slots don't touch each other."""
    names = {slot: list(files) for slot, files in option_files().items()}
    return composed_by_hydra([f"{slot}={of[place % len(of)]}" for slot, of in names.items()])


@pytest.mark.parametrize("choice", EVERY_OPTION)
def test_reading_an_options_file_alone_gives_what_hydra_composes(choice: str) -> None:
    slot, name = choice.split("=")
    composed = nth_of_each_slot_by_hydra(list(option_files()[slot]).index(name))
    assert composed.choices[slot] == name
    assert option_files()[slot][name].option() == getattr(composed, slot)


@pytest.mark.parametrize("choice", EVERY_OPTION)
def test_a_run_that_was_written_down_is_restored(choice: str, tmp_path: Any) -> None:
    run = compose([choice])
    write_json(tmp_path / "run.json", run.to_dict())
    restored = restore(json.loads((tmp_path / "run.json").read_text()))
    assert restored == run
    assert restored.to_dict() == run.to_dict()
    assert fingerprint(restored.to_dict()) == fingerprint(run.to_dict())


def test_what_is_restored_has_the_keys_that_were_changed() -> None:
    overrides = [
        "quant=int8",
        "quant.min_in_features=64",
        "quant.skip_shapes=[[1, 2]]",
        "compile=max_autotune",
        "compile.targets=[denoiser]",
        "compile.freezing=true",
        "precision=bf16",
        "precision.tf32=true",
        "generation.prompt=[a cat, a dog]",
        "generation.seed=7",
        "bench.runs=2",
        "device=cpu",
        "allow_no_effect=true",
    ]
    run = compose(overrides)
    assert restore(run.to_dict()) == run


def test_a_written_run_is_plain_data_also_where_a_key_is_an_enumeration() -> None:
    run = compose(["quant=fp8", "quant.granularity=per_tensor"])
    text = json.dumps(run.to_dict(), allow_nan=False)
    assert json.loads(text)["quant"]["granularity"] == "per_tensor"


def test_with_option_changes_one_slot_and_not_the_run_it_came_from() -> None:
    run = compose([])
    other = with_option(run, "quant", "int8")
    assert (run.choices["quant"], other.choices["quant"]) == ("none", "int8")
    assert other == compose(["quant=int8"])


def test_the_last_override_of_a_slot_holds() -> None:
    assert compose(["quant=int8", "quant=fp8"]).choices["quant"] == "fp8"


def test_schemas_cover_every_slot() -> None:
    assert set(schemas()) == set(SLOTS)
    assert schemas()["model"] == MODELS


# One way, held to Hydra's ---------------------------------------------------------------------------

TOGETHER = (
    *([choice] for choice in EVERY_OPTION),
    *([f"experiment={name}"] for name in experiments()),
    *(
        [f"experiment={name}", "model=sdxl", "model.student.id=a/b", "generation.steps=3"]
        for name in experiments()
    ),
    ["experiment=sdxl_tutorial/int8", "experiment=none"],
    ["experiment=sdxl_tutorial/int8", "quant=fp8", "quant.granularity=per_tensor"],
    ["experiment=none", "experiment=guide/fp16", "precision=fp32"],
    ["quant=int8", "quant=fp8", "quant= int8", "quant.skip_shapes=[[1,2]]"],
    ["quant=int8", "quant.min_in_features=1", "quant.min_in_features=2"],
    ["model=sdxl", "model.student={id: c/d}", "model.generation.steps=3", "model.role=student"],
    ["generation.prompt=[a cat, 'a, dog']", "generation.seed=7", "generation.guidance_scale=1e-1"],
    ['generation.prompt="it\'s"', "generation.negative_prompt=null", "generation.steps=null"],
    ["device=1", "allow_no_effect=yes", "bench.runs=2", "quality.reference='a b.png'"],
    ["compile=max_autotune", "compile.freezing=true", "compile.targets=[denoiser, vae]"],
)


@pytest.mark.parametrize("overrides", TOGETHER, ids=" ".join)
def test_a_run_is_what_hydra_composes(overrides: list[str]) -> None:
    ours, theirs = compose(overrides, literal=False), composed_by_hydra(overrides)
    ours.generation = theirs.generation = resolved(ours, theirs)
    assert repr(ours) == repr(theirs)
    assert list(ours.choices.items()) == list(theirs.choices.items())


def resolved(ours: RunConfig, theirs: RunConfig) -> Generation:
    """Theirs with the model's values, as ours has them, where they left null; nothing else may differ."""
    for key, value in vars(theirs.generation).items():
        if value is None:
            value = getattr(ours.model.generation, key)  # type: ignore[attr-defined]
        assert getattr(ours.generation, key) == value
    return ours.generation


def test_what_is_composed_twice_shares_nothing() -> None:
    one = compose(["quant=int8", "generation.prompt=[a cat]"])
    one.quant.skip_shapes.clear()  # type: ignore[attr-defined]
    one.generation.prompt.clear()
    assert compose(["quant=int8", "generation.prompt=[a cat]"]).generation.prompt == ["a cat"]


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What was composed, time by time; Hydra composes nothing."""
    counted: list[Sequence[str]] = []
    once = fastdiff.choices.compose._composed

    def count(words: Sequence[str], brought: Any) -> RunConfig:
        counted.append(words)
        return once(words, brought)

    def searched(*_: object) -> None:
        raise AssertionError("Hydra was asked")

    monkeypatch.setattr("fastdiff.choices.compose._composed", count)
    monkeypatch.setattr("fastdiff.choices.compose.hydras_config", searched)
    return counted


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Where runs would begin that are typed in an empty folder; their workers only restore what they are given."""
    begun: list[str] = []

    def worker(plan: Any, overrides: list[str], folder: Path, *_: Any) -> dict[str, str]:
        data = plan.setting.run.to_dict()
        assert restore(json.loads(json.dumps(data))).to_dict() == data
        assert folder.is_dir()
        begun.append(str(folder))
        return {"status": "interrupted"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastdiff.runs.single.execute", worker)
    monkeypatch.setattr("fastdiff.display.report.summary", lambda *_: "")
    return begun


def test_a_run_is_composed_once_and_its_worker_composes_nothing(
    compositions: list[Sequence[str]], folders: list[str]
) -> None:
    words = ["device=cpu", "quant=int8", "compile=default", "generation.steps=3"]
    assert main([*words, "hydra.run.dir=here"]) == 130
    assert (compositions, folders) == ([words], ["here"])


FOLDERS = {
    "plain/a b": "plain/a b",
    "'quoted'": "quoted",
    "out/${hydra:runtime.choices.precision}": "out/bf16",
    "${generation.steps}_${hydra.job.name}_${now:%%}": "3_fastdiff_%",
}


@pytest.mark.parametrize("named", FOLDERS)
def test_a_runs_folder_is_where_hydra_would_make_it(named: str, folders: list[str]) -> None:
    words = ["device=cpu", "precision=bf16", "generation.steps=3"]
    assert main([*words, f"hydra.run.dir={named}"]) == 130
    assert folders == [FOLDERS[named]]


def test_a_cell_of_a_grid_is_composed_once(compositions: list[Sequence[str]]) -> None:
    grid = ["quant=none,int8", "generation.steps=3,abc"]
    assert [cell.run is None for cell in read_grid(grid).cells] == [False, True] * 2
    assert len(compositions) == 4


def test_a_sweep_composes_each_cell_once_and_its_jobs_compose_nothing(
    compositions: list[Sequence[str]], folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.runs.sweep.sweep import plan_sweep

    ran: list[int] = []

    def execute(plan: Any, words: list[str], *_: Any) -> dict[str, Any]:
        ran.append(plan.setting.run.generation.seed)
        raise UsageError("seen enough")

    monkeypatch.setattr("fastdiff.runs.sweep.job.execute", execute)
    monkeypatch.setattr("fastdiff.runs.sweep.job.can_fork", lambda plan: False)
    sweep = plan_sweep(["device=cpu", "quality=none", "generation.seed=1,2", "quant=none,fp8"])
    assert len(compositions) == 4
    job = sweep._job(frozenset())
    sweep.folder.path.mkdir(parents=True)
    sweep.folder.open_attempt(job.attempt)
    for task in job.tasks:
        assert job.do(pickle.loads(pickle.dumps(task))) == {"cell": task.name}
    assert all(entry.command for entry in sweep.cells)
    assert (ran, len(compositions)) == ([1, 2], 4)


FROM_OTHERS = {
    ("generation.steps=${bench.runs}",): ("generation", "steps", 5),
    ("generation.seed=3", "bench.runs=${generation.seed}"): ("bench", "runs", 3),
    ("generation.prompt='${device}, ${generation.seed}'",): ("generation", "prompt", "auto, 0"),
    ("quant=int8", "quant.min_in_features=${quant.max_in_features}"): None,
}


@pytest.mark.parametrize("words", FROM_OTHERS)
def test_interpolations_are_what_hydra_makes_of_them(words: tuple[str, ...]) -> None:
    expected = FROM_OTHERS[words]
    if expected is None:
        with pytest.raises(UsageError, match=r"Interpolation key .* not found"):
            compose(words, literal=False)
        return
    root, key, value = expected
    for run in (compose(words, literal=False), composed_by_hydra(words)):
        assert getattr(getattr(run, root), key) == value


# What is drawn -------------------------------------------------------------------------------------


def test_null_takes_the_models_own_values() -> None:
    own = Shapes().generation
    shapes = compose([])
    assert shapes.generation.steps == 25
    assert (shapes.generation.height, shapes.generation.width) == (64, 64)
    assert shapes.generation.negative_prompt == own.negative_prompt


def test_what_is_given_wins_over_the_models_own_values_also_when_it_is_zero_or_empty() -> None:
    run = compose(
        ["generation.guidance_scale=0", "generation.negative_prompt=", "generation.steps=1"]
    )
    assert run.generation.guidance_scale == 0
    assert run.generation.negative_prompt == ""
    assert run.generation.steps == 1


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a cat", ["a cat"]), (["a cat", "a dog"], ["a cat", "a dog"]), ([], []), (None, [])],
)
def test_prompts_are_a_list_in_every_form(prompt: Any, prompts: list[str]) -> None:
    assert Generation(prompt=prompt).prompts == prompts


# Literal texts -------------------------------------------------------------------------------------

signs = st.text(alphabet="\\\"'${}a ,[]()=:\n%", max_size=14)


def as_hydra_reads(override: str) -> str:
    value = OverridesParser.create().parse_override(override).value()
    content = OmegaConf.to_container(OmegaConf.create({"text": str(value)}), resolve=True)
    assert isinstance(content, dict)
    text = content["text"]
    assert isinstance(text, str)
    return text


@settings(max_examples=400, deadline=None)
@given(
    text=st.one_of(signs, st.text(max_size=30)),
    key=st.sampled_from([*filter(is_literal, every_key())]),
)
def test_any_text_survives_hydras_grammar(text: str, key: str) -> None:
    quoted = quote_literal(f"{key}={text}")
    if quoted == f"{key}={text}":  # quoted by the user, null, or a list of prompts
        assert text == "null" or (text[0], text[-1]) in {("'", "'"), ('"', '"'), ("[", "]")}
        return
    assert as_hydra_reads(quoted) == text


@pytest.mark.parametrize(
    "override",
    [
        "generation.prompt=null",
        "generation.prompt='a, cat'",
        'generation.prompt="a, cat"',
        "generation.prompt=[a cat, a dog]",
        "generation.steps=3",
        "quant=int8",
        "no assignment",
    ],
)
def test_what_means_something_already_is_not_quoted(override: str) -> None:
    assert quote_literal(override) == override


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=20).filter(str.strip))
def test_quoting_is_not_repeated(text: str) -> None:
    once = quote_literal(f"model.path={text}")
    if "\\" not in once:
        assert quote_literal(once) == once


# Suggestions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "near"), [("shaps", "shapes"), ("hbu", "hub"), ("xyzzy", None), ("", None)]
)
def test_the_nearest_word(word: str, near: str | None) -> None:
    assert nearest(word, MODELS) == near


@pytest.mark.parametrize("slot", SLOTS)
def test_one_wrong_letter_in_any_option_is_recognized(slot: str) -> None:
    for name in option_files()[slot]:
        if len(name) > 4:
            with pytest.raises(UsageError, match=f"did you mean: {slot}="):
                compose([f"{slot}={name[:-1]}q"])


@pytest.mark.parametrize("slot", SLOTS)
def test_one_missing_letter_in_any_slot_is_recognized(slot: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean: {slot}$"):
        compose([f"{slot[:-1]}=x"])


def test_hydras_own_keys_are_let_through() -> None:
    assert isinstance(compose(["hydra.run.dir=x", "hydra/job_logging=default"]), RunConfig)


def test_every_key_of_every_option_can_be_overridden_as_far_as_names_go() -> None:
    run = compose(["model=sdxl", "model.student.id=a/b", "model.generation.steps=3"])
    assert run.generation.steps == 3
    assert run.model.student.id == "a/b"  # type: ignore[attr-defined]


def test_composing_leaves_nothing_behind_for_the_next_time() -> None:
    with pytest.raises(UsageError):
        compose(["generation.steps=abc"])
    assert compose([]) == compose([])
