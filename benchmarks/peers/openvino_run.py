"""A diffusers SDXL pipeline whose UNet and VAE decode run in OpenVINO, timed; runs in OpenVINO's own environment.

    python openvino_run.py --model DIR --keep DIR --precision bf16 --prompt TEXT --steps 25 --guidance 4 --height 64 --width 64

The first run converts both with static shapes and keeps them in --keep as OpenVINO's files; later runs start from there.
With --cache OpenVINO keeps what it compiled, too. Text encoders and scheduler stay in PyTorch.
Prints one line of JSON: convert_s, load_s, compile_s, first_call_s, warmup_s, samples_s, steps_s, peak_memory_bytes,
openvino (its version).
"""

import argparse
import itertools
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import openvino
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

PRECISIONS = {"fp32": (torch.float32, "f32"), "bf16": (torch.bfloat16, "bf16")}


class Denoiser(torch.nn.Module):
    """SDXL's UNet with plain tensors as inputs and output, so that it can be traced."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]


class Decoder(torch.nn.Module):
    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="OpenVINO on an SDXL pipeline.")
    parser.add_argument("--model", type=Path, required=True, help="a folder of save_pretrained")
    parser.add_argument("--keep", type=Path, required=True, help="folder for what was converted")
    parser.add_argument("--cache", type=Path, help="folder for what OpenVINO compiled")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="PNG file for the first call's picture")
    return parser.parse_args()


def convert(asked: argparse.Namespace) -> dict[str, Path]:
    """OpenVINO's file of each part, converted where it isn't there yet: one part in memory at a time."""
    files = {name: asked.keep / f"{name}.xml" for name in ("unet", "vae")}
    blocks = json.loads((asked.model / "vae" / "config.json").read_text())["block_out_channels"]
    height, width = (side // 2 ** (len(blocks) - 1) for side in (asked.height, asked.width))
    if not files["unet"].is_file():
        unet = load_part(UNet2DConditionModel, asked.model / "unet")
        batch = 2 if asked.guidance > 1 else 1  # with and without the prompt
        ids = 6 * unet.config.addition_time_embed_dim
        inputs = {
            "sample": torch.randn(batch, unet.config.in_channels, height, width),
            "timestep": torch.tensor(1.0),
            "encoder_hidden_states": torch.randn(batch, 77, unet.config.cross_attention_dim),
            "text_embeds": torch.randn(
                batch, unet.config.projection_class_embeddings_input_dim - ids
            ),
            "time_ids": torch.randn(batch, 6),
        }
        write(Denoiser(unet), inputs, files["unet"])
    if not files["vae"].is_file():
        vae = load_part(AutoencoderKL, asked.model / "vae")
        latents = torch.randn(1, vae.config.latent_channels, height, width)
        write(Decoder(vae), {"latents": latents}, files["vae"])
    return files


def load_part(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(str(folder), torch_dtype=torch.float32, use_safetensors=True)


def write(module: torch.nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> None:
    """Write the .xml and .bin with static shapes; weights in fp16, OpenVINO's default."""
    shapes = [(name, list(tensor.shape)) for name, tensor in inputs.items()]
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=inputs, input=shapes)
    openvino.save_model(model, file)


def load(asked: argparse.Namespace) -> Any:
    """The pipeline with a UNet whose weights take no memory: they are never touched."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(str(asked.model / "unet"))
        )
    dtype, _ = PRECISIONS[asked.precision]
    pipe = StableDiffusionXLPipeline.from_pretrained(
        str(asked.model),
        unet=unet.to(dtype).to_empty(device="cpu"),
        dtype=dtype,
        use_safetensors=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compiled(file: Path, asked: argparse.Namespace) -> Any:
    """Compile for one picture at a time, on as many threads as this process may use."""
    core = openvino.Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": PRECISIONS[asked.precision][1],
    }
    if asked.cache is not None:
        settings["CACHE_DIR"] = str(asked.cache)
    return core.compile_model(core.read_model(file), "CPU", settings)


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def put_in(pipe: Any, denoiser: Any, decoder: Any) -> None:
    """Let the pipeline call what was compiled. Inputs go as numpy, because OpenVINO reads PyTorch's tensors that way."""

    def unet(
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, torch.Tensor],
        **unused: Any,
    ) -> tuple[torch.Tensor]:
        inputs = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "text_embeds": added_cond_kwargs["text_embeds"],
            "time_ids": added_cond_kwargs["time_ids"],
        }
        arrays = {name: tensor.float().numpy() for name, tensor in inputs.items()}
        return (torch.from_numpy(denoiser(arrays, share_inputs=True)[0]).to(sample.dtype),)

    def decode(latents: torch.Tensor, **unused: Any) -> tuple[torch.Tensor]:
        found = decoder({"latents": latents.float().numpy()}, share_inputs=True)[0]
        return (torch.from_numpy(found).to(latents.dtype),)

    pipe.unet.forward = unet
    pipe.vae.decode = decode


def main() -> None:
    asked = parse()
    torch.set_num_threads(threads())
    asked.keep.mkdir(parents=True, exist_ok=True)
    times: dict[str, Any] = {}
    started = time.perf_counter()
    files = convert(asked)
    times["convert_s"] = time.perf_counter() - started

    started = time.perf_counter()
    pipe = load(asked)
    times["load_s"] = time.perf_counter() - started

    started = time.perf_counter()
    put_in(pipe, compiled(files["unet"], asked), compiled(files["vae"], asked))
    times["compile_s"] = time.perf_counter() - started

    def call() -> tuple[Any, float, list[float]]:
        """The picture, the call's seconds, and those from one step's end to the next's."""
        marks: list[float] = []

        def mark(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            marks.append(time.perf_counter())
            return kwargs

        started = time.perf_counter()
        picture = pipe(
            asked.prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            height=asked.height,
            width=asked.width,
            generator=torch.Generator("cpu").manual_seed(asked.seed),
            callback_on_step_end=mark,
        ).images[0]
        seconds = time.perf_counter() - started
        return picture, seconds, [b - a for a, b in itertools.pairwise(marks)]

    picture, times["first_call_s"], _ = call()
    if asked.out is not None:
        picture.save(asked.out)
    times["warmup_s"] = [call()[1] for _ in range(asked.warmup)]
    calls = [call() for _ in range(asked.runs)]
    times["samples_s"] = [seconds for _, seconds, _ in calls]
    times["steps_s"] = [step for _, _, steps in calls for step in steps]
    times["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times["openvino"] = openvino.__version__
    print(json.dumps(times))


if __name__ == "__main__":
    main()
