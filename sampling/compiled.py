"""torch.compile for the layers of a model, which a small one or a short pass spends more time between than in.

Layers alone are compiled, one code for all of them: what stands around them (masks, positions, the head, where only some
places are asked for) goes on as it is. Numbers differ by rounding, so where two tokens are all but equally likely another
may be drawn. Leaves out passes that keep keys: what they read changes with every block, and each would be compiled anew.
"""

import importlib.util
import os
import shutil

import torch
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.mask_gate import is_gated
from peft import PeftModel
from transformers import PreTrainedModel

_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(device: torch.device) -> None:
    """Raises `ValueError`, naming what is missing, where torch.compile cannot make code for a device."""
    if device.type == "cpu":
        asked = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ([asked] if asked else _COMPILERS)):
            looked = f"CXX={asked}" if asked else ", ".join(_COMPILERS)
            raise ValueError(f"torch.compile needs a C++ compiler, and there is none here ({looked})")
    elif importlib.util.find_spec("triton") is None:
        raise ValueError(f"torch.compile needs triton on {device.type}, which is not installed")


def check_compiled(config: SamplerConfig) -> None:
    """Raises `ValueError` for sampler's settings that compiled layers do not serve."""
    if config.cache != "none":
        raise ValueError(
            f"cache={config.cache!r}: what a pass reads of kept keys changes with every block, and compiled layers would be "
            "compiled anew each time; cache='none'"
        )


def compile_layers(model: torch.nn.Module, backend: str | None = None, mode: str | None = None) -> None:
    """Has the layers of one of transformers' models compiled, in place, at the first pass that reads them.

    Args:
        model: the model, or the model in an adapter that trains.
        backend, mode: torch.compile's; None for its own.

    Raises `ValueError` where nothing can compile, and for models with code of their own or that name no layers.
    """
    if is_gated(model):
        raise ValueError(
            "an adapter that acts at mask positions alone cannot be compiled: where they are changes every pass"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name = type(base).__name__
    if not isinstance(base, PreTrainedModel) or type(base).__module__.startswith("transformers_modules"):
        raise ValueError(f"{name} cannot be compiled: it runs code of its own")
    check_compiler(base.device)
    layers = next((module for name, module in base.named_modules() if name.endswith(".layers")), None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(f"{name} cannot be compiled: it names no list of layers")
    for layer in layers:
        layer.compile(dynamic=True, **({"backend": backend} if backend else {}), mode=mode)
