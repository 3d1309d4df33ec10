"""`vae`: what turns latents into pictures.

A replacement is made while the pipeline is built, so that the model's own VAE is never loaded. What can be known of it
(a folder's files, the hub's cache, the table of architectures) stands in the facts that all other options plan with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.config import PLACE, RunConfig
from fastdiff.errors import ModelError, Problem
from fastdiff.models.architectures import TINY_AUTOENCODERS, Blueprint
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.hub import (
    downloads_are_forbidden,
    is_repository,
    refused_by_hub,
    snapshot_of,
)
from fastdiff.models.reading import read_component
from fastdiff.models.sources import Model, model_of
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script, literal

if TYPE_CHECKING:
    import torch

_TAESD = "https://github.com/madebyollin/taesd"
_FITTING = "a VAE made for this model's latents, or vae=default"
_FP16_FIX = "https://huggingface.co/madebyollin/sdxl-vae-fp16-fix"


@dataclass
class OwnVae(base.Option):
    """The model's own."""

    slot = "vae"


@dataclass
class Replacement(base.Option, base.Pass):
    """Base of the options that put another VAE in the place of the model's own.

    id: org/name on the hub; null takes the one that the model names.
    path: a folder that the VAE's own `save_pretrained` wrote; relative paths start where the command is typed.
    """

    slot = "vae"
    stage = base.Stage.REPLACE
    fidelity = base.Fidelity.MODEL
    class_name: ClassVar[str]
    title: ClassVar[str]
    replaces: ClassVar[tuple[str, ...]]  # classes that it can stand in for

    id: str | None = None
    path: str | None = field(default=None, metadata=PLACE)

    def named_by(self, model: Model) -> Path | str | None:
        """What the model itself names for this option: a folder, or org/name on the hub."""
        raise TypeError(f"{type(self).__name__} has no named_by()")

    def origin(self, model: Model) -> Path | str | None:
        """Where it comes from: a folder, or org/name on the hub; None if nobody said."""
        if self.path is not None:
            return Path(os.path.expanduser(self.path)).absolute()
        return self.id if self.id is not None else self.named_by(model)

    def _filled(self, model: Model) -> bool:
        """Whether it gets random weights, as the model does."""
        return isinstance(self.origin(model), str) and model.random_seed is not None

    def known(self, origin: str, model: Model, own: Component) -> Component | None:
        """The VAE of this name on the hub, if its architecture is known without its files."""
        raise TypeError(f"{type(self).__name__} has no known()")

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return (setting.vae_name,)

    def explain(self, setting: base.Setting) -> str:
        model = model_of(setting.run)
        weights = " with random weights" if self._filled(model) else ""
        return f"{self.does}: {self._source_name(model)}{weights}"

    # What planning knows -----------------------------------------------------------------------------

    def changed_facts(self, facts: ModelFacts, run: RunConfig) -> ModelFacts:
        own, model = facts.vae, model_of(run)
        if own is None or any(self._problems(model, facts)):
            return facts  # check() says why
        part = self._component(model, own)
        return replace(facts, components={**facts.components, own.name: part})

    def check(self, setting: base.Setting) -> base.Findings:
        model = model_of(setting.run)
        problems = list(self._problems(model, setting.facts))
        yield from problems
        if not problems and self._missing(model):
            text = f"{self.origin(model)} is not on this machine yet; the run will download it"
            yield base.Notice(self.choice, text)

    def _missing(self, model: Model) -> bool:
        """Whether it has to be downloaded."""
        origin = self.origin(model)
        return isinstance(origin, str) and not self._filled(model) and not _held(origin)

    def _problems(self, model: Model, facts: ModelFacts | None) -> Iterator[Problem]:
        """Why it can't stand in for this model's VAE. Raises ModelError if its folder holds no such VAE."""
        own, origin = facts.vae if facts else None, self.origin(model)
        if self.path is not None and self.id is not None:
            yield self.wrong("path", f"and vae.id={self.id} name two", "one of them")
        elif origin is None:
            instead = "vae.id=org/name or vae.path=DIR, or vae=default"
            yield Problem(self.choice, f"no {self.title} of {model.title} is known", instead)
        elif isinstance(origin, str) and not is_repository(origin):
            key = self.choice if self.id is None else f"vae.id={origin or '(empty)'}"
            what = "is" if self.id is not None else f"the model names {origin}, which is"
            reason = f"{what} no repository on the hub: its name has the form org/name"
            yield Problem(key, reason, "vae.id=org/name, or vae.path=DIR for a folder")
        elif facts and own is None:
            yield Problem(self.choice, f"{facts.pipeline} has no VAE", "vae=default")
        elif own and own.class_name not in self.replaces:
            reason = f"{model.title} has an {own.class_name}, which no {self.class_name} can stand in for"
            yield Problem(self.choice, reason, "vae=default")
        elif self._filled(model) and own and not self.known(str(origin), model, own):
            reason = f"the architecture of {origin} is not in fastdiff's table, so it can't get random weights"
            instead = "vae.path=DIR, or model.weights=hub, or vae=default"
            yield Problem(self.choice, reason, instead)
        elif self._missing(model) and downloads_are_forbidden():
            reason = f"{origin} is not on this machine, and HF_HUB_OFFLINE forbids to download it"
            instead = "unset HF_HUB_OFFLINE, or vae.path=DIR, or vae=default"
            yield Problem(self.choice, reason, instead)
        else:
            part = self._component(model, own)
            for reason in self.misfits(part, own) if own else ():
                yield Problem(self.choice, f"{self._source_name(model)} {reason}", _FITTING)

    def _source_name(self, model: Model) -> str:
        origin = self.origin(model)
        return origin.name if isinstance(origin, Path) else str(origin)

    def _component(self, model: Model, own: Component | None) -> Component:
        """What is known of it before it is loaded; an empty configuration where nothing is. Raises ModelError."""
        origin = self.origin(model)
        name = own.name if own else "vae"
        folder = origin if isinstance(origin, Path) else None
        if isinstance(origin, str) and model.random_seed is None:
            folder = _held(origin)
        if folder is not None:
            part = read_component(folder, name, key="vae.path", class_name=self.class_name)
            self._refuse_class(part.class_name, str(origin))
            return part
        known = self.known(str(origin), model, own) if own else None
        return known or Component(name, "diffusers", self.class_name, None, None)

    def _refuse_class(self, class_name: object, origin: str) -> None:
        if class_name != self.class_name:
            raise ModelError(
                f"{self.choice} needs an {self.class_name}, and {origin} holds an {class_name}\n"
                "  instead: vae.path=DIR or vae.id=org/name of one, or vae=default"
            )

    def misfits(self, part: Component, own: Component) -> Iterator[str]:
        """Why a VAE can't read the latents of the model whose own one is given, as far as both are known."""
        if not (part.config and own.config):
            return
        (channels, times), (own_channels, own_times) = _latents(part), _latents(own)
        if channels != own_channels:
            yield f"decodes latents of {channels} channels, and this model's have {own_channels}"
        elif times != own_times:
            yield (
                f"makes pictures {times} times as large as the latents, and this model's are "
                f"{own_times} times as large"
            )

    # What is done ------------------------------------------------------------------------------------

    def prepare(self, loading: base.Loading) -> None:
        setting = loading.setting
        (name,) = self.components(setting)

        loading.parts[name] = lambda dtype: self._load(setting, dtype)

    def _load(self, setting: base.Setting, dtype: torch.dtype | None) -> Any:
        """The VAE on the CPU, in eval mode. Raises ModelError."""
        import diffusers

        model = model_of(setting.run)
        origin = self.origin(model)
        (name,) = self.components(setting)
        if isinstance(origin, str) and model.random_seed is not None:
            from fastdiff.models.random_weights import build_component

            part = setting.vae
            assert part is not None  # or there were a Problem
            assert part.parameters is not None
            blueprint = Blueprint(part.library, part.class_name, part.parameters, part.config)
            return build_component(blueprint, model.random_seed, name, dtype)
        kind = getattr(diffusers, self.class_name)
        local = isinstance(origin, Path)
        try:
            # The configuration first: a VAE for other latents is refused before its weights are downloaded.
            config = kind.load_config(str(origin), local_files_only=local)
            self._refuse_class(config.get("_class_name"), str(origin))
            facts = model.facts()
            part = Component(name, "diffusers", self.class_name, None, None, config)
            for reason in self.misfits(part, facts.vae) if facts and facts.vae else ():
                raise ModelError(f"{self.choice}: {origin} {reason}\n  instead: {_FITTING}")
            return kind.from_pretrained(
                str(origin), dtype=dtype, use_safetensors=True, local_files_only=local
            )
        except ModelError:
            raise
        except Exception as error:
            refused = refused_by_hub(str(origin), error)
            if refused is None:
                raise
            raise refused.with_way_out("vae.path=DIR, or vae=default") from error

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        (name,) = self.components(context.setting)
        found = getattr(pipeline, name)
        changed = int(found is context.made.get(name))
        parameters = sum(weight.numel() for weight in found.parameters())
        class_name = type(found).__name__
        details = {
            "component": name,
            "class": class_name,
            "parameters": parameters,
            "from": self._source_name(model_of(context.setting.run)),
            "summary": f"{class_name} of {parameters:,} parameters",
        }
        return Effect(self.key, changed, "component", details=details)

    def script(self, script: Script, setting: base.Setting) -> None:
        origin = self.origin(model_of(setting.run))
        asked = f"a folder that {self.class_name}'s own save_pretrained() wrote"
        source = literal(origin) if isinstance(origin, str) else script.ask("--vae", asked)
        (name,) = self.components(setting)
        script.take(name, self.class_name, source)


def _held(repository: str) -> Path | None:
    """The folder of a VAE's repository in the hub's cache, if its configuration and weights are there."""
    folder = snapshot_of(repository)
    whole = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if whole else None


def _latents(part: Component) -> tuple[int, int]:
    """Channels of a VAE's latents, and how many times as large as they its pictures are, a side."""
    tiny = part.class_name == "AutoencoderTiny"
    key, default = (
        ("decoder_block_out_channels", (64,) * 4) if tiny else ("block_out_channels", (64,))
    )
    channels, blocks = part.config.get("latent_channels", 4), part.config.get(key, default)
    assert isinstance(channels, int)
    assert isinstance(blocks, (list, tuple))
    return channels, 2 ** (len(blocks) - 1)


@dataclass
class Tiny(Replacement):
    """A small distilled autoencoder: decodes in a fraction of the time and memory, with less detail."""

    key = "vae.tiny"
    does = "put a tiny autoencoder in the place of the model's VAE"
    source = _TAESD
    class_name: ClassVar[str] = "AutoencoderTiny"
    title: ClassVar[str] = "tiny autoencoder"
    replaces: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "AutoencoderTiny")

    def named_by(self, model: Model) -> Path | str | None:
        return model.own_tiny_vae()

    def known(self, origin: str, model: Model, own: Component) -> Component | None:
        blueprint = TINY_AUTOENCODERS.get(origin)
        return blueprint.component(own.name) if blueprint else None


@dataclass
class Fp16Fix(Replacement):
    """The model's VAE with its weights scaled so that it decodes in fp16, which the published one can't."""

    key = "vae.fp16_fix"
    does = "put a VAE that decodes in fp16 in the place of the model's own"
    source = _FP16_FIX
    class_name: ClassVar[str] = "AutoencoderKL"
    title: ClassVar[str] = "VAE repaired for fp16"
    replaces: ClassVar[tuple[str, ...]] = ("AutoencoderKL",)

    def named_by(self, model: Model) -> Path | str | None:
        return model.own_fp16_vae()

    def known(self, origin: str, model: Model, own: Component) -> Component | None:
        """The one that the model names is the model's own architecture and doesn't ask for fp32."""
        if origin != self.named_by(model):
            return None
        return replace(own, weight_bytes=None, config={**own.config, "force_upcast": False})

    def misfits(self, part: Component, own: Component) -> Iterator[str]:
        yield from super().misfits(part, own)
        if part.config and part.config.get("force_upcast", True):
            yield "asks for fp32 itself (force_upcast), so it would decode as the model's own does"
        scale, own_scale = (c.config.get("scaling_factor", 0.18215) for c in (part, own))
        if part.config and own.config and scale != own_scale:
            yield f"is made for latents scaled by {scale}, and this model's are scaled by {own_scale}"

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        if setting.run.choices["precision"] != "fp16":
            yield base.Notice(
                self.choice,
                f"is for precision=fp16, where the model's own VAE decodes in fp32; "
                f"{setting.chosen('precision')} gains nothing",
            )


OPTIONS: dict[str, type[base.Option]] = {"default": OwnVae, "tiny": Tiny, "fp16_fix": Fp16Fix}
