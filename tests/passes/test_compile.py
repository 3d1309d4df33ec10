"""Compiling: what was compiled, what was frozen, and that the flags hold at the calls and nowhere else.

Compiling takes long, so compiled pipelines are shared: a whole tiny denoiser, its repeated blocks, and the smallest
denoiser for all sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from imagined import planned, problems

from fastdiff.choices.compose import compose
from fastdiff.errors import NoEffectError, PlanError, RunError, UsageError
from fastdiff.machine.environment import this_machine
from fastdiff.measuring.observing import compile_counters
from fastdiff.models.pictures import draw
from fastdiff.passes.base import Setting
from fastdiff.passes.compile.regional import Regional
from fastdiff.passes.compile.whole import (
    CompiledGraphs,
    Default,
    Dynamic,
    MaxAutotune,
    ReduceOverhead,
)
from fastdiff.passes.effects import Observed


def _forget_compiled() -> None:
    """Start counting anew; Dynamo's and Inductor's counts are those of the process."""
    import torch._dynamo
    from torch._dynamo.utils import clear_compilation_metrics, counters

    torch._dynamo.reset()
    clear_compilation_metrics()
    counters.clear()


def packed_weights() -> int:
    """Weights that Inductor repacked for the processor's library, which it can do to constants only."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"])


@dataclass
class Compiled:
    """A compiled run, with what was true around and after its first call."""

    ran: Any
    observed: Observed
    packed: int
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an earlier run of the tests compiled must not make this one warm.

    One folder for the whole file: Inductor precompiles its headers once a folder, and that alone takes seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def _compiled(
    folder: Path, run: Callable[..., Any], global_state: Any, *overrides: str
) -> Iterator[Compiled]:
    _forget_compiled()
    before = global_state()
    ran = run(folder, *overrides)
    yield Compiled(ran, compile_counters(), packed_weights(), before, global_state())
    _forget_compiled()


@pytest.fixture(scope="module")
def whole(sd_folder: Path, local_run: Any, global_state: Any) -> Iterator[Compiled]:
    """compile=default of the tiny SD pipeline's denoiser."""
    targets = "compile.targets=[denoiser]"
    yield from _compiled(sd_folder, local_run, global_state, "compile=default", targets)


@pytest.fixture(scope="module")
def regional(sd_folder: Path, local_run: Any, global_state: Any) -> Iterator[Compiled]:
    """compile=regional of the same."""
    yield from _compiled(sd_folder, local_run, global_state, "compile=regional")


@pytest.fixture(scope="module")
def eager(sd_folder: Path, local_run: Any) -> Any:
    return local_run(sd_folder)


# The whole denoiser, frozen -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_denoiser_is_one_graph_without_breaks(whole: Compiled, eager: Any) -> None:
    seen = whole.observed
    assert (seen.graphs, seen.graph_breaks, seen.recompiles) == (1, 0, 0)
    assert seen.break_reasons == []
    assert seen.cache == "cold"
    assert seen.compile_s > 1
    assert whole.ran.psnr_db(eager) > 40


@pytest.mark.slow
def test_the_effect_names_graphs_breaks_cache_and_freezing(whole: Compiled) -> None:
    outcome = next(o for o in whole.ran.built.outcomes if isinstance(o, CompiledGraphs))
    effect = outcome.effect(whole.observed)
    assert str(effect) == "compile.default 1 graph, 0 breaks"
    assert effect.details["components"] == ["unet"]
    assert effect.details["freezing"] is True
    assert effect.details["cache"] == "cold"
    assert effect.details["regions"] == 1


@pytest.mark.slow
def test_freezing_bakes_the_weights_into_the_graph(whole: Compiled, eager: Any) -> None:
    """A later change of the matrices doesn't reach a frozen graph, but does reach an eager module."""
    import torch
    from torch import nn

    unet = whole.ran.pipeline.unet
    if whole.packed == 0:
        pytest.skip("this build of torch packs no linear weights, so constants share their memory")
    linears = [m for m in unet.modules() if isinstance(m, nn.Linear)]
    assert whole.packed == len(linears)
    kept = [module.weight.detach().clone() for module in linears]
    first = draw(whole.ran.pipeline, whole.ran.generation)
    try:
        with torch.no_grad():
            for module in linears:
                module.weight.zero_()
        second = draw(whole.ran.pipeline, whole.ran.generation)
    finally:
        with torch.no_grad():
            for module, weight in zip(linears, kept, strict=True):
                module.weight.copy_(weight)
    assert [p.tobytes() for p in first] == [p.tobytes() for p in second]
    assert compile_counters().graphs == whole.observed.graphs


@pytest.mark.slow
def test_a_second_call_compiles_nothing(whole: Compiled) -> None:
    draw(whole.ran.pipeline, whole.ran.generation)
    seen = compile_counters()
    assert (seen.graphs, seen.recompiles) == (whole.observed.graphs, 0)


@pytest.mark.slow
def test_compiling_leaves_the_process_as_it_was(whole: Compiled) -> None:
    assert whole.after == whole.before
    assert whole.before["inductor"]["freezing"] is False


@pytest.mark.slow
def test_the_vae_stays_eager_when_it_is_no_target(whole: Compiled) -> None:
    vae = whole.ran.pipeline.vae
    assert "decode" not in vars(vae)
    assert whole.ran.plan.steps[-1].components == ("unet",)


@pytest.mark.slow
def test_compiled_attention_kernels_are_still_seen_or_said_to_be_inlined(whole: Compiled) -> None:
    """8 attention modules; Inductor calls the same kernel, or writes attention out."""
    kernels = whole.ran.kernels()
    assert kernels in ({"flash": 8}, {})


# Repeated blocks ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_repeated_blocks_share_one_graph(regional: Compiled, eager: Any) -> None:
    """1 transformer block on the way down, 1 in the middle, 2 on the way up, all of one shape."""
    outcome = next(o for o in regional.ran.built.outcomes if isinstance(o, CompiledGraphs))
    effect = outcome.effect(regional.observed)
    assert effect.details["regions"] == 4
    assert (regional.observed.graphs, regional.observed.graph_breaks) == (1, 0)
    assert regional.observed.recompiles == 0
    assert regional.observed.cache == "cold"
    assert str(effect) == "compile.regional 1 graph, 0 breaks"
    assert regional.ran.psnr_db(eager) > 40


@pytest.mark.slow
def test_only_the_repeated_blocks_are_compiled_and_not_frozen(regional: Compiled) -> None:
    from diffusers.models.attention import BasicTransformerBlock

    unet = regional.ran.pipeline.unet
    compiled = [m for m in unet.modules() if m._compiled_call_impl is not None]
    assert [type(module) for module in compiled] == [BasicTransformerBlock] * 4
    assert regional.packed == 0
    assert regional.after == regional.before


@pytest.mark.exhaustive
@pytest.mark.slow
def test_another_size_compiles_once_more_and_a_third_not_at_all(
    regional: Compiled, local_plan: Any, sd_folder: Path, local_run: Any
) -> None:
    """The second size makes the number of tokens a variable of the graph."""
    before = compile_counters()
    pipeline = regional.ran.pipeline
    counts = []
    for width in ("48", "64"):
        plan = local_plan(sd_folder, f"generation.width={width}", "generation.steps=1")
        (picture,) = draw(pipeline, plan.setting.run.generation)
        assert picture.size == (int(width), 32)
        seen = compile_counters()
        counts.append((seen.graphs - before.graphs, seen.recompiles - before.recompiles))
    assert counts == [(1, 1), (1, 1)]
    assert len(seen.break_reasons) == 1


# All sizes at once ----------------------------------------------------------------------------------


SIZES = ((64, 64, 1), (96, 64, 1), (64, 96, 1), (128, 96, 1), (64, 64, 2))
"""Height, width, pictures a call."""


def drawn_like_eager(folder: Path, local_plan: Any, sizes: Any) -> Any:
    """compile=dynamic called with each size, and every picture compared with the eager one."""
    from fastdiff.measuring.quality import compare
    from fastdiff.planning.build import build

    eager, built = build(local_plan(folder)), build(local_plan(folder, "compile=dynamic"))
    for height, width, pictures in sizes:
        size = (f"generation.height={height}", f"generation.width={width}")
        several = f"generation.images_per_prompt={pictures}"
        generation = local_plan(folder, *size, several).setting.run.generation
        psnr = compare(draw(built.pipeline, generation), draw(eager.pipeline, generation)).psnr_db
        assert psnr is None or psnr > 60  # measured: 83 dB and more; an 8-bit step here and there
    return built


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_one_graph_serves_every_size_and_batch(
    smallest_folder: Path, local_plan: Any, global_state: Any
) -> None:
    import torch.fx.experimental._config as shapes

    before = global_state()
    built = drawn_like_eager(smallest_folder, local_plan, SIZES)
    seen = compile_counters()
    assert (seen.graphs, seen.graph_breaks, seen.recompiles) == (1, 0, 0)
    effect = next(o for o in built.outcomes if isinstance(o, CompiledGraphs)).effect(seen)
    assert str(effect) == "compile.dynamic 1 graph, 0 breaks"
    assert effect.details["freezing"] is True
    assert "decode" not in vars(built.pipeline.vae)
    assert shapes.use_duck_shape is True
    assert global_state() == before


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_with_duck_shapes_a_square_picture_would_compile_again(
    smallest_folder: Path, local_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its height and width are one variable then; this is what the flag is for."""
    drawn_like_eager(smallest_folder, local_plan, SIZES[:2])
    seen = compile_counters()
    assert (seen.graphs, seen.recompiles) == (1, 0)
    _forget_compiled()
    monkeypatch.setattr(Dynamic, "around_calls", Default.around_calls)
    drawn_like_eager(smallest_folder, local_plan, SIZES[:2])
    seen = compile_counters()
    assert (seen.graphs, seen.recompiles) == (2, 1)


# accelerate's regions ---------------------------------------------------------------------------------


def optimized(part: Any) -> list[str]:
    """Names of the submodules that torch.compile has wrapped."""
    from torch._dynamo.eval_frame import OptimizedModule

    return [name for name, m in part.named_modules() if isinstance(m, OptimizedModule)]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs as ever, but run by torch itself: Inductor's part takes minutes and is tested above."""
    import torch

    compile_it = torch.compile

    def traced(module: Any, *, options: Any = None, **more: Any) -> Any:
        return compile_it(module, backend="eager", **more)

    monkeypatch.setattr(torch, "compile", traced)
    _forget_compiled()
    yield
    _forget_compiled()


def pending(ran: Any) -> CompiledGraphs:
    (found,) = (o for o in ran.built.outcomes if isinstance(o, CompiledGraphs))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_a_transformers_blocks_and_the_parts_beside_them_are_compiled(
    flux_folder: Path, local_run: Any, global_state: Any
) -> None:
    """Beside 1 double and 2 single blocks: position and time embedding, two input layers, last norm, last layer.

    Each is a graph: the second single block's input lies otherwise in memory than the first one's. Torch's own layers
    share one piece of code to Dynamo, so that the second and third linear layer count as recompiles.
    """
    before = global_state()
    asked = ("qkv=fused", "compile=regions")
    ran = local_run(flux_folder, *asked)
    part = ran.pipeline.transformer
    names = optimized(part)
    assert len(names) == 9
    assert {"transformer_blocks.0", "single_transformer_blocks.0"} <= set(names)
    seen = compile_counters()
    assert (seen.graphs, seen.graph_breaks, seen.recompiles) == (9, 0, 3)
    effect = pending(ran).effect(seen)
    assert str(effect) == "compile.regions 9 graphs, 0 breaks, 3 recompiles"
    assert effect.details["regions"] == 9
    assert sum(getattr(m, "fused_projections", False) for m in part.modules()) == 3
    assert ran.effects(graphs=9)["qkv.fused"].changed >= 3
    assert ran.psnr_db(local_run(flux_folder, "qkv=fused")) == float("inf")
    assert global_state() == before


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_a_vaes_decode_runs_compiled_regions(sd_folder: Path, local_run: Any, eager: Any) -> None:
    asked = ("compile=regions", "compile.targets=[vae_decode]", "attention=math")
    ran = local_run(sd_folder, *asked)
    names = optimized(ran.pipeline.vae)
    assert {"decoder.up_blocks.0", "decoder.up_blocks.1", "post_quant_conv"} <= set(names)
    assert optimized(ran.pipeline.unet) == []
    # First and last convolution, last norm and activation, the convolution before the decoder; in the middle two
    # residual blocks and attention; two blocks on the way up. The encoder's parts are never called.
    seen = compile_counters()
    assert (seen.graphs, seen.graph_breaks) == (5 + 3 + 2, 0)
    assert pending(ran).effect(seen).details["components"] == {"vae": len(names)}
    processors = {type(p).__name__ for p in ran.pipeline.vae.attn_processors.values()}
    assert processors == {"AttnProcessor"}
    assert ran.psnr_db(eager) > 60


def test_accelerate_still_crashes_on_a_unet(sd_folder: Path, local_plan: Any) -> None:
    """As soon as it doesn't, the refusal can go."""
    import torch
    from accelerate.utils import compile_regions
    from diffusers import UNet2DConditionModel

    unet = compile_regions(
        UNet2DConditionModel.from_pretrained(sd_folder / "unet"), backend="eager"
    )
    with pytest.raises(TypeError, match=r"does not support len\(\)"), torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 4, 32))


def test_regions_refuse_what_an_earlier_pass_put_around_a_part(
    flux_folder: Path, local_plan: Any
) -> None:
    from contextlib import nullcontext

    from fastdiff.errors import RunError
    from fastdiff.passes.base import Context
    from fastdiff.passes.wrapping import around_forward
    from fastdiff.planning.build import build

    plan = local_plan(flux_folder, "compile=regions")
    pipeline = build(local_plan(flux_folder)).pipeline
    around_forward(pipeline.transformer, nullcontext)
    with pytest.raises(RunError) as refused:
        plan.setting.run.compile.apply(pipeline, Context(plan.setting))
    assert str(refused.value) == (
        "compile.regions: an earlier pass put something around the forward of transformer, and compile_regions "
        "would lose what it compiles there\n"
        "  instead: compile=regional, or leave the other pass out"
    )


# A cache of one's own ---------------------------------------------------------------------------------


def caches() -> tuple[str | None, str | None]:
    import os

    return os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ.get("TRITON_CACHE_DIR")


def test_the_caches_folder_holds_within_calls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    monkeypatch.chdir(tmp_path)
    before = caches()
    enter = Default(cache_dir="mine").around_calls(on_cpu())
    for _ in range(2):
        with enter():
            assert cache_dir() == str(tmp_path / "mine")
            assert triton_cache_dir(0) == str(tmp_path / "mine" / "triton")
        assert caches() == before
    with pytest.raises(ZeroDivisionError), enter():
        raise ZeroDivisionError
    assert caches() == before


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_folder_is_cold_once_and_inductors_own_stays_empty(tmp_path: Path) -> None:
    """Three processes: a new folder, the same one again, another new one."""
    import os
    import subprocess
    import sys

    code = """if True:
        import sys, torch, torch._inductor.config
        torch._inductor.config.cpp_cache_precompile_headers = False  # they take long, and have their own place
        from fastdiff.measuring.observing import compile_counters
        from fastdiff.choices.compose import compose
        from fastdiff.machine.environment import this_machine
        from fastdiff.passes.base import Setting
        run = compose(["compile=default", "compile.freezing=false", f"compile.cache_dir={sys.argv[1]}"])
        setting = Setting(run, this_machine(), "cpu", None)
        with torch.no_grad():
            run.compile.compiled(lambda x: (x * 3).sin(), setting)(torch.zeros(4))
        print(compile_counters().cache)
        """
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            env=inherited | {"TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout.strip()
        for name in ("one", "one", "other")
    ]
    assert said == ["cold", "warm", "cold"]
    assert (tmp_path / "one" / "fxgraph").is_dir()
    assert [path for path in temporary.glob("torchinductor_*/**/*") if path.is_file()] == []


def test_a_file_where_a_cache_keeps_its_index_is_refused(tmp_path: Path, shapes_plan: Any) -> None:
    (tmp_path / "fxgraph").write_text("")
    with pytest.raises(PlanError) as caught:
        shapes_plan("compile=default", f"compile.cache_dir={tmp_path}")
    (problem,) = caught.value.problems
    assert problem.choice == f"compile.cache_dir={tmp_path}"
    assert problem.reason == "its fxgraph is a file, not a folder"


@pytest.mark.parametrize("held", [True, False])
def test_a_compiler_that_fails_on_a_filled_cache_names_the_cache(
    held: bool, tmp_path: Path
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    if held:
        (tmp_path / "fxgraph").mkdir()
    enter = Default(cache_dir=str(tmp_path)).around_calls(on_cpu())
    with pytest.raises((RunError, BackendCompilerFailed)) as caught, enter():
        raise BackendCompilerFailed(len, RuntimeError("C++ compile error"), None)
    assert isinstance(caught.value, RunError) is held
    if held:
        assert str(caught.value).startswith(
            f"compile.default: compiling failed, and {tmp_path} held compiled code already, which may be damaged\n"
            "  instead: remove that folder, or compile.cache_dir=DIR, an empty one\n"
        )
        assert "C++ compile error" in str(caught.value)


# Flags around the calls, with functions that compile in a second ------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    _forget_compiled()
    yield
    _forget_compiled()


def on_cpu() -> Setting:
    """A plain run's setting, for functions that belong to no pipeline."""
    return Setting(compose([]), this_machine(), "cpu", None)


def flags() -> tuple[bool, bool]:
    import torch._dynamo.config
    import torch._inductor.config

    freezing = torch._inductor.config.freezing
    return freezing, torch._dynamo.config.fail_on_recompile_limit_hit


@pytest.mark.parametrize(
    ("option", "device", "precision", "inside"),
    [
        (Default(), "cpu", "fp32", (True, True)),
        (Default(), "cpu", "bf16", (False, True)),  # this processor has no bf16 arithmetic
        (Default(freezing=True), "cpu", "bf16", (True, True)),
        (Default(freezing=False), "cpu", "fp32", (False, True)),
        (Default(), "cuda", "fp32", (False, True)),
        (Default(freezing=True), "cuda", "fp32", (True, True)),
        (Regional(), "cpu", "fp32", (False, True)),
        (Dynamic(), "cpu", "fp32", (True, True)),
    ],
)
def test_freezing_and_the_recompile_limit_hold_within_calls_alone(
    option: Any, device: str, precision: str, inside: tuple[bool, bool]
) -> None:
    machine = replace(this_machine(), cpu_flags=frozenset({"avx512f"}))
    run = compose([f"precision={precision}"])
    enter = option.around_calls(Setting(run, machine, device, None))
    assert flags() == (False, False)
    for _ in range(2):
        with enter():
            assert flags() == inside
        assert flags() == (False, False)
    with pytest.raises(ZeroDivisionError), enter():
        raise ZeroDivisionError
    assert flags() == (False, False)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_past_the_recompile_limit_a_call_fails_instead_of_going_on_eagerly() -> None:
    import torch
    import torch._dynamo.config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    once, again = torch.zeros(4), torch.zeros(4, dtype=torch.float64)
    function = Default(fullgraph=False).compiled(lambda x: x + 1, on_cpu())
    alone = torch.compile(lambda x: x + 2, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        function(once)
        with pytest.raises(FailOnRecompileLimitHit):
            function(again)
        # What somebody else compiled in this process goes on as torch does: eagerly, with a warning.
        assert alone(once).tolist() == alone(again).tolist() == [2.0] * 4
    assert flags() == (False, False)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_graph_break_is_an_error_unless_fullgraph_is_off() -> None:
    import torch
    import torch._dynamo
    from torch._dynamo.exc import Unsupported

    def broken(x: Any) -> Any:
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    with torch.no_grad():
        with pytest.raises(Unsupported):
            Default().compiled(broken, on_cpu())(torch.zeros(4))
        _forget_compiled()
        out = Default(fullgraph=False).compiled(broken, on_cpu())(torch.zeros(4))
    seen = compile_counters()
    assert out.tolist() == [2.0] * 4
    assert (seen.graphs, seen.graph_breaks, len(seen.break_reasons)) == (2, 1, 1)
    assert "graph_break()" in seen.break_reasons[0]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_recompile_is_counted_with_its_reason() -> None:
    import torch

    function = Default(freezing=False).compiled(lambda x: x + 1, on_cpu())
    with torch.no_grad():
        function(torch.zeros(4))
        function(torch.zeros(4, dtype=torch.float64))
    seen = compile_counters()
    assert (seen.graphs, seen.recompiles, len(seen.break_reasons)) == (2, 1, 1)
    assert "dtype mismatch" in seen.break_reasons[0]
    effect = CompiledGraphs("compile.default", 1, {}).effect(seen)
    assert str(effect) == "compile.default 2 graphs, 0 breaks, 1 recompile"
    assert effect.details["reasons"] == seen.break_reasons


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_second_time_the_cache_is_warm() -> None:
    import torch

    def compile_it() -> str:
        with torch.no_grad():
            Default(freezing=False).compiled(lambda x: (x * 3).sin(), on_cpu())(torch.zeros(4))
        return compile_counters().cache

    assert compile_counters().cache == "none"
    assert compile_it() == "cold"
    _forget_compiled()
    assert compile_it() == "warm"


def tag_of(attention: str) -> Any:
    """A CPU run's setting with another attention option."""
    return Setting(compose([f"attention={attention}"]), this_machine(), "cpu", None)


def test_the_caches_key_names_the_attention_option_within_calls_alone() -> None:
    import torch.compiler.config as config

    enter = Default(freezing=False).around_calls(tag_of("sdpa_math"))
    assert config.cache_key_tag == ""
    with enter():
        assert config.cache_key_tag == "attention=sdpa_math"
    with config.patch(cache_key_tag="mine"):
        with enter():
            assert config.cache_key_tag == "mine,attention=sdpa_math"
        assert config.cache_key_tag == "mine"
    assert config.cache_key_tag == ""


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_warm_cache_gives_no_other_attention_kernel() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention
    from torch.profiler import profile

    x = torch.randn(1, 2, 16, 8)

    def compile_and_run(attention: str, backend: Any) -> tuple[str, bool]:
        _forget_compiled()
        call = Default(freezing=False).compiled(
            lambda x: scaled_dot_product_attention(x, x, x), tag_of(attention)
        )
        with torch.no_grad(), sdpa_kernel(backend):
            call(x)
            with profile() as profiled:
                call(x)
        names = {event.name for event in profiled.events()}
        return compile_counters().cache, any("flash_attention" in name for name in names)

    flash, math = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
    assert compile_and_run("sdpa_flash", flash) == ("cold", True)
    assert compile_and_run("sdpa_math", math) == ("cold", False)
    assert compile_and_run("sdpa", flash) == ("cold", True)
    assert compile_and_run("sdpa_math", math) == ("warm", False)
    assert compile_and_run("sdpa_flash", flash) == ("warm", True)


def test_a_mode_brings_its_own_options_and_the_set_flags() -> None:
    option = Default(conv_1x1_as_mm=True, epilogue_fusion=False)
    assert option.inductor_options() == {
        "cpp_wrapper": False,
        "conv_1x1_as_mm": True,
        "epilogue_fusion": False,
    }
    assert ReduceOverhead().inductor_options()["triton.cudagraphs"] is True
    tuned = MaxAutotune().inductor_options()
    assert (tuned["max_autotune"], tuned["triton.cudagraphs"]) == (True, True)


@pytest.mark.parametrize("choice", ["max_autotune", "max_autotune_no_cudagraphs"])
def test_the_documents_flags_stand_in_max_autotune(choice: str) -> None:
    option: Any = compose([f"compile={choice}"]).compile
    asked = option.inductor_options()
    assert {
        name: asked[name]
        for name in (
            "conv_1x1_as_mm",
            "coordinate_descent_tuning",
            "coordinate_descent_check_all_directions",
            "epilogue_fusion",
        )
    } == {
        "conv_1x1_as_mm": True,
        "coordinate_descent_tuning": True,
        "coordinate_descent_check_all_directions": True,
        "epilogue_fusion": False,
    }


@pytest.mark.parametrize(
    "choice",
    ["default", "reduce_overhead", "max_autotune", "max_autotune_no_cudagraphs", "dynamic", "aot"],
)
def test_every_flag_that_a_mode_sets_is_known_to_inductor(choice: str) -> None:
    import torch._inductor.config

    option: Any = compose([f"compile={choice}"]).compile
    known = torch._inductor.config.get_config_copy()
    assert set(option.inductor_options()) <= set(known)


# What is no effect, and what is refused -------------------------------------------------------------


def test_nothing_compiled_is_an_error(sd_folder: Path, local_plan: Any) -> None:
    from fastdiff.planning.build import build

    built = build(local_plan(sd_folder, "compile=regional"))
    with pytest.raises(NoEffectError) as refused:
        built.effects(Observed(kernels={"flash": 8}))
    assert str(refused.value) == (
        "compile.regional changed 0 graphs: it ran and did nothing on this model\n"
        "  instead: leave it out, or allow_no_effect=true to measure all the same"
    )
    allowed = built.effects(Observed(kernels={"flash": 8}), allow_no_effect=True)
    assert "compile.regional 0 graphs, 0 breaks" in [str(effect) for effect in allowed]


def test_recompiles_are_said() -> None:
    effect = CompiledGraphs("compile.default", 1, {}).effect(Observed(graphs=3, recompiles=2))
    assert str(effect) == "compile.default 3 graphs, 0 breaks, 2 recompiles"


WITH_GRAPHS: Any = functools.partial(CompiledGraphs, "compile.x", 2, {}, cuda_graphs=True)
WHY = "skipping cudagraphs due to mutated inputs"


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        ({"cuda_graphs": 2}, "compile.x 2 graphs, 0 breaks"),
        (
            {"cuda_graphs": 1, "cuda_graphs_skipped": 1},
            "compile.x 2 graphs, 0 breaks, CUDA graphs left out 1 time",
        ),
        (
            {"cuda_graphs": 0, "cuda_graphs_skipped": 2},
            "compile.x 2 graphs, 0 breaks, no CUDA graphs",
        ),
        ({"cuda_graphs": None}, "compile.x 2 graphs, 0 breaks"),
    ],
)
def test_cuda_graphs_that_were_left_out_are_said(observed: dict[str, Any], said: str) -> None:
    effect = WITH_GRAPHS().effect(Observed(graphs=2, cuda_graphs_reasons=[WHY], **observed))
    assert str(effect) == said
    assert not effect.empty
    assert effect.details["cuda_graphs"] == observed["cuda_graphs"]
    assert effect.details["cuda_graphs_reasons"] == [WHY]


def test_a_mode_that_is_nothing_but_cuda_graphs_and_has_none_had_no_effect(
    sd_folder: Path, local_plan: Any
) -> None:
    from fastdiff.planning.build import Built

    pending = WITH_GRAPHS(nothing_else=True)
    built = Built(None, outcomes=[pending])
    left_out = Observed(graphs=2, cuda_graphs=0, cuda_graphs_skipped=2, cuda_graphs_reasons=[WHY])
    with pytest.raises(NoEffectError) as refused:
        built.effects(left_out)
    assert str(refused.value) == (
        f"compile.x changed 0 CUDA graphs: Inductor left all of them out ({WHY}), and the mode has nothing else\n"
        "  instead: compile=default, or allow_no_effect=true to measure all the same"
    )
    (allowed,) = built.effects(left_out, allow_no_effect=True)
    assert str(allowed) == "compile.x 0 CUDA graphs, 0 breaks, no CUDA graphs"
    some = Observed(graphs=2, cuda_graphs=1, cuda_graphs_skipped=1)
    assert [str(effect) for effect in built.effects(some)] == [
        "compile.x 2 graphs, 0 breaks, CUDA graphs left out 1 time"
    ]


@pytest.mark.parametrize(
    ("choice", "device", "calls"),
    [
        ("reduce_overhead", "cuda", 2),
        ("max_autotune", "cuda", 2),
        ("reduce_overhead", "cpu", 1),
        ("default", "cuda", 1),
        ("regional", "cuda", 1),
        ("none", "cuda", 1),
    ],
)
def test_cuda_graphs_are_recorded_in_the_second_call_and_nothing_else_is(
    choice: str, device: str, calls: int, shapes_plan: Any
) -> None:
    from fastdiff.measuring.warm import settling

    plan = shapes_plan(f"compile={choice}")
    found = settling(replace(plan, setting=replace(plan.setting, device=device)))
    why = "CUDA graphs are recorded in the second call"
    assert found == (calls, why if calls > 1 else "")


@pytest.mark.parametrize("flag", ["force_fuse_int_mm_with_mul", "use_mixed_mm"])
def test_flags_that_inductor_does_not_read_are_no_keys(flag: str) -> None:
    """Those of the documents whose readers are gone from torch: nothing calls what would look at them."""
    import torch._inductor

    folder = Path(torch._inductor.__file__).parent
    text = "".join(file.read_text() for file in folder.rglob("*.py"))
    reader = "check_shape_cuda_and_fused_int_mm_mul_enabled"
    assert text.count(reader) == 1, "it is called, and reads force_fuse_int_mm_with_mul"
    assert text.count("config.force_fuse_int_mm_with_mul") == 1
    assert "config.use_mixed_mm" not in text
    with pytest.raises(UsageError, match=f"compile=default has no key '{flag}'"):
        compose(["compile=default", f"compile.{flag}=true"])


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("option", ["default", "reduce_overhead", "regional"])
def test_a_gpu_draws_the_same_picture_compiled(option: str, shapes_plain: Any) -> None:
    """With CUDA graphs, too: a replay must not overwrite what the scheduler still reads."""
    from conftest import Ran, plan_of

    _forget_compiled()
    ran = Ran(plan_of("device=cuda", "generation.steps=4", f"compile={option}"))
    again = draw(ran.pipeline, ran.generation)
    assert ran.psnr_db(shapes_plain) > 25
    assert [p.tobytes() for p in again] == [p.tobytes() for p in ran.pictures]
    _forget_compiled()


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_cuda_graphs_are_counted_and_none_is_left_out() -> None:
    from conftest import Ran, plan_of

    _forget_compiled()
    ran = Ran(plan_of("device=cuda", "generation.steps=4", "compile=reduce_overhead"))
    seen = compile_counters()
    assert seen.cuda_graphs is not None
    assert seen.cuda_graphs >= 2
    effect = ran.effects(kernels={"flash": 1}, graphs=2, cuda_graphs=seen.cuda_graphs)
    assert effect["compile.reduce_overhead"].unit == "graphs"
    _forget_compiled()


def test_a_file_in_the_place_of_a_cache_folder_is_refused() -> None:
    assert problems(planned, f"compile=default compile.cache_dir={__file__}") == [
        (
            f"compile.cache_dir={__file__}",
            "is a file, not a folder",
            "compile.cache_dir=DIR, a folder of your own, or null for Inductor's",
        )
    ]
