"""A hostile recipe, whatever is done with it: refused with exit code 2, nothing imported, written, fetched or told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "format: 2\nname: x\nmade_for: {model: shapes, device: cpu}\n"
SECRET = "hush-hush-1234"
HOSTILE = {
    "target": HEAD + "choices: {quant: {option: int8, _target_: os.system}}\n",
    "tag": HEAD + "choices: !!python/object/apply:os.system ['touch gone']\n",
    "interpolation": HEAD + "choices: {}\ngeneration: {prompt: '${oc.env:HF_TOKEN}'}\n",
    "hydra": HEAD + "choices: {}\nhydra: {run: {dir: gone}}\n",
    "defaults": HEAD + "choices: {}\ndefaults: [{/model: shapes}]\n",
    "outside": HEAD + "choices: {lora: {option: file, path: ../../etc/passwd}}\n",
    "pickled": HEAD + "choices: {lora: {option: file, path: lora.bin}}\n",
    "remote code": HEAD + "choices: {}\ntrust_remote_code: true\n",
    "code folder": HEAD + "choices: {compile: {option: regional, cache_dir: mine}}\n",
    "deep": HEAD + "choices: " + "[" * 5000 + "\n",
    "twice": HEAD + HEAD,
}
WAYS = (
    ["recipe=x.yaml"],
    ["plan", "recipe=x.yaml"],
    ["-m", "recipe=x.yaml", "precision=fp32,bf16"],
    ["compare", "x.yaml", ""],
    *(["recipe", verb, "x.yaml"] for verb in ("check", "show", "verify")),
    ["recipe", "export", "x.yaml", "--script", "x.py"],
    ["recipe", "diff", "x.yaml", "x.yaml"],
)
PROGRAM = """
import json, sys
from fastdiff.__main__ import main
codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps({"codes": codes, "torch": "torch" in sys.modules, "diffusers": "diffusers" in sys.modules}))
"""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_recipe_is_refused_wherever_it_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.yaml").write_text(HOSTILE[kind])
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(WAYS)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path / "home"), "HF_TOKEN": SECRET, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"codes": [2] * len(WAYS), "torch": False, "diffusers": False}
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("x.yaml can't be used as a recipe") == len(WAYS)
    assert "line " in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "x.yaml"]


def test_a_run_with_a_recipe_trusts_no_more_than_any_run(tmp_path: Path) -> None:
    """What keeps remote code and pickles out is set before diffusers is imported, whoever asked for the run."""
    program = (
        "import os\nfrom fastdiff.measuring.child import quiet_and_safe\nquiet_and_safe()\n"
        "assert os.environ['DIFFUSERS_DISABLE_REMOTE_CODE'] == '1'\n"
        "from diffusers.utils import constants\n"
        "assert constants.DIFFUSERS_DISABLE_REMOTE_CODE\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
