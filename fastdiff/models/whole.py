"""Whether a model's files hold all of its weights: told by their headers before any weight is read.

A download that was broken off or a merge gone wrong leaves a file that looks right. What its architecture wants is worked
out from the configuration (names.py), or, where nobody here knows it, from the module without weights, just before it is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.errors import ModelError, listed
from fastdiff.models.names import expected_names, missing_names

_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
_FETCH = "fetch it again, or save the pipeline again with save_pretrained()"


def refuse_missing_weights(
    place: Path, name: str, expected: Collection[str], held: Iterable[str], instead: str = _FETCH
) -> None:
    """Raises ModelError if a component lacks weights that it must have.

    place: its folder, or the file that it lies in. expected: names of all its weights, held: of those in the files.
    """
    missing = missing_names(expected, held)
    if missing:
        raise ModelError(
            f"component {name} is incomplete: {place}",
            f"{len(missing)} of its {len(expected)} weights are missing, such as {listed(missing[:3])}",
            instead,
        )


def check_weights(
    folder: Path, name: str, class_name: str, config: Mapping[str, Any], held: Iterable[str]
) -> None:
    """The same where the names can be worked out from the configuration. Raises ModelError."""
    expected = expected_names(class_name, config)
    if expected is not None:
        refuse_missing_weights(folder, name, expected, held)


def check_shards(folder: Path, name: str, files: Mapping[Path, Collection[str]]) -> None:
    """Refuses weights in several files of which one is missing, or that lack what their index names.

    files: those of one variant, each with the names of the tensors in it. Raises ModelError.
    """
    numbered = [file for file in files if _NUMBERED.search(file.name)]
    whole = len(numbered) < len(files)
    if not numbered:
        return
    index = _index_of(numbered[0])
    told = _weight_map(index) if index.is_file() else {}
    wanted = set(told.values()) or ({} if whole else _siblings(numbered[0]))
    absent = sorted(set(wanted) - {file.name for file in files})
    if absent:
        raise ModelError(
            f"component {name} is incomplete: {folder}",
            f"{len(absent)} of its {len(wanted)} files are missing, such as {listed(absent[:3])}",
            _FETCH,
        )
    if not told and not whole:
        raise ModelError(
            f"component {name} has no index of its {len(numbered)} files: no {index.name} in {folder}",
            "without it diffusers and transformers find none of them",
            _FETCH,
        )
    held = {file.name: names for file, names in files.items()}
    there = (tensor for tensor, file in told.items() if tensor in held[file])
    refuse_missing_weights(folder, name, list(told), there)


def _index_of(shard: Path) -> Path:
    """The index of the files that a shard belongs to: diffusers and transformers put the variant last in its name."""
    stem, _, variant = _NUMBERED.sub("", shard.name.removesuffix(".safetensors")).partition(".")
    return shard.with_name(f"{stem}.safetensors.index{f'.{variant}' * bool(variant)}.json")


def absent_shards(folder: Path, variant: str | None) -> list[str]:
    """Files of one variant that an index in the folder names and that aren't there: a download that isn't finished."""
    wanted: set[str] = set()
    for index in folder.glob(f"*.safetensors.index{f'.{variant}' * bool(variant)}.json"):
        wanted |= set(_weight_map(index).values())
    return sorted(name for name in wanted if not (folder / name).exists())


def _siblings(shard: Path) -> set[str]:
    """Names of all the files that a shard's own number tells of."""
    number = _NUMBERED.search(shard.name)
    assert number
    count = number[2]
    return {_NUMBERED.sub(f"-{n:05}-of-{count}", shard.name) for n in range(1, int(count) + 1)}


def _weight_map(index: Path) -> dict[str, str]:
    """Which tensor lies in which file. Raises ModelError."""
    try:
        told = json.loads(index.read_bytes())["weight_map"]
        return {str(tensor): str(file) for tensor, file in told.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"can't read {index}", "it is no index of weights", _FETCH) from error


def check_against_module(
    folder: Path, name: str, class_name: str, config: Mapping[str, Any], held: Iterable[str]
) -> None:
    """The same for a class of diffusers whose names nobody here knows, by its module without weights. Raises ModelError.

    Imports torch: for just before loading. What can't be built so, or renames weights while it is loaded, is let pass.
    """
    if expected_names(class_name, config) is not None or config.get("quantization_config"):
        return
    import diffusers
    import torch
    from diffusers.models.modeling_utils import ModelMixin

    known = getattr(diffusers, class_name, None)
    if not isinstance(known, type) or not issubclass(known, ModelMixin):
        return
    renames = known._fix_state_dict_keys_on_load is not ModelMixin._fix_state_dict_keys_on_load  # type: ignore[attr-defined]
    if renames:
        return
    try:
        with torch.device("meta"):
            module: Any = known.from_config(dict(config))  # type: ignore[attr-defined]
    except Exception:
        return  # loading it says why, better than this could
    refuse_missing_weights(folder, name, [key for key, _ in module.named_parameters()], held)
