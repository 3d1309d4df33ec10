"""What people who know Hydra type: its flags, its own answers, a team's primary config, experiments and inheritance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastdiff.__main__ import main
from fastdiff.choices.compose import compose, hydras_config
from fastdiff.choices.experiments import experiments, ladders
from fastdiff.choices.folders import NAME_VARIABLE, VARIABLE, named_in
from fastdiff.config import CONF_DIR
from fastdiff.errors import UsageError

TEAM = {
    "model/ours.yaml": "# Ours.\ndefaults: [shapes, _self_]\ngeneration: {steps: 16}\n",
    "model/theirs.yaml": "# Ours, further.\ndefaults: [/model/ours@_here_, _self_]\nrole: student\n",
    "quant/gentle.yaml": (
        "# Int8 for larger layers.\ndefaults: [int8, _self_]\n"
        "min_in_features: ${generation.images_per_prompt}\n"
    ),
    "experiment/ours.yaml": (
        "# @package _global_\n# Our setting.\ndefaults:\n  - override /precision: bf16\n"
        "  - override /quant: gentle\n  - _self_\ngeneration: {steps: 7}\n"
    ),
    "experiment/serving/one.yaml": (
        "# @package _global_\n# A rung.\ndefaults:\n  - override /precision: bf16\n"
        "experiment: {rung: 0}\n"
    ),
    "fast.yaml": (
        "# What we begin with.\ndefaults:\n  - config\n  - override model: ours\n"
        "  - override precision: bf16\n  - _self_\ngeneration: {seed: 3}\n"
    ),
    "slow.yaml": "defaults: [config, override experiment: ours, _self_]\n",
}


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A team's folder; the working directory is another one."""
    for place, text in TEAM.items():
        path = tmp_path / "team" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in (VARIABLE, NAME_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "team"


def typed(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """What is printed; of a refusal, what is said."""
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    return said.err.removeprefix("fastdiff: ") if code else said.out


# Hydra's own answers ---------------------------------------------------------------------------------


def test_cfg_prints_the_job_hydra_or_both(capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load(typed(capsys, "--cfg", "job", "quant=int8", "quant.min_in_features=64"))
    assert job["quant"]["min_in_features"] == 64
    assert "hydra" not in job
    assert set(yaml.safe_load(typed(capsys, "--cfg=hydra"))) == {"hydra"}
    assert {"hydra", "quant"} <= set(yaml.safe_load(typed(capsys, "-c", "all")))


def test_cfg_takes_a_package_and_resolves(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--cfg", "job", "-p", "generation", "generation.seed=${generation.images_per_prompt}")
    assert "seed: ${generation.images_per_prompt}\n" in typed(capsys, *words)
    assert "seed: 1\n" in typed(capsys, *words, "--resolve")
    assert typed(capsys, *words).startswith("# @package generation\n")


def test_cfg_takes_texts_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    said = typed(capsys, "--cfg", "job", "--package", "generation", "generation.prompt=a, b's (c)")
    assert yaml.safe_load(said)["prompt"] == "a, b's (c)"


@pytest.mark.parametrize(
    ("info", "holds"),
    [
        ("searchpath", "| main     | file://{conf}"),
        ("defaults", "Defaults List"),
        ("defaults-tree", "quant: int8"),
        ("config", "min_in_features: 17"),
        ("plugins", "Installed Hydra Plugins"),
        ("all", "Config search path"),
    ],
)
def test_info(info: str, holds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert holds.format(conf=CONF_DIR) in typed(capsys, "--info", info, "quant=int8")


def test_hydras_help_is_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "--hydra-help").startswith("Hydra (1.3.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--cfg", "job", "quant=imt8"),
            "quant has no option 'imt8'\n  did you mean: quant=int8\n",
        ),
        (
            ("--cfg", "jbo"),
            "argument --cfg/-c: invalid choice: 'jbo' (choose from 'job', 'hydra',\n    'all')\n"
            "  instead: python -m fastdiff --hydra-help\n",
        ),
        (
            ("--cfg", "job", "--wat"),
            "there is no option --wat\n  instead: python -m fastdiff --hydra-help\n",
        ),
        (
            ("--cfg", "job", "-m", "quant=int8,none"),
            "one of --cfg, --info, --shell-completion and -m at a time\n"
            "  instead: leave the others out\n",
        ),
        (
            ("--resolve", "quant=int8"),
            "--resolve says what --cfg prints\n  instead: --cfg job --resolve, or leave it out\n",
        ),
        (
            ("-p", "quant"),
            "--package says what --cfg prints\n  instead: --cfg job --package, or leave it out\n",
        ),
        (
            ("-cp", "conf"),
            "--config-path isn't served: fastdiff's own options are always there\n"
            "  instead: --config-dir DIR\n",
        ),
        (
            ("--experimental-rerun", "config.pickle"),
            "--experimental-rerun isn't served: a run is repeated from what it\n    wrote\n"
            "  instead: python -m fastdiff recipe save RUN_DIR -o FILE\n",
        ),
        (
            ("-sc", "install=tcsh"),
            "No completion plugin for 'tcsh' found, available :\n"
            "  instead: -sc install=bash, zsh or fish\n",
        ),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, *words, code=2) == said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_the_command(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py"])
    assert "fastdiff" in typed(capsys, "--shell-completion", f"install={shell}")
    assert typed(capsys, "-sc", f"uninstall={shell}")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("fastdiff quant=in", ["quant=int8", "quant=int8_weight_only"]),
        ("fastdiff plan compile=aot", ["compile=aot"]),
        ("fastdiff generation.st", ["generation.steps="]),
        ("fastdiff quant=int8 quant.m", ["quant.min_in_features="]),
        ("fastdiff -m precision=f", ["precision=fp16", "precision=fp32"]),
    ],
)
def test_slots_options_and_keys_complete(
    line: str,
    completed: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert typed(capsys, "-sc", "query=bash").split() == completed


def test_bash_completes_what_it_sourced(tmp_path: Path) -> None:
    """In a real bash, the installed function asked as bash asks it."""
    (tmp_path / "fastdiff").write_text(f'#!/bin/sh\nexec {sys.executable} -m fastdiff "$@"\n')
    (tmp_path / "fastdiff").chmod(0o755)
    script = (
        'eval "$(fastdiff -sc install=bash)"; COMP_LINE="fastdiff quant=int"; COMP_CWORD=1\n'
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CONF_DIR.parent)}
    ended = subprocess.run(
        ["bash", "-c", script], env=os.environ | path, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "quant=int8 quant=int8_weight_only\n", ended.stderr


def test_hydras_answers_import_nothing_that_computes() -> None:
    code = (
        "import sys; from fastdiff.__main__ import main; main(['--info', 'all'])\n"
        "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == ""


# A team's folder -------------------------------------------------------------------------------------


def test_an_experiment_needs_no_ladder(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--config-dir", team)
    plan = typed(capsys, "plan", "experiment=ours", *flags)
    assert "precision.bf16" in plan
    assert "7 steps" in plan
    assert "  your own      ours\n" in typed(capsys, "--help", *flags)
    with named_in(["-cd", str(team)]):
        assert ladders()[-1] == "serving"
        assert {"ours", "serving/one"} <= set(experiments())


def test_it_goes_into_grids(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "-m", "experiment=ours,guide/bf16", "model=shapes", "--json", "-cd", team)
    rows = json.loads(typed(capsys, *words))["cells"]
    assert [row["overrides"][0] for row in rows] == ["experiment=ours", "experiment=guide/bf16"]
    globbed = ("plan", "-m", "experiment=glob(*,exclude=[s*,d*,g*])", "--json", "-cd", team)
    rows = json.loads(typed(capsys, *globbed))["cells"]
    assert [row["overrides"] for row in rows] == [["experiment=ours"]]


def test_a_misspelled_one_names_it(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = typed(capsys, "plan", "experiment=oura", "-cd", team, code=2)
    assert said == "there is no experiment 'oura'\n  did you mean: ours\n"


@pytest.mark.parametrize(
    "words",
    [
        ["model=ours"],
        ["model=theirs", "generation.height=32"],
        ["quant=gentle", "generation.images_per_prompt=3"],
        ["experiment=ours"],
    ],
    ids=str,
)
def test_options_begin_with_others_as_hydra_has_it(words: list[str], team: Path) -> None:
    with named_in(["-cd", str(team)]):
        run, hydra = compose(words).to_dict(), hydras_config(words)
    for slot in ("model", "quant", "precision"):
        values = {key: str(value) for key, value in run[slot].items() if key != "option"}
        assert {
            key: str(getattr(hydra[slot][key], "value", hydra[slot][key])) for key in values
        } == values


def test_what_an_option_inherits(team: Path) -> None:
    with named_in(["-cd", str(team)]):
        run = compose(["model=theirs"])
        assert (run.generation.steps, run.generation.height) == (16, 64)
        assert run.to_dict()["model"]["role"] == "student"
        gentle = compose(["quant=gentle", "generation.images_per_prompt=3"]).to_dict()["quant"]
        assert gentle["min_in_features"] == 3
        assert gentle["skip_shapes"] == compose(["quant=int8"]).to_dict()["quant"]["skip_shapes"]


def test_an_interpolation_that_leads_nowhere_is_refused(team: Path) -> None:
    (team / "quant" / "gentle.yaml").write_text(
        "# Int8.\ndefaults: [int8, _self_]\nmin_in_features: ${generation.stepz}\n"
    )
    with named_in(["-cd", str(team)]), pytest.raises(UsageError) as refused:
        compose(["quant=gentle"])
    assert "Interpolation key 'generation.stepz' not found" in str(refused.value)


def test_a_primary_config_of_ones_own(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config-dir", str(team), "--config-name", "fast"]
    with named_in([*flags, "generation.steps=5"]) as words:
        assert words == ["generation.steps=5"]
        run = compose(words)
    assert (run.choices["model"], run.choices["precision"]) == ("ours", "bf16")
    assert (run.generation.steps, run.generation.seed) == (5, 3)
    assert NAME_VARIABLE not in os.environ
    plan = typed(capsys, "plan", *flags)
    assert "16 steps, seed 3" in plan
    assert typed(capsys, "plan", "-cd", team, "-cn=fast.yaml") == plan
    job = yaml.safe_load(typed(capsys, "--cfg", "job", *flags))
    assert job["generation"]["seed"] == 3
    rows = json.loads(typed(capsys, "plan", "-m", "quant=none,int8", "--json", *flags))["cells"]
    assert len(rows) == 2


def test_it_may_choose_an_experiment_and_words_win(team: Path) -> None:
    with named_in(["-cd", str(team), "-cn", "slow"]):
        assert compose([]).choices["experiment"] == "ours"
        assert compose([]).generation.steps == 7
        assert compose(["experiment=none", "precision=fp16"]).choices["precision"] == "fp16"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("fsat", None, "--config-name fsat: there is no fsat.yaml in {team}\n  did you mean: fast"),
        (
            "bad",
            "generation: {steps: 3}\n",
            "{team}/bad.yaml: it must begin with fastdiff's own\n"
            "  instead: defaults: [config, ..., _self_]",
        ),
        (
            "bad",
            "defaults: [config, quant: int8]\n",
            "{team}/bad.yaml: '{{'quant': 'int8'}}' chooses nothing\n"
            "  instead: - override <slot>: <option>, as in - override quant: int8",
        ),
        (
            "bad",
            "defaults: [config, _self_]\nquantt: {{}}\n",
            "{team}/bad.yaml: there is no key 'quantt'\n  did you mean: quant",
        ),
        (
            "bad",
            "defaults: [config, override quant: imt8, _self_]\n",
            "quant has no option 'imt8'\n  did you mean: quant=int8",
        ),
    ],
)
def test_a_primary_config_that_is_wrong(name: str, text: str | None, said: str, team: Path) -> None:
    if text:
        (team / f"{name}.yaml").write_text(text.replace("{{}}", "{}"))
    with named_in(["-cd", str(team), "-cn", name]), pytest.raises(UsageError) as refused:
        compose([])
    assert str(refused.value) == said.format(team=team)


def test_a_name_without_a_folder_or_a_name(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "plan", "-cn", "fast", code=2) == (
        "--config-name fast: it lies in a team's folder\n"
        "  instead: --config-dir DIR --config-name NAME\n"
    )
    assert typed(capsys, "plan", "--config-name", code=2) == (
        "--config-name needs the name of a config in a team's folder\n"
        "  instead: --config-dir DIR --config-name NAME, for DIR/NAME.yaml\n"
    )


def test_a_sweeps_folder_may_be_named_as_hydra_names_it(
    team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastdiff.commands.sweep import with_folder

    assert with_folder(["quant=int8", "hydra.sweep.dir='out/${hydra:job.name}'"]) == [
        "quant=int8",
        "sweep.dir=out/fastdiff",
    ]
    assert typed(capsys, "plan", "-m", "quant=none,int8", "hydra.sweep.dir=out", "--json")


def test_run_says_what_holds_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "--run", "quant=imt8", code=2).startswith("quant has no option 'imt8'")
