"""Models on the hub: what is told without a network, what the hub's errors mean, and what is already on the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.errors as hub_errors
import pytest

from fastdiff.choices.compose import compose
from fastdiff.errors import ModelError
from fastdiff.models.hub import Hub, hub_cache, refused_by_hub
from fastdiff.models.sources import SHAPES_DIR, Model

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
)
CLOSED_PORT = "http://127.0.0.1:9"

UNREACHABLE = (
    "org/name is not on this machine, and the hub can't be reached\n"
    "  instead: connect to the network, or model=local model.path=DIR, or model=shapes"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and nothing set that would lead elsewhere."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    for name in ("NO_PROXY", "no_proxy"):  # a proxy would answer for the closed port
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "hub-home"


# Names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "foo", "/", "org/", "/name", "a/b/c", "a b/c", "../x", "org/..", "org/a--b", "org/a.git"],
)
def test_what_is_no_repository(name: str) -> None:
    with pytest.raises(ModelError) as error:
        Hub(id=name).facts()
    assert str(error.value) == (
        f"model.id={name or '(empty)'} is no repository on the hub: its name has the form org/name\n"
        "  instead: model.id=org/name, or model=local model.path=DIR for a folder"
    )


@pytest.mark.parametrize(
    "name",
    ["org/name", "stabilityai/stable-diffusion-xl-base-1.0", "a/b", "A-b_c.d/E.f-g_h"],
)
def test_what_is_a_repository_for_the_hub_is_one_here(name: str) -> None:
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(name)
    assert Hub(id=name).snapshot() is None


@pytest.mark.parametrize("revision", ["", "../main", "a b", "/etc", "refs/../x"])
def test_what_is_no_revision(revision: str) -> None:
    with pytest.raises(ModelError) as error:
        Hub(id="org/name", revision=revision).facts()
    assert str(error.value) == (
        f"model.revision={revision or '(empty)'} is no branch, tag or commit\n"
        "  instead: model.revision=null for the main branch, or a name such as v1.0"
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/x"}, "~/hf/hub"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/h", "HF_HUB_CACHE": "/c", "HUGGINGFACE_HUB_CACHE": "/old"}, "/c"),
    ],
)
def test_the_cache_is_where_the_hubs_client_has_it(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(expected).expanduser()
    asked = subprocess.run(
        [sys.executable, "-c", "from huggingface_hub.constants import *; print(HF_HUB_CACHE)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert asked.stdout.strip() == str(hub_cache())


# The named models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_named_model_is_planned_before_anything_is_downloaded(name: str) -> None:
    model = compose([f"model={name}"]).model
    assert isinstance(model, Hub)
    facts = model.facts()
    assert facts is not None
    assert facts.denoiser is not None
    assert facts.denoiser.fuses_qkv
    assert facts.vae is not None
    assert list(model.load_notices()) == [
        f"{model.id} is not on this machine yet; the run will download it"
    ]


def test_a_hub_model_that_nobody_has_seen_has_no_facts() -> None:
    assert Hub(id="org/name").facts() is None
    assert Hub(id="org/name").identity() == {"id": "org/name", "commit": "main", "variant": None}


# Without a network ---------------------------------------------------------------------------------


def fetch_in_own_process(**variables: str) -> str:
    """What `Hub.fetch` raises; the hub's client reads its variables when it is imported."""
    code = (
        "from fastdiff.errors import ModelError\n"
        "from fastdiff.models.hub import Hub\n"
        "import sys\n"
        "try: Hub(id='org/name').fetch()\n"
        "except ModelError as error: print(error, end='')\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return ended.stdout


def test_a_refused_connection_in_words() -> None:
    assert fetch_in_own_process(HF_ENDPOINT=CLOSED_PORT) == UNREACHABLE


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_forbidden_download_in_words(variable: str) -> None:
    assert fetch_in_own_process(**{variable: "1"}) == (
        "org/name is not on this machine, and HF_HUB_OFFLINE forbids to download it\n"
        "  instead: unset HF_HUB_OFFLINE, or model=local model.path=DIR, or model=shapes"
    )


def run_against_closed_port(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m fastdiff model=hub model.id=org/name ...` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "fastdiff", "model=hub", "model.id=org/name", *words],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": CLOSED_PORT},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize(
    "words",
    [[], ["precision=bf16"], ["quality=none", "hydra.run.dir=new/deeper"]],
    ids=["its own reference", "a reference first", "a folder by name"],
)
def test_a_run_against_a_refused_network_ends_with_2_and_leaves_nothing(
    words: list[str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    ended = run_against_closed_port(work, *words)
    assert ended.returncode == 2
    assert ended.stdout == ""
    said = f"asking the hub for org/name ... fastdiff: {UNREACHABLE}"
    assert " ".join(ended.stderr.split()).endswith(" ".join(said.split()))
    assert max(map(len, ended.stderr.splitlines())) <= 80
    assert "Traceback" not in ended.stderr
    assert list(work.iterdir()) == []


def test_a_run_that_its_own_process_refuses_leaves_a_users_files(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "mine").mkdir(parents=True)
    (work / "mine" / "precious.txt").write_text("years of work")
    ended = run_against_closed_port(work, "hydra.run.dir=mine")
    assert ended.returncode == 2
    assert [path.name for path in (work / "mine").iterdir()] == ["precious.txt"]
    assert (work / "mine" / "precious.txt").read_text() == "years of work"


# What the hub's errors mean ------------------------------------------------------------------------


def http_error(kind: type[Exception], message: str = "404 Client Error.") -> Exception:
    """An error as the hub's client raises it for an answer."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind(message, response=response)  # type: ignore[call-arg]


def in_words(error: Exception) -> str | None:
    refused = refused_by_hub("org/name", error)
    return str(refused) if refused else None


def test_a_gated_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    way_out = (
        "  instead: accept it on https://huggingface.co/org/name, then set HF_TOKEN to your token"
    )
    gated = http_error(hub_errors.GatedRepoError, "401 Client Error.")
    assert in_words(gated) == (
        "org/name is gated: its owner asks you to accept a licence first (HF_TOKEN is not set)\n"
        + way_out
    )
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    assert in_words(gated) == (
        "org/name is gated: its owner asks you to accept a licence first (your token has no access yet)\n"
        + way_out
    )


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (
            hub_errors.RepositoryNotFoundError,
            "404 Client Error.",
            "the hub has no repository org/name, or it is private and HF_TOKEN gives no access\n"
            "  instead: check the spelling of model.id, or set HF_TOKEN",
        ),
        (
            hub_errors.RevisionNotFoundError,
            "404 Client Error.",
            "org/name has no such revision\n"
            "  instead: model.revision=null for its main branch, or an existing tag",
        ),
        (
            hub_errors.RemoteEntryNotFoundError,
            "404 Client Error. (Request ID: x)\n\nEntry Not Found",
            "org/name lacks a file that is needed (404 Client Error. (Request ID: x))\n"
            "  instead: model.variant=null or another variant; fastdiff loads safetensors only, never pickles",
        ),
        (
            hub_errors.HfHubHTTPError,
            "429 Client Error: Too Many Requests\nmore",
            "the hub refused to give org/name (429 Client Error: Too Many Requests)\n"
            "  instead: try again later, or model=local model.path=DIR, or model=shapes",
        ),
        (
            hub_errors.DisabledRepoError,
            "403 Client Error.",
            "the hub refused to give org/name (403 Client Error.)\n"
            "  instead: try again later, or model=local model.path=DIR, or model=shapes",
        ),
    ],
)
def test_an_answer_of_the_hub_in_words(kind: type[Exception], message: str, expected: str) -> None:
    assert in_words(http_error(kind, message)) == expected


def test_a_pipeline_without_safetensors() -> None:
    error = OSError("Error no file named model.safetensors found in directory unet.")
    assert in_words(error) == (
        "org/name lacks a file that is needed (Error no file named model.safetensors found in directory unet.)\n"
        "  instead: model.variant=null or another variant; fastdiff loads safetensors only, never pickles"
    )


@pytest.mark.parametrize(
    "error",
    [
        hub_errors.OfflineModeIsEnabled("offline"),
        hub_errors.LocalEntryNotFoundError("not in the cache"),
        ConnectionRefusedError(111, "Connection refused"),
        TimeoutError("timed out"),
        OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
    ],
)
def test_no_connection_in_words(error: Exception) -> None:
    assert in_words(error) == UNREACHABLE


def test_what_is_not_the_model_has_its_own_way_out_and_a_licence_stays_to_be_accepted() -> None:
    gated = refused_by_hub("org/name", http_error(hub_errors.GatedRepoError))
    assert gated is not None
    assert str(gated.with_way_out("vae=default")) == (
        "org/name is gated: its owner asks you to accept a licence first (HF_TOKEN is not set)\n"
        "  instead: accept it on https://huggingface.co/org/name, then set HF_TOKEN to your token, or vae=default"
    )
    unreachable = refused_by_hub("org/name", TimeoutError("timed out"))
    assert unreachable is not None
    assert str(unreachable.with_way_out("vae=default")) == (
        "org/name is not on this machine, and the hub can't be reached\n  instead: vae=default"
    )


def test_the_cause_of_an_error_is_looked_at() -> None:
    outer = OSError("can't load the model")
    outer.__cause__ = http_error(hub_errors.GatedRepoError)
    assert str(in_words(outer)).startswith("org/name is gated")
    circle = ValueError("a")
    circle.__context__ = ValueError("b")
    circle.__context__.__context__ = circle
    assert in_words(circle) is None


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    assert in_words(RuntimeError("CUDA error")) is None


# What is on the machine ----------------------------------------------------------------------------


@pytest.fixture
def cached(home: Path) -> Path:
    """The embedded model as the hub's client would have stored org/name; returns its snapshot."""
    return store(home, "org/name")


def store(home: Path, name: str, revision: str = "main", commit: str = COMMIT) -> Path:
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.copytree(SHAPES_DIR, snapshot, copy_function=os.symlink)
    return snapshot


def rename_weights(snapshot: Path, variant: str) -> None:
    for file in snapshot.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))


def test_a_snapshot_is_found_by_branch_by_tag_and_by_commit(cached: Path, home: Path) -> None:
    assert Hub(id="org/name").snapshot() == cached
    assert Hub(id="org/name", revision="main").snapshot() == cached
    assert Hub(id="org/name", revision=COMMIT).snapshot() == cached
    assert Hub(id="org/name", revision="v2").snapshot() is None
    other = store(home, "org/name", "refs-pr/v2", "f" * 40)
    assert Hub(id="org/name", revision="refs-pr/v2").snapshot() == other
    assert Hub(id="org/other").snapshot() is None


def test_a_snapshot_is_known_by_its_files(cached: Path) -> None:
    model = Hub(id="org/name")
    assert model.complete()
    assert list(model.load_notices()) == []
    facts = model.facts()
    assert facts is not None
    assert facts.pipeline == "StableDiffusionXLPipeline"
    assert facts.denoiser is not None
    assert facts.denoiser.class_name == "UNet2DConditionModel"
    assert facts.parameters is not None
    assert facts.parameters > 0
    assert model.identity() == {"id": "org/name", "commit": COMMIT, "variant": None}


def test_a_snapshot_without_weights_has_facts_and_is_not_complete(cached: Path) -> None:
    for file in cached.rglob("*.safetensors"):
        file.unlink()
    model = Hub(id="org/name")
    assert not model.complete()
    facts = model.facts()
    assert facts is not None
    assert facts.denoiser is not None
    assert facts.parameters is None
    assert list(model.load_notices()) == [
        "org/name is not on this machine yet; the run will download it"
    ]


def test_a_snapshot_that_is_here_in_part_while_the_hub_is_forbidden(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Hub(id="org/name").facts() is not None
    (cached / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        Hub(id="org/name").facts()
    assert str(error.value) == (
        "org/name is only in part on this machine, and HF_HUB_OFFLINE forbids to download it\n"
        "  instead: unset HF_HUB_OFFLINE, or model=local model.path=DIR, or model=shapes"
    )


def test_a_variant_that_is_here_is_complete_and_the_plain_files_are_not(cached: Path) -> None:
    rename_weights(cached, "fp16")
    half, whole = Hub(id="org/name", variant="fp16"), Hub(id="org/name")
    assert half.complete()
    assert half.facts() is not None
    assert not whole.complete()
    assert whole.facts() is not None  # nothing is wrong: the run will download the plain files


def test_plain_files_do_not_stand_for_a_variant(cached: Path) -> None:
    assert not Hub(id="org/name", variant="fp16").complete()
    assert Hub(id="org/name", variant="fp16").facts() is not None


def test_a_component_without_the_variant_is_loaded_from_its_plain_files(cached: Path) -> None:
    rename_weights(cached, "fp16")
    vae = cached / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    vae.rename(cached / "vae" / "diffusion_pytorch_model.safetensors")
    assert Hub(id="org/name", variant="fp16").complete()


def test_shards_are_weights(cached: Path) -> None:
    unet = cached / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    assert Hub(id="org/name").complete()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_download_that_stopped_between_shards_goes_on(cached: Path, variant: str | None) -> None:
    """It is no broken model: the run downloads the rest."""
    named = f".{variant}" * bool(variant)
    if variant:
        rename_weights(cached, variant)
    whole = cached / "unet" / f"diffusion_pytorch_model{named}.safetensors"
    first, second = (f"diffusion_pytorch_model{named}-0000{n}-of-00002.safetensors" for n in (1, 2))
    whole.rename(whole.with_name(first))
    index = whole.with_name(f"diffusion_pytorch_model.safetensors.index{named}.json")
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    model = Hub(id="org/name", variant=variant)
    assert not model.complete()
    facts = model.facts()
    assert facts is not None
    assert facts.parameters is None
    whole.with_name(second).write_bytes(b"")
    assert model.complete()


def test_a_pipeline_of_code_is_refused_before_its_weights_are_here(cached: Path) -> None:
    for file in cached.rglob("*.safetensors"):
        file.unlink()
    index = json.loads((cached / "model_index.json").read_text())
    (cached / "model_index.json").unlink()
    index["_class_name"] = ["pipeline", "MyPipeline"]
    (cached / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"its class pipeline\.MyPipeline is code in"):
        Hub(id="org/name").facts()


@pytest.fixture
def with_checker(cached: Path) -> Path:
    """The snapshot with a safety checker whose weights nobody downloaded."""
    index = json.loads((cached / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (cached / "model_index.json").unlink()
    (cached / "model_index.json").write_text(json.dumps(index))
    (cached / "safety_checker").mkdir()
    (cached / "safety_checker" / "config.json").write_text("{}")
    return cached


def test_a_safety_checker_that_is_left_out_need_not_be_here(with_checker: Path) -> None:
    assert not Hub(id="org/name").complete()
    assert Hub(id="org/name", safety_checker=False).complete()
    assert Hub(id="org/name", safety_checker=False).facts() is not None


def test_what_is_still_to_be_downloaded(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each component's variants is counted, without what is here or belongs to no component."""
    plain = dict.fromkeys(map(str, weights_of(cached)), 1000)
    listed = {
        **plain,
        "unet/diffusion_pytorch_model.fp16.safetensors": 500,
        "text_encoder/model.fp16.safetensors": 10,
        "sd_xl_base_1.0.safetensors": 10**6,
        "vae_1_0/diffusion_pytorch_model.safetensors": 10**6,
        "unet/config.json": 7,
    }
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in listed.items()]
    info = SimpleNamespace(siblings=siblings)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    assert Hub(id="org/name").download_bytes() is None
    assert Hub(id="org/name", variant="fp16").download_bytes() == 510
    (cached / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert Hub(id="org/name").download_bytes() == 1000


def weights_of(snapshot: Path) -> list[Path]:
    return [path.relative_to(snapshot) for path in sorted(snapshot.rglob("*.safetensors"))]


@pytest.mark.slow
def test_a_snapshot_is_loaded_without_a_network(cached: Path) -> None:
    code = (
        "from fastdiff.models.hub import Hub\n"
        "pipeline = Hub(id='org/name').load(None, {})\n"
        "print(type(pipeline).__name__, type(pipeline.unet).__name__)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.stdout.splitlines()[-1:] == ["StableDiffusionXLPipeline UNet2DConditionModel"], (
        ended.stderr
    )


def test_every_model_is_a_slot_option() -> None:
    assert isinstance(compose(["model=hub", "model.id=org/name"]).model, Model)
