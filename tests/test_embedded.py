"""The models that come with the package: plain transformers loads them, they share a tokenizer, and they do their tasks."""

import json
import random

import pytest
from lockstitch.recipes.evidence import evidence_text
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import held_out_problems
from lockstitch.rl.export import ExportConfig, export
from lockstitch.sampling.adapter_files import read_facts
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.stitching.inputs import generate_problems
from lockstitch.stitching.refine import load_solver
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstitch import embedded_adapter, embedded_model, model_path

TASK_NAMES = ["arithmetic", "countdown", "sudoku"]
MODELS = ["solver", *TASK_NAMES, *(f"{name}-early" for name in TASK_NAMES), "sudoku9"]


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_loads_it(name):
    model = AutoModelForCausalLM.from_pretrained(embedded_model(name))
    tokenizer = AutoTokenizer.from_pretrained(embedded_model(name))
    assert type(model).__name__ == ("GPT2LMHeadModel" if name == "sudoku9" else "LlamaForCausalLM")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert getattr(model.config, "is_causal", True) is (name == "solver")


def test_they_share_one_tokenizer_and_fit_in_25_megabytes():
    files = [embedded_model(name) / "model.safetensors" for name in MODELS]
    assert sum(path.stat().st_size for path in files) < 25e6
    texts = {(embedded_model(name) / "tokenizer.json").read_text() for name in MODELS}
    assert len(texts) == 1


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no embedded model 'chess'.*countdown.*sudoku"):
        embedded_model("chess")


# A little under what each reaches on many problems (docs/embedded-models.md), so that chance does not decide.
LEAST = {"arithmetic": 0.6, "countdown": 0.4, "sudoku": 0.9, "sudoku9": 0.4}


def solved(denoiser, task, problems, **settings):
    config = SamplerConfig(canvas_length=task.canvas_length, batch_size=200, **settings)
    drawn = sample(denoiser, [task.prompt(problem.question) for problem in problems], config)
    right = 0
    for problem, trajectory in zip(problems, drawn, strict=True):
        answer = task.extract(trajectory.text)
        right += bool(answer) and bool(task.is_correct(problem.question, problem.answer, answer))
    return right / len(problems)


@pytest.mark.parametrize("name", LEAST)
def test_it_does_its_task(name):
    task = get_task(name)
    problems = [given.problem for given in generate_problems(task, 64, 11)]
    denoiser = Denoiser.from_pretrained(str(embedded_model(name)))
    assert solved(denoiser, task, problems, policy="threshold", threshold=0.95) >= LEAST[name]


@pytest.mark.slow
def test_the_reinforced_adapter_is_plain_peft_and_solves_more_than_its_base():
    task = get_task("sudoku")
    problems = held_out_problems(task, 200, seed=8)
    denoiser = Denoiser.from_pretrained(str(embedded_model("sudoku-early")))
    before = solved(denoiser, task, problems)
    PeftModel.from_pretrained(denoiser.model, embedded_adapter("sudoku-early")).merge_and_unload()
    assert solved(denoiser, task, problems) >= before + 0.4


def test_the_reinforced_adapter_is_exported_by_the_name_of_its_base(tmp_path):
    export(ExportConfig(embedded_adapter("sudoku-early"), tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded:sudoku-early"
    card = (tmp_path / "out" / "README.md").read_text()
    loading = card.partition("```python\n")[2].partition("```")[0].replace('"DIR"', repr(str(tmp_path / "out")))
    loaded = {}
    exec(loading, loaded)
    assert type(loaded["denoiser"].model).__name__ == "PeftModelForCausalLM"


def test_an_unknown_adapter_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no embedded adapter 'chess'; there are smollm2, sudoku-early"):
        embedded_adapter("chess")


def test_the_draft_adapter_is_small_and_says_what_it_is(tmp_path):
    """Its base comes from elsewhere."""
    adapter = embedded_adapter("smollm2")
    assert sum(path.stat().st_size for path in adapter.iterdir()) <= 6e6
    facts = read_facts(adapter)
    assert (facts["family"], facts["mask_token_id"]) == ("idlm", 15)
    assert json.loads((adapter / "adapter_config.json").read_text())["alora_invocation_tokens"] == [15]
    weights = load_file(adapter / "adapter_model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert {weight.shape[0] for name, weight in weights.items() if "lora_A" in name} == {8}
    with pytest.raises(
        ValueError, match=r"the base of the adapter 'embedded:smollm2@.*' cannot be loaded: no model at"
    ):
        Denoiser.from_pretrained(f"embedded:smollm2@{tmp_path}", device="cpu")


def test_a_name_becomes_a_path_where_it_is_one_of_the_package():
    assert model_path("embedded:sudoku") == str(embedded_model("sudoku"))
    assert model_path("GSAI-ML/LLaDA-8B-Instruct") == "GSAI-ML/LLaDA-8B-Instruct"
    with pytest.raises(ValueError, match="no embedded model 'chess'"):
        model_path("embedded:chess")


LEAST_SOLVED = {"arithmetic": 0.95, "countdown": 0.85, "sudoku": 0.85}


@pytest.mark.slow
def test_the_solver_reads_evidence():
    for name in TASK_NAMES:
        task, rng = get_task(name), random.Random(0)
        solver = load_solver(str(embedded_model("solver")), task)
        problems = [given.problem for given in generate_problems(task, 48, 12)]
        evidences = [evidence_text(name, problem, "complete", True, rng) for problem in problems]
        texts = [answered.text for answered in solver([problem.question for problem in problems], evidences)]
        right = sum(
            bool(task.is_correct(problem.question, problem.answer, task.extract(text) or ""))
            for problem, text in zip(problems, texts, strict=True)
        )
        assert right / 48 >= LEAST_SOLVED[name]
