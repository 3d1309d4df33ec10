"""`recipe export`: a plan → a plain script that draws the same picture with diffusers, torch and torchao alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastdiff.choices.compose import compose
from fastdiff.choices.recipe.checking import read_recipe
from fastdiff.commands.recipe.save import write_new
from fastdiff.commands.words import Words
from fastdiff.config import Generation
from fastdiff.display.layout import headline
from fastdiff.models.sources import model_of
from fastdiff.passes.base import Pass
from fastdiff.planning.outlook import planned
from fastdiff.planning.plan import Plan
from fastdiff.script import WIDTH, Script, ScriptError, bracketed, keywords, literal

_NOISE = """\
def noise_in_fp32(shape, generator=None, device=None, dtype=None, layout=None):
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)"""


def run(asked: Words) -> int:
    """`recipe export FILE --script OUT.py`."""
    (path,) = asked.files
    recipe = read_recipe(path)
    plan = planned(compose([f"recipe={path}", *asked.overrides]))
    made_for = f"{recipe.model['option'] if recipe.model else 'any model'} on {recipe.device}"
    out = Path(asked.flags["--script"])
    write_new(out, script_of(plan, recipe.name, made_for), "--script")
    print(headline(f"{path} as a plain script: {out}"))
    return 0


def script_of(plan: Plan, title: str, made_for: str | None = None) -> str:
    """The script as text: it draws what a run of the plan draws, and saves it.

    Files and folders of the user's own become arguments of its command line. title, made_for: for its head.
    Raises ScriptError if the model or a pass can't be written so.
    """
    setting = plan.setting
    model = model_of(setting.run)
    if setting.facts is None:
        why = f"{model.title} is not on this machine, so nobody knows its parts"
        raise ScriptError(setting.chosen("model"), why, "a run first, which downloads it")
    arguments = tuple(_arguments(setting.run.generation))
    script = Script(frozenset(setting.facts.components), call=arguments)
    script.use("argparse")
    script.use("torch")
    model.script(script)
    for step in plan.steps:
        _refuse_unwritten(step.pass_)
        step.pass_.script(script, setting)
    _start_as_in_fp32(script)
    drawing = "\n".join(_drawing(script, setting.run.generation))
    return script.text(_header(script, plan, title, made_for), drawing)


def _refuse_unwritten(step: Pass) -> None:
    """Raise ScriptError if a pass has no script() beside what it does: one of a class above speaks of something else."""
    kind = type(step)
    where = {
        name: next(k for k in kind.__mro__ if name in vars(k))
        for name in ("script", "apply", "prepare")
    }
    if where["script"] is Pass or not all(issubclass(where["script"], k) for k in where.values()):
        why = f"{kind.__module__}.{kind.__name__} has no script() of its own, which would say how"
        raise ScriptError(step.key, why, "leave it out, or ask whoever made it for one")


def _header(script: Script, plan: Plan, title: str, made_for: str | None) -> Iterator[str]:
    yield title
    if made_for:
        yield f"Made for {made_for}."
    used = {module.partition(".")[0] for module in script.imports} | {"transformers"}
    versions = plan.setting.environment.versions
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if name in used)
    where = f"{model_of(plan.setting.run).title} on {plan.device}"
    yield f"Exported for {where}, with {known} installed."


def _start_as_in_fp32(script: Script) -> None:
    """Noise as every run draws it: in fp32, and cast. In fp32 that is what diffusers does by itself."""
    if script.dtype in (None, "float32"):
        return
    script.use("sys")
    script.define(_NOISE)
    script.then(
        f"# Noise drawn in {script.dtype} isn't that of the same seed in fp32, and so the picture isn't.",
        "for part in (pipe, pipe.scheduler):",
        "    sys.modules[part.__module__].randn_tensor = noise_in_fp32",
    )


def _drawing(script: Script, generation: Generation) -> Iterator[str]:
    """The call of the pipeline, and its pictures' files."""
    if len(generation.prompts) * generation.images_per_prompt == 1:
        script.arguments.append('parser.add_argument("--out", default="picture.png")')
        yield bracketed("image = pipe(", script.call, ").images[0]")
        yield "image.save(args.out)"
        return
    script.use("pathlib", "Path")
    script.arguments.append('parser.add_argument("--out", type=Path, default="picture.png")')
    yield bracketed("images = pipe(", script.call, ").images")
    yield "for number, image in enumerate(images):"
    yield '    image.save(args.out.with_stem(f"{args.out.stem}-{number}"))'


def _arguments(generation: Generation) -> list[str]:
    """Those of the pipeline's call that were asked for."""
    texts = [literal(prompt) for prompt in generation.prompts]
    batch = not isinstance(generation.prompt, str)
    prompt = bracketed("prompt=[", texts, "]", WIDTH - 5) if batch else f"prompt={texts[0]}"
    given = {
        "num_inference_steps": generation.steps,
        "guidance_scale": generation.guidance_scale,
        "height": generation.height,
        "width": generation.width,
        "num_images_per_prompt": generation.images_per_prompt,
        **generation.call,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    if generation.images_per_prompt == 1:
        del wanted["num_images_per_prompt"]
    negative = []
    if generation.negative_prompt is not None:
        text = literal(generation.negative_prompt)
        negative = [
            f"negative_prompt=[{text}] * {len(texts)}" if batch else f"negative_prompt={text}"
        ]
    generator = f'generator=torch.Generator("cpu").manual_seed({generation.seed})'
    return [prompt, *negative, *keywords(wanted), generator]
