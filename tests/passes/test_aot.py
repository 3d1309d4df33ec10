"""AOTInductor packages: what is built, what is taken from the cache, and what is not trusted.

Building takes long, so one package of the smallest denoiser is shared; where only the bookkeeping matters, a stand-in
takes the compiler's place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch

from fastdiff.errors import PlanError, RunError
from fastdiff.machine.cache_folder import VARIABLE, cache_folder
from fastdiff.machine.environment import Gpu, this_machine
from fastdiff.machine.files import read_json, write_json
from fastdiff.measuring.observing import compile_counters
from fastdiff.models.pictures import draw
from fastdiff.passes.compile import packages as aot
from fastdiff.passes.compile.packages import (
    MANIFEST,
    MOST,
    PACKAGE,
    Package,
    Packages,
    attention_in,
    weights_digest,
)
from fastdiff.passes.effects import Observed

AOT = ("compile=aot", "compile.targets=[denoiser]")


@pytest.fixture(scope="module")
def folder(smallest_folder: Path) -> Path:
    """Quick to compile."""
    return smallest_folder


@pytest.fixture(scope="module", autouse=True)
def _empty_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="module")
def built(folder: Path, local_run: Any, global_state: Any) -> Any:
    """The run that finds an empty cache."""
    before, graphs = global_state(), compile_counters().graphs
    ran = local_run(folder, *AOT)
    assert global_state() == before
    assert compile_counters().graphs == graphs  # torch.compile had no part in it
    return ran


@pytest.fixture(scope="module")
def eager(folder: Path, local_run: Any) -> Any:
    return local_run(folder)


def packages_of(ran: Any) -> Packages:
    (found,) = (outcome for outcome in ran.built.outcomes if isinstance(outcome, Packages))
    return found


def no_compiler(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("something was compiled")


# A real package -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_run_builds_one_package_and_its_picture_is_the_eager_one(
    built: Any, eager: Any
) -> None:
    (package,) = packages_of(built).loaded
    assert (package.target, package.built, package.notice) == ("denoiser", True, None)
    # Two pictures' latents for guidance, the timestep, and the text.
    assert package.inputs == ("(2, 4, 16, 16) float32", "() float32", "(2, 77, 32) float32")
    assert package.compile_s > package.export_s > 0
    effect = built.effects()["compile.aot"]
    assert (effect.changed, effect.unit, effect.details["cache"]) == (1, "packages", "cold")
    assert str(effect).startswith("compile.aot 1 package, 1 built in ")
    assert effect.details["freezing"] is True
    assert built.psnr_db(eager) > 45  # measured: identical


@pytest.mark.slow
def test_what_torchs_counters_miss_is_in_what_was_observed(built: Any) -> None:
    seen = built.built.observed(Observed())
    assert (seen.graphs, seen.graph_breaks, seen.recompiles) == (1, 0, 0)
    assert seen.cache == "cold"
    assert seen.compile_s > 1


@pytest.mark.slow
def test_a_second_run_takes_the_kept_package_and_compiles_nothing(
    built: Any, folder: Path, local_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    again = local_run(folder, *AOT)
    (package,) = packages_of(again).loaded
    assert (package.built, package.export_s, package.compile_s) == (False, 0.0, 0.0)
    assert str(again.effects()["compile.aot"]) == "compile.aot 1 package, 1 reused"
    seen = again.built.observed(Observed())
    assert (seen.graphs, seen.cache, seen.compile_s) == (1, "warm", 0.0)
    assert again.psnr_db(built) == float("inf")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_another_size_is_another_package(built: Any, eager: Any, local_plan: Any) -> None:
    """A package would take the wrong shape without a word; the first size's one is still used afterwards."""
    plan = local_plan(eager.plan.setting.run.model.path, "generation.width=48")
    generation = plan.setting.run.generation
    (picture,) = draw(built.pipeline, generation)
    assert picture.size == (48, 32)
    first, second = packages_of(built).loaded
    assert second.inputs[0] == "(2, 4, 16, 24) float32"
    assert first.folder != second.folder
    from fastdiff.measuring.quality import compare

    psnr = compare([picture], draw(eager.pipeline, generation)).psnr_db
    assert psnr is None or psnr > 45
    draw(built.pipeline, built.generation)
    assert len(packages_of(built).loaded) == 2


@pytest.mark.slow
def test_the_folder_is_the_users_alone_and_holds_nothing_unfinished(built: Any) -> None:
    package = Path(packages_of(built).loaded[0].folder)
    assert package.parent == cache_folder() / "aot"
    for path in (package, package.parent):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (package / PACKAGE).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in package.iterdir()) == [MANIFEST, PACKAGE]
    assert not list(package.parent.glob(".building-*"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_int8_weights_are_packed_too(folder: Path, local_run: Any, eager: Any) -> None:
    """4 linears: the second of the time embedding, and one in each of the three residual blocks."""
    ran = local_run(folder, *AOT, "quant=int8")
    (package,) = packages_of(ran).loaded
    assert package.built
    assert ran.effects()["quant.int8"].changed == 4
    assert ran.psnr_db(local_run(folder, "quant=int8")) > 45
    assert ran.psnr_db(eager) > 25


# What isn't trusted; a copy of the real package takes the compiler's place ------------------------------


@pytest.fixture
def copied(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """The folder of the package in another cache, and what was built there since."""
    import torch._inductor

    first = Path(packages_of(built).loaded[0].folder)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    (cache / "aot").mkdir(mode=0o700)
    kept = Path(shutil.copytree(first, cache / "aot" / first.name))
    monkeypatch.setenv(VARIABLE, str(cache))
    again: list[str] = []

    def copy(exported: Any, package_path: str, inductor_configs: Any) -> None:
        again.append(package_path)
        shutil.copy(first / PACKAGE, package_path)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", copy)
    return kept, again


def change_content(kept: Path) -> None:
    data = bytearray((kept / PACKAGE).read_bytes())
    data[len(data) // 2] ^= 1
    (kept / PACKAGE).write_bytes(data)


def open_to_others(kept: Path) -> None:
    (kept / PACKAGE).chmod(0o666)


def link_elsewhere(kept: Path) -> None:
    shutil.move(kept, kept.parent / "elsewhere")
    kept.symlink_to(kept.parent / "elsewhere")


def link_package(kept: Path) -> None:
    shutil.move(kept / PACKAGE, kept / "other.pt2")
    (kept / PACKAGE).symlink_to(kept / "other.pt2")


def claim_other_purpose(kept: Path) -> None:
    manifest = read_json(kept / MANIFEST)
    manifest["made_for"]["versions"]["torch"] = "1.0"
    write_json(kept / MANIFEST, manifest)


def lose_manifest(kept: Path) -> None:
    (kept / MANIFEST).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (change_content, "the kept package is not what was written"),
        (open_to_others, "the kept package.pt2 can be written by others"),
        (link_package, "the kept package.pt2 is a link"),
        (claim_other_purpose, "the kept package was made for something else"),
        (lose_manifest, "the kept package can't be read (FileNotFoundError)"),
        (link_elsewhere, "is a link"),
    ],
)
def test_a_package_that_cannot_be_trusted_is_built_again(
    copied: tuple[Path, list[str]], spoil: Any, reason: str, folder: Path, local_run: Any
) -> None:
    kept, again = copied
    spoil(kept)
    (package,) = packages_of(local_run(folder, *AOT)).loaded
    assert package.built
    assert package.notice is not None
    assert package.notice.startswith("built again: ")
    assert reason in package.notice
    assert len(again) == 1
    (next_one,) = packages_of(local_run(folder, *AOT)).loaded
    assert (next_one.built, next_one.notice, len(again)) == (False, None, 1)


@pytest.mark.slow
def test_a_cache_that_others_can_write_loads_nothing(
    copied: tuple[Path, list[str]], built: Any
) -> None:
    kept, again = copied
    kept.parent.chmod(0o777)
    packages = replace(packages_of(built), loaded=[])
    call = packages.serving("denoiser", built.pipeline.unet, type(built.pipeline.unet).forward)
    with pytest.raises(RunError) as refused:
        call()
    assert str(refused.value) == (
        f"compile.aot: {kept.parent} can be written by others, and code would be loaded from there\n"
        f"  instead: chmod go-w {kept.parent}, or compile=default"
    )
    assert again == []


def test_other_weights_are_another_package(folder: Path) -> None:
    import torch
    from torch import nn
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def digest(**changes: Any) -> str:
        torch.manual_seed(0)
        part = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32))
        for name, value in changes.items():
            with torch.no_grad():
                part.state_dict()[name.replace("_", ".", 1)][0] = value
        return weights_digest(part)

    with torch.random.fork_rng():
        assert digest() == digest()
        assert len({digest(), digest(**{"0_bias": 9.0}), digest(**{"1_running_mean": 9.0})}) == 3
        rounded = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            part = nn.Sequential(nn.Linear(32, 32))
            quantize_(part, Int8WeightOnlyConfig(set_inductor_config=False))
            rounded.append(weights_digest(part))
    assert rounded[0] == rounded[1] != rounded[2]


# Which package answers a call; the graph itself takes the package's place -------------------------------


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packages:
    from contextlib import nullcontext

    def build(folder: Path, made_for: Any, graph: Any, tensors: Any, options: Any) -> Package:
        return Package(
            made_for["target"], (), True, 1.0, 2.0, 3, {"flash": 2}, str(folder), None, graph
        )

    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(aot, "_build", build)
    return Packages("compile.aot", {}, {}, nullcontext)


def part_and_call(packages: Packages) -> Any:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    class Part(torch.nn.Module):
        def forward(self, x: Any, added: Any = None, twice: bool = False, whole: Any = None) -> Any:
            out = x + added["more"] if added else x
            out = 2 * out if twice else out
            return UNet2DConditionOutput(sample=out) if whole else (out,)

    part = Part()
    return packages.serving("denoiser", part, part.forward)


def test_shapes_formats_and_constants_choose_the_package(packages: Packages) -> None:
    import torch

    call, x = part_and_call(packages), torch.ones(2, 3)
    counts = []
    for args, kwargs in (
        ((x,), {}),
        ((x + 1,), {}),
        ((x.t().contiguous().t(),), {}),
        ((torch.ones(3, 3),), {}),
        ((x.double(),), {}),
        ((x,), {"twice": True}),
        ((x,), {"twice": 1}),
        ((x,), {"added": {"more": x}}),
        ((x,), {}),
    ):
        call(*args, **kwargs)
        counts.append(len(packages.loaded))
    assert counts == [1, 1, 1, 2, 3, 4, 5, 6, 6]
    assert len({package.folder for package in packages.loaded}) == 6


def test_the_output_is_what_the_function_would_give(packages: Packages) -> None:
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    call, x = part_and_call(packages), torch.ones(2, 3)
    (out,) = call(x, added={"more": x}, twice=True)
    assert out.tolist() == (4 * x).tolist()
    assert isinstance(call(x, whole=True), UNet2DConditionOutput)


def test_too_many_inputs_and_inexportable_ones_are_errors(packages: Packages) -> None:
    import torch

    call = part_and_call(packages)
    with pytest.raises(RunError) as refused:
        call(torch.ones(1), whole=object())
    assert str(refused.value) == (
        "compile.aot: denoiser is called with an argument of type object, which can't be exported\n"
        "  instead: compile=default"
    )
    for size in range(MOST):
        call(torch.ones(size + 1))
    with pytest.raises(RunError) as refused:
        call(torch.ones(MOST + 1))
    assert str(refused.value) == (
        "compile.aot: denoiser was called with more than 8 different shapes or constants, and each would be "
        "a package of its own\n"
        "  instead: compile=dynamic"
    )


def test_attention_that_the_profiler_misses_is_read_from_the_package(tmp_path: Path) -> None:
    import zipfile

    call = "    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu(buf1));\n"
    other = "void cpp_fused__scaled_dot_product_flash_attention_for_cpu_3(const float* in_ptr0);\n"
    with zipfile.ZipFile(tmp_path / PACKAGE, "w") as archive:
        archive.writestr("package/data/aotinductor/model/c7.wrapper.cpp", other + 14 * call)
        archive.writestr("package/data/aotinductor/model/c7.kernel.cpp", other)
    assert attention_in(tmp_path / PACKAGE) == {"flash": 14}


def test_what_the_profiler_saw_comes_first(packages: Packages) -> None:
    import torch

    part_and_call(packages)(torch.ones(1))
    assert packages.observed(Observed()).kernels == {"flash": 2}
    assert packages.observed(Observed(kernels={"math": 1})).kernels == {"math": 1}


def test_nothing_called_is_no_effect(packages: Packages) -> None:
    assert packages.effect(Observed()).empty
    assert packages.observed(Observed()) == Observed()


# Keeping ------------------------------------------------------------------------------------------


def unfinished_in(folder: Path, content: str) -> Path:
    unfinished = folder / f".building-{content}"
    unfinished.mkdir(parents=True)
    (unfinished / PACKAGE).write_text(content)
    return unfinished


def test_a_whole_package_takes_the_place_of_what_lay_there(tmp_path: Path) -> None:
    place = tmp_path / "0123"
    for content in ("first", "second"):
        assert aot._keep(unfinished_in(tmp_path, content), place) is None
        assert (place / PACKAGE).read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["0123"]


def test_a_quicker_process_or_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(os, "replace", fail)
    assert aot._keep(unfinished_in(tmp_path, "x"), tmp_path / "0123") == (
        "not kept: Directory not empty"
    )


def test_what_a_crash_left_goes_a_day_later(tmp_path: Path) -> None:
    old, new = unfinished_in(tmp_path, "old"), unfinished_in(tmp_path, "new")
    os.utime(old, (0, 0))
    aot._sweep(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


# Planning -------------------------------------------------------------------------------------------


def refused_for(*overrides: str) -> Any:
    with pytest.raises(PlanError) as refused:
        conftest.plan_of("device=cpu", *overrides)
    return refused.value.problems


def test_a_cache_folder_that_cannot_be_trusted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    monkeypatch.setenv(VARIABLE, str(open_folder))
    (problem,) = refused_for("compile=aot")
    assert problem.choice == "compile=aot"
    assert problem.reason == (
        f"keeps its packages in {open_folder}, which can be written by others, and code would be loaded from there"
    )
    assert problem.instead == (
        f"chmod go-w {open_folder}, or FASTDIFF_CACHE_DIR=DIR, a folder of your own"
    )
    assert conftest.plan_of("device=cpu", "compile=default").steps


def test_a_cache_folder_that_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "cache"))
    rates, problem = refused_for("compile=aot")
    assert rates.choice == f"{VARIABLE}={tmp_path / 'file' / 'cache'}"
    assert problem.reason == (
        f"keeps its packages in {tmp_path / 'file' / 'cache'}, which can't be looked at (Not a directory)"
        ", and code would be loaded from there"
    )
    assert problem.instead == "FASTDIFF_CACHE_DIR=DIR, a folder of your own"


def test_a_file_in_the_place_of_the_cache_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    _, problem = refused_for("compile=aot")
    assert problem.reason == (
        f"keeps its packages in {tmp_path / 'file'}, which is a file, not a folder"
    )
    assert problem.instead == "FASTDIFF_CACHE_DIR=DIR, a folder of your own"


def test_kernels_are_tried_out_only_where_that_is_asked_for(
    folder: Path, local_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.planning.build import build

    def inductors(*overrides: str) -> Any:
        """The options that a package would be built with, and what it is made for."""
        with monkeypatch.context() as patch:
            seen: list[Packages] = []
            serving = Packages.serving

            def noted(self: Packages, *args: Any) -> Any:
                seen.append(self)
                return serving(self, *args)

            patch.setattr(Packages, "serving", noted)
            build(local_plan(folder, *AOT, *overrides))
        return seen[0]

    plain, tuned = inductors(), inductors("compile.max_autotune=true")
    assert "max_autotune" not in plain.options
    assert tuned.options == {**plain.options, "max_autotune": True}
    assert tuned.made_for != plain.made_for  # a package of its own


def test_on_cuda_a_packages_weights_are_torchs_allocators_so_that_peaks_hold_them(
    folder: Path, local_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default a package allocates its constants with cudaMalloc (RAII_gpuMalloc in aoti_runtime/model_base.h)."""
    import torch._inductor.config as inductor
    from torch._inductor.cpp_builder import get_caching_allocator_macro

    from fastdiff.passes.base import Context

    def options(device: str) -> dict[str, Any]:
        setting = replace(local_plan(folder, *AOT).setting, device=device)
        found = setting.run.compile.apply(SimpleNamespace(), Parts(setting))
        return dict(found.options)

    class Parts(Context):
        def parts(self, pipeline: Any, names: Any) -> dict[str, Any]:
            return {}

    key = "aot_inductor.weight_use_caching_allocator"
    assert key not in options("cpu")
    on_cuda = options("cuda")
    assert on_cuda[key] is True
    # What torch makes of the key: a definition that the package's runtime is compiled with.
    assert get_caching_allocator_macro() == []
    with inductor.patch({key: True}):
        assert get_caching_allocator_macro() == [" AOT_INDUCTOR_USE_CACHING_ALLOCATOR"]
    runtime = Path(torch.__file__).parent / "include/torch/csrc/inductor/aoti_runtime/model_base.h"
    assert "#ifdef AOT_INDUCTOR_USE_CACHING_ALLOCATOR" in runtime.read_text()


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_torchs_peaks_hold_a_packages_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import Ran, plan_of

    from fastdiff.measuring.memory import weight_bytes
    from fastdiff.models.given import modules_of

    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    words = ("device=cuda", "generation.steps=2", "compile=aot", "compile.targets=[denoiser]")
    before = torch.cuda.memory_allocated()
    ran = Ran(plan_of(*words))
    own = weight_bytes(modules_of(ran.pipeline).values())["device"]
    packaged = weight_bytes([ran.pipeline.unet])["device"]
    assert torch.cuda.memory_allocated() - before > own + 0.9 * packaged


def test_what_a_package_depends_on_beside_weights_and_inputs(
    tmp_path: Path, folder: Path, local_plan: Any
) -> None:
    from fastdiff.passes.compile.aot import _made_for

    def made_for(*overrides: str, **machine: Any) -> Any:
        setting = local_plan(folder, *AOT, *overrides).setting
        environment = replace(this_machine(), **machine)
        return _made_for(replace(setting, environment=environment), {})

    plain = made_for()
    same = ("generation.steps=3", "bench=once", "compile.cache_dir=inductor", "quality=none")
    assert made_for(*same) == plain
    for other in ("precision=bf16", "quant=int8", "memory_format=channels_last"):
        assert made_for(other) != plain
    assert made_for(cpu_flags=frozenset({"avx2"})) != plain
    assert made_for(versions={"torch": "1.0"}) != plain


def test_a_package_is_for_the_gpu_that_is_used_however_many_are_visible(
    folder: Path, local_plan: Any
) -> None:
    from fastdiff.passes.compile.aot import _made_for

    setting = local_plan(folder, *AOT).setting
    h200, l4 = Gpu("NVIDIA H200", (9, 0), 1), Gpu("NVIDIA L4", (8, 9), 1)

    def made_for(*gpus: Gpu) -> Any:
        return _made_for(replace(setting, environment=replace(this_machine(), gpus=gpus)), {})

    assert made_for(h200, l4) == made_for(h200)
    assert made_for(l4, h200) == made_for(l4) != made_for(h200)


# A script's own packages ---------------------------------------------------------------------------


def test_a_script_builds_a_package_for_every_dtype_and_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A package given another dtype reads its bytes as its own, and one given another constant keeps the first."""
    import functools

    from torch.utils._pytree import tree_flatten, tree_unflatten

    from fastdiff.passes.compile.aot import _AHEAD_OF_TIME

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
            return x * scale

    built: list[Any] = []
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", lambda p, **_: p)
    monkeypatch.setattr(
        torch._inductor, "aoti_load_package", lambda p: built.append(p) or p.module()
    )
    names: dict[str, Any] = {
        "torch": torch,
        "functools": functools,
        "tree_flatten": tree_flatten,
        "tree_unflatten": tree_unflatten,
    }
    exec(_AHEAD_OF_TIME.replace(", CONFIGS", ""), names)
    module = Twice()
    call = names["ahead_of_time"](module, module.forward)
    ones = torch.ones(2, 3)
    assert [call(ones, scale).mean().item() for scale in (2.0, 3.0, 2.0)] == [2.0, 3.0, 2.0]
    assert len(built) == 2
    assert call(ones.half(), 2.0).dtype == torch.float16
    assert len(built) == 3
