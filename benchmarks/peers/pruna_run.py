"""pruna on a diffusers SDXL pipeline, after its documentation: smash, then measure; runs in pruna's own environment.

    python pruna_run.py --model DIR --prompt TEXT --steps 25 --guidance 4 --height 64 --width 64 --smash torch_compile

Prints one line of JSON: first_call_s (this script's own; pruna has no figure for it), latency_s, pruna (its version).
"""

import argparse
import json
import time
from typing import Any

import torch
from datasets import Dataset
from diffusers import StableDiffusionXLPipeline
from pruna import SmashConfig, __version__, smash
from pruna.data.pruna_datamodule import PrunaDataModule
from pruna.evaluation.evaluation_agent import EvaluationAgent
from pruna.evaluation.metrics import LatencyMetric
from pruna.evaluation.task import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="pruna on an SDXL pipeline.")
    parser.add_argument("--model", required=True, help="a folder of save_pretrained")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--smash", nargs="*", default=[], help="ALGORITHM or KEY=VALUE")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    pipe = StableDiffusionXLPipeline.from_pretrained(
        asked.model, dtype=DTYPES[asked.dtype], use_safetensors=True, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    config = SmashConfig(device="cpu")
    for word in asked.smash:
        key, _, value = word.partition("=")
        config.add({key: value} if value else key)
    model: Any = smash(pipe, config)
    call = {
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance,
        "height": asked.height,
        "width": asked.width,
    }
    started = time.perf_counter()
    model(asked.prompt, **call)
    first_call_s = time.perf_counter() - started
    model.inference_handler.model_args.update(call)
    prompts = Dataset.from_list([{"text": asked.prompt}])
    data = PrunaDataModule.from_datasets(
        (prompts, prompts, prompts), "prompt_collate", dataloader_args={"batch_size": 1}
    )
    metric = LatencyMetric(n_iterations=asked.runs, n_warmup_iterations=asked.warmup, device="cpu")
    results = EvaluationAgent(Task([metric], data, device="cpu")).evaluate(model)
    found = {"first_call_s": first_call_s, "latency_s": results[0].result / 1000}
    print(json.dumps(found | {"pruna": __version__}))


if __name__ == "__main__":
    main()
