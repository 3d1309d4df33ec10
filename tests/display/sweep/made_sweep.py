"""Sweeps that never ran: the content of `sweep.json` with made-up figures, and pictures for it."""

from __future__ import annotations

import itertools
import random
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.latency import pareto, speedup

NASTY = '</script><script>document.title="taken over"</script><img src=x onerror=alert(1)>'
"""Text that takes a page over where it isn't escaped."""


def made_row(place: int, values: Mapping[str, str], **given: Any) -> dict[str, Any]:
    """A row of sweep.json that was not run, with what is given."""
    overrides = [f"{key}={value}" for key, value in values.items()]
    cell = given.pop("cell", "-".join([*values.values(), f"{place:06x}"]))
    return {
        "cell": cell,
        "place": place,
        "values": dict(values),
        "overrides": overrides,
        "status": None,
        "reason": None,
        "instead": None,
        "log": None,
        "log_tail": [],
        "same_as": None,
        "choices": {"model": "shapes", **values},
        "applied": [],
        "notices": [],
        "latency_s": None,
        "step_latency_s": None,
        "throughput_images_per_s": None,
        "load_s": None,
        "first_call_s": None,
        "compile_s": None,
        "compile_cache": None,
        "seconds": None,
        "peak_memory_bytes": None,
        "quality": None,
        "images": [],
        "reference": [],
        "speedup": None,
        "pareto": False,
        "command": shlex.join(["python", "-m", "fastdiff", *overrides]),
        "recipe": None,
        "report": None,
        "report_sha256": None,
        "finished_at": None,
        **given,
    }


def measured(median_s: float, psnr_db: float | None = None, **given: Any) -> dict[str, Any]:
    """Fields of a row that ended well; without a PSNR its pictures are identical to the reference's."""
    samples = [median_s * factor for factor in (0.97, 0.99, 1.0, 1.02, 1.04)]
    return {
        "status": "ok",
        "latency_s": {
            "samples": samples,
            "median": median_s,
            "p10": samples[0],
            "p90": samples[-1],
            "ci95": [samples[1], samples[3]],
        },
        "step_latency_s": median_s / 25,
        "throughput_images_per_s": 1 / median_s,
        "load_s": 0.41,
        "first_call_s": median_s * 1.6,
        "compile_s": 0.0,
        "compile_cache": "none",
        "seconds": median_s * 9,
        "peak_memory_bytes": {
            "device_allocated": None,
            "device_reserved": None,
            "host": 812_000_000,
        },
        "quality": compared(psnr_db),
        "applied": ["precision.bf16 4 components", "device cpu"],
        "recipe": "fastdiff: 1\nchoices:\n  precision: bf16\n",
        "report_sha256": "0" * 64,
        "finished_at": "2026-11-21T02:10:11+00:00",
        **given,
    }


def compared(psnr_db: float | None) -> dict[str, Any]:
    """A report's `quality` against a reference in fp32."""
    return {
        "reference_run_id": "3f2a1c",
        "reference": "fp32",
        "reason": None,
        "identical": psnr_db is None,
        "psnr_db": psnr_db,
        "ssim": 1.0 if psnr_db is None else min(0.9999, psnr_db / 42),
        "ms_ssim": None,
        "max_abs_difference": 0.0 if psnr_db is None else 0.2,
        "max_abs_difference_latents": None,
        "lpips": None,
        "reasons": {},
        "caption": {"score": None},
    }


def made_sweep(rows: Sequence[dict[str, Any]], **given: Any) -> dict[str, Any]:
    """The content of sweep.json; speed-ups over the first row that is ok, as a sweep fills them in."""
    base = next((row for row in rows if row["status"] == "ok"), None)
    front = pareto(rows)
    for row in rows:
        row["speedup"] = speedup(row, base)
        row["pareto"] = row["cell"] in front
    varied = list(rows[0]["values"]) if rows else []
    return {
        "schema": 1,
        "name": "grid",
        "state": "complete",
        "error": None,
        "model": "shapes",
        "overrides": [],
        "varied": varied,
        "launcher": "basic",
        "command": "python -m fastdiff -m precision=fp32,bf16 attention=math,sdpa sweep.name=grid",
        "baseline": base["cell"] if base else None,
        "environment": {
            "device": "cpu",
            "device_name": "AMD EPYC 9B14",
            "capability": None,
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "transformers": "5.17.0",
            "torchao": "0.18.0",
            "python": "3.11.9",
            "os": "Linux 6.1",
            "threads": 2,
            "cpu": "AMD EPYC 9B14",
            "memory_bytes": 16_000_000_000,
            "git": None,
            "packages": {"torch": "2.13.0", "numpy": "2.3.1"},
        },
        "made_with": {"fastdiff": "0.1.0"},
        "started_at": "2026-11-21T02:00:00+00:00",
        "finished_at": "2026-11-21T02:20:00+00:00",
        "counts": {},
        "rows": list(rows),
        **given,
    }


def every_status(folder: Path) -> dict[str, Any]:
    """A sweep with every status, its pictures in the folder, and text that must be escaped."""
    keys = ("precision", "attention", "quant", "compile")
    draw(folder / "references/r/image-0.png", (200, 40, 40))
    draw(folder / "cells/same/image-0.png", (200, 40, 40))
    draw(folder / "cells/close/image-0.png", (196, 44, 40))
    draw(folder / "cells/far/image-0.png", (150, 60, 70))
    draw(folder / "cells/large/image-0.png", (190, 50, 45), side=640)
    against = ["references/r/image-0.png"]

    def pictures(name: str) -> dict[str, Any]:
        return {"images": [f"cells/{name}/image-0.png"], "reference": against}

    def values(*chosen: str) -> dict[str, str]:
        return dict(zip(keys, chosen, strict=True))

    recipe = f"fastdiff: 1\ngeneration:\n  prompt: '{NASTY}'\n"
    refused = (
        "attention=math can't be combined with qkv=fused: fusing replaces the attention processor"
    )
    rows = [
        made_row(1, values("fp32", "math", "none", "none"), cell="base", **measured(0.62, **pictures("same"))),
        made_row(
            2,
            values("fp32", "sdpa", "none", "none"),
            cell="sdpa",
            **measured(0.47, 61.3, **pictures("close"), notices=[f"a notice with {NASTY}"], recipe=recipe),
        ),
        made_row(
            3,
            values("bf16", "sdpa", "int8", "regional"),
            cell="quick",
            **measured(0.21, 33.9, **pictures("far"), compile_s=30.7, compile_cache="cold"),
        ),
        made_row(
            4,
            values("bf16", "sdpa", "none", "regional"),
            cell="large",
            **measured(0.26, 38.2, **pictures("large"), compile_s=5.2, compile_cache="warm"),
        ),
        made_row(5, values("bf16", "math", "int8", "none"), cell="slow", **measured(0.71, 31.0)),
        made_row(
            6,
            values("bf16", "sdpa", "none", "none"),
            cell="alone",
            **measured(0.33, quality={**compared(None), "identical": None, "psnr_db": None, "ssim": None, "reason": "quality=none: not asked"}),
        ),
        made_row(
            7,
            values("fp16", "sdpa", "none", "none"),
            cell="nan",
            **measured(0.31, quality=None, status="invalid_output", reason="the picture is not finite: 64 % NaN\nfirst in the VAE", instead="vae=fp16_fix"),
        ),
        made_row(8, values("fp32", "math", "fp8", "none"), status="incompatible", reason="quant=fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu", instead="quant=int8"),
        made_row(9, values("bf16", "math", "fp8", "none"), status="incompatible", reason="quant=fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu", instead="quant=int8"),
        made_row(10, values("bf16", "math", "none", "none"), status="incompatible", reason=refused, instead="qkv=separate, or attention=sdpa_math"),
        made_row(11, values("fp32", "sdpa", "int8", "none"), cell="broken", status="failed", reason=f"RuntimeError: {NASTY}", log="cells/broken/log.txt", log_tail=["Traceback (most recent call last):", f"RuntimeError: {NASTY}"]),
        made_row(12, values("fp32", "math", "int8", "none"), status="oom", reason="the run needed more than 2.0 GB", instead="precision=bf16"),
        made_row(13, values("fp32", "math", "int8", "regional"), status="timeout", reason="it took longer than sweep.timeout_s=60", log="cells/t/log.txt", log_tail=["compiling"]),
        made_row(14, values("fp32", "math", "none", "regional"), status="crashed", reason="the process ended with signal 9 (SIGKILL)"),
        made_row(15, values("fp32", "sdpa", "none", "regional"), status="interrupted", reason="Ctrl-C"),
        made_row(16, values("bf16", "math", "none", "regional")),
        made_row(17, values("fp32", "default", "none", "none"), cell="again", **measured(0.62, **pictures("same"), same_as="base")),
    ]  # fmt: skip
    return made_sweep(rows, model="shapes (a red circle)", state="interrupted")


def large_sweep(count: int, folder: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """A grid of many rows; with a folder, each with a picture of its own in it."""
    generator = random.Random(seed)
    grid = itertools.product(
        ("fp32", "bf16", "fp16"),
        ("math", "sdpa", "xformers"),
        ("none", "int8", "int8_dynamic", "int4_weight_only"),
        ("none", "regional", "max_autotune"),
        ("none", "deepcache"),
    )
    keys = ("precision", "attention", "quant", "compile", "cache")
    rows = []
    for place, chosen in enumerate(itertools.islice(grid, count), 1):
        values = dict(zip(keys, chosen, strict=True))
        if values["attention"] == "xformers" and values["precision"] == "fp32":
            rows.append(made_row(place, values, status="incompatible", reason="attention=xformers needs xformers", instead="attention=sdpa"))  # fmt: skip
            continue
        pace = (
            0.9
            * (0.7 if values["precision"] != "fp32" else 1)
            * (0.6 if values["compile"] != "none" else 1)
        )
        closeness = (
            60
            - 12 * (values["precision"] != "fp32")
            - 9 * (values["quant"] != "none")
            + generator.gauss(0, 2)
        )
        latency = pace * (0.7 if values["cache"] != "none" else 1) * generator.uniform(0.9, 1.1)
        images = {}
        if folder is not None:
            shade = tuple(generator.randrange(40, 220) for _ in range(3))
            draw(folder / f"cells/{place}/image-0.png", shade)
            images = {
                "images": [f"cells/{place}/image-0.png"],
                "reference": ["cells/1/image-0.png"],
            }
        memory = {
            "device_allocated": None,
            "device_reserved": None,
            "host": int(generator.uniform(5e8, 2e9)),
        }
        rows.append(made_row(place, values, **measured(latency, None if place == 1 else closeness, peak_memory_bytes=memory, **images)))  # fmt: skip
    return made_sweep(rows, name=f"grid of {count}")


def draw(path: Path, shade: tuple[int, ...], side: int = 64) -> None:
    """A square picture with a disc."""
    from PIL import Image, ImageDraw

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).ellipse(
        (side // 5, side // 5, side * 4 // 5, side * 4 // 5), fill=shade
    )
    picture.save(path)
