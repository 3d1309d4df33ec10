"""The benchmarks' arithmetic, and that what they compare is the same picture. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def measuring() -> ModuleType:
    """benchmarks/measuring.py; the folder is no package, so that its scripts run as files."""
    spec = importlib.util.spec_from_file_location("measuring", BENCHMARKS / "measuring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_constant_ratio_has_an_interval_of_no_width(measuring: ModuleType) -> None:
    ratio = measuring.paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0)


def test_the_ratio_is_the_median_of_the_pairs_and_ignores_one_disturbed_process(
    measuring: ModuleType,
) -> None:
    ratio = measuring.paired_ratio([1.0, 1.1, 1.2, 1.3, 50.0], [1.0] * 5)
    assert ratio.value == pytest.approx(1.2)
    assert ratio.low == pytest.approx(1.0)
    assert ratio.high == pytest.approx(50.0)


def test_drift_that_both_of_a_pair_share_cancels(measuring: ModuleType) -> None:
    drift = numpy.linspace(1.0, 3.0, 10)
    ratio = measuring.paired_ratio(list(drift * 1.05), list(drift))
    assert ratio.low == pytest.approx(1.05)
    assert ratio.high == pytest.approx(1.05)


def test_noise_alone_gives_an_interval_that_holds_one(measuring: ModuleType) -> None:
    generator = numpy.random.default_rng(3)
    first, second = generator.lognormal(0.0, 0.05, (2, 20))
    ratio = measuring.paired_ratio(list(first), list(second))
    assert ratio.low < 1.0 < ratio.high
    assert ratio.low > 0.9
    assert ratio.high < 1.1


def test_a_clear_slowdown_lies_wholly_above_two_percent(measuring: ModuleType) -> None:
    generator = numpy.random.default_rng(4)
    quick = generator.lognormal(0.0, 0.01, 10)
    slow = 1.10 * generator.lognormal(0.0, 0.01, 10)
    ratio = measuring.paired_ratio(list(slow), list(quick))
    assert ratio.low > 1.02
    assert ratio.low <= ratio.value <= ratio.high


def test_exchanging_both_sides_inverts_the_ratio_and_its_interval(measuring: ModuleType) -> None:
    first, second = [1.0, 1.3, 0.9, 1.2], [1.1, 1.0, 1.0, 0.8]
    ratio = measuring.paired_ratio(first, second)
    inverse = measuring.paired_ratio(second, first)
    assert inverse.value == pytest.approx(1 / ratio.value)
    assert inverse.low == pytest.approx(1 / ratio.high)
    assert inverse.high == pytest.approx(1 / ratio.low)


def test_the_interval_is_the_same_every_time(measuring: ModuleType) -> None:
    first, second = [1.0, 1.3, 0.9, 1.2], [1.1, 1.0, 1.0, 0.8]
    assert measuring.paired_ratio(first, second) == measuring.paired_ratio(first, second)


def test_pairs_that_are_no_pairs_are_refused(measuring: ModuleType) -> None:
    with pytest.raises(ValueError, match="2 numerators for 1 denominators"):
        measuring.paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="two pairs or more, not 1"):
        measuring.paired_ratio([1.0], [1.0])


def test_every_two_rounds_are_an_order_and_its_reverse(measuring: ModuleType) -> None:
    rounds = list(measuring.counterbalanced(["a", "b", "c"], 20, seed=0))
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    for there, back in zip(rounds[::2], rounds[1::2], strict=True):
        assert back == there[::-1]
    assert len({tuple(order) for order in rounds}) > 2, "the orders are random"


def test_a_command_is_shown_as_typed_at_the_top_of_the_checkout(measuring: ModuleType) -> None:
    command = [sys.executable, str(BENCHMARKS / "parity.py"), "--name", "two words"]
    assert measuring.as_typed(command) == "python benchmarks/parity.py --name 'two words'"


def test_a_command_that_ends_otherwise_than_expected_ends_the_benchmark(
    measuring: ModuleType, tmp_path: Path
) -> None:
    failing = [sys.executable, "-c", "print('so'); raise SystemExit(3)"]
    assert measuring.timed_command(failing, tmp_path, exit_code=3).output == "so\n"
    with pytest.raises(SystemExit, match="ended with exit code 3, not 0:\nso"):
        measuring.timed_command(failing, tmp_path)


def test_results_hold_the_command_and_the_machine_and_no_path(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiff.result import read_json

    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "parity.py"), "--pairs", "2"])
    path = measuring.write_results("some", {"figure_s": 1.5}, measuring.now())
    assert path == tmp_path / "some.json"
    results = read_json(path)
    assert results["command"] == "python benchmarks/parity.py --pairs 2"
    assert results["figure_s"] == 1.5
    assert results["machine"]["cpu"]
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["versions"]["torch"]
    assert str(measuring.ROOT) not in path.read_text()


def test_the_handwritten_script_knows_nothing_of_fastdiff() -> None:
    source = (BENCHMARKS / "handwritten.py").read_text()
    assert "import fastdiff" not in source
    assert "from fastdiff" not in source


@pytest.mark.slow
def test_the_handwritten_script_draws_fastdiffs_picture(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "handwritten.py"), "--steps", "2", "--runs", "1"]
    by_hand = tmp_path / "by-hand.png"
    done = subprocess.run(
        [*script, "--warmup", "0", "--out", str(by_hand)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    ours = subprocess.run(
        [
            *(sys.executable, "-m", "fastdiff", "quality=none", "bench=once"),
            *("generation.steps=2", f"hydra.run.dir={folder}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ours.returncode == 0, ours.stderr
    with Image.open(by_hand) as theirs, Image.open(folder / "image-0.png") as picture:
        difference = numpy.asarray(theirs).astype(int) - numpy.asarray(picture).astype(int)
    assert difference.shape == (64, 64, 3)
    assert not difference.any()
