"""The script that a person would write by hand after the Diffusers documents; the yardstick for fastdiff's own cost.

    python benchmarks/handwritten.py --model DIR --dtype bf16 --compile regional

Plain calls of diffusers, torch and torchao, nothing of fastdiff. For Stable Diffusion and SDXL pipelines in a folder.
Prints one line of JSON: first_call_s, samples_s, median_s.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

SHAPES = Path(__file__).resolve().parent.parent / "fastdiff" / "models" / "shapes" / "pipeline"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# The documents' filter: linear layers of these [in, out] gain nothing from dynamic int8 on SDXL.
SKIPPED_SHAPES = {
    (1280, 640),
    (1920, 1280),
    (1920, 640),
    (2048, 1280),
    (2048, 2560),
    (2560, 1280),
    (256, 128),
    (2816, 1280),
    (320, 640),
    (512, 1536),
    (512, 256),
    (512, 512),
    (640, 1280),
    (640, 1920),
    (640, 320),
    (640, 5120),
    (640, 640),
    (960, 320),
    (960, 640),
}
# On CUDA, layers that see one row a picture: int8 products need more than 16 rows there.
ONE_ROW = ("time_embedding", "time_emb_proj", "add_embedding")


def is_quantized(module: torch.nn.Module, name: str) -> bool:
    if not isinstance(module, torch.nn.Linear) or module.in_features <= 16:
        return False
    if module.weight.is_cuda and any(part in name for part in ONE_ROW):
        return False
    return (module.in_features, module.out_features) not in SKIPPED_SHAPES


def is_swapped(module: torch.nn.Module, name: str) -> bool:
    return (
        isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
        and 128 in (module.in_channels, module.out_channels)
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The documents' techniques, by hand.")
    parser.add_argument("--model", type=Path, default=SHAPES, help="a folder of save_pretrained")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument(
        "--prompt", default="a red circle left of a blue star on a white background"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fuse-qkv", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument(
        "--int8", action="store_true", help="dynamic int8 with the documents' filter"
    )
    parser.add_argument(
        "--compile", choices=["none", "default", "regional", "max-autotune"], default="none"
    )
    parser.add_argument("--freezing", action="store_true", help="Inductor's freezing, for a CPU")
    parser.add_argument(
        "--warmup", type=int, default=1, help="calls between the first and the timed"
    )
    parser.add_argument("--runs", type=int, default=5, help="timed calls")
    parser.add_argument("--out", type=Path, help="PNG file for the first call's picture")
    asked = parser.parse_args()
    if not (asked.model / "model_index.json").is_file():
        parser.error(f"{asked.model} is no folder that pipeline.save_pretrained() wrote")
    if asked.runs < 1:
        parser.error("--runs must be 1 or more")
    return asked


def optimized_pipeline(asked: argparse.Namespace, device: str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(
        str(asked.model), dtype=DTYPES[asked.dtype], use_safetensors=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    if asked.fuse_qkv:
        pipe.fuse_qkv_projections()
    if asked.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if asked.int8:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            quantize_,
            swap_conv2d_1x1_to_linear,
        )

        for part in (pipe.unet, pipe.vae):
            swap_conv2d_1x1_to_linear(part, is_swapped)
            config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
            quantize_(part, config, filter_fn=is_quantized)
    if asked.freezing:
        torch._inductor.config.freezing = True
    if asked.compile == "regional":
        pipe.unet.compile_repeated_blocks(fullgraph=True)
    elif asked.compile != "none":
        if asked.compile == "max-autotune":
            torch._inductor.config.conv_1x1_as_mm = True
            torch._inductor.config.coordinate_descent_tuning = True
            torch._inductor.config.coordinate_descent_check_all_directions = True
            torch._inductor.config.epilogue_fusion = False
        pipe.unet = torch.compile(pipe.unet, mode=asked.compile, fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=asked.compile, fullgraph=True)
    return pipe


def main() -> None:
    asked = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = optimized_pipeline(asked, device)
    latents_shape = (
        1,
        pipe.unet.config.in_channels,
        asked.height // pipe.vae_scale_factor,
        asked.width // pipe.vae_scale_factor,
    )

    def call() -> Any:
        # Noise in fp32 on the CPU: the same picture whatever the precision and the device.
        generator = torch.Generator("cpu").manual_seed(asked.seed)
        noise = torch.randn(latents_shape, generator=generator, dtype=torch.float32)
        return pipe(
            asked.prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            height=asked.height,
            width=asked.width,
            latents=noise.to(device, DTYPES[asked.dtype]),
            generator=generator,
        ).images[0]

    def timed_call() -> tuple[Any, float]:
        started = time.perf_counter()
        picture = call()  # a picture is on the CPU, so nothing is left to wait for
        return picture, time.perf_counter() - started

    picture, first_call_s = timed_call()
    if asked.out is not None:
        picture.save(asked.out)
    for _ in range(asked.warmup):
        call()
    samples_s = [timed_call()[1] for _ in range(asked.runs)]
    median_s = statistics.median(samples_s)
    print(json.dumps({"first_call_s": first_call_s, "samples_s": samples_s, "median_s": median_s}))


if __name__ == "__main__":
    main()
