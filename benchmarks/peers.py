"""fastdiff beside optimum-benchmark and pruna, and on a CPU beside OpenVINO: one pipeline, the same settings.

    python benchmarks/peers.py
    python benchmarks/peers.py --tools fastdiff pruna --settings fp32 compile --rounds 6
    python benchmarks/peers.py --openvino-only
    python benchmarks/peers.py --openvino-only --tunables glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1
    python benchmarks/peers.py --openvino-only --sdxl

Every tool but fastdiff gets a virtual environment of its own under --venvs, made by pip where it isn't there: several gigabytes
each where pip takes a CUDA build of PyTorch. A round runs every tool once, each a process of its own, in a random order that the
next round runs backwards. One round beforehand starts from empty caches and is kept apart, as `cold`.

What is measured is a tool's whole command by the wall clock, and the latency that the tool itself reports for a picture.
Every side computes on --threads threads. By default that leaves one core over, because optimum-benchmark's parent waits for its
worker in a busy loop: on a single core that takes half of what is measured.

OpenVINO is no such tool: benchmarks/peers/openvino_run.py puts it into a diffusers pipeline, as a user would, and times it.
The embedded model; with --sdxl SDXL's architecture with random weights, 512x512, which needs 24 GB of memory and 15 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measuring import ROOT, Ratio, as_typed, counterbalanced, now, paired_ratio, write_results

SCRIPTS = ROOT / "benchmarks" / "peers"
SHAPES = ROOT / "fastdiff" / "models" / "shapes" / "pipeline"
PROMPT = "a red circle left of a blue star on a white background"

TORCH = "torch==2.13.0"
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    # 0.6.0 can't be imported beside transformers 5 (SpecialTokensMixin), and asks for no version; diffusers of transformers 4's
    # time; protobuf and the two classic tokenizer files (classic_folder) because transformers 4 asks for them.
    "optimum-benchmark": (
        (TORCH,),
        (
            *("optimum-benchmark==0.6.0", "transformers==4.57.6", "diffusers==0.35.2"),
            *("huggingface-hub==0.36.2", "accelerate==1.15.0", "datasets==5.0.1"),
        ),
    ),
    # 0.3.4 imports torchvision, timm, piq and torch-fidelity whatever is asked of it. torchvision 0.28, which belongs to this
    # torch, fails beside its CPU build where only the CUDA build of torchvision is to be had ("operator torchvision::nms does
    # not exist"); 0.16.2 is the last whose transforms, all that pruna uses here, import without it. Those four without their own
    # requirements, or pip would change torch. huggingface-hub 2 has no upload_large_folder, which pruna imports.
    "pruna": (
        (TORCH,),
        (
            *("--no-deps", "pruna==0.3.4", "torchvision==0.16.2", "timm==1.0.31", "piq==0.8.0"),
            "torch-fidelity==0.4.0",
        ),
        (
            *("diffusers==0.42.1", "transformers==5.23.0", "huggingface-hub==1.33.0"),
            *("accelerate==1.15.0", "torchao==0.16.0", "peft==0.18.1", "trl==0.21.0"),
            *(
                "datasets==5.2.0",
                "kernels==0.14.1",
                "configspace==1.2.2",
                "pytorch-lightning==2.6.6",
            ),
            *("torchmetrics==1.9.0", "jaxtyping==0.3.11", "codecarbon==3.3.2", "aenum", "colorama"),
            *("importlib_metadata", "opencv-python-headless", "opentelemetry-api"),
            *("opentelemetry-sdk", "opentelemetry-exporter-otlp", "requests", "scipy", "thop"),
            *("numpydoc", "termcolor==2.3.0", "nvidia-ml-py", "torch-pruning", "sentencepiece"),
        ),
    ),
    "openvino": (
        (TORCH,),
        (
            *("openvino==2026.4.1", "diffusers==0.42.1", "transformers==5.23.0"),
            "accelerate==1.15.0",
        ),
    ),
}

TOOLS = ("fastdiff", "optimum-benchmark", "pruna")

# What each tool is told, in its own words. fp8 is a setting that no CPU has: a tool should say so.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "fp32": {
        "fastdiff": (),
        "optimum-benchmark": ("backend.torch_dtype=float32",),
        "pruna": (),
    },
    "compile": {
        "fastdiff": ("compile=default",),
        "optimum-benchmark": ("backend.torch_dtype=float32", "backend.torch_compile=true"),
        "pruna": ("--smash", "torch_compile"),
    },
    "bf16": {
        "fastdiff": ("precision=bf16",),
        "optimum-benchmark": ("backend.torch_dtype=bfloat16",),
        "pruna": ("--dtype", "bf16"),
    },
    # optimum-benchmark calls the spelling by scheme deprecated in favour of this one. 0.6.0 looks for this one only in
    # transformers' models: on a pipeline it quantizes nothing and measures all the same, fp8 on a CPU included.
    "int8": {
        "fastdiff": ("quant=int8",),
        "optimum-benchmark": (
            "backend.torch_dtype=float32",
            "+backend.quantization_config.quant_method=torchao",
            "+backend.quantization_config.quant_type=int8_dynamic_activation_int8_weight",
        ),
        "pruna": ("--smash", "torchao", "torchao_quant_type=int8dq"),
    },
    "int8, by scheme": {
        "optimum-benchmark": (
            "backend.torch_dtype=float32",
            "backend.quantization_scheme=torchao",
            "+backend.quantization_config.quant_type=int8_dynamic_activation_int8_weight",
        ),
    },
    "fp8": {
        "fastdiff": ("quant=fp8",),
        "optimum-benchmark": (
            "backend.torch_dtype=float32",
            "+backend.quantization_config.quant_method=torchao",
            "+backend.quantization_config.quant_type=float8_dynamic_activation_float8_weight",
        ),
        "pruna": ("--smash", "torchao", "torchao_quant_type=fp8dq"),
    },
    "misspelled key": {
        "fastdiff": ("quant=int8", "quant.min_in_feature=17"),
        "optimum-benchmark": ("backend.torch_compil=true",),
        "pruna": ("--smash", "torchao", "torchao_quant_typ=int8dq"),
    },
    "misspelled option": {
        "fastdiff": ("quant=imt8",),
        "optimum-benchmark": ("backend.torch_dtype=bfloat17",),
        "pruna": ("--smash", "torchoa"),
    },
}

# fastdiff's candidates for the quickest on a CPU. Freezing is what compile= does there by itself. A small model's attention is
# short: two matrix products of oneDNN take less time there than the fused kernel. channels_last lets the denoiser's input
# projections be packed linears; from NCHW they are exported as batched products of a copy.
_AHEAD_OF_TIME = (
    *("compile=aot", "compile.max_autotune=true", "qkv=fused"),
    *("memory_format=channels_last", "attention=sdpa_math"),
)
CANDIDATES: dict[str, tuple[str, ...]] = {
    "fp32": ("compile=default",),
    "fp32, ahead of time": _AHEAD_OF_TIME,
    "bf16": ("precision=bf16", "compile=default"),
    "bf16, ahead of time": ("precision=bf16", *_AHEAD_OF_TIME),
    "fp32, huge pages": (*_AHEAD_OF_TIME, "allocator=huge_pages"),
    "bf16, huge pages": ("precision=bf16", *_AHEAD_OF_TIME, "allocator=huge_pages"),
}
# At this size matrix products are nearly all of the time: what compiling can gain beyond a block is not worth the hour that the
# whole UNet takes.
SDXL_CANDIDATES: dict[str, tuple[str, ...]] = {
    "bf16": ("precision=bf16",),
    "bf16, regional": ("precision=bf16", "compile=regional", "memory_format=channels_last"),
    "bf16, huge pages": ("precision=bf16", "allocator=huge_pages"),
}
OPENVINO = {"OpenVINO fp32": "fp32", "OpenVINO bf16": "bf16"}
SDXL_OPENVINO = {"OpenVINO bf16": "bf16"}


@dataclass(frozen=True)
class Length:
    """What is drawn, and how often. runs, warmup: calls after the first."""

    model: Path
    steps: int
    guidance: float
    side: int
    runs: int
    warmup: int


@dataclass(frozen=True)
class Outcome:
    """One command: its seconds from start to end, and what the tool says. None: it doesn't say.

    latency_s: a picture, the median where the tool gives samples, else its mean. step_s: one step of the denoising.
    calls_after_first_s: how long all calls but the first took together. quality: whether the picture was judged.
    """

    seconds: float
    exit_code: int = 0
    error: str | None = None
    latency_s: float | None = None
    samples: int | None = None
    step_s: float | None = None
    first_call_s: float | None = None
    compile_s: float | None = None
    peak_memory_bytes: int | None = None
    quality: bool | None = None
    calls_after_first_s: float | None = None

    @property
    def first_picture_s(self) -> float | None:
        """From the command to its end, less the calls after the first."""
        if self.calls_after_first_s is None:
            return None
        return self.seconds - self.calls_after_first_s


@dataclass
class Row:
    """One tool with one setting: the first round from empty caches, and the others."""

    cold: Outcome
    warm: list[Outcome] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return all(outcome.exit_code == 0 for outcome in (self.cold, *self.warm))

    def values(self, name: str) -> list[float]:
        """A field's value in every warm round; empty if the tool doesn't say."""
        found = [getattr(outcome, name) for outcome in self.warm]
        return [] if None in found else found


def environment(tool: str, venvs: Path) -> Path:
    """The tool's Python, its environment made where it isn't there yet."""
    home = venvs / tool
    done = home / "requirements.json"
    wanted = json.dumps(REQUIREMENTS[tool])
    if not done.is_file() or done.read_text() != wanted:
        print(f"{tool}: installing into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        for packages in REQUIREMENTS[tool]:
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(pip, check=True)
        done.write_text(wanted)
    return home / "bin" / "python"


def classic_folder(source: Path, target: Path) -> Path:
    """A copy of a pipeline's folder that transformers 4 can read too: its tokenizers want vocab.json and merges.txt."""
    shutil.copytree(source, target)
    for file in target.glob("tokenizer*/tokenizer.json"):
        model = json.loads(file.read_text())["model"]
        (file.parent / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
        (file.parent / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return target


def fastdiff_command(words: Sequence[str], length: Length, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "fastdiff", "model=local", f"model.path={length.model}"),
        *(f"generation.prompt={PROMPT}", f"generation.steps={length.steps}"),
        *(f"generation.guidance_scale={length.guidance}", f"generation.height={length.side}"),
        *(f"generation.width={length.side}", f"bench.runs={length.runs}"),
        *(f"bench.warmup={length.warmup}", "quality=none", f"hydra.run.dir={folder}", *words),
    ]


def optimum_command(python: Path, words: Sequence[str], length: Length, folder: Path) -> list[str]:
    call = {
        "num_inference_steps": length.steps,
        "guidance_scale": length.guidance,
        "height": length.side,
        "width": length.side,
    }
    keys = ",".join(f"{key}:{value}" for key, value in call.items())
    return [
        *(str(python.with_name("optimum-benchmark")), "--config-dir", str(SCRIPTS)),
        *("--config-name", "optimum_benchmark"),
        *(f"backend.model={length.model}", f"scenario.iterations={length.runs}"),
        *(f"scenario.warmup_runs={length.warmup}", f"hydra.run.dir={folder}"),
        *("hydra.job.chdir=true", f"+scenario.call_kwargs={{{keys}}}"),
        *words,
    ]


def script_command(python: Path, script: str, words: Sequence[str], length: Length) -> list[str]:
    return [
        *(str(python), str(SCRIPTS / script), "--model", str(length.model), "--prompt", PROMPT),
        *("--steps", str(length.steps), "--guidance", str(length.guidance)),
        *("--height", str(length.side), "--width", str(length.side)),
        *("--warmup", str(length.warmup), "--runs", str(length.runs), *words),
    ]


def read_fastdiff(folder: Path, output: str) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    samples = report["latency_s"]["samples"]
    return {
        "latency_s": report["latency_s"]["median"],
        "samples": len(samples),
        "step_s": report["step_latency_s"]["median"],
        "first_call_s": report["first_call_s"],
        "compile_s": report["compile_s"],
        "peak_memory_bytes": report["peak_memory_bytes"]["host"],
        "quality": True,  # asked not to here, so that every tool does the same work
        "calls_after_first_s": sum(report["warmup_s"]) + sum(samples),
    }


def read_optimum(folder: Path, output: str) -> dict[str, Any]:
    report = json.loads((folder / "benchmark_report.json").read_text())
    latency = report["call"]["latency"]
    return {
        "latency_s": latency["p50"],
        "samples": latency["count"],
        "step_s": report["per_step"]["latency"]["p50"],
        "first_call_s": report["first_call"]["latency"]["p50"],
        "peak_memory_bytes": int(report["first_call"]["memory"]["max_ram"] * 1_000_000),
        "quality": False,
    }


def read_pruna(folder: Path, output: str) -> dict[str, Any]:
    """pruna gives one mean, and has metrics of quality."""
    return {"latency_s": last_json(output)["latency_s"], "quality": True}


def read_openvino(folder: Path, output: str) -> dict[str, Any]:
    said = last_json(output)
    return {
        "latency_s": median(said["samples_s"]),
        "samples": len(said["samples_s"]),
        "step_s": median(said["steps_s"]),
        "first_call_s": said["first_call_s"],
        "compile_s": said["convert_s"] + said["compile_s"],
        "peak_memory_bytes": said["peak_memory_bytes"],
        "calls_after_first_s": sum(said["warmup_s"]) + sum(said["samples_s"]),
    }


def last_json(output: str) -> dict[str, Any]:
    """The last line that is an object; libraries print around it."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def what_it_said(output: str, hidden: Sequence[Path]) -> str:
    """The line that says best why a command failed, without this machine's paths."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    wanted = ("Error:", "Could not override", "fastdiff: ", "must be one of")
    found = [line for line in lines if any(word in line for word in wanted)]
    if lines and lines[0].startswith("fastdiff: "):
        found = [" ".join(lines[:3])]
    line = (found or lines or ["nothing"])[-1]
    for path in hidden:
        line = line.replace(str(path), "DIR")
    return line[:300]


@dataclass(frozen=True)
class Side:
    """One thing that takes turns: its command for a run's folder, and how its result is read."""

    command: Callable[[Path], list[str]]
    read: Callable[[Path, str], dict[str, Any]]


def run(side: Side, work: Path, caches: Path) -> Outcome:
    """Run the command in an empty folder, with compile caches in one that stays."""
    folder = Path(tempfile.mkdtemp(dir=work))
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "FASTDIFF_CACHE_DIR": str(caches / "fastdiff"),  # compile=aot
        "HF_HUB_OFFLINE": "1",
        "PRUNA_METRICS_ENABLED": "false",  # pruna tells its makers of every use
    }
    started = time.perf_counter()
    done = subprocess.run(
        side.command(folder / "run"),
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        error = what_it_said(done.stdout, (work, ROOT))
        outcome = Outcome(seconds, done.returncode, error)
    else:
        outcome = Outcome(seconds, **side.read(folder / "run", done.stdout))
    shutil.rmtree(folder)
    return outcome


def take_turns(sides: Mapping[str, Side], rounds: int, seed: int, work: Path) -> dict[str, Row]:
    """A cold round, then the others. Caches are a side's own, and are thrown away afterwards."""
    caches = {name: Path(tempfile.mkdtemp(dir=work)) for name in sides}
    rows = {}
    for name, side in sides.items():
        rows[name] = Row(run(side, work, caches[name]))
        tell(name, "cold", rows[name].cold)
    for index, order in enumerate(counterbalanced(list(sides), rounds, seed), 1):
        for name in order:
            rows[name].warm.append(run(sides[name], work, caches[name]))
            tell(name, f"round {index} of {rounds}", rows[name].warm[-1])
    for folder in caches.values():
        shutil.rmtree(folder)
    return rows


def tell(name: str, when: str, outcome: Outcome) -> None:
    latency = "" if outcome.latency_s is None else f", {outcome.latency_s:.4f} s a picture"
    said = outcome.error or f"{outcome.seconds:.1f} s{latency}"
    print(f"  {name}, {when}: {said}", file=sys.stderr, flush=True)


def ratio(first: Row, second: Row, name: str) -> Ratio | None:
    """How many times longer the first takes; None where one of both doesn't say or doesn't run, or one pair is all there is."""
    pair = first.values(name), second.values(name)
    if not (first.runs and second.runs) or min(map(len, pair)) < 2:
        return None
    return paired_ratio(*pair)


def tool_sides(
    setting: str, tools: Sequence[str], pythons: Mapping[str, Path], length: Length
) -> dict[str, Side]:

    def command(tool: str, words: tuple[str, ...]) -> Callable[[Path], list[str]]:
        if tool == "fastdiff":
            return lambda folder: fastdiff_command(words, length, folder)
        if tool == "pruna":
            return lambda folder: script_command(pythons[tool], "pruna_run.py", words, length)
        return lambda folder: optimum_command(pythons[tool], words, length, folder)

    readers = {"fastdiff": read_fastdiff, "optimum-benchmark": read_optimum, "pruna": read_pruna}
    return {
        tool: Side(command(tool, SETTINGS[setting][tool]), readers[tool])
        for tool in tools
        if tool in SETTINGS[setting]
    }


def openvino_sides(
    python: Path, length: Length, sdxl: bool, candidates: Mapping[str, tuple[str, ...]], keep: Path
) -> dict[str, Side]:

    def ours(words: tuple[str, ...]) -> Callable[[Path], list[str]]:
        return lambda folder: fastdiff_command(words, length, folder)

    def theirs(name: str, precision: str) -> Callable[[Path], list[str]]:
        words = ["--precision", precision, "--keep", str(keep / name)]
        if not sdxl:  # what it keeps of SDXL is as large as the model once more
            words += ["--cache", str(keep / name / "compiled")]
        return lambda folder: script_command(python, "openvino_run.py", words, length)

    found = {
        f"fastdiff {name}": Side(ours(words), read_fastdiff) for name, words in candidates.items()
    }
    for name, precision in (SDXL_OPENVINO if sdxl else OPENVINO).items():
        found[name] = Side(theirs(name, precision), read_openvino)
    return found


def quickest(rows: Mapping[str, Row], whose: str) -> str | None:
    """The name of the row of that maker with the lowest median latency; None if none of them runs."""
    found = {
        name: median(row.values("latency_s"))
        for name, row in rows.items()
        if name.startswith(whose) and row.runs and row.values("latency_s")
    }
    return min(found, key=lambda name: found[name]) if found else None


def tools_table(results: Mapping[str, Mapping[str, Row]]) -> Iterator[str]:
    heads = f"{'command':>9}{'cold':>9}{'picture':>10}{'samples':>8}{'memory':>9}"
    yield f"{'setting':<18}{'tool':<18}{heads}  times fastdiff's command; picture [95 %]"
    for setting, rows in results.items():
        ours = rows.get("fastdiff")
        for tool, row in rows.items():
            start = f"{setting:<18}{tool:<18}{in_seconds(row.values('seconds')):>9}{row.cold.seconds:>7.1f} s"
            if not row.runs:
                yield f"{start}  {row.cold.error}"
                continue
            one = row.cold
            memory = (
                "-" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / 1e9:.2f} GB"
            )
            start += f"{in_seconds(row.values('latency_s')):>10}{one.samples or '-':>8}{memory:>9}"
            ratios = (
                [ratio(row, ours, name) for name in ("seconds", "latency_s")]
                if ours is not None and row is not ours
                else []
            )
            yield f"{start}  {'; '.join(str(one) if one else '-' for one in ratios)}"


def openvino_table(rows: Mapping[str, Row]) -> Iterator[str]:
    yield f"{'':<36}{'step':>10}{'picture':>10}{'first, cold':>13}{'first, warm':>13}{'memory':>9}"
    for name, row in rows.items():
        if not row.runs:
            yield f"{name:<36}{row.cold.error}"
            continue
        cold, memory = row.cold.first_picture_s, (row.cold.peak_memory_bytes or 0) / 1e9
        columns = [in_seconds(row.values(key)) for key in ("step_s", "latency_s")]
        firsts = [in_seconds([cold] if cold else []), in_seconds(row.values("first_picture_s"))]
        yield f"{name:<36}{columns[0]:>10}{columns[1]:>10}{firsts[0]:>13}{firsts[1]:>13}{memory:>6.2f} GB"
    for name, key in (("step", "step_s"), ("picture", "latency_s"), ("first", "first_picture_s")):
        for ours, theirs in pairs(rows):
            yield f"{name:<8}{ours} to {theirs}: {ratio(rows[ours], rows[theirs], key) or '-'}"


def pairs(rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """fastdiff's best against OpenVINO's best, and its best in fp32 against OpenVINO in fp32."""
    asked = [("fastdiff", "OpenVINO"), ("fastdiff fp32", "OpenVINO fp32")]
    found = [(quickest(rows, ours), quickest(rows, theirs)) for ours, theirs in asked]
    return [(ours, theirs) for ours, theirs in dict.fromkeys(found) if ours and theirs]


def in_seconds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = median(values)
    return f"{middle:.4f} s" if middle < 1 else f"{middle:.1f} s"


def to_dict(rows: Mapping[str, Row], against: Sequence[tuple[str, str]]) -> dict[str, Any]:
    kept = ("seconds", "latency_s", "step_s", "first_picture_s")
    found: dict[str, Any] = {}
    for name, row in rows.items():
        first = row.cold
        found[name] = {
            "runs": row.runs,
            "exit_code": first.exit_code,
            "error": first.error,
            "samples_a_run": first.samples,
            "peak_memory_bytes": first.peak_memory_bytes,
            "first_call_cold_s": first.first_call_s,
            "compile_cold_s": first.compile_s,
            "can_judge_pictures": first.quality,
            "cold": {key: getattr(first, key) for key in kept},
            "warm": {key: row.values(key) for key in kept},
        }
    ratios = []
    for one, other in against:
        values = {key: ratio(rows[one], rows[other], key) for key in kept}
        named = {key: value.to_dict() if value else None for key, value in values.items()}
        ratios.append({"of": one, "to": other, **named})
    return {"measured": found, "ratios": ratios}


def save_sdxl(folder: Path) -> None:
    """SDXL's architecture with random weights in bf16, as a folder: both sides load the same. In a process that ends."""
    program = (
        "import sys, torch; from fastdiff.models.architectures import ARCHITECTURES as known;"
        "from fastdiff.models.random_weights import build_pipeline;"
        "build_pipeline(known['sdxl'], 0, torch.bfloat16, {}).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="fastdiff beside its peers.")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument(
        "--candidates", nargs="+", choices=[*CANDIDATES], help="fastdiff's, beside OpenVINO"
    )
    parser.add_argument("--openvino-only", action="store_true", help="leaves the tools out")
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("--sdxl", action="store_true", help="OpenVINO on SDXL's architecture")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps SDXL's weights and what was converted"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each process")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, help="25, or 2 with --sdxl")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--venvs", type=Path, default=cache / "fastdiff-peers")
    parser.add_argument("--suffix", default="", help="of the results' files' names")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1), help="of every side")
    parser.add_argument(
        "--tunables", help="GLIBC_TUNABLES of every side: how the C library allocates"
    )
    asked = parser.parse_args()
    if asked.rounds < 2 or asked.runs < 1:
        parser.error("--rounds must be 2 or more, --runs 1 or more: one round has no interval")
    return asked


def measure_tools(asked: argparse.Namespace, work: Path) -> None:
    started_at = now()
    length = Length(
        classic_folder(SHAPES, work / "shapes"),
        asked.steps or 25,
        4.0,
        64,
        asked.runs,
        asked.warmup,
    )
    pythons = {t: environment(t, asked.venvs) for t in asked.tools if t != "fastdiff"}
    results, found = {}, {}
    for setting in asked.settings:
        print(setting, file=sys.stderr)
        sides = tool_sides(setting, asked.tools, pythons, length)
        if not sides:
            continue
        rows = take_turns(sides, asked.rounds, asked.seed, work)
        results[setting] = rows
        against = [(t, "fastdiff") for t in rows if t != "fastdiff" and "fastdiff" in rows]
        told = {tool: list(SETTINGS[setting][tool]) for tool in rows}
        found[setting] = {"told": told, **to_dict(rows, against)}
        keep(f"peers{asked.suffix}", {"settings": found}, length, started_at)
    print("\n".join(tools_table(results)))


def measure_openvino(asked: argparse.Namespace, work: Path) -> None:
    started_at = now()
    python = environment("openvino", asked.venvs)
    home = asked.keep or work
    if asked.sdxl:
        if not (home / "sdxl").is_dir():
            save_sdxl(home / "sdxl")
        length = Length(home / "sdxl", asked.steps or 2, 5.0, 512, asked.runs, asked.warmup)
    else:
        length = Length(SHAPES, asked.steps or 25, 4.0, 64, asked.runs, asked.warmup)
    known = SDXL_CANDIDATES if asked.sdxl else CANDIDATES
    told = {name: words for name, words in known.items() if name in (asked.candidates or known)}
    sides = openvino_sides(python, length, asked.sdxl, told, home / "openvino")
    rows = take_turns(sides, asked.rounds, asked.seed, work)
    print("\n".join(openvino_table(rows)))
    results = {"told": {f"fastdiff {name}": list(words) for name, words in told.items()}}
    name = f"openvino{'_sdxl' if asked.sdxl else ''}{asked.suffix}"
    keep(name, results | to_dict(rows, pairs(rows)), length, started_at)


def keep(name: str, results: dict[str, Any], length: Length, started_at: str) -> None:
    drawn = {
        "model": length.model.name if length.model != SHAPES else "shapes",
        "steps": length.steps,
        "guidance_scale": length.guidance,
        "height": length.side,
        "width": length.side,
        "runs": length.runs,
        "warmup": length.warmup,
    }
    requirements = {
        tool: [" ".join(step) for step in steps] for tool, steps in REQUIREMENTS.items()
    }
    typed = [sys.executable, str(Path(__file__).resolve()), *without_places(sys.argv[1:])]
    told = {"command": as_typed(typed), "drawn": drawn, "installed": requirements}
    path = write_results(name, told | results, started_at)
    print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


def without_places(words: Sequence[str]) -> list[str]:
    """The words of a command line without --venvs DIR and --keep DIR, which say something of this machine only."""
    places, before = ("--venvs", "--keep"), ["", *words]
    return [
        word
        for last, word in zip(before, words, strict=False)
        if last not in places and word.partition("=")[0] not in places
    ]


def main() -> int:
    asked = parse()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    if asked.tunables:
        os.environ["GLIBC_TUNABLES"] = asked.tunables
    with tempfile.TemporaryDirectory(prefix="fastdiff-peers-") as temporary:
        work = Path(temporary)
        if not asked.openvino_only:
            measure_tools(asked, work)
        if not asked.no_openvino:
            measure_openvino(asked, work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
