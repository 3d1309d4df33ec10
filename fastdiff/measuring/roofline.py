"""How near a denoiser's step comes to what the machine can do: its arithmetic and its weights against measured rates.

The arithmetic is the model's own, as published: it is counted on a copy of the denoiser without weights, built from its
class and configuration and called with the shapes of this run, guidance's batch included. What compiling, quantizing,
fusing or a step cache makes of it doesn't change the count. A step here is one call of the denoiser.

The limit is a bound from below: a step can't be quicker than its products and its convolutions, each at the machine's rate
for them, nor than reading every weight once. Traffic of activations and arithmetic beside products are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fastdiff.config import Generation
from fastdiff.errors import named_line
from fastdiff.measuring.conditions import BUSY
from fastdiff.measuring.fields import Roofline
from fastdiff.measuring.parts import at_first_denoiser_call, denoiser_name
from fastdiff.measuring.rates import Rates, machine_rates
from fastdiff.models.content import weight_bytes
from fastdiff.models.given import dead_projections
from fastdiff.models.rows import without_numbers, without_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPUTE, MEMORY = "compute", "memory"


@dataclass(frozen=True)
class Work:
    """What one denoiser call has to do.

    flops: of matrix products, convolutions and attention in all layers; a product and an addition are two.
    int8_flops: of these, what layers do whose weights and activations are int8.
    weight_bytes: of the denoiser's parameters as they are kept, without those that fusing left unused.
    dtype: of the arithmetic: the one in which latents come in.
    fp8: whether layers compute in fp8, of which no rate is measured.
    convolution_flops: of `flops`, what convolutions do, those in int8 apart.
    """

    flops: int
    int8_flops: int
    weight_bytes: int
    dtype: torch.dtype
    fp8: bool = False
    convolution_flops: int = 0


def roofline(
    pipeline: Any,
    generation: Generation,
    device: str,
    step_s: float | None,
    *,
    caches: bool,
    other_share: float | None = None,
) -> tuple[Roofline, tuple[str, ...]]:
    """The report's `roofline`, and notices. Figures are None, with the reason, where they can't be had.

    step_s: seconds of one denoiser call. caches: a step cache is on, which leaves work out. other_share: what other
    processes took of this run's processors while calls were timed, from 0 to 1; None where that isn't known.
    """
    denoiser = denoiser_name(pipeline)
    if denoiser is None:
        return Roofline(reason=f"{type(pipeline).__name__} has no denoiser that is known"), ()
    if not step_s:
        return Roofline(reason="the denoiser's calls were not timed"), ()
    try:
        work = work_of_a_step(pipeline, denoiser, generation)
    except Exception as error:  # whatever a class without weights trips over
        return Roofline(reason=f"the arithmetic can't be counted: {named_line(error)}"), ()
    if work is None:
        return Roofline(reason="the denoiser was not called"), ()
    try:
        rates = machine_rates(device, work.dtype)
    except Exception as error:  # without memory for them, for example: everything else is measured
        return Roofline(reason=f"the machine's rates can't be measured: {named_line(error)}"), ()
    crowded = other_share if device == "cpu" and (other_share or 0.0) > BUSY else None
    found = against_limit(work, rates, step_s)
    return replace(found, note=_note(work, caches, crowded)), rates.notices


def against_limit(work: Work, rates: Rates, step_s: float) -> Roofline:
    """A step's seconds against the least that it could take at these rates."""
    int8 = work.int8_flops if rates.int8_ops_per_s else 0
    convolved = work.convolution_flops if rates.convolution_flops_per_s else 0
    compute_s = (work.flops - int8 - convolved) / rates.matmul_flops_per_s
    compute_s += int8 / (rates.int8_ops_per_s or 1.0)
    compute_s += convolved / (rates.convolution_flops_per_s or 1.0)
    read_s = work.weight_bytes / rates.copy_bytes_per_s
    limit_s = max(compute_s, read_s)

    def tera(rate: float | None) -> float | None:
        return rate / 1e12 if rate else None

    return Roofline(
        step_s=step_s,
        flops_per_step=work.flops,
        int8_flops_per_step=int8,
        weight_bytes_per_step=work.weight_bytes,
        dtype=str(work.dtype).removeprefix("torch."),
        matmul_tflops_per_s=tera(rates.matmul_flops_per_s),
        int8_tops_per_s=tera(rates.int8_ops_per_s),
        copy_gb_per_s=rates.copy_bytes_per_s / 1e9,
        rates_measured_at=rates.measured_at,
        convolution_flops_per_step=convolved,
        convolution_tflops_per_s=tera(rates.convolution_flops_per_s),
        limit_s=limit_s,
        bound=COMPUTE if compute_s >= read_s else MEMORY,
        achieved_tflops_per_s=work.flops / step_s / 1e12,
        fraction_of_limit=limit_s / step_s,
        reason=None,
    )


def _note(work: Work, caches: bool, crowded: float | None) -> str | None:
    """What makes a fraction mean less than it seems to. crowded: what others took of the processors, if that is much."""
    said = []
    if crowded is not None:
        said.append(
            f"others took {crowded:.0%} of this run's CPUs while calls were timed, so the fraction may be too low"
        )
    if caches:
        said.append(
            "the step cache leaves work out that is counted, so the fraction may be above 1"
        )
    if work.fp8:
        said.append(
            f"layers compute in fp8, and the limit is that of {str(work.dtype).removeprefix('torch.')}"
        )
    return "; ".join(said) or None


def work_of_a_step(pipeline: Any, denoiser: str, generation: Generation) -> Work | None:
    """What one call of the denoiser has to do in this generation; None if the pipeline never calls it.

    Starts a call of the pipeline and leaves it at the denoiser. Raises whatever its class raises without weights.
    """
    part = getattr(pipeline, denoiser)
    called = at_first_denoiser_call(
        pipeline,
        denoiser,
        generation,
        lambda forward, *given: (without_numbers(given), _dtype(given)),
    )
    if called is None:
        return None
    (args, kwargs), dtype = called
    dead = dead_projections(part)
    int8, fp8 = _dynamic(part)
    flops, by_layer, convolved = count_flops(without_weights(part), args, kwargs)
    used = sum(map(weight_bytes, _weights(part, dead)))
    in_int8 = sum(by_layer.get(path, 0) for path in int8)
    convolved_in_int8 = sum(convolved.get(path, 0) for path in int8)
    convolutions = convolved.get("", 0) - convolved_in_int8
    return Work(flops, in_int8, used, dtype, bool(fp8), convolutions)


def _dtype(given: Any) -> torch.dtype:
    """Of the first tensor in arguments that has a point."""
    import torch
    from torch.utils import _pytree

    tensors = (leaf for leaf in _pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor))
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())


class Counted(NamedTuple):
    """Floating-point operations of a call: all of them, by the path of each submodule, and of convolutions by the same path.

    The path of the module itself is "", and only convolutions have it.
    """

    total: int
    by_path: dict[str, int]
    convolutions: dict[str, int]


def count_flops(module: nn.Module, args: Any, kwargs: Any) -> Counted:
    """Count a call by torch's own counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*args, **kwargs)
    counts: Mapping[str, Mapping[Any, int]] = counter.get_flop_counts()
    whole = type(module).__name__
    by_path = {
        name.removeprefix(f"{whole}."): found
        for name, found in counts.items()
        if name.startswith(f"{whole}.")
    }
    return Counted(
        counter.get_total_flops(),
        {path: sum(found.values()) for path, found in by_path.items()},
        {path: _of_convolutions(found) for path, found in by_path.items()}
        | {"": _of_convolutions(counts.get("Global", {}))},
    )


def _of_convolutions(counts: Mapping[Any, int]) -> int:
    """Of operations counted by torch's operators, those of convolutions, whatever library computes them."""
    return sum(count for operator, count in counts.items() if "convolution" in str(operator))


def _weights(part: nn.Module, dead: set[str]) -> list[torch.Tensor]:
    """Parameters that a call reads, each once."""
    found = {
        id(weight): weight
        for path, module in part.named_modules()
        if path not in dead
        for weight in module.parameters(recurse=False)
    }
    return list(found.values())


def _dynamic(part: nn.Module) -> tuple[set[str], set[str]]:
    """Paths of the layers that compute in int8, and in fp8: weights of that kind whose activations are rounded too."""
    import torch

    int8, fp8 = set[str](), set[str]()
    for path, module in part.named_modules():
        weight = getattr(module, "weight", None)
        rounded = getattr(weight, "qdata", None)
        if rounded is None or getattr(weight, "act_quant_kwargs", None) is None:
            continue
        (int8 if rounded.dtype == torch.int8 else fp8).add(path)
    return int8, fp8
