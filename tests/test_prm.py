"""Process reward models: one pass against one pass per prefix of steps, batched against alone, and what is refused.

For a causal model one pass scores every step as one pass per prefix does. A bidirectional one is read step by step too
(`attention: steps`): what a step's tokens see ends with the step, so the same holds. Read whole (`full`) it scores a step in
its finished trace: then one pass is one pass per trace, and what follows a step may change its score.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.denoiser import make_causal
from lockstitch.stitching.prm import SYSTEM, ProcessRewardModel
from lockstitch.stitching.score import load_scorer
from lockstitch.stitching.step_reader import READER, Reader, as_step_classifier, load_body
from lockstitch.stitching.steps import Step
from models import random_denoiser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForTokenClassification

QUESTION = "Ann has 16 eggs. She eats 3 <extra_0> and 4?"
TEXTS_KN = (
    ("16 - 3 = 13.", "13 - 4 = 9.", "So 9."),
    ("It is <extra_0> 9.",),
    (),
    ("16 + 3 = 19.", "19 + 4 = 23.", "Then 23 eggs, no?", "Yes."),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
REMOTE_CODE = '''
from transformers import Qwen2ForTokenClassification
class RemoteModel(Qwen2ForTokenClassification):
    """A token classifier under a name that only its own code knows."""
'''


def as_steps(texts_KN: Sequence[Sequence[str]]) -> list[list[Step]]:
    return [[Step(k, i, text, (0, len(text))) for i, text in enumerate(texts)] for k, texts in enumerate(texts_KN)]


def build(folder: Path, labels: int = 2, template: str | None = TEMPLATE) -> None:
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|im_end|>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<extra_0>"]})
    fast.chat_template = template
    fast.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=labels,
        initializer_range=0.5,
    )
    Qwen2ForTokenClassification(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prm")
    build(path)
    return path


@pytest.fixture(scope="module", params=["<extra_0>", ""], ids=["marker", "last-token"])
def prm(folder: Path, request: pytest.FixtureRequest) -> ProcessRewardModel:
    return ProcessRewardModel(str(folder), marker=request.param, device="cpu")


def test_one_pass_is_one_pass_per_prefix(prm: ProcessRewardModel) -> None:
    scores = prm(QUESTION, as_steps(TEXTS_KN)).score_KN
    assert [len(row) for row in scores] == [3, 1, 0, 4]
    for texts, row in zip(TEXTS_KN, scores, strict=True):
        prefixes = [prm(QUESTION, as_steps([texts[: n + 1]])).score_KN[0][-1] for n in range(len(texts))]
        assert row == pytest.approx(prefixes, abs=1e-5)
    flat = [score for row in scores for score in row]
    assert max(flat) - min(flat) > 0.05  # else the test proves nothing
    assert all(0 <= score <= 1 for score in flat)


def test_batched_is_one_at_a_time_in_any_order(prm: ProcessRewardModel) -> None:
    together = prm(QUESTION, as_steps(TEXTS_KN))
    alone = [prm(QUESTION, as_steps([texts])) for texts in TEXTS_KN]
    backwards = prm(QUESTION, as_steps(TEXTS_KN[::-1]))
    assert together.tokens == backwards.tokens == sum(scores.tokens for scores in alone)
    for row, single, back in zip(together.score_KN, alone, backwards.score_KN[::-1], strict=True):
        assert row == pytest.approx(single.score_KN[0], abs=1e-5)
        assert row == pytest.approx(back, abs=1e-5)


def test_scores_are_the_softmax_of_the_model_at_the_markers(folder: Path) -> None:
    prm = ProcessRewardModel(str(folder), device="cpu")
    question, texts = "How many?", ["One.", "Two."]
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\nOne.<extra_0>Two.<extra_0><|im_end|>\n"
    )
    ids = prm.tokenizer(text, return_tensors="pt")["input_ids"]
    model = Qwen2ForTokenClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        right = model(ids).logits.softmax(-1)[0, :, 1]
    marker = prm.tokenizer.convert_tokens_to_ids("<extra_0>")
    scores = prm(question, as_steps([texts]))
    assert scores.tokens == ids.shape[1]
    assert scores.score_KN[0] == pytest.approx(right[ids[0] == marker].tolist(), abs=1e-5)


def test_one_forward_pass_and_none_for_no_steps(prm: ProcessRewardModel) -> None:
    passes = []
    hook = prm.model.register_forward_hook(lambda *_: passes.append(1))
    prm(QUESTION, as_steps(TEXTS_KN))
    assert len(passes) == 1
    nothing = prm(QUESTION, [[], []])
    hook.remove()
    assert (nothing.score_KN, nothing.tokens, len(passes)) == ([[], []], 0, 1)


def test_without_a_chat_template_the_question_stands_first(tmp_path: Path) -> None:
    build(tmp_path, template=None)
    prm = ProcessRewardModel(str(tmp_path), device="cpu")
    encoded = prm.encode("How many?", ["One.", "Two."])
    assert prm.tokenizer.decode(encoded.ids) == "How many?\nOne.<extra_0>Two.<extra_0>"
    assert [prm.tokenizer.decode(encoded.ids[i]) for i in encoded.positions] == ["<extra_0>"] * 2


def test_a_template_that_takes_no_system_turn_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    build(tmp_path, template=refusing + TEMPLATE)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^the chat template refuses the messages .*: no system role$"):
        ProcessRewardModel(str(tmp_path), device="cpu")


def test_what_cannot_score_steps_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no single token for the step marker '<step>'"):
        ProcessRewardModel(str(folder), marker="<step>")
    build(tmp_path / "three", labels=3)
    with pytest.raises(ValueError, match="3 labels"):
        ProcessRewardModel(str(tmp_path / "three"))
    config = json.loads((folder / "config.json").read_text())
    build(tmp_path / "causal")
    (tmp_path / "causal" / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    for marker in ("<extra_0>", "<step>"):  # what it is matters before what its tokenizer knows
        with pytest.raises(ValueError, match="is a Qwen2ForCausalLM"):
            ProcessRewardModel(str(tmp_path / "causal"), marker=marker)


def test_code_of_its_own_runs_only_when_trusted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    remote = tmp_path / "remote"
    build(remote)
    (remote / "modeling_remote.py").write_text(REMOTE_CODE)
    config = json.loads((remote / "config.json").read_text())
    changed = {"architectures": ["RemoteModel"], "auto_map": {"AutoModel": "modeling_remote.RemoteModel"}}
    (remote / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ValueError, match="brings code of its own"):
        ProcessRewardModel(str(remote))
    ours = ProcessRewardModel(str(folder), device="cpu")(QUESTION, as_steps(TEXTS_KN))
    theirs = load_scorer(f"prm:{remote}", get_task("gsm8k"), trust_remote_code=True)(
        QUESTION, as_steps(TEXTS_KN), None
    )
    assert theirs.tokens == ours.tokens
    for row, other in zip(theirs.score_KN, ours.score_KN, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


# --- models of our own: any of ours under a head ---------------------------------------------------------------------


def build_own(folder: Path, attention: str) -> Path:
    """A random classifier whose head speaks up, with its reader beside it."""
    denoiser = random_denoiser()
    model = as_step_classifier(make_causal(denoiser.model) if attention == "causal" else denoiser.model, attention)
    torch.nn.init.normal_(model.score.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    denoiser.tokenizer.save_pretrained(folder)
    Reader(attention).write(folder)
    return folder


@pytest.mark.parametrize("attention", ["causal", "steps"])
def test_one_pass_is_one_pass_per_prefix_for_models_of_our_own(tmp_path: Path, attention: str) -> None:
    prm = ProcessRewardModel(str(build_own(tmp_path, attention)), device="cpu")
    scores = prm(QUESTION, as_steps(TEXTS_KN)).score_KN
    for texts, row in zip(TEXTS_KN, scores, strict=True):
        prefixes = [prm(QUESTION, as_steps([texts[: n + 1]])).score_KN[0][-1] for n in range(len(texts))]
        assert row == pytest.approx(prefixes, abs=1e-5)
    flat = [score for row in scores for score in row]
    assert max(flat) - min(flat) > 0.05


def test_read_whole_a_step_is_scored_in_its_finished_trace(tmp_path: Path) -> None:
    prm = ProcessRewardModel(str(build_own(tmp_path, "full")), device="cpu")
    together = prm(QUESTION, as_steps(TEXTS_KN)).score_KN
    for texts, row in zip(TEXTS_KN, together, strict=True):
        assert row == pytest.approx(prm(QUESTION, as_steps([texts])).score_KN[0], abs=1e-5)
    first = prm(QUESTION, as_steps([TEXTS_KN[0][:1]])).score_KN[0][0]
    assert abs(first - together[0][0]) > 1e-3


def test_within_a_step_a_bidirectional_model_reads_both_ways(tmp_path: Path) -> None:
    prm = ProcessRewardModel(str(build_own(tmp_path / "both", "steps")), device="cpu")
    left = ProcessRewardModel(str(build_own(tmp_path / "left", "causal")), device="cpu")
    (both,), (causal,) = (one(QUESTION, as_steps([TEXTS_KN[0]])).score_KN for one in (prm, left))
    assert max(abs(a - b) for a, b in zip(both, causal, strict=True)) > 1e-3  # the weights are the same


def test_a_model_of_our_own_is_asked_as_its_task_asks(tmp_path: Path) -> None:
    prm = ProcessRewardModel(str(build_own(tmp_path, "steps")), task=get_task("countdown"), device="cpu")
    encoded = prm.encode("30,100,93=23", ["93+30=123", "123-100=23"])
    assert prm.tokenizer.decode(encoded.ids) == " 30 100  93 =  23\n 93+ 30=123\n123-100= 23\n"
    assert [prm.tokenizer.decode(encoded.ids[i]) for i in encoded.positions] == ["\n", "\n"]
    assert [encoded.segments[i] for i in encoded.positions] == [1, 2]
    scores = prm("30,100,93=23", as_steps([("93+30=123", "123-100=23"), ("1+1=2",)]))
    bill = scores.cost()
    assert (bill.scorer_passes, bill.sequential_steps, bill.nfe) == (2, 1, 0)
    assert bill.scorer_tokens == len(encoded.ids) + len(prm.encode("30,100,93=23", ["1+1=2"]).ids)


def test_a_judge_of_another_task_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_own(tmp_path, "steps")
    Reader("steps", task="sudoku").write(folder)
    ProcessRewardModel(str(folder), task=get_task("sudoku"), device="cpu")
    ProcessRewardModel("embedded:countdown", task=get_task("countdown"), device="cpu")
    assert not caplog.text
    ProcessRewardModel(str(folder), task=get_task("countdown"), device="cpu")
    assert f"scorer prm:{folder} was trained on steps of 'sudoku' and reads those of 'countdown'" in caplog.text


def test_what_a_body_is_and_how_it_is_read() -> None:
    assert load_body("embedded:sudoku")[2] == "steps"
    assert load_body("embedded:sudoku", "full")[2] == "full"
    assert load_body("embedded:solver")[2] == "causal"
    with pytest.raises(ValueError, match="attention='steps' needs a diffusion model that attends fully"):
        load_body("embedded:solver", "steps")
    with pytest.raises(ValueError, match="attention='causal' would hide"):
        load_body("embedded:sudoku", "causal")
    with pytest.raises(ValueError, match="attention='both' is not one of causal, steps, full"):
        Reader("both")
    with pytest.raises(ValueError, match="no embedded scorer 'chess'"):
        ProcessRewardModel("embedded:chess")
    assert READER == "step_reader.json"


@pytest.mark.slow
def test_an_adapter_is_read_on_the_base_that_it_was_trained_on(tmp_path) -> None:
    """Of the family that was said where the base's config says none, and in the revision that PEFT wrote down."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, seed in ((old, 0), (new, 1)):
        denoiser = random_denoiser(seed=seed)
        denoiser.model.config.is_causal = None
        denoiser.model.save_pretrained(folder)
        denoiser.tokenizer.save_pretrained(folder)
    hub = tmp_path / "hub" / "models--someone--base"
    for name, folder in (("v1", old), ("main", new)):
        (hub / "snapshots").mkdir(parents=True, exist_ok=True)
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / name).write_text(name * 10)
        folder.rename(hub / "snapshots" / (name * 10))
    code = """
import sys, torch
from lockstitch.recipes.prm import adapted
from lockstitch.rl.lora import DiffusionModelConfig
from lockstitch.stitching.step_reader import Reader, as_step_classifier, load_body, load_classifier
out = sys.argv[1]
body, tokenizer, attention = load_body("someone/base", None, "bidirectional", revision="v1", dtype=torch.float32)
ids = {"input_ids": torch.tensor([[5, 6, 7]])}
arguments = DiffusionModelConfig("someone/base", model_revision="v1", use_peft=True, lora_r=2)
model = adapted(as_step_classifier(body, attention), arguments, "someone/base").eval()
model.save_pretrained(out)
tokenizer.save_pretrained(out)
found, _ = load_classifier(out, Reader(attention, family="bidirectional"), "cpu")
with torch.inference_mode():
    assert attention == "steps"
    assert torch.allclose(model(**ids).logits, found(**ids).logits, atol=1e-5)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True,
                          check=False, env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_head_stands_on_the_same_weights() -> None:
    denoiser = random_denoiser()
    model = as_step_classifier(denoiser.model, "steps")
    assert model.model is denoiser.model.model
    assert (model.config.num_labels, model.config.id2label) == (2, {0: "wrong", 1: "right"})
    assert type(model).__name__ == "LlamaForTokenClassification"
    with pytest.raises(ValueError, match="a Linear cannot be given a head"):
        as_step_classifier(torch.nn.Linear(1, 1), "steps")
