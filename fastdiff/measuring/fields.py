"""The fields of `report.json`: a dataclass for each of its parts. Types know the unit, docstrings what a field means.

Other programs read the file, so names are stable: fields are added and never renamed. The site's page of them is made of
what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Annotated, Any, Self, get_args, get_origin, get_type_hints

from fastdiff.machine.files import SCHEMA

Seconds = Annotated[float, "seconds"]
Time = Annotated[str, "time"]
Count = Annotated[int, "count"]
Bytes = Annotated[int, "bytes"]
Share = Annotated[float, "part of 1"]
Operations = Annotated[int, "operations"]
Tflops = Annotated[float, "TFLOP/s"]
Mhz = Annotated[int, "MHz"]

NOTHING = "nothing was measured"


class _Absent:
    """What stands for a field that only some reports have."""

    def __bool__(self) -> bool:
        return False


ABSENT: Any = _Absent()


def name_of(found: Any) -> str:
    """A field's name in the file."""
    return str(found.metadata.get("name") or found.name.rstrip("_"))


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a part's fields, with their units."""
    return get_type_hints(kind, include_extras=True)


def part_in(hint: Any) -> type[Part] | None:
    """The part that a field holds, by itself, in a list, or where it isn't null."""
    inside = (each for arg in get_args(hint) for each in (arg, *get_args(arg)))
    kinds = (
        kind for kind in (hint, *inside) if isinstance(kind, type) and get_origin(kind) is None
    )
    return next((kind for kind in kinds if issubclass(kind, Part)), None)


@dataclass
class Part:
    """Fields that belong together."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """What a file says. What this fastdiff doesn't know is left out; what an older file lacks is None, or empty."""
        kind: type = cls
        hints = hints_of(kind)
        known = {
            f.name: _read(hints[f.name], data.get(name_of(f)))
            for f in fields(cls)
            if f.default is not ABSENT or name_of(f) in data
        }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the file."""
        values = ((name_of(f), getattr(self, f.name)) for f in fields(self))
        return {name: _plain(value) for name, value in values if value is not ABSENT}


def _read(hint: Any, value: Any) -> Any:
    part = part_in(hint)
    if value is None and NoneType not in get_args(hint):
        kind = get_origin(hint) or hint
        return kind() if kind in (list, dict) else part.of({}) if part else None
    if part and isinstance(value, list):
        return [part.of(each) for each in value]
    return part.of(value) if part and isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    return [_plain(each) for each in value] if isinstance(value, list) else value


# The run ----------------------------------------------------------------------------------------------


@dataclass
class Error(Part):
    """message: what went wrong and the way out. log: the log's name in the run's folder.
    log_tail: the log's last lines; empty where the message says all.
    """

    message: str | None = None
    log: str = "log.txt"
    log_tail: list[str] = field(default_factory=list)


@dataclass
class PlannedPass(Part):
    """pass_: the pass's key, `quant.int8`. stage: when it works; the stages' order is that of the list.
    components: the pipeline's components that it changes. does: what it does in this run, in words.
    source: address of the document that it comes from.
    """

    pass_: str
    stage: str
    components: list[str]
    does: str
    source: str | None = None


@dataclass
class PassEffect(Part):
    """pass_: the pass's key. changed: how many of its unit it changed, counted on the pipeline afterwards.
    unit: what was counted: linears, blocks, weights, graphs.
    details: further counts and names. `already` is true where it held before, `flag` where setting a flag is all that the
        pass does.
    """

    pass_: str
    changed: Count
    unit: str
    details: dict[str, Any]


# Times ------------------------------------------------------------------------------------------------


@dataclass
class Warmup(Part):
    """asked: `bench.warmup`. most: how many were allowed.
    calls: calls that were made; more than asked for while they still got faster, and where CUDA graphs are recorded in the
        second call.
    steady: whether calls had stopped getting faster; null where there were too few to tell.
    """

    asked: Count | None = None
    calls: Count = 0
    most: Count | None = None
    steady: bool | None = None


@dataclass
class Times(Part):
    """samples: every one that was timed, in order. median: their median; null if none was timed.
    p10, p90: the 10th and the 90th percentile, interpolated. p99: the 99th; null below 100 samples or 20 calls.
    ci95: both ends of the 95 % bootstrap interval of the median over whole calls; null below 5 calls.
    """

    samples: list[Seconds] = field(default_factory=list)
    median: Seconds | None = None
    p10: Seconds | None = None
    p90: Seconds | None = None
    p99: Seconds | None = None
    ci95: list[Seconds] | None = None


@dataclass
class TimesByCall(Times):
    """calls: how many samples come from each call."""

    calls: list[Count] = field(default_factory=list)


@dataclass
class Compiling(Part):
    """graphs: graphs that were compiled up to the end of the first call.
    graph_breaks: places where Dynamo had to leave a graph.
    recompiles: graphs that were compiled again for other inputs. reasons: why, for breaks and recompiles.
    cache: `warm` if Inductor's cache (or a kept package) gave the code, `cold` if it had to be made, `none` if nothing was
        compiled.
    graphs_while_timing: graphs compiled while calls were timed; above 0 the times hold compiling, and a notice says so.
    cuda_graphs: functions that Inductor replays as CUDA graphs, at the end of the timed calls; null off CUDA, or where that
        can't be told.
    cuda_graphs_skipped: how often Inductor left a CUDA graph out though the mode asks for it.
    cuda_graphs_reasons: why, in its own words.
    cold_compile_s: the quickest cold run of this setting that is on record on this machine.
    saved_s: how much less than that this run took, if it was warm. Below 0 where reading the cache took longer.
    saved_reason: what there is to know of the two figures above, or why they are null.
    resumed: in a ladder's reports only: an attempt that was interrupted had compiled some of it, so `compile_s` is less
        than an empty cache takes.
    cache_shared: in a ladder's reports only: the user named the cache's folder, so other runs may have filled it.
    """

    graphs: Count = 0
    graph_breaks: Count = 0
    recompiles: Count = 0
    reasons: list[str] = field(default_factory=list)
    cache: str = "none"
    graphs_while_timing: Count = 0
    cuda_graphs: Count | None = None
    cuda_graphs_skipped: Count | None = None
    cuda_graphs_reasons: list[str] = field(default_factory=list)
    cold_compile_s: Seconds | None = None
    saved_s: Seconds | None = None
    saved_reason: str | None = NOTHING
    resumed: bool = ABSENT
    cache_shared: bool = ABSENT


# Memory -----------------------------------------------------------------------------------------------


@dataclass
class PeakMemory(Part):
    """device_allocated: peak of tensors on the CUDA device over the whole run; null elsewhere.
    device_reserved: peak of what CUDA's allocator took for them; null elsewhere.
    host: peak of the process's resident memory, mapped files and libraries included.
    """

    device_allocated: Bytes | None = None
    device_reserved: Bytes | None = None
    host: Bytes | None = None


@dataclass
class Places(Part):
    """device: on the device, if that isn't the processor. host: in the host's memory."""

    device: Bytes | None = None
    host: Bytes | None = None


@dataclass
class MemoryInParts(Part):
    """weights: parameters and buffers, each storage once.
    held: what is there between calls beside weights and imported libraries. With `compile=aot` also the packages' own copy
        of the weights.
    activations: the timed calls' peak above what was there before them. On the host a lower bound.
    first_call: the same of the first call.
    compile: by how much the first call's peak is above that of the timed calls.
    compiler_processes: the largest child process, such as a C++ compiler.
    reasons: why there are nulls, by field.
    """

    weights: Places = field(default_factory=Places)
    held: Places = field(default_factory=Places)
    activations: Places = field(default_factory=Places)
    first_call: Places = field(default_factory=Places)
    compile: Places = field(default_factory=Places)
    compiler_processes: Bytes | None = None
    reasons: dict[str, str] = field(default_factory=lambda: {"all": NOTHING})


# Where the time goes ----------------------------------------------------------------------------------


@dataclass
class PartTimes(Part):
    """text_encoders: of one call, in the text encoders. denoiser: in the denoiser, all steps together.
    scheduler, vae: in the component of that name.
    other: the rest: tokenizers, latents, pictures from arrays, Python between the parts.
    whole: the whole call, the one with the median time of those looked at. They come after the timed calls. On mps the
        device is waited for at the ends of each part, which makes it a little longer.
    denoiser_calls: calls of the denoiser in it. calls: calls that were looked at.
    reason: why nothing was timed.
    """

    text_encoders: Seconds | None = None
    denoiser: Seconds | None = None
    scheduler: Seconds | None = None
    vae: Seconds | None = None
    other: Seconds | None = None
    whole: Seconds | None = None
    denoiser_calls: Count | None = None
    calls: Count = 0
    reason: str | None = NOTHING

    @property
    def step_s(self) -> float | None:
        """Seconds of one call of the denoiser."""
        called = self.denoiser and self.denoiser_calls
        return self.denoiser / self.denoiser_calls if called else None  # type: ignore[operator]


@dataclass
class Roofline(Part):
    """step_s: one denoiser call.
    flops_per_step: floating-point operations of that call, counted on a copy of the denoiser without weights, as the model
        was published. A product and an addition are two.
    int8_flops_per_step: of these, what layers do whose weights and activations are int8.
    weight_bytes_per_step: the denoiser's weights as they are kept, which each step reads.
    dtype: number format of the arithmetic.
    matmul_tflops_per_s: this machine's rate of matrix products in that format, measured once.
    int8_tops_per_s: the same for int8 products. copy_gb_per_s: this machine's rate of copying memory, measured once.
    rates_measured_at: when these rates were measured.
    convolution_flops_per_step: of `flops_per_step`, what convolutions do, as far as a rate of them is known; the others are
        taken for products.
    convolution_tflops_per_s: this machine's rate of convolutions in that format and under the flags of this run (cuDNN
        computes those of fp32 numbers in TF32 unless it is told not to); null where torch can't.
    limit_s: the least that the step can take at these rates: its products and convolutions, or reading its weights once.
        Traffic of activations is left out.
    bound: which of the two it is: `compute` or `memory`.
    achieved_tflops_per_s: the step's operations by its seconds.
    fraction_of_limit: limit by step. 1 is out of reach.
    note: what makes the fraction mean less than it seems to. reason: why there are no figures.
    """

    step_s: Seconds | None = None
    flops_per_step: Operations | None = None
    int8_flops_per_step: Operations | None = None
    weight_bytes_per_step: Bytes | None = None
    dtype: str | None = None
    matmul_tflops_per_s: Tflops | None = None
    int8_tops_per_s: Annotated[float, "TOP/s"] | None = None
    copy_gb_per_s: Annotated[float, "GB/s"] | None = None
    rates_measured_at: Time | None = None
    convolution_flops_per_step: Operations | None = None
    convolution_tflops_per_s: Tflops | None = None
    limit_s: Seconds | None = None
    bound: str | None = None
    achieved_tflops_per_s: Tflops | None = None
    fraction_of_limit: Share | None = None
    note: str | None = None
    reason: str | None = NOTHING


@dataclass
class HeavyOperator(Part):
    """operator: its name. calls: how often it was called. self_s: spent in it and in no other inside it.
    share: of all that was measured.
    """

    operator: str
    calls: Count
    self_s: Seconds
    share: Share


@dataclass
class Profile(Part):
    """trace: the trace's file, with `profile=true`; Perfetto opens it. steps: denoising steps of the profiled call.
    measured: whose time the shares are of: the host's, or the device's by operator or by kernel.
    heaviest: the ten operators that took longest by themselves. reason: why there is no profile.
    """

    trace: str | None = None
    steps: Count | None = None
    measured: str | None = None
    heaviest: list[HeavyOperator] = field(default_factory=list)
    reason: str | None = NOTHING


@dataclass
class WaitingPlace(Part):
    """place: file and line, as one would import it. count: how often."""

    place: str
    count: Count


@dataclass
class Syncs(Part):
    """per_step: what made the host wait for the GPU within the second step; null off CUDA.
    places: where, most frequent first. reason: why nothing was counted.
    """

    per_step: Count | None = None
    places: list[WaitingPlace] = field(default_factory=list)
    reason: str | None = NOTHING


# Quality ----------------------------------------------------------------------------------------------


@dataclass
class Picture(Part):
    """path: file in the run's folder. sha256: hash of that file."""

    path: str
    sha256: str


@dataclass
class Caption(Part):
    """of_: what was judged by its captions: the run's own prompts, or held-out captions. On the embedded model only.
    pictures: pictures that were judged. right: of these, with the right colours at the right places.
    shapes_right: of these, with the right shapes. score: right by judged. reason: why nothing was judged.
    """

    of_: str | None = None
    pictures: Count | None = None
    right: Count | None = None
    shapes_right: Count | None = None
    score: Share | None = None
    reason: str | None = NOTHING


@dataclass
class Quality(Part):
    """reference_run_id: the run that drew the reference.
    reference: what the pictures are compared with: `fp32`, a ladder's first rung, a picture's name, or `itself`.
    reason: why nothing was compared. identical: every pixel the same.
    psnr_db: peak signal-to-noise ratio of 8-bit pictures; null if they are identical, where it is infinite.
    ssim: structural similarity. ms_ssim: the same at five scales; needs 176 pixels a side.
    max_abs_difference: largest difference of a pixel's value.
    max_abs_difference_latents: largest difference of the last step's latents, in fp32.
    lpips: distance as a trained network sees it, 0 for the same picture; with `quality.lpips=true`.
    reasons: why single figures are null, by field.
    missed: every budget that the run misses, in words. Not empty means `invalid_output`.
    """

    reference_run_id: str | None = None
    reference: str | None = None
    reason: str | None = NOTHING
    identical: bool | None = None
    psnr_db: Annotated[float, "dB"] | None = None
    ssim: Share | None = None
    ms_ssim: Share | None = None
    max_abs_difference: Share | None = None
    max_abs_difference_latents: float | None = None
    lpips: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    caption: Caption = field(default_factory=Caption)
    missed: list[str] = field(default_factory=list)


@dataclass
class Repeatable(Part):
    """identical: whether the last timed call drew the first call's picture.
    max_abs_difference: largest difference of a pixel between the two.
    """

    identical: bool | None = None
    max_abs_difference: Share | None = None


@dataclass
class ExactCall(Part):
    """error_rmse: root mean square error of the optimized result against fp64, in the output's own unit.
    baseline_error_rmse: the same of the pipeline without these choices. output_rms: root mean square of the fp64 result.
    ratio: the first error by the second. dtype: number format of the optimized result.
    factor: how many times the baseline's error is allowed: 2, or 3 in half precision.
    allowed_rmse: that, and 1e-5 of the output. allowed_ratio: the same by the baseline's error.
    passed: whether the error is within it. reason: why that can't be told.
    """

    error_rmse: float | None = None
    baseline_error_rmse: float | None = None
    output_rms: float | None = None
    ratio: float | None = None
    dtype: str | None = None
    factor: float | None = None
    allowed_rmse: float | None = None
    allowed_ratio: float | None = None
    passed: bool | None = None
    reason: str | None = None


@dataclass
class Exactness(Part):
    """checked: whether choices that must only reorder arithmetic were held to fp64.
    reason: why not, or why in part only. choices: the choices in question, as typed.
    arithmetic: which of torch's switches the check was done without, or what it allows for them: TF32 in fp32 convolutions
        on CUDA.
    passed: false ends the run as `invalid_output`. denoiser: one denoiser call. decode: one decode of the VAE.
    """

    checked: bool = False
    reason: str | None = NOTHING
    choices: list[str] = field(default_factory=list)
    passed: bool | None = None
    arithmetic: str | None = None
    denoiser: ExactCall | None = None
    decode: ExactCall | None = None


# Conditions while calls were timed --------------------------------------------------------------------


@dataclass
class Host(Part):
    """threads: torch's threads within an operation. interop_threads: torch's threads beside one another.
    affinity: processors that the run may use. processors: processors of the machine.
    load_before: programs that wanted to run, mean of the last minute, before the timed calls. load_after: the same after.
    watched_s: how long the machine was watched: all timed calls.
    preempted: how often the run had to give way to another program.
    other_share: what other programs took of this run's processors.
    steal_share: what the hypervisor took of them for other machines.
    reason: why the shares aren't known.
    """

    threads: Count
    interop_threads: Count
    affinity: list[int] | None
    processors: Count
    load_before: float | None = None
    load_after: float | None = None
    watched_s: Seconds = 0.0
    preempted: Count | None = None
    other_share: Share | None = None
    steal_share: Share | None = None
    reason: str | None = None


@dataclass
class GpuMoment(Part):
    """sm_clock_mhz: clock of its processors. memory_clock_mhz: clock of its memory. temperature_c: of its die.
    power_w: what it draws. slowed_by: why its clock isn't at its highest, in NVML's words.
    compute_processes: processes that hold it, this one included. reason: why nothing is known.
    """

    sm_clock_mhz: Mhz | None = None
    memory_clock_mhz: Mhz | None = None
    temperature_c: Annotated[float, "degrees Celsius"] | None = None
    power_w: Annotated[float, "watts"] | None = None
    slowed_by: list[str] | None = None
    compute_processes: Count | None = None
    reason: str | None = None


@dataclass
class GpuMoments(Part):
    """before: the GPU's state before the timed calls. after: the same after them."""

    before: GpuMoment
    after: GpuMoment


@dataclass
class Conditions(Part):
    """host: null where no call was timed. gpu: null off CUDA."""

    host: Host | None = None
    gpu: GpuMoments | None = None


# The machine and its software -------------------------------------------------------------------------


@dataclass
class System(Part):
    """kernel: the kernel's release. libc: the C library. container: `docker`, `kubernetes`, ...
    virtual_machine: whether a hypervisor runs this machine. hardware: the maker's name for the machine.
    """

    kernel: str | None = None
    libc: str | None = None
    container: str | None = None
    virtual_machine: bool | None = None
    hardware: str | None = None


@dataclass
class Processor(Part):
    """logical: logical processors. physical: cores. smt: whether a core runs two threads at once.
    affinity: processors that the run may use, `0-3,8`. governor: how its clock is ruled. max_mhz: its highest clock.
    numa_nodes: groups of processors with memory of their own.
    cgroup_cpus: processors' time that a control group leaves; null without a limit.
    """

    logical: Count | None = None
    physical: Count | None = None
    smt: bool | None = None
    affinity: str | None = None
    governor: str | None = None
    max_mhz: Mhz | None = None
    numa_nodes: Count | None = None
    cgroup_cpus: float | None = None


@dataclass
class HostMemory(Part):
    """bytes: the host's memory. swap_bytes: its swap. cgroup_bytes: a control group's limit.
    transparent_hugepages: how Linux hands out large pages.
    """

    bytes: Bytes | None = None
    swap_bytes: Bytes | None = None
    cgroup_bytes: Bytes | None = None
    transparent_hugepages: str | None = None


@dataclass
class Gpu(Part):
    """uuid: what NVML knows it by. pci_address: its place on the bus. memory_bytes: its memory.
    multiprocessors: of this GPU. visible: GPUs that torch sees. count: GPUs in the machine.
    driver: the driver's version. driver_cuda: the newest CUDA that the driver runs.
    max_sm_clock_mhz: highest clock of its processors. max_memory_clock_mhz: highest clock of its memory.
    sm_clock_setting_mhz: the clock that it was told to run at. power_limit_w: its limit.
    mig: whether it is divided into instances. persistence: whether the driver stays loaded.
    ecc: whether its memory corrects errors. reason: why nothing is known.
    """

    uuid: str | None = None
    pci_address: str | None = None
    memory_bytes: Bytes | None = None
    multiprocessors: Count | None = None
    visible: Count | None = None
    count: Count | None = None
    driver: str | None = None
    driver_cuda: str | None = None
    max_sm_clock_mhz: Mhz | None = None
    max_memory_clock_mhz: Mhz | None = None
    sm_clock_setting_mhz: Mhz | None = None
    power_limit_w: Annotated[float, "watts"] | None = None
    mig: bool | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    reason: str | None = None


@dataclass
class MeasuredOn(Part):
    """device: `cpu`, `cuda` or `mps`. device_name: the GPU's or the processor's name.
    capability: CUDA compute capability, `9.0`.
    torch: version. So the next ones; each is there if the package is installed.
    diffusers, transformers, torchao, accelerate, hydra_core, python: version.
    os: system, kernel, architecture.
    threads: torch's threads, or the processors at hand where torch was never imported.
    cpu: the processor's name. memory_bytes: the host's memory, within a container's limit.
    git: commit of fastdiff's checkout; null for an installed wheel.
    git_dirty: whether `fastdiff/` or `conf/` differ from that commit. git_dirty_reason: why that isn't known.
    gpu: the GPU that torch computed on, as the driver describes it.
    packages: versions of every package that can change numbers or times, by name.
    torch_build: how torch was built: compiler, BLAS, MKL, oneDNN, CUDA, cuDNN, commit, and which of its code this processor
        gets.
    torch_settings: torch's switches at the end: threads, precision of fp32 products, determinism, oneDNN.
    process_flags: whether fp32 products may be computed in TensorFloat-32.
    cpp_compiler: what the C++ compiler calls itself.
    environment_variables: variables that can change numbers or times, as the user set them; nothing that is called a secret.
    """

    device: str
    device_name: str
    capability: str | None = None
    torch: str = ABSENT
    diffusers: str = ABSENT
    transformers: str = ABSENT
    torchao: str = ABSENT
    accelerate: str = ABSENT
    hydra_core: str = field(default=ABSENT, metadata={"name": "hydra-core"})
    python: str | None = None
    os: str | None = None
    threads: Count | None = None
    cpu: str | None = None
    memory_bytes: Bytes | None = None
    git: str | None = None
    git_dirty: bool | None = ABSENT
    git_dirty_reason: str | None = ABSENT
    system: System = ABSENT
    processor: Processor = ABSENT
    host_memory: HostMemory = ABSENT
    gpu: Gpu | None = ABSENT
    packages: dict[str, str] = ABSENT
    torch_build: dict[str, Any] = ABSENT
    torch_settings: dict[str, Any] = ABSENT
    process_flags: dict[str, Any] = ABSENT
    cpp_compiler: str | None = ABSENT
    environment_variables: dict[str, str] = ABSENT


@dataclass(kw_only=True)
class Report(Part):
    """What a run did, and what was measured of it.

    schema: version of this format. Fields are added and never renamed, so it rises only if that has to be broken.
    run_id: hash of the resolved choices and of what in the environment changes a result. Two runs with the same id did the
        same thing on the same kind of machine.
    status: how the run ended: `ok`, `failed`, `oom`, `timeout`, `crashed`, `invalid_output` or `interrupted`. A sweep's
        rows can also be `incompatible`.
    error: null if the status is `ok`. overrides: the overrides as they were typed.
    config: every slot with its option and all of its keys as they were resolved, then `generation`, `device`,
        `allow_no_effect`, `profile`, and where the choices come from (`experiment`, `recipe`). The keys are those of the
        options.
    notices: what a reader of the figures has to know, from planning and from the run itself.
    origins: where each chosen option comes from that doesn't ship with fastdiff: a plug-in's distribution and version, or a
        file of a team's folder and its hash. Empty where all of them ship.
    weights: in a ladder's reports only: hash of what tells the weights from others.
    started_at: ISO 8601, in UTC. finished_at: the same; null while it runs.

    plan: the passes in the order in which they work; null if the run was never planned.
    effects: what each pass measurably changed. Empty if the run ended before its first call.
    applied: the effects in words, one line each.

    import_s: importing torch, diffusers and what the model needs.
    load_s: building the pipeline from its files, without imports. apply_s: the passes' work on the pipeline.
    first_call_s: the first whole call, compiling included.
    compile_s: what Dynamo and Inductor took in it; 0 where nothing was compiled.
    warmup_s: the calls between the first one and the timed ones.
    latency_s: one whole call of the pipeline, by the wall clock, the device waited for before and after.
    device_latency_s: the same calls by events on the GPU; without samples off CUDA.
    step_latency_s: from the end of one denoising step to the end of the next, on `cuda` and `mps` by the GPU's own events.
    throughput_images_per_s: pictures of a call divided by its median time.

    images: the pictures that were drawn.
    flags_at_start: torch's switches when the run's process began: threads, precision of fp32 products, determinism, SDPA's
        kernels, diffusers' attention backend.
    """

    schema: Count = SCHEMA
    run_id: str
    status: str | None = None
    error: Error | None = None
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any]
    notices: list[str] = field(default_factory=list)
    origins: dict[str, Any] = field(default_factory=dict)
    weights: str = ABSENT
    started_at: Time
    finished_at: Time | None = None
    plan: list[PlannedPass] | None = None
    effects: list[PassEffect] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    import_s: Seconds | None = None
    load_s: Seconds | None = None
    apply_s: Seconds | None = None
    first_call_s: Seconds | None = None
    compile_s: Seconds | None = None
    warmup_s: list[Seconds] = field(default_factory=list)
    warmup: Warmup = field(default_factory=Warmup)
    latency_s: Times = field(default_factory=Times)
    device_latency_s: Times = field(default_factory=Times)
    step_latency_s: TimesByCall = field(default_factory=TimesByCall)
    throughput_images_per_s: Annotated[float, "pictures a second"] | None = None
    compile: Compiling = field(default_factory=Compiling)
    peak_memory_bytes: PeakMemory = field(default_factory=PeakMemory)
    memory_bytes: MemoryInParts = field(default_factory=MemoryInParts)
    parts_s: PartTimes = field(default_factory=PartTimes)
    roofline: Roofline = field(default_factory=Roofline)
    profile: Profile = field(default_factory=Profile)
    syncs: Syncs = field(default_factory=Syncs)
    images: list[Picture] = field(default_factory=list)
    quality: Quality = field(default_factory=Quality)
    repeatable: Repeatable = field(default_factory=Repeatable)
    exactness: Exactness = field(default_factory=Exactness)
    conditions: Conditions = field(default_factory=Conditions)
    flags_at_start: dict[str, Any] | None = None
    environment: MeasuredOn
