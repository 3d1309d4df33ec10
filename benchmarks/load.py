"""What `fastdiff.load` costs beside loading the same pipeline by hand, with the same passes applied.

    python benchmarks/load.py
    python benchmarks/load.py --model DIR --pairs 10 --processes 0

Twice: within one process, everything imported (what loading itself takes), and in processes of their own from their start
to their end (imports and all). A round loads with fastdiff, by hand, and by hand once more, in a random order that the
next round runs backwards; the ratio of a round is a pair. By hand against itself is what the machine's noise alone does.

Exit code 1 if a goal is missed: within a process, at most 1.02 times the time by hand (the whole 95 % interval lies above).
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

SHAPES = Path(__file__).resolve().parent.parent / "fastdiff" / "models" / "shapes" / "pipeline"
MOST = 1.02
SIDES = ("fastdiff", "by hand", "by hand again")


@dataclass(frozen=True)
class Setting:
    """The same pipeline in both spellings.

    dtype: torch's name. fused, channels_last: whether projections are joined, and weights laid out anew.
    """

    choices: dict[str, str]
    dtype: str
    fused: bool = False
    channels_last: bool = False


SETTINGS = {
    "plain": Setting({}, "float32"),
    "optimized": Setting(
        {"precision": "bf16", "qkv": "fused", "memory_format": "channels_last"},
        "bfloat16",
        fused=True,
        channels_last=True,
    ),
}


def with_fastdiff(model: Path, setting: Setting) -> Any:
    import fastdiff

    return fastdiff.load(model=model, device="cpu", **setting.choices)


def by_hand(model: Path, setting: Setting) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        str(model),
        dtype=getattr(torch, setting.dtype),
        use_safetensors=True,
        local_files_only=True,
    )
    if setting.fused:
        pipe.fuse_qkv_projections()
    if setting.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe


def load(side: str, model: Path, setting: Setting) -> Any:
    return with_fastdiff(model, setting) if side == "fastdiff" else by_hand(model, setting)


def without_bars() -> None:
    """Both sides draw the same bars; a terminal's time is none of theirs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


@dataclass
class Measured:
    """Seconds of every round, by side; the first load of each side, which fills caches, is kept apart."""

    samples_s: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    first_s: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> Any:
        from measuring import paired_ratio

        return paired_ratio(self.samples_s["fastdiff"], self.samples_s["by hand"])

    @property
    def noise(self) -> Any:
        from measuring import paired_ratio

        return paired_ratio(self.samples_s["by hand again"], self.samples_s["by hand"])

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples_s": self.samples_s,
            "first_s": self.first_s,
            "fastdiff_to_by_hand": self.ratio.to_dict(),
            "by_hand_to_itself": self.noise.to_dict(),
        }


def within_a_process(name: str, asked: argparse.Namespace) -> Measured:
    from measuring import counterbalanced

    setting, measured = SETTINGS[name], Measured()

    def timed(side: str) -> float:
        gc.collect()
        started = time.perf_counter()
        pipeline = load(side, asked.model, setting)
        seconds = time.perf_counter() - started
        del pipeline
        return seconds

    without_bars()
    for side in ("by hand", "fastdiff"):
        measured.first_s[side] = timed(side)
    for order in counterbalanced(SIDES, asked.pairs, asked.seed):
        for side in order:
            measured.samples_s[side].append(timed(side))
    return measured


def in_processes(name: str, asked: argparse.Namespace) -> Measured:
    from measuring import counterbalanced, timed_command

    measured = Measured()

    def timed(side: str) -> float:
        return timed_command(command(side, name, asked.model), Path(temporary)).seconds

    with tempfile.TemporaryDirectory() as temporary:
        for side in ("by hand", "fastdiff"):
            measured.first_s[side] = timed(side)
        for order in counterbalanced(SIDES, asked.processes, asked.seed):
            for side in order:
                measured.samples_s[side].append(timed(side))
    return measured


def command(side: str, name: str, model: Path) -> list[str]:
    """A process that loads once and ends."""
    script = str(Path(__file__).resolve())
    return [sys.executable, script, "--once", side, "--settings", name, "--model", str(model)]


def row(name: str, how: str, measured: Measured) -> str:
    ours, theirs = (f"{median(measured.samples_s[side]):.4f} s" for side in SIDES[:2])
    ratios = f"{measured.ratio!s:<23}{measured.noise!s}"
    return f"{name:<11}{how:<22}{ours:>10}{theirs:>10}  {ratios}"


def main() -> int:
    parser = argparse.ArgumentParser(description="fastdiff.load against the same by hand.")
    parser.add_argument("--model", type=Path, default=SHAPES, help="a folder of save_pretrained")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--pairs", type=int, default=40, help="rounds within a process")
    parser.add_argument("--processes", type=int, default=10, help="rounds of processes; 0 is none")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--name", default="load", help="of the results' file")
    parser.add_argument("--once", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        load(asked.once, asked.model, SETTINGS[asked.settings[0]])
        return 0
    if asked.pairs < 2 or asked.processes == 1:
        parser.error("one pair has no interval: --pairs 2 or more, --processes 0 or 2 and more")
    # Only here: a process that loads by hand imports nothing of fastdiff's.
    from measuring import ROOT, now, write_results

    started_at = now()
    print(f"{'setting':<33}{'fastdiff':>10}{'by hand':>10}  {'ratio [95 %]':<23}by hand, twice")
    found: dict[str, Any] = {}
    missed = []
    for name in asked.settings:
        inside = within_a_process(name, asked)
        print(row(name, "within a process", inside))
        found[name] = {"within_a_process": inside.to_dict()}
        if inside.ratio.low > MOST:
            missed.append(f"{name}: {inside.ratio} times the time by hand, allowed are {MOST}")
        if asked.processes:
            whole = in_processes(name, asked)
            print(row(name, "processes, imports too", whole))
            found[name]["processes"] = whole.to_dict()
    own = asked.model.resolve() == SHAPES
    results = {
        "model": "shapes" if own else asked.model.name,
        "weights_bytes": sum(file.stat().st_size for file in asked.model.rglob("*.safetensors")),
        "settings": found,
    }
    path = write_results(asked.name, results, started_at)
    print(f"written: {path.relative_to(ROOT)}")
    for line in missed:
        print(f"MISSED  {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
