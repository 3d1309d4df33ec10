"""What can be known of a pipeline before any of its weights is loaded.

library.py says what the classes of diffusers can do, diffusers.json what was found out by trying. Nothing here imports
torch, diffusers or transformers: a plan is answered in milliseconds. reading.py fills in what a model's own files say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastdiff.models.library import MODEL_CLASSES, PIPELINE_CLASSES, ModelClass
from fastdiff.models.tables import Table

KEEPS_ATTENTION: Mapping[str, bool] = Table("diffusers", "keeps_attention", bool)
"""Denoisers on which diffusers' pyramid attention broadcast runs and changes what they compute, tried on tiny ones of each, and
whether they have cross-attention that it finds. Other classes have no attention that it knows (Sana's, Z-Image's), or
nothing moved (OvisImage's)."""


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
    def facts(self) -> ModelClass | None:
        """What its class can do; None where it is none of diffusers' model classes."""
        return MODEL_CLASSES.get(self.class_name)

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
    def denoisers(self) -> tuple[Component, ...]:
        """The parts that predict noise or velocity, one or another of them in each step; () when they can't be told."""
        known = PIPELINE_CLASSES.get(self.pipeline)
        names = (known.denoisers if known else ()) or ("unet", "transformer")
        here = tuple(self.components[name] for name in names if name in self.components)
        # Who draws from a prior's embeddings is the denoiser, and not the prior.
        return tuple(sorted(here, key=lambda part: part.name == "prior"))

    @property
    def denoiser(self) -> Component | None:
        """The first of them."""
        return next(iter(self.denoisers), None)

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
