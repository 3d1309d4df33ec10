"""Where a pipeline comes from: the embedded model, a folder, or a single file (hub.py has the hub).

Each option says, without importing torch, what is known of its model before it is loaded, and loads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastdiff.config import PLACE, PLACE_OR_NAME, RunConfig, Slot
from fastdiff.errors import ModelError, first_line
from fastdiff.machine.files import sha256_of
from fastdiff.models.architectures import ORIGINAL
from fastdiff.models.content import content_hash
from fastdiff.models.facts import ModelFacts
from fastdiff.models.reading import (
    check_single_file,
    read_component,
    read_component_shapes,
    read_folder,
    read_json_object,
    read_single_file,
)
from fastdiff.models.whole import check_against_module
from fastdiff.script import Script, ScriptError, literal

if TYPE_CHECKING:
    import torch

SHAPES_DIR = Path(__file__).parent / "shapes" / "pipeline"
SHAPES_STUDENT = Path(__file__).parent / "shapes" / "student"
SHAPES_TINY_VAE = Path(__file__).parent / "shapes" / "vae_tiny"

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
    call: dict[str, Any] = field(default_factory=dict)


class Role(Enum):
    """Which of a pair of models runs: the one that was named, or the smaller one distilled from it."""

    teacher = "teacher"
    student = "student"


@dataclass
class Model(Slot):
    """Base of the options.

    generation: the model's own prompt, size and steps.
    role: `student` runs the model that was distilled from this one.
    tiny_vae: the distilled autoencoder for its latents, of vae=tiny: org/name on the hub, or a folder.
    """

    slot: ClassVar[str] = "model"
    captioned: ClassVar[bool] = False
    """Whether its prompts are captions of scenes, so that a picture can be judged by them."""

    generation: OwnDefaults = field(default_factory=OwnDefaults)
    role: Role = Role.teacher
    tiny_vae: str | None = field(default=None, metadata=PLACE_OR_NAME)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.slot

    def acting(self) -> Model:
        """The model that runs: itself, or its student. Raises ModelError if it has none."""
        return (
            self if self.role is Role.teacher else replace(self.student_model(), role=Role.teacher)
        )

    def student_model(self) -> Model:
        """The model distilled from this one. Raises ModelError."""
        raise ModelError(
            f"model.role=student: no student of {self.title} is known\n"
            "  instead: model.role=teacher, or a model whose YAML names a student"
        )

    def facts(self) -> ModelFacts | None:
        """What is known before loading; None when nobody has seen the model. Raises ModelError."""
        raise TypeError(f"{type(self).__name__} has no facts()")

    def identity(self) -> dict[str, Any]:
        """What tells these weights from others, as plain data."""
        raise TypeError(f"{type(self).__name__} has no identity()")

    def content(self) -> dict[str, Any]:
        """The same by what is in the files, where that takes longer to find out: for what is kept for days."""
        return self.identity()

    def fetch(self) -> None:
        """Bring what `facts()` needs onto this machine. Only the hub has something to bring."""

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        """The pipeline on the CPU, in eval mode. Raises ModelError.

        parts: components that take the place of the model's own, by name; those are not loaded then.
        """
        raise TypeError(f"{type(self).__name__} has no load()")

    def script(self, script: Script) -> None:
        """Write how it is loaded into a plain script. Raises ScriptError if nobody else could load it."""
        instead = "model=local model.path=DIR, a folder that save_pretrained() wrote"
        raise ScriptError(self.title, "it is in no place from which it could be loaded", instead)

    def load_notices(self) -> Iterator[str]:
        """What a user should know before the model is loaded."""
        yield from ()

    def own_tiny_vae(self) -> Path | str | None:
        """The tiny autoencoder for its latents: a folder, or org/name on the hub; None if nobody named one."""
        return folder_or_name(self.tiny_vae)

    def own_fp16_vae(self) -> Path | str | None:
        """Its VAE repaired to decode in fp16, in the same way."""
        return None

    @property
    def random_seed(self) -> int | None:
        """The seed of weights that are random numbers; None where they are real."""
        return None


def folder_or_name(named: str | None) -> Path | str | None:
    """A folder if there is one of this name, and else the name, which may be a repository's."""
    if named is None:
        return None
    folder = Path(os.path.expanduser(named))
    return folder.absolute() if folder.is_dir() else named


@dataclass
class Folder(Model):
    """Base of what lies in a folder that `save_pretrained` wrote.

    asked: what a script that knows no folder asks for.
    """

    asked: ClassVar[str] = "a folder that pipeline.save_pretrained() wrote"

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
        return files_identity(self.folder)

    def content(self) -> dict[str, Any]:
        return files_identity(self.folder, content_hash)

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        from diffusers import DiffusionPipeline

        refuse_incomplete(self.folder, self.facts(), self.wanted_variant, parts)
        return DiffusionPipeline.from_pretrained(
            str(self.folder),
            dtype=dtype,
            variant=self.wanted_variant,
            use_safetensors=True,
            local_files_only=True,
            **parts,
        )

    def script(self, script: Script) -> None:
        how, source = "DiffusionPipeline.from_pretrained", script.ask("--model", self.asked)
        variant = self.wanted_variant
        named = [f"variant={literal(variant)}"] if variant else []
        script.load(how, source, *named, "use_safetensors=True")


def refuse_incomplete(
    folder: Path, facts: ModelFacts, variant: str | None, parts: Mapping[str, Any]
) -> None:
    """Raises ModelError, before any weight is read, if a component's files lack some that its module has.

    parts: components that come from elsewhere.
    """
    for name, part in facts.components.items():
        if part.library != "diffusers" or part.parameters == 0 or name in parts:
            continue
        held = read_component_shapes(folder / name, name, part.class_name, variant)
        check_against_module(folder / name, name, part.class_name, part.config, held)


def size_and_time(file: Path) -> Any:
    """A file by its size and time: for a single run, reading gigabytes to hash them would cost more than it tells."""
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def files_identity(place: Path, weights: Callable[[Path], Any] = size_and_time) -> dict[str, Any]:
    """What a folder's, or a file's, pictures depend on: configurations and tokenizers by content, weights as asked."""
    folder = place if place.is_dir() else place.parent
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")) if place.is_dir() else [place][: place.is_file()]:
        if path.suffix == ".safetensors":
            found[str(path.relative_to(folder))] = weights(path)
        elif path.suffix in (".json", ".txt", ".model"):
            found[str(path.relative_to(folder))] = sha256_of(path)
    return found


@dataclass
class Shapes(Folder):
    """The trained model that ships with fastdiff."""

    captioned: ClassVar[bool] = True
    asked: ClassVar[str] = (
        "the embedded model: the folder models/shapes/pipeline in fastdiff's package"
    )

    @property
    def title(self) -> str:
        return "shapes"

    @property
    def folder(self) -> Path:
        return SHAPES_DIR

    def facts(self) -> ModelFacts:
        return _shipped_facts(self.folder)

    def identity(self) -> dict[str, Any]:
        # Small enough to be read whole, and its files' times differ from one installation to the next.
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): sha256_of(path) for path in files}

    def content(self) -> dict[str, Any]:
        return self.identity()

    def own_tiny_vae(self) -> Path | str | None:
        return super().own_tiny_vae() or SHAPES_TINY_VAE

    def student_model(self) -> Model:
        return ShapesStudent(self.generation, tiny_vae=self.tiny_vae)


@cache
def _shipped_facts(folder: Path) -> ModelFacts:
    """Read once in a process: what ships with fastdiff doesn't change."""
    return read_folder(folder, None)


@dataclass
class ShapesStudent(Shapes):
    """The embedded model with a smaller UNet in place of its own."""

    @property
    def title(self) -> str:
        return "shapes (student)"

    def facts(self) -> ModelFacts:
        whole = super().facts()
        student = read_component(SHAPES_STUDENT, "unet")
        return replace(whole, components={**whole.components, "unet": student})

    def identity(self) -> dict[str, Any]:
        files = sorted(path for path in SHAPES_STUDENT.rglob("*") if path.is_file())
        return super().identity() | {f"student/{path.name}": sha256_of(path) for path in files}

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        from diffusers import UNet2DConditionModel

        student = UNet2DConditionModel.from_pretrained(
            SHAPES_STUDENT, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return super().load(dtype, {"unet": student, **parts})

    def script(self, script: Script) -> None:
        super().script(script)
        source = script.ask("--unet", "a folder with the student's UNet")
        script.take("unet", "UNet2DConditionModel", source)


@dataclass
class Local(Folder):
    """path: a folder that `pipeline.save_pretrained` wrote; relative paths start where the command is typed.
    variant: fp16 where it was saved with variant="fp16"; null takes the plain weights.
    student_path: the folder of the pipeline that was distilled from it, for model.role=student."""

    path: str = field(default="", metadata=PLACE)
    variant: str | None = None
    student_path: str | None = field(default=None, metadata=PLACE)

    def student_model(self) -> Model:
        if self.student_path is None:
            raise ModelError(
                "model.role=student: nobody said which folder the student is in\n"
                "  instead: model.student_path=DIR, or model.role=teacher"
            )
        return replace(self, path=self.student_path)

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
        return Path(os.path.expanduser(self.path)).absolute()


@dataclass
class SingleFile(Model):
    """path: one .safetensors file that holds a whole checkpoint; config: a folder with its model_index.json,
    for machines that can't ask the hub for it."""

    path: str = field(default="", metadata=PLACE)
    config: str | None = field(default=None, metadata=PLACE)

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
        return Path(os.path.expanduser(self.path)).absolute()

    def facts(self) -> ModelFacts:
        found = read_single_file(self.file)
        check_single_file(self.file, found, self._configs(found))
        return found

    def _configs(self, found: ModelFacts) -> dict[str, Mapping[str, object]]:
        """Configurations of its components: those of model.config, or of the architecture that diffusers takes it for."""
        if not self.config:
            known = ORIGINAL.get(found.pipeline)
            return {name: part.config for name, part in known.components.items()} if known else {}
        folder = Path(os.path.expanduser(self.config)).absolute()
        files = {name: folder / name / "config.json" for name in found.components}
        return {name: read_json_object(file) for name, file in files.items() if file.is_file()}

    def identity(self) -> dict[str, Any]:
        return self._by(size_and_time)

    def content(self) -> dict[str, Any]:
        return self._by(content_hash)

    def _by(self, weights: Callable[[Path], Any]) -> dict[str, Any]:
        config = Path(os.path.expanduser(self.config)) if self.config else None
        return {
            "file": [self.file.name, weights(self.file)],
            "config": files_identity(config, weights) if config else None,
        }

    def load(self, dtype: torch.dtype | None, parts: Mapping[str, Any]) -> Any:
        import diffusers

        pipeline = getattr(diffusers, self.facts().pipeline)
        extra: dict[str, Any] = {**parts}
        if self.config:
            extra |= {"config": self.config, "local_files_only": True}
        try:
            return pipeline.from_single_file(str(self.file), torch_dtype=dtype, **extra)
        except (OSError, ValueError) as error:
            if self.config:
                raise
            raise ModelError(
                f"{self.path} holds the weights, but its components' configuration is on the hub, which can't be "
                f"asked ({first_line(error)})\n"
                "  instead: model.config=DIR, a folder with that pipeline's model_index.json and configs"
            ) from error

    def script(self, script: Script) -> None:
        source = script.ask("--model", "a .safetensors file that holds the whole pipeline")
        given = []
        if self.config:
            config = script.ask("--config", "a folder with its model_index.json and configurations")
            given = [f"config={config}", "local_files_only=True"]
        script.load(f"{self.facts().pipeline}.from_single_file", source, *given)


def model_of(run: RunConfig) -> Model:
    """The run's model in its role."""
    assert isinstance(run.model, Model)
    return run.model.acting()
