"""Unknown checkpoints, which run their own code: what it cannot do is found by a few tokens, and refused or gone without."""

import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rl.scoring import Scorer
from lockstitch.rl.sft_config import check_device
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loading import usable_device
from lockstitch.sampling.loop import sample
from lockstitch.sampling.remote import mend_buffers
from lockstitch.stitching.plans import TextPlanner
from lockstitch.stitching.refine import load_solver
from lockstitch.stitching.score import load_scorer
from models import tokenizer
from remote_code import FogConfig, FogModel, write_checkpoint

from lockstitch import embedded_model

PROMPTS = [[17, 93, 242], [154, 129, 121, 395, 64, 154, 188]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load(habit="plain", family="bidirectional", dtype="auto", **config):
        path = write_checkpoint(tmp_path / habit, tokenizer(), habit, **config)
        return Denoiser.from_pretrained(str(path), family=family, trust_remote_code=True, device="cpu", dtype=dtype)

    return load


def test_code_runs_only_if_that_is_said_and_the_family_too(tmp_path):
    path = str(write_checkpoint(tmp_path / "fog", tokenizer()))
    with pytest.raises(ValueError, match="model type 'fog' is of no known diffusion family"):
        Denoiser.from_pretrained(path)
    with pytest.raises(ValueError, match="it runs code of its own, which trust_remote_code allows"):
        Denoiser.from_pretrained(path, family="bidirectional")


@pytest.mark.parametrize("device", ["cuda:77", "seven"])
def test_a_device_that_is_not_there(device, tmp_path):
    path = str(write_checkpoint(tmp_path / "fog", tokenizer()))
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        Denoiser.from_pretrained(path, family="bidirectional", trust_remote_code=True, device=device)


@pytest.mark.parametrize(
    "load_on",
    [
        lambda task, device: load_scorer("prm:embedded:sudoku", task, device=device),
        lambda task, device: load_scorer("confidence+likelihood:embedded:sudoku", task, device=device),
        lambda task, device: load_scorer("likelihood:embedded:solver", task, device=device),
        lambda task, device: load_solver(str(embedded_model("solver")), task, device=device),
        lambda task, device: load_solver("draft:embedded:sudoku", task, device=device),
        lambda task, device: TextPlanner.from_pretrained(str(embedded_model("solver")), task, device=device),
    ],
)
def test_scorers_solvers_and_planners_go_where_they_are_told(load_on):
    with pytest.raises(ValueError, match="device='cuda:77' cannot be used here"):
        load_on(get_task("sudoku"), "cuda:77")


def test_a_model_that_is_spread_over_devices_is_refused(tmp_path):
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    with pytest.raises(
        ValueError, match=r"^device_map puts 'embedded:sudoku' on cpu, disk: one device holds the model"
    ):
        Denoiser.from_pretrained("embedded:sudoku", device_map=places, offload_folder=tmp_path)
    assert Denoiser.from_pretrained("embedded:sudoku", device_map={"": "cpu"}).device == torch.device("cpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_build_for_an_accelerator_runs_on_the_cpu_of_a_machine_that_has_none(monkeypatch):
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    assert torch.accelerator.current_accelerator() == torch.device("cuda")  # what such a build says
    task = get_task("sudoku")
    assert Denoiser.from_pretrained("embedded:sudoku").device == torch.device("cpu")
    load_scorer("prm:embedded:sudoku", task)
    load_scorer("likelihood:embedded:solver", task)
    load_solver(str(embedded_model("solver")), task)
    TextPlanner.from_pretrained(str(embedded_model("solver")), task)


def test_an_accelerator_that_cannot_hold_what_noise_is_drawn_in_is_left_for_the_cpu(monkeypatch, caplog):
    """Apple's, of which torch says so with a TypeError."""
    zeros = torch.zeros

    def zeros_of_a_mac(*size, dtype, device):
        if torch.device(device).type == "mps" and dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return zeros(*size, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "zeros", zeros_of_a_mac)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    assert usable_device(None) == torch.device("cpu")
    assert "the accelerator mps has no float64" in caplog.text
    with pytest.raises(ValueError, match=r"^device='mps' cannot be used here: Cannot convert"):
        usable_device("mps")
    with pytest.raises(ValueError, match=r"^device='mps' cannot be used here: .*; use_cpu=True trains on the CPU$"):
        check_device(SimpleNamespace(device=torch.device("mps")))


def test_code_that_does_everything_is_asked_for_everything(load):
    denoiser = load()
    assert denoiser.calling.lacking == ()
    expected = sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8))
    cached = sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8, block_length=4, cache="dual"))
    assert len(cached) == len(expected) == 2
    Scorer(denoiser, denoiser.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bidirectional", "block_causal"])
def test_half_precision_is_not_taken_for_a_lack(dtype, family, load):
    """Padded or alone, kept or computed anew: the numbers are added in another order, and rounded otherwise."""
    for habit, wanted in (("plain", []), ("silent", ["trains"]), ("unplaced", ["keeps_keys"])):
        calling = load(habit, family, dtype=dtype, num_hidden_layers=12).calling
        assert [name for name, holds in asdict(calling).items() if holds is False] == wanted, habit
    if family == "bidirectional":
        assert not load("blind", family, dtype=dtype).calling.honours_mask
    for habit in ("blind", "inverted", "flat") if family == "block_causal" else ():
        with pytest.raises(ValueError, match="need masks of four dimensions"):
            load(habit, family, dtype=dtype)


def test_code_that_ignores_masks_is_run_on_rows_of_one_length_and_not_trained(load, caplog):
    with caplog.at_level(logging.WARNING):
        denoiser = load("blind")
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "does not hide padding" in said
    assert "computes logits of all columns" in said
    assert "does not keep keys" in said
    together = sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8))
    alone = [sample(denoiser, [prompt], SamplerConfig(canvas_length=8))[0] for prompt in PROMPTS]
    assert [t.canvas_ids for t in together] == [t.canvas_ids for t in alone]
    with pytest.raises(ValueError, match="cache='none'"):
        sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8, block_length=4, cache="dual"))
    with pytest.raises(ValueError, match=r"sampled from, not trained: .*does not hide padding"):
        Scorer(denoiser, denoiser.model)


def test_code_that_reads_masks_of_two_dimensions_alone_keeps_no_keys(load):
    """Passes over kept keys send others, without which a padded row would see its padding."""
    denoiser = load("flat")
    assert denoiser.calling.honours_mask
    sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8))
    with pytest.raises(ValueError, match="cache='none'"):
        sample(denoiser, PROMPTS, SamplerConfig(canvas_length=8, block_length=4, cache="dual"))


@pytest.mark.parametrize("habit", ["blind", "inverted", "flat"])
def test_blocks_need_masks_that_are_read_as_they_are_meant(load, habit):
    with pytest.raises(ValueError, match="block_causal models need masks of four dimensions"):
        load(habit, "block_causal")


def test_blocks_are_sampled_where_masks_are_read(load):
    denoiser = load(family="block_causal")
    config = SamplerConfig(canvas_length=8, block_length=4, stop_at_eos=False)
    plain, cached = (sample(denoiser, PROMPTS, replace(config, cache=cache)) for cache in ("none", "block"))
    assert [t.canvas_ids for t in plain] == [t.canvas_ids for t in cached]


def test_code_that_counts_positions_itself_keeps_no_keys(load):
    """It would turn the keys of a block as those of the sequence's beginning."""
    denoiser = load("unplaced", "block_causal")
    config = SamplerConfig(canvas_length=8, block_length=4)
    sample(denoiser, PROMPTS, config)
    with pytest.raises(ValueError, match="cache='none'"):
        sample(denoiser, PROMPTS, replace(config, cache="block"))


def test_dropout_is_no_reason_not_to_train(load):
    assert load(dropout=0.1).calling.trains


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_code_that_is_silent_in_training_is_sampled_from(load, dropout):
    denoiser = load("silent", dropout=dropout)
    assert not denoiser.calling.trains
    sample(denoiser, PROMPTS, SamplerConfig(canvas_length=4))
    with pytest.raises(ValueError, match=r"not trained: .*training mode"):
        Scorer(denoiser, denoiser.model)


def test_buffers_that_are_not_saved_are_those_of_a_new_model():
    model = FogModel(FogConfig(rope_theta=500.0))
    expected = model.inv_freq.clone()
    mend_buffers(model)  # nothing to say
    model.inv_freq.fill_(7.0)
    with pytest.warns(UserWarning, match="computed anew: inv_freq"):
        mend_buffers(model)
    torch.testing.assert_close(model.inv_freq, expected, rtol=0, atol=0)


def test_buffers_that_cannot_be_made_anew_are_refused():
    class Once(FogModel):
        made = False

        def __init__(self, config):
            if Once.made:
                raise RuntimeError("only once")
            Once.made = True
            super().__init__(config)

    with pytest.raises(
        ValueError, match=r"\(inv_freq\) were left uninitialised by loading, and no model can .*: only once"
    ):
        mend_buffers(Once(FogConfig()))


def test_code_that_does_not_load_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = write_checkpoint(tmp_path / "broken", tokenizer())
    code = (path / "modeling_fog.py").read_text()
    (path / "modeling_fog.py").write_text(
        code.replace("class Block", "raise RuntimeError('no such thing')\nclass Block")
    )
    with pytest.raises(ValueError, match="does not load with this transformers: RuntimeError: no such thing"):
        Denoiser.from_pretrained(str(path), family="bidirectional", trust_remote_code=True)
