"""What `gpu.py` tries on a GPU, in order of risk: each step with what it needs, and what is expected of it.

A step's *outcome* is one word: `ok` (it ran and its report says so), `planned` (a plan without problems), `refused` (a plan with
problems, so nothing was run), or what went wrong. What a step needs and the machine lacks has to be refused in the plan.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.choices.experiments import ladder
from fastdiff.machine.files import read_json

ROOT = Path(__file__).resolve().parent.parent
PROBES = ROOT / "benchmarks" / "gpu_probes.py"
FASTDIFF = (sys.executable, "-m", "fastdiff")
_TOOLS = {"cuda": ("c", "python_h", "triton"), "cpu": ("cpp", "python_h")}
"""What compiling needs on a kind of device."""


@dataclass(frozen=True)
class Bench:
    """Where steps are tried. facts: what the toolchain step found; {} before it.

    out: small results. scratch: everything else. tiny: small sizes on a CPU.
    """

    device: str
    tiny: bool
    out: Path
    scratch: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, need: str) -> bool:
        """Whether this machine can't have what a step needs: `cuda`, `compiler`, `toolkit`, `capability 8.9`."""
        on_gpu = self.device == "cuda"
        if need == "cuda":
            return not on_gpu
        if need.startswith("capability "):
            wanted = [int(part) for part in need.partition(" ")[2].split(".")]
            return not on_gpu or list(self.facts["capability"]) < wanted
        if need == "toolkit":
            lacking = on_gpu and not (self.facts["toolkit"] and self.facts["cpp"])
            return lacking or self.lacks("compiler")
        if need != "compiler":
            raise ValueError(need)
        lacking = not all(self.facts[tool] for tool in _TOOLS[self.device])
        return lacking or (on_gpu and self.lacks("capability 7.0"))

    def folder(self, step: str) -> Path:
        return self.scratch / "steps" / step


@dataclass(frozen=True)
class Ended:
    """A step's commands that have ended. codes: their exit codes. output: what the last one printed, with its errors.

    card_bytes: by how much the whole card's memory rose at most, as its driver counts; None where that was not watched.
    """

    codes: tuple[int, ...]
    output: str
    card_bytes: int | None = None

    def data(self) -> Any:
        """The JSON in its last line; {} if there is none."""
        try:
            return json.loads(self.output.strip().rpartition("\n")[2])
        except ValueError:
            return {}


@dataclass
class Verdict:
    """expected, found: what was, as plain data. wrong: each way in which they differ, in words. unfinished: it is to go on."""

    expected: dict[str, Any]
    found: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    unfinished: bool = False


Judge = Callable[[Bench, Ended], Verdict]


@dataclass(frozen=True)
class Step:
    """One thing that is tried.

    limit_s: seconds that it may take. alone: nothing else runs beside it, for its figures, which are of no interest on a CPU.
    first: what comes after it needs it, so it is alone there too. asked: it is run only if named.
    memory_gb: of the card, below which it is left out. environment: variables of its commands.
    """

    name: str
    limit_s: float
    commands: Callable[[Bench], list[list[str]]]
    judge: Judge
    alone: bool = False
    first: bool = False
    asked: bool = False
    memory_gb: float = 0
    environment: Mapping[str, str] = field(default_factory=dict)


# Programs that ask the GPU -------------------------------------------------------------------------


def probe(name: str, judge: Judge, limit_s: float, folder: str | None = None) -> Step:
    def commands(bench: Bench) -> list[list[str]]:
        words = [sys.executable, str(PROBES), name.replace("-", "_"), "--device", bench.device]
        words += ["--folder", str(bench.folder(folder))] if folder else []
        return [[*words, *(["--tiny"] if bench.tiny else [])]]

    return Step(name, limit_s, commands, judge, alone=True, first=True)


def judge_toolchain(bench: Bench, ended: Ended) -> Verdict:
    found = ended.data()
    wrong = [] if ended.codes == (0,) and found else ["the toolchain could not be asked"]
    if found and bench.device == "cuda" and not found["torch_sees"]:
        wrong.append("torch sees no CUDA GPU")
    return Verdict({"torch_sees": "a GPU" if bench.device == "cuda" else "anything"}, found, wrong)


def judge_arithmetic(bench: Bench, ended: Ended) -> Verdict:
    """int8 products of 17 rows work, and the rate that rooflines use is the better layout's."""
    found = ended.data()
    expected = {"int8_rows": {"17": "ok", "32": "ok"}, "int8_rate_of_best_layout": "at least 0.7"}
    if not found:
        return Verdict(expected, found, ["no figures"])
    rows, wrong = found["int8_rows"], []
    wrong += [f"int8 products of {n} rows: {rows[n]}" for n in ("17", "32") if rows[n] != "ok"]
    best = max(found["int8_tops_per_s"].values())
    for dtype, rates in found["rates"].items():
        rate = rates["int8_tops_per_s"]
        if bench.device == "cuda" and (rate is None or rate < 0.7 * best):
            wrong.append(
                f"the int8 rate beside {dtype} is {rate}, the best layout reaches {best:.0f}"
            )
    return Verdict(expected, found, wrong)


def judge_flux(bench: Bench, ended: Ended) -> Verdict:
    wrong = [] if ended.codes == (0,) else ["the pipeline could not be written"]
    return Verdict({"exit_codes": [0]}, ended.data(), wrong)


# Single runs ---------------------------------------------------------------------------------------

Check = Callable[[Bench, Mapping[str, Any], Ended], Iterator[str]]
RUN, PLAN = "run", "plan"
"""What `--tiny` does with what a CPU could run: run it as well, or have it planned (it would compile for minutes)."""
_FEW = ("generation.steps=6", "bench=once")
_FEWEST = ("generation.steps=1", "bench=once")


def run(
    name: str,
    *words: str,
    needs: Sequence[str] = (),
    tiny: str = PLAN,
    tiny_words: Sequence[str] = (),
    checks: Sequence[Check] = (),
    more: Sequence[str] = _FEW,
    limit_s: float = 150,
    may_refuse: bool = False,
    published: Mapping[str, Any] | None = None,
    **how: Any,
) -> Step:
    """A run of fastdiff. tiny_words: come after the others on a CPU. may_refuse: the plan may say no as well."""

    def planned_only(bench: Bench) -> bool:
        return bench.tiny and tiny == PLAN and not missing(bench)

    def missing(bench: Bench) -> list[str]:
        return [need for need in needs if bench.lacks(need)]

    def commands(bench: Bench) -> list[list[str]]:
        asked = [f"device={bench.device}", *(w.format(scratch=bench.scratch) for w in words), *more]
        if bench.tiny:
            asked = _last_wins([*asked, *tiny_words, *_FEWEST])
        if planned_only(bench):
            return [[*FASTDIFF, "plan", *asked]]
        return [[*FASTDIFF, *asked, f"hydra.run.dir={bench.folder(name)}"]]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        outcome = "planned" if planned_only(bench) else "refused" if missing(bench) else "ok"
        expected: dict[str, Any] = {"outcome": outcome, "lacking": missing(bench)}
        wanted = {outcome, "refused"} if may_refuse else {outcome}
        report = _report(bench.folder(name))
        found = _found(ended, report, "planned" if planned_only(bench) else None)
        if published:
            expected["published"] = dict(published)
        wrong = []
        if found["outcome"] not in wanted:
            wrong.append(f"{found['outcome']}, not {' or '.join(sorted(wanted))}{_why(found)}")
        if report and found["outcome"] == "ok":
            for check in (*_ALWAYS, *checks):
                wrong += check(bench, report, ended)
        return Verdict(expected, found, wrong)

    return Step(name, limit_s, commands, judge, **how)


def _last_wins(words: Sequence[str]) -> list[str]:
    """Overrides without those of a key that is given again further on; a model takes the keys of the one before it along."""
    models = [number for number, word in enumerate(words) if word.startswith("model=")]
    left = [
        word
        for number, word in enumerate(words)
        if not (models and number < models[-1] and word.startswith("model."))
    ]
    return list({word.partition("=")[0]: word for word in left}.values())


def _why(found: Mapping[str, Any]) -> str:
    said = found.get("error") or found.get("refusal")
    return f": {said}" if said else ""


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / "report.json"
    return read_json(path) if path.is_file() else None


def _found(ended: Ended, report: Mapping[str, Any] | None, planned: str | None) -> dict[str, Any]:
    """What a run's report says, as far as it speaks of the GPU and not of who ran it."""
    if report is None:
        outcomes = {0: planned or "no report", 2: "refused"}
        outcome = outcomes.get(ended.codes[-1], f"exit code {ended.codes[-1]}")
        found: dict[str, Any] = {"outcome": outcome}
        if outcome == "refused":
            found["refusal"] = " ".join(_refusal(ended.output).split())
        return found
    latency, step = report["latency_s"], report["step_latency_s"]
    return {
        "outcome": report["status"],
        "error": (report["error"] or {}).get("message"),
        "applied": report["applied"],
        "notices": report["notices"],
        "latency_s": latency and latency["median"],
        "step_latency_s": step and step["median"],
        "load_s": report["load_s"],
        "apply_s": report["apply_s"],
        "compile_s": report["compile_s"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "card_bytes": ended.card_bytes,
        "compile": report["compile"],
        "roofline": report["roofline"],
        "quality": report["quality"],
        "exactness": report["exactness"],
        "parts_s": report["parts_s"],
        "syncs_per_step": report["syncs"]["per_step"],
    }


def _refusal(output: str) -> str:
    """The problems of a plan, without the line before them."""
    _, begins, problems = output.partition("problem")
    return problems.partition("\n")[2] if begins else output


def exact(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
    """What has to be exact was found to be."""
    if report["exactness"]["passed"] is False:
        yield f"not exact: {report['exactness']['reason']}"


def within_the_machine(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
    """No step is quicker than the machine's measured rates allow; five percent for the rates' own spread."""
    share = report["roofline"]["fraction_of_limit"]
    if bench.device == "cuda" and share is not None and share > 1.05:
        yield f"a step at {share:.0%} of what the machine can do"


def graphs_were_used(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
    """Inductor left no CUDA graph out."""
    if skipped := report["compile"].get("cuda_graphs_skipped"):
        reasons = "; ".join(report["compile"]["cuda_graphs_reasons"])
        yield f"{skipped} CUDA graphs were left out: {reasons or 'nobody says why'}"


def checked(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
    """Exactness was looked at, and not left out for a reason."""
    if report["exactness"]["passed"] is None:
        yield f"exactness was not checked: {report['exactness']['reason']}"


def kernel(name: str) -> Check:
    """The one attention kernel that a profiler saw."""

    def check(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
        seen = [e["details"].get("kernels") for e in report["effects"] if "attention" in e["pass"]]
        if not seen or not seen[0] or set(seen[0]) != {name}:
            yield f"kernels {seen[0] if seen else None}, not {name} alone"

    return check


def memory_is_counted(most_apart_gb: float) -> Check:
    """The card's memory, less what the report counts, is what a CUDA context and libraries take."""

    def check(bench: Bench, report: Mapping[str, Any], ended: Ended) -> Iterator[str]:
        counted = report["peak_memory_bytes"]["device_reserved"]
        if ended.card_bytes is None or counted is None:
            return
        apart = (ended.card_bytes - counted) / 1e9
        if apart > most_apart_gb:
            yield f"the card holds {apart:.1f} GB more than the report counts"

    return check


_ALWAYS: tuple[Check, ...] = (exact, within_the_machine, graphs_were_used)


# Several commands ----------------------------------------------------------------------------------


def comparison(name: str, a: str, b: str, words: Mapping[str, Sequence[str]]) -> Step:
    """`compare`. words: the verdicts that are expected, of `gpu`; a CPU's is only to be there in time."""

    def commands(bench: Bench) -> list[list[str]]:
        asked = (
            ["compare.pairs=2", "compare.lives=1"]
            if bench.tiny
            else ["compare.pairs=12", "compare.lives=2"]
        )
        few = ["bench.warmup=0", "bench.most_warmup=0", "generation.steps=1"] if bench.tiny else []
        folder = f"compare.dir={bench.folder(name)}"
        return [[*FASTDIFF, "compare", a, b, f"device={bench.device}", *few, *asked, folder]]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        path = bench.folder(name) / "comparison.json"
        data = read_json(path) if path.is_file() else {}
        names = ("verdict", "ratio", "noise", "pairs", "lives", "seats", "seats_reason")
        found = {"exit_codes": list(ended.codes)} | {n: data.get(n) for n in names}
        expected = {"exit_codes": [0], "verdict": "any" if bench.tiny else list(words["gpu"])}
        wrong = [] if ended.codes == (0,) and data else [f"exit code {ended.codes[-1]}"]
        if not bench.tiny and data and data["verdict"] not in words["gpu"]:
            wrong.append(f"{data['verdict']}, not {' or '.join(words['gpu'])}")
        return Verdict(expected, found, wrong)

    return Step(name, 120, commands, judge, alone=True)


def sweep_of_two() -> Step:
    def commands(bench: Bench) -> list[list[str]]:
        words = ["-m", f"device={bench.device}", "qkv=separate,fused", "quality=none"]
        words += _FEWEST if bench.tiny else _FEW
        return [[*FASTDIFF, *words, f"sweep.dir={bench.folder('sweep')}"]]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        path = bench.folder("sweep") / "sweep.json"
        rows = read_json(path)["rows"] if path.is_file() else []
        found = {"exit_codes": list(ended.codes), "statuses": [row["status"] for row in rows]}
        expected = {"exit_codes": [0], "statuses": ["ok", "ok"]}
        return Verdict(expected, found, [] if found == expected else ["not two rows that are ok"])

    return Step("sweep", 120, commands, judge, alone=True)


def exported_script() -> Step:
    """A run, saved as a recipe and exported: the script draws the run's picture."""

    def commands(bench: Bench) -> list[list[str]]:
        from fastdiff.models.sources import SHAPES_DIR

        folder = bench.folder("script")
        recipe, script = folder / "run.yaml", folder / "script.py"
        words = ["qkv=fused", "memory_format=channels_last", f"device={bench.device}"]
        words += ["quality=none", *(_FEWEST if bench.tiny else _FEW)]
        picture = ["--model", str(SHAPES_DIR), "--out", str(folder / "picture.png")]
        probe = [sys.executable, str(PROBES), "same_picture", "--device", bench.device]
        return [
            [*FASTDIFF, *words, f"hydra.run.dir={folder / 'run'}"],
            [*FASTDIFF, "recipe", "save", str(folder / "run"), "-o", str(recipe), "--generation"],
            [
                *FASTDIFF,
                "recipe",
                "export",
                str(recipe),
                "--script",
                str(script),
                f"device={bench.device}",
            ],
            [sys.executable, str(script), *picture],
            [*probe, "--folder", str(folder)],
        ]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        most = 0 if bench.device == "cpu" else 2
        found = {"exit_codes": list(ended.codes)} | ended.data()
        expected = {"exit_codes": [0] * 5, "largest_difference": f"at most {most} of 255"}
        wrong = []
        if found["exit_codes"] != expected["exit_codes"]:
            wrong.append(f"command {len(ended.codes)} of 5 ended with exit code {ended.codes[-1]}")
        elif found["largest_difference"] > most:
            wrong.append(f"pictures differ by {found['largest_difference']} of 255")
        return Verdict(expected, found, wrong)

    return Step("script", 150, commands, judge)


def marked_tests(name: str, expression: str, limit_s: float) -> Step:
    """The tests marked gpu, by file; a CPU skips each."""

    def commands(bench: Bench) -> list[list[str]]:
        files = [
            p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()
        ]
        words = ["-n", "0", "-p", "no:cacheprovider", "-m", expression]
        return [[sys.executable, "-m", "pytest", *words, *map(str, files)]]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        last = ended.output.strip().rpartition("\n")[2]
        counts = {
            what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)
        }
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+(?: - .*)?)", ended.output, re.MULTILINE)
        wrong = failed or ([] if ended.codes == (0,) else [f"pytest: exit code {ended.codes[-1]}"])
        kind = "skipped" if bench.device == "cpu" else "passed"
        if not counts.get(kind):
            wrong.append(f"no test was {kind}")
        return Verdict({kind: "all"}, counts, wrong)

    return Step(name, limit_s, commands, judge, alone=True)


def whole_ladder(name: str) -> Step:
    """A document's ladder with processes in shuffled rounds and quality, its reports kept: an hour's work, so only if named."""

    def commands(bench: Bench) -> list[list[str]]:
        words = [name, "model.weights=random", f"device={bench.device}", "ladder.rounds=3"]
        folder = bench.out / f"ladder-{name}"
        return [[*FASTDIFF, "ladder", *words, f"ladder.dir={folder}", "ladder.limit_s=240"]]

    def judge(bench: Bench, ended: Ended) -> Verdict:
        path = bench.out / f"ladder-{name}" / "ladder.json"
        rows = read_json(path)["rows"] if path.is_file() else []
        fields = ("experiment", "status", "latency_s", "speedup", "rounds")
        found = {
            "exit_codes": list(ended.codes),
            "rows": [{f: row.get(f) for f in fields} for row in rows],
        }
        code = ended.codes[-1]
        wrong = {0: [], 75: ["out of time: the same line again goes on"]}.get(
            code, ["a rung failed"]
        )
        return Verdict({"exit_codes": [0]}, found, wrong, unfinished=code == 75)

    return Step(f"ladder-{name}", 590, commands, judge, alone=True, asked=True)


def simple(name: str, *words: str, code: int, limit_s: float = 60, **how: Any) -> Step:
    """A command that computes nothing, by its exit code."""

    def judge(bench: Bench, ended: Ended) -> Verdict:
        said = [line.rstrip() for line in ended.output.splitlines()][:60]
        wrong = [] if ended.codes == (code,) else [f"exit code {ended.codes[-1]}, not {code}"]
        found = {"exit_codes": list(ended.codes), "said": said}
        return Verdict({"exit_codes": [code]}, found, wrong)

    def commands(bench: Bench) -> list[list[str]]:
        return [[*FASTDIFF, *(word.format(device=bench.device) for word in words)]]

    return Step(name, limit_s, commands, judge, **how)


# The steps -----------------------------------------------------------------------------------------

_CUDA, _COMPILED = ("cuda",), ("cuda", "compiler")
_FP8 = ("cuda", "capability 8.9")
_NO_QUALITY = "quality=none"
_SDXL = ("model=sdxl", "model.weights=random", _NO_QUALITY)
_FLUX = (
    "model=local",
    "model.path={scratch}/steps/flux",
    _NO_QUALITY,
)
_FLUX_SIZE = ("generation.height=1024", "generation.width=1024", "generation.steps=4", "bench=once")
_SMALL = ("model=shapes",)
_SMALL_FLUX = ("generation.height=32", "generation.width=32")


def toolchain() -> Iterator[Step]:
    yield probe("toolchain", judge_toolchain, 90)
    yield simple("doctor", "doctor", code=0)
    nothing = {"PATH": "", "CC": "", "CXX": ""}
    words = ("plan", "compile=regional", "device={device}")
    yield simple("no-compiler", *words, code=2, environment=nothing)


def crashes() -> Iterator[Step]:
    """Whether it runs at all: side by side, figures mean nothing."""
    bf16, fp16 = "precision=bf16", "precision=fp16"
    graphs, regional = "compile=reduce_overhead", "compile=regional"
    yield run("graphs", bf16, graphs, needs=["compiler"], checks=[checked])
    yield run("aot", bf16, "compile=aot", needs=["toolkit"], checks=[checked])
    int8 = (bf16, "quant=int8")
    yield run("int8", *int8, regional, needs=["compiler"])
    yield run(
        "int8-no-guidance", *int8, regional, "generation.guidance_scale=1.0", needs=["compiler"]
    )
    yield run("int8-graphs", *int8, graphs, needs=["compiler"])
    yield run("int8-eager", *int8, "generation.guidance_scale=1.0")
    yield run("int8-weights", bf16, "quant=int8_weight_only", regional, needs=["compiler"])
    compiled_fp8 = (*_FP8, "compiler")
    yield run("fp8", bf16, "quant=fp8", regional, needs=compiled_fp8)
    yield run("fp8-graphs", bf16, "quant=fp8", graphs, needs=compiled_fp8)
    per_tensor = ("quant=fp8", "quant.granularity=per_tensor", regional)
    yield run("fp8-tensor-fp32", *per_tensor, needs=compiled_fp8)
    yield run("fp8-tensor-fp16", fp16, *per_tensor, needs=compiled_fp8)
    last = "memory_format=channels_last"
    yield run("exact-channels-last", last, tiny=RUN, checks=[checked])
    yield run("exact-compile", "compile=default", needs=["compiler"], checks=[checked])
    yield run("exact-regional", regional, needs=["compiler"], tiny=RUN, tiny_words=[_NO_QUALITY])
    yield run("exact-qkv", bf16, last, "qkv=fused", checks=[checked])
    yield run("tf32", "precision=tf32", needs=["cuda", "capability 8.0"])


def kernels() -> Iterator[Step]:
    """Each attention kernel alone, eager and within CUDA graphs."""
    bf16, graphs = "precision=bf16", "compile=reduce_overhead"
    only_cuda = {"efficient": _CUDA, "cudnn": (*_CUDA, "capability 8.0")}
    for name in ("flash", "efficient", "cudnn", "math"):
        needs, forced = only_cuda.get(name, ()), f"attention=sdpa_{name}"
        tiny = (
            {"tiny": RUN, "tiny_words": ["precision=fp32", _NO_QUALITY]} if name == "flash" else {}
        )
        yield run(f"kernel-{name}", bf16, forced, needs=needs, checks=[kernel(name)], **tiny)
        yield run(
            f"kernel-{name}-graphs",
            bf16,
            forced,
            graphs,
            needs=[*needs, "compiler"],
            checks=[kernel(name)],
        )
    sd15 = ("model=sd15", "model.weights=random", bf16, _NO_QUALITY)
    yield run("kernel-cudnn-sd15", *sd15, "attention=sdpa_cudnn", needs=_CUDA, may_refuse=True)


def offloads() -> Iterator[Step]:
    """Each way to have less on the GPU, by itself and with quantized weights."""
    ways = {
        "model": ("memory=model_offload",),
        "group": ("memory=group_offload",),
        "group-leaf": ("memory=group_offload", "memory.offload_type=leaf_level"),
        "group-stream": ("memory=group_offload", "memory.use_stream=true"),
        "layerwise": ("memory=layerwise",),
    }
    for name, words in ways.items():
        needs = () if name == "layerwise" else _CUDA
        common = ("precision=bf16", _NO_QUALITY, *words)
        yield run(f"offload-{name}", *common, needs=needs)
        yield run(f"offload-{name}-fp8", *common, "quant=fp8", needs=[*needs, *_FP8])
        yield run(f"offload-{name}-int8", *common, "quant=int8", needs=needs)


def figures() -> Iterator[Step]:
    """What is measured, each alone: SDXL's architecture at its own size, the tutorial's rungs, a transformer like FLUX.1."""
    bf16 = ("precision=bf16", "qkv=fused", "memory_format=channels_last")
    four = {"more": ("generation.steps=4", "bench=once"), "tiny_words": _SMALL, "alone": True}
    yield run("sdxl", *_SDXL, *bf16, "profile=true", memory_gb=16, limit_s=150, tiny=RUN, **four)
    yield run("sdxl-fp32", *_SDXL, memory_gb=24, limit_s=120, **four)
    compiled = {"needs": ["compiler"], "memory_gb": 16, "limit_s": 200}
    yield run("sdxl-regional", *_SDXL, *bf16, "compile=regional", **compiled, **four)
    flux = {"more": _FLUX_SIZE, "tiny_words": _SMALL_FLUX, "alone": True, "limit_s": 200}
    regional = ("precision=bf16", "compile=regional")
    yield run(
        "flux-bf16", *_FLUX, "precision=bf16", tiny=RUN, checks=[memory_is_counted(2.0)], **flux
    )
    yield run("flux-fp8", *_FLUX, *regional, "quant=fp8", needs=[*_FP8, "compiler"], **flux)
    yield run("flux-int8", *_FLUX, *regional, "quant=int8", needs=["compiler"], **flux)
    aot = ("precision=bf16", "compile=aot", "compile.targets=[denoiser]")
    yield run("flux-aot", *_FLUX, *aot, needs=["toolkit"], checks=[memory_is_counted(2.0)], **flux)
    for rung in ladder("sdxl_tutorial"):
        figure = {"latency_s": rung.published.latency_s, "speedup": rung.published.speedup}
        compiles = rung.choices.get("compile", "none") != "none"
        yield run(
            f"tutorial-{rung.short}",
            f"experiment={rung.name}",
            "model.weights=random",
            _NO_QUALITY,
            needs=["compiler"] if compiles else (),
            tiny=RUN if rung.short == "sdpa" else PLAN,
            tiny_words=["model=shapes", *(["precision=fp32"] if rung.short == "sdpa" else [])],
            more=["bench.runs=3"],
            limit_s=500 if compiles else 150,
            memory_gb=24,
            alone=True,
            published={**figure, "hardware": rung.published.hardware},
        )


def steps() -> list[Step]:
    """All steps, in the order in which they are tried."""
    return [
        *toolchain(),
        probe("arithmetic", judge_arithmetic, 90),
        probe("flux", judge_flux, 120, folder="flux"),
        *crashes(),
        *kernels(),
        *offloads(),
        exported_script(),
        sweep_of_two(),
        comparison("compare-same", "", "", {"gpu": ("no difference", "unclear")}),
        comparison(
            "compare-steps", "generation.steps=6", "generation.steps=12", {"gpu": ("slower",)}
        ),
        marked_tests("tests", "gpu and not slow", 120),
        *figures(),
        marked_tests("tests-slow", "gpu and slow", 300),
        *(whole_ladder(name) for name in ("sdxl_tutorial", "sd15_guide", "distilled_guide")),
    ]
