"""What is recorded of the software: packages, torch's build, variables without secrets, the code's own state."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiff.machine import software

SHOWN = """PyTorch built with:
  - GCC 13.3
  - C++ Version: 202002
  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64
  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80afa71049cd)
  - OpenMP 201511 (a.k.a. OpenMP 4.5)
  - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release
"""


def answers(output: str, code: int = 0) -> Any:
    return lambda *_, **__: SimpleNamespace(stdout=output, returncode=code)


def fails(error: Exception) -> Any:
    def run(*_: Any, **__: Any) -> Any:
        raise error

    return run


def test_only_installed_packages_have_a_version() -> None:
    known = {"torch": "2.13.0", "numpy": "2.4.6", "requests": "1.0"}
    assert software.packages(known.get) == {"torch": "2.13.0", "numpy": "2.4.6"}


def test_variables_that_matter_and_no_secret() -> None:
    matter = {
        "OMP_NUM_THREADS": "2",
        "GOMP_CPU_AFFINITY": "0-1",
        "TORCHINDUCTOR_FREEZING": "1",
        "TORCH_LOGS": "+inductor",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_TF32_OVERRIDE": "0",
        "LD_PRELOAD": "/usr/lib/libjemalloc.so.2",
        "MALLOC_ARENA_MAX": "2",
        "HF_HUB_OFFLINE": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONHASHSEED": "0",
        "KMP_BLOCKTIME": "1",
    }
    others = {
        "HOME": "/home/me",
        "HF_TOKEN": "hf_x",
        "PYTHON_REGISTRY_PASSWORD": "x",
        "TORCH_API_KEY": "x",
        "CUDA_AUTH": "x",
        "LD_PRELOADED": "x",
    }
    assert software.variables(matter | others) == matter


def test_what_fastdiff_and_torch_set_themselves_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = str(Path(software.__file__).parents[2])
    ours = {
        "PYTHONPATH": root,
        "PYTHONUNBUFFERED": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torchinductor_me"),
        "TRITON_CACHE_DIR": str(tmp_path / "torchinductor_me" / "triton" / "0"),
    }
    assert software.variables(ours) == {}
    users = {
        "PYTHONPATH": "/mine:/other",
        "TORCHINDUCTOR_CACHE_DIR": "/caches/inductor",
        "TRITON_CACHE_DIR": "/caches/triton",
    }
    assert software.variables(users) == users
    beside = {**ours, **users, "PYTHONPATH": f"{root}:/mine::/other:{root}"}
    assert software.variables(beside) == users
    below = {**users, "TRITON_CACHE_DIR": "/caches/inductor/triton/0"}
    assert "TRITON_CACHE_DIR" not in software.variables(below)
    assert software.variables({"TRITON_CACHE_DIR": "/t"}) == {"TRITON_CACHE_DIR": "/t"}


def test_a_password_in_an_address_is_left_out() -> None:
    given = {"TORCHINDUCTOR_REMOTE": "redis://me:secret@host:1/0"}
    assert software.variables(given) == {"TORCHINDUCTOR_REMOTE": "redis://host:1/0"}


def test_the_build_of_torch() -> None:
    assert software.build_of(SHOWN) == {
        "compiler": "GCC 13.3",
        "blas": "mkl",
        "mkl": "2024.2-Product",
        "onednn": "3.12.0",
        "openmp": "201511",
    }
    assert set(software.build_of("").values()) == {None}


def test_what_torch_refuses_to_say_is_unknown() -> None:
    def refuses() -> Any:
        raise RuntimeError("mix of the legacy and new APIs")

    assert software.said(refuses) is None
    assert software.said(lambda: False) is False


def test_settings_can_be_read_after_the_newer_name_was_used() -> None:
    """In a process of its own: the switch belongs to the whole process."""
    import sys

    code = (
        "import torch; from fastdiff.machine import software\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "print(software.process_flags(), software.torch_settings()['float32_matmul_precision'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "matmul.allow_tf32" in ended.stdout


def test_the_cpp_compiler_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/nowhere\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return SimpleNamespace(stdout="my-c++ 13.2\nCopyright\n", returncode=0)

    assert software.cpp_compiler({"CXX": "my-c++ -O2"}, run) == "my-c++ 13.2"
    assert asked == [["my-c++", "--version"]]
    assert software.cpp_compiler({}, run) is None
    slow = fails(subprocess.TimeoutExpired("my-c++", 5))
    assert software.cpp_compiler({"CXX": "my-c++"}, slow) is None
    assert software.cpp_compiler({"CXX": "my-c++"}, answers("", code=1)) is None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("abc123\n")
    return tmp_path


def test_the_commit_and_whether_the_code_differs_from_it(checkout: Path) -> None:
    assert software.git_commit(checkout) == "abc123"
    dirty = software.git_state(checkout, answers(" M fastdiff/planning/build.py\n"))
    assert dirty == {"git_dirty": True, "git_dirty_reason": None}
    clean = software.git_state(checkout, answers(""))
    assert clean == {"git_dirty": False, "git_dirty_reason": None}


def test_commits_that_are_packed_or_detached(checkout: Path) -> None:
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    assert software.git_commit(checkout) is None
    (checkout / ".git" / "packed-refs").write_text("# pack-refs\ndef456 refs/heads/main\n")
    assert software.git_commit(checkout) == "def456"
    (checkout / ".git" / "HEAD").write_text("789\n")
    assert software.git_commit(checkout) == "789"


def test_why_it_is_unknown_whether_the_code_changed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(root: Path, run: Any) -> Any:
        state = software.git_state(root, run)
        assert state["git_dirty"] is None
        return state["git_dirty_reason"]

    assert reason(tmp_path / "nowhere", answers("")) == "not a git checkout"
    for run in (fails(OSError("x")), fails(subprocess.TimeoutExpired("git", 5)), answers("", 128)):
        assert reason(checkout, run) == "git status doesn't answer"
    monkeypatch.setenv("PATH", "")
    assert reason(checkout, answers("")) == "git is not installed"


def test_the_commit_of_one_of_several_work_trees(tmp_path: Path) -> None:
    checkout, git = tmp_path / "tree", tmp_path / "main" / ".git"
    own = git / "worktrees" / "tree"
    for folder in (checkout, own, git / "refs" / "heads"):
        folder.mkdir(parents=True)
    (checkout / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/topic\n")
    (own / "commondir").write_text("../..\n")
    (git / "refs" / "heads" / "topic").write_text("abc123\n")
    assert software.git_commit(checkout) == "abc123"
