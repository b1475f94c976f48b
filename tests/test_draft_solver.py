"""An autoregressive solver that drafts: the plain solver's answers, in fewer passes."""

import json

import pytest
import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.mask_gate import gated
from lockstitch.stitching.cli import main
from lockstitch.stitching.draft_solver import DraftSolver
from lockstitch.stitching.refine import load_solver
from lockstitch.stitching.solvers import TransformersSolver
from models import random_denoiser

from lockstitch import embedded_model

TASK = get_task("arithmetic")
QUESTIONS = ["12, +7, -5, *3", "11, +5", "20, -9, +1"]
EVIDENCES = ["", "[c=1.000] 11+05=16\n", "[c=0.900] 20-09=11\n[c=0.400] 11+01=12\n"]


@pytest.fixture
def drafting(tmp_path):
    """The embedded solver under a gated adapter of random weights: its masks draft at random."""
    denoiser = Denoiser.from_pretrained("embedded:solver", family="idlm", device="cpu")
    model = gated(denoiser.model, lora_config(denoiser, 2, 4, gated=True))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_its_answers_are_the_plain_solver_s_in_fewer_passes(drafting):
    plain = TransformersSolver.from_pretrained(str(embedded_model("solver")), TASK)(QUESTIONS, EVIDENCES)
    solver = load_solver(f"draft:{drafting}", TASK)
    assert isinstance(solver, DraftSolver)
    for batch_size in (16, 1):
        solver.batch_size = batch_size
        found = solver(QUESTIONS, EVIDENCES)
        assert [(a.text, a.tokens, a.written) for a in found] == [(a.text, a.tokens, a.written) for a in plain]
        assert all(a.passes <= a.written for a in found)
        assert sum(a.passes for a in found) < sum(a.written for a in found)


def without_costs(row):
    """A row of results with its ledgers taken out."""
    if isinstance(row, dict):
        return {name: without_costs(value) for name, value in row.items() if name not in ("ledger", "solver")}
    return [without_costs(value) for value in row] if isinstance(row, list) else row


@pytest.mark.slow
def test_stitch_takes_one(drafting, tmp_path):
    """The same rows as with the plain solver, but for what they cost."""
    rows = {}
    for name, solver in (("plain", str(embedded_model("solver"))), ("draft", f"draft:{drafting}")):
        arguments = [
            "--task",
            "arithmetic",
            "--generate",
            "1",
            "--num_trajectories",
            "2",
            "--steps",
            "8",
            "--delta",
            "1",
        ]
        arguments += ["--device", "cpu", "--solver", solver, "--output", str(tmp_path / name)]
        assert main(arguments) == 0
        (rows[name],) = [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
    assert without_costs(rows["plain"]) == without_costs(rows["draft"])


def test_models_without_a_causal_half_are_refused():
    with pytest.raises(ValueError, match="which bidirectional models do not have"):
        DraftSolver(random_denoiser(), TASK)
    solver = DraftSolver(Denoiser.from_pretrained("embedded:solver", family="idlm", device="cpu"), TASK)
    with pytest.raises(ValueError, match=r"is too long: at most \d+ fit"):
        solver(["1+2"], ["[c=1.000] 01+2=03\n" * 1000])
