"""What a denoising step does outside the model: how many operations, and how often the host reads a result.

A small model, or a large one on a fast device, waits for these: each is a launch, and what is read from the device
lets it stand idle.
"""

import statistics

import pytest
import torch
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoising import Denoising
from lockstitch.sampling.families import BIDIRECTIONAL, BLOCK_CAUSAL, CONTEXT_CAUSAL
from lockstitch.sampling.loop import make_rows
from models import random_denoiser
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MOST, MOST_READS = 100, 4
READS = (
    "aten.item",
    "aten._local_scalar_dense",
    "aten.is_nonzero",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
)
POLICIES = {
    "quota": {},
    "threshold": {"policy": "threshold", "threshold": 0.5},
    "forks": {"policy": "threshold", "threshold": 0.5, "fallback": "leftmost"},
}
LAYOUTS = [
    (BIDIRECTIONAL, "none"),
    (BIDIRECTIONAL, "dual"),
    (BLOCK_CAUSAL, "none"),
    (BLOCK_CAUSAL, "block"),
    (CONTEXT_CAUSAL, "block"),
]


class Counted(TorchDispatchMode):
    """Counts, between one pass of a model and the next, operations and what the host reads.

    A view computes nothing and is not counted: what is given back is memory that was there, and nothing wrote to it.
    Attributes: `steps`, pairs of both counts.
    """

    def __init__(self, model):
        super().__init__()
        self.inside, self.steps, self.now = False, [], [0, 0]
        model.register_forward_pre_hook(self.enters)
        model.register_forward_hook(self.leaves)

    def enters(self, *_):
        self.inside = True
        self.steps.append(tuple(self.now))
        self.now = [0, 0]

    def leaves(self, *_):
        self.inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not self.inside:
            given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
            got = result if isinstance(result, (tuple, list)) else [result]
            viewed = all(isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() in given for one in got)
            self.now[0] += not viewed or function._schema.is_mutable
            self.now[1] += str(function).startswith(READS) or self.masks(args)
        return result

    @staticmethod
    def masks(args):
        """Whether places are given by a bool tensor, which has to be read to know how many they are."""
        lists = [one for arg in args if isinstance(arg, (tuple, list)) for one in arg]
        return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in lists)


class Transfers(TorchFunctionMode):
    """Counts what is brought to the host from a device, which a tensor that lives on the CPU is asked for as well."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.Tensor.cpu
        return function(*args, **(kwargs or {}))


def run(family, **settings):
    denoiser = random_denoiser(family=family)
    config = SamplerConfig(canvas_length=24, block_length=12, **settings)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]
    return denoiser.model, Denoising(denoiser, make_rows(denoiser, prompts, config, 2, 0), config)


@pytest.mark.filterwarnings("ignore:n=2 at temperature=0")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("family", "cache"), LAYOUTS, ids=lambda one: getattr(one, "name", one))
def test_a_step_is_few_operations_and_hardly_reads(family, cache, policy, temperature):
    with torch.inference_mode():
        model, denoising = run(family, cache=cache, temperature=temperature, **POLICIES[policy])
        with Counted(model) as counted:
            denoising.run()
    steps = counted.steps[1:]  # what comes before the first pass is not between two
    assert statistics.mean(operations for operations, _ in steps) <= MOST
    assert statistics.median(reads for _, reads in steps) <= MOST_READS


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_waits_for_the_device_once(policy):
    with torch.inference_mode():
        model, denoising = run(BIDIRECTIONAL, temperature=1.0, **POLICIES[policy])
        with Transfers() as transfers, Counted(model) as counted:
            denoising.run()
    assert transfers.count == len(counted.steps)
