"""What of the software explains a difference between two runs: packages, torch's build and settings, variables, the code's own state.

A run's own process asks once; planning doesn't. torch is imported where it is asked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.machine.environment import version_of

PACKAGES = (
    *("torch", "diffusers", "transformers", "torchao", "accelerate", "peft", "safetensors"),
    *("numpy", "pillow", "tokenizers", "huggingface-hub", "triton", "pytorch-triton", "xformers"),
    *("flash-attn", "bitsandbytes", "DeepCache", "hydra-core", "omegaconf", "torchmetrics"),
    *("torchvision", "fastdiff-inference"),
)
"""Distributions that can change numbers or times."""

_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|ONEDNN|DNNL|CUDA|CUDNN|CUBLAS|NVIDIA|PYTORCH|TORCH|TRITON|MALLOC|PYTHON)_?[A-Z]"
    r"|LD_PRELOAD$|LD_LIBRARY_PATH$|HF_HUB_OFFLINE$|CXX$|(XFORMERS|DIFFUSERS)_|GLIBC_TUNABLES$"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|(^|_)(API_?)?KEY($|_)", re.IGNORECASE)
_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 5.0


def packages(version: Callable[[str], str | None] = version_of) -> dict[str, str]:
    """Versions of what is installed, by name."""
    return {name: found for name in PACKAGES if (found := version(name))}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that can change numbers or times, as the user set them.

    Left out are what fastdiff and torch set for a run's process, what is called a secret, and passwords in addresses.
    """
    return {
        name: re.sub(r"://[^/@\s]*@", "://", value)
        for name, value in sorted(_users(environment).items())
        if _VARIABLES.match(name) and not _SECRET.search(name)
    }


_OURS = ("PYTHONUNBUFFERED", "DIFFUSERS_DISABLE_REMOTE_CODE")


def _users(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what fastdiff and torch put there themselves."""
    found = {name: value for name, value in environment.items() if name not in _OURS}
    paths = found.pop("PYTHONPATH", "").split(os.pathsep)
    if others := [path for path in paths if path and Path(path) != _ROOT]:
        found["PYTHONPATH"] = os.pathsep.join(others)
    inductor = found.get("TORCHINDUCTOR_CACHE_DIR", "")
    if found.get("TRITON_CACHE_DIR", "").startswith(os.path.join(inductor, "triton", "")):
        del found["TRITON_CACHE_DIR"]  # where Inductor puts it
    if inductor.startswith(os.path.join(tempfile.gettempdir(), "torchinductor_")):
        del found["TORCHINDUCTOR_CACHE_DIR"]  # where torch puts it
    return found


# torch ---------------------------------------------------------------------------------------------


def torch_build() -> dict[str, Any]:
    """How torch was built, and which of its code this processor gets."""
    import torch

    return {
        **build_of(torch.__config__.show()),
        "commit": torch.version.git_version,
        "debug": torch.version.debug,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def build_of(shown: str) -> dict[str, str | None]:
    """The facts in what `torch.__config__.show()` prints: compiler, BLAS, and the versions of its libraries."""
    patterns = {
        "compiler": r"- ((?:GCC|Clang|MSVC|clang) .*)$",
        "blas": r"\bBLAS_INFO=(\w+)",
        "mkl": r"Math Kernel Library Version (\S+)",
        "onednn": r"MKL-DNN v(\S+)",
        "openmp": r"- OpenMP (\d+)",
    }
    found = {name: re.search(pattern, shown, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: match.group(1) if match else None for name, match in found.items()}


def torch_settings() -> dict[str, Any]:
    """Switches of this process that change numbers or times. None where torch doesn't say.

    float32_matmul_precision: once `fp32_precision` has been set, torch refuses to say it in the old words.
    """
    import torch

    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": said(torch.get_float32_matmul_precision),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
    }


def process_flags() -> dict[str, bool | None]:
    """Whether fp32 products may be computed in tf32; None where torch doesn't say."""
    import torch

    return {
        "matmul.allow_tf32": said(lambda: torch.backends.cuda.matmul.allow_tf32),
        "cudnn.allow_tf32": said(lambda: torch.backends.cudnn.allow_tf32),
    }


def flags() -> dict[str, Any]:
    """What is switched in this process and would change the next run in it: torch's settings, and diffusers' attention.

    attention_backend: the one that diffusers gives to models which name none; None until diffusers has imported models.
    """
    import torch

    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    registry = getattr(dispatch, "_AttentionBackendRegistry", None)
    backend = getattr(registry, "_active_backend", None)
    cuda = torch.backends.cuda
    return {
        **torch_settings(),
        **process_flags(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "grad": torch.is_grad_enabled(),
        "sdp_flash": cuda.flash_sdp_enabled(),
        "sdp_mem_efficient": cuda.mem_efficient_sdp_enabled(),
        "sdp_math": cuda.math_sdp_enabled(),
        "sdp_cudnn": cuda.cudnn_sdp_enabled(),
        "attention_backend": str(getattr(backend, "value", backend)) if backend else None,
    }


def said(ask: Callable[[], Any]) -> Any:
    """What torch answers; None where it refuses, because somebody set the same thing by its newer name."""
    try:
        return ask()
    except RuntimeError:
        return None


# Programs ------------------------------------------------------------------------------------------


def cpp_compiler(environment: Mapping[str, str], run: Any = subprocess.run) -> str | None:
    """What the C++ compiler that Inductor takes calls itself; None where there is none or it doesn't answer."""
    asked = shlex.split(environment.get("CXX", ""))[:1]
    program = next(filter(shutil.which, (*asked, "g++", "clang++", "c++")), None)
    if program is None:
        return None
    said = _output(run, [program, "--version"])
    return said.splitlines()[0] if said else None


def git_state(root: Path = _ROOT, run: Any = subprocess.run) -> dict[str, Any]:
    """Whether what runs (`fastdiff` and `conf`) differs from the commit that the report names.

    dirty is None where that can't be known, and `dirty_reason` says why.
    """
    if git_commit(root) is None:
        return {"git_dirty": None, "git_dirty_reason": "not a git checkout"}
    if shutil.which("git") is None:
        return {"git_dirty": None, "git_dirty_reason": "git is not installed"}
    command = ["git", "-C", str(root), "--no-optional-locks", "status", "--porcelain"]
    changes = _output(run, [*command, "--", "fastdiff", "conf"])
    if changes is None:
        return {"git_dirty": None, "git_dirty_reason": "git status doesn't answer"}
    return {"git_dirty": bool(changes), "git_dirty_reason": None}


def _output(run: Any, command: list[str]) -> str | None:
    """What a program prints; None if it can't be started, fails or takes too long."""
    try:
        ended = run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            env=os.environ | {"LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return str(ended.stdout).strip() if ended.returncode == 0 else None


def git_commit(root: Path = _ROOT) -> str | None:
    """Commit of fastdiff's own checkout, read without git; None for an installed wheel.

    In one of several work trees `.git` is a file that names the folder of its HEAD, and that one names the folder of all refs.
    """
    try:
        folder = _named_in(root / ".git", "gitdir: ", root) or root / ".git"
        shared = _named_in(folder / "commondir", "", folder) or folder
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = shared / head.removeprefix("ref: ")
        if reference.is_file():
            return reference.read_text().strip()
        packed = (shared / "packed-refs").read_text()
    except OSError:
        return None
    found = re.search(rf"^(\w+) {re.escape(head.removeprefix('ref: '))}$", packed, re.MULTILINE)
    return found.group(1) if found else None


def _named_in(file: Path, before: str, start: Path) -> Path | None:
    """The folder that a file of git's names after a word, from where it lies; None if it is no such file."""
    return start / file.read_text().strip().removeprefix(before) if file.is_file() else None
