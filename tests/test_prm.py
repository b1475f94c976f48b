"""Process reward models: one pass against one pass per prefix of steps, batched against alone, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lockstitch.rewards.tasks.task import get_task
from lockstitch.stitching.prm import SYSTEM, ProcessRewardModel
from lockstitch.stitching.score import load_scorer
from lockstitch.stitching.steps import Step
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
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
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


def test_what_cannot_score_steps_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no single token for the step marker '<step>'"):
        ProcessRewardModel(str(folder), marker="<step>")
    build(tmp_path / "three", labels=3)
    with pytest.raises(ValueError, match="3 labels"):
        ProcessRewardModel(str(tmp_path / "three"))
    config = json.loads((folder / "config.json").read_text())
    build(tmp_path / "causal")
    (tmp_path / "causal" / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    with pytest.raises(ValueError, match="is a Qwen2ForCausalLM"):
        ProcessRewardModel(str(tmp_path / "causal"))


def test_code_of_its_own_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
