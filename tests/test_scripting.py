"""How a plain script is laid out, and that what comes from outside stays data."""

from __future__ import annotations

import ast

import pytest

from fastdiff.script import WIDTH, Script, ScriptError, bracketed, call, literal, predicate


def script() -> Script:
    made = Script(frozenset({"unet", "vae"}))
    made.use("argparse")
    made.use("torch")
    made.load("DiffusionPipeline.from_pretrained", '"org/name"')
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ("it's", '"it\'s"'),
        ('say "so"', "'say \"so\"'"),
        ("'\"", '"\'\\""'),
        ("a\nb\\c\x00", '"a\\nb\\\\c\\x00"'),
        ("naïve 🙂", '"naïve 🙂"'),
        ("\ud800\u2028", '"\\ud800\\u2028"'),
        ([1, 2.5, None, True], "[1, 2.5, None, True]"),
        (("a",), '("a",)'),
        ((100, 800), "(100, 800)"),
    ],
)
def test_literals_are_what_python_reads_back(value: object, text: str) -> None:
    assert literal(value) == text
    assert ast.literal_eval(text) == value


def test_a_call_that_fits_has_one_line_and_another_one_a_line_each() -> None:
    name = "a" * (WIDTH - 8)
    assert call("f", name, "b=1") == f"f({name}, b=1)"
    assert call("f", f"{name}a", "b=1") == f"f(\n    {name}a,\n    b=1,\n)"
    assert bracketed("S = {", ["1", "2"], "}") == "S = {1, 2}"
    assert bracketed("x(", ["[\n    1,\n]"], ").y") == "x(\n    [\n        1,\n    ],\n).y"


def test_a_predicate_has_as_many_lines_as_it_needs() -> None:
    assert predicate("p", ["a", "b"]) == "def p(module, name):\n    return a and b"
    long = "x" * 60
    assert predicate("p", [long, long]) == (
        f"def p(module, name):\n    return (\n        {long}\n        and {long}\n    )"
    )


def test_sections_stand_in_the_order_in_which_they_are_read() -> None:
    made = script()
    made.use("torchao.quantization", "quantize_", "PerRow", "Int8WeightOnlyConfig")
    made.use("pathlib", "Path")
    made.use("DeepCache", "DeepCacheSDHelper")
    made.then("pipe.first()", "pipe.second()")
    made.then("pipe.third()")
    made.define("SIDES = [1]", "def f():\n    return SIDES")
    made.flag("torch.flag = True")
    made.take("vae", "AutoencoderTiny", made.ask("--vae", "a folder"))
    made.dtype = "bfloat16"
    assert made.text(["One.", "Two."], "image = pipe()") == (
        "# One.\n"
        "# Two.\n"
        "\n"
        "import argparse\n"
        "from pathlib import Path\n"
        "\n"
        "import torch\n"
        "from DeepCache import DeepCacheSDHelper\n"
        "from diffusers import AutoencoderTiny, DiffusionPipeline\n"
        "from torchao.quantization import Int8WeightOnlyConfig, PerRow, quantize_\n"
        "\n"
        "SIDES = [1]\n"
        "\n"
        "\n"
        "def f():\n"
        "    return SIDES\n"
        "\n"
        "\n"
        "parser = argparse.ArgumentParser()\n"
        'parser.add_argument("--vae", required=True, help="a folder")\n'
        "args = parser.parse_args()\n"
        "\n"
        "torch.flag = True\n"
        "\n"
        "vae = AutoencoderTiny.from_pretrained(args.vae, dtype=torch.bfloat16, use_safetensors=True)\n"
        'pipe = DiffusionPipeline.from_pretrained("org/name", dtype=torch.bfloat16, vae=vae)\n'
        "\n"
        "pipe.first()\n"
        "pipe.second()\n"
        "\n"
        "pipe.third()\n"
        "\n"
        "image = pipe()\n"
    )


def test_components_that_the_pipeline_lacks_are_left_out() -> None:
    assert script().called("qkv.fused", ("unet", "vqvae")) == ["pipe.unet"]


def test_a_pass_that_finds_no_component_is_refused() -> None:
    with pytest.raises(ScriptError) as refused:
        script().called("memory_format.channels_last", ())
    assert str(refused.value) == (
        "memory_format.channels_last can't be written as a plain script\n"
        "  why: nobody knows which component of this model it would change\n"
        "  instead: leave it out"
    )


@pytest.mark.parametrize("name", ["vae; import os", "", "vae\n", "a-b"])
def test_what_stands_in_code_has_to_be_a_name(name: str) -> None:
    made = Script(frozenset({name}))
    for used in (
        lambda: made.called("a.pass", (name,)),
        lambda: made.take(name, "AutoencoderTiny", "args.vae"),
        lambda: made.take("vae", name, "args.vae"),
        lambda: made.load(f"{name}.from_single_file", "args.model"),
    ):
        with pytest.raises(ScriptError) as refused:
            used()
        assert str(refused.value) == (
            f"{name!a} can't be written as a plain script\n"
            "  why: it is no name that Python knows\n"
            "  instead: another model"
        )
