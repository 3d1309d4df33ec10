"""One real grid, with everything that a cell of it can become; twice, in two orders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broken_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose denoiser gives NaN."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("broken") / "pipeline"
    shutil.copytree(sd_folder, folder)
    (weights,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("conv_out.bias"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def sweep(here: Path, *words: str) -> tuple[int, dict[str, Any]]:
    small = ("generation.steps=2", "generation.height=32", "generation.width=32", "bench=once")
    done = subprocess.run(
        [sys.executable, "-m", "fastdiff", "-m", "device=cpu", "model=local", *small, *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
    )
    name = next(word.partition("=")[2] for word in words if word.startswith("sweep.name="))
    data = json.loads((here / "outputs/sweeps" / name / "sweep.json").read_text())
    return done.returncode, data


@pytest.mark.exhaustive
def test_a_real_grid_in_two_orders(sd_folder: Path, broken_folder: Path, tmp_path: Path) -> None:
    models = f"model.path={sd_folder},{broken_folder}"
    code, there = sweep(tmp_path, models, "attention=math,sdpa", "sweep.name=there")
    assert code == 1
    assert [row["status"] for row in there["rows"]] == [
        "ok",
        "ok",
        "invalid_output",
        "invalid_output",
    ]
    nan = "the latents are not numbers (NaN or infinite) after step 1"
    assert there["rows"][2]["reason"] == nan
    code, back = sweep(
        tmp_path,
        f"model.path={broken_folder},{sd_folder}",
        "attention=sdpa,math",
        "sweep.name=back",
    )
    assert code == 1
    assert [row["status"] for row in back["rows"]] == [
        "invalid_output",
        "invalid_output",
        "ok",
        "ok",
    ]

    def reports(data: dict[str, Any]) -> dict[str, Any]:
        home = tmp_path / "outputs/sweeps" / data["name"]
        return {
            row["choices"]["attention"]: json.loads((home / row["report"]).read_text())
            for row in data["rows"]
            if row["status"] == "ok"
        }

    one, other = reports(there), reports(back)
    for attention in ("math", "sdpa"):
        first, second = one[attention], other[attention]
        assert first["flags_at_start"] == second["flags_at_start"]
        assert first["images"] == second["images"]
        assert first["applied"] == second["applied"]
    assert one["math"]["flags_at_start"] == one["sdpa"]["flags_at_start"]

    row = there["rows"][0]
    home = tmp_path / "outputs/sweeps/there"
    assert row["reference"]
    for picture in (*row["images"], *row["reference"]):
        assert (home / picture).is_file()
    assert row["quality"]["psnr_db"] is not None or row["quality"]["identical"]
    assert "precision" not in row["recipe"]
    assert "attention: math" in row["recipe"]
    assert (home / "index.html").read_text().count("data:image/") >= 1
    assert len(list((tmp_path / "outputs/references").iterdir())) <= 2
