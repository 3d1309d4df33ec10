"""Whether passes that only reorder arithmetic stay as near to fp64 as the pipeline without them.

The rule is the one that PyTorch holds its own compiler to (`same` in torch/_dynamo/utils.py,
https://github.com/pytorch/pytorch): the root mean square error against fp64 may be twice eager's, three times in half
precision, and 1e-5 more; here that slack is relative to the output's size. It is nothing beside half precision, and in
fp32 it keeps apart what reorders sums from what computes in fewer bits: oneDNN's convolution for channels-last tensors
adds a whole window in one chain where the other one adds by blocks, which costs two to four times the error, 1e-6; TF32
and bf16 cost 1e-3 and more.

Three results of one denoiser call and of one decode are compared: of the optimized pipeline, captured in a real call; of
a baseline, the same weights in the same precision without the passes in question; and of that baseline cast to fp64.
What a model computes in fp32 by its own code (time embeddings, rotary embeddings) stays fp32 in the fp64 result too.
"""

from __future__ import annotations

import functools
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fastdiff.choices.compose import with_option
from fastdiff.choices.options import default_options, option_files
from fastdiff.config import Generation, RunConfig, Slot
from fastdiff.errors import FastdiffError, first_line
from fastdiff.measuring.fields import ExactCall, Exactness
from fastdiff.measuring.parts import replaced
from fastdiff.models.pictures import draw
from fastdiff.models.sources import model_of
from fastdiff.passes.base import Fidelity, Option
from fastdiff.planning.plan import Plan, make_plan

if TYPE_CHECKING:
    import torch

FACTOR, FACTOR_IN_HALF_PRECISION = 2.0, 3.0
"""How many times the baseline's error is allowed."""

SLACK = 1e-5
"""What is allowed beside it, as a part of the output's root mean square: a tenth of PyTorch's `tol` of 1e-4."""

_SLACK_AS_TEXT = f"{SLACK:g}".replace("e-0", "e-")

_FP64_BYTES = 8 * 1.2
"""A parameter: its number, and a fifth for activations."""

Build = Callable[[Plan, Callable[[str], None]], Any]
"""fastdiff.planning.build.build: returns something whose `pipeline` is the built pipeline."""


# What is held to be exact ----------------------------------------------------------------------------


def exact_choices(run: RunConfig) -> dict[str, str]:
    """What was chosen beside the defaults and claims to be exact: by slot, as typed."""
    found = {}
    for slot, name, option in run.options():
        if isinstance(option, Option) and (passes := option.passes()):
            typed = _typed(slot, name, option)
            if typed and all(p.fidelity is Fidelity.EXACT for p in passes):
                found[slot] = typed
    return found


def _typed(slot: str, name: str, option: Slot) -> str:
    """An option as typed, or the keys that differ where it is the slot's default; empty if none do."""
    default = default_options()[slot]
    if name != default:
        return f"{slot}={name}"
    usual = option_files()[slot][default].option()
    keys = [f.name for f in fields(option) if getattr(option, f.name) != getattr(usual, f.name)]
    return ", ".join(f"{slot}.{key}={str(getattr(option, key)).lower()}" for key in keys)


def why_not(plan: Plan) -> str | None:
    """Why this run has nothing that could be checked, without computing anything; None if it has."""
    run = plan.setting.run
    for slot, name, option in run.options():
        for pass_ in option.passes() if isinstance(option, Option) else ():
            if pass_.fidelity is Fidelity.LOSSY:
                own = isinstance(pass_, Option)
                chosen = f"{slot}={name}" if own else f"{pass_.key} ({pass_.does})"
                return f"{chosen} is lossy: there is no exact value to hold it to"
    if not exact_choices(run):
        return "nothing exact was applied"
    if plan.device == "mps":
        return "mps has no fp64"
    if plan.setting.denoiser is None:
        return "this pipeline has no denoiser that is known"
    return None


def baseline_of(plan: Plan) -> Plan:
    """The plan without what is to be checked: each such slot's default in its place. Raises PlanError."""
    run = plan.setting.run
    for slot in exact_choices(run):
        run = with_option(run, slot, default_options()[slot])
    return make_plan(run, plan.setting.environment, model_of(run).facts())


def _changed_parts(plan: Plan) -> set[str]:
    """Names of the components that exact choices change."""
    chosen = {slot: getattr(plan.setting.run, slot) for slot in exact_choices(plan.setting.run)}
    keys = {pass_.key for option in chosen.values() for pass_ in option.passes()}
    return {name for step in plan.steps if step.pass_.key in keys for name in step.components}


# Arithmetic ------------------------------------------------------------------------------------------


def _may_round(plan: Plan) -> bool:
    """Whether cuDNN may compute fp32 convolutions of this process in TF32, ten bits of a number instead of 23."""
    import torch

    return plan.device == "cuda" and torch.backends.cudnn.allow_tf32


def _bakes(plan: Plan) -> bool:
    """Whether a pass compiles, so that flags which hold at a later call may come too late."""
    return any(step.pass_.bakes_arithmetic for step in plan.steps)


@contextmanager
def ieee_convolutions(plan: Plan) -> Iterator[None]:
    """Within it, cuDNN computes fp32 convolutions in fp32, where what runs reads its flag at each call.

    With the flag as PyTorch sets it, cuDNN chooses TF32 or fp32 by the layout of the tensors: a choice that only changes
    the layout would be blamed for TF32's error. Compiled code is let alone: a CUDA graph replays the kernels that it
    recorded, and a convolution that Inductor wrote itself has the flag compiled in.
    """
    if not _may_round(plan) or _bakes(plan):
        yield
        return
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


_STRICT = "fp32 convolutions in fp32 for this check alone; the run's own may be in TF32 (cudnn.allow_tf32)"
_LOOSE = (
    "fp32 convolutions may be in TF32 (cudnn.allow_tf32), as compiled: the baseline's error is the larger one "
    "of both memory formats"
)


def arithmetic(plan: Plan) -> str | None:
    """What the check's arithmetic has that the run's has not, in words; None where there is nothing to say."""
    if not _may_round(plan):
        return None
    return _LOOSE if _bakes(plan) else _STRICT


# Capturing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Arguments of a call as they were before it, and what it returned: nests of tensors and plain values.

    random: it drew random numbers, so that calling again gives something else.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    random: bool = False


@dataclass
class Captured:
    """The first denoiser call and the first decode of one call of the optimized pipeline.

    reason: why nothing was captured.
    """

    denoiser: Call | None = None
    decode: Call | None = None
    reason: str | None = None


def capture(pipeline: Any, plan: Plan, generation: Generation) -> Captured:
    """Call the optimized pipeline once and keep what its denoiser and its decode were given and gave.

    Only the first step computes: like calls after it are answered with the first one's result, so that one
    decode costs one step. Holds nothing of the pipeline, which can be dropped afterwards.
    """
    reason = why_not(plan)
    if reason:
        return Captured(reason=reason)
    setting = plan.setting
    assert setting.denoiser is not None  # why_not() saw to it
    decoder = getattr(pipeline, setting.vae.name, None) if setting.vae else None
    with ExitStack() as stack:
        stack.enter_context(ieee_convolutions(plan))
        denoiser = getattr(pipeline, setting.denoiser.name)
        denoised = stack.enter_context(_witnessed(denoiser, "forward", repeat=True))
        decoded: list[Call] = []
        if hasattr(decoder, "decode"):
            decoded = stack.enter_context(_witnessed(decoder, "decode"))
        draw(pipeline, generation)
    return Captured(next(iter(denoised), None), next(iter(decoded), None))


@contextmanager
def _witnessed(module: Any, method: str, repeat: bool = False) -> Iterator[list[Call]]:
    """Within it, the method's first call is kept in the list.

    repeat: later calls with arguments of the same sizes return the first one's result without computing.
    """
    inner = getattr(module, method)
    first: list[Call] = []

    @functools.wraps(inner)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if not first:
            given = _copied((args, kwargs))
            states = _random_states((args, kwargs))
            output = inner(*args, **kwargs)
            moved = states != _random_states((args, kwargs))
            first.append(Call(given[0], given[1], _copied(output), moved))
            return output
        if repeat and _sizes((args, kwargs)) == _sizes((first[0].args, first[0].kwargs)):
            return _copied(first[0].output)
        return inner(*args, **kwargs)

    with replaced(module, method, stand_in):
        yield first


def _copied(values: Any, dtype: torch.dtype | None = None) -> Any:
    """The same nest with its tensors copied, those of floating point cast to dtype."""
    import torch
    from torch.utils import _pytree

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        floats = dtype is not None and tensor.is_floating_point()
        return tensor.detach().to(dtype if floats else tensor.dtype, copy=True)

    return _pytree.tree_map_only(torch.Tensor, copy, values)


def _leaves(values: Any, kind: type) -> list[Any]:
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, kind)]


def _sizes(values: Any) -> list[torch.Size]:
    import torch

    return [tensor.shape for tensor in _leaves(values, torch.Tensor)]


def _random_states(values: Any) -> list[bytes]:
    """States of torch's own generator and of those among the values."""
    import torch

    generators = (torch.default_generator, *_leaves(values, torch.Generator))
    return [bytes(generator.get_state().tolist()) for generator in generators]


def _floats(output: Any) -> list[torch.Tensor]:
    import torch

    return [tensor for tensor in _leaves(output, torch.Tensor) if tensor.is_floating_point()]


# Judging ---------------------------------------------------------------------------------------------


def judge(error: float, baseline_error: float, output_rms: float, dtype: str) -> ExactCall:
    """Hold an error to the rule. dtype: torch's name of the result's number format."""
    half = dtype in ("float16", "bfloat16")
    known = ExactCall(
        error_rmse=_finite(error),
        baseline_error_rmse=_finite(baseline_error),
        output_rms=_finite(output_rms),
        dtype=dtype,
        factor=FACTOR_IN_HALF_PRECISION if half else FACTOR,
    )
    assert known.factor is not None
    if known.baseline_error_rmse is None or known.output_rms is None:
        return replace(known, reason="the baseline itself holds NaN or infinite numbers")
    allowed = known.factor * baseline_error + SLACK * output_rms
    ratio, allowed_ratio = (
        _finite(of / baseline_error) if baseline_error else None for of in (error, allowed)
    )
    return replace(
        known,
        ratio=ratio,
        allowed_rmse=allowed,
        allowed_ratio=allowed_ratio,
        passed=error <= allowed,  # a NaN is no smaller than anything, and so fails
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _compared(optimized: Any, baseline: Any, exact: Any) -> ExactCall:
    """The verdict on an output, from the same output of the baseline and of fp64."""
    import torch

    def numbers(output: Any) -> torch.Tensor:
        return torch.cat([tensor.double().flatten() for tensor in _floats(output)])

    true = numbers(exact)

    def rmse(output: Any) -> float:
        return float((numbers(output) - true).square().mean().sqrt())

    dtype = str(_floats(optimized)[0].dtype).removeprefix("torch.")
    return judge(rmse(optimized), rmse(baseline), float(true.square().mean().sqrt()), dtype)


# Checking --------------------------------------------------------------------------------------------


def check(
    captured: Captured, plan: Plan, build: Build, say: Callable[[str], None] = lambda text: None
) -> Exactness:
    """Compare what was captured with the baseline and with fp64.

    To be called once everything is measured and the optimized pipeline is dropped: it loads the model again.
    """
    result = not_checked(captured.reason, plan)
    if captured.reason:
        return result
    _release(plan.device)
    try:
        reason = _too_large(plan, captured)
        verdicts = {} if reason else _verdicts(captured, plan, build, say)
    except (FastdiffError, OSError, MemoryError, RuntimeError) as error:
        reason, verdicts = _why_it_failed("the baseline can't be built", error), {}
    passed = [v.passed for v in verdicts.values() if v.passed is not None]
    reasons = [f"{name}: {v.reason}" for name, v in verdicts.items() if v.passed is None]
    return replace(
        result,
        checked=bool(passed),
        arithmetic=arithmetic(plan) if passed else None,
        reason=reason if passed or reason else "; ".join(reasons),
        passed=all(passed) if passed else None,
        denoiser=verdicts.get("denoiser"),
        decode=verdicts.get("decode"),
    )


def not_checked(reason: str | None, plan: Plan) -> Exactness:
    """Why nothing was checked, and of what."""
    return Exactness(reason=reason, choices=list(exact_choices(plan.setting.run).values()))


def _verdicts(
    captured: Captured, plan: Plan, build: Build, say: Callable[[str], None]
) -> dict[str, ExactCall]:
    """ExactCalls on the denoiser's call and on the decode. Raises what building the baseline raises."""
    baseline = baseline_of(plan)
    say("loading the model again, for the baseline of the exactness check")
    pipeline = build(baseline, say).pipeline
    setting, changed = plan.setting, _changed_parts(plan)
    named = {"denoiser": setting.denoiser, "decode": setting.vae}
    parts = {key: getattr(pipeline, c.name, None) if c else None for key, c in named.items()}
    del pipeline  # of the model, only the two are needed
    verdicts = {}
    for key, component in named.items():
        call = getattr(captured, key)
        if component is None or call is None:
            verdicts[key] = ExactCall(reason="the pipeline never called it")
        elif component.name not in changed:
            verdicts[key] = ExactCall(reason=f"nothing exact changes the {component.name}")
        elif call.random:
            verdicts[key] = ExactCall(reason="it draws random numbers, and fp64 would draw others")
        else:
            say(f"computing the {key} in fp64")
            verdicts[key] = _verdict(parts.pop(key), key, call, plan)
    return verdicts


def _verdict(part: Any, key: str, call: Call, plan: Plan) -> ExactCall:
    """Call a part of the baseline again, as it is and in fp64; the part is in fp64 afterwards."""
    import torch

    def called(dtype: torch.dtype | None) -> Any:
        function = part if key == "denoiser" else part.decode
        with torch.no_grad():
            return function(*_copied(call.args, dtype), **_copied(call.kwargs, dtype))

    def baselines() -> Iterator[Any]:
        with ieee_convolutions(plan):
            yield called(None)
        if _may_round(plan) and _bakes(plan):
            try:
                part.to(memory_format=torch.channels_last)
            except RuntimeError:  # a part with five-dimensional weights has no such layout
                return
            yield called(None)

    try:
        with _bounded_memory(plan):
            if key == "decode":
                _follow(part, call)
            known = list(baselines())
            part.to(torch.float64)
            exact = called(torch.float64)
            verdicts = [_compared(call.output, baseline, exact) for baseline in known]
            return max(verdicts, key=lambda verdict: verdict.allowed_rmse or -1.0)
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        return ExactCall(reason=_why_it_failed("it can't be called again in fp64", error))


def _follow(vae: Any, call: Call) -> None:
    """Bring a VAE into its latents' format: one that asks for fp32 is converted before each decode."""
    latents = _floats((call.args, call.kwargs))
    if latents and latents[0].dtype != next(vae.parameters()).dtype:
        vae.to(latents[0].dtype)


def _why_it_failed(what: str, error: Exception) -> str:
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    if named or "allocate memory" in str(error):
        return "fp64 doesn't fit: memory ran out while it was computed"
    return f"{what}: {first_line(error, 300)}"


# Memory ----------------------------------------------------------------------------------------------


def _too_large(plan: Plan, captured: Captured) -> str | None:
    """Why fp64 doesn't fit, by the number of weights; None if it does or that isn't known."""
    import torch

    setting, facts = plan.setting, plan.setting.facts
    parameters = facts.parameters if facts else None
    single = [part.parameters or 0 for part in (setting.denoiser, setting.vae) if part]
    free = setting.environment.available_memory_bytes
    if plan.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    if parameters is None or free is None or captured.denoiser is None:
        return None
    baseline = parameters * _floats(captured.denoiser.output)[0].element_size()
    needed = baseline + max(single) * _FP64_BYTES
    if needed <= free:
        return None
    return (
        f"fp64 doesn't fit: baseline and fp64 need about {needed / 1e9:.1f} GB, "
        f"and {free / 1e9:.1f} GB are free"
    )


@contextmanager
def _bounded_memory(plan: Plan) -> Iterator[None]:
    """Within it, on Linux' CPU, what would need more memory than is free raises instead of ending the process.

    fp64 convolutions have no oneDNN kernel and write out their windows: a large decode needs gigabytes beside its weights.
    """
    free = plan.setting.environment.available_memory_bytes
    if plan.device != "cpu" or sys.platform != "linux" or free is None:
        yield
        return
    import resource

    import psutil

    held = psutil.Process().memory_info()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(
        resource.RLIMIT_AS, (min([held.vms + max(0, free - held.rss), *limits]), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _release(device: str) -> None:
    """Give back what nothing holds any more; what was compiled holds weights until Dynamo forgets it."""
    import torch

    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


# What a person is told -------------------------------------------------------------------------------


def failure(exactness: Exactness) -> str | None:
    """What is wrong and the way out, of what `check` returned; None if it did not fail."""
    if exactness.passed is not False:
        return None
    choices = exactness.choices
    wrong = []
    for name, verdict in (("denoiser", exactness.denoiser), ("decode", exactness.decode)):
        if verdict is None or verdict.passed is not False:
            continue
        if verdict.error_rmse is None:
            wrong.append(
                f"the {name}'s output holds NaN or infinite numbers, the baseline's doesn't"
            )
        elif verdict.ratio is None:
            wrong.append(f"the {name} differs from fp64, the baseline doesn't")
        else:
            wrong.append(
                f"the {name}'s error against fp64 is {verdict.ratio:.1f} times the baseline's, "
                f"allowed are {verdict.factor:g} times and {_SLACK_AS_TEXT} of the output, here "
                f"{verdict.allowed_ratio:.1f} times in all"
            )
    out = "leave one of them out" if len(choices) > 1 else "leave it out"
    return (
        f"{', '.join(choices)}: {'; '.join(wrong)}\n"
        f"  instead: {out}, or quality.exact=false to measure all the same"
    )
