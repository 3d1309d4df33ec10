"""Overrides as typed → RunConfig; what can't be read, `explaining` puts into words.

Two ways lead to the same run. Hydra's composition defines it. `assembling` takes a twentieth of the time, but gives up on
whatever it has no rule for, so that every refusal is Hydra's. A test compares both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any

from fastdiff.choices.assembling import assembled
from fastdiff.choices.options import default_options, option_files, schemas
from fastdiff.choices.overrides import quote_literal
from fastdiff.choices.plugins import Found, plugins
from fastdiff.choices.recipe.using import with_recipe
from fastdiff.choices.refusals import explain, raise_all, refusals, unknown_key
from fastdiff.config import CONF_DIR, SCALARS, SLOTS, Experiment, Generation, RunConfig, UsedRecipe
from fastdiff.errors import UsageError
from fastdiff.models.sources import Model


def _register() -> None:
    """What Hydra has to know of options that are no files of `conf/`: schemas, plug-ins, a team's folders."""
    from hydra.core.plugins import Plugins

    from fastdiff.choices.search_path import TeamFolders

    _store(plugins())
    Plugins.instance().register(TeamFolders)  # anew: launchers give their processes a new instance


@cache
def _store(found: Found) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig)
    for slot, options in schemas().items():
        for name, schema in options.items():
            store.store(group=f"schema/{slot}", name=name, node=schema)
    for plugin in found.plugins:
        store.store(group=plugin.slot, name=plugin.option, node=plugin.kind)


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra with fastdiff's options and schemas, as often in a process as wanted."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    _register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def register_schemas() -> None:
    """For a run that Hydra itself hands over, which brings its own search path."""
    _register()


def compose(overrides: Sequence[str], literal: bool = True) -> RunConfig:
    """The run that these overrides describe; raises UsageError.

    overrides: `recipe=FILE` among them stands for what that file says; the others win over it.
    literal: take texts as they stand; False reads them by Hydra's grammar, as a grid does. `generation` is resolved: where it is null the model's own default stands.
    """
    typed, recipe = with_recipe(overrides)
    quoted = [*recipe.overrides, *(map(quote_literal, typed) if literal else typed)]
    raise_all(refusals(quoted))
    run = assembled(quoted) or composed_by_hydra(quoted)
    run.recipe = recipe
    _resolve_generation(run)
    return run


def composed_by_hydra(overrides: Sequence[str]) -> RunConfig:
    """The run as Hydra composes it, of overrides in its grammar; `generation` isn't resolved. Raises UsageError."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, flag_override
    from omegaconf.errors import OmegaConfBaseException

    with hydra_ready():
        try:
            composed = hydra_compose("config", list(overrides), return_hydra_config=True)
            chosen = composed.hydra.runtime.choices
            choices = {slot: str(chosen[slot]) for slot in (*SLOTS, "experiment")}
            with flag_override(composed, ["struct", "readonly"], False):
                del composed["hydra"]
            unknown = unknown_key(composed)
            if unknown:
                raise UsageError(unknown)
            run = OmegaConf.to_object(composed)
        except (HydraException, OmegaConfBaseException, ValueError, LookupError) as error:
            raise UsageError(explain(overrides, error)) from error
    assert isinstance(run, RunConfig)
    run.choices = choices
    return run


def restore(data: dict[str, Any]) -> RunConfig:
    """The run that `RunConfig.to_dict` wrote down; a slot or a scalar key younger than the writing takes its default."""
    slots: dict[str, Any] = {}
    choices = {}
    for slot in SLOTS:
        values = dict(data.get(slot) or {"option": default_options()[slot]})
        choices[slot] = values.pop("option")
        file = option_files()[slot].get(choices[slot])
        if file is None:
            raise UsageError(
                f"{slot}={choices[slot]}: this process doesn't find that option\n"
                "  instead: --config-dir with its folder, or pip install the plug-in that has it"
            )
        slots[slot] = file.option(**values)
    generation = Generation(**data["generation"])
    scalars = {key: data[key] for key in SCALARS if key in data}
    published = dict(data["experiment"])
    choices["experiment"] = published.pop("name")
    run = RunConfig(**slots, **scalars, generation=generation, choices=choices)
    run.experiment = Experiment(**published)
    run.recipe = UsedRecipe(**data.get("recipe", {}))
    return run


def with_option(run: RunConfig, slot: str, option: str) -> RunConfig:
    """Another run that differs in one slot's option."""
    changed = copy.copy(run)
    setattr(changed, slot, option_files()[slot][option].option())
    changed.choices = {**run.choices, slot: option}
    return changed


def _resolve_generation(run: RunConfig) -> None:
    """Fill what was left at null with the model's own defaults."""
    assert isinstance(run.model, Model)
    own = run.model.generation  # the teacher's, so that its student draws the same
    for f in fields(own):
        if getattr(run.generation, f.name) is None:
            setattr(run.generation, f.name, getattr(own, f.name))
