"""A pipeline on the Hugging Face hub: what its cache holds, what is missing, and its errors in plain words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import PLACE_OR_NAME
from fastdiff.errors import ModelError, first_line
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.reading import pipeline_config, read_folder, read_index
from fastdiff.models.sources import Model, refuse_incomplete
from fastdiff.models.whole import absent_shards
from fastdiff.script import Script, keywords, literal

if TYPE_CHECKING:
    import torch


@dataclass
class Hub(Model):
    """A pipeline on the Hugging Face hub.

    id: org/name.
    revision: branch, tag or commit; null is the main branch.
    variant: fp16 fetches half-precision files where the repository has them, half the download.
    safety_checker: false leaves the image filter of Stable Diffusion 1.x out.
    lcm_lora: the adapter of lora=lcm for this model, org/name on the hub or a file.
    """

    id: str = ""
    revision: str | None = None
    variant: str | None = None
    safety_checker: bool = True
    lcm_lora: str | None = field(default=None, metadata=PLACE_OR_NAME)

    @property
    def title(self) -> str:
        return self.id

    @property
    def remote(self) -> bool:
        """Whether anything is to come from the hub."""
        return True

    def _checked_id(self) -> str:
        """The id, once it is one, and the revision with it: both become parts of a path in the hub's cache."""
        if not is_repository(self.id):
            raise ModelError(
                f"model.id={self.id or '(empty)'} is no repository on the hub: its name has the form org/name\n"
                "  instead: model.id=org/name, or model=local model.path=DIR for a folder"
            )
        if self.revision is not None and (
            not _REVISION.fullmatch(self.revision) or ".." in self.revision
        ):
            raise ModelError(
                f"model.revision={self.revision or '(empty)'} is no branch, tag or commit\n"
                "  instead: model.revision=null for the main branch, or a name such as v1.0"
            )
        return self.id

    def snapshot(self) -> Path | None:
        """The folder of the downloaded files; None if the hub's cache doesn't hold this revision."""
        folder = snapshot_of(self._checked_id(), self.revision)
        return folder if (folder / "model_index.json").is_file() else None

    def facts(self) -> ModelFacts | None:
        self._refuse_offline()
        folder = self.snapshot()
        if folder is not None:
            whole = self.complete() and self.safety_checker
            return read_folder(folder, self.variant) if whole else _configs_only(folder)
        return None

    def identity(self) -> dict[str, Any]:
        folder = self.snapshot()
        commit = folder.name if folder else self.revision or "main"
        return {"id": self.id, "commit": commit, "variant": self.variant}

    def load_notices(self) -> Iterator[str]:
        if not self.complete():
            yield f"{self.id} is not on this machine yet; the run will download it"

    def complete(self) -> bool:
        """Whether every component that has weights has them in the hub's cache, in this variant if it is one.

        A component without the variant is loaded from its plain files, as diffusers does.
        """
        folder = self.snapshot()
        if folder is None:
            return False
        held = {name: _variants(folder / name) for name in self._weighty(folder)}
        if self.variant and not any(self.variant in variants for variants in held.values()):
            return False
        loaded = {name: self.variant if self.variant in held[name] else None for name in held}
        return all(
            variant in held[name] and not absent_shards(folder / name, variant)
            for name, variant in loaded.items()
        )

    def _weighty(self, folder: Path) -> list[str]:
        """Components that have weights and are wanted."""
        parts = _configs_only(folder).components.values()
        names = [part.name for part in parts if part.parameters != 0]
        return [name for name in names if self.safety_checker or name != "safety_checker"]

    def fetch(self) -> None:
        """Download the configuration files only, so that a refusal comes before the gigabytes."""
        self._refuse_offline()
        from huggingface_hub import snapshot_download

        with _plain_words(self.id):
            snapshot_download(
                self._checked_id(), revision=self.revision, allow_patterns=["*.json", "*/*.json"]
            )

    def _refuse_offline(self) -> None:
        if downloads_are_forbidden() and not self.complete():
            here = "only in part on this machine" if self.snapshot() else "not on this machine"
            raise ModelError(
                f"{self.id} is {here}, and HF_HUB_OFFLINE forbids to download it\n"
                "  instead: unset HF_HUB_OFFLINE, or model=local model.path=DIR, or model=shapes"
            )

    def download_bytes(self) -> int | None:
        """Size of the weights still to be downloaded; None if the hub doesn't say."""
        from huggingface_hub import HfApi

        with _plain_words(self.id):
            info = HfApi().model_info(self.id, revision=self.revision, files_metadata=True)
        folder = self.snapshot()
        sizes: dict[str, dict[str | None, int]] = {}  # by component and variant
        for file in info.siblings or ():
            component, _, name = file.rfilename.rpartition("/")
            if name.endswith(".safetensors"):
                variants = sizes.setdefault(component, {})
                missing = not (folder and (folder / file.rfilename).exists())
                variant = _variant_of(name)
                variants[variant] = variants.get(variant, 0) + (file.size or 0) * missing
        wanted = self._weighty(folder) if folder else [name for name in sizes if name]
        parts = [sizes.get(name, {}) for name in wanted]
        return sum(part.get(self.variant, part.get(None, 0)) for part in parts) or None

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        from diffusers import DiffusionPipeline

        folder = self.snapshot()
        if folder is not None and self.complete() and (found := self.facts()) is not None:
            refuse_incomplete(folder, found, self.variant, parts)
        with _plain_words(self.id):
            return DiffusionPipeline.from_pretrained(
                self._checked_id(), dtype=dtype, use_safetensors=True, **self._wanted(), **parts
            )

    def script(self, script: Script) -> None:
        how, source = "DiffusionPipeline.from_pretrained", literal(self._checked_id())
        script.load(how, source, *keywords(self._wanted()), "use_safetensors=True")

    def _wanted(self) -> dict[str, Any]:
        """Which of the repository's files are meant.

        The commit that the facts and the reference are of, not whatever `main` has become meanwhile.
        """
        folder = self.snapshot()
        named = {"revision": folder.name if folder else self.revision, "variant": self.variant}
        wanted: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
        if not self.safety_checker:
            wanted |= {"safety_checker": None, "requires_safety_checker": False}
        return wanted


_REPOSITORY = re.compile(r"\w[\w.-]*/\w([\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether it is a name of the hub, org/name, that can become part of a path in its cache."""
    return bool(_REPOSITORY.fullmatch(name)) and not re.search(r"--|\.\.|\.git$", name)


def downloads_are_forbidden() -> bool:
    """Whether HF_HUB_OFFLINE, or the same of transformers, is set."""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked.lower() in ("1", "true", "yes", "on")


def snapshot_of(repository: str, revision: str | None = None) -> Path:
    """Where the hub's cache keeps the files of a repository's revision, whether or not they are there."""
    folder = hub_cache() / ("models--" + repository.replace("/", "--"))
    wanted = revision or "main"
    reference = folder / "refs" / wanted
    commit = reference.read_text().strip() if reference.is_file() else wanted
    return folder / "snapshots" / commit


def hub_cache() -> Path:
    """The folder where the hub's client keeps what it downloaded, read from the variables that it reads."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME") or home)
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(cache or home / "hub")))


def _variant_of(name: str) -> str | None:
    """`fp16` for model.fp16.safetensors, shards included; None for plain files."""
    whole = re.sub(r"-\d{5}-of-\d{5}", "", name.removesuffix(".safetensors"))
    return whole.partition(".")[2] or None


def _variants(folder: Path) -> set[str | None]:
    """Variants of the weights in a component's folder; None stands for the plain ones."""
    return {_variant_of(file.name) for file in folder.glob("*.safetensors")}


def _configs_only(folder: Path) -> ModelFacts:
    """Facts of a snapshot whose weights may still be missing."""
    index = read_index(folder)
    components = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        weights = 0 if entry[1].endswith("Scheduler") else None
        config = folder / name / ("scheduler_config.json" if weights == 0 else "config.json")
        if not config.is_file():  # tokenizers and the like
            continue
        data = json.loads(config.read_text(encoding="utf-8"))
        components[name] = Component(name, entry[0], entry[1], weights, weights, data)
    return ModelFacts(str(index["_class_name"]), components, pipeline_config(index))


class _plain_words:
    """Turns what the hub's client raises into a ModelError that a person can act on."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ModelError):
            return
        refused = refused_by_hub(self.repository, error)
        if refused is not None:
            raise refused from error


class HubError(ModelError):
    """The hub didn't give a repository. gated: its owner wants a licence accepted, which `instead` says how to do."""

    def __init__(self, what: str, instead: str = "", *, gated: bool = False) -> None:
        super().__init__(what, instead=instead)
        self.gated = gated

    def with_way_out(self, instead: str) -> ModelError:
        """The same of a repository that isn't the model itself, with the way out of what it is."""
        accept = f"{self.instead}, or " if self.gated else ""
        return ModelError(self.what, instead=accept + instead)


def refused_by_hub(repository: str, error: BaseException) -> HubError | None:
    """What went wrong between us and the hub, and the way out; None for an error of another kind."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    text = " ".join(str(e) for e in chain)
    if "GatedRepoError" in names or "gated repo" in text.lower():
        from huggingface_hub import get_token

        token = "your token has no access yet" if get_token() else "HF_TOKEN is not set"
        return HubError(
            f"{repository} is gated: its owner asks you to accept a licence first ({token})",
            f"accept it on https://huggingface.co/{repository}, then set HF_TOKEN to your token",
            gated=True,
        )
    if "RevisionNotFoundError" in names:
        return HubError(
            f"{repository} has no such revision",
            "model.revision=null for its main branch, or an existing tag",
        )
    if "RepositoryNotFoundError" in names:
        return HubError(
            f"the hub has no repository {repository}, or it is private and HF_TOKEN gives no access",
            "check the spelling of model.id, or set HF_TOKEN",
        )
    if "no file named" in text or (
        "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names
    ):
        return HubError(
            f"{repository} lacks a file that is needed ({first_line(error)})",
            "model.variant=null or another variant; fastdiff loads safetensors only, never pickles",
        )
    if "HfHubHTTPError" in names:
        answer = next(e for e in chain if hasattr(e, "response"))
        return HubError(
            f"the hub refused to give {repository} ({first_line(answer)})",
            "try again later, or model=local model.path=DIR, or model=shapes",
        )
    unreachable = {
        "LocalEntryNotFoundError",  # what the client makes of every failure to connect
        "ConnectionError",
        "TimeoutError",
        "TransportError",  # httpx's own: no connection, a timeout, a proxy, a certificate
        "RequestException",  # the same of requests
    }
    if unreachable & names or "couldn't connect" in text.lower():
        return HubError(
            f"{repository} is not on this machine, and the hub can't be reached",
            "connect to the network, or model=local model.path=DIR, or model=shapes",
        )
    return None
