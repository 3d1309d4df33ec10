"""A published architecture filled with seeded random numbers: real sizes, real times, no download, and no pictures.

Every tensor is drawn by itself, in fp32 on the CPU, from a seed that its name decides, and cast afterwards: every dtype
and device holds the same model. Parameters are born on the meta device and take their place one by one, so that the
whole never needs much more memory than its own weights.

Runs that follow one another may keep what was drawn in a folder, which an environment variable names.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import fingerprint
from fastdiff.models.architectures import Architecture, Blueprint

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPE = 1
"""Changes when the same seed no longer draws the same numbers: it is part of a random model's identity."""

KEPT_IN = "FASTDIFF_RANDOM_WEIGHTS_DIR"
"""Environment variable: the folder in which weights that were drawn are kept for the runs that follow."""

CLIP_VOCABULARY = 49408
T5_VOCABULARY = 32128


def build_pipeline(
    architecture: Architecture, seed: int, dtype: torch.dtype | None, parts: Mapping[str, Any]
) -> Any:
    """The pipeline on the CPU, in eval mode. dtype: of its weights, fp32 if None; parts: taken instead of its own."""
    import diffusers

    made: dict[str, Any] = dict(architecture.arguments)
    for name, kind in architecture.tokenizers.items():
        made[name] = clip_tokenizer() if kind == "clip" else t5_tokenizer()
    for name, blueprint in architecture.components.items():
        made[name] = parts[name] if name in parts else build_component(blueprint, seed, name, dtype)
    return getattr(diffusers, architecture.pipeline)(**made)


def build_component(blueprint: Blueprint, seed: int, name: str, dtype: torch.dtype | None) -> Any:
    """One component; a module comes with random weights, on the CPU, in eval mode."""
    import torch

    if blueprint.class_name.endswith("Scheduler"):
        return empty_component(blueprint)
    module = empty_component(blueprint)
    dtype = dtype or torch.float32
    kept = kept_file(blueprint, seed, name, dtype)
    if kept is not None and kept.is_file():
        from safetensors import safe_open

        with safe_open(kept, framework="pt") as file:
            # A copy, so that the weights lie in memory as they do where they were drawn.
            fill(module, dtype, lambda part, key, path: file.get_tensor(path).clone())
    else:
        fill(module, dtype, lambda part, key, path: draw(part, key, seed, f"{name}.{path}"))
        if kept is not None:
            keep(module, kept)
    return module.eval().requires_grad_(False)


def kept_file(blueprint: Blueprint, seed: int, name: str, dtype: torch.dtype) -> Path | None:
    """Where the component's weights are kept, or would be; None where nobody asked for that."""
    folder = os.environ.get(KEPT_IN)
    if not folder:
        return None
    identity = [RECIPE, blueprint.class_name, blueprint.config, seed, name, str(dtype)]
    return Path(folder) / f"{name}-{fingerprint(identity)}.safetensors"


@contextmanager
def kept_for_runs(folder: Path) -> Iterator[None]:
    """Within it, processes that are started keep in this folder what they draw, and find it; afterwards it is removed.

    A folder that the user named already is used instead, and stays.
    """
    if os.environ.get(KEPT_IN):
        yield
        return
    os.environ[KEPT_IN] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[KEPT_IN]
        shutil.rmtree(folder, ignore_errors=True)


def keep(module: nn.Module, file: Path) -> None:
    """Write the module's weights, each once, unless the disk would be fuller than half of what is free with them."""
    from safetensors.torch import save_file

    tensors = {name: parameter.data for name, parameter in module.named_parameters()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    if size > shutil.disk_usage(file.parent).free / 2:
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(tensors, unfinished)
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def empty_component(blueprint: Blueprint) -> Any:
    """The component with its parameters on the meta device and its buffers, which are constants, in place."""
    import importlib

    from accelerate import init_empty_weights

    library = importlib.import_module(blueprint.library)
    kind = getattr(library, blueprint.class_name)
    if blueprint.class_name.endswith("Scheduler"):
        return kind(**blueprint.config)
    with init_empty_weights(include_buffers=False):
        if blueprint.library != "transformers":
            return kind(**blueprint.config)
        module = kind(kind.config_class(**blueprint.config))
    module.tie_weights()  # what shared a parameter lost it on the way to meta
    return module


def fill(
    module: nn.Module,
    dtype: torch.dtype,
    numbers: Callable[[nn.Module, str, str], torch.Tensor],
) -> None:
    """Give every parameter its numbers, and what shares one parameter the same.

    numbers: of a parameter, by the module that has it, its key there, and its path from the top.
    """
    import torch

    owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for path, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                whole = f"{path}.{key}" if path else key
                owners.setdefault(id(parameter), []).append((part, key, whole))
    for places in owners.values():
        part, key, path = places[0]
        weight = torch.nn.Parameter(numbers(part, key, path).to(dtype), requires_grad=False)
        for part, key, _ in places:
            part._parameters[key] = weight
    for part in module.modules():
        for key, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[key] = buffer.to(dtype)


def draw(part: nn.Module, key: str, seed: int, path: str) -> torch.Tensor:
    """One tensor in fp32: ones for a norm's scale, zeros for biases, a normal distribution for the rest.

    Its deviation is 1/sqrt(inputs of one output), so that activations keep their size through any depth; 0.02 for embeddings.
    """
    import torch
    from torch import nn

    shape = part._parameters[key].shape  # type: ignore[union-attr]
    if len(shape) < 2:
        return torch.zeros(shape) if key == "bias" else torch.ones(shape)
    digest = hashlib.sha256(f"{RECIPE}:{seed}:{path}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    embedding = isinstance(part, nn.Embedding)
    deviation = 0.02 if embedding else 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


def clip_tokenizer() -> Any:
    """A CLIP tokenizer of the published size that spells every text, letter by letter."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(spare)) for byte in range(256)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [f"unused{n}</w>" for n in range(CLIP_VOCABULARY - len(tokens) - len(ends))] + ends
    ids = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=ids, merges=[], model_max_length=77)


def t5_tokenizer() -> Any:
    """A tokenizer of T5's size that spells every text, letter by letter."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(code): code for code in range(32, 127)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
