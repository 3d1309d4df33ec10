"""`lora`: an adapter that is fused into the weights before anything else changes them.

A fused adapter leaves nothing behind: weights as if they had been trained so, and no layer of peft that a later pass
could quantize or lose. diffusers only warns of an adapter that matches nothing, so it is looked for in the headers of
the model's files where they are at hand, and counted after loading.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.config import LITERAL, PLACE, RunConfig
from fastdiff.errors import ModelError, Problem, RunError, first_line, listed, nearest
from fastdiff.models.hub import (
    Hub,
    downloads_are_forbidden,
    is_repository,
    refused_by_hub,
    snapshot_of,
)
from fastdiff.models.reading import read_component_shapes, read_shapes
from fastdiff.models.sources import Folder, ShapesStudent, model_of
from fastdiff.passes import base
from fastdiff.passes.effects import Effect
from fastdiff.script import Script, call, literal

_LCM = "https://huggingface.co/docs/diffusers/using-diffusers/inference_with_lcm_lora"
_PEFT = "https://huggingface.co/docs/diffusers/tutorials/using_peft_for_inference"

_ALL_BUT = 0.9
"""The part of an adapter below which is said how much of it reached the weights."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class NoLora(base.Option):
    """No adapter."""

    slot = "lora"


# What an adapter's file says -------------------------------------------------------------------------


@dataclass
class AdapterLayer:
    """What a file holds for one layer: `down` (rank, in) and `up` (out, rank), further sides for convolutions.

    part: the component as the file calls it; path: within it, dots and underscores not told apart, because one of the
        two spellings writes underscores for both. part is None where only diffusers knows how to translate the name.
    """

    name: str
    part: str | None = None
    path: str = ""
    sides: dict[str, int] = field(default_factory=dict)

    def fits(self, weight: tuple[int, ...]) -> bool:
        """Whether it can be added to a weight (out, in, ...)."""
        return (
            len(weight) > 1
            and self.sides.get("out", weight[0]) == weight[0]
            and self.sides.get("in", weight[1]) == weight[1]
        )


_MATRIX = re.compile(
    r"(?P<layer>.+)\.lora(_linear_layer)?[._](?P<which>A|B|down|up)(\.default)?\.weight"
)
_BESIDE_IT = re.compile(
    r"(?P<layer>.+)\.(alpha|network_alpha|lora(_linear_layer)?[._](B|up)(\.default)?\.bias)"
)
"""A layer's other tensors: its scale, and the bias of what it adds."""
_KOHYA = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
_DIFFUSERS_PATHS = re.compile(
    r"(down_blocks|up_blocks|mid_block|conv_|time_|add_|(text_model_)?encoder_layers)"
)


def adapter_layers(shapes: Shapes) -> dict[str, AdapterLayer]:
    """The layers that an adapter changes, by the name that its file gives them."""
    layers: dict[str, AdapterLayer] = {}
    for key, shape in shapes.items():
        matrix = _MATRIX.fullmatch(key)
        if matrix is None or len(shape) < 2:
            continue
        name = matrix["layer"]
        layer = layers.setdefault(name, AdapterLayer(name, *_place(name)))
        if matrix["which"] in ("A", "down"):
            layer.sides |= {"rank": shape[0], "in": shape[1]}
        else:
            layer.sides["out"] = shape[0]
    return layers


def _place(name: str) -> tuple[str | None, str]:
    """Component and path of a layer's name; (None, "") where it isn't diffusers' own."""
    kohya = re.fullmatch(r"lora_(unet|te1?|te2)_(.+)", name)
    if kohya:
        known = _DIFFUSERS_PATHS.match(kohya[2])
        return (_KOHYA[kohya[1]], _flat(kohya[2])) if known else (None, "")
    part, _, path = name.partition(".")
    known_part = re.fullmatch(r"unet|transformer|text_encoder(_\d)?", part)
    return (part, _flat(path)) if known_part and ".processor." not in path else (None, "")


def _flat(path: str) -> str:
    """A path without the difference between dots and underscores, and without CLIP's outermost module."""
    return path.replace(".", "_").removeprefix("text_model_")


def _misfit(layers: Mapping[str, AdapterLayer], model: Mapping[str, Shapes]) -> str | None:
    """Why an adapter can't belong to a model whose weights have these shapes; None if it may."""
    known = [layer for layer in layers.values() if layer.part is not None]
    found = []
    for layer in known:
        weight = model.get(layer.part or "", {}).get(layer.path)
        if weight is None:
            continue
        if not layer.fits(weight):
            inside, outside = layer.sides.get("in", "?"), layer.sides.get("out", "?")
            return (
                f"was made for another model: its {layer.name} is {outside} x {inside}, and this model's "
                f"{weight[0]} x {weight[1]}"
            )
        found.append(layer)
    if layers and not found and len(known) == len(layers):
        return f"matches no layer of this model: {_what(layers)}; looked for them in {', '.join(model)}"
    return None


def left_out(shapes: Shapes, model: Mapping[str, Collection[str]]) -> list[str]:
    """Tensors of an adapter's file that fit no layer of a model, and so change nothing, sorted.

    model: paths of its layers by component. A layer whose name only diffusers can translate is taken to fit.
    """
    layers = adapter_layers(shapes)
    fitting = {
        name
        for name, layer in layers.items()
        if layer.part is None or layer.path in model.get(layer.part, ())
    }

    def fits(key: str) -> bool:
        found = _MATRIX.fullmatch(key) or _BESIDE_IT.fullmatch(key)
        return found is not None and found["layer"].removesuffix(".lora") in fitting

    return sorted(key for key in shapes if not fits(key))


def _told_left_out(left: Sequence[str], count: int) -> str:
    """In words: how many of its tensors are left out, and which."""
    such = listed(left[:2])
    return f"{len(left)} of its {count} tensors fit no layer of this model and are left out, such as {such}"


def _what(layers: Mapping[str, AdapterLayer]) -> str:
    return f"the adapter has {len(layers)} layer{'s' * (len(layers) != 1)} such as {min(layers)}"


def _model_shapes(run: RunConfig, setting: base.Setting) -> dict[str, Shapes]:
    """Shapes of the model's weights by component and path, where its own files are at hand."""
    model = model_of(run)
    folder: Path | None = None
    variant: str | None = None
    if isinstance(model, Folder) and not isinstance(model, ShapesStudent):
        folder, variant = model.folder, model.wanted_variant
    elif isinstance(model, Hub) and model.remote and model.complete():
        folder, variant = model.snapshot(), model.variant
    found: dict[str, Shapes] = {}
    if folder is None or setting.facts is None:
        return found
    for name in _changeable(setting):
        part = setting.facts.components[name]
        shapes = read_component_shapes(folder / name, name, part.class_name, variant)
        found[name] = {_flat(key.removesuffix(".weight")): shape for key, shape in shapes.items()}
    return found


def _changeable(setting: base.Setting) -> tuple[str, ...]:
    """Denoiser and CLIP text encoders, where adapters can be; no other text encoder takes any."""
    parts = setting.facts.components.values() if setting.facts else ()
    texts = [part.name for part in parts if part.class_name.startswith("CLIPText")]
    return (*((setting.denoiser.name,) if setting.denoiser else ()), *texts)


# Where an adapter's file is --------------------------------------------------------------------------


def _adapter_name(names: Sequence[str]) -> str | None:
    """The adapter among a repository's files, chosen as diffusers does; None if there is none."""
    other = ("scheduler", "optimizer", "checkpoint")
    files = [n for n in names if n.endswith(".safetensors") and not any(o in n for o in other)]
    usual = [name for name in files if name.endswith("pytorch_lora_weights.safetensors")]
    return next(iter(usual or files), None)


def _cached(repository: str) -> Path | None:
    """The adapter's file in the hub's cache; None if it isn't there."""
    if not is_repository(repository):
        return None
    snapshot = snapshot_of(repository)
    files = sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob("*.safetensors"))
    name = _adapter_name(files)
    return snapshot / name if name else None


def _downloaded(repository: str) -> Path:
    """The adapter's file, from the hub. Raises ModelError."""
    from huggingface_hub import HfApi, hf_hub_download

    way_out = "lora.path=FILE.safetensors, or lora=none"
    try:
        siblings = HfApi().model_info(repository).siblings or ()
        name = _adapter_name([file.rfilename for file in siblings])
        if name is None:
            raise ModelError(
                f"{repository} holds no adapter as .safetensors\n  instead: {way_out}; "
                "fastdiff loads no pickles"
            )
        return Path(hf_hub_download(repository, name))
    except ModelError:
        raise
    except Exception as error:
        refused = refused_by_hub(repository, error)
        if refused is None:
            raise
        raise refused.with_way_out(way_out) from error


# The options -----------------------------------------------------------------------------------------


@dataclass
class Adapter(base.Option, base.Pass):
    """Base of the options.

    path: a .safetensors file; relative paths start where the command is typed.
    scale: how much of the adapter is added; 1.0 is all of it.
    """

    slot = "lora"
    stage = base.Stage.ADAPT
    fidelity = base.Fidelity.MODEL
    source = _PEFT
    requires = (base.Requirement(module="peft", pip="peft", instead="lora=none", source=_PEFT),)

    path: str | None = field(default=None, metadata=PLACE)
    scale: float = 1.0

    @property
    def does(self) -> str:  # type: ignore[override]
        name = Path(self.path).name if self.path else "an adapter"
        return f"add {name} to the weights, scaled by {self.scale:g}"

    def components(self, setting: base.Setting) -> tuple[str, ...]:
        return _changeable(setting)

    def check(self, setting: base.Setting) -> base.Findings:
        if not math.isfinite(self.scale) or self.scale == 0:
            nothing = self.scale == 0
            reason = "the adapter would do nothing" if nothing else "is not a finite number"
            yield self.wrong("scale", reason, "lora.scale=1.0, or lora=none")
        if self.path:
            yield from self._check_file(Path(os.path.expanduser(self.path)), setting)

    def _check_file(self, file: Path, setting: base.Setting) -> base.Findings:
        """Whatever the headers tell: of the adapter's file, and of the model's where they are at hand."""
        choice = f"lora.path={file}" if self.path else setting.chosen("lora")
        if file.suffix != ".safetensors":
            reason = "is no .safetensors file, and other formats can run code when they are opened"
            yield Problem(choice, reason, "the same adapter as lora.path=FILE.safetensors")
            return
        if not file.is_file():
            there = file.parent.glob("*.safetensors") if file.parent.is_dir() else ()
            near = nearest(file.name, sorted(other.name for other in there))
            instead = f"lora.path={file.parent / near if near else 'FILE.safetensors'}"
            yield Problem(choice, "there is no such file", instead)
            return
        try:
            shapes = read_shapes(file)
        except ModelError as error:
            yield Problem(choice, f"can't be read: {error.why}", error.instead)
            return
        layers = adapter_layers(shapes)
        if not any("lora" in key for key in shapes):
            yield Problem(
                choice,
                f"holds no LoRA: none of its {len(shapes)} tensors has `lora` in its name",
                "lora.path=FILE.safetensors of an adapter"
                + (f", or model=single_file model.path={file} if it is a model" * bool(self.path)),
            )
        elif any("dora_scale" in key for key in shapes):
            yield Problem(
                choice,
                "is a DoRA whose magnitudes (dora_scale) diffusers leaves out: another adapter than the "
                "one that was trained",
                "a plain LoRA, or lora=none",
            )
        else:
            model = _model_shapes(setting.run, setting)
            misfit = model and _misfit(layers, model)
            if misfit:
                instead = "an adapter that was made for this model, or lora=none"
                yield Problem(choice, misfit, instead)
            elif model and (left := left_out(shapes, model)):
                yield base.Notice(choice, _told_left_out(left, len(shapes)))

    def file(self, run: RunConfig) -> Path:
        """The adapter's file on this machine. Raises ModelError if it can't be had."""
        assert self.path  # check() saw to it
        return Path(os.path.expanduser(self.path))

    def prepare(self, loading: base.Loading) -> None:
        """Have the file here before anything else is loaded. Raises ModelError."""
        self.file(loading.setting.run)

    def apply(self, pipeline: Any, context: base.Context) -> Effect:
        from peft.tuners.tuners_utils import BaseTunerLayer

        file = self.file(context.setting.run)
        shapes = read_shapes(file)
        layers = adapter_layers(shapes)
        kind = type(pipeline).__name__
        if not hasattr(pipeline, "load_lora_weights"):
            raise ModelError(
                f"{kind} takes no adapters: diffusers has no load_lora_weights() for it\n"
                "  instead: lora=none, or a model whose pipeline has it (SDXL, SD 1.5, Flux)"
            )
        names = list(context.parts(pipeline, tuple(pipeline._lora_loadable_modules)))
        paths = {
            name: {_flat(path) for path, _ in getattr(pipeline, name).named_modules()}
            for name in names
        }
        left = left_out(shapes, paths)

        def tuned() -> dict[str, list[Any]]:
            """Layers of peft, by component."""
            parts = {name: getattr(pipeline, name).modules() for name in names}
            return {n: [m for m in p if isinstance(m, BaseTunerLayer)] for n, p in parts.items()}

        try:
            pipeline.load_lora_weights(str(file), use_safetensors=True)
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise _refused(file, kind, names, layers, first_line(error)) from error
        adapted = tuned()
        if not any(adapted.values()):
            raise _refused(file, kind, names, layers, "no layer took any of it")
        fused = {name: Fused().watch(found) for name, found in adapted.items() if found}
        # All of them by name: left to itself, Flux' pipeline would leave its text encoder's adapter out.
        pipeline.fuse_lora(components=names, lora_scale=self.scale)
        pipeline.unload_lora_weights()
        if still := sum(map(len, tuned().values())):
            raise RunError(
                f"{self.key}: {still} layers of peft are still there after unloading\n"
                "  instead: lora=none, and a report of this model"
            )
        counts = {name: sum(part.moved) for name, part in fused.items()}
        changed, held = sum(counts.values()), len(layers)
        wanted = sum(part.wanted for part in fused.values())
        arrived = sum(part.arrived for part in fused.values()) / wanted if wanted else None
        summary = f"scale {self.scale:g}" + (f", of {held} in the file" if changed < held else "")
        if left:
            verb = "s fit" if left[1:] else " fits"
            summary += f"; {len(left)} tensor{verb} no layer, such as {left[0]}"
        if arrived is not None and arrived < _ALL_BUT:
            summary += f", {arrived:.0%} of it: what is small against a weight rounds away"
            summary += " (precision=fp32 keeps it)"
        details = {
            "components": counts,
            "file": file.name,
            "scale": self.scale,
            "ranks": sorted(
                {side["rank"] for layer in layers.values() if "rank" in (side := layer.sides)}
            ),
            "layers_in_file": held,
            "tensors_left_out": len(left),
            "left_out_such_as": left[:3],
            "arrived": arrived,
            "summary": summary,
        }
        return Effect(self.key, changed, "layers", details=details)

    def on_hub(self, run: RunConfig) -> str | None:
        """The adapter's repository on the hub; None where it is a file."""
        return None

    def script(self, script: Script, setting: base.Setting) -> None:
        repository = self.on_hub(setting.run)
        asked = "the adapter, a .safetensors file"
        source = literal(repository) if repository else script.ask("--lora", asked)
        components = f"components={literal(list(self.components(setting)))}"
        scale = [f"lora_scale={literal(self.scale)}"] if self.scale != 1 else []
        script.then(
            call("pipe.load_lora_weights", source, "use_safetensors=True"),
            call("pipe.fuse_lora", components, *scale),
            "pipe.unload_lora_weights()",
        )


def _refused(
    file: Path, pipeline: str, names: Iterable[str], layers: Mapping[str, AdapterLayer], why: str
) -> ModelError:
    has = (
        _what(layers) if layers else "the adapter's names are of a kind that diffusers didn't read"
    )
    return ModelError(
        f"{file.name} doesn't fit this {pipeline}: {has}; looked for them in {', '.join(names)} ({why})\n"
        "  instead: an adapter that was made for this model, or lora=none"
    )


@dataclass
class Fused:
    """What fusing really did to the layers of one component.

    moved: whether it changed each layer's weight.
    arrived, wanted: what was added, along what should have been, and the latter's square. Equal in fp32; a change that
        is small against a weight rounds away in bf16.
    """

    moved: list[bool] = field(default_factory=list)
    arrived: float = 0.0
    wanted: float = 0.0

    def watch(self, layers: Iterable[Any]) -> Fused:
        """Filled in while they are fused, one copy at a time."""
        for layer in layers:
            layer.merge = self._watched(layer.merge, layer)
        return self

    def _watched(self, merge: Callable[..., Any], layer: Any) -> Callable[..., Any]:
        import torch

        @functools.wraps(merge)  # diffusers looks at its arguments
        def merging(*args: Any, **kwargs: Any) -> None:
            base = layer.get_base_layer()
            before = base.weight.detach().clone()
            names = [name for name in layer.active_adapters if name in layer.lora_A]
            changes = [layer.get_delta_weight(name).detach().float() for name in names]
            merge(*args, **kwargs)
            self.moved.append(not torch.equal(before, base.weight))
            if changes:  # an embedding's are kept elsewhere
                wanted = torch.stack(changes).sum(0)
                self.arrived += float(
                    ((base.weight.detach().float() - before.float()) * wanted).sum()
                )
                self.wanted += float((wanted * wanted).sum())

        return merging


@dataclass
class File(Adapter):
    """Any adapter in a file."""

    key = "lora.file"

    def check(self, setting: base.Setting) -> base.Findings:
        if not self.path:
            yield Problem("lora=file", "nobody said which file", "lora.path=FILE.safetensors")
        yield from super().check(setting)


@dataclass
class Lcm(Adapter):
    """The adapter that makes a model draw in four to eight steps, with scheduler=lcm.

    id: org/name on the hub; null takes the model's own (model.lcm_lora).
    path: a file instead.
    """

    key = "lora.lcm"
    source = _LCM

    id: str | None = field(default=None, metadata=LITERAL)

    def explain(self, setting: base.Setting) -> str:
        name = Path(self.path).name if self.path else self._wanted(setting.run)
        return f"add {name} to the weights, scaled by {self.scale:g}"

    def _wanted(self, run: RunConfig) -> str | None:
        """Place on the hub, or a file, as the run or the model names it; None if neither does."""
        own: str | None = getattr(model_of(run), "lcm_lora", None)
        return self.id or own

    def on_hub(self, run: RunConfig) -> str | None:
        wanted = None if self.path else self._wanted(run)
        return None if wanted is None or wanted.endswith(".safetensors") else wanted

    def _at_hand(self, run: RunConfig) -> Path | None:
        """The adapter's file, as far as it is on this machine or named by its path."""
        if self.path:
            return Path(os.path.expanduser(self.path))
        wanted = self._wanted(run)
        if wanted is None:
            return None
        if wanted.endswith(".safetensors"):
            return Path(os.path.expanduser(wanted))
        return _cached(wanted)

    def check(self, setting: base.Setting) -> base.Findings:
        yield from super().check(setting)
        run = setting.run
        if self.path and self.id:
            yield self.wrong("path", f"and lora.id={self.id} name two", "one of them")
        if not self.path:
            yield from self._check_repository(setting)
        if run.choices["scheduler"] != "lcm":
            chosen = setting.chosen("scheduler")
            text = (
                f"is made for LCM's own solver; {chosen} draws poorly in few steps: scheduler=lcm"
            )
            yield base.Notice(self.choice, text)
        steps = run.generation.steps
        if steps is None or steps > 8:
            yield base.Notice(
                "lora=lcm",
                "is made for 4 to 8 steps without much guidance: generation.steps=4 "
                "generation.guidance_scale=1.0",
            )

    def _check_repository(self, setting: base.Setting) -> base.Findings:
        """Whether the adapter that the run or its model names can be had."""
        wanted, at_hand = self._wanted(setting.run), self._at_hand(setting.run)
        if not wanted:
            reason = f"no LCM adapter of {model_of(setting.run).title} is known"
            instead = (
                "lora.id=org/name or lora.path=FILE.safetensors, or a model whose YAML names one"
            )
            yield Problem(self.choice, reason, instead)
        elif at_hand is not None:
            yield from self._check_file(at_hand, setting)
        elif not is_repository(wanted):
            reason = "is no repository on the hub: its name has the form org/name"
            instead = "lora.id=org/name, or lora.path=FILE.safetensors"
            yield Problem(f"lora.id={wanted}", reason, instead)
        elif downloads_are_forbidden():
            reason = f"{wanted} is not on this machine, and HF_HUB_OFFLINE forbids to download it"
            instead = "unset HF_HUB_OFFLINE, or lora.path=FILE.safetensors"
            yield Problem(self.choice, reason, instead)
        else:
            text = f"{wanted} is not on this machine yet; the run will download it"
            yield base.Notice(self.choice, text)

    def file(self, run: RunConfig) -> Path:
        wanted = self._wanted(run)
        assert self.path or wanted  # check() saw to it
        return self._at_hand(run) or _downloaded(wanted or "")


OPTIONS: dict[str, type[base.Option]] = {"none": NoLora, "lcm": Lcm, "file": File}
