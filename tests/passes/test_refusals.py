"""What every option refuses before anything is loaded, and what it only remarks: a table for each slot.

A row of refusals/SLOT.yaml says what is typed, and either every reason why that can't work (`said`; none: it can) or all that
is remarked of the slot (`noticed`). Without `model` it is the embedded one, without `device` a CPU. `lacks` is a package
that isn't installed; all others are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from imagined import planned
from said import cases

from fastdiff.errors import PlanError


def rows() -> Iterator[Any]:
    for table in sorted((Path(__file__).parent / "refusals").glob("*.yaml")):
        for case in cases(__file__, f"refusals/{table.name}"):
            yield pytest.param(table.stem, *case.values, id=f"{table.stem}: {case.id}")


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


@pytest.mark.parametrize(("slot", "row"), rows())
def test_what_is_said_of_it_before_the_run(
    slot: str, row: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in row.get("variables", {}).items():
        monkeypatch.setenv(name, value)
    about = {key: row[key] for key in ("model", "device", "lacks") if key in row}
    said, noticed = [], []
    try:
        found = planned(row["typed"], **about).notices
        noticed = [{"choice": n.choice, "text": n.text} for n in found if n.choice.startswith(slot)]
    except PlanError as error:
        said = [
            {"choice": p.choice, "reason": p.reason, "instead": p.instead} for p in error.problems
        ]
    assert said == row.get("said", [])
    if "noticed" in row:
        assert noticed == row["noticed"]
