"""A grid of overrides → its cells: each a run, or every reason why its overrides make none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastdiff.choices.compose import compose, hydras_config
from fastdiff.choices.grid_values import every_combination
from fastdiff.choices.hydras_keys import hydras_own
from fastdiff.choices.recipe.using import spelled_out, with_recipe
from fastdiff.choices.refusals import refuse_sweep
from fastdiff.config import PROVENANCE, RunConfig, fingerprint
from fastdiff.errors import UsageError


@dataclass(frozen=True)
class Cell:
    """One combination.

    overrides: in Hydra's grammar, one a key; those that are the same in every cell are among them.
    run: what they describe; None where `reasons` say why they describe nothing.
    """

    overrides: tuple[str, ...]
    run: RunConfig | None
    reasons: tuple[str, ...] = ()

    @property
    def spelled_out(self) -> tuple[str, ...]:
        """The overrides with those of their recipe, whose file another machine may not have."""
        return tuple(spelled_out(self.overrides, self.run.recipe) if self.run else self.overrides)

    @cached_property
    def identity(self) -> str | None:
        """Equal for cells that are the same run, however they were typed; None where there is no run."""
        if self.run is None:
            return None
        data = self.run.to_dict()
        return fingerprint({key: value for key, value in data.items() if key not in PROVENANCE})


@dataclass(frozen=True)
class Grid:
    """Cells in the order in which Hydra's sweeper runs them, and the keys that tell them apart."""

    cells: tuple[Cell, ...]
    varied: tuple[str, ...]


def read_grid(overrides: Sequence[str]) -> Grid:
    """Every cell of a grid. Raises UsageError for what can't be read in any cell: a misspelled option, a bracket left open."""
    refuse_sweep(overrides)
    own = hydras_own(overrides)
    if own:
        hydras_config(own)  # Hydra alone knows whether it has such keys
    found = every_combination([o for o in overrides if o not in own])
    values: dict[str, set[str]] = {}
    for cell in found:
        for override in cell:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    for name in values.get("recipe", ()):
        with_recipe([f"recipe={name}"])  # one that can't be read is refused before any cell
    varied = tuple(key for key, of_key in values.items() if len(of_key) > 1)
    return Grid(tuple(_cell(tuple(cell)) for cell in found), varied)


def _cell(overrides: tuple[str, ...]) -> Cell:
    try:
        return Cell(overrides, compose(overrides, literal=False))
    except UsageError as error:
        return Cell(overrides, None, tuple(dict.fromkeys(error.reasons)))
