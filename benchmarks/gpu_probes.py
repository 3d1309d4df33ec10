"""Small programs that ask a GPU directly, each in a process of its own: `python benchmarks/gpu_probes.py NAME --device cuda`.

The last line printed is what was found, as JSON. `--tiny`: sizes that a CPU gets through in seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ASKED_OF_THE_DRIVER = ("name", "driver_version", "compute_cap", "memory.total")


def toolchain(device: str, tiny: bool, folder: Path) -> dict[str, Any]:
    """The card and its driver, torch, and what compiling needs: found here without fastdiff, to hold fastdiff's plans to it."""
    import torch

    seen = torch.cuda.is_available()
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    home = home or (nvcc and str(Path(nvcc).parent.parent)) or "/usr/local/cuda"
    headers = (sysconfig.get_path("include", scheme) for scheme in ("posix_prefix", "venv"))
    return {
        "cards": nvidia_smi(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_sees": torch.cuda.get_device_name() if seen else None,
        "capability": list(torch.cuda.get_device_capability()) if seen else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if seen else None,
        "c": program("CC", "gcc", "clang"),
        "cpp": program("CXX", "g++"),
        "python_h": any(Path(folder, "Python.h").is_file() for folder in headers),
        "toolkit": all(Path(home, "include", h).is_file() for h in ("cuda.h", "cuda_runtime.h")),
        "nvcc": nvcc is not None,
        "triton": importlib.util.find_spec("triton") is not None,
        "processors": len(os.sched_getaffinity(0)),
    }


def program(variable: str, *known: str) -> bool:
    """Whether Triton, or Inductor, finds its compiler: the one that a variable names, else one that it knows."""
    named = os.environ.get(variable)
    return any(map(shutil.which, known if named is None else (named,)))


def nvidia_smi() -> list[dict[str, str]]:
    """Each card as its driver describes it, without its serial number; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [f"--query-gpu={','.join(ASKED_OF_THE_DRIVER)}", "--format=csv,noheader"]
    done = subprocess.run([program, *asked], capture_output=True, text=True)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [dict(zip(ASKED_OF_THE_DRIVER, row, strict=False)) for row in rows]


def arithmetic(device: str, tiny: bool, folder: Path) -> dict[str, Any]:
    """int8 products by rows and layout, the error of fp32 convolutions by layout, and the rates that rooflines use."""
    import torch

    from fastdiff.measuring.rates import machine_rates

    def random(rows: int, columns: int) -> Any:
        return torch.randint(-99, 99, (rows, columns), dtype=torch.int8, device=device)

    rows = {}
    for count in (1, 16, 17, 32):
        try:
            torch._int_mm(random(count, 64), random(64, 64))
            rows[str(count)] = "ok"
        except RuntimeError as error:
            rows[str(count)] = str(error).splitlines()[0]
    layouts = {}
    for size in (64, 128) if tiny else (4096, 8192):
        a, b = random(size, size), random(size, size)
        for name, right in (("row_by_row", b), ("row_by_column", b.t())):
            seconds = _quickest(lambda left, right: torch._int_mm(left, right), (a, right), device)
            layouts[f"{name}_{size}"] = 2 * size**3 / seconds / 1e12
    rates = {}
    for dtype in (torch.float32, torch.bfloat16)[: 1 if tiny else 2]:
        found = machine_rates(device, dtype)
        rates[str(dtype).removeprefix("torch.")] = {
            "matmul_tflops_per_s": found.matmul_flops_per_s / 1e12,
            "int8_tops_per_s": found.int8_ops_per_s and found.int8_ops_per_s / 1e12,
            "copy_gb_per_s": found.copy_bytes_per_s / 1e9,
            "notices": list(found.notices),
        }
    return {
        "int8_rows": rows,
        "int8_tops_per_s": layouts,
        "conv_rms_error": _convolutions(device, tiny),
        "rates": rates,
    }


def _quickest(
    call: Callable[..., Any], given: tuple[Any, ...], device: str, times: int = 10
) -> float:
    """Seconds of the quickest of some calls, after one that isn't counted."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    call(*given)
    samples = []
    for _ in range(times):
        wait()
        started = time.perf_counter()
        call(*given)
        wait()
        samples.append(time.perf_counter() - started)
    return min(samples)


def _convolutions(device: str, tiny: bool) -> dict[str, float]:
    """Root mean square error of a 3x3 fp32 convolution against fp64, channels first and last, as the flags stand."""
    import torch
    from torch.nn.functional import conv2d

    channels, side = (16, 16) if tiny else (320, 128)
    torch.manual_seed(0)
    x = torch.randn(2, channels, side, side, device=device)
    w = torch.randn(channels, channels, 3, 3, device=device)
    exact = conv2d(x.double(), w.double(), padding=1)
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    found = {}
    for name, layout in layouts.items():
        y = conv2d(x.to(memory_format=layout), w.to(memory_format=layout), padding=1)
        found[name] = float((y - exact).square().mean().sqrt())
    return found


def flux(device: str, tiny: bool, folder: Path) -> dict[str, Any]:
    """Write a pipeline like FLUX.1 to a folder: its widths, fewer layers, random weights; tiny: small widths too."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )

    torch.manual_seed(0)
    heads, axes, wide, layers = (
        (2, [4, 4, 8], 32, (1, 1)) if tiny else (24, [16, 56, 56], 4096, (2, 4))
    )
    dtype = torch.float32 if tiny else torch.bfloat16
    clip, clip_tokenizer = _clip()
    t5, t5_tokenizer = _t5(wide)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=layers[0],
            num_single_layers=layers[1],
            attention_head_dim=sum(axes),
            num_attention_heads=heads,
            joint_attention_dim=wide,
            pooled_projection_dim=32,
            axes_dims_rope=axes,
        )
    torch.set_default_dtype(torch.float32)
    vae = AutoencoderKL(
        block_out_channels=[8, 8, 8, 16] if tiny else [32, 64, 128, 128],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    FluxPipeline(
        transformer=transformer,
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in transformer.parameters()), "dtype": str(dtype)}


def _clip() -> tuple[Any, Any]:
    """A small CLIP text encoder, and a tokenizer of single characters: it knows any prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    tokenizer = CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77
    )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval(), tokenizer


def _t5(width: int) -> tuple[Any, Any]:
    """One layer of T5 as wide as the transformer wants it, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    wordy = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    wordy.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordy, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).eval(), tokenizer


def same_picture(device: str, tiny: bool, folder: Path) -> dict[str, Any]:
    """The largest difference, of 255, between `picture.png` of a folder and `image-0.png` of the run in it."""
    import numpy
    from PIL import Image

    pictures = []
    for path in (folder / "run" / "image-0.png", folder / "picture.png"):
        with Image.open(path) as opened:
            pictures.append(numpy.asarray(opened.convert("RGB")).astype(int))
    difference = numpy.abs(pictures[0] - pictures[1])
    return {"largest_difference": int(difference.max()), "size": list(pictures[0].shape)}


PROBES: dict[str, Callable[[str, bool, Path], dict[str, Any]]] = {
    "toolchain": toolchain,
    "arithmetic": arithmetic,
    "flux": flux,
    "same_picture": same_picture,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args()
    print(json.dumps(PROBES[asked.probe](asked.device, asked.tiny, asked.folder)))


if __name__ == "__main__":
    sys.exit(main())
