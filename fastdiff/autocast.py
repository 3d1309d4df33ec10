"""torch.autocast, which fastdiff refuses: what it would cast, the plan knows nothing of."""

from __future__ import annotations

from fastdiff.errors import RunError

_GUIDE = "https://huggingface.co/docs/diffusers/optimization/fp16"


def refuse_autocast() -> None:
    """Raise RunError if torch.autocast is on in this thread, for any kind of device."""
    import torch

    for device in ("cpu", "cuda", "mps"):
        if torch.is_autocast_enabled(device):
            raise RunError(
                f"torch.autocast is on ({device}): it casts at every operation, which is slower than weights in half "
                "precision, and it can paint pictures black\n"
                "  instead: leave torch.autocast out and take precision=fp16 or precision=bf16\n"
                f"  source: {_GUIDE}"
            )
