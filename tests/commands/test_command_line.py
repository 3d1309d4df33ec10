"""The command line as a person types it: refusals to the letter, nothing left behind, and nothing computed for them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fastdiff.machine.environment
from fastdiff.__main__ import main
from fastdiff.choices.compose import compose
from fastdiff.choices.options import default_options, option_files
from fastdiff.choices.verbs import VERBS
from fastdiff.display.report import summary
from fastdiff.errors import UsageError
from fastdiff.machine.environment import Environment, Gpu, Unusable, version_of
from fastdiff.models.sources import SHAPES_DIR

ROOT = Path(__file__).parents[2]

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

VARIABLES = ("HYDRA_FULL_ERROR", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT")
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty working directory on a machine without a GPU, and an empty cache of the hub."""
    for name in (*VARIABLES, *CACHES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(fastdiff.machine.environment, "this_machine", lambda: CPU)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Types the words, expects exit code 2, an empty standard output and nothing written; returns the message."""

    def type_(*words: str) -> str:
        before = everything_in(here)
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert everything_in(here) == before
        assert said.err.startswith("fastdiff: ")
        return unwrapped(said.err.removeprefix("fastdiff: ").removesuffix("\n"))

    return type_


def unwrapped(text: str) -> str:
    """A message whose long lines are whole again: what goes on is four columns further in than its beginning."""
    whole: list[str] = []
    for line in text.split("\n"):
        if whole and depth(line) == depth(whole[-1]) + 4:
            whole[-1] += f" {line.strip()}"
        else:
            whole.append(line)
    return "\n".join(whole)


def depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Paths below a folder with what the files hold."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


def lines(*texts: str) -> str:
    return "\n".join(texts)


# Refusals ------------------------------------------------------------------------------------------

KEYS = (
    "there are: model, precision, vae, scheduler, lora, attention, qkv, memory_format, quant, cache, "
    "memory, compile, allocator, bench, quality, experiment, recipe, generation, device, "
    "allow_no_effect, profile"
)

COMPILES = ", ".join(
    f"compile={name}"
    for name in (
        "aot",
        "default",
        "dynamic",
        "max_autotune",
        "max_autotune_no_cudagraphs",
        "reduce_overhead",
        "regional",
        "regions",
    )
)

MISSPELLED = {
    ("quant=int9", "precision=fp61", "gneration.steps=3"): (
        "3 things can't be read",
        "  quant has no option 'int9'",
        "    did you mean: quant=int8",
        "  precision has no option 'fp61'",
        "    did you mean: precision=fp16",
        "  there is no key 'gneration.steps'",
        "    did you mean: generation",
    ),
    ("generation.stpes=3", "plan", "generation.steps=abc"): (
        "2 things can't be read",
        "  generation has no key 'stpes'",
        "    did you mean: generation.steps",
        "  'plan' is a command, and a command comes first",
        "    instead: python -m fastdiff plan ...",
    ),
    ("compile.mode=max-autotune",): (
        "compile=none has no key 'mode'",
        "  did you mean: compile=max_autotune",
    ),
    ("precision.dtype=bf16",): (
        "precision=fp32 has no key 'dtype'",
        "  did you mean: precision=bf16",
    ),
    ("hydra.foo=1",): (
        "Hydra itself can't read hydra.foo=1",
        "  instead: leave it out; of Hydra's own keys fastdiff needs hydra.run.dir=DIR, and sweeps "
        "hydra/launcher=NAME with its keys",
    ),
    ("hydra/launcher=ray",): (
        "hydra/launcher=ray: a single run is launched by nobody",
        "  instead: -m before it, or leave it out",
    ),
    ("-m", "precision=fp16,bf16", "compile.freezing=true,false"): (
        "compile=none has no key 'freezing'",
        f"  it belongs to: {COMPILES}",
    ),
    ("-m", "generation.steps=3,abc", "hydra.foo=1"): (
        "Hydra itself can't read hydra.foo=1",
        "  instead: leave it out; of Hydra's own keys fastdiff needs hydra.run.dir=DIR, and sweeps "
        "hydra/launcher=NAME with its keys",
    ),
    ("-m", "compile=none,default", "compile.freezing=true", "bench.modus=1"): (
        "2 things can't be read",
        "  compile=none has no key 'freezing'",
        f"    it belongs to: {COMPILES}",
        "  bench=quick has no key 'modus'",
        "    it has: warmup, runs, most_warmup",
    ),
    ("-m", "generation.steps=(1"): (
        "generation.steps=(1 can't be read: brackets and quotes must be closed, and a text with signs in it quoted",
        "  instead: quote it twice, once for the shell and once for Hydra: 'generation.steps=\"...\"'",
    ),
    ("sweep.name=x", "quant=int8"): (
        "sweep.name is about a sweep, and this is a single run",
        "  instead: -m makes a sweep of what follows it",
    ),
    ("qaunt=int8",): ("there is no key 'qaunt'", "  did you mean: quant"),
    ("QUANT=int8",): ("there is no key 'QUANT'", "  did you mean: quant"),
    ("steps=3",): ("there is no key 'steps'", "  did you mean: generation.steps"),
    ("min_in_features=3",): (
        "there is no key 'min_in_features'",
        "  did you mean: quant.min_in_features",
    ),
    ("device.foo=1",): ("there is no key 'device.foo'", "  did you mean: device"),
    ("quant@here=int8",): ("there is no key 'quant@here'", "  did you mean: quant"),
    ("quant=int8", "quant.min_infeatures=1"): (
        "quant=int8 has no key 'min_infeatures'",
        "  did you mean: quant.min_in_features",
    ),
    ("quant.min_in_features=3",): (
        "quant=none has no key 'min_in_features'",
        "  it belongs to: quant=fp8, quant=fp8_weight_only, quant=int8, quant=int8_weight_only",
    ),
    ("model.path=DIR",): (
        "model=shapes has no key 'path'",
        "  it belongs to: model=local, model=single_file",
    ),
    ("bench.frequency=1",): (
        "bench=quick has no key 'frequency'",
        "  it has: warmup, runs, most_warmup",
    ),
    ("generation.promt=a cat",): (
        "generation has no key 'promt'",
        "  did you mean: generation.prompt",
    ),
    ("model.generation.stpes=3",): (
        "model=shapes has no key 'generation.stpes'",
        "  did you mean: model.generation.steps",
    ),
    ("quant=int9",): ("quant has no option 'int9'", "  did you mean: quant=int8"),
    ("model=shaps",): ("model has no option 'shaps'", "  did you mean: model=shapes"),
    ("bench=twice",): ("bench has no option 'twice'", "  there are: once, quick, thorough"),
    ("quant=null",): (
        "quant has no option 'null'",
        "  choose one of: fp8, fp8_weight_only, int8, int8_weight_only, none",
    ),
    ("quant=",): (
        "quant has no option ''",
        "  choose one of: fp8, fp8_weight_only, int8, int8_weight_only, none",
    ),
    ("quant=[int8]",): ("quant has no option '[int8]'", "  did you mean: quant=int8"),
    ("quant=int8,fp8",): (
        "quant takes one option at a time, not 'int8,fp8'",
        "  instead: quant=int8, or -m quant=int8,fp8 for a run of each",
    ),
    ("plam",): (
        "'plam' is neither a command nor an override of the form key=value",
        "  did you mean: plan",
    ),
    ("precision=bf16", "plan"): (
        "'plan' is a command, and a command comes first",
        "  instead: python -m fastdiff plan ...",
    ),
    ("--verbose",): (
        "there is no option --verbose",
        "  there are: -m (every combination), --config-dir DIR, --help, --version",
    ),
    ("plan", "--jason"): (
        "plan has no option --jason",
        "  did you mean: --json",
    ),
    ("doctor", "now"): (
        "doctor takes no arguments, not 'now'",
        "  instead: python -m fastdiff doctor",
    ),
    ("+quant.foo=1",): (
        "+quant.foo=1: keys can't be added or removed, every key exists already",
        "  instead: quant.foo=1",
    ),
    ("++quant.foo=1",): (
        "++quant.foo=1: keys can't be added or removed, every key exists already",
        "  instead: quant.foo=1",
    ),
    ("~quant",): (
        "~quant: a slot can't be removed",
        "  instead: quant=none, or another option of quant",
    ),
}

WRONG_VALUES = {
    ("generation.steps=abc",): (
        "generation.steps can't be 'abc': it must be a whole number or null",
        "  for example: generation.steps=30",
    ),
    ("generation.height=64.5",): (
        "generation.height can't be '64.5': it must be a whole number or null",
        "  for example: generation.height=512",
    ),
    ("generation.guidance_scale=much",): (
        "generation.guidance_scale can't be 'much': it must be a number or null",
        "  for example: generation.guidance_scale=5.0",
    ),
    ("generation.seed=null",): (
        "generation.seed can't be 'null': it must be a whole number",
        "  for example: generation.seed=0",
    ),
    ("bench.runs=2.5",): (
        "bench.runs can't be '2.5': it must be a whole number",
        "  for example: bench.runs=5",
    ),
    ("compile=default", "compile.fullgraph=maybe"): (
        "compile.fullgraph can't be 'maybe': it must be true or false",
        "  for example: compile.fullgraph=true",
    ),
    ("compile=default", "compile.targets=denoiser"): (
        "compile.targets can't be 'denoiser': it must be a list of texts",
        "  for example: compile.targets=[denoiser]",
    ),
    ("quant=int8", "quant.swap_channels=[many]"): (
        "quant.swap_channels can't be '[many]': it must be a list of whole numbers",
        "  for example: quant.swap_channels=[128]",
    ),
    ("quant=int8", "quant.skip_shapes=all"): (
        "quant.skip_shapes can't be 'all': it must be a list of pairs of whole numbers",
        "  for example: quant.skip_shapes=[[640, 640]]",
    ),
    ("quant=fp8", "quant.granularity=per_rwo"): (
        "quant.granularity can't be 'per_rwo'",
        "  did you mean: quant.granularity=per_row",
    ),
    ("quant=fp8", "quant.granularity=fine"): (
        "quant.granularity can't be 'fine'",
        "  there are: per_tensor, per_row",
    ),
    ("allow_no_effect=maybe",): (
        "allow_no_effect can't be 'maybe': it must be true or false",
        "  for example: allow_no_effect=true",
    ),
    ("device=null",): (
        "device can't be 'null': it must be a text",
        "  for example: device=auto",
    ),
    ("device=cpu,cuda",): (
        "device=cpu,cuda gives several values, and a run takes one",
        "  instead: device=cpu, or -m device=cpu,cuda for a run of each",
    ),
    ("model.generation=3",): (
        "model.generation has keys, not a value",
        "  there are: model.generation.prompt, model.generation.negative_prompt, model.generation.steps, "
        "model.generation.guidance_scale, model.generation.height, model.generation.width, "
        "model.generation.call",
    ),
    ("generation=fast",): (
        "generation has keys, not options",
        "  there are: generation.prompt, generation.negative_prompt, generation.steps, "
        "generation.guidance_scale, generation.height, generation.width, generation.images_per_prompt, "
        "generation.seed, generation.call",
    ),
    ("generation.steps=(1",): (
        "generation.steps=(1 can't be read: brackets and quotes must be closed, and a text with signs in it quoted",
        "  instead: quote it twice, once for the shell and once for Hydra: 'generation.steps=\"...\"'",
    ),
    ("generation.prompt=[it's]",): (
        "generation.prompt=[it's] can't be read as a list of texts",
        '  instead: put each text in double quotes: \'generation.prompt=["a cat", "a dog"]\'',
    ),
}

ONE = "this run can't work here (1 problem)"

IMPOSSIBLE = {
    ("generation.height=63",): (
        ONE,
        "  generation.height=63   must be a multiple of 8, because latents are",
        "                         instead: generation.height=64",
    ),
    ("generation.width=-8",): (
        ONE,
        "  generation.width=-8   must be a multiple of 8, because latents are",
        "                        instead: generation.width=8",
    ),
    ("generation.steps=0",): (
        ONE,
        "  generation.steps=0   must be at least 1",
        "                       instead: generation.steps=1",
    ),
    ("generation.guidance_scale=nan",): (
        ONE,
        "  generation.guidance_scale=nan",
        "                   is not a finite number",
        "                   instead: generation.guidance_scale=0",
    ),
    ("generation.guidance_scale=inf",): (
        ONE,
        "  generation.guidance_scale=inf",
        "                   is not a finite number",
        "                   instead: generation.guidance_scale=0",
    ),
    ("generation.seed=-1",): (
        ONE,
        "  generation.seed=-1   must be at least 0",
        "                       instead: generation.seed=0",
    ),
    ("generation.prompt=[]",): (
        ONE,
        "  generation.prompt=[]   there is nothing to draw: a prompt is a text, or a list",
        "                         of texts, none of them empty",
        "                         instead: generation.prompt='a photo of an astronaut',",
        "                         or null for the model's own",
    ),
    ("generation.prompt=",): (
        ONE,
        "  generation.prompt=''   there is nothing to draw: a prompt is a text, or a list",
        "                         of texts, none of them empty",
        "                         instead: generation.prompt='a photo of an astronaut',",
        "                         or null for the model's own",
    ),
    ("bench.runs=-1",): (
        ONE,
        "  bench.runs=-1   nothing would be timed",
        "                  instead: bench.runs=1",
    ),
    ("bench.warmup=-1",): (
        ONE,
        "  bench.warmup=-1   can't be negative",
        "                    instead: bench.warmup=0",
    ),
    ("device=gpu",): (
        ONE,
        "  device=gpu   is none of auto, cpu, cuda, mps",
        "               instead: device=cuda",
    ),
    ("device=cuda:1",): (
        ONE,
        "  device=cuda:1   is none of auto, cpu, cuda, mps",
        "                  instead: CUDA_VISIBLE_DEVICES=1 with device=cuda",
    ),
    ("generation.seed=9223372036854775808",): (
        ONE,
        "  generation.seed=9223372036854775808",
        "                   must be at most 9223372036854775807: the largest that a",
        "                   generator takes",
        "                   instead: generation.seed=9223372036854775807",
    ),
    ("generation.negative_prompt=[a, b]",): (
        ONE,
        "  generation.negative_prompt=[a, b]",
        "                   is one text for every picture, not a list of texts",
        "                   instead: generation.negative_prompt='a, b'",
    ),
    ("device=mps",): (
        ONE,
        "  device=mps   this is not an Apple-silicon Mac",
        "               instead: device=cpu",
    ),
    ("device=cuda",): (
        ONE,
        "  device=cuda   the installed torch 2.13.0 is built without CUDA",
        "                instead: device=cpu, or a CUDA build of torch",
    ),
}

MODELS = {
    ("model=local",): (
        "model=local needs a folder",
        "  instead: model.path=DIR, a folder that pipeline.save_pretrained(DIR) wrote",
    ),
    ("model=local", "model.path=nowhere"): (
        "no such folder: {here}/nowhere",
        "  why: {here} holds no such name",
        "  instead: name a folder that save_pretrained() wrote",
    ),
    ("model=local", "model.path=no, where (really)"): (
        "no such folder: {here}/no, where (really)",
        "  why: {here} holds no such name",
        "  instead: name a folder that save_pretrained() wrote",
    ),
    ("model=single_file",): (
        "model=single_file needs a file",
        "  instead: model.path=FILE.safetensors, a checkpoint that holds the whole pipeline",
    ),
    ("model=single_file", "model.path=x.safetensors"): (
        "no such file: {here}/x.safetensors",
        "  why: {here} holds no such name",
        "  instead: name one .safetensors file",
    ),
    ("model=hub",): (
        "model.id=(empty) is no repository on the hub: its name has the form org/name",
        "  instead: model.id=org/name, or model=local model.path=DIR for a folder",
    ),
    ("model=hub", "model.id=org/name", "model.revision=../main"): (
        "model.revision=../main is no branch, tag or commit",
        "  instead: model.revision=null for the main branch, or a name such as v1.0",
    ),
    ("quality.reference=nope.png",): (
        ONE,
        "  quality.reference=nope.png   there is no such picture",
        "                               instead: quality.reference=auto, which draws it,",
        "                               or the path of a PNG or JPEG",
    ),
    ("model=local", "model.path=nowhere", "quant=fp8", "generation.height=63"): (
        "no such folder: {here}/nowhere",
        "  why: {here} holds no such name",
        "  instead: name a folder that save_pretrained() wrote",
        "besides, this run can't work here (2 problems)",
        "  generation.height=63   must be a multiple of 8, because latents are",
        "                         instead: generation.height=64",
        "  quant=fp8              needs an NVIDIA GPU of compute capability 8.9 or newer;",
        "                         device=cpu",
        "                         instead: quant=int8",
        "                         source: https://github.com/pytorch/ao/tree/main/torchao/quantization",
    ),
}


@pytest.mark.parametrize(
    ("words", "message"),
    [*MISSPELLED.items(), *WRONG_VALUES.items(), *IMPOSSIBLE.items(), *MODELS.items()],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_refusal_says_what_is_wrong_and_the_way_out(
    words: tuple[str, ...], message: tuple[str, ...], refused: Refused, here: Path
) -> None:
    assert refused(*words) == lines(*message).replace("{here}", str(here))


@pytest.mark.parametrize(
    "name",
    ["foo", "a b/c", "../x", "org/../x", "org/na:me", "org/a--b", "org/x.git", "org/", "/x"],
)
def test_a_malformed_id_of_a_repository_is_refused(name: str, refused: Refused) -> None:
    assert refused("model=hub", f"model.id={name}") == lines(
        f"model.id={name} is no repository on the hub: its name has the form org/name",
        "  instead: model.id=org/name, or model=local model.path=DIR for a folder",
    )


def test_an_unknown_key_with_no_near_one_gets_the_list(refused: Refused) -> None:
    assert refused("colour=red") == lines("there is no key 'colour'", f"  {KEYS}")


def test_a_word_like_no_command_gets_the_list(refused: Refused) -> None:
    assert refused("xyzzy") == lines(
        "'xyzzy' is neither a command nor an override of the form key=value",
        f"  commands: {', '.join(VERBS)}; or slot=option",
    )


def test_every_problem_comes_at_once(refused: Refused) -> None:
    words = "quant=fp8 precision=tf32 attention=math qkv=fused generation.height=63 bench.runs=0"
    assert refused(*words.split()) == lines(
        "this run can't work here (5 problems)",
        "  generation.height=63   must be a multiple of 8, because latents are",
        "                         instead: generation.height=64",
        "  bench.runs=0           nothing would be timed",
        "                         instead: bench.runs=1",
        "  precision=tf32         needs an NVIDIA GPU of compute capability 8.0 or newer;",
        "                         device=cpu",
        "                         instead: precision=bf16, or precision=fp32",
        "                         source: https://huggingface.co/docs/diffusers/optimization/fp16",
        "  attention=math         can't be combined with qkv=fused: fusing replaces the",
        "                         attention processor",
        "                         instead: qkv=separate, or attention=sdpa_math",
        "  quant=fp8              needs an NVIDIA GPU of compute capability 8.9 or newer;",
        "                         device=cpu",
        "                         instead: quant=int8",
        "                         source: https://github.com/pytorch/ao/tree/main/torchao/quantization",
    )


def test_a_folder_that_is_no_pipeline(refused: Refused, here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "cat.png").touch()
    assert refused("model=local", "model.path=photos") == lines(
        f"not a pipeline: {here}/photos",
        "  why: it has no model_index.json",
        "  instead: name a folder that save_pretrained() wrote",
    )


def test_a_misspelled_folder_gets_the_near_one(refused: Refused, here: Path) -> None:
    shutil.copytree(SHAPES_DIR, here / "my-model")
    (here / "my-modles").mkdir()  # nearer, and no pipeline
    assert refused("model=local", "model.path=my-modle") == lines(
        f"no such folder: {here}/my-modle",
        f"  why: {here} holds no such name",
        f"  instead: model.path={here}/my-model",
    )


def test_a_folder_with_pickles_only(refused: Refused, here: Path) -> None:
    folder = here / "pickled"
    shutil.copytree(SHAPES_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    message = refused("model=local", "model.path=pickled")
    first = json.loads((folder / "model_index.json").read_text())
    part = next(name for name in first if (folder / name / "diffusion_pytorch_model.bin").is_file())
    assert message == lines(
        f"component {part} has only pickled weights: {folder}/{part}/diffusion_pytorch_model.bin",
        "  why: fastdiff loads only safetensors, because a pickle can run code when it is opened",
        "  instead: if you trust it, load it once with diffusers and "
        "save_pretrained(..., safe_serialization=True)",
    )


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_model_that_is_not_here_while_the_hub_is_forbidden(
    variable: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    expected = lines(
        "org/name is not on this machine, and HF_HUB_OFFLINE forbids to download it",
        "  instead: unset HF_HUB_OFFLINE, or model=local model.path=DIR, or model=shapes",
    )
    assert refused("model=hub", "model.id=org/name") == expected
    assert refused("plan", "model=hub", "model.id=org/name") == expected


# Where a run can't write ---------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_refused_before_anything_is_written(
    refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    assert refused() == lines(
        f"no room on the disk: 1 MB are free in {here}, a run needs 50 MB",
        "  instead: make room, or hydra.run.dir=DIR on another disk",
    )


def test_a_disk_that_fills_up_while_a_run_goes_on_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: list[str]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")

    monkeypatch.setattr("fastdiff.commands.plan.run", full)
    assert main(["plan"]) == 1
    assert capsys.readouterr().err == lines(
        "fastdiff: no room on the disk: [Errno 28] No space left on device: 'log.txt'",
        "  instead: make room and type the same line again\n",
    )


def test_a_file_where_the_folder_should_be(refused: Refused, here: Path) -> None:
    (here / "results").write_text("mine")
    assert refused("hydra.run.dir=results") == lines(
        f"can't write to results: {here}/results is a file",
        "  instead: start where you may write, or hydra.run.dir=DIR",
    )
    assert refused("hydra.run.dir=results/today") == lines(
        f"can't write to results/today: {here}/results is a file",
        "  instead: start where you may write, or hydra.run.dir=DIR",
    )


def test_a_folder_where_nobody_may_write(
    refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTDIFF_CACHE_DIR")  # or it would be refused as well
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    assert refused("hydra.run.dir=results") == lines(
        f"can't write to results: {here} is read-only for you",
        "  instead: start where you may write, or hydra.run.dir=DIR",
    )


@pytest.fixture
def refused_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that is found out after Hydra made the folder."""

    def execute(*_: Any) -> None:
        raise UsageError("not like this")

    monkeypatch.setattr("fastdiff.runs.single.execute", execute)


@pytest.mark.usefixtures("refused_late")
def test_a_refusal_leaves_a_users_own_folder_alone(refused: Refused, here: Path) -> None:
    for words in (["hydra.run.dir=mine"], ["hydra.run.dir=mine/new"], ["hydra.run.dir=."]):
        (here / "mine").mkdir(exist_ok=True)
        (here / "mine" / "precious.txt").write_text("years of work")
        refused(*words)
        assert (here / "mine" / "precious.txt").read_text() == "years of work"


@pytest.mark.usefixtures("refused_late")
def test_a_refusal_leaves_the_working_directory(refused: Refused, here: Path) -> None:
    for folder in ("new", "new/deeper", "a/b/c/d"):
        refused(f"hydra.run.dir={folder}")
    assert here.is_dir()


# Tracebacks ----------------------------------------------------------------------------------------


def test_a_refusal_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    main(["generation.steps=abc"])
    assert "Traceback" not in capsys.readouterr().err


def test_hydra_full_error_adds_the_traceback_after_the_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["generation.steps=abc"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastdiff: generation.steps can't be 'abc'")
    assert "Traceback (most recent call last):" in said
    assert "fastdiff.errors.UsageError" in said


def test_ctrl_c_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdiff.commands.plan.run", interrupted)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "fastdiff: interrupted\n"


# What a plan says ----------------------------------------------------------------------------------


@pytest.fixture
def plan_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """`plan --json`: exit code and content."""

    def type_(*words: str) -> tuple[int, Any]:
        code = main(["plan", "--json", *words])
        said = capsys.readouterr()
        assert said.err == ""
        return code, json.loads(said.out)

    return type_


PROMPTS = [
    "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k",
    'a cat\'s (very) "fluffy" tail',
    "${oc.env:HOME} and $HOME and ${generation.seed}",
    'back\\slash, \\"quoted\\", and one at the end\\',
    "a=b, [c], {d: e}; f:g | h & i ~ j + k # l % m @ n * o ? p ! q / r < s > t ^ u _ v ` w",
    "'single' at both 'ends'",
    '"double" at both "ends"',
    " blanks around ",
    "[not, a list",
    "(weights:1.2), ((more))",
    "two\nlines\tand a tab",
    "ein rotes Dreieck über blauem Grund, 赤い丸, 🟥",
    "null and void",
    "1234",
    "true",
    "-",
    "\\",
    '"',
    "$",
    "${",
    "\\${x}",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_as_it_was_typed(
    prompt: str, plan_of: Callable[..., tuple[int, Any]]
) -> None:
    code, found = plan_of(f"generation.prompt={prompt}", f"generation.negative_prompt={prompt}")
    assert code == 0
    assert found["config"]["generation"]["prompt"] == prompt
    assert found["config"]["generation"]["negative_prompt"] == prompt


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        ('"in quotes"', "in quotes"),
        ("'in quotes'", "in quotes"),
        ("null", "a red circle left of a blue star on a white background"),
        ('[a red circle, "a star, blue"]', ["a red circle", "a star, blue"]),
    ],
)
def test_quotes_null_and_lists_keep_their_meaning(
    typed: str, prompt: Any, plan_of: Callable[..., tuple[int, Any]]
) -> None:
    _, found = plan_of(f"generation.prompt={typed}")
    assert found["config"]["generation"]["prompt"] == prompt


def test_plan_json_holds_device_steps_notices_problems_and_the_config(
    plan_of: Callable[..., tuple[int, Any]],
) -> None:
    code, found = plan_of("quant=int8", "qkv=fused")
    assert code == 0
    assert set(found) == {"device", "plan", "notices", "problems", "config"}
    assert found["device"] == "cpu"
    assert found["problems"] == []
    assert [(step["pass"], step["stage"], step["components"]) for step in found["plan"]] == [
        ("precision.fp32", "load", ["text_encoder", "text_encoder_2", "unet", "vae"]),
        ("qkv.fused", "fuse", ["unet", "vae"]),
        ("quant.int8", "quantize", ["unet", "vae"]),
        ("attention.sdpa", "attention", ["unet"]),
        ("device", "place", ["text_encoder", "text_encoder_2", "unet", "vae"]),
    ]
    assert all(set(step) >= {"does", "source"} for step in found["plan"])
    assert found["notices"] == [
        {
            "choice": "quant=int8",
            "text": "without compile int8 is usually slower than no quantization, on a GPU by far; "
            "compile=regional is the cheapest",
        }
    ]
    assert found["config"]["quant"]["option"] == "int8"
    assert found["config"]["quant"]["min_in_features"] == 17
    assert found["config"]["generation"]["steps"] == 25


def test_plan_json_tells_problems_as_data_with_exit_code_2(
    plan_of: Callable[..., tuple[int, Any]],
) -> None:
    code, found = plan_of("generation.height=63")
    assert code == 2
    assert found == {
        "problems": [
            {
                "choice": "generation.height=63",
                "reason": "must be a multiple of 8, because latents are",
                "instead": "generation.height=64",
                "source": None,
            }
        ]
    }


def test_plan_json_tells_what_it_could_not_read_as_data(
    plan_of: Callable[..., tuple[int, Any]],
) -> None:
    code, found = plan_of("quant=int9")
    assert code == 2
    assert found == {"error": "quant has no option 'int9'\n  did you mean: quant=int8"}


def test_plan_json_tells_of_the_model_and_of_the_problems_beside_it(
    plan_of: Callable[..., tuple[int, Any]], here: Path
) -> None:
    code, found = plan_of("model=local", "model.path=nope", "bench.runs=0")
    assert code == 2
    assert found["error"] == lines(
        f"no such folder: {here}/nope",
        f"  why: {here} holds no such name",
        "  instead: name a folder that save_pretrained() wrote",
    )
    assert [problem["choice"] for problem in found["problems"]] == ["bench.runs=0"]


def test_plan_json_tells_that_a_model_will_be_downloaded(
    plan_of: Callable[..., tuple[int, Any]],
) -> None:
    _, found = plan_of("model=hub", "model.id=org/name")
    assert found["notices"] == [
        {
            "choice": "model=hub",
            "text": "org/name is not on this machine yet; the run will download it",
        }
    ]


def test_a_folder_saved_as_a_variant_is_planned_with_it(
    here: Path, plan_of: Callable[..., tuple[int, Any]]
) -> None:
    shutil.copytree(SHAPES_DIR, here / "half")
    for file in (here / "half").rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    code, found = plan_of("model=local", "model.path=half")
    assert code == 2
    assert found["error"].endswith("  why: its variants: fp16\n  instead: model.variant=fp16")
    code, found = plan_of("model=local", "model.path=half", "model.variant=fp16")
    assert (code, found["problems"]) == (0, [])


def test_plan_for_people_fits_80_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quant=int8", "compile=max_autotune", "precision=bf16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "fastdiff  plan for shapes on cpu, 2 threads: bf16, sdpa, int8, max_autotune\n"
    )
    assert max(map(len, said.splitlines())) <= 80
    assert everything_in(here) == {}


def test_a_plan_of_an_unseen_hub_model_says_that_it_will_be_downloaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "model=hub", "model.id=org/name"]) == 0
    said = capsys.readouterr().out
    assert "  notice        org/name is not on this machine yet; the run will download it\n" in said


# How a run ends ------------------------------------------------------------------------------------


def failed(status: str, message: str) -> str:
    """The summary of a run that failed so."""
    from fastdiff.choices.compose import compose

    environment = {"device": "cpu", "threads": 2}
    error = {"message": message}
    config = compose([]).to_dict()
    report = {"config": config, "environment": environment, "status": status, "error": error}
    return summary(report, Path("out"), "shapes").partition("\n")[2]


def test_of_an_endless_error_the_first_lines_are_shown() -> None:
    assert failed("failed", "\n".join(f"line {n}" for n in range(300))) == lines(
        "  status        failed",
        "  error         line 0",
        *(f"                line {n}" for n in range(1, 8)),
        "                ... 292 more lines in the log",
        "  log           out/log.txt",
    )


def latency_line(samples: tuple[float, ...], warm_up_calls: int) -> str:
    """What the end of a run says of its times."""
    from fastdiff.latency import Latency
    from fastdiff.measuring.report import blank_report
    from fastdiff.planning.plan import make_plan

    run = compose(["device=cpu"])
    report = blank_report(run, make_plan(run, CPU, None), [], "now").to_dict()
    report |= {"status": "ok", "images": [{"path": "image-0.png"}]}
    report["environment"]["threads"] = 1
    report["latency_s"] = Latency(samples).to_dict()
    report["warmup"]["calls"] = warm_up_calls
    said = summary(report, Path("out"), "shapes")
    assert max(map(len, said.splitlines())) <= 80
    assert said.startswith("fastdiff  shapes on cpu, 1 thread: ")
    return " ".join(said.partition("  latency")[2].partition("\n  throughput")[0].split())


def test_the_end_of_a_run_says_what_the_median_is_of_and_how_it_was_warmed_up() -> None:
    assert latency_line((0.4,) * 5, 4) == (
        "0.400 s a picture, median of 5 (p10 0.400 s, p90 0.400 s), after 4 warm-up calls"
    )
    assert latency_line((3.0, 4.0), 1) == "3.50 s a picture, median of 2, after 1 warm-up call"
    assert latency_line((3.81,), 0) == "3.81 s a picture, one call, no warm-up"


def test_when_memory_runs_out_there_is_a_way_out() -> None:
    assert failed("oom", "CUDA out of memory.") == lines(
        "  status        oom",
        "  error         CUDA out of memory.",
        "  instead       precision=bf16, a smaller generation.height and width, or fewer",
        "                pictures at once",
        "  log           out/log.txt",
    )
    assert failed("oom", "killed\n  instead: less").count("instead") == 1


def test_long_lines_of_a_refusal_go_on_below_themselves(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile.fullgraph=false", "quant=int9"]) == 2
    assert capsys.readouterr().err == lines(
        "fastdiff: 2 things can't be read",
        "  compile=none has no key 'fullgraph'",
        "    it belongs to: compile=default, compile=dynamic, compile=max_autotune,",
        "        compile=max_autotune_no_cudagraphs, compile=reduce_overhead,",
        "        compile=regional, compile=regions",
        "  quant has no option 'int9'",
        "    did you mean: quant=int8",
        "",
    )
    word = "x" * 100
    assert main([f"quant={word}"]) == 2
    assert f"'{word}'" in capsys.readouterr().err


def test_a_long_choice_has_a_line_of_its_own(refused: Refused) -> None:
    path = "/" + "long/" * 12 + "adapter.bin"
    assert refused("lora=file", f"lora.path={path}") == lines(
        ONE,
        f"  lora.path={path}",
        "                   is no .safetensors file, and other formats can run code when",
        "                   they are opened",
        "                   instead: the same adapter as lora.path=FILE.safetensors",
    )
    assert refused("lora=file", f"lora.path={path}", "bench.runs=0") == lines(
        "this run can't work here (2 problems)",
        "  bench.runs=0   nothing would be timed",
        "                 instead: bench.runs=1",
        f"  lora.path={path}",
        "                 is no .safetensors file, and other formats can run code when",
        "                 they are opened",
        "                 instead: the same adapter as lora.path=FILE.safetensors",
    )


@pytest.mark.parametrize("key", ["model.tiny_vae", "model.fp16_vae", "model.lcm_lora"])
def test_a_path_in_any_key_of_a_model_may_hold_a_comma(key: str) -> None:
    run = compose(["model=sdxl", f"{key}=/my models, new/it"])
    assert getattr(run.model, key.removeprefix("model.")) == "/my models, new/it"
    run = compose(["lora=lcm", "lora.id=/my models, new/it.safetensors"])
    assert run.to_dict()["lora"]["id"] == "/my models, new/it.safetensors"


# Help, version, doctor -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_command_slot_and_option(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 0
    said = capsys.readouterr().out
    words = said.replace(",", " ").split()
    for slot, options in option_files().items():
        assert slot in words
        assert set(options) <= set(words)
    assert set(VERBS) <= set(words)
    for slot, option in default_options().items():
        assert f"  {slot:<14}{option} (default)" in said.splitlines() or (
            f"\n  {slot:<14}{option} (default), " in said
        )
    assert "\n  bench.        warmup, runs, most_warmup\n" in said
    assert max(map(len, said.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiff import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdiff {__version__}\n"


def test_doctor_names_what_works_here_and_why_the_rest_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setattr("fastdiff.commands.doctor.this_machine", lambda: CPU)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "fastdiff  doctor: runs go to cpu, 2 threads\n"
        "  processor     Some CPU, 2 threads, avx512f, bf16 arithmetic\n"
        "  memory        12.0 of 16.0 GB free\n"
        "  gpu           none\n"
    )
    assert "not tf32: needs an NVIDIA GPU of compute capability 8.0 or" in said
    assert "not xformers: needs an NVIDIA GPU; device=cpu\n" in said
    assert "torch 2.13.0, diffusers MISSING" in said
    packages = " ".join(said.partition("packages")[2].partition("precision")[0].split())
    for name in ("DeepCache", "peft", "xformers"):
        assert f"{name} {version_of(name) or 'not installed'}" in packages
    assert max(map(len, said.splitlines())) <= 80
    assert everything_in(here) == {}


def test_doctor_says_what_the_machine_lacks_and_not_what_the_model_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = replace(CPU, modules={"peft": True, "DeepCache": True}, tools=frozenset())
    monkeypatch.setattr("fastdiff.commands.doctor.this_machine", lambda: everything)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "  vae           default, tiny, fp16_fix\n" in said
    assert "  lora          none, lcm, file\n" in said
    assert "not sdpa_efficient: needs an NVIDIA GPU; device=cpu\n" in said
    assert "not default: needs a C++ compiler: the one program that CXX" in said
    assert "  compile       none\n" in said
    monkeypatch.setattr(
        "fastdiff.commands.doctor.this_machine", lambda: replace(CPU, modules={"peft": False})
    )
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "not lcm: needs the package peft, which is not installed\n" in said


@pytest.mark.parametrize("driver", [True, False])
def test_doctor_says_why_a_gpu_is_not_used(
    driver: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("NVIDIA GPU", None, None)
    unusable = Unusable("its driver is too old", "a newer one") if driver else None
    seen = replace(CPU, gpus=(gpu,), torch_cuda="13.0", gpu_unusable=unusable)
    monkeypatch.setattr("fastdiff.commands.doctor.this_machine", lambda: seen)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert ("runs go to cpu, " in said) is driver
    assert "  gpu           NVIDIA GPU, capability unknown\n" in said
    refused = "                not used: its driver is too old; instead: a newer one\n"
    assert (refused in said) is driver


# Paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["model=local", "model.path=~nobody-of-this-name/x"],
        ["model=single_file", "model.path=~nobody-of-this-name/x.safetensors"],
        ["vae=tiny", "vae.path=~nobody-of-this-name/x"],
        ["lora=file", "lora.path=~nobody-of-this-name/x.safetensors"],
        ["quality.reference=~nobody-of-this-name/x.png"],
        ["recipe=~nobody-of-this-name/x.yaml"],
    ],
)
def test_a_path_of_nobodys_home_is_not_there(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert "~nobody-of-this-name/x" in capsys.readouterr().err


# Windows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-m", "precision=fp32,bf16"],
        ["compare", "", "precision=bf16"],
        ["ladder", "sdxl_tutorial", "model=shapes"],
    ],
)
def test_windows_is_refused_in_one_sentence(
    words: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastdiff.runs.folders.sys", SimpleNamespace(platform="win32"))
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "fastdiff: Windows can't run this: a run's process is watched and ended by calls\n"
        "    that only POSIX systems have\n"
        "  instead: the same line in WSL, the Windows Subsystem for Linux\n"
    )
    assert everything_in(here) == {}
    assert main(["plan", *(words if words[:1] == ["-m"] else [])]) == 0


# In a process of its own ---------------------------------------------------------------------------


def typed(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m fastdiff ...` in the working directory."""
    return in_python("-m", "fastdiff", *words, **variables)


def in_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_refusal_exits_with_2(here: Path) -> None:
    ended = typed("qaunt=int8")
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        "",
        "fastdiff: there is no key 'qaunt'\n  did you mean: quant\n",
    )
    assert everything_in(here) == {}


def test_hydra_full_error_is_read_from_the_environment() -> None:
    assert "Traceback" in typed("quant=int9", HYDRA_FULL_ERROR="1").stderr


LIBRARIES = {"torch", "torchao", "diffusers", "transformers", "accelerate", "torchmetrics"}


@pytest.mark.parametrize(
    "words", [["plan", "compile=max_autotune", "quant=int8"], ["doctor"], ["--help"], ["quant=x"]]
)
def test_where_nothing_is_computed_nothing_heavy_is_imported(words: list[str], here: Path) -> None:
    ended = in_python("-X", "importtime", "-m", "fastdiff", *words)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "fastdiff.choices.options" in imported
    assert not {name.split(".")[0] for name in imported} & LIBRARIES
    assert everything_in(here) == {}


def test_the_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("fastdiff")
    if not script.is_file():
        pytest.skip("fastdiff is not installed in this environment")
    ended = subprocess.run(
        [str(script), "quant=int9"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "fastdiff: quant has no option 'int9'\n  did you mean: quant=int8\n",
    )
