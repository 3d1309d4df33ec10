"""What diffusers' pipeline classes are called with, and what they give back.

A run calls a pipeline with a prompt and takes pictures from it. Which classes that fits is known here for every one
that diffusers exports (diffusers.json), so that a plan refuses the others before anything is loaded; tests/models/test_calls.py
compares every row with the installed library. Nothing here imports torch, diffusers or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdiff.errors import listed
from fastdiff.models.facts import ModelFacts
from fastdiff.models.tables import Table, read

SERVED: Mapping[str, str] = {
    "p": "prompt",
    "n": "negative_prompt",
    "s": "num_inference_steps",
    "g": "guidance_scale",
    "h": "height",
    "w": "width",
    "i": "num_images_per_prompt",
}
"""The arguments that fastdiff gives, each by its letter in a row below. It also gives `generator`, where there is one."""


@dataclass(frozen=True)
class CallFacts:
    """One pipeline class, as it is called.

    takes: letters of the arguments of `SERVED` that its call has.
    gives: the first field of what it returns; "" where it returns no output class of its own.
    needs: arguments that a call can't do without and fastdiff doesn't give: those without a default, and those whose
        default None its call refuses.
    """

    takes: str
    gives: str
    needs: tuple[str, ...] = ()

    def takes_argument(self, name: str) -> bool:
        """Whether its call has this argument of `SERVED`."""
        return any(SERVED[letter] == name for letter in self.takes)


CALLS: Mapping[str, CallFacts] = Table(
    "diffusers", "calls", lambda row: CallFacts(row[0], row[1], tuple(row[2:]))
)


def table_version() -> str:
    """The version of diffusers, two numbers, whose every pipeline class stands in the table."""
    return str(read("diffusers")["version"])


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


def call_facts(pipeline: str) -> CallFacts | None:
    """The facts of a pipeline class's call; None when the table doesn't know the class."""
    return CALLS.get(pipeline)


def why_no_pictures(pipeline: str) -> str | None:
    """Why a call with a prompt gives no pictures; None if it gives them, or if the class isn't in the table."""
    facts = call_facts(pipeline)
    if facts is None:
        return None
    reasons = [_NOT_ONE_PICTURE[pipeline]] if pipeline in _NOT_ONE_PICTURE else []
    if facts.gives in _NOUNS:
        reasons.append(f"makes {_NOUNS[facts.gives]}, not pictures")
    elif facts.gives != "images":
        named = f".{facts.gives}" if facts.gives else "something else"
        reasons.append(f"gives {named} back, where fastdiff reads .images")
    if facts.needs:
        names = [f"{name}=" for name in facts.needs]
        reasons.append(f"needs {listed(names)}, which fastdiff doesn't give yet")
    if not facts.takes_argument("prompt"):
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


def negative_prompt_unread(facts: ModelFacts, scale: float | None) -> tuple[str, str] | None:
    """Why a negative prompt changes no picture with this guidance_scale, and the way out; None if it may.

    scale: None is the pipeline's own, which is always enough.
    """
    drop = "generation.negative_prompt=null"
    denoiser = facts.denoiser.config if facts.denoiser else {}
    known = call_facts(facts.pipeline)
    if known is None or not known.takes_argument("negative_prompt"):
        return None
    if facts.pipeline in _TRUE_CFG:
        reason = f"{facts.pipeline} reads it only with true_cfg_scale above 1, which fastdiff doesn't give"
        return reason, drop
    if facts.pipeline in _TIME_CONDITIONED and denoiser.get("time_cond_proj_dim") is not None:
        return (
            "its UNet was distilled from guidance (time_cond_proj_dim), and reads no negative prompt",
            drop,
        )
    above = _READ_ABOVE.get(facts.pipeline, 1)
    if (
        scale is None
        or above is None
        or scale > above
        or not known.takes_argument("guidance_scale")
    ):
        return None
    reason = (
        f"{facts.pipeline} reads it only with guidance_scale above {above:g}; here it is {scale:g}"
    )
    return reason, f"generation.guidance_scale={above + 3:g}, or {drop}"
