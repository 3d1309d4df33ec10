"""Names of the weights that an architecture has, worked out from its configuration.

They tell before anything is loaded whether a file holds a whole component: diffusers meets a missing weight only after it
has read all the others ("Cannot copy out of meta tensor"), and transformers fills it with random numbers. The architectures of
Stable Diffusion, SDXL and Flux are known here, in diffusers' names and in those of original checkpoints;
tests/models/test_names.py compares them with the modules themselves. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]


def expected_names(class_name: str, config: Config) -> frozenset[str] | None:
    """Names of a component's weights, as diffusers or transformers save them; None where nobody here knows.

    A configuration that asks for something beside the usual, or that no model could be made of, is one that nobody knows.
    """
    known = _KNOWN.get(class_name)
    if known is None or not config or config.get("quantization_config"):
        return None
    try:
        names = known(config)
        return None if names is None else frozenset(names)
    except (TypeError, ValueError, LookupError):
        return None


def missing_names(expected: Iterable[str], held: Iterable[str]) -> list[str]:
    """What is expected and not held, sorted; older spellings of the same weight count."""
    there = {_spelled(name) for name in held}
    return sorted(name for name in expected if _spelled(name) not in there)


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _spelled(name: str) -> str:
    """A name as today's libraries write it: CLIP without its outermost module, a VAE's attention as it is called now."""
    old = re.fullmatch(r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    if old:
        return f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
    return name.removeprefix("text_model.").replace("encoder.embed_tokens.", "shared.")


def _both(*layers: str) -> Iterator[str]:
    """Layers with weight and bias."""
    for layer in layers:
        yield f"{layer}.weight"
        yield f"{layer}.bias"


def _each(value: Any, count: int) -> list[Any]:
    """One value for each block, given once or as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def _resnet(path: str, *, timed: bool, shortcut: bool) -> Iterator[str]:
    names = ["norm1", "conv1", "norm2", "conv2"]
    names += ["time_emb_proj"] * timed + ["conv_shortcut"] * shortcut
    yield from _both(*(f"{path}.{name}" for name in names))


# UNet2DConditionModel --------------------------------------------------------------------------------

_UNUSUAL = (
    "class_embed_type",
    "num_class_embeds",
    "class_embeddings_concat",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "dual_cross_attention",
    "only_cross_attention",
    "mid_block_only_cross_attention",
    "cross_attention_norm",
    "reverse_transformer_layers_per_block",
    "resnet_skip_time_act",
)
"""Keys of a UNet's configuration whose value, where there is one, gives it other weights."""

_USUAL = {
    "attention_type": ("default",),
    "time_embedding_type": ("positional",),
    "addition_embed_type": (None, "text_time"),
    "mid_block_type": (None, "UNetMidBlock2DCrossAttn"),
}
_MIDDLE = "UNetMidBlock2DCrossAttn"


def _unet(config: Config) -> Iterator[str] | None:
    down, up = _unet_blocks(config)
    for key in _UNUSUAL:
        value = config.get(key)
        if any(value) if isinstance(value, (list, tuple)) else value:
            return None
    odd = [k for k, usual in _USUAL.items() if k in config and config[k] not in usual]
    known_down = {"DownBlock2D", "CrossAttnDownBlock2D"}
    known_up = {"UpBlock2D", "CrossAttnUpBlock2D"}
    if (
        odd
        or set(down) - known_down
        or set(up) - known_up
        or config.get("norm_num_groups", 32) is None
    ):
        return None
    return _unet_names(config, down, up)


def _unet_blocks(config: Config) -> tuple[Sequence[str], Sequence[str]]:
    """Types of its down and of its up blocks."""
    down = config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    return down, config.get("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3))


def _unet_names(config: Config, down: Sequence[str], up: Sequence[str]) -> Iterator[str]:
    channels = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    layers = _each(config.get("layers_per_block", 2), len(down))
    depths = _each(config.get("transformer_layers_per_block", 1), len(down))
    yield from _both("conv_in", "conv_norm_out", "conv_out")
    yield from _both("time_embedding.linear_1", "time_embedding.linear_2")
    if config.get("time_cond_proj_dim") is not None:
        yield "time_embedding.cond_proj.weight"
    if config.get("addition_embed_type") == "text_time":
        yield from _both("add_embedding.linear_1", "add_embedding.linear_2")
    before = channels[0]
    for i, kind in enumerate(down):
        for j in range(layers[i]):
            wider = j == 0 and before != channels[i]
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", timed=True, shortcut=wider)
            if kind.startswith("Cross"):
                yield from _transformer(f"down_blocks.{i}.attentions.{j}", _depth(depths[i], j))
        if i < len(down) - 1:
            yield from _both(f"down_blocks.{i}.downsamplers.0.conv")
        before = channels[i]
    if config.get("mid_block_type", _MIDDLE) is not None:
        for j in range(2):
            yield from _resnet(f"mid_block.resnets.{j}", timed=True, shortcut=False)
        yield from _transformer("mid_block.attentions.0", _depth(depths[-1], 0))
    for i, kind in enumerate(up):
        for j in range(layers[-1 - i] + 1):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", timed=True, shortcut=True)
            if kind.startswith("Cross"):
                yield from _transformer(f"up_blocks.{i}.attentions.{j}", _depth(depths[-1 - i], j))
        if i < len(up) - 1:
            yield from _both(f"up_blocks.{i}.upsamplers.0.conv")


def _depth(depth: Any, layer: int) -> int:
    """Transformer blocks of one of a block's layers: the same for all, or listed."""
    return int(depth[layer] if isinstance(depth, (list, tuple)) else depth)


def _transformer(path: str, depth: int) -> Iterator[str]:
    yield from _both(f"{path}.norm", f"{path}.proj_in", f"{path}.proj_out")
    for n in range(depth):
        block = f"{path}.transformer_blocks.{n}"
        yield from _both(*(f"{block}.{name}" for name in ("norm1", "norm2", "norm3")))
        yield from _both(f"{block}.ff.net.0.proj", f"{block}.ff.net.2")
        for attention in ("attn1", "attn2"):
            yield from (f"{block}.{attention}.{name}.weight" for name in ("to_q", "to_k", "to_v"))
            yield from _both(f"{block}.{attention}.to_out.0")


# AutoencoderKL ---------------------------------------------------------------------------------------


def _autoencoder(config: Config) -> Iterator[str] | None:
    down = config.get("down_block_types", ("DownEncoderBlock2D",))
    up = config.get("up_block_types", ("UpDecoderBlock2D",))
    usual = set(down) == {"DownEncoderBlock2D"} and set(up) == {"UpDecoderBlock2D"}
    return _autoencoder_names(config, len(down), len(up)) if usual else None


def _autoencoder_names(config: Config, down: int, up: int) -> Iterator[str]:
    channels = list(config.get("block_out_channels", (64,)))
    layers = int(config.get("layers_per_block", 1))
    for half, kind, resample, count, each in (
        ("encoder", "down_blocks", "downsamplers", down, layers),
        ("decoder", "up_blocks", "upsamplers", up, layers + 1),
    ):
        yield from _both(f"{half}.conv_in", f"{half}.conv_norm_out", f"{half}.conv_out")
        for j in range(2):
            yield from _resnet(f"{half}.mid_block.resnets.{j}", timed=False, shortcut=False)
        if config.get("mid_block_add_attention", True):
            attention = f"{half}.mid_block.attentions.0"
            parts = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
            yield from _both(*(f"{attention}.{name}" for name in parts))
        widths = channels if half == "encoder" else channels[::-1]
        before = widths[0]
        for i in range(count):
            for j in range(each):
                wider = j == 0 and before != widths[i]
                path = f"{half}.{kind}.{i}"
                yield from _resnet(f"{path}.resnets.{j}", timed=False, shortcut=wider)
            if i < count - 1:
                yield from _both(f"{half}.{kind}.{i}.{resample}.0.conv")
            before = widths[i]
    if config.get("use_quant_conv", True):
        yield from _both("quant_conv")
    if config.get("use_post_quant_conv", True):
        yield from _both("post_quant_conv")


# Text encoders, Flux ---------------------------------------------------------------------------------


def _clip(config: Config) -> Iterator[str]:
    yield from ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    layer = (*attention, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
    for n in range(int(config.get("num_hidden_layers", 12))):
        yield from _both(*(f"encoder.layers.{n}.{name}" for name in layer))
    yield from _both("final_layer_norm")


def _clip_with_projection(config: Config) -> Iterator[str]:
    yield from _clip(config)
    yield "text_projection.weight"


def _t5(config: Config) -> Iterator[str]:
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    wide = ("wi_0", "wi_1") if gated else ("wi",)
    yield "shared.weight"
    yield "encoder.final_layer_norm.weight"
    yield "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for n in range(int(config.get("num_layers", 6))):
        attention, dense = (f"encoder.block.{n}.layer.{part}" for part in (0, 1))
        yield from (f"{attention}.SelfAttention.{name}.weight" for name in "qkvo")
        yield from (f"{dense}.DenseReluDense.{name}.weight" for name in (*wide, "wo"))
        yield from (f"{attention}.layer_norm.weight", f"{dense}.layer_norm.weight")


def _flux(config: Config) -> Iterator[str]:
    yield from _both("x_embedder", "context_embedder", "norm_out.linear", "proj_out")
    embedders = ["timestep_embedder", "text_embedder"]
    embedders += ["guidance_embedder"] * bool(config.get("guidance_embeds", False))
    for embedder in embedders:
        path = f"time_text_embed.{embedder}"
        yield from _both(f"{path}.linear_1", f"{path}.linear_2")
    own = ("attn.to_q", "attn.to_k", "attn.to_v")
    added = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
    dense = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    double = (*own, *added, *dense, "attn.to_out.0", "norm1.linear", "norm1_context.linear")
    norms = ("attn.norm_q", "attn.norm_k")
    for n in range(int(config.get("num_layers", 19))):
        block = f"transformer_blocks.{n}"
        yield from _both(*(f"{block}.{name}" for name in double))
        every = (*norms, "attn.norm_added_q", "attn.norm_added_k")
        yield from (f"{block}.{name}.weight" for name in every)
    for n in range(int(config.get("num_single_layers", 38))):
        block = f"single_transformer_blocks.{n}"
        yield from _both(
            *(f"{block}.{name}" for name in (*own, "norm.linear", "proj_mlp", "proj_out"))
        )
        yield from (f"{block}.{name}.weight" for name in norms)


_KNOWN: Mapping[str, Callable[[Config], Iterator[str] | None]] = {
    "AutoencoderKL": _autoencoder,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip_with_projection,
    "FluxTransformer2DModel": _flux,
    "T5EncoderModel": _t5,
    "UNet2DConditionModel": _unet,
}


# Original checkpoints --------------------------------------------------------------------------------

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_names(class_name: str, config: Config) -> frozenset[str] | None:
    """The same in an original checkpoint, without the component's prefix; None where nobody here knows."""
    names = expected_names(class_name, config)
    if names is None or class_name == "CLIPTextModel":
        return names
    if class_name == "FluxTransformer2DModel":
        return frozenset(_original_flux(config))
    if class_name == "AutoencoderKL":
        return frozenset(_original_autoencoder(name, config) for name in names)
    layers = config.get("layers_per_block", 2)
    if class_name != "UNet2DConditionModel" or not isinstance(layers, int):
        return None
    _, up = _unet_blocks(config)
    return frozenset(_original_unet(name, layers, up) for name in names)


def _original_unet(name: str, layers: int, up: Sequence[str]) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{kind}"
    if name.startswith("mid_block."):
        _, part, number, *rest = name.split(".")
        place = f"middle_block.{2 * int(number) if part == 'resnets' else 1}"
    else:
        side, block, part, number, *rest = name.split(".")
        i, j = int(block), int(number)
        down = side == "down_blocks"
        first = i * (layers + 1) + down
        if part == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{kind}"
        if part == "upsamplers":
            after = 2 if up[i].startswith("Cross") else 1
            return f"output_blocks.{first + layers}.{after}.conv.{kind}"
        place = f"{'input' if down else 'output'}_blocks.{first + j}.{int(part == 'attentions')}"
    if part == "resnets":
        return f"{place}.{_RESNET[rest[0]]}.{rest[1]}"
    return ".".join([place, *rest])


def _original_autoencoder(name: str, config: Config) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    parts = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for new, old in parts.items():
        name = name.replace(f"mid_block.attentions.0.{new}", f"mid.attn_1.{old}")
    last = len(config.get("up_block_types", ("UpDecoderBlock2D",))) - 1
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last - int(m[1])}", name)
    name = re.sub(r"\.resnets\.(\d+)", r".block.\1", name)
    return name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")


def _original_flux(config: Config) -> Iterator[str]:
    """The guidance embedding, which only some have, is left out: no file tells of itself whether it should be there."""
    yield from _both("img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1")
    for embedder in ("time_in", "vector_in"):
        yield from _both(f"{embedder}.in_layer", f"{embedder}.out_layer")
    for n in range(int(config.get("num_layers", 19))):
        for half in ("img", "txt"):
            block = f"double_blocks.{n}.{half}"
            layers = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")
            yield from _both(*(f"{block}_{layer}" for layer in layers))
            yield from (f"{block}_attn.norm.{which}_norm.scale" for which in ("query", "key"))
    for n in range(int(config.get("num_single_layers", 38))):
        block = f"single_blocks.{n}"
        yield from _both(
            *(f"{block}.{layer}" for layer in ("linear1", "linear2", "modulation.lin"))
        )
        yield from (f"{block}.norm.{which}_norm.scale" for which in ("query", "key"))
