"""torch.compile for the layers of a model, which a small one or a short pass spends more time between than in.

Layers alone are compiled, one code for all of them: what stands around them (masks, positions, the head, where only some
places are asked for) goes on as it is. Numbers differ by rounding, so where two tokens are all but equally likely another
may be drawn. Leaves out passes that keep keys: what they read changes with every block, and each would be compiled anew.
"""

import importlib.util
import os
import shutil

import torch
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


def compile_layers(model: torch.nn.Module) -> None:
    """Has the layers of one of transformers' models compiled, in place, at the first pass that reads them.

    Raises `ValueError` where nothing can compile, and for models that are adapted or name no layers.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{type(model).__name__} cannot be compiled: merge the adapter (`lockstitch export`) first")
    check_compiler(model.device)
    layers = next((module for name, module in model.named_modules() if name.endswith(".layers")), None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(f"{type(model).__name__} cannot be compiled: it names no list of layers")
    for layer in layers:
        layer.compile(dynamic=True)
