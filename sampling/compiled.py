"""torch.compile for the layers of a model, which a small one or a short pass spends more time between than in.

Layers alone are compiled, one code for all of them: what stands around them (masks, positions, the head, where only some
places are asked for) goes on as it is. Numbers differ by rounding, so where two tokens are all but equally likely another
may be drawn. Leaves out passes that keep keys: what they read changes with every block, and each would be compiled anew.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile

import torch
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.mask_gate import is_gated
from peft import PeftModel
from transformers import PreTrainedModel

_COMPILER = "clang++" if sys.platform == "darwin" else "g++"  # the one that torch.compile calls where CXX names none
# The C++ library's headers are often a package of their own.
_PROGRAM = b"#include <vector>\nint main() { return 0; }\n"
_INDUCTOR = "inductor"


def check_compiler(device: torch.device) -> None:
    """Raises `ValueError`, naming what is missing, where torch.compile cannot make code for a device."""
    if device.type == "cpu":
        asked = os.environ.get("CXX")
        compiler = _COMPILER if asked is None else asked
        looked = _COMPILER if asked is None else f"CXX={asked}"
        with tempfile.TemporaryDirectory() as folder:
            command = [compiler, "-x", "c++", "-shared", "-fPIC", "-", "-o", f"{folder}/program.so"]
            try:
                done = subprocess.run(command, input=_PROGRAM, capture_output=True, check=False)
            except OSError as error:
                raise ValueError(f"torch.compile needs a C++ compiler, and there is none here ({looked})") from error
            if done.returncode or not os.path.exists(command[-1]):
                says = done.stderr.decode(errors="replace").strip().partition("\n")[0] or "it makes nothing"
                raise ValueError(f"torch.compile needs a C++ compiler that works, and {looked} does not: {says}")
    elif importlib.util.find_spec("triton") is None:
        raise ValueError(f"torch.compile needs triton on {device.type}, which is not installed")


def check_backend(backend: str | None, mode: str | None) -> None:
    """Raises `ValueError` for a backend or a mode that torch.compile does not have, and for a mode that none would read."""
    from torch._dynamo import list_backends  # slow to import
    from torch._inductor import list_mode_options

    if backend is not None and backend not in list_backends(None):  # those for debugging too
        raise ValueError(f"torch_compile_backend={backend!r} is not one of {', '.join(list_backends())}")
    if mode is None:
        return
    if backend not in (None, _INDUCTOR):
        raise ValueError(
            f"torch_compile_mode={mode!r} would be ignored by torch_compile_backend={backend!r}: it is {_INDUCTOR}'s"
        )
    if mode not in list_mode_options():
        raise ValueError(f"torch_compile_mode={mode!r} is not one of {', '.join(list_mode_options())}")


def check_asked(backend: str | None, mode: str | None, device: torch.device) -> None:
    """What `check_backend` and, where the backend calls a compiler, `check_compiler` raise."""
    check_backend(backend, mode)
    if backend in (None, _INDUCTOR):
        check_compiler(device)


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

    Raises `ValueError` where nothing can compile or there is no such backend or mode, and for models with code of their
    own or that name no layers.
    """
    if is_gated(model):
        raise ValueError(
            "an adapter that acts at mask positions alone cannot be compiled: where they are changes every pass"
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name = type(base).__name__
    if not isinstance(base, PreTrainedModel) or type(base).__module__.startswith("transformers_modules"):
        raise ValueError(f"{name} cannot be compiled: it runs code of its own")
    check_asked(backend, mode, base.device)
    layers = next((module for name, module in base.named_modules() if name.endswith(".layers")), None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(f"{name} cannot be compiled: it names no list of layers")
    for layer in layers:
        layer.compile(dynamic=True, **({"backend": backend} if backend else {}), mode=mode)
