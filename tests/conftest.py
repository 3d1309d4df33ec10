"""What the tests share: runs planned as the command line plans them, and tiny pipelines of several families.

Nothing here is built unless a test asks for it. Tests that run beside one another (pytest -n 2) have one thread each; otherwise
the number of threads is left alone but in forked runs, and whoever runs the tests chooses with OMP_NUM_THREADS.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

# diffusers reads it when it is imported, and no test may run code that comes with a model.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ.pop(
    "FASTDIFF_CONFIG_DIR", None
)  # a developer's own options are no subject of these tests
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared machine", suppress_health_check=[HealthCheck.too_slow], deadline=None
)
settings.load_profile("shared machine")

if TYPE_CHECKING:
    from fastdiff.runs.forking import Forks
    from fastdiff.runs.process import Worker

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _loggers_that_speak() -> Iterator[None]:
    """Hydra's logging, which a test may set up in this process, disables the loggers that are there, for all later tests."""
    before = logging.root.manager.disable, logging.root.level
    yield
    logging.disable(before[0])
    logging.root.setLevel(before[1])
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs keep for later ones (packages, the machine's rates) goes where nobody else's lies."""
    os.environ["FASTDIFF_CACHE_DIR"] = str(tmp_path_factory.mktemp("fastdiff-cache"))


NEEDS_A_GPU = (
    ("precision", "tf32"),
    ("attention", "sdpa_efficient"),
    ("attention", "sdpa_cudnn"),
    ("attention", "xformers"),
    ("quant", "fp8"),
    ("memory", "model_offload"),
    ("memory", "group_offload"),
)
"""Slot and option of what can't run without an NVIDIA GPU."""

MakePlan = Callable[..., Any]
Run = Callable[..., "Ran"]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none; torch is imported only if such a test was chosen."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


# Runs ----------------------------------------------------------------------------------------------


def plan_of(*overrides: str) -> Any:
    """The plan of a run on this machine, as the command line makes it. Raises PlanError."""
    from fastdiff.choices.compose import compose
    from fastdiff.machine.environment import this_machine
    from fastdiff.models.sources import model_of
    from fastdiff.planning.plan import make_plan

    run = compose(list(overrides))
    return make_plan(run, this_machine(), model_of(run).facts())


@pytest.fixture(scope="session")
def shapes_plan() -> MakePlan:
    """`shapes_plan("quant=int8")`: a run of the embedded model on the CPU, four steps unless said otherwise."""
    return lambda *overrides: plan_of("device=cpu", "generation.steps=4", *overrides)


@pytest.fixture(scope="session")
def local_plan() -> MakePlan:
    """`local_plan(folder, "qkv=fused")`: a run of a saved pipeline on the CPU, 32x32, two steps."""
    return lambda folder, *overrides: plan_of(
        "device=cpu",
        "model=local",
        f"model.path={folder}",
        "generation.steps=2",
        "generation.height=32",
        "generation.width=32",
        *overrides,
    )


class Ran:
    """A built pipeline after its first call: pictures, and what every pass is known to have done."""

    def __init__(self, plan: Any) -> None:
        from fastdiff.models.pictures import draw, float32_noise
        from fastdiff.planning.build import build

        self.plan = plan
        self.built = build(plan)
        self.pipeline = self.built.pipeline
        self.generation = plan.setting.run.generation
        with float32_noise(self.pipeline):
            self.pictures = draw(self.pipeline, self.generation)

    def kernels(self) -> dict[str, int]:
        """Attention kernels of one profiled denoiser call."""
        from fastdiff.measuring.observing import attention_kernels

        denoiser = self.plan.setting.denoiser.name
        return attention_kernels(self.pipeline, denoiser, self.generation).kernels

    def effects(self, **observed: Any) -> dict[str, Any]:
        """Effects by the name of their pass; what was observed of the run may be given."""
        from fastdiff.passes.effects import Observed

        run = self.plan.setting.run
        found = self.built.effects(Observed(**observed), allow_no_effect=run.allow_no_effect)
        return {effect.name: effect for effect in found}

    def psnr_db(self, reference: Ran) -> float:
        """Against another run's pictures; infinite if they are identical."""
        from fastdiff.measuring.quality import compare

        psnr = compare(self.pictures, reference.pictures).psnr_db
        return float("inf") if psnr is None else psnr


@pytest.fixture(scope="session")
def shapes_run(shapes_plan: MakePlan) -> Run:
    """`shapes_run("quant=int8")`: the embedded model built, and called once."""
    return lambda *overrides: Ran(shapes_plan(*overrides))


@pytest.fixture(scope="session")
def local_run(local_plan: MakePlan) -> Run:
    """`local_run(folder, "qkv=fused")`: a saved pipeline built, and called once."""
    return lambda folder, *overrides: Ran(local_plan(folder, *overrides))


@pytest.fixture(scope="session")
def shapes_plain(shapes_plan: MakePlan) -> Ran:
    """The embedded model in fp32 with nothing applied: what pictures are compared with."""
    return Ran(shapes_plan())


@pytest.fixture(scope="session")
def built() -> Callable[[Any], tuple[Any, Any]]:
    """`built(plan)`: the pipeline of a plan, and how it is to be called."""

    def building(plan: Any) -> tuple[Any, Any]:
        from fastdiff.planning.build import build

        return build(plan).pipeline, plan.setting.run.generation

    return building


class Clock:
    """Time that passes only when a test tells it to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of time.perf_counter."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def silent(phase: str, done: int, of: int) -> None:
    """Told of how far something has come; nobody watches."""


@pytest.fixture(scope="session")
def global_state() -> Callable[[], dict[str, Any]]:
    """What a pass must not change: the process-wide settings of torch, Dynamo, Inductor and diffusers."""
    return read_global_state


def read_global_state() -> dict[str, Any]:
    import torch
    import torch._dynamo.config
    import torch._inductor.config
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    from torch.backends import cuda

    return {
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "dynamo": torch._dynamo.config.get_config_copy(),
        "inductor": torch._inductor.config.get_config_copy(),
        "attention backend": _AttentionBackendRegistry._active_backend,
        "attention checks": _AttentionBackendRegistry._checks_enabled,
    }


# Runs in processes of their own --------------------------------------------------------------------

TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""OpenMP has two threads, and they don't spin while they wait: tests may have one processor."""


class TorchServer:
    """Starts processes as process.start does, but as forks of one that has imported torch: each saves six seconds.

    forks: the server. environment: the variables that it was started with. A fork is refused where a variable differs
    that an import may have read, so forks get these, whatever tests and imports have done to ours in the meantime.
    """

    def __init__(self, forks: Forks, environment: Mapping[str, str]) -> None:
        self.forks, self._environment = forks, environment

    def start(
        self,
        module: str,
        folder: Path,
        variables: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
    ) -> Worker:
        from fastdiff.runs import forking

        late = forking._READ_LATE.match
        environment = {name: value for name, value in self._environment.items() if not late(name)}
        environment |= {name: value for name, value in os.environ.items() if late(name)}
        with mock.patch.dict(os.environ, environment, clear=True):
            worker = self.forks.start(module, folder, variables, stdin)
        assert isinstance(worker, forking.Forked) or self.forks.notice, "a variable differs"
        return worker


@pytest.fixture(scope="session")
def torch_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServer]:
    """Runs whose subject is what they report, and not how their process begins.

    tests/test_forking.py shows that they report what fresh processes report. Modules in tests/ can be started too.
    """
    from fastdiff.runs.forking import Forks

    environment = {**os.environ, **TWO_THREADS, "PYTHONPATH": str(TESTS)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    with contextlib.ExitStack() as server:
        with mock.patch.dict(os.environ, environment, clear=True):
            forks = server.enter_context(Forks(tmp_path_factory.mktemp("server") / "imports.txt"))
        yield TorchServer(forks, environment)


# Tiny pipelines ------------------------------------------------------------------------------------


def _clip_tokenizer() -> Any:
    """Knows every printable ASCII character, and so any prompt."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip_text_model(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=32,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def _autoencoder_kl(latent_channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16],
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=latent_channels,
        sample_size=32,
        **more,
    )


def _autoencoder_tiny() -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )


def _stable_diffusion(vae: Any, **more: Any) -> Any:
    """An SD 1.x pipeline with one block of cross-attention on either side."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = _clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        **more,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=_clip_text_model(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _words_tokenizer() -> Any:
    """Knows a few words; every other one is the same to it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "</s>", "<unk>", "a", "red", "circle", "ugly"]
    words = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def _t5_encoder(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    ).eval()


_FLOW_VAE = {"shift_factor": 0.0, "use_quant_conv": False, "use_post_quant_conv": False}
_JOINT = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": [4, 4, 8]}


def _flux(**transformer: Any) -> Any:
    """Another family: a transformer without convolutions, T5 beside CLIP, a scheduler of flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, words = _clip_tokenizer(), _words_tokenizer()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            **_JOINT,
            **transformer,
        ),
        text_encoder=_clip_text_model(tokenizer),
        text_encoder_2=_t5_encoder(words),
        tokenizer=tokenizer,
        tokenizer_2=words,
        vae=_autoencoder_kl(latent_channels=1, **_FLOW_VAE),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _on_t5(pipeline: str, transformer: Any, vae: Any, **more: Any) -> Any:
    """A pipeline of a transformer that reads T5 and steps by flow matching."""
    import diffusers

    words = _words_tokenizer()
    parts = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **more}
    return getattr(diffusers, pipeline)(
        transformer=transformer,
        vae=vae,
        text_encoder=_t5_encoder(words),
        tokenizer=words,
        **parts,
    )


def _chroma() -> Any:
    from diffusers import ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=32,
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
        **_JOINT,
    )
    return _on_t5("ChromaPipeline", transformer, _autoencoder_kl(latent_channels=1, **_FLOW_VAE))


def _qwen_image(**transformer: Any) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = _words_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            **transformer,
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=24,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    **sizes,
                    **heads,
                    "vocab_size": len(words),
                    "rope_parameters": rope,
                    "rope_scaling": rope,
                },
                vision_config={**sizes, "depth": 1, "num_heads": 2, "out_hidden_size": 16},
            )
        ).eval(),
        tokenizer=words,
    )


def _z_image() -> Any:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():  # its constructor leaves them as they lie in memory
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    words = _words_tokenizer()
    return ZImagePipeline(
        transformer=transformer,
        vae=_autoencoder_kl(latent_channels=16, shift_factor=0.0),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=Qwen3Model(
            Qwen3Config(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=len(words),
            )
        ).eval(),
        tokenizer=words,
    )


def _flux2_klein(**pipeline: Any) -> Any:
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = _words_tokenizer()
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=32,
            axes_dims_rope=[4, 4, 4, 4],
            guidance_embeds=False,
        ),
        vae=AutoencoderKLFlux2(
            block_out_channels=[8],
            down_block_types=["DownEncoderBlock2D"],
            up_block_types=["UpDecoderBlock2D"],
            latent_channels=1,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=28,  # it reads the 27th
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=len(words),
            )
        ).eval(),
        tokenizer=words,
        **pipeline,
    )


def _wan() -> Any:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return _on_t5("WanPipeline", transformer, vae)


def _cogvideox() -> Any:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel, DDIMScheduler

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=["CogVideoXDownBlock3D"] * 4,
        up_block_types=["CogVideoXUpBlock3D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return _on_t5("CogVideoXPipeline", transformer, vae, scheduler=DDIMScheduler())


def _ltx() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    once, twice = (1,) * 5, (True, True, False, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=once,
        decoder_layers_per_block=once,
        spatio_temporal_scaling=twice,
        decoder_spatio_temporal_scaling=twice,
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
    )
    return _on_t5("LTXPipeline", transformer, vae)


def _like_stable_diffusion(pipeline: str, **more: Any) -> Any:
    """The parts of the SD 1.x pipeline in a pipeline that wants more inputs."""
    import diffusers

    parts = {**_stable_diffusion(_autoencoder_kl()).components, **more}
    return getattr(diffusers, pipeline)(**parts, requires_safety_checker=False)


def _controlnet() -> Any:
    from diffusers import ControlNetModel

    unet = _stable_diffusion(_autoencoder_kl()).unet
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    return _like_stable_diffusion("StableDiffusionControlNetPipeline", controlnet=controlnet)


def _refiner() -> Any:
    """The embedded model's parts as an SDXL refiner has them: one text encoder, and a picture to begin with."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    from fastdiff.models.sources import SHAPES_DIR

    return StableDiffusionXLImg2ImgPipeline.from_pretrained(
        SHAPES_DIR, text_encoder=None, tokenizer=None, use_safetensors=True
    )


TINY_PIPELINES: Mapping[str, Callable[[], Any]] = {
    "ChromaPipeline": _chroma,
    "CogVideoXPipeline": _cogvideox,
    "FluxPipeline": _flux,
    "FluxPipeline with guidance_embeds": lambda: _flux(guidance_embeds=True),
    "Flux2KleinPipeline": _flux2_klein,
    "Flux2KleinPipeline distilled": lambda: _flux2_klein(is_distilled=True),
    "LTXPipeline": _ltx,
    "QwenImagePipeline": _qwen_image,
    "StableDiffusionPipeline": lambda: _stable_diffusion(_autoencoder_kl()),
    "StableDiffusionPipeline distilled": lambda: _stable_diffusion(
        _autoencoder_kl(), time_cond_proj_dim=8
    ),
    "StableDiffusionControlNetPipeline": _controlnet,
    "StableDiffusionImg2ImgPipeline": lambda: _like_stable_diffusion(
        "StableDiffusionImg2ImgPipeline"
    ),
    "StableDiffusionInpaintPipeline": lambda: _like_stable_diffusion(
        "StableDiffusionInpaintPipeline"
    ),
    "StableDiffusionXLImg2ImgPipeline": _refiner,
    "WanPipeline": _wan,
    "ZImagePipeline": _z_image,
}
"""Pipelines of today's families, a few thousand weights each, by class."""


def _saved(factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Path:
    import torch

    folder = factory.mktemp("models") / name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smallest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose UNet is one block down and one up, without attention: quick to compile."""

    def make() -> Any:
        from diffusers import UNet2DConditionModel

        pipeline = _stable_diffusion(_autoencoder_tiny())
        pipeline.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            cross_attention_dim=32,
            attention_head_dim=2,
        )
        return pipeline

    return _saved(tmp_path_factory, "smallest-sd", make)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved StableDiffusionPipeline, 32x32, a few thousand weights."""
    return _saved(tmp_path_factory, "tiny-sd", lambda: _stable_diffusion(_autoencoder_kl()))


@pytest.fixture(scope="session")
def sd_taesd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an AutoencoderTiny, which has no attention."""
    return _saved(tmp_path_factory, "tiny-taesd", lambda: _stable_diffusion(_autoencoder_tiny()))


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved FluxPipeline: one double and two single blocks."""
    return _saved(tmp_path_factory, "tiny-flux", _flux)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder("WanPipeline")`: one of TINY_PIPELINES, saved; each is made once."""

    @functools.cache
    def folder(name: str) -> Path:
        return _saved(tmp_path_factory, name.replace(" ", "-"), TINY_PIPELINES[name])

    return folder
