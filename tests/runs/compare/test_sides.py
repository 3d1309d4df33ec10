"""Sides as typed: what they stand for, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_players import plan_of, sides_of

from fastdiff.errors import FastdiffError, UsageError
from fastdiff.machine.files import write_json
from fastdiff.planning.plan import Plan
from fastdiff.runs.compare.sides import SidesRefused, read_side, read_sides, same_run


def refusal(*words: str) -> str:
    with pytest.raises(FastdiffError) as raised:
        read_sides(words, plan_of)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_what_follows_the_two_sides_is_for_both_and_a_sides_own_wins() -> None:
    a, b = sides_of("", "generation.steps=7 qkv=fused", "generation.steps=3", "precision=bf16")
    assert a.overrides == ["generation.steps=3", "precision=bf16"]
    assert b.overrides == [*a.overrides, "generation.steps=7", "qkv=fused"]
    assert (a.plan.setting.run.generation.steps, b.plan.setting.run.generation.steps) == (3, 7)
    assert b.plan.setting.run.choices["precision"] == "bf16"
    assert (a.title, b.title) == ("the defaults", "generation.steps=7 qkv=fused")


def test_quotes_within_a_side_hold_a_prompt_together() -> None:
    own, source = read_side("generation.prompt='a red circle' qkv=fused")
    assert own == ["generation.prompt=a red circle", "qkv=fused"]
    assert source is None


def test_a_run_folder_and_its_report_stand_for_their_overrides(tmp_path: Path) -> None:
    folder = tmp_path / "run=1"
    overrides = ["precision=bf16", f"hydra.run.dir={folder}"]
    write_json(folder / "report.json", {"overrides": overrides})
    for typed in (str(folder), str(folder / "report.json")):
        a, b = sides_of(typed, "")
        assert a.own == ["precision=bf16"]
        assert a.source == typed
        assert a.title == f"{typed} (precision=bf16)"
        assert b.source is None


def test_a_report_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{")
    assert refusal(str(report), "") == (
        f"side A: {report} can't be read as a run's report: JSONDecodeError\n"
        '  instead: its overrides in quotes, "precision=bf16 compile=regional"'
    )
    report.write_text("[]")
    assert "can't be read as a run's report: TypeError" in refusal("", str(tmp_path))


def test_a_recipe_is_a_side_and_overrides_for_both_win_over_it(tmp_path: Path) -> None:
    team = tmp_path / "team.yaml"
    team.write_text(
        "format: 2\nname: team\nmade_for: {model: sdxl, device: cpu}\n"
        "choices: {precision: bf16, qkv: fused}\n"
    )
    a, _ = read_sides([str(team), "", "model=shapes"], plan_of)
    assert a.title == f"recipe={team}"
    assert a.plan.setting.run.choices["qkv"] == "fused"
    assert a.plan.setting.run.choices["model"] == "shapes"


def test_a_recipe_that_is_not_there_is_refused() -> None:
    assert refusal("team.yaml", "") == (
        "side A: team.yaml can't be used as a recipe (1 problem)\n"
        "  it is not there\n"
        "    instead: the path of a YAML"
    )


def test_a_word_that_is_no_side_is_refused() -> None:
    assert refusal("", "regional") == (
        "side B: 'regional' is neither a list of overrides, nor a recipe, nor the folder of a run\n"
        '  instead: "precision=bf16 compile=regional", "" for the defaults, team.yaml, or a run\'s folder'
    )
    assert refusal("generation.prompt='a", "") == (
        "side A: generation.prompt='a: no closing quotation\n"
        "  instead: quotes inside the quotes: \"generation.prompt='a red circle'\""
    )


def test_two_sides_are_needed_and_no_options() -> None:
    needed = (
        "compare needs two sides first, each in quotes: overrides, a recipe, or a run's folder\n"
        '  for example: python -m fastdiff compare "" "compile=regional" model=shapes'
    )
    assert refusal() == needed
    assert refusal("precision=bf16") == needed
    assert refusal("", "", "-m") == (
        "compare has no option -m\n"
        "  there are: compare.pairs, compare.lives, compare.seed, compare.dir"
    )


def test_what_belongs_to_the_whole_command_is_no_sides() -> None:
    assert refusal("qkv=fused compare.pairs=3", "") == (
        "side A: a side can't set compare.pairs, which belongs to the whole command\n"
        "  instead: leave it out there"
    )
    assert refusal("", "", "hydra.run.dir=x") == (
        "both sides: a side can't set hydra.run.dir, which belongs to the whole command\n"
        "  instead: leave it out there"
    )
    assert sides_of("generation.prompt='we compare.'", "generation.prompt='we compare.'")


def test_the_problems_of_both_sides_are_told_at_once() -> None:
    text = refusal("quant=fp8", "attention=math qkv=fused")
    assert text.startswith("side A: this run can't work here (1 problem)\n  quant=fp8 ")
    assert "\nside B: this run can't work here (1 problem)\n  attention=math " in text
    assert max(len(line) for line in text.splitlines() if "source:" not in line) <= 80


def test_a_problem_of_both_is_told_once() -> None:
    assert refusal("", "qkv=fused", "precision=f16") == (
        "both sides: precision has no option 'f16'\n  did you mean: precision=fp16"
    )


def test_sides_that_would_start_from_other_latents_or_prompts_are_refused() -> None:
    text = refusal(
        "",
        "generation.seed=3 generation.height=128 generation.negative_prompt=x",
        "generation.prompt=a",
    )
    assert text == (
        "the sides would not start from the same latents and prompts\n"
        "  generation.negative_prompt: the model's own and x\n"
        "  generation.height: 64 and 128\n"
        "  generation.seed: 0 and 3\n"
        "  instead: give these once, for both, after the two sides"
    )
    text = refusal("generation.prompt=[a,b]", "generation.prompt=[a,c]")
    assert "generation.prompt: 'a', 'b' and 'a', 'c'" in text
    assert "generation.images_per_prompt: 1 and 2" in refusal("", "generation.images_per_prompt=2")


def test_steps_and_guidance_may_differ() -> None:
    a, b = sides_of("generation.steps=25", "generation.steps=12 generation.guidance_scale=1.0")
    assert not same_run(a, b)


def test_a_run_may_be_compared_with_itself() -> None:
    assert same_run(*sides_of("", ""))
    assert same_run(*sides_of("precision=bf16", "", "precision=bf16"))
    assert not same_run(*sides_of("", "qkv=fused"))
    assert same_run(*sides_of("bench.runs=3", "quality=none")), "neither changes a call"


def test_what_only_a_run_of_its_own_gives_is_refused() -> None:
    assert refusal("", "quality.min_psnr_db=60") == (
        "side B: compare judges no budgets\n"
        "  instead: leave out quality.min_psnr_db=60, and run that side alone"
    )
    assert refusal("profile=true quality.captions=8", "", "quality.max_abs_difference=0.1") == (
        "side A: compare judges no budgets, draws no captions, profiles nothing\n"
        "  instead: leave out quality.max_abs_difference=0.1, quality.captions=8, profile=true, and run "
        "that side alone\n"
        "side B: compare judges no budgets\n"
        "  instead: leave out quality.max_abs_difference=0.1, and run that side alone"
    )


def test_what_only_a_run_of_its_own_gives_is_left_out_of_a_finished_run(tmp_path: Path) -> None:
    overrides = ["qkv=fused", "quality.min_psnr_db=30", "profile=true", "quality.captions=8"]
    write_json(tmp_path / "report.json", {"overrides": overrides})
    a, b = sides_of("", str(tmp_path))
    assert b.own == ["qkv=fused"]
    said = "compare judges no budgets, draws no captions and profiles nothing"
    assert b.notices == [f"{word} of that run is left out: {said}" for word in overrides[1:]]
    assert a.notices == []


def test_what_is_not_heeded_is_said() -> None:
    a, b = sides_of("", "quality.lpips=false", "bench.runs=3", "quality.exact=true")
    assert a.notices == [
        "bench.runs=3 is ignored: compare.pairs says how many calls are timed",
        "quality.exact=true is ignored: compare holds no pass to fp64; a run of its own does",
    ]
    assert a.notices == b.notices
    assert sides_of("quality.exact=false", "")[0].notices == [], "nothing was asked for"


def test_lpips_is_not_measured_where_it_could_be() -> None:
    def elsewhere(words: Sequence[str]) -> Plan:
        return plan_of([word for word in words if word != "quality.lpips=true"])

    a, b = read_sides(["quality.lpips=true", ""], elsewhere)
    assert a.notices == [
        "quality.lpips=true is ignored: compare measures no LPIPS; a run of its own does"
    ]
    assert b.notices == []


def test_every_refusal_is_a_fastdiff_error_of_its_own() -> None:
    def refuse(words: Sequence[str]) -> None:
        raise UsageError("no")

    with pytest.raises(SidesRefused, match=r"^both sides: no$"):
        read_sides(["", ""], refuse)  # type: ignore[arg-type]


def test_both_sides_are_planned_and_refused_before_torch_is_imported() -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fake_players import sides_of\n"
        "import fastdiff.runs.compare.comparison\n"
        "sides_of('', 'compile=regional')\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
