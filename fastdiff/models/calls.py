"""What diffusers' pipeline classes are called with, and what they give back.

A run calls a pipeline with a prompt and takes pictures from it. Which classes that fits is known for every one that
diffusers exports (library.py), so that a plan refuses the others before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastdiff.errors import listed
from fastdiff.models.facts import ModelFacts
from fastdiff.models.library import PIPELINE_CLASSES
from fastdiff.models.tables import Table

KEYS: Mapping[str, str] = {
    "prompt": "generation.prompt",
    "negative_prompt": "generation.negative_prompt",
    "num_inference_steps": "generation.steps",
    "guidance_scale": "generation.guidance_scale",
    "height": "generation.height",
    "width": "generation.width",
    "num_images_per_prompt": "generation.images_per_prompt",
    "generator": "generation.seed",
}
"""The arguments that have keys of their own."""

GIVEN = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "output_type", "return_dict")
"""Arguments by which fastdiff itself takes pictures from a call and watches its steps."""

_REFUSES_NONE: Mapping[str, list[str]] = Table("diffusers", "refuses_none", list)
"""Arguments whose default None a call refuses, by pipeline class: the signature doesn't tell."""


def needs(pipeline: str, given: Collection[str] = ()) -> tuple[str, ...]:
    """Arguments that a call can't do without and isn't given. given: those of `generation.call`."""
    required = PIPELINE_CLASSES[pipeline].required
    known = (*KEYS, *given)
    return tuple(n for n in (*required, *_REFUSES_NONE.get(pipeline, ())) if n not in known)


_NOT_ONE_PICTURE: Mapping[str, str] = {
    "ShapEPipeline": "makes views of a shape in space, not one picture for each prompt",
    "TextToVideoZeroPipeline": "makes frames, not pictures",
    "TextToVideoZeroSDXLPipeline": "makes frames, not pictures",
    "UnCLIPPipeline": "has a scheduler for each of its three parts, and fastdiff follows one",
}
"""Classes whose call fits and whose result doesn't."""

_NOUNS: Mapping[str, str] = {
    "audios": "sound",
    "frames": "frames",
    "video": "frames",
    "image_embeds": "embeddings for another pipeline",
    "image_embeddings": "embeddings for another pipeline",
    "prompt_embeds": "embeddings for another pipeline",
    "prediction": "maps of a picture that it is given",
    "sequences": "text",
}
"""What an output's first field holds, where it isn't `images`."""


def why_no_pictures(pipeline: str, given: Collection[str] = ()) -> str | None:
    """Why a call with a prompt gives no pictures; None if it gives them, or if nobody knows the class.

    given: names of the arguments of `generation.call`.
    """
    facts = PIPELINE_CLASSES.get(pipeline)
    if facts is None:
        return None
    reasons = [_NOT_ONE_PICTURE[pipeline]] if pipeline in _NOT_ONE_PICTURE else []
    gives = facts.gives[0] if facts.gives else ""
    if gives in _NOUNS:
        reasons.append(f"makes {_NOUNS[gives]}, not pictures")
    elif gives != "images":
        named = f".{gives}" if gives else "something else"
        reasons.append(f"gives {named} back, where fastdiff reads .images")
    if needed := needs(pipeline, given):
        names = [f"{name}=" for name in needed]
        reasons.append(f"needs {listed(names)}, which fastdiff doesn't give yet")
    if "prompt" not in facts.arguments:
        reasons.append("takes no prompt")
    return "; it ".join(reasons) or None


# What of a call is read ------------------------------------------------------------------------------

_EMBEDDED = ("FluxPipeline", "FluxKontextPipeline", "QwenImagePipeline")
"""guidance_scale goes into the denoiser as a number, if its configuration says guidance_embeds."""

_TRUE_CFG = ("FluxPipeline", "FluxKontextPipeline", "QwenImage21Pipeline")
"""A negative prompt is read only with true_cfg_scale above 1, and 1 is the default."""

_TIME_CONDITIONED = (
    "KolorsPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
)
"""Where the UNet has time_cond_proj_dim, guidance is a number for it, and nothing is computed from a negative prompt."""

_READ_ABOVE: Mapping[str, float | None] = {
    "DreamLitePipeline": None,
    "KandinskyCombinedPipeline": None,
    "KandinskyV22CombinedPipeline": None,
    "Krea2Pipeline": 0,
    "QwenImagePipeline": None,
    "ZImageOmniPipeline": 0,
    "ZImagePipeline": 0,
}
"""The guidance_scale above which a negative prompt is read, where that isn't 1; None: it always is."""


def scale_unread(facts: ModelFacts) -> tuple[str, str] | None:
    """Why this pipeline's guidance_scale changes no picture, and the way out; None if it does or nobody knows."""
    drop = "generation.guidance_scale=null"
    denoiser = facts.denoiser.config if facts.denoiser else {}
    if facts.pipeline == "DreamLiteMobilePipeline":
        return (
            "DreamLiteMobilePipeline leaves it unread, because its model was distilled from guidance",
            drop,
        )
    if facts.pipeline == "Flux2KleinPipeline" and facts.config.get("is_distilled"):
        return (
            "Flux2KleinPipeline leaves it unread where is_distilled is true in model_index.json",
            drop,
        )
    if facts.pipeline in _EMBEDDED and denoiser and not denoiser.get("guidance_embeds"):
        reason = f"{facts.pipeline} reads it only where guidance_embeds is true in the transformer's configuration"
        if facts.pipeline == "QwenImagePipeline":
            reason += "; its own guidance is true_cfg_scale, 4 by default, which acts with a negative prompt"
            drop += " with generation.negative_prompt='a text'"
        return reason, drop
    return None


def negative_prompt_unread(
    facts: ModelFacts, scale: float | None, call: Mapping[str, Any]
) -> tuple[str, str] | None:
    """Why a negative prompt changes no picture with this guidance_scale, and the way out; None if it may.

    scale: None is the pipeline's own, which is always enough. call: other arguments, by name.
    """
    drop = "generation.negative_prompt=null"
    denoiser = facts.denoiser.config if facts.denoiser else {}
    known = PIPELINE_CLASSES.get(facts.pipeline)
    if known is None or "negative_prompt" not in known.arguments:
        return None
    if "negative_prompt" in known.unread:
        return f"{facts.pipeline} takes it, and nothing in it reads it", drop
    if facts.pipeline in _TRUE_CFG:
        if call.get("true_cfg_scale", 1) > 1:
            return None
        reason = f"{facts.pipeline} reads it only with true_cfg_scale above 1"
        return reason, f"generation.call.true_cfg_scale=4, or {drop}"
    if facts.pipeline in _TIME_CONDITIONED and denoiser.get("time_cond_proj_dim") is not None:
        return (
            "its UNet was distilled from guidance (time_cond_proj_dim), and reads no negative prompt",
            drop,
        )
    above = _READ_ABOVE.get(facts.pipeline, 1)
    if scale is None or above is None or scale > above or "guidance_scale" not in known.arguments:
        return None
    reason = (
        f"{facts.pipeline} reads it only with guidance_scale above {above:g}; here it is {scale:g}"
    )
    return reason, f"generation.guidance_scale={above + 3:g}, or {drop}"
