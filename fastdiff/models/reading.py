"""ModelFacts from a folder or a single file, by JSON and safetensors headers alone: no weight is loaded.

What can't be a safe pipeline (pickled weights, code beside them, a damaged header) is refused with a ModelError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastdiff.errors import ModelError, nearest
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.names import original_names
from fastdiff.models.whole import check_shards, check_weights, refuse_missing_weights

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = re.compile("Tokenizer|Processor|FeatureExtractor")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_COUNTER = "I64"  # position ids and counters: stored with the weights, no parameters


def read_folder(path: Path, variant: str | None = None) -> ModelFacts:
    """What the pipeline folder `path` holds; reads JSON and safetensors headers only.

    variant: which weights to count (`fp16` for `*.fp16.safetensors`); a component without that
        variant is counted by its plain files, as diffusers loads it. None: the plain files.
    Raises ModelError when it is no pipeline folder that fastdiff can load.
    """
    _check_folder(path)
    index = read_index(path)
    pipeline = index["_class_name"]
    assert isinstance(pipeline, str)  # read_index saw to it
    components: dict[str, Component] = {}
    variants: set[str] = set()
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2:
            continue
        library, class_name = entry
        if not isinstance(library, str) or not isinstance(class_name, str):
            continue  # [null, null]: an optional part that was left out
        folder = path / name
        _check_component(folder, name, library, class_name)
        if class_name.endswith("Scheduler"):
            config = read_json_object(folder / "scheduler_config.json")
            components[name] = Component(name, library, class_name, 0, 0, config)
        elif not _NO_WEIGHTS.search(class_name):
            files = _weight_files(folder, name, class_name)
            variants |= {known for known in files if known is not None}
            config_file = folder / "config.json"
            config = read_json_object(config_file) if config_file.exists() else {}
            chosen = _choose(files, variant, folder, name)
            tensors = _read_headers(chosen, folder, name, class_name, config)
            components[name] = _component(name, library, class_name, tensors.values(), config)
    if variant is not None and variant not in variants:
        known = sorted(variants)
        raise _refusal(
            f"no {variant} weights in {path}",
            f"its variants: {', '.join(known)}" if known else "it holds plain ones only",
            f"model.variant={nearest(variant, known) or known[0] if known else 'null'}",
        )
    return ModelFacts(pipeline, components, pipeline_config(index))


def pipeline_config(index: Mapping[str, object]) -> dict[str, object]:
    """What a model_index.json says beside the pipeline's class and parts: the pipeline's own configuration."""
    own = {key: value for key, value in index.items() if not key.startswith("_")}
    return {key: value for key, value in own.items() if not isinstance(value, list)}


def read_component(
    folder: Path, name: str, *, key: str | None = None, class_name: str | None = None
) -> Component:
    """What a folder that a model's own `save_pretrained` wrote holds: its class, its configuration, its size.

    name: what the pipeline calls it. key: the override that names such a folder, class_name: which class it must hold,
        both for the way out. Raises ModelError.
    """
    if not folder.is_dir():
        raise _missing(folder, "folder", lambda entry: (entry / "config.json").is_file(), key=key)
    if not (folder / "config.json").is_file():
        inside = folder / name
        raise _refusal(
            f"no single component: {folder}",
            "it has no config.json",
            f"{key}={inside}"
            if key and _holds(inside, class_name)
            else "name a folder that a model's own save_pretrained() wrote",
        )
    config = read_json_object(folder / "config.json")
    found = config.get("_class_name")
    if not isinstance(found, str):
        raise _refusal(
            f"no single component: {folder}",
            "its config.json names no class",
            "name a folder that a model's own save_pretrained() wrote",
        )
    chosen = _choose(_weight_files(folder, name, found), None, folder, name)
    tensors = _read_headers(chosen, folder, name, found, config)
    return _component(name, "diffusers", found, tensors.values(), config)


def _read_headers(
    files: Iterable[Path], folder: Path, name: str, class_name: str, config: Mapping[str, object]
) -> dict[str, _Tensor]:
    """The tensors of a component's files. Raises ModelError where some of its weights are in none of them."""
    headers = {file: _read_header(file) for file in files}
    check_shards(folder, name, headers)
    tensors = {key: tensor for header in headers.values() for key, tensor in header.items()}
    check_weights(folder, name, class_name, config, tensors)
    return tensors


def _holds(folder: Path, class_name: str | None) -> bool:
    """Whether a folder is a component's, and of this class."""
    try:
        return read_json_object(folder / "config.json").get("_class_name") == class_name
    except ModelError:
        return False


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file by name, from its header alone. Raises ModelError."""
    return {name: tensor.shape for name, tensor in _read_header(file).items()}


def read_component_shapes(
    folder: Path, name: str, class_name: str, variant: str | None
) -> dict[str, tuple[int, ...]]:
    """The same of every file of a component's folder, chosen as `read_folder` chooses them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _choose(_weight_files(folder, name, class_name), variant, folder, name):
        shapes |= read_shapes(file)
    return shapes


class _Part(NamedTuple):
    """Where one component lies in an original checkpoint: every key that begins with `prefix`."""

    name: str
    library: str
    class_name: str
    prefix: str


class _Kind(NamedTuple):
    title: str
    pipeline: str
    mark: str  # a key that begins so tells this kind from all others
    parts: tuple[_Part, ...]
    entrance: str  # the denoiser's first layer
    edits: Mapping[
        int, str
    ]  # pipelines by that layer's inputs, where it takes a picture beside the noise

    def pipeline_of(self, tensors: Mapping[str, _Tensor]) -> str:
        """The pipeline of a checkpoint of this kind."""
        first = tensors.get(self.entrance)
        inputs = first.shape[1] if first and len(first.shape) > 1 else 0
        return self.edits.get(inputs, self.pipeline)


_LDM = (
    _Part("unet", "diffusers", "UNet2DConditionModel", "model.diffusion_model."),
    _Part("vae", "diffusers", "AutoencoderKL", "first_stage_model."),
)
_LDM_ENTRANCE = "model.diffusion_model.input_blocks.0.0.weight"
_FLUX_EDITS = {128: "FluxControlPipeline", 384: "FluxFillPipeline"}
_CLIP = "CLIPTextModel"
# `.img_mod.lin.` sets Flux apart: HunyuanVideo, Flux 2 and Chroma have double_blocks without it.
_KINDS = (
    _Kind(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        "conditioner.embedders.1.",
        (
            *_LDM,
            _Part("text_encoder", "transformers", _CLIP, "conditioner.embedders.0."),
            _Part(
                "text_encoder_2",
                "transformers",
                "CLIPTextModelWithProjection",
                "conditioner.embedders.1.",
            ),
        ),
        _LDM_ENTRANCE,
        {8: "StableDiffusionXLInstructPix2PixPipeline", 9: "StableDiffusionXLInpaintPipeline"},
    ),
    _Kind(
        "Stable Diffusion 1",
        "StableDiffusionPipeline",
        "cond_stage_model.transformer.",
        (*_LDM, _Part("text_encoder", "transformers", _CLIP, "cond_stage_model.")),
        _LDM_ENTRANCE,
        {8: "StableDiffusionInstructPix2PixPipeline", 9: "StableDiffusionInpaintPipeline"},
    ),
    _Kind(
        "Flux",
        "FluxPipeline",
        "double_blocks.0.img_mod.lin.",
        (_Part("transformer", "diffusers", "FluxTransformer2DModel", ""),),
        "img_in.weight",
        _FLUX_EDITS,
    ),
    _Kind(
        "Flux",
        "FluxPipeline",
        "model.diffusion_model.double_blocks.0.img_mod.lin.",
        (
            _Part("transformer", "diffusers", "FluxTransformer2DModel", "model.diffusion_model."),
            _Part("vae", "diffusers", "AutoencoderKL", "vae."),
            _Part("text_encoder", "transformers", _CLIP, "text_encoders.clip_l."),
            _Part("text_encoder_2", "transformers", "T5EncoderModel", "text_encoders.t5xxl."),
        ),
        "model.diffusion_model.img_in.weight",
        _FLUX_EDITS,
    ),
)


def read_single_file(path: Path) -> ModelFacts:
    """What the original checkpoint `path` holds, told by the keys in its safetensors header.

    Only parts that lie in the file are listed (often no text encoder in a Flux file, and never a
    scheduler); configs are {}. Counts are those of the file's own tensors.
    Raises ModelError when the file isn't there, isn't safetensors, is cut off or of unknown kind.
    """
    if not path.exists():
        raise _missing(path, "file", lambda entry: entry.suffix == ".safetensors")
    if path.is_dir():
        raise _refusal(
            f"not a file: {path}",
            "it is a folder, and model=single_file reads one checkpoint",
            "name one .safetensors file",
        )
    if path.suffix in _PICKLES:
        raise _refusal(
            f"fastdiff doesn't load {path}",
            f"a {path.suffix} file is a pickle, and a pickle can run code when it is opened",
            "the same checkpoint as .safetensors",
        )
    if path.suffix != ".safetensors":
        raise _refusal(
            f"fastdiff doesn't load {path}",
            "its name doesn't end with .safetensors",
            "a checkpoint as .safetensors",
        )
    tensors = _read_header(path)
    for kind in _KINDS:
        if not any(key.startswith(kind.mark) for key in tensors):
            continue
        components = {}
        for part in kind.parts:
            own = [tensor for key, tensor in tensors.items() if key.startswith(part.prefix)]
            if own:
                components[part.name] = _component(*part[:3], own, {})
        return ModelFacts(kind.pipeline_of(tensors), components)
    raise _refusal(
        f"unknown kind of checkpoint: {path}",
        f"none of its {len(tensors)} tensors has a known name; known kinds: "
        + ", ".join(dict.fromkeys(kind.title for kind in _KINDS)),
        "load it once with diffusers, save_pretrained() it, and name that folder",
    )


def check_single_file(
    path: Path, facts: ModelFacts, configs: Mapping[str, Mapping[str, object]]
) -> None:
    """Refuses a checkpoint of which a component has only some of its weights. Raises ModelError.

    configs: of its components, by name; those without one are let pass.
    """
    tensors = _read_header(path)
    kind = next(k for k in _KINDS if any(key.startswith(k.mark) for key in tensors))
    for part in kind.parts:
        expected = original_names(part.class_name, configs.get(part.name, {}))
        prefix = part.prefix + ("transformer.text_model." if part.class_name == _CLIP else "")
        held = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
        if expected is not None and part.name in facts.components:
            instead = "fetch the file again, or name one that holds the whole component"
            refuse_missing_weights(path, part.name, expected, held, instead)


class _Tensor(NamedTuple):
    numbers: int
    stored_bytes: int
    dtype: str
    shape: tuple[int, ...]


def _component(
    name: str,
    library: str,
    class_name: str,
    tensors: Iterable[_Tensor],
    config: Mapping[str, object],
) -> Component:
    """A component with the sums over its tensors; counters (int64) are no parameters."""
    own = list(tensors)
    stored = sum(tensor.stored_bytes for tensor in own)
    numbers = sum(tensor.numbers for tensor in own if tensor.dtype != _COUNTER)
    return Component(name, library, class_name, stored, numbers, config)


def _check_folder(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise _missing(path, "folder", lambda entry: (entry / "model_index.json").is_file())
    if path.suffix == ".safetensors":
        why = "it is a single file, and this model is read from a folder"
        instead = f"model=single_file model.path={path}"
    elif path.suffix == ".py":
        why = "it is code, and fastdiff runs no code that comes with a model"
        instead = "a pipeline whose class is in diffusers"
    else:
        why = "it is a file, and a pipeline is a folder with a model_index.json"
        instead = "name a folder that save_pretrained() wrote"
    raise _refusal(f"not a folder: {path}", why, instead)


def read_index(path: Path) -> Mapping[str, object]:
    """The content of model_index.json; its `_class_name` is a string."""
    file = path / "model_index.json"
    if not file.exists():
        if (path / "config.json").exists():
            raise _refusal(
                f"not a pipeline: {path}",
                "it has a config.json and no model_index.json: a single component",
                "name the folder of the whole pipeline",
            )
        if (path / "modular_model_index.json").exists():
            raise _refusal(
                f"not a pipeline: {path}",
                "it has a modular_model_index.json: blocks of a modular pipeline, which fastdiff doesn't call yet",
                "name a folder that a pipeline's own save_pretrained() wrote",
            )
        raise _refusal(
            f"not a pipeline: {path}",
            "it has no model_index.json",
            "name a folder that save_pretrained() wrote",
        )
    index = read_json_object(file)
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list) or (isinstance(pipeline, str) and pipeline.endswith(".py")):
        raise _refusal(
            f"custom pipeline: {path}",
            f"its class {_spell(pipeline)} is code in the folder, "
            "and fastdiff runs no code that comes with a model",
            "a pipeline whose class is in diffusers",
        )
    if not isinstance(pipeline, str):
        raise _refusal(
            f"no pipeline class in {file}",
            "`_class_name` is missing" if pipeline is None else "`_class_name` is no string",
            "save the pipeline again with save_pretrained()",
        )
    return index


def _spell(value: object) -> str:
    return ".".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _check_component(folder: Path, name: str, library: str, class_name: str) -> None:
    """Refuses a component that isn't there or is code."""
    if (folder / f"{library}.py").exists():
        raise _refusal(
            f"custom component: {folder}",
            f"its class {class_name} is code in {library}.py, "
            "and fastdiff runs no code that comes with a model",
            "a pipeline whose classes are in diffusers and transformers",
        )
    if not folder.is_dir():
        raise _refusal(
            f"component {name} is missing: no folder {folder}",
            f"model_index.json lists it as {library} {class_name}",
            f"fetch the folder, or set {name} to [null, null] if the pipeline works without it",
        )


def _weight_files(folder: Path, name: str, class_name: str) -> dict[str | None, list[Path]]:
    """The safetensors files of a component by variant; None stands for the plain ones."""
    files: dict[str | None, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        _, _, variant = _SHARD.sub("", file.name.removesuffix(".safetensors")).partition(".")
        files.setdefault(variant or None, []).append(file)
    if files:
        return files
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _refusal(
            f"component {name} has only pickled weights: {folder / pickles[0]}",
            "fastdiff loads only safetensors, because a pickle can run code when it is opened",
            "if you trust it, load it once with diffusers and "
            "save_pretrained(..., safe_serialization=True)",
        )
    raise _refusal(
        f"component {name} has no weights: no *.safetensors in {folder}",
        f"{class_name} needs them",
        "fetch the folder's weights, or save the pipeline again with save_pretrained()",
    )


def _choose(
    files: Mapping[str | None, list[Path]], variant: str | None, folder: Path, name: str
) -> list[Path]:
    """The files of the chosen variant, or the plain ones where the component hasn't got it."""
    chosen = files.get(variant) or files.get(None)
    if chosen:
        return chosen
    known = sorted(other for other in files if other is not None)
    why = f"its variants: {', '.join(known)}"
    if variant:
        raise _refusal(
            f"component {name} has neither {variant} nor plain weights: {folder}",
            why,
            f"model.variant={nearest(variant, known) or known[0]}",
        )
    raise _refusal(
        f"component {name} has no plain weights: {folder}",
        why,
        f"model.variant={known[0]}",
    )


def read_json_object(file: Path) -> dict[str, object]:
    """The JSON object in `file`; ModelError when there is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            why = error.strerror or type(error).__name__
        elif isinstance(error, json.JSONDecodeError):
            why = f"line {error.lineno}: {error.msg}"
        else:
            why = "it is no JSON text"
    else:
        if isinstance(content, dict):
            return content
        why = "it holds no JSON object"
    raise _refusal(f"can't read {file}", why, "fetch it again, or save the pipeline again")


def _read_header(file: Path) -> dict[str, _Tensor]:
    """The tensors of a safetensors file by name, from its header; no weight is read.

    The header is 8 bytes of length, little endian, and so many bytes of JSON.
    Raises ModelError when that isn't so or the file is shorter than its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":  # of a Git LFS pointer
                raise _bad_header(file, "it is a Git LFS pointer, not the weights", "git lfs pull")
            if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise _bad_header(file, "it doesn't begin with a safetensors header")
            text = stream.read(length)
    except OSError as error:
        raise _bad_header(file, error.strerror or type(error).__name__) from error
    tensors: dict[str, _Tensor] = {}
    end = 0
    try:
        for key, entry in json.loads(text).items():
            if key == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            sides = [int(side) for side in entry["shape"]]
            if not 0 <= int(first) <= int(last) or min(sides, default=0) < 0:
                raise ValueError("a tensor of negative size")
            stored = int(last) - int(first)
            tensors[key] = _Tensor(math.prod(sides), stored, str(entry["dtype"]), tuple(sides))
            end = max(end, int(last))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_header(file, "its safetensors header is damaged") from error
    if 8 + length + end > size:
        raise _bad_header(
            file, f"it is cut off: {size} bytes, and its header tells of {8 + length + end}"
        )
    return tensors


def _bad_header(file: Path, why: str, instead: str = "fetch it again") -> ModelError:
    return _refusal(f"can't read {file}", why, instead)


def _missing(
    path: Path, what: str, wanted: Callable[[Path], bool], key: str | None = "model.path"
) -> ModelError:
    """Refuses a path that isn't there; names the most alike of the `wanted` ones beside it.

    key: the override that names such a path; None if several do.
    """
    if not path.parent.is_dir():
        why = f"{path.parent} isn't there either"
        known = []
    else:
        why = f"{path.parent} holds no such name"
        known = [entry.name for entry in path.parent.iterdir() if wanted(entry)]
    near = nearest(path.name, sorted(known))
    if near:
        instead = f"{f'{key}=' if key else ''}{path.parent / near}"
    elif what == "folder":
        instead = "name a folder that save_pretrained() wrote"
    else:
        instead = "name one .safetensors file"
    return _refusal(f"no such {what}: {path}", why, instead)


def _refusal(what: str, why: str, instead: str) -> ModelError:
    return ModelError(what, why, instead)
