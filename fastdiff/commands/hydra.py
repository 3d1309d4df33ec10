"""`--cfg`, `--info`, `--hydra-help` and `--shell-completion`: what Hydra itself answers, about fastdiff's configuration."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fastdiff.choices.folders import config_name
from fastdiff.choices.verbs import VERBS
from fastdiff.errors import UsageError, first_line

ANSWERED = (
    *("--cfg", "-c", "--package", "-p", "--resolve", "--info", "-i"),
    *("--hydra-help", "--shell-completion", "-sc"),
)
"""Flags that make it an answer of Hydra's, and no run."""

REFUSED = {
    "--config-path": ("-cp", "fastdiff's own options are always there", "--config-dir DIR"),
    "--experimental-rerun": (
        "",
        "a run is repeated from what it wrote",
        "python -m fastdiff recipe save RUN_DIR -o FILE",
    ),
}
"""Other flags of Hydra's: their short form, why they aren't served, and the way out."""


def is_asked(words: Sequence[str]) -> bool:
    """Whether the words ask Hydra for one of its answers."""
    return any(word.partition("=")[0] in ANSWERED for word in words)


def refuse(words: Sequence[str]) -> None:
    """Raises UsageError for a flag of Hydra's that isn't served."""
    for word in words:
        for flag, (short, reason, instead) in REFUSED.items():
            if word.partition("=")[0] in (flag, short or flag):
                raise UsageError(f"{flag} isn't served: {reason}\n  instead: {instead}")


def run(words: list[str]) -> int:
    """Hydra's answer; what is misspelled is refused before it. Raises UsageError."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fastdiff.choices.compose import register_schemas
    from fastdiff.choices.refusals import explain
    from fastdiff.config import CONF_DIR

    parser, asked = _read(words)
    register_schemas()
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra.create_main_hydra2("fastdiff", create_config_search_path(str(CONF_DIR)))
        _answer(hydra, parser, asked)
    except (HydraException, OmegaConfBaseException, ValueError, LookupError) as error:
        if asked.shell_completion:
            raise UsageError(
                f"{first_line(error, 200)}\n  instead: -sc install=bash, zsh or fish"
            ) from error
        raise UsageError(explain(asked.overrides, error)) from error
    finally:
        GlobalHydra.instance().clear()
    return 0


def _read(words: list[str]) -> tuple[Any, Namespace]:
    """Hydra's own parser, and what it reads. Raises UsageError."""
    from argparse import ArgumentError

    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        asked, unknown = parser.parse_known_args(words)
    except ArgumentError as error:
        raise UsageError(f"{error}\n  instead: python -m fastdiff --hydra-help") from error
    if unknown:
        raise UsageError(
            f"there is no option {unknown[0]}\n  instead: python -m fastdiff --hydra-help"
        )
    several = [bool(each) for each in (asked.cfg, asked.info, asked.shell_completion)]
    if sum(several) + asked.multirun > 1:
        raise UsageError(
            "one of --cfg, --info, --shell-completion and -m at a time\n  instead: leave the others out"
        )
    for flag in ("resolve", "package"):
        if getattr(asked, flag) and not asked.cfg:
            raise UsageError(
                f"--{flag} says what --cfg prints\n  instead: --cfg job --{flag}, or leave it out"
            )
    return parser, asked


def _answer(hydra: Any, parser: Any, asked: Namespace) -> None:
    if asked.hydra_help:
        hydra.hydra_help(config_name="config", args_parser=parser, args=asked)
    elif asked.shell_completion:
        sys.argv[0] = "fastdiff"  # which Hydra completes; for `python` it would look for a file
        typed, *words = os.environ.get("COMP_LINE", "").split(" ")
        if words and words[0] in VERBS:  # which Hydra would take for an override
            os.environ["COMP_LINE"] = " ".join([typed, *words[1:]])
        hydra.shell_completion(config_name=config_name(), overrides=asked.overrides)
    elif asked.cfg:
        hydra.show_cfg(config_name(), _words(asked), asked.cfg, asked.package, asked.resolve)
    else:
        hydra.show_info(asked.info, config_name=config_name(), overrides=_words(asked))


def _words(asked: Namespace) -> list[str]:
    """The overrides in Hydra's grammar, a recipe spelled out. Raises UsageError for what composes to no run."""
    from fastdiff.choices.compose import compose
    from fastdiff.choices.overrides import quote_literal
    from fastdiff.choices.recipe.using import with_recipe

    compose(asked.overrides)
    typed, recipe, _ = with_recipe(asked.overrides)
    return [*recipe.overrides, *map(quote_literal, typed)]
