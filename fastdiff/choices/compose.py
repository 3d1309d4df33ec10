"""Words as typed, an experiment and a recipe → one RunConfig; what can't be read, `refusals` puts into words.

All three are layers: options of slots, and keys. A run is its options, one by one: each is its file, the layers' keys over
it and the typed ones over those, so that an option is made once, whatever else is chosen. Hydra itself is asked for its own
keys alone (`hydras_config`); that it would compose the same run a test holds.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from fastdiff.choices.experiments import read_experiment
from fastdiff.choices.folders import config_name
from fastdiff.choices.hydras_keys import hydras_own
from fastdiff.choices.option_yaml import content
from fastdiff.choices.options import OptionFile, default_options, option_files, schemas
from fastdiff.choices.overrides import Keys, Layer, quote_literal
from fastdiff.choices.plugins import Found, plugins
from fastdiff.choices.primary import primary
from fastdiff.choices.recipe.format import Recipe
from fastdiff.choices.recipe.using import used, with_recipe
from fastdiff.choices.refusals import explain, raise_all, refusals
from fastdiff.config import (
    CONF_DIR,
    NO_EXPERIMENT,
    SCALARS,
    SLOTS,
    Experiment,
    Generation,
    RunConfig,
    UsedRecipe,
)
from fastdiff.errors import UsageError
from fastdiff.models.sources import Model

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose(
    overrides: Sequence[str], literal: bool = True, recipe: Recipe | None = None
) -> RunConfig:
    """The run that these overrides describe; raises UsageError.

    overrides: `recipe=FILE` among them stands for what that file says; the others win over it.
    literal: take texts as they stand; False reads them by Hydra's grammar, as a grid does.
    recipe: one that was read already, instead of a file's.
    `generation` is resolved: where it is null the model's own default stands.
    """
    return compose_with_hydra(overrides, literal, recipe)[0]


def compose_with_hydra(
    overrides: Sequence[str], literal: bool = True, recipe: Recipe | None = None
) -> tuple[RunConfig, DictConfig | None]:
    """The run, and Hydra's whole configuration where a word sets more of it than a folder's name."""
    typed, brought, layer = (
        (overrides, *used(recipe, overrides)) if recipe else with_recipe(overrides)
    )
    quoted = [quote_literal(word) for word in typed] if literal else list(typed)
    brought_by = (primary().choices, layer.choices)
    taken = [f"{slot}={option}" for each in brought_by for slot, option in each.items()]
    raise_all(refusals([*taken, *quoted]))
    own = hydras_own(quoted)
    ours = [word for word in quoted if word not in own]
    run = _composed(ours, layer)
    run.recipe = brought
    _resolve_generation(run)
    asked = primary().asks_hydra or (own and plain_folder(own) is None)
    return run, hydras_config([*brought.overrides, *quoted]) if asked else None


def plain_folder(own: Sequence[str]) -> str | None:
    """The folder that Hydra's own keys name, if they say nothing else, and say it without Hydra's grammar."""
    named = [re.fullmatch(r"hydra\.run\.dir=(['\"]?)([\w./ ~+@%-]+)\1", word) for word in own]
    return named[-1][2] if named and named[-1] and all(named) else None


# Hydra's own -----------------------------------------------------------------------------------------


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


def register_schemas() -> None:
    """What Hydra has to know of options that are no files of `conf/`: schemas, plug-ins, a team's folders."""
    from hydra.core.plugins import Plugins

    from fastdiff.choices.search_path import TeamFolders

    _store(plugins())
    Plugins.instance().register(TeamFolders)  # anew: launchers give their processes a new instance


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra with fastdiff's options and schemas, as often in a process as wanted."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), "fastdiff", version_base="1.3"):
        yield


def hydras_config(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of overrides in its grammar, its own configuration included. Raises UsageError."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with hydra_ready():
        try:
            found: DictConfig = hydra_compose(
                config_name(), list(overrides), return_hydra_config=True
            )
            return found
        except (HydraException, OmegaConfBaseException, ValueError, LookupError) as error:
            raise UsageError(explain(overrides, error)) from error


# A run -----------------------------------------------------------------------------------------------

Failure = tuple[str, Exception]
"""The override that can't be set, or nothing where none is to blame, and what Hydra says, or would say, of it."""

_OUTSIDE = "outside"
"""For the keys that belong to no slot."""
_OUTSIDE_NAMES = ("generation", "experiment", *SCALARS)


def _composed(words: Sequence[str], brought: Layer) -> RunConfig:
    """The run of overrides in Hydra's grammar whose names are known to be right, over what was brought. Raises UsageError.

    A key left at null stays null.
    """
    typed = {key: value.strip() for key, _, value in (word.partition("=") for word in words)}
    first = primary()
    experiment = typed.get("experiment") or first.choices.get("experiment", NO_EXPERIMENT)
    layers = [Layer(first.choices, first.keys), brought]
    if experiment != NO_EXPERIMENT:
        taken = read_experiment(experiment)
        layers.insert(1, Layer(taken.choices, taken.keys, experiment))
    choices = dict(default_options())
    for options in (*(layer.choices for layer in layers), typed):
        choices |= {slot: options[slot] for slot in SLOTS if slot in options}
    choices["experiment"] = experiment
    set_in: dict[str, list[str]] = {root: [] for root in (*SLOTS, _OUTSIDE)}
    for word in words:
        key = word.partition("=")[0]
        root = key.partition(".")[0]
        if key not in choices:
            set_in[root if root in SLOTS else _OUTSIDE].append(word)
    parts = []
    for root, of_root in set_in.items():
        file = option_files()[root][choices[root]] if root in SLOTS else None
        names = _names(file)
        keys = [
            (layer.name, Keys({n: layer.keys[n] for n in names if n in layer.keys}))
            for layer in layers
        ]
        parts.append((file, tuple(each for each in keys if each[1]), tuple(of_root)))
    failures = [failure for part in parts for failure in _changed(*part)[1]]
    values: dict[str, Any] = {}
    if not failures:
        values, failures = _objects(parts)
    if failures:
        raise _refused(words, choices, failures)
    # Each part serves many runs, and whoever has a run may change it.
    return RunConfig(**copy.deepcopy(values), choices=choices)


def _refused(words: Sequence[str], choices: dict[str, str], failures: list[Failure]) -> UsageError:
    """In the order typed, what is wrong with a part as a whole last."""
    chosen = [f"{key}={value}" for key, value in choices.items()]
    failures.sort(key=lambda failure: words.index(failure[0]) if failure[0] else len(words))
    reasons = [explain([*chosen, *([word] if word else words)], error) for word, error in failures]
    refused = UsageError(reasons[0], reasons)
    refused.__cause__ = failures[0][1]
    return refused


Part = tuple[OptionFile | None, tuple[tuple[str | None, Keys], ...], tuple[str, ...]]
"""An option's file, or None for what is outside the slots; what layers say of it, each with its name; typed overrides."""


def _objects(parts: Sequence[Part]) -> tuple[dict[str, Any], list[Failure]]:
    """The values of every part, together; interpolations are looked up in the whole run where one part can't tell."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    values: dict[str, Any] = {}
    failures: list[Failure] = []
    whole: Any = None
    for part in parts:
        made, error = _made(*part)
        if isinstance(error, InterpolationResolutionError):
            if whole is None:
                whole = OmegaConf.create({}, flags={"allow_objects": True})
                for each in parts:
                    node = _changed(*each)[0]
                    whole.update({name: node._get_node(name) for name in _names(each[0])})
            made, error = _plain(whole, _names(part[0]))
        values |= made
        failures += [("", error)] if error else []
    return values, failures


@cache
def _made(*part: Any) -> tuple[dict[str, Any], Exception | None]:
    return _plain(_changed(*part)[0], _names(part[0]))


def _names(file: OptionFile | None) -> Sequence[str]:
    return (file.slot,) if file else _OUTSIDE_NAMES


def _plain(node: DictConfig, names: Sequence[str]) -> tuple[dict[str, Any], Exception | None]:
    """The values of some keys, as objects of their schemas."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    found = {}
    try:
        for name in names:
            value = node[name]
            found[name] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, ValueError) as error:
        return {}, error
    return found, None


@cache
def _described(
    file: OptionFile | None, brought: tuple[tuple[str | None, Keys], ...]
) -> DictConfig | Exception:
    """An option as its file describes it, and layers change it, below its slot's name; or what is beside the slots."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if file:
        node: Any = OmegaConf.create({file.slot: file.node({})})
    else:
        said = content(CONF_DIR / "config.yaml")
        ours = {name: said[name] for name in _OUTSIDE_NAMES if name in said}
        node = OmegaConf.merge(OmegaConf.structured(RunConfig), ours)
    for name, keys in brought:
        try:
            node.merge_with(dict(keys))
        except (OmegaConfBaseException, ValueError) as error:
            from hydra.errors import ConfigCompositionException

            kind = type(error).__name__
            said_in = f"In 'experiment/{name}': {kind} raised while composing config:"
            return ConfigCompositionException(f"{said_in}\n{error}") if name else error
    OmegaConf.set_struct(node, True)
    _open_mappings(node)
    return node  # type: ignore[no-any-return]


def _open_mappings(node: DictConfig) -> None:
    """Let keys that are declared as mappings, such as generation.call, take any names."""
    from omegaconf import DictConfig, OmegaConf

    for name in node:
        inner = node._get_node(name)
        if not isinstance(inner, DictConfig) or inner._is_none() or inner._is_missing():
            continue
        if OmegaConf.get_type(node) is not dict and OmegaConf.get_type(inner) is dict:
            OmegaConf.set_struct(inner, False)
        else:
            _open_mappings(inner)


@cache
def _changed(
    file: OptionFile | None,
    brought: tuple[tuple[str | None, Keys], ...],
    words: tuple[str, ...],
) -> tuple[DictConfig, tuple[Failure, ...]]:
    """What is described, with typed keys set as Hydra sets them; and those that can't be."""
    from omegaconf import OmegaConf

    described = _described(file, brought)
    if isinstance(described, Exception):
        return OmegaConf.create({}), (("", described),)
    if not words:
        return described, ()
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import ConfigCompositionException, HydraException
    from omegaconf.errors import OmegaConfBaseException

    node, parser, failures = copy.deepcopy(described), OverridesParser.create(), []
    for word in words:
        try:
            override = parser.parse_override(word)
            if override.is_sweep_override():
                raise ConfigCompositionException(f"Sweep parameters '{word}' requires --multirun")
            if override.package is not None:
                raise ConfigCompositionException(
                    f"Override {word} looks like a config group override, but config group "
                    f"'{override.key_or_group}' does not exist."
                )
            OmegaConf.update(node, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException as error:
            failures.append((word, _as_hydra_says(word, error)))
        except (HydraException, ValueError, LookupError) as error:
            failures.append((word, error))
    return node, tuple(failures)


def _as_hydra_says(word: str, error: Exception) -> Exception:
    from hydra.errors import ConfigCompositionException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    key = word.partition("=")[0]
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        said = f"Could not override '{key}'.\nTo append to your config use +{word}"
    else:
        said = f"Error merging override {word}"
    refused: Exception = ConfigCompositionException(said)
    refused.__cause__ = error
    return refused


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
    from omegaconf import OmegaConf

    changed = copy.copy(run)
    whole = OmegaConf.create(run.to_dict() | {slot: option_files()[slot][option].node({})})
    setattr(changed, slot, OmegaConf.to_object(whole[slot]))  # `${...}` is of the whole run
    changed.choices = {**run.choices, slot: option}
    return changed


def _resolve_generation(run: RunConfig) -> None:
    """Fill what was left at null with the model's own defaults."""
    assert isinstance(run.model, Model)
    own = run.model.generation  # the teacher's, so that its student draws the same
    call = {**own.call, **run.generation.call}
    for f in fields(own):
        if getattr(run.generation, f.name) is None:
            setattr(run.generation, f.name, getattr(own, f.name))
    run.generation.call = {name: value for name, value in call.items() if value is not None}
