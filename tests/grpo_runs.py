"""Small training runs for the tests of the GRPO trainer, in this process or in some of their own."""

import multiprocessing
import os
import socket
import sys

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from models import random_denoiser
from peft import LoraConfig

PROMPTS = [f"{i}+{i * 7}=" if i % 3 else f"{i}=" for i in range(12)]  # of several lengths
SETTINGS = {
    "max_steps": 3, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "steps": 4,
    "learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": "none", "use_cpu": True,
    "bf16": False, "save_strategy": "no", "seed": 3, "disable_tqdm": True, "scale_rewards": "none",
    "adam_epsilon": 1e-4,  # or rounding would decide where gradients are all but 0
}  # fmt: skip


def even_tokens(completion_ids, **columns):
    """Share of tokens with an even number."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def make_trainer(
    settings,
    output_dir,
    denoiser=None,
    rewards=even_tokens,
    lora=False,
    prompts=PROMPTS,
    trainer=DiffusionGRPOTrainer,
    **more,
):
    """A trainer of a random model; `settings` go before `SETTINGS`."""
    args = DiffusionGRPOConfig(output_dir=str(output_dir), **{**SETTINGS, **settings})
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None
    data = Dataset.from_dict({"prompt": prompts})
    denoiser = denoiser or random_denoiser(sharpness=2.0)
    return trainer(denoiser, rewards, args, peft_config=adapter, train_dataset=data, **more)


def weights(trainer):
    """Copies of the trained weights, by name."""
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}


def train(settings, output_dir, resume=None, **more):
    """A whole run: its final weights and its log."""
    trainer = make_trainer(settings, output_dir, **more)
    trainer.train(resume_from_checkpoint=resume)
    return weights(trainer), trainer.state.log_history


def _rank(rank, processes, port, settings, output_dir, more):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                       "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # fmt: skip
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    final, log = train(settings, output_dir, **more)
    if rank == 0:
        torch.save({"weights": final, "log": log}, f"{output_dir}/final.pt")
    os._exit(0)  # the parent's exit handlers are the parent's


def launch(processes, settings, output_dir, **more):
    """A run in processes of its own; `finish` waits for it.

    They are forked from a server that has everything imported and no threads: a fork of the tests' own process would
    wait for ever for threads that its arithmetic had started.
    """
    output_dir.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lockstitch.rl.grpo"])
    ranks = [
        context.Process(target=_rank, args=(rank, processes, port, settings, output_dir, more))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def finish(ranks, output_dir):
    """What the run saved: its weights and its log."""
    for rank in ranks:
        rank.join(300)
        assert rank.exitcode == 0
    return torch.load(output_dir / "final.pt", weights_only=True)
