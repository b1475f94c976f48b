"""A forward pass of a DDP-wrapped model that is made of several.

DDP counts forward passes to know when gradients are complete. An estimate takes many passes, and takes them again in the
backward pass where it keeps nothing. Leaves out sharded models (FSDP, ZeRO-3), whose modules gather what they need by
themselves.
"""

from collections.abc import Callable

import torch
from torch.nn.parallel import DistributedDataParallel


def as_one_pass(model: torch.nn.Module, run: Callable[[torch.nn.Module], torch.Tensor]) -> torch.Tensor:
    """`run(model)`; where DDP wraps the model, `run(model.module)` as the wrapper's one forward pass.

    However many passes `run` takes, DDP counts one, and reduces gradients once.
    """
    if not isinstance(model, DistributedDataParallel):
        return run(model)
    module = model.module
    own = module.__dict__.get("forward")

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.forward = own

    def forward(_: None) -> torch.Tensor:
        restore()
        return run(module)

    module.forward = forward
    try:
        scored: torch.Tensor = model(None)
    finally:
        restore()
    return scored
