"""Overrides → RunConfig out of the option files alone: a twentieth of the time that Hydra's composition takes.

Hydra looks for files that may be anywhere and may name each other. Ours lie in `conf/<slot>/`, and in the same place of a
team's folder, each with one schema, and no slot's file says anything of another slot. So a run is its options, one by one: each
is made once, whatever else is chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from fastdiff.choices.experiments import ExperimentFile, read_experiment
from fastdiff.choices.option_yaml import content
from fastdiff.choices.options import OptionFile, default_options, option_files
from fastdiff.config import CONF_DIR, NO_EXPERIMENT, SCALARS, SLOTS, RunConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig


def assembled(overrides: Sequence[str]) -> RunConfig | None:
    """The run that Hydra would compose; None where Hydra has to decide, or has to refuse.

    overrides: in Hydra's grammar, their names known to be right. A key left at null stays null.
    """
    choices = _choices(overrides)
    keys: dict[str, list[str]] = {root: [] for root in (*SLOTS, _OUTSIDE)}
    for override in overrides:
        key = override.partition("=")[0]
        root = key.partition(".")[0]
        if "$" in override or root not in (*SLOTS, *SCALARS, "experiment", "generation"):
            return None  # interpolations, and Hydra's own keys
        if key not in choices:
            keys[root if root in SLOTS else _OUTSIDE].append(override)
    name, files = choices["experiment"], option_files()
    experiment = None if name == NO_EXPERIMENT else read_experiment(name)
    parts: dict[str, Any] = {}
    for slot in SLOTS:
        parts[slot] = _option(files[slot][choices[slot]], experiment, tuple(keys[slot]))
        if parts[slot] is None:
            return None
    outside = _outside_slots(experiment, tuple(keys[_OUTSIDE]))
    if outside is None:
        return None
    # Each part serves many runs, and whoever has a run may change it.
    return RunConfig(**copy.deepcopy(parts | outside), choices=choices)


_OUTSIDE = "outside"
"""For the keys that belong to no slot."""


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Every slot's option, and the experiment: what was typed last, or what the experiment takes, or the default."""
    typed = {key: value.strip() for key, _, value in (o.partition("=") for o in overrides)}
    experiment = typed.get("experiment", NO_EXPERIMENT)
    taken = {} if experiment == NO_EXPERIMENT else read_experiment(experiment).choices
    choices = {
        slot: typed.get(slot) or taken.get(slot) or default_options()[slot] for slot in SLOTS
    }
    return choices | {"experiment": experiment}


@cache
def _option(file: OptionFile, experiment: ExperimentFile | None, overrides: tuple[str, ...]) -> Any:
    """An option with the keys that the experiment and the overrides change; None where one of them can't be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = file.node(experiment.keys.get(file.slot, {}) if experiment else {})
        return OmegaConf.to_object(node) if _change(node, file.slot, overrides) else None
    except (OmegaConfBaseException, ValueError):
        return None


@cache
def _outside_slots(
    experiment: ExperimentFile | None, overrides: tuple[str, ...]
) -> dict[str, Any] | None:
    """`generation`, `experiment` and the keys beside them, in the same way."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = ("generation", "experiment", *SCALARS)
    plain, changed = content(CONF_DIR / "config.yaml"), experiment.keys if experiment else {}
    try:
        node: Any = OmegaConf.merge(
            OmegaConf.structured(RunConfig),
            *({name: said[name] for name in names if name in said} for said in (plain, changed)),
        )
        if not _change(node, "", overrides):
            return None
        whole = {name: node[name] for name in SCALARS}
        whole["generation"] = OmegaConf.to_object(node.generation)
        whole["experiment"] = OmegaConf.to_object(node.experiment)
        return whole
    except (OmegaConfBaseException, ValueError):
        return None


def _change(node: DictConfig, root: str, overrides: tuple[str, ...]) -> bool:
    """Set the keys that overrides name, relative to the root; False if their grammar can't be read as one value each."""
    if not overrides:
        return True
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    OmegaConf.set_struct(node, True)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return False
    for override in parsed:
        if override.is_sweep_override() or override.package is not None:
            return False
        key = override.key_or_group.removeprefix(f"{root}.")
        OmegaConf.update(node, key, override.value(), merge=True)
    return True
