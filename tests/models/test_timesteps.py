"""What pipelines of flow matching hand to their schedulers: by their code, and by calling them with each solver."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiff.choices.compose import compose
from fastdiff.machine.environment import this_machine
from fastdiff.models.timesteps import HANDED, Handed
from fastdiff.passes.base import Context, Setting
from fastdiff.passes.scheduler import OPTIONS, FlowScheduler

# By their code --------------------------------------------------------------------------------------------


def handed_by(name: str) -> Handed:
    """What the installed pipeline's code hands over where nobody gives it sigmas or timesteps."""
    import diffusers

    source = textwrap.dedent(inspect.getsource(getattr(diffusers, name)))
    (kind,) = ast.parse(source).body
    assert isinstance(kind, ast.ClassDef)
    call = next(n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__call__")
    text = ast.unparse(call)
    assigned = {
        ast.unparse(target): ast.unparse(node.value)
        for node in ast.walk(call)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if ast.unparse(node.value) not in ("None", "self.scheduler.timesteps")
    }
    calls = [
        ast.unparse(n)
        for n in ast.walk(call)
        if isinstance(n, ast.Call)
        and ast.unparse(n.func) in ("retrieve_timesteps", "self.scheduler.set_timesteps")
    ]
    whole = " ".join(calls)
    sigmas = "array" if "sigmas" in assigned and "sigmas" in whole else ""
    if "get_default_z_image_sigmas" in assigned.get("sigmas", ""):
        sigmas = "list"
    kwargs = assigned.get("scheduler_kwargs", "") if "**scheduler_kwargs" in whole else ""
    mu = "always" if "mu=mu" in whole or "mu" in kwargs else "dynamic" if kwargs else ""
    return Handed(
        sigmas=sigmas,
        but_flow_sigmas="self.scheduler.config.use_flow_sigmas" in text,
        mu=mu,
        timesteps="timesteps" in assigned
        and "np.linspace" in text
        and "timesteps, sigmas" in whole,
        says_where_it_begins="self.scheduler.set_begin_index(0)" in text,
    )


@pytest.mark.parametrize("name", HANDED)
def test_the_table_says_what_the_installed_pipeline_hands_over(name: str) -> None:
    assert HANDED[name] == handed_by(name)


# By calling them ------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT, OTHER, SEEN = noise(1, 5, 32), noise(1, 5, 32, seed=2), torch.ones(1, 5)
ROPE = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
GUIDED = {"prompt_embeds": TEXT, "negative_prompt_embeds": OTHER}
MASKED = GUIDED | {"prompt_attention_mask": SEEN, "negative_prompt_attention_mask": SEEN}


def vae(latent_channels: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=latent_channels,
        **more,
    )


def built(name: str, transformer: Any, vae: Any, scheduler: Any) -> Any:
    """The pipeline without text encoders: what they would say is given to its call."""
    import diffusers

    kind = getattr(diffusers, name)
    parts = inspect.signature(kind.__init__).parameters
    empty = {part: None for part in parts if part.startswith(("tokenizer", "text_encoder"))}
    pipeline = kind(transformer=transformer, vae=vae, scheduler=scheduler, **empty)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        **ROPE,
    )
    given = {"prompt_embeds": TEXT, "pooled_prompt_embeds": noise(1, 32)}
    return built("FluxPipeline", transformer, vae(1, shift_factor=0.0), scheduler), given


def sd3(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
    )
    pooled = {
        name: noise(1, 32) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    }
    pipeline = built("StableDiffusion3Pipeline", transformer, vae(4, shift_factor=0.0), scheduler)
    return pipeline, GUIDED | pooled


def sana(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=16,
    )
    decoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    given = MASKED | {"negative_prompt": None, "use_resolution_binning": False}
    return built("SanaPipeline", transformer, decoder, scheduler), given


def qwen(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, joint_attention_dim=32, **ROPE
    )
    decoder = AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    given = {"prompt_embeds": TEXT, "prompt_embeds_mask": SEEN.long(), "true_cfg_scale": 1.0}
    return built("QwenImagePipeline", transformer, decoder, scheduler), given


def wan(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    decoder = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return built("WanPipeline", transformer, decoder, scheduler), GUIDED | {"num_frames": 5}


def aura(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=32,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=256,
    )
    return built("AuraFlowPipeline", transformer, vae(4), scheduler), MASKED


def zimage(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    given = {"prompt_embeds": [TEXT[0]], "negative_prompt_embeds": [OTHER[0]]}
    return built("ZImagePipeline", transformer, vae(16, shift_factor=0.0), scheduler), given


def cogview4(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    from diffusers import CogView4Transformer2DModel

    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    )
    given = {"prompt_embeds": noise(1, 16, 32), "negative_prompt_embeds": noise(1, 16, 32)}
    return built("CogView4Pipeline", transformer, vae(4), scheduler), given


FAMILIES = (flux, sd3, sana, qwen, wan, aura, zimage, cogview4)
FLOW = {name: kind for name, kind in OPTIONS.items() if issubclass(kind, FlowScheduler)}
STEPS = 4


def own_scheduler(dynamic: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)


def latents_and_calls(pipeline: Any, given: dict[str, Any]) -> tuple[torch.Tensor, list[float]]:
    """What a call draws, and the sizes of the steps between the timesteps of its denoiser's calls."""
    stepped: list[float] = []
    step = pipeline.scheduler.step

    def counted(output: Any, timestep: Any, *others: Any, **more: Any) -> Any:
        stepped.append(float(timestep))
        return step(output, timestep, *others, **more)

    pipeline.scheduler.step = counted
    drawn = pipeline(
        **given,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    found = drawn[0]
    found = torch.stack(list(found)) if isinstance(found, list) else torch.as_tensor(found)
    return found.float(), stepped


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_each_solver_draws_where_it_isnt_refused_and_nowhere_else(
    make: Callable[[Any], tuple[Any, dict[str, Any]]], dynamic: bool
) -> None:
    torch.manual_seed(0)
    pipeline, given = make(own_scheduler(dynamic))
    name = type(pipeline).__name__
    if dynamic and not HANDED[name].mu:  # the model's own can't run either
        with pytest.raises(ValueError, match="`mu` must be passed"):
            latents_and_calls(pipeline, given)
        return
    own, _ = latents_and_calls(pipeline, given)
    drawn = []
    for option in FLOW:
        pipeline.scheduler = own_scheduler(dynamic)
        run = compose(["device=cpu", f"scheduler={option}"])
        solver: Any = run.scheduler
        reason = solver.why_not(name, type(pipeline.scheduler).__name__, pipeline.scheduler.config)
        if reason:
            kind = type(solver)
            undone = SimpleNamespace(scheduler=pipeline.scheduler)
            made = _without_looking(kind, undone)
            pipeline.scheduler = made
            with pytest.raises((ValueError, TypeError, AssertionError)):
                latents_and_calls(pipeline, given)
            continue
        effect = solver.apply(pipeline, Context(Setting(run, this_machine(), "cpu", None)))
        found, stepped = latents_and_calls(pipeline, given)
        drawn.append(option)
        assert (effect.already, effect.changed) == (option == "flow_euler", option != "flow_euler")
        assert len(stepped) == (2 * STEPS - 1 if option == "flow_heun" else STEPS)
        far = float((found - own).norm() / own.norm())
        assert far == 0 if option == "flow_euler" else 0 < far < 0.2, option
    assert drawn == DRAWN[make.__name__, dynamic]


def _without_looking(kind: Any, pipeline: Any) -> Any:
    """The scheduler as the option would make it, though it says that it can't."""
    import diffusers

    config = pipeline.scheduler.config
    return getattr(diffusers, kind.class_name).from_config(config, **kind().added(config, True))


EVERY = ["flow_euler", "flow_heun", "flow_unipc", "flow_dpm_solver"]
DRAWN = {
    ("flux", False): ["flow_euler", "flow_unipc"],
    ("flux", True): ["flow_euler", "flow_unipc", "flow_dpm_solver"],
    ("sd3", False): EVERY,
    ("sd3", True): ["flow_euler", "flow_unipc", "flow_dpm_solver"],
    ("sana", False): EVERY,
    ("qwen", False): ["flow_euler", "flow_unipc"],
    ("qwen", True): ["flow_euler", "flow_unipc"],
    ("wan", False): EVERY,
    ("aura", False): EVERY,
    ("zimage", False): ["flow_euler"],
    ("zimage", True): ["flow_euler"],
    ("cogview4", False): ["flow_euler"],
    ("cogview4", True): ["flow_euler"],
}
