"""Every number that can be set has a most, found by going through all keys; beyond it words are said, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from fastdiff.__main__ import main
from fastdiff.choices.compose import compose
from fastdiff.choices.keys import keys_of
from fastdiff.choices.options import every_key, option_files
from fastdiff.choices.recipe.checking import problems_of
from fastdiff.choices.recipe.format import FORMAT
from fastdiff.choices.recipe.reading import parse
from fastdiff.config import LARGEST_INT, LARGEST_SEED, Generation
from fastdiff.errors import PlanError, Problem, UsageError
from fastdiff.machine.environment import this_machine
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.sources import Shapes
from fastdiff.planning.plan import make_plan
from fastdiff.runs.compare.how import read_how as read_compare
from fastdiff.runs.ladder.climb import How as Ladder
from fastdiff.runs.sweep.how import read_how as read_sweep

SHAPES = Shapes().facts()


def numeric() -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every numeric key with an option that has it, and its type."""
    for slot, files in option_files().items():
        for name, file in files.items():
            assert file.schema is not None
            for key in keys_of(file.schema).values():
                if _is_numeric(key.type):
                    yield (f"{slot}={name}",), f"{slot}.{key.name}", key.type
    for key in keys_of(Generation).values():
        if _is_numeric(key.type):
            yield (), f"generation.{key.name}", key.type


def _is_numeric(kind: Any) -> bool:
    return kind in (int, float) or any(_is_numeric(each) for each in get_args(kind))


NUMERIC = {key: (choices, kind) for choices, key, kind in reversed([*numeric()])}


def typed(key: str, value: str) -> str:
    kind = str(NUMERIC[key][1])
    lists = kind.count("list[")
    return f"{key}={'[' * lists}{value}{']' * lists}"


def problems(*overrides: str, facts: ModelFacts | None = SHAPES) -> list[Problem]:
    try:
        make_plan(compose(["device=cpu", *overrides]), this_machine(), facts)
    except PlanError as error:
        return list(error.problems)
    return []


def test_the_keys_are_found() -> None:
    assert len(NUMERIC) > 25
    assert {"generation.steps", "bench.runs", "quant.skip_shapes", "lora.scale"} <= set(NUMERIC)


@pytest.mark.parametrize("value", ["1" + "0" * 20, "1" + "0" * 200, "-1" + "0" * 20])
@pytest.mark.parametrize("key", [key for key, (_, kind) in NUMERIC.items() if "int" in str(kind)])
def test_no_whole_number_is_without_bounds(key: str, value: str) -> None:
    drawn = key.removeprefix("model.") if key.startswith("model.generation.") else key
    found = problems(*NUMERIC[key][0], typed(key, value))
    (mine,) = {
        p.choice.partition("=")[0]: p for p in found if p.choice.startswith(f"{drawn}=")
    }.values()
    assert mine.reason
    assert mine.instead


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39", "-1e39"])
@pytest.mark.parametrize("key", [key for key, (_, kind) in NUMERIC.items() if "float" in str(kind)])
def test_no_number_is_without_end(key: str, value: str) -> None:
    drawn = key.removeprefix("model.") if key.startswith("model.generation.") else key
    found = problems(*NUMERIC[key][0], typed(key, value))
    assert any(p.choice.startswith(f"{drawn}=") for p in found)


@pytest.mark.parametrize("digits", [301, 5000])
@pytest.mark.parametrize("key", NUMERIC)
def test_a_number_of_very_many_digits_is_refused_as_it_is_read(key: str, digits: int) -> None:
    """Python itself reads no more than 4300, and a float has 309 at most."""
    message = (
        f"{key} holds a number of {digits} digits, and none takes more than 300\n"
        "  instead: a smaller number"
    )
    with pytest.raises(UsageError) as refused:
        compose([*NUMERIC[key][0], typed(key, "9" * digits)])
    assert str(refused.value) == message


def test_a_prompt_may_hold_as_many_digits_as_it_likes() -> None:
    assert compose([f"generation.prompt={'9' * 5000}"]).generation.prompt == "9" * 5000


SAID = {
    "generation.steps=99999999999999999999": (
        "must be at most 1000: the model knows so many noise levels",
        "generation.steps=1000",
    ),
    "generation.steps=1001": (
        "must be at most 1000: the model knows so many noise levels",
        "generation.steps=1000",
    ),
    "generation.images_per_prompt=1001": (
        "must be at most 1000: they are drawn as one batch",
        "generation.images_per_prompt=1000",
    ),
    "generation.height=16392": (
        "must be at most 16384: no model draws such a picture",
        "generation.height=16384",
    ),
    "bench.runs=100001": (
        "must be at most 100000: more say nothing more of a median",
        "bench.runs=100000",
    ),
    "quality.captions=10001": (
        "must be at most 10000: more say nothing more of a score",
        "quality.captions=10000",
    ),
    "generation.guidance_scale=1e39": (
        "must be within 3.4e+38, the largest that fp32 holds",
        "generation.guidance_scale=1",
    ),
}


@pytest.mark.parametrize("override", SAID)
def test_the_words_and_the_way_out(override: str) -> None:
    (problem,) = problems(override)
    assert (problem.choice, problem.reason, problem.instead) == (
        override.replace("1e39", "1e+39"),
        *SAID[override],
    )
    assert problems(problem.instead) == []


def test_a_number_in_a_list_is_told_as_such() -> None:
    (problem,) = problems("quant=int8", f"quant.swap_channels=[{LARGEST_INT + 1}]")
    assert problem.choice == f"quant.swap_channels=[...{LARGEST_INT + 1}...]"
    assert problem.reason == f"must be at most {LARGEST_INT}: the largest that 32 bits hold"
    assert problem.instead == "a smaller number there"


def test_a_long_number_is_shown_by_its_beginning() -> None:
    (problem,) = problems("generation.steps=" + "1" * 200)
    assert problem.choice == "generation.steps=11111111111111111111... (200 digits)"


def test_noise_levels_are_the_models_own() -> None:
    def of(**config: object) -> ModelFacts:
        own = Component("scheduler", "diffusers", "DDIMScheduler", 0, 0, config)
        return ModelFacts(SHAPES.pipeline, {**SHAPES.components, "scheduler": own})

    assert problems("generation.steps=4000", facts=of(num_train_timesteps=4000)) == []
    (problem,) = problems("generation.steps=4001", facts=of(num_train_timesteps=4000))
    assert problem.reason == "must be at most 4000: the model knows so many noise levels"
    for unknown in (of(), None):
        assert problems("generation.steps=10000", facts=unknown) == []
        (problem,) = problems("generation.steps=10001", facts=unknown)
        assert problem.reason == "must be at most 10000: no schedule has so many noise levels"


def test_a_checks_own_words_come_first_and_once() -> None:
    found = problems("generation.guidance_scale=nan", "generation.steps=-99999999999999999999")
    said = sorted((p.choice.partition("=")[0], p.reason) for p in found)
    assert said == [
        ("generation.guidance_scale", "is not a finite number"),
        ("generation.steps", f"must be at least {-LARGEST_INT}, the least that 32 bits hold"),
    ]
    assert [(p.reason, p.instead) for p in problems("generation.steps=-1")] == [
        ("must be at least 1", "generation.steps=1")
    ]


def test_seeds_are_as_large_as_a_generator_takes() -> None:
    assert problems(f"generation.seed={LARGEST_SEED}") == []
    (problem,) = problems(f"generation.seed={LARGEST_SEED + 1}")
    assert problem.instead == f"generation.seed={LARGEST_SEED}"


@pytest.mark.parametrize(
    ("read", "word", "message"),
    [
        (
            read_sweep,
            "sweep.timeout_s=1e308",
            "sweep.timeout_s=1e+308 must be at most 1000000000: that is thirty years\n"
            "  instead: sweep.timeout_s=1000000000",
        ),
        (
            read_sweep,
            "sweep.memory_limit_gb=1e300",
            "sweep.memory_limit_gb=1e+300 must be at most 1000000000: no machine has so much\n"
            "  instead: sweep.memory_limit_gb=1000000000",
        ),
        (
            read_compare,
            f"compare.pairs={'9' * 5000}",
            "compare.pairs=(a number of more than 3000 digits) must be at most 100000: more say nothing more of a "
            "ratio\n  instead: compare.pairs=100000",
        ),
        (
            Ladder.read,
            "ladder.rounds=99999999999999999999",
            "ladder.rounds=99999999999999999999 must be at most 10000: more say nothing more of a median\n"
            "  instead: ladder.rounds=10000",
        ),
        (
            Ladder.read,
            "ladder.limit_s=1e308",
            "ladder.limit_s=1e+308 must be at most 1000000000: that is thirty years\n"
            "  instead: ladder.limit_s=1000000000",
        ),
    ],
)
def test_keys_of_commands_have_a_most_too(read: Any, word: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read([word])
    assert str(refused.value) == message


def test_a_recipe_with_such_a_number_is_none(tmp_path: Path, capsys: Any) -> None:
    said = {
        "format": FORMAT,
        "name": "much",
        "made_for": {"model": "shapes", "device": "cpu"},
        "choices": {"quant": {"option": "int8", "min_in_features": 10**20}},
        "generation": {"steps": 99999999999999999999},
    }
    text = yaml.safe_dump(said, sort_keys=False)
    found = [(p.key, p.reason, p.instead) for p in problems_of(parse(text.encode(), "x"), None)]
    assert found == [
        (
            "choices.quant.min_in_features",
            f"must be at most {LARGEST_INT}: the largest that 32 bits hold",
            f"for example: min_in_features: {LARGEST_INT}",
        ),
        (
            "generation.steps",
            "must be at most 10000: no schedule has so many noise levels",
            "for example: steps: 10000",
        ),
    ]
    file = tmp_path / "much.yaml"
    file.write_text(text)
    assert main(["recipe", "check", str(file)]) == 2
    said = " ".join("".join(capsys.readouterr()).split())
    assert "generation.steps: must be at most 10000" in said


def test_a_cell_of_a_grid_is_refused_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "generation.steps=99999999999999999999,2", "device=cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 combinations: 1 ok, 1 incompatible" in said


def test_a_limit_is_its_keys_own() -> None:
    assert every_key()["generation.height"][0].beyond(16_385) == (
        "must be at most 16384: no model draws such a picture",
        "16384",
    )
    assert every_key()["quant.min_in_features"][0].beyond(LARGEST_INT) is None
