"""Waits for the GPU in one step: what is counted, where it is said to be, and that the mode does not stay on."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiff.config import Generation
from fastdiff.display import words
from fastdiff.measuring.fields import Syncs, WaitingPlace
from fastdiff.measuring.report import blank_report
from fastdiff.measuring.syncs import _place, _shortened, syncs_of_a_step

WAITED = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:152.)"


class FakeCuda:
    """torch's debug mode without a GPU: `wait()` warns as torch does while the mode says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: int = 0) -> None:
        import torch

        self.mode: Any = mode
        self.modes: list[Any] = []
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        # Like what torch does in C++, it has no frame of its own that counts.
        inside: dict[str, Any] = {"__name__": "torch.fake", "cuda": self, "warn": warnings.warn}
        exec(f"def wait():\n    if cuda.mode == 'warn':\n        warn({WAITED!r})\n", inside)
        self.wait: Callable[[], None] = inside["wait"]

    def set(self, mode: Any) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        self.mode = mode
        self.modes.append(mode)


def scheduler_file(folder: Path, cuda: FakeCuda) -> Any:
    """A module of its own that waits in line 2, so that its place can be told."""
    path = folder / "site-packages" / "schedulers" / "waiting.py"
    path.parent.mkdir(parents=True)
    path.write_text("def step():\n    cuda.wait()\n")
    module = types.ModuleType("schedulers.waiting")
    module.__dict__["cuda"] = cuda
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


class Fake:
    """A pipeline that waits at given steps, twice in its scheduler, once in this file."""

    def __init__(self, scheduler: Any, cuda: FakeCuda, error_at: int | None = None) -> None:
        self.scheduler, self.cuda, self.error_at = scheduler, cuda, error_at
        self.calls = 0

    def __call__(
        self,
        prompt: Any = None,
        num_inference_steps: int = 50,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        callback_on_step_end: Any = None,
    ) -> Any:
        self.calls += 1
        for index in range(num_inference_steps):
            self.scheduler.step()
            self.scheduler.step()
            wait_here(self.cuda)
            warnings.warn(f"something else in step {index}", stacklevel=1)
            if index == self.error_at:
                raise RuntimeError("out of steps")
            callback_on_step_end(self, index, 0, {})
        return types.SimpleNamespace(images=[])


def wait_here(cuda: FakeCuda) -> None:
    cuda.wait()


LINE = wait_here.__code__.co_firstlineno + 1


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    return tmp_path


def steps(count: int) -> Generation:
    return Generation(prompt="a ring", steps=count)


def named(place: str) -> str:
    """The place as it is from any of the paths that imports start at."""
    return place.rpartition("/")[2]


def test_the_second_step_is_counted_by_place(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    pipeline = Fake(scheduler_file(site_packages, cuda), cuda)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        found = syncs_of_a_step(pipeline, steps(4), "cuda")

    assert (found.per_step, found.reason) == (3, None)
    scheduler, here = found.places
    assert scheduler == WaitingPlace("schedulers/waiting.py:2", 2)
    assert (named(here.place), here.count) == (f"test_syncs.py:{LINE}", 1)
    assert pipeline.calls == 1
    assert cuda.modes == ["warn", 0]
    # What else is warned of gets through, whether the mode is on or off.
    assert [str(w.message) for w in others if "else" in str(w.message)] == [
        f"something else in step {index}" for index in range(4)
    ]
    assert not [w for w in others if WAITED in str(w.message)]


def test_the_mode_and_the_warnings_are_restored_even_by_an_error(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch, mode=2)
    show, filters = warnings.showwarning, list(warnings.filters)
    pipeline = Fake(scheduler_file(site_packages, cuda), cuda, error_at=1)
    with pytest.raises(RuntimeError, match="out of steps"), pytest.warns(match="something else"):
        syncs_of_a_step(pipeline, steps(4), "cuda")
    assert cuda.modes == ["warn", 2]
    assert warnings.showwarning is show
    assert warnings.filters == filters


@pytest.mark.filterwarnings("ignore")
def test_a_single_step_is_none_to_count(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    pipeline = Fake(scheduler_file(site_packages, cuda), cuda)
    assert syncs_of_a_step(pipeline, steps(1), "cuda") == Syncs(
        reason="a second step is needed, and the pipeline told of 1"
    )
    assert cuda.mode == 0
    assert syncs_of_a_step(pipeline, steps(2), "cuda").per_step == 3


def test_elsewhere_nothing_is_drawn_for_it() -> None:
    def never(**given: Any) -> None:
        raise AssertionError("called")

    assert syncs_of_a_step(never, steps(4), "cpu") == Syncs(reason="no CUDA device: device=cpu")


def test_places_are_named_as_one_would_import_them() -> None:
    import diffusers

    path = Path(diffusers.__file__).parent / "schedulers" / "scheduling_ddim.py"
    assert _shortened(str(path), 342) == "diffusers/schedulers/scheduling_ddim.py:342"
    assert _shortened("/nowhere/to/be/found/generated.py", 7) == "generated.py:7"


def test_frames_of_torch_are_not_the_place() -> None:
    """What waits in torch's own Python was called by somebody."""
    inside: dict[str, Any] = {"__name__": "torch.somewhere", "place": _place}
    exec("def where():\n    return place('torch/somewhere.py', 2)\n", inside)
    here = sys._getframe().f_lineno + 1
    found = inside["where"]()
    assert named(found) == f"test_syncs.py:{here}"


def test_words_and_the_empty_report(shapes_plan: Callable[..., Any]) -> None:
    plan = shapes_plan()
    blank = blank_report(plan.setting.run, plan, [], "now").to_dict()["syncs"]
    assert blank == {"per_step": None, "places": [], "reason": "nothing was measured"}
    places = [{"place": f"a.py:{n}", "count": 5 - n} for n in range(5)]
    assert words.syncs(Syncs.of({"per_step": 15, "places": places})) == (
        "15: a.py:0 (5), a.py:1 (4), a.py:2 (3), 2 more places"
    )
    assert words.syncs(Syncs.of({"per_step": 0, "places": []})) == "none"


@pytest.mark.gpu
def test_a_step_that_waits_is_found_on_a_gpu(shapes_run: Callable[..., Any]) -> None:
    import torch

    ran = shapes_run("device=cuda")
    unet, inner = ran.pipeline.unet, ran.pipeline.unet.forward
    calm = syncs_of_a_step(ran.pipeline, ran.generation, "cuda")

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        sample.sum().item()
        return inner(sample, *args, **kwargs)

    unet.forward = forward
    found = syncs_of_a_step(ran.pipeline, ran.generation, "cuda")
    assert found.per_step == calm.per_step + 1
    assert any("test_syncs.py:" in place.place for place in found.places)
    assert torch.cuda.get_sync_debug_mode() == 0
