"""The run that Hydra itself composes: what fastdiff's own composing is held to."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf, flag_override

from fastdiff.choices.compose import hydras_config
from fastdiff.config import SLOTS, RunConfig


def composed_by_hydra(overrides: Sequence[str]) -> RunConfig:
    """Of overrides in Hydra's grammar; `generation` isn't resolved."""
    config = hydras_config(overrides)
    chosen = config.hydra.runtime.choices
    choices = {slot: str(chosen[slot]) for slot in (*SLOTS, "experiment")}
    with flag_override(config, ["struct", "readonly"], False):
        del config["hydra"]
    run = OmegaConf.to_object(config)
    assert isinstance(run, RunConfig)
    run.choices = choices
    return run
