"""lm-evaluation-harness over our models: the bound against enumeration, texts against the sampler, tasks from files."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'lockstitch[eval]'")

from likelihoods import plain_logp
from lockstitch.recipes import harness
from lockstitch.recipes.harness_model import HarnessModel
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.scoring import Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.loop import sample

from lockstitch import embedded_adapter

GOLDEN = Path(__file__).parent / "families"
PUZZLE, SOLUTION = "3102\n2000\n0210\n0320\n", "3142\n2431\n4213\n1324\n"


def model(pretrained="embedded:sudoku", **settings):
    return HarnessModel(pretrained=str(pretrained), device="cpu", **{"num_samples": 8, "batch_size": 4, **settings})


def asked(*arguments):
    """Requests as the harness hands them over."""
    return [SimpleNamespace(args=one) for one in arguments]


def exact_bound(denoiser, context, text, block=None):
    """The lower bound by enumeration of all masks: `1/n sum over m of n/m * mean over sets of m of sum log p`."""
    n, total = len(text), 0.0
    for m in range(1, n + 1):
        sets = list(itertools.combinations(range(n), m))
        for masked in sets:
            logp = plain_logp(denoiser, context, text, [i not in masked for i in range(n)], block)
            total += float(logp[list(masked)].sum()) / m / len(sets)
    return total


@pytest.mark.parametrize(
    ("name", "settings"), [("embedded:sudoku", {}), ("llada", {}), ("dream", {}), ("sdar", {"block_length": 2})]
)
def test_the_bound_is_that_of_all_masks(name, settings):
    lm = model(name if ":" in name else GOLDEN / name, num_samples=256, batch_size=64, **settings)
    ids = [token for token in range(5, 60) if token not in lm.denoiser.never_drawn]
    context, text = ids[:5], ids[7:11]
    with torch.no_grad():
        expected = exact_bound(lm.denoiser, context, text, settings.get("block_length"))
    found = [model_bound(lm, seed, context, text) for seed in range(4)]
    spread = (sum((one - expected) ** 2 for one in found) / len(found)) ** 0.5
    assert abs(sum(found) / len(found) - expected) < max(3 * spread / len(found) ** 0.5, 1e-4 * abs(expected))
    assert spread < 0.1 * abs(expected)


def model_bound(lm, seed, context, text):
    lm.seed = seed
    return lm.bounds([(context, text)])[0]


def test_one_token_has_its_probability_exactly():
    lm = model(num_samples=64)
    context = lm.tok_encode(PUZZLE)
    token = lm.tok_encode("3")
    logits = lm.denoiser.model(input_ids=torch.tensor([[*context, lm.denoiser.mask_id]])).logits[0, -1].detach()
    logits[lm.denoiser.never_drawn] = -math.inf
    (found,) = lm.bounds([(context, token)])
    assert found == pytest.approx(float(torch.log_softmax(logits, -1)[token[0]]), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask_schedule": "random"},
        {"mask_schedule": "complement"},
        {"mask_schedule": "quadrature"},
        {"mask_distribution": "iid"},
    ],
)
def test_bounds_are_the_estimator_s_whatever_the_batches(settings):
    texts = [(PUZZLE, SOLUTION), (PUZZLE, SOLUTION[::-1]), ("1230\n" + PUZZLE, SOLUTION), ("12", "34"), ("12", "4")]
    alone, together = (model(batch_size=size, **settings) for size in (1, 7))
    pairs = [tuple(map(alone.tok_encode, one)) for one in texts]
    found = together.bounds(pairs)
    assert found == pytest.approx(alone.bounds(pairs), abs=1e-4)
    from lockstitch.recipes.harness_model import _canvases

    config = EstimatorConfig(
        **{"num_samples": 8, "mask_schedule": "stratified", "mask_distribution": "count", **settings}
    )
    canvases = _canvases(pairs[:3], alone.denoiser, 0)
    with torch.no_grad():
        expected = estimate(config, Scorer(alone.denoiser, alone.denoiser.model), canvases).sum(1)
    assert found[:3] == pytest.approx(expected.tolist(), abs=1e-3)
    assert found != together.bounds([(context, text[::-1]) for context, text in pairs])


def test_greedy_is_what_the_sampler_writes_token_by_token():
    lm = model()
    context = PUZZLE.rstrip()  # the harness hands white space at a context's end over to the text
    (written,) = sample(lm.denoiser, [context], SamplerConfig(canvas_length=12, steps=12))
    text = lm.denoiser.decode([written.canvas_ids])[0]
    assert lm.tok_encode(text) == list(written.canvas_ids)
    other = text[:-1] + ("4" if text[-1] != "4" else "3")
    answers = lm.loglikelihood(asked((context, text), (context, other)), disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False]
    assert answers[0][0] > answers[1][0]
    assert all(bound < 0 for bound, _ in answers)


def test_whole_texts_are_scored_in_windows():
    lm = model(max_length=13)
    text = PUZZLE + SOLUTION
    ids = lm.tok_encode(text)
    (found,) = lm.loglikelihood_rolling(asked((text,)), disable_tqdm=True)
    first = ([lm.prefix_token_id], ids[:12])
    windows = [first]
    for start in range(12, len(ids), 12):
        stop = min(start + 12, len(ids))
        windows.append((ids[stop - 13 : start], ids[start:stop]))
    assert found == pytest.approx(sum(lm.bounds(windows)), abs=1e-3)
    assert all(len(context) + len(window) <= 13 for context, window in windows)


def test_texts_are_the_sampler_s_up_to_the_first_stop():
    lm = model(steps=10)
    until = {"until": ["\n\n", "13\n", "31\n"], "max_gen_toks": 20}
    (cut, whole) = lm.generate_until(
        asked((PUZZLE, until), (PUZZLE, {"until": [], "max_gen_toks": 20})), disable_tqdm=True
    )
    (expected,) = sample(lm.denoiser, [PUZZLE], SamplerConfig(canvas_length=20, steps=10))
    assert whole == expected.text
    assert cut == whole[: min(at for stop in until["until"] if (at := whole.find(stop)) >= 0)]
    assert lm.generate_until(asked((PUZZLE, {"until": "</s>", "max_tokens": 20})), disable_tqdm=True)


def test_repeats_differ_and_batches_do_not_matter():
    requests = [
        (text, {"max_gen_toks": 20, "do_sample": True, "temperature": 5.0}) for text in (PUZZLE, "12\n", PUZZLE)
    ]
    one, other = (model(batch_size=size).generate_until(asked(*requests), disable_tqdm=True) for size in (1, 3))
    assert one == other
    assert one[0] != one[2]
    assert model(seed=1).generate_until(asked(*requests), disable_tqdm=True) != one


def test_a_canvas_that_blocks_do_not_divide_is_cut_to_what_was_asked():
    lm = model(GOLDEN / "llada", preset="llada")
    for most, canvas in ((40, 64), (20, 32)):
        (text,) = lm.generate_until(asked(("a b", {"max_gen_toks": most})), disable_tqdm=True)
        (expected,) = sample(lm.denoiser, ["a b"], SamplerConfig(canvas_length=canvas, block_length=32))
        assert text == lm.denoiser.decode([expected.completion_ids[:most]])[0]


def test_a_context_that_is_too_long_loses_its_beginning():
    lm = model(max_length=30)
    texts = ("9" * 100 + PUZZLE, PUZZLE[-10:])
    found = lm.generate_until(asked(*((text, {"max_gen_toks": 20}) for text in texts)), disable_tqdm=True)
    assert found[0] == found[1]
    with pytest.raises(ValueError, match=r"a text of 41 tokens is to be scored; max_length=30"):
        lm.loglikelihood(asked((PUZZLE, "1" * 40)), disable_tqdm=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, r"'stepz', which nothing reads; there are pretrained, .*canvas_length"),
        ({"preset": "lada"}, "preset='lada' is not one of llada"),
        ({"policy": "quotas"}, "policy='quotas' is not one of quota"),
        ({"batch_size": "auto"}, "batch_size='auto' must be a whole number"),
        ({"num_samples": 0}, "num_samples=0 must be"),
        ({"max_length": 10**6}, "more than the"),
        ({"cache": "block"}, "cache='block' is not for bidirectional"),
        ({"peft": "nowhere"}, "'nowhere' is no adapter"),
        ({"peft": str(embedded_adapter("sudoku-early")), "revision": "main"}, "revision='main' with peft="),
    ],
)
def test_wrong_model_args_are_a_line(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)


def test_generation_arguments_are_read_or_refused():
    lm = model(temperature=0.5)
    with pytest.raises(ValueError, match=r"generation arguments 'num_beams' would be ignored"):
        lm.generate_until(asked((PUZZLE, {"num_beams": 2})))
    with pytest.raises(ValueError, match=r"temperature=0.5 in model_args and 0.7 in generation arguments"):
        lm.generate_until(asked((PUZZLE, {"do_sample": True, "temperature": 0.7})))
    assert lm._asked({"do_sample": False, "temperature": 0.0, "max_gen_toks": 20}).config.temperature == 0.5
    greedy = model()._asked({"do_sample": False, "max_new_tokens": 20}).config
    assert (greedy.temperature, greedy.canvas_length) == (0.0, 20)


def test_chat_templates_are_the_tokenizer_s():
    lm = model()
    with pytest.raises(ValueError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "1"}])
    lm.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    talk = [{"role": "user", "content": "1+1"}]
    assert lm.apply_chat_template(talk) == "[1+1]>"
    assert lm.chat_template(True) == lm.tokenizer.chat_template


def test_an_adapter_is_put_on():
    adapter = embedded_adapter("sudoku-early")
    early = "embedded:sudoku-early"
    models = (model(early), model(early, peft=str(adapter)), model(adapter))
    bare, put, named = (lm.loglikelihood(asked((PUZZLE, SOLUTION)), disable_tqdm=True)[0][0] for lm in models)
    assert put == named
    assert put != bare


def write_tasks(folder, puzzles):
    """Three tasks over a file of rows: a text, a choice, and a whole text's likelihood."""
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in puzzles))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
    text = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    choice = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
              "doc_to_target": 0, "target_delimiter": "",
              "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    whole = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}{{answer}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    for name, task in (("text", text), ("choice", choice), ("whole", whole)):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"lockstitch_{name}", **common, **task}))


ROWS = [{"question": PUZZLE, "answer": SOLUTION.strip(), "choices": [SOLUTION, SOLUTION[::-1]]}] * 2
TASKS = ["lockstitch_text", "lockstitch_choice", "lockstitch_whole"]


@pytest.mark.parametrize("pretrained", ["embedded:sudoku", "sdar"])
def test_tasks_from_files_are_evaluated(pretrained, tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path, ROWS)
    embedded = ":" in pretrained
    said = {"pretrained": pretrained if embedded else str(GOLDEN / pretrained), "num_samples": 4}
    results = simple_evaluate(
        "lockstitch",
        said if embedded else {**said, "preset": "sdar"},
        tasks=TASKS,
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert math.isfinite(results["lockstitch_whole"]["byte_perplexity,none"])
    if embedded:
        assert results["lockstitch_choice"]["acc,none"] == 1.0
        (written,) = sample(model().denoiser, [PUZZLE], SamplerConfig(canvas_length=20))
        assert results["lockstitch_text"]["exact_match,none"] == float(written.text == SOLUTION.strip()) == 1.0


@pytest.mark.slow
def test_the_command_runs_them(tmp_path, capsys, monkeypatch):
    """Slow, because the harness reads the YAML of all its tasks first."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path, ROWS)
    said = ["--tasks", "lockstitch_text", "--include_path", str(tmp_path), "--batch_size", "4", "--device", "cpu"]
    assert harness.main([*said, "--model_args", "pretrained=embedded:sudoku"]) == 0
    assert "exact_match" in capsys.readouterr().out


def test_the_harness_s_own_options_pass_through():
    assert harness.arguments(["ls", "tasks"]) == ["ls", "tasks"]
    assert harness.arguments(["--tasks", "x"]) == ["run", "--model", "lockstitch", "--tasks", "x"]
    assert harness.arguments(["run", "--model", "hf"]) == ["run", "--model", "hf"]
    assert harness.arguments(["--model=hf"]) == ["run", "--model=hf"]
    assert harness.arguments(["-C", "file.yaml"]) == ["run", "-C", "file.yaml"]
