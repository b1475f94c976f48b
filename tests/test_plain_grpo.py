"""The plain form that `scripts/bench_rl.py` compares with does what the trainer does: losses, gradients and steps."""

import sys
from pathlib import Path

import pytest
import torch
from lockstitch.rl.lora import lora_config
from models import random_denoiser

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from bench_rl import Clocks
from rl_steps import Steps, trained

pytestmark = pytest.mark.filterwarnings("ignore")


def updates(form, iterations, lora, settings):
    """Losses, the gradients of every step, and the weights after all."""
    denoiser, gradients = random_denoiser(sharpness=2.0), []
    adapter = lora_config(denoiser, 4, 8) if lora else None
    steps = Steps(denoiser, iterations, adapter, prompt=9, canvas=12, **settings)
    steps.optimizer.register_step_pre_hook(
        lambda optimizer, *_: gradients.append(
            torch.cat([p.grad.ravel() for group in optimizer.param_groups for p in group["params"]])
        )
    )
    return torch.tensor(getattr(steps, form)()), torch.stack(gradients), trained(steps.policy)


@pytest.mark.parametrize(
    ("iterations", "lora", "settings"),
    [
        (3, True, {}),
        (3, False, {"share_prompt_mask": True, "beta": 0.5}),
        (1, False, {"groups": 2, "beta": 0.0}),  # one of them without variance, and dropped
    ],
    ids=["d1", "shared-prompt-mask", "one-iteration-dropped"],
)
def test_the_plain_form_does_what_the_trainer_does(iterations, lora, settings):
    plain, ours = (updates(form, iterations, lora, settings) for form in ("plain", "ours"))
    assert len(plain[0]) == len(plain[1]) == iterations
    torch.testing.assert_close(ours[0], plain[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours[1], plain[1], atol=1e-4 * plain[1].abs().max().item(), rtol=1e-3)
    assert (ours[2] - plain[2]).norm() < 1e-6 * plain[2].norm()


def test_what_is_measured_inside_another_is_taken_from_it():
    clocks = Clocks(iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0]).__next__)
    with clocks.of("outer"):  # from 0 to 1
        with clocks.of("inner"):  # from 1 to 3
            pass
        with clocks.of("inner"):  # from 3.5 to 4
            pass
    assert clocks.seconds == {"outer": 1.0 + 0.5 + 6.0, "inner": 2.0 + 0.5}
