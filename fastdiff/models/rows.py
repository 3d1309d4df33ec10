"""Rows that layers see in a call of a pipeline, counted without computing: every model is stood in for by one without weights.

An exported script holds these functions word for word, so they use torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def without_weights(part: Any) -> Any:
    """The same class with the same configuration, in fp32 on the meta device, its projections fused if the part's are."""
    import copy

    import torch

    # A model of transformers takes its configuration, and may write into it.
    make = getattr(type(part), "from_config", None) or type(part)
    config = part.config if hasattr(type(part), "from_config") else copy.deepcopy(part.config)
    with torch.device("meta"):
        made: Any = make(config)
    if any(getattr(module, "fused_projections", False) for module in part.modules()):
        made.fuse_qkv_projections()
    return made.eval()


def without_numbers(given: Any) -> Any:
    """The same arguments with tensors of the meta device in the place of tensors, fp32 where they had a point."""
    import torch
    from torch.utils import _pytree

    leaves, structure = _pytree.tree_flatten(given)
    empty = [
        torch.empty(
            leaf.shape,
            dtype=torch.float32 if leaf.is_floating_point() else leaf.dtype,
            device="meta",
        )
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    ]
    return _pytree.tree_unflatten(empty, structure)


def stand_in(part: Any, method: str, rows: dict[str, int] | None, splits: Any) -> Any:
    """A method that answers with zeros of the right shapes, and notes the fewest rows that each layer has seen.

    rows: by the layer's path; None counts nothing, and lets the real method work where a model can't be without weights.
    """
    import torch
    from torch.utils import _pytree

    own, seen, real = next(part.parameters(), None), {}, getattr(part, method)
    noted = {} if rows is None else rows
    if own is None:
        return real
    try:
        made = without_weights(part)
        for way in splits:
            getattr(made, f"enable_{way}")()
    except Exception:
        if rows is not None:
            raise
        return real

    def noting(path: str, width: int) -> Callable[..., None]:
        def note(layer: Any, args: Any, kwargs: Any) -> None:
            given = [*args, *kwargs.values()][0]
            count = given.numel() // width
            noted[path] = min(count, noted.get(path, count))

        return note

    for path, layer in made.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(noting(path, layer.in_features), with_kwargs=True)
        elif isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(noting(path, layer.in_channels), with_kwargs=True)

    def answer(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        if shapes not in seen:
            meta_args, meta_kwargs = without_numbers((args, kwargs))
            try:
                with torch.no_grad():
                    seen[shapes] = getattr(made, method)(*meta_args, **meta_kwargs)
            except Exception:
                if rows is not None:
                    raise
                return real(*args, **kwargs)
        dtype = next((x.dtype for x in tensors if x.is_floating_point()), own.dtype)
        device = next((x.device for x in tensors), own.device)

        def zeros(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            kind = dtype if leaf.is_floating_point() else leaf.dtype
            return torch.zeros(leaf.shape, dtype=kind, device=device)

        return _pytree.tree_map(zeros, seen[shapes])

    return answer


def fewest_rows(pipe: Any, names: Any, call: Callable[[], Any], splits: Any = ()) -> Any:
    """The fewest rows that linear layers of these components see in a call of the pipeline, by component and path.

    Pointwise convolutions count as linear layers. A layer that the call doesn't reach is missing.
    splits: how the VAE is going to divide its work: "slicing", "tiling".
    """
    import torch

    found: dict[str, dict[str, int]] = {name: {} for name in names}
    models = {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}
    shown, replaced = getattr(pipe, "_progress_bar_config", {}), []
    pipe.set_progress_bar_config(disable=True)
    try:
        for name, part in models.items():
            decodes = hasattr(part, "decode")
            method = "decode" if decodes else "forward"
            answers = stand_in(part, method, found.get(name), splits if decodes else ())
            replaced.append((part, method, vars(part).get(method)))
            setattr(part, method, answers)
        call()
    finally:
        for part, method, own in reversed(replaced):
            delattr(part, method)
            if own is not None:
                setattr(part, method, own)
        pipe.set_progress_bar_config(**shown)
    return found
