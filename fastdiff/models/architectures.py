"""Published architectures, as far as they differ from their classes' defaults. No weights, and nothing is imported.

They let a plan answer before a download, and `model.weights=random` build a model that was never downloaded. Sizes are
counted by tests/models/test_architectures.py on the very modules; the tables hold for diffusers 0.42 and transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastdiff.models.facts import Component, ModelFacts


@dataclass(frozen=True)
class Blueprint:
    """One component: where its class is, the arguments of its constructor, how many numbers its weights hold."""

    library: str
    class_name: str
    parameters: int
    config: Mapping[str, object] = field(default_factory=dict)

    def component(self, name: str) -> Component:
        """What planning knows of it; its files, and so their bytes, are nobody's yet."""
        return Component(
            name, self.library, self.class_name, None, self.parameters, dict(self.config)
        )


@dataclass(frozen=True)
class Architecture:
    """A whole pipeline.

    components: with weights; the scheduler is among them, with none. tokenizers: kind by component name, `clip` or `t5`.
    arguments: further ones of the pipeline's constructor. source: where the configurations were read.
    """

    pipeline: str
    components: Mapping[str, Blueprint]
    tokenizers: Mapping[str, str]
    source: str
    arguments: Mapping[str, object] = field(default_factory=dict)

    def facts(self) -> ModelFacts:
        parts = {name: part.component(name) for name, part in self.components.items()}
        return ModelFacts(self.pipeline, parts)


_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_ENCODER_BLOCKS = ("DownEncoderBlock2D",) * 4
_DECODER_BLOCKS = ("UpDecoderBlock2D",) * 4
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": _ENCODER_BLOCKS,
    "up_block_types": _DECODER_BLOCKS,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = Blueprint(
    "transformers",
    "CLIPTextModel",
    123_060_480,
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,
        "bos_token_id": 0,
    },
)
_CLIP_G = Blueprint(
    "transformers",
    "CLIPTextModelWithProjection",
    694_659_840,
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
        "eos_token_id": 2,
        "bos_token_id": 0,
    },
)
_T5_XXL = Blueprint(
    "transformers",
    "T5EncoderModel",
    4_762_310_656,
    {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    },
)
_SD1_UNET = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
_PNDM = Blueprint(
    "diffusers",
    "PNDMScheduler",
    0,
    {**_NOISE, "skip_prk_steps": True, "set_alpha_to_one": False},
)
_SD1_PARTS = {
    "vae": Blueprint("diffusers", "AutoencoderKL", 83_653_863, {**_VAE, "sample_size": 512}),
    "text_encoder": _CLIP_L,
    "scheduler": _PNDM,
}
_NO_FILTER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

_FORGE = (
    "https://github.com/lllyasviel/stable-diffusion-webui-forge/tree/"
    "dfdcbab685e57677014f05a3309b48cc87383167/backend/huggingface"
)
_BK_SDM = (
    "https://github.com/Nota-NetsPresso/BK-SDM/blob/"
    "f3d988288165394115501874522f27e934b16ba7/src/unet_config/bk_small/config.json"
)

_SDXL = Architecture(
    "StableDiffusionXLPipeline",
    {
        "unet": Blueprint(
            "diffusers",
            "UNet2DConditionModel",
            2_567_463_684,
            {
                "block_out_channels": (320, 640, 1280),
                "down_block_types": (
                    "DownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                ),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,  # 768 + 1280, both text encoders' hidden sizes
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,  # 6 * 256 + 1280
                "use_linear_projection": True,
                "sample_size": 128,
            },
        ),
        "vae": Blueprint(
            "diffusers",
            "AutoencoderKL",
            83_653_863,
            {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        ),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "scheduler": Blueprint(
            "diffusers",
            "EulerDiscreteScheduler",
            0,
            {**_NOISE, "timestep_spacing": "leading"},
        ),
    },
    {"tokenizer": "clip", "tokenizer_2": "clip"},
    f"{_FORGE}/stabilityai/stable-diffusion-xl-base-1.0",
    {"force_zeros_for_empty_prompt": True, "add_watermarker": False},
)
_SD1 = Architecture(
    "StableDiffusionPipeline",
    {
        "unet": Blueprint("diffusers", "UNet2DConditionModel", 859_520_964, _SD1_UNET),
        **_SD1_PARTS,
    },
    {"tokenizer": "clip"},
    f"{_FORGE}/runwayml/stable-diffusion-v1-5",
    _NO_FILTER,
)
_BK_SDM_SMALL = Architecture(
    "StableDiffusionPipeline",
    {
        "unet": Blueprint(
            "diffusers",
            "UNet2DConditionModel",
            482_346_884,
            # What distillation shed: the middle block, and one of two layers in every other.
            {**_SD1_UNET, "layers_per_block": 1, "mid_block_type": None},
        ),
        **_SD1_PARTS,
    },
    {"tokenizer": "clip"},
    _BK_SDM,
    _NO_FILTER,
)
_FLUX_SCHNELL = Architecture(
    "FluxPipeline",
    {
        "transformer": Blueprint(
            "diffusers",
            "FluxTransformer2DModel",
            11_891_178_560,
            {
                "num_layers": 19,
                "num_single_layers": 38,
                "num_attention_heads": 24,
                "attention_head_dim": 128,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "in_channels": 64,
                "guidance_embeds": False,
            },
        ),
        "vae": Blueprint(
            "diffusers",
            "AutoencoderKL",
            83_819_683,
            {
                **_VAE,
                "latent_channels": 16,
                "sample_size": 1024,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "force_upcast": True,
            },
        ),
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
        "scheduler": Blueprint("diffusers", "FlowMatchEulerDiscreteScheduler", 0, {"shift": 1.0}),
    },
    {"tokenizer": "clip", "tokenizer_2": "t5"},
    f"{_FORGE}/black-forest-labs/FLUX.1-schnell",
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "sdxl": _SDXL,
    "sd1": _SD1,
    "bk_sdm_small": _BK_SDM_SMALL,
    "flux_schnell": _FLUX_SCHNELL,
}
"""By the name that a model's YAML gives in `architecture`. SD 1.4 and 1.5 are the same one."""

ORIGINAL: Mapping[str, Architecture] = {
    "StableDiffusionPipeline": _SD1,
    "StableDiffusionInpaintPipeline": _SD1,
    "StableDiffusionInstructPix2PixPipeline": _SD1,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusionXLInstructPix2PixPipeline": _SDXL,
    "FluxPipeline": _FLUX_SCHNELL,
    "FluxControlPipeline": _FLUX_SCHNELL,
    "FluxFillPipeline": _FLUX_SCHNELL,
}
"""By pipeline: whose layers an original checkpoint has, in one file, if it is none of their distilled kin."""

TAESD = Blueprint("diffusers", "AutoencoderTiny", 2_445_063, {"latent_channels": 4})
"""taesd has the class's own defaults; taesdxl's file was not to be found and is taken to be the same."""

TAEF1 = Blueprint("diffusers", "AutoencoderTiny", 2_458_899, {"latent_channels": 16})
"""Inferred from taef1's published use with Flux' 16 channels; no file of it was read."""

TINY_AUTOENCODERS: Mapping[str, Blueprint] = {
    "madebyollin/taesd": TAESD,
    "madebyollin/taesdxl": TAESD,
    "madebyollin/taef1": TAEF1,
    "sayakpaul/taesd-diffusers": TAESD,
    "sayakpaul/taesdxl-diffusers": TAESD,
}
"""By their repositories on the hub."""
