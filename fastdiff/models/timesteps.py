"""What diffusers' pipelines of flow matching hand to their scheduler beside the number of steps.

Schedulers don't take the same: one that is handed what its `set_timesteps` hasn't got fails once everything is loaded. The rows
lie in diffusers.json; tests/models/test_timesteps.py compares them with the installed pipelines' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdiff.models.tables import Table


@dataclass(frozen=True)
class Handed:
    """What a pipeline's call hands to `set_timesteps`.

    sigmas: its own noise levels, as an `array` or a `list`; "" for none.
    but_flow_sigmas: none to a scheduler whose configuration says use_flow_sigmas.
    mu: the shift by picture size: `always`, or where the configuration is `dynamic` (use_dynamic_shifting); "" for never.
    timesteps: its own timesteps beside the noise levels.
    says_where_it_begins: it calls set_begin_index(0), so that a scheduler needn't look up its first timestep.
    """

    sigmas: str = ""
    but_flow_sigmas: bool = False
    mu: str = ""
    timesteps: bool = False
    says_where_it_begins: bool = False


HANDED: Mapping[str, Handed] = Table("diffusers", "handed", lambda row: Handed(**row))
