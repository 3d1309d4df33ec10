"""What diffusers' pipelines of flow matching hand to their scheduler beside the number of steps.

Schedulers don't take the same: one that is handed what its `set_timesteps` hasn't got fails once everything is loaded. The rows
hold for diffusers 0.42; tests/models/test_timesteps.py compares them with the installed pipelines' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Handed:
    """What a pipeline's call hands to `set_timesteps`.

    sigmas: its own noise levels, as an `array` or a `list`; "" for none.
    but_flow_sigmas: none to a scheduler whose configuration says use_flow_sigmas.
    mu: the shift by picture size: `always`, or where the configuration is `dynamic` (use_dynamic_shifting); "" for never.
    timesteps: its own timesteps beside the noise levels.
    says_where_it_begins: it calls set_begin_index(0), so that a scheduler needn't look up its first timestep.
    """

    sigmas: str = ""
    but_flow_sigmas: bool = False
    mu: str = ""
    timesteps: bool = False
    says_where_it_begins: bool = False


_NOTHING = Handed()
_NOTHING_FROM_0 = Handed(says_where_it_begins=True)
_SHIFTED = Handed(mu="dynamic")
_SIGMAS = Handed(sigmas="array")
_SIGMAS_FROM_0 = Handed(sigmas="array", says_where_it_begins=True)
_BOTH = Handed(sigmas="array", mu="always")
_BOTH_FROM_0 = Handed(sigmas="array", mu="always", says_where_it_begins=True)
_FLUX = Handed(sigmas="array", mu="always", but_flow_sigmas=True, says_where_it_begins=True)
_TIMESTEPS = Handed(sigmas="array", mu="always", timesteps=True)
_LIST = Handed(sigmas="list", mu="always", says_where_it_begins=True)

HANDED: Mapping[str, Handed] = {
    "AuraFlowPipeline": _NOTHING_FROM_0,
    "ChromaPipeline": _BOTH_FROM_0,
    "CogView4Pipeline": _TIMESTEPS,
    "Flux2KleinPipeline": _FLUX,
    "Flux2Pipeline": _FLUX,
    "FluxImg2ImgPipeline": _BOTH,
    "FluxKontextPipeline": _BOTH_FROM_0,
    "FluxPipeline": _FLUX,
    "GlmImagePipeline": _TIMESTEPS,
    "HunyuanImagePipeline": _SIGMAS_FROM_0,
    "HunyuanVideoPipeline": _SIGMAS_FROM_0,
    "Kandinsky5T2IPipeline": _NOTHING,
    "LTXImageToVideoPipeline": _BOTH,
    "LTXPipeline": _BOTH,
    "LongCatImagePipeline": _BOTH,
    "Lumina2Pipeline": _BOTH_FROM_0,
    "LuminaPipeline": _NOTHING,
    "MochiPipeline": _SIGMAS_FROM_0,
    "OmniGenPipeline": _SIGMAS,
    "OvisImagePipeline": _FLUX,
    "QwenImageEditPipeline": _BOTH_FROM_0,
    "QwenImagePipeline": _BOTH_FROM_0,
    "SanaPAGPipeline": _NOTHING,
    "SanaPipeline": _NOTHING,
    "SanaVideoPipeline": _NOTHING,
    "StableDiffusion3Img2ImgPipeline": _SHIFTED,
    "StableDiffusion3Pipeline": _SHIFTED,
    "WanImageToVideoPipeline": _NOTHING,
    "WanPipeline": _NOTHING_FROM_0,
    "ZImagePipeline": _LIST,
}
