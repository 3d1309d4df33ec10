"""A team's own folder of options: seen by every command, refused to the letter where something in it can't be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hydra import composed_by_hydra

from fastdiff.__main__ import main
from fastdiff.choices.compose import compose, restore
from fastdiff.choices.experiments import ladder, names
from fastdiff.choices.folders import VARIABLE, config_dirs, named_in, searched
from fastdiff.choices.options import option_files, origins, shipped_files
from fastdiff.config import CONF_DIR, SLOTS
from fastdiff.errors import UsageError
from fastdiff.machine.files import sha256_of
from fastdiff.models.sources import SHAPES_DIR
from fastdiff.runs.sweep import job

ROOT = Path(__file__).parents[2]
SWEEPING = ROOT / "tests" / "runs" / "sweep"
sys.path.insert(0, str(SWEEPING))

from sweeping import start_fake  # noqa: E402

OURS = f"""# The team's own.
defaults: [/schema/model/local@_here_, _self_]
path: {SHAPES_DIR}
generation: {{prompt: a red circle on a white background, steps: 3, height: 64, width: 64}}
"""
OURS_INT8 = """# Less of it.
defaults: [/schema/quant/int8@_here_, _self_]
min_in_features: 999
"""
EXAMPLE = "a folder that holds your own options, such as DIR/model/ours.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


Write = Callable[[str, str], Path]


@pytest.fixture
def write(here: Path) -> Write:
    """`write("model/ours.yaml", text)`: a file of the folder `team`, beside the working directory."""

    def file(place: str, text: str) -> Path:
        path = here / "team" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return file


@pytest.fixture
def team(write: Write) -> Path:
    write("quant/ours.yaml", OURS_INT8)
    return write("model/ours.yaml", OURS).parent.parent


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message that the words are refused with; nothing is written."""
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert list(Path.cwd().iterdir()) == []
    return said.err.removeprefix("fastdiff: ").removesuffix("\n")


def joined(said: str) -> str:
    """Rows of a screen, whole again."""
    return said.replace(f"\n{' ' * 16}", " ")


def refusal(folder: Path) -> str:
    with searched([folder]), pytest.raises(UsageError) as error:
        option_files()
    return str(error.value)


# How a folder is named -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir", "../team", "model=ours", "quant=ours"],
        ["model=ours", "quant=ours", "--config-dir=../team"],
        ["model=ours", "-cd", "../team", "quant=ours"],
        ["model=ours", "quant=ours", "hydra.searchpath=[../team]"],
        ["model=ours", "quant=ours", "--config-dir", "{team}"],
        ["model=ours", "quant=ours", "hydra.searchpath=[file://{team}]"],
        ["model=ours", "quant=ours", 'hydra.searchpath=["{team}"]'],
    ],
)
def test_a_folder_may_be_named_anywhere_on_the_line(
    words: list[str], team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(word.replace("{team}", str(team)) for word in words)]) == 0
    said = capsys.readouterr().out
    assert "plan for pipeline on" in said
    assert "quant.int8" in said
    assert VARIABLE not in os.environ
    assert config_dirs() == ()


def test_the_variable_names_folders_too_and_the_flag_adds_to_them(
    team: Path, here: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(team / "quant", here / "second" / "quant")
    monkeypatch.setenv(VARIABLE, "../team")
    assert compose(["model=ours"]).choices["model"] == "ours"
    with named_in(["--config-dir", str(here / "second"), "quant=ours"]) as words:
        assert words == ["quant=ours"]
        assert config_dirs() == (team, here / "second")
        assert os.environ[VARIABLE] == os.pathsep.join([str(team), str(here / "second")])
        assert set(compose(["quant=ours", "model=ours"]).choices.values()) >= {"ours"}
    assert os.environ[VARIABLE] == "../team"


def test_a_package_of_hydras_search_path(
    team: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "site" / "ours_by_package").mkdir(parents=True)
    (here / "site" / "ours_by_package" / "__init__.py").write_text("")
    shutil.copytree(team, here / "site" / "ours_by_package" / "conf")
    monkeypatch.syspath_prepend(str(here / "site"))
    with named_in(["hydra.searchpath=[pkg://ours_by_package.conf]"]):
        assert config_dirs() == (here / "site" / "ours_by_package" / "conf",)
        assert compose(["model=ours"]).choices["model"] == "ours"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--config-dir"], f"--config-dir needs a folder\n  instead: --config-dir DIR, {EXAMPLE}"),
        (["-cd="], f"-cd needs a folder\n  instead: --config-dir DIR, {EXAMPLE}"),
        (
            ["--config-dir", "nowhere"],
            f"--config-dir nowhere: there is no such folder\n  instead: --config-dir DIR, {EXAMPLE}",
        ),
        (
            [f"--config-dir={__file__}"],
            f"--config-dir {__file__}: is a file, not a folder\n  instead: --config-dir DIR, {EXAMPLE}",
        ),
        (
            ["hydra.searchpath=[nowhere]"],
            "hydra.searchpath nowhere: there is no such folder\n"
            f"  instead: --config-dir DIR, {EXAMPLE}",
        ),
        (
            ["hydra.searchpath=a,b"],
            "hydra.searchpath=a,b can't be read as a list of folders\n"
            "  instead: hydra.searchpath=[DIR], or --config-dir DIR",
        ),
        (
            ["hydra.searchpath=[ftp://a]"],
            "hydra.searchpath: ftp://a names no folder\n"
            "  instead: DIR, file:///DIR or pkg://a.package",
        ),
        (
            ["hydra.searchpath=[pkg://there.is.none]"],
            "hydra.searchpath: there is no package for pkg://there.is.none in this Python\n"
            "  instead: install it, or --config-dir DIR",
        ),
    ],
)
def test_what_names_no_folder_is_refused(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as error, named_in(words):
        pass
    assert str(error.value) == text


def test_a_variable_that_names_no_folder_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "nowhere")
    with pytest.raises(UsageError) as error:
        option_files()
    assert str(error.value) == (
        f"FASTDIFF_CONFIG_DIR: {here / 'work' / 'nowhere'}: there is no such folder\n"
        f"  instead: {EXAMPLE}, or unset it"
    )


# What its options are ------------------------------------------------------------------------------


def test_hydra_composes_a_folders_options_as_the_files_alone_do(team: Path) -> None:
    words = ["model=ours", "quant=ours", "quant.swap_conv=false", "generation.steps=2"]
    with searched([team]):
        run = composed_by_hydra(words)
        assert (run.model, run.quant) == (compose(words).model, compose(words).quant)
        assert run.choices == compose(words).choices
        assert restore(compose(words).to_dict()) == compose(words)


def test_a_folders_file_may_read_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("model/ours.yaml", OURS.replace(str(SHAPES_DIR), "${oc.env:OURS_PATH}"))
    assert refusal(path.parent.parent) == (
        f"{path}: path: KeyError raised while resolving interpolation: "
        "\"Environment variable 'OURS_PATH' not found\"\n"
        "  instead: a value of that key's type"
    )
    monkeypatch.setenv("OURS_PATH", "/somewhere")
    shutil.copytree(path.parent.parent, path.parent.parent.with_name("again"))
    with searched([path.parent.parent.with_name("again")]):
        run = compose(["model=ours"])
        assert run.to_dict()["model"]["path"] == "/somewhere"
        assert composed_by_hydra(["model=ours"]).model == compose(["model=ours"]).model


def test_a_folders_option_is_in_reports_by_name_and_its_file_by_hash(team: Path) -> None:
    with searched([team]):
        run = compose(["model=ours", "quant=ours"])
        config, found = run.to_dict(), origins(run.choices)
    assert config["model"]["option"] == "ours"
    assert config["quant"]["min_in_features"] == 999
    assert found == {
        f"{slot}=ours": {"file": str(path), "sha256": sha256_of(path)}
        for slot, path in {s: team / s / "ours.yaml" for s in ("model", "quant")}.items()
    }


def test_outside_its_folder_an_option_is_unknown(team: Path) -> None:
    with searched([team]):
        written = compose(["model=ours"]).to_dict()
    assert "ours" not in option_files()["model"]
    assert option_files() == shipped_files()
    with pytest.raises(UsageError) as error:
        restore(written)
    assert str(error.value) == (
        "model=ours: this process doesn't find that option\n"
        "  instead: --config-dir with its folder, or pip install the plug-in that has it"
    )


def test_help_and_doctor_list_a_folders_options(
    team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("help", "doctor"):
        assert main([verb, "--config-dir", str(team)]) == 0
        said = capsys.readouterr().out
        for slot in ("model", "quant"):
            assert f"  {slot}=        ours: {team}/{slot}/ours.yaml" in joined(said)
        quant = said.partition("  quant  ")[2].partition("  cache  ")[0]
        assert ", ours" in joined(quant)
    assert main(["--help"]) == 0
    assert "\n  --config-dir  DIR: options of your own" in capsys.readouterr().out


def test_spelling_suggestions_know_a_folders_options(
    team: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("model/portraits.yaml", OURS)
    said = refused(capsys, "model=portrait", "--config-dir", str(team))
    assert said == "model has no option 'portrait'\n  did you mean: model=portraits"


# What is refused in it -----------------------------------------------------------------------------


def test_an_option_of_a_shipped_name_is_refused_and_both_are_named(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("model/sdxl.yaml", OURS)
    text = (
        f"model=sdxl is there already\n  it stands in {CONF_DIR / 'model' / 'sdxl.yaml'}\n"
        f"  and in {path}\n  instead: another name for the second, such as sdxl_ours.yaml"
    )
    assert refusal(path.parent.parent) == text
    for words in (["plan"], [], ["-m", "quant=none,int8"], ["plan", "quant=int8"]):
        said = refused(capsys, *words, "--config-dir", str(path.parent.parent))
        assert said.startswith("model=sdxl is there already\n")


def test_one_name_in_two_folders_is_refused(team: Path, here: Path) -> None:
    shutil.copytree(team, here / "second")
    with searched([team, here / "second"]), pytest.raises(UsageError) as error:
        option_files()
    assert str(error.value).startswith(
        "2 things are wrong with options that folders and plug-ins bring\n"
        f"  model=ours is there already\n    it stands in {team / 'model' / 'ours.yaml'}\n"
        f"    and in {here / 'second' / 'model' / 'ours.yaml'}\n"
    )


SCHEMAS = "model has the schemas shapes, hub, published, local, single_file"
DEFAULTS = "defaults: [/schema/model/shapes@_here_, _self_]"
FOR_EXAMPLE = f"its `defaults` must name its schema, or an option to begin with, and nothing else\n  for example: {DEFAULTS}; {SCHEMAS}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", f": {FOR_EXAMPLE}"),
        ("path: x\n", f": {FOR_EXAMPLE}"),
        (
            "defaults: [sdxk, _self_]\n",
            ": it begins with model=sdxk, and there is no such option\n  did you mean: sdxl",
        ),
        (
            "defaults: [ours, _self_]\n",
            ": it begins with model=ours, which can't be read, or begins with it\n"
            "  instead: an option that ships, or a schema",
        ),
        ("defaults: [/schema/model/local@_here_]\n", f": {FOR_EXAMPLE}"),
        (
            "defaults: [/schema/model/local@_here_, _self_, override /quant: int8]\n",
            f": {FOR_EXAMPLE}",
        ),
        (
            "defaults: [/schema/model/publisht@_here_, _self_]\n",
            ": model has no schema 'publisht'\n  did you mean: /schema/model/published@_here_",
        ),
        (
            "defaults: [/schema/model/zzz@_here_, _self_]\n",
            f": model has no schema 'zzz'\n  {SCHEMAS}",
        ),
        (
            "defaults: [/schema/quant/int8@_here_, _self_]\n",
            f": it lies in model/, and its schema is one of quant\n  instead: {DEFAULTS}, or the folder quant/",
        ),
        (
            OURS.replace("path:", "paht:"),
            ": model=ours has no key 'paht'\n  did you mean: path",
        ),
        (
            OURS.replace("steps:", "stepz:"),
            ": model=ours has no key 'generation.stepz'\n  did you mean: generation.steps",
        ),
        (
            OURS.replace("steps: 3", "steps: many"),
            ": generation.steps: Value 'many' of type 'str' could not be converted to Integer\n"
            "  instead: a value of that key's type",
        ),
        (
            f"# @package _global_\n{OURS}",
            ": an option can't say @package\n  instead: leave that line out",
        ),
        (
            "path: [a\n",
            ", line 2: expected ',' or ']', but got '<stream end>'\n  instead: mend that line",
        ),
        ("- a\n- b\n", f" can't be read: it holds no keys\n  instead: a YAML like those in {CONF_DIR}"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_option_is_refused(write: Write, text: str, said: str) -> None:
    path = write("model/ours.yaml", text)
    assert refusal(path.parent.parent) == f"{path}{said}"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("model/ours.yml", "{path} is not read\n  instead: ours.yaml"),
        (
            "model/small/ours.yaml",
            "{path} is not where it would be found\n  instead: {team}/<slot>/<option>.yaml",
        ),
        (
            "model/2nd.yaml",
            "{path}: '2nd' can't be typed as a name\n"
            "  instead: letters, digits, _ and -, and a letter first",
        ),
        (
            "model/null.yaml",
            "{path}: 'null' can't be typed as a name\n"
            "  instead: letters, digits, _ and -, and a letter first",
        ),
        (
            "models/ours.yaml",
            "{team}/models: there is no slot 'models', and a folder can't add one\n  did you mean: model/",
        ),
        (
            "upscale/ours.yaml",
            "{team}/upscale: there is no slot 'upscale', and a folder can't add one\n"
            f"  slots: {', '.join(SLOTS)}",
        ),
        (
            "hydra/launcher/ours.yaml",
            "{team}/hydra: Hydra's own settings and schemas can't come from such a folder\n"
            "  instead: options, in {team}/<slot>/",
        ),
        (
            "config.yaml",
            "{path}: a folder adds options; it can't change what is chosen by default\n"
            "  instead: choose on the command line, or in a recipe",
        ),
    ],
)
def test_a_file_in_the_wrong_place_is_refused(write: Write, place: str, said: str) -> None:
    path = write(place, OURS)
    team = Path(str(path).removesuffix(f"/{place}"))
    assert refusal(team) == said.format(path=path, team=team)


def test_what_is_clearly_no_option_may_lie_beside_them(team: Path, write: Write) -> None:
    write("recipes/ours.yaml", "format: 2\nname: ours\n")
    write("ours.yaml", "format: 2\n")
    write("model/README.md", "# Ours\n")
    write(".github/workflows/ci.yaml", "on: push\n")
    with searched([team]):
        assert "ours" in option_files()["model"]


def test_fastdiffs_own_folder_is_no_teams() -> None:
    assert refusal(CONF_DIR) == f"{CONF_DIR} holds fastdiff's own options\n  instead: {EXAMPLE}"


def test_help_and_doctor_show_what_is_wrong_with_a_folder(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    team = write("model/sdxl.yaml", OURS).parent.parent
    for verb in ("help", "doctor"):
        assert main([verb, "--config-dir", str(team)]) == 0
        assert "\n  problem       model=sdxl is there already\n" in capsys.readouterr().out


# Its experiments -----------------------------------------------------------------------------------

RUNG = """# @package _global_
# As we serve it.
defaults:
  - override /model: ours
  - override /quant: ours
generation: {steps: 2}
experiment: {rung: 1}
"""


def test_a_folder_may_have_a_ladder(
    team: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("experiment/serving/quantized.yaml", RUNG)
    write(
        "experiment/serving/plain.yaml",
        RUNG.replace("quant: ours", "quant: none").replace("1", "0"),
    )
    with searched([team]):
        assert [rung.short for rung in ladder("serving")] == ["plain", "quantized"]
        words = ["experiment=serving/quantized"]
        run, by_hydra = compose(words), composed_by_hydra(words)
    assert (run.choices["model"], run.choices["quant"]) == ("ours", "ours")
    assert (by_hydra.choices, by_hydra.experiment) == (run.choices, run.experiment)
    assert main(["plan", *words, "--config-dir", str(team)]) == 0
    assert "serving/quantized: no figures were published" in capsys.readouterr().out
    assert main(["help", "--config-dir", str(team)]) == 0
    assert "  serving/      plain, quantized\n" in capsys.readouterr().out
    assert "serving/plain" not in names()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "# @package _global_\n",
            "",
            ": its first line must say where its keys go\n  instead: # @package _global_",
        ),
        (
            "override /quant: ours",
            "quant: ours",
            ": 'quant: ours' chooses nothing\n"
            "  instead: - override /<slot>: <option>, as in - override /quant: int8",
        ),
        ("quant: ours", "quant: itn8", ": quant has no option 'itn8'\n  did you mean: int8"),
        ("generation:", "generatoin:", ": an experiment has no key 'generatoin'\n  did you mean: generation"),
        (
            "experiment: {rung: 1}",
            "",
            ": it doesn't say its place in its ladder\n  instead: experiment: {rung: 0}",
        ),
        (
            "{rung: 1}",
            "{rung: 1, speed: 2}",
            ": experiment: Key 'speed' not in 'Experiment'\n"
            "  it has: rung, over, source, workload, hardware, latency_s, speedup",
        ),
    ],
)  # fmt: skip
def test_an_experiment_that_is_none_is_refused(
    team: Path, write: Write, old: str, new: str, said: str
) -> None:
    assert old in RUNG
    path = write("experiment/serving/quantized.yaml", RUNG.replace(old, new))
    with searched([team]), pytest.raises(UsageError) as error:
        compose(["experiment=serving/quantized"])
    assert str(error.value) == f"{path}{said}"


def test_an_experiment_of_a_shipped_name_is_refused(team: Path, write: Write) -> None:
    path = write("experiment/guide/int8.yaml", RUNG)
    with searched([team]), pytest.raises(UsageError) as error:
        names()
    assert str(error.value).startswith(
        "experiment=guide/int8 is there already\n"
        f"  it stands in {CONF_DIR / 'experiment' / 'guide' / 'int8.yaml'}\n  and in {path}\n"
    )


# Other commands ------------------------------------------------------------------------------------


def test_ladders_and_comparisons_see_a_folder(
    team: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("experiment/serving/quantized.yaml", RUNG)
    flags = ("--config-dir", str(team), "device=gpu")
    assert "device=gpu" in refused(capsys, "ladder", "serving", *flags)
    said = refused(capsys, "compare", "model=ours", "model=ours quant=ours", *flags)
    assert "both sides: this run can't work here (1 problem)" in said


def test_a_recipe_may_choose_a_folders_options_and_names_no_folder_itself(
    team: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = here / "recipe.yaml"
    recipe.write_text(
        "format: 2\nname: ours\nmade_for: {model: ours, device: cpu}\nchoices: {quant: ours}\n"
    )
    words = ["plan", f"recipe={recipe}", "device=cpu"]
    assert main([*words, "--config-dir", str(team)]) == 0
    assert "quant.int8" in capsys.readouterr().out
    assert "was made for model=ours, which isn't" in refused(capsys, *words)
    with recipe.open("a") as file:
        file.write(f"config_dir: {team}\n")
    assert "config_dir" in refused(capsys, *words, "--config-dir", str(team))


# Runs and sweeps -----------------------------------------------------------------------------------

GRID = Path("outputs/sweeps/grid")
CELLS = ("model=ours", "quant=none,ours", "device=cpu", "quality=none", "sweep.name=grid")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cells are fake processes."""
    monkeypatch.setattr(job, "start", start_fake)
    monkeypatch.setattr(job, "can_fork", lambda plan: False)
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setattr(tempfile, "tempdir", None)


def swept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GRID / "sweep.json").read_text())
    return found


def test_a_sweep_of_a_folders_options_is_resumed_with_its_folder(team: Path, fake: None) -> None:
    assert main(["-m", *CELLS, "--config-dir", "../team"]) == 0
    data = swept()
    assert data["counts"] == {"ok": 2}
    assert data["config_dirs"] == [str(team)]
    assert data["command"] == f"python -m fastdiff -m {' '.join(CELLS)} --config-dir {team}"
    assert all(row["command"].endswith(f" --config-dir {team}") for row in data["rows"])
    assert VARIABLE not in os.environ
    assert main(["resume", str(GRID), "sweep.retry=all"]) == 0
    again = swept()
    assert again["started_at"] >= data["started_at"]
    assert again["config_dirs"] == data["config_dirs"]
    assert again["command"].endswith(f" --config-dir {team}")
    assert again["counts"] == {"ok": 2}


def test_a_sweep_whose_folder_is_gone_says_so_and_goes_on_with_another(
    team: Path, here: Path, fake: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *CELLS, "--config-dir", "../team"]) == 0
    team.rename(here / "moved")
    capsys.readouterr()
    assert main(["resume", str(GRID)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        f"fastdiff: {GRID} was begun with --config-dir {team}, and there is no such folder any more "
        f"instead: python -m fastdiff resume {GRID} --config-dir DIR, where its options are now"
    )
    assert main(["resume", str(GRID), "--config-dir", "../moved"]) == 0
    assert swept()["config_dirs"] == [str(here / "moved")]


def test_a_job_on_another_machine_has_the_folders_of_who_typed_the_sweep(
    team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed_elsewhere() -> job.Job:
        return job.Job(str(team), "attempt", job.Limits(), (), process=1)

    with searched([team]):
        with_folder = typed_elsewhere()
    without = typed_elsewhere()
    monkeypatch.setenv(VARIABLE, "what this machine has")
    with_folder._be_as_typed()
    assert os.environ[VARIABLE] == str(team)
    without._be_as_typed()
    assert VARIABLE not in os.environ


@pytest.mark.slow
def test_joblibs_processes_see_a_folder(team: Path) -> None:
    """Through Hydra, which composes in the job's own process, and through the job."""
    ended = subprocess.run(
        [
            *(sys.executable, str(SWEEPING / "sweeping.py"), "-m", *CELLS),
            *("hydra/launcher=joblib", "--config-dir", str(team)),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(team.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert swept()["counts"] == {"ok": 2}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_run_of_a_folders_model_in_a_process_of_its_own(sd_folder: Path, write: Write) -> None:
    text = f"defaults: [/schema/model/local@_here_, _self_]\npath: {sd_folder}\n"
    ours = write(
        "model/ours.yaml", f"{text}generation: {{prompt: a, steps: 2, height: 32, width: 32}}\n"
    )
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "fastdiff", "--config-dir=../team", "model=ours"),
            *("bench=once", "quality=none", "device=cpu", "hydra.run.dir=run"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(Path("run/report.json").read_text())
    assert report["status"] == "ok"
    assert report["config"]["model"]["option"] == "ours"
    assert report["config"]["model"]["path"] == str(sd_folder)
    assert report["origins"] == {"model=ours": {"file": str(ours), "sha256": sha256_of(ours)}}
    assert "--config-dir" not in " ".join(report["overrides"])
    assert f" --config-dir {ours.parent.parent}\n" in Path("run/report.md").read_text()
