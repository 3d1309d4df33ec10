"""A run's own process imports what its plan needs, and no more of this package or of the libraries than it must.

The witness is `sys.modules` when the process ends. `python -X importtime` shows the same, but not what is imported through
`importlib.import_module`, as diffusers' lazy modules are.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.choices.compose import compose
from fastdiff.measuring.protocol import Request

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

WATCHED = """
import atexit, sys
from pathlib import Path
told = Path(sys.argv[1]) / "modules.txt"
atexit.register(lambda: told.write_text("\\n".join(sys.modules)))
from fastdiff.measuring.worker import main
sys.exit(main())
"""

NEVER = (
    "hydra",
    "rich",
    "matplotlib",
    "pandas",
    "sklearn",
    "torchvision",
    "torchmetrics",
    "torch._inductor.compile_fx",
    "fastdiff.__main__",
    "fastdiff.runs.compare",
    "fastdiff.commands.doctor",
    "fastdiff.runs.ladder",
    "fastdiff.display",
    "fastdiff.runs.single",
    "fastdiff.display.layout",
)
"""What no run needs that isn't compiled and is compared with nothing."""


def modules_of_a_run(folder: Path, *overrides: str) -> set[str]:
    """Everything that the process of a run of one step has imported."""
    words = ["generation.steps=1", "bench=once", "quality=none", *overrides]
    request = Request(compose(words).to_dict(), words)
    request.write(folder)
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return set((folder / "modules.txt").read_text().splitlines())


def found(imported: set[str], *names: str) -> list[str]:
    """Modules of these names, and those inside them."""
    return sorted(
        module
        for module in imported
        if any(module == name or module.startswith(f"{name}.") for name in names)
    )


def pipelines(imported: set[str]) -> set[str]:
    """Packages of diffusers' pipelines that were imported: `flux`."""
    prefix = "diffusers.pipelines."
    inside = {m.removeprefix(prefix).split(".")[0] for m in imported if m.startswith(prefix)}
    return inside - {"pipeline_utils", "pipeline_loading_utils"}


def test_a_run_of_sdxls_class_imports_no_other_pipeline(tmp_path: Path) -> None:
    imported = modules_of_a_run(tmp_path, "quant=int8", "qkv=fused")
    assert pipelines(imported) == {"stable_diffusion_xl"}
    assert found(imported, *NEVER) == []
    assert "torchao.quantization" in imported


@pytest.mark.exhaustive
def test_a_run_of_fluxs_class_imports_no_other_pipeline(tmp_path: Path, flux_folder: Path) -> None:
    size = ("generation.height=32", "generation.width=32")
    imported = modules_of_a_run(tmp_path, "model=local", f"model.path={flux_folder}", *size)
    assert pipelines(imported) == {"flux"}
    assert found(imported, *NEVER) == []
