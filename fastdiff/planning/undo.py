"""A pipeline put back as it was: a snapshot of whatever passes can change, so that no pass needs code of its own to undo it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastdiff.machine.software import said
from fastdiff.models.given import modules_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def undone(
    pipeline: Any, overwritten: Collection[str] = (), frozen: Collection[str] = ()
) -> Iterator[None]:
    """Within it a diffusers pipeline may be changed; at its end everything is as before, also when it ends in an error.

    Put back are the attributes of the pipeline, of every module in its components and of diffusers' hooks on them (and
    with the attributes submodules, weights, hooks, wrapped methods, the class), each weight's place in memory, format and
    device, and whether it wants gradients. Not put back are numbers that were written into a weight's own memory, and
    the state of schedulers and tokenizers, which every call of a pipeline changes.

    overwritten: names of components whose weights are going to be written to. Within, those have copies of them.
    frozen: names of components whose weights are going to be constants of compiled code. Within, those have parameters of
        their own, with the same numbers: torch would take code that it made for the very same parameters in an earlier
        block, whatever numbers they hold by now.

    What was there before is kept in memory: whatever takes the place of a weight comes on top of it.
    """
    parts = modules_of(pipeline)
    distinct = _inner(parts.values())
    hooks = [vars(part)["_diffusers_hook"] for part in distinct if "_diffusers_hook" in vars(part)]
    attributes = [_Attributes(owner) for owner in (pipeline, *distinct, *hooks)]
    tensors = {id(tensor): tensor for part in distinct for tensor in _tensors(part)}
    weights = [_Weight(tensor) for tensor in tensors.values()]
    try:
        _copy_numbers(parts[name] for name in parts.keys() & overwritten)
        _exchange_parameters(parts[name] for name in parts.keys() & frozen)
        yield
    finally:
        for owner in attributes:
            owner.put_back()
        for weight in weights:
            weight.put_back()


_CONTAINERS = (dict, OrderedDict, list, set)


class _Attributes:
    """An object's class and attributes, and what those of them that are containers hold."""

    def __init__(self, owner: Any) -> None:
        self._owner, self._kind, self._values = owner, type(owner), dict(vars(owner))
        # Exactly these types: others, as diffusers' configurations, are replaced and never changed.
        containers = [value for value in self._values.values() if type(value) in _CONTAINERS]
        self._contents = [(container, copy.copy(container)) for container in containers]

    def put_back(self) -> None:
        for container, content in self._contents:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        if type(self._owner) is not self._kind:
            object.__setattr__(self._owner, "__class__", self._kind)
        # Not by setattr, which modules and pipelines have given a meaning of their own.
        attributes = vars(self._owner)
        attributes.clear()
        attributes.update(self._values)


class _Weight:
    """A parameter or buffer: where its numbers lie, and whether it wants gradients.

    Moving or casting a module exchanges the numbers under the same parameter.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._wants_gradients = tensor, tensor.requires_grad
        self._data = tensor.data if _is_plain(tensor) else None

    def put_back(self) -> None:
        if self._data is not None and _place(self._tensor) != _place(self._data):
            self._tensor.data = self._data
        if self._tensor.requires_grad != self._wants_gradients:
            self._tensor.requires_grad_(self._wants_gradients)


def _inner(parts: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules with all that is in them, each once."""
    return list({id(inner): inner for part in parts for inner in part.modules()}.values())


def _tensors(part: nn.Module) -> Iterator[torch.Tensor]:
    """A module's own parameters and buffers, its submodules' left out."""
    for tensor in chain(part._parameters.values(), part._buffers.values()):
        if tensor is not None:
            yield tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its numbers are its own, and not in the tensors that a quantized one is made of."""
    import torch

    return type(tensor.data) is torch.Tensor


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where a tensor's numbers lie, and how they are to be read."""
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _copy_numbers(parts: Iterable[nn.Module]) -> None:
    """Let the parameters and buffers of modules have their numbers in memory of their own."""
    copied: set[int] = set()
    for part in _inner(parts):
        for tensor in _tensors(part):
            if id(tensor) not in copied and _is_plain(tensor):
                tensor.data = tensor.data.clone()
                copied.add(id(tensor))


def _exchange_parameters(parts: Iterable[nn.Module]) -> None:
    """Put new parameters with the same numbers in the place of modules' own; what is shared stays shared."""
    from torch import nn

    new: dict[int, nn.Parameter] = {}
    for part in _inner(parts):
        for key, weight in part._parameters.items():
            if weight is not None:
                made = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
                part._parameters[key] = new.setdefault(id(weight), made)


@contextmanager
def flags_put_back() -> Iterator[None]:
    """Within it the process flags that make fp32 less exact may be set; at its end those that differ are put back."""
    import torch

    cudnn = torch.backends.cudnn
    before = _flags()
    try:
        yield
    finally:
        after = _flags()
        if before["matmul"] not in (None, after["matmul"]):
            torch.set_float32_matmul_precision(before["matmul"])
        for name in ("allow_tf32", "benchmark"):
            if before[name] not in (None, after[name]):
                setattr(cudnn, name, before[name])


def _flags() -> dict[str, Any]:
    """None for a flag that torch doesn't tell, because somebody set it by its newer name."""
    import torch

    cudnn = torch.backends.cudnn
    return {
        "matmul": said(torch.get_float32_matmul_precision),
        "allow_tf32": said(lambda: cudnn.allow_tf32),
        "benchmark": cudnn.benchmark,
    }
