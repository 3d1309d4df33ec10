"""Every pass says what it does to the numbers."""

from __future__ import annotations

import pytest

from fastdiff.passes import OPTIONS
from fastdiff.passes.base import Fidelity, Pass
from fastdiff.passes.memory import VaeSplitting
from fastdiff.passes.place import Place
from fastdiff.passes.precision import Tf32Flag

WORKING = [
    option
    for options in OPTIONS.values()
    for option in options.values()
    if issubclass(option, Pass)
]


@pytest.mark.parametrize("kind", [*WORKING, Place, Tf32Flag, VaeSplitting], ids=lambda k: k.key)
def test_every_pass_declares_what_it_does_to_the_numbers(kind: type[Pass]) -> None:
    above = kind.__mro__[: kind.__mro__.index(Pass)]
    assert any("fidelity" in vars(base) for base in above), (
        f"say in {kind.__name__}.fidelity whether it is EXACT, LOSSY, or another MODEL"
    )


@pytest.mark.parametrize(
    ("slot", "fidelity"),
    [
        ("precision", Fidelity.MODEL),
        ("vae", Fidelity.MODEL),
        ("scheduler", Fidelity.MODEL),
        ("lora", Fidelity.MODEL),
        ("attention", Fidelity.EXACT),
        ("qkv", Fidelity.EXACT),
        ("memory_format", Fidelity.EXACT),
        ("compile", Fidelity.EXACT),
        ("quant", Fidelity.LOSSY),
        ("cache", Fidelity.LOSSY),
    ],
)
def test_the_passes_of_a_slot_do_the_same_to_the_numbers(slot: str, fidelity: Fidelity) -> None:
    kinds = [option for option in OPTIONS[slot].values() if issubclass(option, Pass)]
    assert kinds
    assert {kind.fidelity for kind in kinds} == {fidelity}


def test_of_memory_offloading_is_exact_and_fewer_bits_are_not() -> None:
    kinds = {name: kind for name, kind in OPTIONS["memory"].items() if issubclass(kind, Pass)}
    assert {name: kind.fidelity for name, kind in kinds.items()} == {
        "model_offload": Fidelity.EXACT,
        "group_offload": Fidelity.EXACT,
        "layerwise": Fidelity.LOSSY,
    }


def test_slices_are_exact_and_tiles_are_not() -> None:
    assert VaeSplitting(slicing=True, tiling=False).fidelity is Fidelity.EXACT
    assert VaeSplitting(slicing=False, tiling=True).fidelity is Fidelity.LOSSY
    assert VaeSplitting(slicing=True, tiling=True).fidelity is Fidelity.LOSSY
