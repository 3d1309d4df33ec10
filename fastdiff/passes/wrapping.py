"""Doing something around each call of a module without changing anything outside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def around_forward(module: nn.Module, enter: Callable[[], AbstractContextManager[Any]]) -> None:
    """Run every `forward` of the module inside a fresh context from `enter`.

    Wraps `forward`, because Python ignores a `__call__` set on an instance.
    """
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with enter():
            return inner(*args, **kwargs)

    module.forward = forward  # type: ignore[method-assign]
