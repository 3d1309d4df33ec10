"""`python -m fastdiff recipe ...` as it is typed: what it prints, its exit codes, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdiff.__main__ import main
from fastdiff.choices.recipe.checking import read_recipe

TEXT = """\
format: 2
name: team
made_for: {model: shapes, device: cpu}
choices:
  precision: bf16
  qkv: fused
"""


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "team.yaml"
    path.write_text(TEXT)
    return path


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["recipe", *words])
    out, err = capsys.readouterr()
    assert "--json" in words or all(len(line) <= 80 for line in (out + err).splitlines()), out + err
    return code, out, err


def test_check_says_that_a_recipe_is_right(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "check", "team.yaml") == (
        0,
        "fastdiff  team.yaml is a recipe, and can run here\n"
        "  name          team\n"
        "  made for      model=shapes, device=cpu\n"
        "  choices       precision=bf16, qkv=fused\n",
        "",
    )
    assert sorted(path.name for path in team.parent.iterdir()) == ["team.yaml"]


def test_check_tells_problems_of_the_file_and_of_the_machine_at_once(
    team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team.write_text(TEXT.replace("precision", "precison") + "  quant: fp8\n")
    code, out, err = typed(capsys, "check", "team.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(
        "fastdiff: team.yaml can't be used as a recipe (1 problem)\n"
        "  line 5, choices.precison: there is no such slot\n"
        "    did you mean: precision\n"
        "this run can't work here (1 problem)\n"
        "  quant=fp8   needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu\n"
        "              instead: quant=int8\n"
    )


def test_check_as_json(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    team.write_text(TEXT.replace("precision", "precison") + "  quant: fp8\n")
    code, out, _ = typed(capsys, "check", "team.yaml", "--json")
    found = json.loads(out)
    assert code == 2
    assert (found["valid"], found["possible_here"]) == (False, False)
    assert found["problems"][0]["line"] == 5
    assert found["problems_here"][0]["choice"] == "quant=fp8"
    team.write_text(TEXT)
    code, out, _ = typed(capsys, "check", "team.yaml", "--json")
    assert code == 0
    assert json.loads(out)["problems_here"] == []


def test_check_of_a_recipe_for_somebody_s_own_model_says_what_it_could_not_look_at(
    team: Path, smallest_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team.write_text(TEXT.replace("shapes", "local"))
    code, out, _ = typed(capsys, "check", "team.yaml")
    assert code == 0
    assert "yours isn't named, so what depends on it wasn't checked" in " ".join(out.split())
    code, out, _ = typed(
        capsys, "check", "team.yaml", "model=local", f"model.path={smallest_folder}"
    )
    assert code == 0
    assert "isn't named" not in out


def test_show_resolves_every_slot_and_key(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    team.write_text(TEXT + "measured: {latency_s: 0.41, quality: {psnr_db: 41.2}}\n")
    code, out, _ = typed(capsys, "show", "team.yaml", "precision=fp32")
    assert code == 0
    assert out.startswith("fastdiff  plan for shapes on cpu")
    assert "  precision     fp32\n" in out
    assert "  qkv           fused\n" in out
    assert "  memory        none: vae_slicing=False, vae_tiling=False\n" in out
    assert "  latency       0.410 s\n  quality       psnr_db=41.2\n" in out
    assert "takes the place of the recipe's precision=bf16" in " ".join(out.split())


def test_diff_compares_choices_and_not_texts(
    team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = team.with_name("other.yaml")
    other.write_text(
        "# another text\nname: other\nformat: 2\n"
        "made_for:\n  device: cpu\n  model: shapes\n"
        "choices: {qkv: fused, attention: sdpa, precision: {option: bf16}}\n"
    )
    assert typed(capsys, "diff", "team.yaml", "other.yaml")[1] == (
        "fastdiff  recipe diff, A -> B\n"
        "  A  team.yaml (team)\n"
        "  B  other.yaml (other)\n"
        "  both choose the same\n"
    )
    other.write_text(
        TEXT.replace("bf16", "fp32") + "  quant: {option: int8, min_in_features: 64}\n"
    )
    code, out, _ = typed(capsys, "diff", "team.yaml", "other.yaml")
    assert code == 0
    assert "    precision              bf16 -> fp32\n" in out
    assert "    quant                  none -> int8\n" in out
    assert "    quant.min_in_features  - -> 64\n" in out
    code, out, _ = typed(capsys, "diff", "team.yaml", "other.yaml", "--json")
    assert json.loads(out)["choices"]["precision"] == {"a": "bf16", "b": "fp32"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "recipe needs to know what to do with a file\n  there are:\n    check"),
        (["chek"], "recipe has no 'chek'\n  did you mean: recipe check"),
        (["check"], "recipe check needs one file, not 0\n  instead: python -m fastdiff recipe check FILE [--json] [overrides]"),
        (["check", "team.yaml", "--jsn"], "recipe check has no option --jsn\n  did you mean: --json"),
        (["diff", "team.yaml"], "recipe diff needs 2 files, not 1"),
        (["diff", "team.yaml", "team.yaml", "qkv=fused"], "recipe diff takes no overrides, not qkv=fused"),
        (["export", "team.yaml"], "recipe export needs --script OUT.py"),
        (["export", "team.yaml", "--script"], "--script needs a value"),
        (["save", "."], "recipe save needs -o FILE"),
        (["save", ".", "-o", "x.yaml"], ". is no run's folder: its report.json can't be read (FileNotFoundError)"),
        (["verify", "team.yaml"], "recipe 'team' says nothing of what was measured, so there is nothing to verify"),
        (["verify", "team.yaml", "verify.tolerance=-1"], "verify.tolerance can't be '-1': it must be a number of at least 0\n  for example: verify.tolerance=0.1"),
        (["verify", "team.yaml", "verify.tolerence=1"], "verify has no key 'tolerence'\n  did you mean: verify.tolerance"),
        (["check", "none.yaml"], "none.yaml can't be used as a recipe (1 problem)\n  it is not there"),
    ],
)  # fmt: skip
def test_refusals(
    team: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, out, err = typed(capsys, *words)
    assert (code, out) == (2, "")
    assert " ".join(said.split()) in " ".join(err.split())
    assert sorted(path.name for path in team.parent.iterdir()) == ["team.yaml"]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastdiff", *words], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, `run`, and its recipe, `team.yaml`."""
    folder = tmp_path_factory.mktemp("saved")
    done = run(
        folder,
        "precision=bf16",
        "qkv=fused",
        "generation.steps=3",
        "bench=once",
        "hydra.run.dir=run",
    )
    assert done.returncode == 0, done.stderr
    done = run(folder, "recipe", "save", "run", "-o", "team.yaml", "--description", "quick")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_is_saved_and_the_recipe_is_what_ran(saved: Path) -> None:
    recipe = read_recipe(saved / "team.yaml")
    assert (recipe.name, recipe.description) == ("team", "quick")
    assert recipe.choices == {"precision": {"option": "bf16"}, "qkv": {"option": "fused"}}
    assert recipe.measured["latency_s"] > 0
    assert recipe.measured["work"]["steps"] == 3
    again = run(saved, "recipe", "save", "run", "-o", "team.yaml")
    assert again.returncode == 2
    assert "team.yaml is there already, and nothing is overwritten" in again.stderr


def test_a_run_with_a_recipe_gives_the_same_picture_and_names_it(saved: Path) -> None:
    done = run(saved, "recipe=team.yaml", "generation.steps=3", "bench=once", "hydra.run.dir=again")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((saved / n / "report.json").read_text()) for n in ("run", "again"))
    assert second["images"][0]["sha256"] == first["images"][0]["sha256"]
    recipe: Any = second["config"]["recipe"]
    assert recipe == {"name": "team", "sha256": read_recipe(saved / "team.yaml").sha256}
    assert second["run_id"] == first["run_id"]
    assert "precision=bf16" in second["overrides"]
    assert not any(word.startswith("recipe=") for word in second["overrides"])


@pytest.mark.exhaustive
def test_verify_holds_within_a_tolerance_and_not_beyond(saved: Path) -> None:
    done = run(saved, "recipe", "verify", "team.yaml", "bench=once", "verify.tolerance=100")
    assert done.returncode == 0, done.stderr
    assert "team.yaml holds here" in done.stdout
    text = (saved / "team.yaml").read_text()
    latency = read_recipe(saved / "team.yaml").measured["latency_s"]
    (saved / "fast.yaml").write_text(
        text.replace(f"latency_s: {latency}", "latency_s: 0.000001", 1)
    )
    done = run(saved, "recipe", "verify", "fast.yaml", "bench=once", "verify.tolerance=100")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fast.yaml does not hold here" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("  latency"))
    assert row.endswith("does not hold")
    assert next(saved.glob("outputs/*/*/verify.json"))


def test_a_figure_of_nothing_has_no_ratio() -> None:
    from fastdiff.commands.recipe.verify import Figure, How, figures_text

    lines = figures_text([Figure("latency_s", 0.0, 0.5, False)], How(), None).splitlines()
    assert lines[1].split() == ["latency", "0.000", "s", "0.500", "s", "does", "not", "hold"]
