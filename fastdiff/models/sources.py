"""Where a pipeline comes from: the embedded model, the hub, a folder, or a single file.

Each option says, without importing torch, what is known of its model before it is loaded, and loads it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.config import RunConfig, Slot
from fastdiff.errors import ModelError
from fastdiff.models.facts import Component, ModelFacts
from fastdiff.models.reading import read_folder, read_single_file
from fastdiff.result import sha256_of

if TYPE_CHECKING:
    import torch

SHAPES_DIR = Path(__file__).parent / "shapes" / "pipeline"

FALLBACK_PROMPT = "a photo of an astronaut riding a horse on mars"
"""For a model that brings no prompt of its own; the documents' first one."""


@dataclass
class OwnDefaults:
    """What this model draws when `generation` leaves a key at null; null again asks the pipeline itself."""

    prompt: str = FALLBACK_PROMPT
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None


@dataclass
class Model(Slot):
    """Base of the options. generation: the model's own prompt, size and steps."""

    slot: ClassVar[str] = "model"
    generation: OwnDefaults = field(default_factory=OwnDefaults)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.slot

    def facts(self) -> ModelFacts | None:
        """What is known before loading; None when nobody has seen the model. Raises ModelError."""
        raise TypeError(f"{type(self).__name__} has no facts()")

    def identity(self) -> dict[str, Any]:
        """What tells these weights from others, as plain data."""
        raise TypeError(f"{type(self).__name__} has no identity()")

    def fetch(self) -> None:
        """Bring what `facts()` needs onto this machine. Only the hub has something to bring."""

    def load(self, dtype: torch.dtype | None) -> Any:
        """The pipeline on the CPU, in eval mode. Raises ModelError."""
        raise TypeError(f"{type(self).__name__} has no load()")

    def load_notices(self) -> Iterator[str]:
        """What a user should know before the model is loaded."""
        yield from ()


@dataclass
class Folder(Model):
    """Base of what lies in a folder that `save_pretrained` wrote."""

    @property
    def folder(self) -> Path:
        raise TypeError(f"{type(self).__name__} has no folder")

    @property
    def wanted_variant(self) -> str | None:
        """Which weights of the folder are meant; None for the plain ones."""
        return None

    def facts(self) -> ModelFacts:
        return read_folder(self.folder, self.wanted_variant)

    def identity(self) -> dict[str, Any]:
        return _identity_of(self.folder)

    def load(self, dtype: torch.dtype | None) -> Any:
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(
            str(self.folder),
            dtype=dtype,
            variant=self.wanted_variant,
            use_safetensors=True,
            local_files_only=True,
        )


def _identity_of(folder: Path) -> dict[str, Any]:
    """What a folder draws depends on: its configurations and tokenizers by content, its weights by size and time.

    Reading gigabytes to hash them would cost more than it tells.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            found[str(path.relative_to(folder))] = [path.stat().st_size, path.stat().st_mtime_ns]
        elif path.suffix in (".json", ".txt", ".model"):
            found[str(path.relative_to(folder))] = sha256_of(path)
    return found


@dataclass
class Shapes(Folder):
    """The trained model that ships with fastdiff."""

    @property
    def title(self) -> str:
        return "shapes"

    @property
    def folder(self) -> Path:
        return SHAPES_DIR

    def identity(self) -> dict[str, Any]:
        # Small enough to be read whole, and its files' times differ from one installation to the next.
        files = sorted(path for path in SHAPES_DIR.rglob("*") if path.is_file())
        return {str(path.relative_to(SHAPES_DIR)): sha256_of(path) for path in files}


@dataclass
class Local(Folder):
    """path: a folder that `pipeline.save_pretrained` wrote; relative paths start where the command is typed.
    variant: fp16 where it was saved with variant="fp16"; null takes the plain weights."""

    path: str = ""
    variant: str | None = None

    @property
    def title(self) -> str:
        return Path(self.path).name

    @property
    def wanted_variant(self) -> str | None:
        return self.variant

    @property
    def folder(self) -> Path:
        if not self.path:
            raise ModelError(
                "model=local needs a folder\n"
                "  instead: model.path=DIR, a folder that pipeline.save_pretrained(DIR) wrote"
            )
        return Path(self.path).expanduser().absolute()


@dataclass
class SingleFile(Model):
    """path: one .safetensors file that holds a whole checkpoint; config: a folder with its model_index.json,
    for machines that can't ask the hub for it."""

    path: str = ""
    config: str | None = None

    @property
    def title(self) -> str:
        return Path(self.path).name

    @property
    def file(self) -> Path:
        if not self.path:
            raise ModelError(
                "model=single_file needs a file\n"
                "  instead: model.path=FILE.safetensors, a checkpoint that holds the whole pipeline"
            )
        return Path(self.path).expanduser().absolute()

    def facts(self) -> ModelFacts:
        return read_single_file(self.file)

    def identity(self) -> dict[str, Any]:
        state = self.file.stat()
        config = _identity_of(Path(self.config).expanduser()) if self.config else None
        return {"file": [self.file.name, state.st_size, state.st_mtime_ns], "config": config}

    def load(self, dtype: torch.dtype | None) -> Any:
        import diffusers

        pipeline = getattr(diffusers, self.facts().pipeline)
        extra = {"config": self.config, "local_files_only": True} if self.config else {}
        try:
            return pipeline.from_single_file(str(self.file), torch_dtype=dtype, **extra)
        except (OSError, ValueError) as error:
            if self.config:
                raise
            raise ModelError(
                f"{self.path} holds the weights, but its components' configuration is on the hub, which can't be "
                f"asked ({_first_line(error)})\n"
                "  instead: model.config=DIR, a folder with that pipeline's model_index.json and configs"
            ) from error


@dataclass
class Hub(Model):
    """A pipeline on the Hugging Face hub.

    id: org/name.
    revision: branch, tag or commit; null is the main branch.
    variant: fp16 fetches half-precision files where the repository has them, half the download.
    safety_checker: false leaves the image filter of Stable Diffusion 1.x out.
    pipeline: class name of the pipeline, if it is known beforehand; lets `plan` answer before any download.
    components: what is known of its denoiser and VAE, likewise: `_class_name` and keys of their configuration.
    """

    id: str = ""
    revision: str | None = None
    variant: str | None = None
    safety_checker: bool = True
    pipeline: str | None = None
    components: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.id

    def _checked_id(self) -> str:
        """The id, once it is one, and the revision with it: both become parts of a path in the hub's cache."""
        if not _REPOSITORY.fullmatch(self.id) or re.search(r"--|\.\.|\.git$", self.id):
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
        repository = hub_cache() / ("models--" + self._checked_id().replace("/", "--"))
        wanted = self.revision or "main"
        reference = repository / "refs" / wanted
        commit = reference.read_text().strip() if reference.is_file() else wanted
        folder = repository / "snapshots" / commit
        return folder if (folder / "model_index.json").is_file() else None

    def facts(self) -> ModelFacts | None:
        self._refuse_offline()
        folder = self.snapshot()
        if folder is not None:
            whole = self.complete() and self.safety_checker
            return read_folder(folder, self.variant) if whole else _configs_only(folder)
        if self.pipeline is None:
            return None
        components = {
            name: Component(name, "diffusers", config["_class_name"], None, None, config)
            for name, config in self.components.items()
        }
        return ModelFacts(self.pipeline, components)

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
        held = [_variants(folder / name) for name in self._weighty(folder)]
        if self.variant and not any(self.variant in variants for variants in held):
            return False
        return all(variants & {self.variant, None} for variants in held)

    def _weighty(self, folder: Path) -> list[str]:
        """Components that have weights and are wanted."""
        names = _configs_only(folder).components
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
        asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        if asked.lower() in ("1", "true", "yes", "on") and not self.complete():
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

    def load(self, dtype: torch.dtype | None) -> Any:
        from diffusers import DiffusionPipeline

        # The commit that the facts and the reference are of, not whatever `main` has become meanwhile.
        folder = self.snapshot()
        revision = folder.name if folder else self.revision
        extra: dict[str, Any] = {}
        if not self.safety_checker:
            extra = {"safety_checker": None, "requires_safety_checker": False}
        with _plain_words(self.id):
            return DiffusionPipeline.from_pretrained(
                self._checked_id(),
                dtype=dtype,
                revision=revision,
                variant=self.variant,
                use_safetensors=True,
                **extra,
            )


_REPOSITORY = re.compile(r"\w[\w.-]*/\w([\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


def hub_cache() -> Path:
    """The folder where the hub's client keeps what it downloaded, read from the variables that it reads."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or home)
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(cache or home / "hub")).expanduser()


def _variant_of(name: str) -> str | None:
    """`fp16` for model.fp16.safetensors, shards included; None for plain files."""
    whole = re.sub(r"-\d{5}-of-\d{5}", "", name.removesuffix(".safetensors"))
    return whole.partition(".")[2] or None


def _variants(folder: Path) -> set[str | None]:
    """Variants of the weights in a component's folder; None stands for the plain ones."""
    return {_variant_of(file.name) for file in folder.glob("*.safetensors")}


def _configs_only(folder: Path) -> ModelFacts:
    """Facts of a snapshot whose weights may still be missing."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        config = folder / name / "config.json"
        if not config.is_file():  # tokenizers, schedulers: no weights
            continue
        data = json.loads(config.read_text(encoding="utf-8"))
        components[name] = Component(name, entry[0], entry[1], None, None, data)
    return ModelFacts(index["_class_name"], components)


class _plain_words:
    """Turns what the hub's client raises into a ModelError that a person can act on."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ModelError):
            return
        text = hub_error_in_words(self.repository, error)
        if text is not None:
            raise ModelError(text) from error


def hub_error_in_words(repository: str, error: BaseException) -> str | None:
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
        return (
            f"{repository} is gated: its owner asks you to accept a licence first ({token})\n"
            f"  instead: accept it on https://huggingface.co/{repository}, then set HF_TOKEN to your token"
        )
    if "RevisionNotFoundError" in names:
        return (
            f"{repository} has no such revision\n"
            "  instead: model.revision=null for its main branch, or an existing tag"
        )
    if "RepositoryNotFoundError" in names:
        return (
            f"the hub has no repository {repository}, or it is private and HF_TOKEN gives no access\n"
            "  instead: check the spelling of model.id, or set HF_TOKEN"
        )
    if "no file named" in text or (
        "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names
    ):
        return (
            f"{repository} lacks a file that is needed ({_first_line(error)})\n"
            "  instead: model.variant=null or another variant; fastdiff loads safetensors only, never pickles"
        )
    if "HfHubHTTPError" in names:
        answer = next(e for e in chain if hasattr(e, "response"))
        return (
            f"the hub refused to give {repository} ({_first_line(answer)})\n"
            "  instead: try again later, or model=local model.path=DIR, or model=shapes"
        )
    unreachable = {
        "LocalEntryNotFoundError",  # what the client makes of every failure to connect
        "ConnectionError",
        "TimeoutError",
        "TransportError",  # httpx's own: no connection, a timeout, a proxy, a certificate
        "RequestException",  # the same of requests
    }
    if unreachable & names or "couldn't connect" in text.lower():
        return (
            f"{repository} is not on this machine, and the hub can't be reached\n"
            "  instead: connect to the network, or model=local model.path=DIR, or model=shapes"
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def model_of(run: RunConfig) -> Model:
    """The run's model, as what it is."""
    assert isinstance(run.model, Model)
    return run.model


MODELS: dict[str, type[Model]] = {
    "shapes": Shapes,
    "hub": Hub,
    "local": Local,
    "single_file": SingleFile,
}
