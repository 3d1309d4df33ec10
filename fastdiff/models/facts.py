"""What can be known of a pipeline before any of its weights is loaded.

Two tables say what diffusers' classes can do. They hold for diffusers 0.42; tests/models/test_facts.py
compares every row with the installed library. Nothing here imports torch, diffusers or transformers: a plan
is answered in milliseconds. reading.py fills in what a model's own files say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClassFacts:
    """What one diffusers model class can do.

    fuses_qkv: its own fuse_qkv_projections() makes fused projections *and* a forward pass uses
        them. Sana, QwenImage and HunyuanVideo make none; LTX makes them and never calls them.
        Some configurations of a class that fuses can't: see Component.fuses_qkv.
    default_attention: it has set_default_attn_processor().
    attention_processors: it has set_attn_processor().
    repeated_blocks: class names that compile_repeated_blocks() compiles; () if it can't.
    conv_weights: dimensions of its largest convolution weights: 0 none, 4 Conv2d, 5 Conv3d (a
        class with 5 may hold 4-D ones as well).
    step_cache: it is a CacheMixin, so enable_cache() works.
    """

    fuses_qkv: bool
    default_attention: bool
    attention_processors: bool
    repeated_blocks: tuple[str, ...]
    conv_weights: int
    step_cache: bool


_BASIC = ("BasicTransformerBlock",)
_CHROMA = ("ChromaTransformerBlock", "ChromaSingleTransformerBlock")
_FLUX = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
_FLUX2 = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
_HUNYUAN = (
    "HunyuanVideoTransformerBlock",
    "HunyuanVideoSingleTransformerBlock",
    "HunyuanVideoPatchEmbed",
    "HunyuanVideoTokenRefiner",
)
_LTX = ("LTXVideoTransformerBlock",)
_QWEN = ("QwenImageTransformerBlock",)
_WAN = ("WanTransformerBlock",)
_ZIMAGE = ("ZImageTransformerBlock",)

# fuses_qkv, default_attention, attention_processors, repeated_blocks, conv_weights, step_cache
CLASSES: Mapping[str, ClassFacts] = {
    "UNet2DConditionModel": ClassFacts(True, True, True, _BASIC, 4, False),
    "UNet2DModel": ClassFacts(False, False, False, (), 4, False),
    "PriorTransformer": ClassFacts(False, True, True, (), 0, False),
    "AuraFlowTransformer2DModel": ClassFacts(True, False, True, (), 0, False),
    "ChromaTransformer2DModel": ClassFacts(True, False, True, _CHROMA, 0, True),
    "CogVideoXTransformer3DModel": ClassFacts(True, False, True, (), 4, True),
    "CogView3PlusTransformer2DModel": ClassFacts(False, False, True, (), 0, False),
    "CogView4Transformer2DModel": ClassFacts(False, False, False, (), 0, True),
    "DiTTransformer2DModel": ClassFacts(False, False, False, (), 4, False),
    "Flux2Transformer2DModel": ClassFacts(True, False, True, _FLUX2, 0, True),
    "FluxTransformer2DModel": ClassFacts(True, False, True, _FLUX, 0, True),
    "HiDreamImageTransformer2DModel": ClassFacts(False, False, False, (), 0, False),
    "HunyuanDiT2DModel": ClassFacts(True, True, True, (), 4, False),
    "HunyuanVideoTransformer3DModel": ClassFacts(False, False, True, _HUNYUAN, 5, True),
    "LTXVideoTransformer3DModel": ClassFacts(False, False, True, _LTX, 0, True),
    "Lumina2Transformer2DModel": ClassFacts(False, False, False, (), 0, False),
    "MochiTransformer3DModel": ClassFacts(False, False, False, (), 4, True),
    "PixArtTransformer2DModel": ClassFacts(True, True, True, (), 4, False),
    "QwenImageTransformer2DModel": ClassFacts(False, False, True, _QWEN, 0, True),
    "SD3Transformer2DModel": ClassFacts(True, False, True, (), 4, False),
    "SanaTransformer2DModel": ClassFacts(False, False, True, (), 4, False),
    "Transformer2DModel": ClassFacts(False, False, False, (), 4, False),
    "WanTransformer3DModel": ClassFacts(True, False, True, _WAN, 5, True),
    "ZImageTransformer2DModel": ClassFacts(False, False, False, _ZIMAGE, 0, False),
    "AsymmetricAutoencoderKL": ClassFacts(False, False, False, (), 4, False),
    "AutoencoderDC": ClassFacts(False, False, False, (), 4, False),
    "AutoencoderKL": ClassFacts(True, True, True, (), 4, False),
    "AutoencoderKLCogVideoX": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderKLFlux2": ClassFacts(True, True, True, (), 4, False),
    "AutoencoderKLHunyuanVideo": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderKLLTXVideo": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderKLMochi": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderKLQwenImage": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderKLWan": ClassFacts(False, False, False, (), 5, False),
    "AutoencoderTiny": ClassFacts(False, False, False, (), 4, False),
    "ConsistencyDecoderVAE": ClassFacts(False, True, True, (), 4, False),
    "VQModel": ClassFacts(False, False, False, (), 4, False),
}


KEEPS_ATTENTION: Mapping[str, bool] = {
    "UNet2DConditionModel": True,
    "ChromaTransformer2DModel": False,
    "CogVideoXTransformer3DModel": False,
    "CogView4Transformer2DModel": False,
    "Flux2Transformer2DModel": False,
    "FluxTransformer2DModel": False,
    "HunyuanImageTransformer2DModel": False,
    "HunyuanVideo15Transformer3DModel": False,
    "HunyuanVideoTransformer3DModel": False,
    "LTXVideoTransformer3DModel": False,
    "LatteTransformer3DModel": True,
    "MochiTransformer3DModel": False,
    "QwenImageTransformer2DModel": False,
    "WanTransformer3DModel": True,
}
"""Denoisers on which diffusers' pyramid attention broadcast runs and changes what they compute, tried on tiny ones of each, and
whether they have cross-attention that it finds. Other classes have no attention that it knows (Sana's, Z-Image's), or
nothing moved (OvisImage's)."""


def class_facts(name: str) -> ClassFacts | None:
    """The facts of a diffusers model class; None when the table doesn't know it."""
    return CLASSES.get(name)


@dataclass(frozen=True)
class PipelineFacts:
    """What one diffusers pipeline class is like.

    denoiser: name of the component that runs once per step.
    fuses_qkv: the pipeline class itself has fuse_qkv_projections().
    """

    denoiser: str
    fuses_qkv: bool


_UNET = PipelineFacts("unet", False)
_UNET_FUSES = PipelineFacts("unet", True)
_TRANSFORMER = PipelineFacts("transformer", False)
_TRANSFORMER_FUSES = PipelineFacts("transformer", True)
_PRIOR = PipelineFacts("prior", False)

PIPELINES: Mapping[str, PipelineFacts] = {
    "AnimateDiffPipeline": _UNET_FUSES,
    "DDIMPipeline": _UNET,
    "DDPMPipeline": _UNET,
    "IFPipeline": _UNET,
    "Kandinsky3Pipeline": _UNET,
    "KandinskyPipeline": _UNET,
    "KandinskyV22Pipeline": _UNET,
    "LDMTextToImagePipeline": _UNET,
    "LatentConsistencyModelPipeline": _UNET_FUSES,
    "StableDiffusionImg2ImgPipeline": _UNET_FUSES,
    "StableDiffusionInpaintPipeline": _UNET_FUSES,
    "StableDiffusionPipeline": _UNET_FUSES,
    "StableDiffusionXLImg2ImgPipeline": _UNET_FUSES,
    "StableDiffusionXLInpaintPipeline": _UNET_FUSES,
    "StableDiffusionXLPipeline": _UNET_FUSES,
    "StableVideoDiffusionPipeline": _UNET,
    "TextToVideoSDPipeline": _UNET_FUSES,
    "KandinskyPriorPipeline": _PRIOR,
    "KandinskyV22PriorPipeline": _PRIOR,
    "StableCascadePriorPipeline": _PRIOR,
    "StableCascadeDecoderPipeline": PipelineFacts("decoder", False),
    "AllegroPipeline": _TRANSFORMER,
    "AmusedPipeline": _TRANSFORMER,
    "AuraFlowPipeline": _TRANSFORMER,
    "ChromaPipeline": _TRANSFORMER,
    "CogVideoXImageToVideoPipeline": _TRANSFORMER_FUSES,
    "CogVideoXPipeline": _TRANSFORMER_FUSES,
    "CogView3PlusPipeline": _TRANSFORMER,
    "CogView4Pipeline": _TRANSFORMER,
    "DiTPipeline": _TRANSFORMER,
    "Flux2Pipeline": _TRANSFORMER,
    "FluxImg2ImgPipeline": _TRANSFORMER,
    "FluxPipeline": _TRANSFORMER,
    "HiDreamImagePipeline": _TRANSFORMER,
    "HunyuanDiTPipeline": _TRANSFORMER,
    "HunyuanVideoPipeline": _TRANSFORMER,
    "LTXImageToVideoPipeline": _TRANSFORMER,
    "LTXPipeline": _TRANSFORMER,
    "LattePipeline": _TRANSFORMER,
    "Lumina2Pipeline": _TRANSFORMER,
    "LuminaPipeline": _TRANSFORMER,
    "MochiPipeline": _TRANSFORMER,
    "OmniGenPipeline": _TRANSFORMER,
    "PixArtAlphaPipeline": _TRANSFORMER,
    "PixArtSigmaPipeline": _TRANSFORMER,
    "QwenImagePipeline": _TRANSFORMER,
    "SanaPipeline": _TRANSFORMER,
    "SanaSprintPipeline": _TRANSFORMER,
    "SanaVideoPipeline": _TRANSFORMER,
    "StableDiffusion3Img2ImgPipeline": _TRANSFORMER,
    "StableDiffusion3Pipeline": _TRANSFORMER,
    "WanImageToVideoPipeline": _TRANSFORMER,
    "WanPipeline": _TRANSFORMER,
    "ZImagePipeline": _TRANSFORMER,
}


_DOWN_BLOCKS = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
"""What a UNet2DConditionModel goes down where its config doesn't say."""


@dataclass(frozen=True)
class Component:
    """One part of a pipeline, as its files describe it.

    library: "diffusers", "transformers", or the name model_index.json gives.
    weight_bytes: bytes of its tensors as stored; None if unknown, 0 for a scheduler.
    parameters: numbers in those tensors; None if unknown, 0 for a scheduler.
    config: its JSON configuration; {} if unknown.
    """

    name: str
    library: str
    class_name: str
    weight_bytes: int | None
    parameters: int | None
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def facts(self) -> ClassFacts | None:
        """What its class can do; None when the class isn't in CLASSES."""
        return class_facts(self.class_name)

    @property
    def fuses_qkv(self) -> bool:
        """Whether fusing works on *this* component: its class fuses and its config permits it.

        SD3.5 is refused: the fused processor leaves out its query and key norms (other pictures)
        and fails on its dual attention. So are UNets with added key/value projections.
        """
        if self.facts is None or not self.facts.fuses_qkv:
            return False
        if self.class_name == "SD3Transformer2DModel":
            return not self.config.get("qk_norm") and not self.config.get("dual_attention_layers")
        if self.class_name == "UNet2DConditionModel":
            return not self._adds_projections
        return True

    @property
    def plain_attention(self) -> bool:
        """Whether the plain attention processor can stand in for the default ones of *this* component.

        HunyuanDiT's own rotates queries and keys and norms them; a UNet with added key/value
        projections joins them. The plain one would leave that out, or fail.
        """
        if self.facts is None or not self.facts.default_attention:
            return False
        return self.class_name != "HunyuanDiT2DModel" and not self._adds_projections

    @property
    def head_dims(self) -> frozenset[int]:
        """How long a head's query, key and value are in its attention; empty if the config doesn't tell.

        UNet2DConditionModel calls the number of heads `attention_head_dim`, and diffusers keeps the name for the sake of
        the configs that have it.
        """
        if self.class_name == "UNet2DConditionModel":
            return self._unet_head_dims
        if not self.class_name.endswith(("Transformer2DModel", "Transformer3DModel")):
            return frozenset()
        named = (self.config.get(f"{kind}attention_head_dim") for kind in ("", "cross_"))
        return frozenset(dim for dim in named if isinstance(dim, int))

    @property
    def _unet_head_dims(self) -> frozenset[int]:
        """Of blocks with cross-attention: their channels over their number of heads."""
        if not self.config or self._adds_projections:
            return frozenset()
        down = self.config.get("down_block_types", _DOWN_BLOCKS)
        channels = self.config.get("block_out_channels", (320, 640, 1280, 1280))
        given = self.config.get("num_attention_heads") or self.config.get("attention_head_dim", 8)
        if not (isinstance(down, list | tuple) and isinstance(channels, list | tuple) and channels):
            return frozenset()
        heads = given if isinstance(given, list | tuple) else [given] * len(channels)
        mid = self.config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
        blocks = [*zip(down, channels, heads, strict=False), (mid, channels[-1], heads[-1])]
        attending = [(c, h) for kind, c, h in blocks if "CrossAttn" in str(kind)]
        known = all(isinstance(c, int) and isinstance(h, int) and h for c, h in attending)
        return frozenset(c // h for c, h in attending) if known else frozenset()

    @property
    def _adds_projections(self) -> bool:
        """Whether it is a UNet with blocks that have added key/value projections."""
        keys = ("down_block_types", "mid_block_type", "up_block_types")
        return any("SimpleCrossAttn" in str(self.config.get(key)) for key in keys)


@dataclass(frozen=True)
class ModelFacts:
    """A pipeline as its files describe it.

    pipeline: name of the pipeline class.
    components: the parts with weights and the schedulers, by name; no tokenizers or processors.
    config: what the pipeline itself is configured with, such as is_distilled; {} if unknown.
    """

    pipeline: str
    components: Mapping[str, Component]
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def denoiser(self) -> Component | None:
        """The part that runs once per step; None when it can't be told."""
        known = PIPELINES.get(self.pipeline)
        return self._first(([known.denoiser] if known else []) + ["unet", "transformer"])

    @property
    def vae(self) -> Component | None:
        """The part that turns latents into pictures; None when there is none."""
        return self._first(["vae", "vqvae", "movq"])

    @property
    def parameters(self) -> int | None:
        """Sum over all components; None if one is unknown."""
        counts = [component.parameters for component in self.components.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def _first(self, names: Iterable[str]) -> Component | None:
        return next((self.components[name] for name in names if name in self.components), None)
