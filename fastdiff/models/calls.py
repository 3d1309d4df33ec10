"""What diffusers' pipeline classes are called with, and what they give back.

A run calls a pipeline with a prompt and takes pictures from it. Which classes that fits is known here for every one
that diffusers 0.42 exports, so that a plan refuses the others before anything is loaded; tests/models/test_calls.py
compares every row with the installed library. Nothing here imports torch, diffusers or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdiff.errors import listed
from fastdiff.models.facts import ModelFacts

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


DIFFUSERS = "0.42"
"""The version whose every pipeline class stands in the table."""

# fmt: off
CALLS: Mapping[str, CallFacts] = {
    "AceStepPipeline": CallFacts("psg", "audios"),
    "AllegroPipeline": CallFacts("pnsghw", "frames"),
    "AltDiffusionImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "AltDiffusionPipeline": CallFacts("pnsghwi", "images"),
    "AmusedImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "AmusedInpaintPipeline": CallFacts("pnsgi", "images", ("image", "mask_image")),
    "AmusedPipeline": CallFacts("pnsghwi", "images"),
    "AnimateDiffControlNetPipeline": CallFacts("pnsghw", "frames"),
    "AnimateDiffPAGPipeline": CallFacts("pnsghw", "frames"),
    "AnimateDiffPipeline": CallFacts("pnsghw", "frames"),
    "AnimateDiffSDXLPipeline": CallFacts("pnsghw", "frames"),
    "AnimateDiffSparseControlNetPipeline": CallFacts("pnsghw", "frames"),
    "AnimateDiffVideoToVideoControlNetPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "AnimateDiffVideoToVideoPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "AnyFlowFARPipeline": CallFacts("pnsghw", "frames"),
    "AnyFlowPipeline": CallFacts("pnsghw", "frames"),
    "AudioDiffusionPipeline": CallFacts("", "audios"),
    "AudioLDM2Pipeline": CallFacts("pnsg", "audios"),
    "AudioLDMPipeline": CallFacts("pnsg", "audios"),
    "AuraFlowPipeline": CallFacts("pnsghwi", "images"),
    "BlipDiffusionControlNetPipeline": CallFacts(
        "psghw", "images", ("reference_image", "condtioning_image", "source_subject_category", "target_subject_category")
    ),
    "BlipDiffusionPipeline": CallFacts(
        "psghw", "images", ("reference_image", "source_subject_category", "target_subject_category")
    ),
    "BriaFibo2Pipeline": CallFacts("pnsghwi", "images"),
    "BriaFiboEditPipeline": CallFacts("pnsghwi", "images"),
    "BriaFiboPipeline": CallFacts("pnsghwi", "images"),
    "BriaPipeline": CallFacts("pnsghwi", "images"),
    "ChromaImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "ChromaInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "ChromaPipeline": CallFacts("pnsghwi", "images"),
    "ChronoEditPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "CogVideoXFunControlPipeline": CallFacts("pnsghw", "frames", ("control_video",)),
    "CogVideoXImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "CogVideoXPipeline": CallFacts("pnsghw", "frames"),
    "CogVideoXVideoToVideoPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "CogView3PlusPipeline": CallFacts("pnsghwi", "images"),
    "CogView4ControlPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "CogView4Pipeline": CallFacts("pnsghwi", "images"),
    "ConsisIDPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "ConsistencyModelPipeline": CallFacts("s", "images"),
    "Cosmos2TextToImagePipeline": CallFacts("pnsghwi", "images"),
    "Cosmos2VideoToWorldPipeline": CallFacts("pnsghw", "frames"),
    "Cosmos2_5_PredictBasePipeline": CallFacts("pnsghw", "frames"),
    "Cosmos2_5_TransferPipeline": CallFacts("pnsghw", "frames", ("controls",)),
    "Cosmos3OmniPipeline": CallFacts("pnsghw", "video"),
    "CosmosTextToWorldPipeline": CallFacts("pnsghw", "frames"),
    "CosmosVideoToWorldPipeline": CallFacts("pnsghw", "frames"),
    "CycleDiffusionPipeline": CallFacts("psgi", "images", ("source_prompt", "image")),
    "DDIMPipeline": CallFacts("s", "images"),
    "DDPMPipeline": CallFacts("s", "images"),
    "DanceDiffusionPipeline": CallFacts("s", "audios"),
    "DiTPipeline": CallFacts("sg", "images", ("class_labels",)),
    "DiffusionGemmaPipeline": CallFacts("ps", "sequences"),
    "DreamLiteMobilePipeline": CallFacts("psghwi", "images"),
    "DreamLitePipeline": CallFacts("pnsghwi", "images"),
    "EasyAnimateControlPipeline": CallFacts("pnsghwi", "frames"),
    "EasyAnimateInpaintPipeline": CallFacts("pnsghwi", "frames"),
    "EasyAnimatePipeline": CallFacts("pnsghwi", "frames"),
    "ErnieImagePipeline": CallFacts("pnsghwi", "images"),
    "Flux2KleinInpaintPipeline": CallFacts("psghwi", "images", ("image", "mask_image")),
    "Flux2KleinKVPipeline": CallFacts("pshwi", "images"),
    "Flux2KleinPipeline": CallFacts("psghwi", "images"),
    "Flux2Pipeline": CallFacts("psghwi", "images"),
    "FluxControlImg2ImgPipeline": CallFacts("psghwi", "images", ("image", "control_image")),
    "FluxControlInpaintPipeline": CallFacts(
        "psghwi", "images", ("image", "control_image", "mask_image")
    ),
    "FluxControlNetImg2ImgPipeline": CallFacts("psghwi", "images", ("image", "control_image")),
    "FluxControlNetInpaintPipeline": CallFacts(
        "psghwi", "images", ("image", "mask_image", "control_image")
    ),
    "FluxControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "FluxControlPipeline": CallFacts("psghwi", "images", ("control_image",)),
    "FluxFillPipeline": CallFacts("psghwi", "images", ("image", "mask_image")),
    "FluxImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "FluxInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "FluxKontextInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "FluxKontextPipeline": CallFacts("pnsghwi", "images"),
    "FluxPipeline": CallFacts("pnsghwi", "images"),
    "FluxPriorReduxPipeline": CallFacts("p", "prompt_embeds", ("image",)),
    "GlmImagePipeline": CallFacts("psghwi", "images"),
    "HeliosPipeline": CallFacts("pnsghw", "frames"),
    "HeliosPyramidPipeline": CallFacts("pnghw", "frames"),
    "HiDreamImagePipeline": CallFacts("pnsghwi", "images"),
    "HunyuanDiTControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "HunyuanDiTPAGPipeline": CallFacts("pnsghwi", "images"),
    "HunyuanDiTPipeline": CallFacts("pnsghwi", "images"),
    "HunyuanImagePipeline": CallFacts("pnshwi", "images"),
    "HunyuanImageRefinerPipeline": CallFacts("pnshwi", "images", ("image",)),
    "HunyuanSkyreelsImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "HunyuanVideo15ImageToVideoPipeline": CallFacts("pns", "frames", ("image",)),
    "HunyuanVideo15Pipeline": CallFacts("pnshw", "frames"),
    "HunyuanVideoFramepackPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "HunyuanVideoImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "HunyuanVideoPipeline": CallFacts("pnsghw", "frames"),
    "I2VGenXLPipeline": CallFacts("pnsghw", "frames"),
    "IFImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "IFImg2ImgSuperResolutionPipeline": CallFacts("pnsgi", "images", ("image", "original_image")),
    "IFInpaintingPipeline": CallFacts("pnsgi", "images", ("image", "mask_image")),
    "IFInpaintingSuperResolutionPipeline": CallFacts(
        "pnsgi", "images", ("image", "original_image", "mask_image")
    ),
    "IFPipeline": CallFacts("pnsghwi", "images"),
    "IFSuperResolutionPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "Ideogram4Pipeline": CallFacts("psghwi", "images"),
    "JoyImageEditPipeline": CallFacts("pnsghwi", "images"),
    "JoyImageEditPlusPipeline": CallFacts("pnsghw", "images"),
    "Kandinsky3Img2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "Kandinsky3Pipeline": CallFacts("pnsghwi", "images"),
    "Kandinsky5I2IPipeline": CallFacts("pnsghwi", "image", ("image",)),
    "Kandinsky5I2VPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "Kandinsky5T2IPipeline": CallFacts("pnsghwi", "image"),
    "Kandinsky5T2VPipeline": CallFacts("pnsghw", "frames"),
    "Kandinsky6SRPipeline": CallFacts("s", "frames", ("video",)),
    "Kandinsky6TI2VAPipeline": CallFacts("pnsghw", "frames"),
    "KandinskyCombinedPipeline": CallFacts("pnsghwi", "images"),
    "KandinskyImg2ImgCombinedPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "KandinskyImg2ImgPipeline": CallFacts(
        "pnsghwi", "images", ("image", "image_embeds", "negative_image_embeds")
    ),
    "KandinskyInpaintCombinedPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "KandinskyInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "image_embeds", "negative_image_embeds")
    ),
    "KandinskyPipeline": CallFacts("pnsghwi", "images", ("image_embeds", "negative_image_embeds")),
    "KandinskyPriorPipeline": CallFacts("pnsgi", "image_embeds"),
    "KandinskyV22CombinedPipeline": CallFacts("pnsghwi", "images"),
    "KandinskyV22ControlnetImg2ImgPipeline": CallFacts(
        "sghwi", "images", ("image_embeds", "image", "negative_image_embeds", "hint")
    ),
    "KandinskyV22ControlnetPipeline": CallFacts(
        "sghwi", "images", ("image_embeds", "negative_image_embeds", "hint")
    ),
    "KandinskyV22Img2ImgCombinedPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "KandinskyV22Img2ImgPipeline": CallFacts(
        "sghwi", "images", ("image_embeds", "image", "negative_image_embeds")
    ),
    "KandinskyV22InpaintCombinedPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "KandinskyV22InpaintPipeline": CallFacts(
        "sghwi", "images", ("image_embeds", "image", "mask_image", "negative_image_embeds")
    ),
    "KandinskyV22Pipeline": CallFacts("sghwi", "images", ("image_embeds", "negative_image_embeds")),
    "KandinskyV22PriorEmb2EmbPipeline": CallFacts("pnsgi", "image_embeds", ("image",)),
    "KandinskyV22PriorPipeline": CallFacts("pnsgi", "image_embeds"),
    "KarrasVePipeline": CallFacts("s", "images"),
    "KolorsImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "KolorsPAGPipeline": CallFacts("pnsghwi", "images"),
    "KolorsPipeline": CallFacts("pnsghwi", "images"),
    "Krea2Pipeline": CallFacts("pnsghwi", "images"),
    "LDMPipeline": CallFacts("s", "images"),
    "LDMSuperResolutionPipeline": CallFacts("s", "images", ("image",)),
    "LDMTextToImagePipeline": CallFacts("psghw", "images"),
    "LEditsPPPipelineStableDiffusion": CallFacts("n", "images"),
    "LEditsPPPipelineStableDiffusionXL": CallFacts("n", "images"),
    "LLaDA2Pipeline": CallFacts("ps", "sequences"),
    "LTX2ConditionPipeline": CallFacts("pnsghw", "frames"),
    "LTX2DFRPipeline": CallFacts("phw", "frames"),
    "LTX2DFRTemporalRefinePipeline": CallFacts("phw", "frames"),
    "LTX2HDRPipeline": CallFacts("pnsghw", "frames"),
    "LTX2ImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "LTX2InContextPipeline": CallFacts("pnsghw", "frames"),
    "LTX2LatentUpsamplePipeline": CallFacts("hw", "frames"),
    "LTX2Pipeline": CallFacts("pnsghw", "frames"),
    "LTX2VideoDiffusionDecodePipeline": CallFacts("", "frames", ("latents",)),
    "LTXConditionPipeline": CallFacts("pnsghw", "frames"),
    "LTXI2VLongMultiPromptPipeline": CallFacts("pnsghw", "frames"),
    "LTXImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "LTXLatentUpsamplePipeline": CallFacts("hw", "frames"),
    "LTXPipeline": CallFacts("pnsghw", "frames"),
    "LatentConsistencyModelImg2ImgPipeline": CallFacts("psgi", "images", ("image",)),
    "LatentConsistencyModelPipeline": CallFacts("psghwi", "images"),
    "LattePipeline": CallFacts("pnsghwi", "frames"),
    "LongCatAudioDiTPipeline": CallFacts("pnsg", "audios"),
    "LongCatImageEditPipeline": CallFacts("pnsgi", "images", ("image",)),
    "LongCatImagePipeline": CallFacts("pnsghwi", "images"),
    "LucyEditPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "Lumina2Pipeline": CallFacts("pnsghwi", "images"),
    "LuminaPipeline": CallFacts("pnsghwi", "images"),
    "MarigoldDepthPipeline": CallFacts("s", "prediction", ("image",)),
    "MarigoldIntrinsicsPipeline": CallFacts("s", "prediction", ("image",)),
    "MarigoldNormalsPipeline": CallFacts("s", "prediction", ("image",)),
    "MochiPipeline": CallFacts("pnsghw", "frames"),
    "MotifVideoImage2VideoPipeline": CallFacts("pnshw", "frames", ("image",)),
    "MotifVideoPipeline": CallFacts("pnshw", "frames"),
    "MusicLDMPipeline": CallFacts("pnsg", "audios"),
    "NucleusMoEImagePipeline": CallFacts("pnsghwi", "images"),
    "OmniGenPipeline": CallFacts("psghwi", "images"),
    "OnnxStableDiffusionImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "OnnxStableDiffusionInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "OnnxStableDiffusionInpaintPipelineLegacy": CallFacts(
        "pnsgi", "images", ("image", "mask_image")
    ),
    "OnnxStableDiffusionPipeline": CallFacts("pnsghwi", "images"),
    "OnnxStableDiffusionUpscalePipeline": CallFacts("pnsgi", "images", ("image",)),
    "OvisImagePipeline": CallFacts("pnsghwi", "images"),
    "PIAPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "PNDMPipeline": CallFacts("s", "images"),
    "PRXPipeline": CallFacts("pnsghwi", "images"),
    "PRXPixelPipeline": CallFacts("pnsghwi", "images"),
    "PaintByExamplePipeline": CallFacts(
        "nsghwi", "images", ("example_image", "image", "mask_image")
    ),
    "PixArtAlphaPipeline": CallFacts("pnsghwi", "images"),
    "PixArtSigmaPAGPipeline": CallFacts("pnsghwi", "images"),
    "PixArtSigmaPipeline": CallFacts("pnsghwi", "images"),
    "QwenImage21Pipeline": CallFacts("pnshwi", "images"),
    "QwenImageControlNetInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("control_image", "control_mask")
    ),
    "QwenImageControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "QwenImageEditInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "QwenImageEditPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "QwenImageEditPlusPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "QwenImageImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "QwenImageInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "QwenImageLayeredPipeline": CallFacts("pnsgi", "images", ("image",)),
    "QwenImagePipeline": CallFacts("pnsghwi", "images"),
    "RFD4ProteinaPipeline": CallFacts(
        "", "", ("padding_mask", "is_in_context_conditioning", "supports_local_latent")
    ),
    "RePaintPipeline": CallFacts("s", "images", ("image", "mask_image")),
    "SanaControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "SanaImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "SanaPAGPipeline": CallFacts("pnsghwi", "images"),
    "SanaPipeline": CallFacts("pnsghwi", "images"),
    "SanaSprintImg2ImgPipeline": CallFacts("psghwi", "images", ("image",)),
    "SanaSprintPipeline": CallFacts("psghwi", "images"),
    "SanaVideoPipeline": CallFacts("pnsghw", "frames"),
    "SanaWMLTX2Refiner": CallFacts("p", "", ("sana_latent", "fps")),
    "SanaWMPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "ScoreSdeVePipeline": CallFacts("s", "images"),
    "SemanticStableDiffusionPipeline": CallFacts("pnsghwi", "images"),
    "ShapEImg2ImgPipeline": CallFacts("sgi", "images", ("image",)),
    "ShapEPipeline": CallFacts("psgi", "images"),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "SkyReelsV2DiffusionForcingPipeline": CallFacts("pnsghw", "frames"),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "SkyReelsV2ImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "SkyReelsV2Pipeline": CallFacts("pnsghw", "frames"),
    "SpectrogramDiffusionPipeline": CallFacts("s", "audios", ("input_tokens",)),
    "StableAudio3AudioToAudioPipeline": CallFacts("ps", "audios"),
    "StableAudio3InpaintPipeline": CallFacts("ps", "audios"),
    "StableAudio3Pipeline": CallFacts("pnsg", "audios"),
    "StableAudioPipeline": CallFacts("pnsg", "audios"),
    "StableCascadeCombinedPipeline": CallFacts("pnshwi", "images"),
    "StableCascadeDecoderPipeline": CallFacts("pnsgi", "images", ("image_embeddings",)),
    "StableCascadePriorPipeline": CallFacts("pnsghwi", "image_embeddings"),
    "StableDiffusion3ControlNetInpaintingPipeline": CallFacts(
        "pnsghwi", "images", ("control_image", "control_mask")
    ),
    "StableDiffusion3ControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "StableDiffusion3Img2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusion3InpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "StableDiffusion3PAGImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusion3PAGPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusion3Pipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionAdapterPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionAttendAndExcitePipeline": CallFacts("pnsghwi", "images", ("token_indices",)),
    "StableDiffusionControlNetImg2ImgPipeline": CallFacts(
        "pnsghwi", "images", ("image", "control_image")
    ),
    "StableDiffusionControlNetInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "control_image")
    ),
    "StableDiffusionControlNetPAGInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "control_image")
    ),
    "StableDiffusionControlNetPAGPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionControlNetPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionControlNetXSPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionDepth2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionDiffEditPipeline": CallFacts(
        "pnsgi", "images", ("mask_image", "image_latents")
    ),
    "StableDiffusionGLIGENPipeline": CallFacts(
        "pnsghwi", "images", ("gligen_phrases", "gligen_boxes")
    ),
    "StableDiffusionGLIGENTextImagePipeline": CallFacts(
        "pnsghwi", "images", ("gligen_phrases", "gligen_boxes")
    ),
    "StableDiffusionImageVariationPipeline": CallFacts("sghwi", "images", ("image",)),
    "StableDiffusionImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "StableDiffusionInpaintPipelineLegacy": CallFacts("pnsgi", "images", ("image", "mask_image")),
    "StableDiffusionInstructPix2PixPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionLDM3DPipeline": CallFacts("pnsghwi", "rgb"),
    "StableDiffusionLatentUpscalePipeline": CallFacts("pnsg", "images", ("image",)),
    "StableDiffusionModelEditingPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionOnnxPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionPAGImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionPAGInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "StableDiffusionPAGPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionPanoramaPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionParadigmsPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionPipelineSafe": CallFacts("pnsghwi", "images"),
    "StableDiffusionPix2PixZeroPipeline": CallFacts(
        "pnsghwi", "images", ("source_embeds", "target_embeds")
    ),
    "StableDiffusionSAGPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionUpscalePipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionXLAdapterPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionXLControlNetImg2ImgPipeline": CallFacts(
        "pnsghwi", "images", ("image", "control_image")
    ),
    "StableDiffusionXLControlNetInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "control_image")
    ),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": CallFacts(
        "pnsghwi", "images", ("image", "control_image")
    ),
    "StableDiffusionXLControlNetPAGPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionXLControlNetPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": CallFacts(
        "pnsghwi", "images", ("image", "control_image", "control_mode")
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "control_image", "control_mode")
    ),
    "StableDiffusionXLControlNetUnionPipeline": CallFacts(
        "pnsghwi", "images", ("control_image", "control_mode")
    ),
    "StableDiffusionXLControlNetXSPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionXLImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionXLInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "StableDiffusionXLInstructPix2PixPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableDiffusionXLPAGImg2ImgPipeline": CallFacts("pnsgi", "images", ("image",)),
    "StableDiffusionXLPAGInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "StableDiffusionXLPAGPipeline": CallFacts("pnsghwi", "images"),
    "StableDiffusionXLPipeline": CallFacts("pnsghwi", "images"),
    "StableUnCLIPImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "StableUnCLIPPipeline": CallFacts("pnsghwi", "images"),
    "StableVideoDiffusionPipeline": CallFacts("shw", "frames", ("image",)),
    "TextToVideoSDPipeline": CallFacts("pnsghw", "frames"),
    "TextToVideoZeroPipeline": CallFacts("pnsghw", "images"),
    "TextToVideoZeroSDXLPipeline": CallFacts("pnsghw", "images"),
    "UnCLIPImageVariationPipeline": CallFacts("i", "images", ("image",)),
    "UnCLIPPipeline": CallFacts("pi", "images"),
    "UniDiffuserPipeline": CallFacts("pnsghwi", "images"),
    "VQDiffusionPipeline": CallFacts("psgi", "images"),
    "VersatileDiffusionDualGuidedPipeline": CallFacts("psghwi", "images", ("image",)),
    "VersatileDiffusionImageVariationPipeline": CallFacts("nsghwi", "images", ("image",)),
    "VersatileDiffusionPipeline": CallFacts("", ""),
    "VersatileDiffusionTextToImagePipeline": CallFacts("pnsghwi", "images"),
    "VideoToVideoSDPipeline": CallFacts("pnsg", "frames", ("video",)),
    "VisualClozeGenerationPipeline": CallFacts("sgi", "images", ("image",)),
    "VisualClozePipeline": CallFacts("sgi", "images", ("image",)),
    "WanAnimatePipeline": CallFacts("pnsghw", "frames", ("image", "pose_video", "face_video")),
    "WanImageToVideoPipeline": CallFacts("pnsghw", "frames", ("image",)),
    "WanPipeline": CallFacts("pnsghw", "frames"),
    "WanVACEPipeline": CallFacts("pnsghw", "frames"),
    "WanVideoToVideoPipeline": CallFacts("pnsghw", "frames", ("video",)),
    "WuerstchenCombinedPipeline": CallFacts("pnshwi", "images"),
    "WuerstchenDecoderPipeline": CallFacts("pnsgi", "images", ("image_embeddings",)),
    "WuerstchenPriorPipeline": CallFacts("pnsghwi", "image_embeddings"),
    "ZImageControlNetInpaintPipeline": CallFacts(
        "pnsghwi", "images", ("image", "mask_image", "control_image")
    ),
    "ZImageControlNetPipeline": CallFacts("pnsghwi", "images", ("control_image",)),
    "ZImageImg2ImgPipeline": CallFacts("pnsghwi", "images", ("image",)),
    "ZImageInpaintPipeline": CallFacts("pnsghwi", "images", ("image", "mask_image")),
    "ZImageOmniPipeline": CallFacts("pnsghwi", "images"),
    "ZImagePipeline": CallFacts("pnsghwi", "images"),
}
# fmt: on

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
