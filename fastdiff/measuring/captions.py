"""Whether the embedded model still draws what captions say: a meaning for what a lossy setting costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastdiff.config import Generation, Reference, RunConfig
from fastdiff.measuring.fields import Caption
from fastdiff.models.pictures import draw
from fastdiff.models.shapes.judging import Score, judge
from fastdiff.models.shapes.scenes import Scene, exam_scenes
from fastdiff.models.sources import model_of

if TYPE_CHECKING:
    from PIL.Image import Image

Tell = Callable[[str, int, int], None]
"""Told a phase, and how far it has come: done, of."""

EXAM_SEED = 7
"""Chooses the held-out captions: the first of those that the model's own score is made of."""

OWN, HELD_OUT = "own prompts", "held-out captions"


def caption_quality(
    pipeline: Any, run: RunConfig, pictures: Sequence[Image], tell: Tell
) -> Caption:
    """`quality.caption` of a report: how many pictures are right, or null with the reason.

    With `quality.captions` above 0 so many held-out captions are drawn, in batches of the run's own size, so that
    nothing is compiled anew; otherwise the run's own pictures are judged where their prompts are captions.
    """
    quality = run.quality
    if not isinstance(quality, Reference):
        return Caption(reason="quality=none")
    if not model_of(run).captioned:
        return Caption(reason="only the embedded model, model=shapes, is judged by captions")
    if quality.captions:
        scenes = exam_scenes(quality.captions, EXAM_SEED)
        return _judged(HELD_OUT, _exam(pipeline, run.generation, scenes, tell))
    asked = run.generation
    own = zip(_repeated(asked.prompts, asked.images_per_prompt), pictures, strict=True)
    parsed = ((Scene.parse(prompt), picture) for prompt, picture in own)
    known = [(scene, picture) for scene, picture in parsed if scene]
    if not known:
        return Caption(reason="the prompt is none of the captions that this model was taught")
    return _judged(OWN, known)


def _exam(
    pipeline: Any, asked: Generation, scenes: Sequence[Scene], tell: Tell
) -> list[tuple[Scene, Image]]:
    """Each scene with the pictures drawn for it, another seed for each call.

    A last batch that scenes don't fill is filled with the first ones, whose second pictures nobody looks at.
    """
    batch = len(asked.prompts)
    drawn: list[tuple[Scene, Image]] = []
    for number, at in enumerate(range(0, len(scenes), batch)):
        tell("drawing captions", at, len(scenes))
        chosen = list(scenes[at : at + batch])
        captions = [scene.caption for scene in [*chosen, *(scenes[0],) * (batch - len(chosen))]]
        prompt = captions[0] if isinstance(asked.prompt, str) else captions
        made = draw(pipeline, replace(asked, prompt=prompt, seed=asked.seed + number))
        drawn += zip(_repeated(chosen, asked.images_per_prompt), made, strict=False)
    return drawn


def _repeated(each: Sequence[Any], times: int) -> list[Any]:
    """Prompts in the order of their pictures: all of the first one's, then the next one's."""
    return [one for one in each for _ in range(times)]


def _judged(of: str, drawn: Sequence[tuple[Scene, Image]]) -> Caption:
    scenes = [scene for scene, _ in drawn]
    score = Score.of(scenes, [judge(picture, scene) for scene, picture in drawn])
    return Caption(of, score.pictures, score.right, score.shapes_right, score.fraction, None)
