"""Rollouts by an engine: the replay contract, and a server that speaks it over HTTP in the place of the sampler."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine, serving
from grpo_runs import make_trainer, weights
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.rollout_engine import SGLangEngine, check_mergeable, write_weights
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling import cli as sampling_cli
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.contract import from_reply, read_replies, to_reply
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import BIDIRECTIONAL, BLOCK_CAUSAL, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from lockstitch.sampling.prompts import load_trajectories
from models import random_denoiser
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

BLOCK, G = 4, 16
PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "1+2=", "12+3=", "9*9+12=\n"]  # every remainder by 4 but one
URL = "http://127.0.0.1:30000"
SDAR, LLADA2 = (Path(__file__).parent / "families" / name for name in ("sdar", "llada2"))


def model(seed=0, sharpness=3.0):
    """A random model, with EOS in the place of a token that it likes: some completions end early."""
    denoiser = random_denoiser("qwen3", seed=seed, sharpness=sharpness, family=BLOCK_CAUSAL)
    with torch.no_grad():
        denoiser.model.lm_head.weight[[1, 27]] = denoiser.model.lm_head.weight[[27, 1]]
    return denoiser


def drawn(denoiser, n=3, **settings):
    """Trajectories whose blocks are whole, as an engine's are."""
    config = SamplerConfig(
        G,
        block_length=BLOCK,
        whole_blocks=True,
        policy="threshold",
        threshold=0.3,
        temperature=1.0,
        **{"stop_at_eos": False, **settings},
    )
    return sample(denoiser, PROMPTS, config, n=n, seed=1)


def read(reply, trajectory, denoiser, **more):
    room = len(trajectory.canvas_ids)
    return from_reply(
        json.loads(json.dumps(reply)),
        trajectory.prompt_ids,
        **{
            "canvas_length": room,
            "block_length": BLOCK,
            "mask_id": denoiser.mask_id,
            "eos_ids": denoiser.eos_ids,
            **more,
        },
    )


# --- the contract ----------------------------------------------------------------------------------------------------


def test_a_trajectory_comes_back_as_far_as_an_engine_would_have_denoised_it():
    denoiser, ends = model(), set()
    for t in drawn(denoiser, n=8):
        reply = to_reply(t, BLOCK)
        back = read(reply, t, denoiser, text=t.text, prompt=t.prompt, seed=t.seed)
        end = len(reply["meta_info"]["dllm_replay_token_ids"])
        assert (len(t.prompt_ids) + end) % BLOCK == 0
        assert 0 <= end - t.length < BLOCK
        ends.add(end < len(t.canvas_ids))
        for name in ("canvas_ids", "commit_step", "block"):
            assert getattr(back, name)[:end] == getattr(t, name)[:end]
        assert set(back.canvas_ids[end:]) <= {denoiser.mask_id}
        assert set(back.commit_step[end:]) <= {-1}
        for name in ("prompt", "seed", "prompt_ids", "length", "text", "finished", "completion_ids"):
            assert getattr(back, name) == getattr(t, name)
        assert back.ledger.nfe == back.last_step == max(t.commit_step[:end])
        assert all(map(math.isnan, back.confidence + back.entropy))
    assert ends == {True, False}


def test_steps_are_written_block_by_block_from_one():
    t = drawn(model(), n=1)[3]
    t = replace(t, canvas_ids=(7,) * 11, length=6, commit_step=(2, 1, 4, 5, 9, 9, 6, 10, 11, 12, 10), finished=True)
    t = replace(t, prompt_ids=(1,) * 5)  # blocks of three, four and four positions
    reply = to_reply(t, 4)
    assert reply["meta_info"]["dllm_replay_step_maps"] == [2, 1, 3, 1, 3, 3, 2]
    assert reply["meta_info"]["step_maps"] == [2, 1, 3, 1, 3, 3]
    assert reply["output_ids"] == [7] * 6
    assert reply["meta_info"]["dllm_replay_token_ids"] == [7] * 7
    assert reply["meta_info"]["dllm_stop_length"] == 6
    assert reply["meta_info"]["dllm_replay_contract_version"] == 1
    assert read(reply, t, model(), eos_ids=()).commit_step == (2, 1, 3, 4, 6, 6, 5, -1, -1, -1, -1)


@torch.no_grad()
def test_what_is_replayed_has_the_likelihood_that_the_sampler_noted():
    denoiser = model()
    ours = drawn(denoiser, n=4)
    width = max(len(t.canvas_ids) for t in ours)
    theirs = [read(to_reply(t, BLOCK), t, denoiser, canvas_length=width) for t in ours]
    scorer = Scorer(denoiser, denoiser.model, block_length=BLOCK)
    found = estimate(EstimatorConfig("trajectory"), scorer, Canvases.from_trajectories(theirs, denoiser))
    for row, t in zip(found, ours, strict=True):
        noted = torch.tensor([math.log(p) for p in t.confidence[: t.length]])
        torch.testing.assert_close(row[: t.length], noted, atol=1e-4, rtol=1e-4)
        assert not row[t.length :].any()


def test_what_the_contract_cannot_tell_is_refused():
    denoiser = model()
    t = next(t for t in drawn(denoiser) if t.finished and t.length % BLOCK)
    with pytest.raises(ValueError, match="whole_blocks=True, stop_at_eos=False"):
        to_reply(replace(t, commit_step=(*t.commit_step[: t.length], *[-1] * 20)), BLOCK)
    with pytest.raises(ValueError, match="position 1 was given"):
        to_reply(replace(t, commit_step=(1, 0, *t.commit_step[2:])), BLOCK)
    with pytest.raises(ValueError, match="took 1 tokens back"):
        to_reply(replace(t, edits=((2, 0, 5, 1),)), BLOCK)


def test_the_command_writes_replies_and_they_read_back(tmp_path, capsys):
    words = [
        "--model",
        str(SDAR),
        "--prompt",
        "12+3=",
        "--n",
        "3",
        "--temperature",
        "1",
        "--canvas_length",
        "9",
        "--policy",
        "threshold",
        "--threshold",
        "0.2",
        "--chat_template",
        "false",
    ]
    whole = ["--whole_blocks", "true", "--stop_at_eos", "false", "--replies", str(tmp_path / "replies.jsonl")]
    assert sampling_cli.main([*words, *whole, "--output", str(tmp_path / "run")]) == 0
    denoiser = Denoiser.from_pretrained(str(SDAR))
    back = read_replies(tmp_path / "replies.jsonl", denoiser)
    ours = load_trajectories(tmp_path / "run" / "results.jsonl")
    assert len(back) == len(ours) == 3
    for found, t in zip(back, ours, strict=True):
        end = len(found.block) - found.block.count(-1)
        assert found.commit_step[:end] == t.commit_step[:end]
        for name in ("prompt", "seed", "prompt_ids", "length", "text", "finished", "completion_ids"):
            assert getattr(found, name) == getattr(t, name)
    line = json.loads((tmp_path / "replies.jsonl").read_text())
    line["replies"][2]["meta_info"]["dllm_replay_contract_version"] = 3
    (tmp_path / "replies.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="line 1: dllm_replay_contract_version is 3"):
        read_replies(tmp_path / "replies.jsonl", denoiser)
    capsys.readouterr()
    for changed, says in (
        (["--stop_at_eos", "true"], "replies: stop_at_eos=True leaves blocks that no engine would: say False"),
        (
            ["--policy", "deferred", "--cache", "none", "--extension", "8"],
            "replies: extension=8 leaves blocks that no engine would: say None",
        ),
        (["--replies", str(tmp_path)], "must be a file in a directory that exists"),
        (["--model", "embedded:sudoku"], "which block-causal models have and bidirectional ones have not"),
    ):
        assert sampling_cli.main([*words, *whole, *changed]) == 2
        assert says in capsys.readouterr().err


# --- an engine -------------------------------------------------------------------------------------------------------


def engine(url, denoiser, canvas_length=G, **more):
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    return SGLangEngine(
        url,
        denoiser,
        canvas_length=canvas_length,
        block_length=BLOCK,
        sampling=sampling,
        **{"timeout": 30.0, "backoff": 0.01, **more},
    )


def test_rows_are_sent_one_by_one_and_come_back_in_order():
    denoiser = model()
    fake = FakeEngine(denoiser)
    prompts = denoiser.encode_prompts(PROMPTS)
    rows = [ids for ids in prompts for _ in range(3)]
    with serving(fake) as url:
        ours = engine(url, denoiser, at_once=4).rollouts(rows, range(len(rows)))
    sent = [body for path, body in fake.asked if path == "/generate"]
    assert [len(body["input_ids"]) for body in sent] == [4, 4, 4, 3]
    assert [ids for body in sent for ids in body["input_ids"]] == rows
    parameters = [given for body in sent for given in body["sampling_params"]]
    for ids, given, t in zip(rows, parameters, ours, strict=True):
        most = given["max_new_tokens"]
        assert (len(ids) + most) % BLOCK == 0
        assert G - BLOCK < most <= G
        (expected,) = sample(denoiser, [ids], fake.config(most), seed=[t.seed])
        assert (t.completion_ids, t.text, t.finished) == (expected.completion_ids, expected.text, expected.finished)
        assert len(t.canvas_ids) == G
    assert [t.seed for t in ours] == list(range(len(rows)))
    assert [t.prompt_ids for t in ours] == [tuple(ids) for ids in rows]


def _meta(name, value):
    def spoil(replies):
        replies[1]["meta_info"] |= {name: value(replies[1]["meta_info"].get(name))}

    return spoil


def _without(name):
    return lambda replies: replies[1]["meta_info"].pop(name) and None


def _both(change):
    """A change of the tokens that is the same in both of their lists."""

    def spoil(replies):
        change(replies[1]["output_ids"])
        change(replies[1]["meta_info"]["dllm_replay_token_ids"])

    return spoil


BROKEN = {
    "another version": (
        _meta("dllm_replay_contract_version", lambda _: 2),
        "dllm_replay_contract_version is 2, and 1 is",
    ),
    "a version in words": (_meta("dllm_replay_contract_version", lambda _: "1"), "version is '1', and 1 is"),
    "no version": (_without("dllm_replay_contract_version"), "dllm_replay_contract_version is missing"),
    "a token more": (lambda replies: replies[1]["output_ids"].append(5), r"completion_tokens=\d+, and there are \d+"),
    "another stop": (_meta("dllm_stop_length", lambda stop: stop + 1), r"dllm_stop_length=\d+, and output_ids holds"),
    "a step less": (_meta("dllm_replay_step_maps", lambda steps: steps[:-1]), r"holds \d+ steps for the \d+ tokens"),
    "steps from zero": (_meta("dllm_replay_step_maps", lambda steps: [s - 1 for s in steps]), "numbers of at least 1"),
    "steps in halves": (
        _meta("dllm_replay_step_maps", lambda steps: [s + 0.5 for s in steps]),
        "no list of whole numbers",
    ),
    "other steps": (_meta("step_maps", lambda steps: [s + 1 for s in steps]), "does not begin with step_maps"),
    "other tokens": (_meta("dllm_replay_token_ids", lambda ids: [5, *ids]), r"holds \d+ steps for the"),
    "tokens changed": (_meta("dllm_replay_token_ids", lambda ids: [*ids[1:], 3]), "does not begin with output_ids"),
    "no tokens": (lambda replies: replies[1].pop("output_ids") and None, "output_ids is missing"),
    "another prompt": (_meta("prompt_tokens", lambda count: count + 1), r"prompt_tokens=\d+, and there are \d+"),
    "other weights": (_meta("weight_version", lambda _: "old"), "drawn with weights 'old', and the policy's are '0'"),
    "a reply less": (lambda replies: replies[1:], "was sent 2 prompts and gave 1 replies"),
    "no list": (lambda replies: {"error": "no"}, "was sent 2 prompts and gave no replies"),
    "no meta_info": (lambda replies: replies[1].pop("meta_info") and None, "no meta_info in the reply"),
    "aborted": (
        _meta("finish_reason", lambda _: {"type": "abort", "message": "out of\nmemory"}),
        "aborted: out of memory",
    ),
    "a mask": (_both(lambda ids: ids.__setitem__(0, model().mask_id)), r"holds the mask token \d+ at position 0"),
    "no such token": (_both(lambda ids: ids.__setitem__(0, 10**6)), r"token 1000000 is none of the model's \d+"),
    "past the end": (_both(lambda ids: ids.__setitem__(0, model().eos_ids[0])), r"goes on after the EOS token \d+"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_breaks_the_contract_is_refused_in_one_line(name):
    denoiser, (spoil, says) = model(), BROKEN[name]
    fake = FakeEngine(denoiser, load=False)
    fake.spoil, fake.version = spoil, "0"
    with serving(fake) as url:
        asked = engine(url, denoiser)
        asked.version = "0"
        ids = denoiser.encode_prompts([PROMPTS[0]])[0]
        seed = next(s for s in range(50) if sample(denoiser, [ids], fake.config(15), seed=[s])[0].length > 2)
        with pytest.raises(ValueError, match=says) as refused:
            asked.rollouts([ids, ids], [seed, seed])
    assert "\n" not in str(refused.value)
    assert url in str(refused.value)


def test_a_stop_that_is_no_end_of_the_models_is_refused():
    denoiser = model()
    fake = FakeEngine(denoiser)

    def spoil(replies):
        for reply in replies:
            meta = reply["meta_info"]
            ids = meta["dllm_replay_token_ids"][:3]
            steps = meta["dllm_replay_step_maps"][:3]
            reply["output_ids"] = [5 for _ in ids]
            meta |= {
                "dllm_replay_token_ids": [5 for _ in ids],
                "dllm_replay_step_maps": steps,
                "step_maps": steps,
                "dllm_stop_length": 3,
                "completion_tokens": 3,
            }

    fake.spoil = spoil
    with serving(fake) as url, pytest.raises(ValueError, match="stopped after 3 of 15 tokens, without an EOS token"):
        engine(url, denoiser).rollouts(denoiser.encode_prompts([PROMPTS[0]]), [0])


def test_servers_that_fail_are_tried_again_and_keys_stay_secret(monkeypatch):
    denoiser = model()
    fake = FakeEngine(denoiser, key="sk-secret")
    ids = denoiser.encode_prompts(PROMPTS[:1])
    with serving(fake) as url:
        with pytest.raises(ConnectionError, match=r"get_model_info refused after 1 attempt\(s\): HTTP 401"):
            engine(url, denoiser)
        monkeypatch.setenv("SGLANG_API_KEY", "sk-secret")
        fake.refuse = lambda path, number: ({"error": "busy"}, 503) if path == "/generate" and number < 4 else None
        assert len(engine(url, denoiser).rollouts(ids, [0])) == 1
        assert [path for path, _ in fake.asked].count("/generate") == 3
        fake.refuse = lambda path, number: ({"error": "sk-secret was seen"}, 500)
        with pytest.raises(ConnectionError, match=r"after 2 attempt\(s\): HTTP 500.*\*\*\* was seen") as refused:
            engine(url, denoiser, attempts=2)
    assert "sk-secret" not in str(refused.value)
    with pytest.raises(ConnectionError, match=r"get_model_info: no connection after 1 attempt\(s\)"):
        engine(url, denoiser, attempts=1)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_an_adapters_weights_are_written_merged_and_its_base_is_left_as_it_was(tmp_path):
    def adapted():
        torch.manual_seed(0)
        base = model().model
        found = get_peft_model(
            base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        )
        with torch.no_grad():
            for name, p in found.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    p.normal_(std=0.1)
        return found

    kept = adapted()
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    write_weights(kept, tmp_path / "weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.state_dict().items())
    written = load_file(tmp_path / "weights" / "model.safetensors")
    whole = adapted().merge_and_unload(safe_merge=True).state_dict()
    assert written.keys() == whole.keys()
    assert all(torch.equal(written[name], whole[name]) for name in whole)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(written[name], model().model.state_dict()[name])


def test_adapters_without_merged_weights_are_refused():
    base = model().model
    base.config.tie_word_embeddings = True
    tied = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(
        ValueError, match="is given merged weights, and the adapter changes the head of a base whose head"
    ):
        check_mergeable(tied)
    rounded = get_peft_model(model().model, LoraConfig(r=2, target_modules=["q_proj"]))
    weight = rounded.get_base_model().model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False).data = weight.data.to(torch.int8)
    with pytest.raises(ValueError, match="an adapter on a quantised base has none"):
        check_mergeable(rounded)


def test_weights_go_out_under_published_names(tmp_path):
    denoiser = Denoiser.from_pretrained(str(LLADA2))
    write_weights(denoiser.model, tmp_path / "weights")
    published = load_file(LLADA2 / "model.safetensors")
    written = load_file(tmp_path / "weights" / "model.safetensors")
    assert written.keys() == published.keys()
    assert all(torch.equal(written[name], published[name].to(written[name])) for name in published)


# --- a run -----------------------------------------------------------------------------------------------------------

# Lengths that end with a block: there an engine's last block is the canvas's.
EVEN = ["1+2=", "12*3+45=", "7*7=", "30-12-9=", "5+5=", "8-3="]
LOCAL = {"policy": "threshold", "threshold": 0.6}
RUN = {
    "steps": None,
    "block_length": BLOCK,
    "max_completion_length": 12,
    "estimator": "trajectory",
    "max_steps": 2,
    "temperature": 0.9,
    "per_device_train_batch_size": 8,
    "beta": 0.04,
}


class Seen(DiffusionGRPOTrainer):
    """Keeps what every step made: losses, gradients, likelihoods."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.seen = [*getattr(self, "seen", []), (loss.detach(), inputs["advantages"], inputs["completion_ids"])]
        return loss

    def training_step(self, model, inputs, *more):
        loss = super().training_step(model, inputs, *more)
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss


def run(folder, lora=False, **settings):
    trainer = make_trainer(
        {**RUN, **settings}, folder, denoiser=model(sharpness=2.0), prompts=EVEN, lora=lora, trainer=Seen
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True], ids=["full", "lora"])
def test_a_run_with_an_engine_is_the_local_run(lora, tmp_path):
    """Losses, gradients and weights of two steps; the second rolls out with the weights that the first one left."""
    ours = run(tmp_path / "ours", lora, **LOCAL)
    fake = FakeEngine(model(seed=9, sharpness=2.0))
    with serving(fake) as url:
        theirs = run(tmp_path / "theirs", lora, rollout_engine="sglang", rollout_engine_url=url)
    assert len(ours.seen) == len(theirs.seen) == 2
    mask_id = fake.denoiser.mask_id
    for (loss, advantages, ids), (loss_too, advantages_too, ids_too) in zip(ours.seen, theirs.seen, strict=True):
        torch.testing.assert_close(loss_too, loss, atol=1e-5, rtol=1e-4)
        assert advantages.any()
        torch.testing.assert_close(advantages_too, advantages)
        assert ((ids == ids_too) | (ids == mask_id) | (ids_too == mask_id)).all()
    for name, gradient in ours.gradients.items():
        torch.testing.assert_close(theirs.gradients[name], gradient, atol=2e-5, rtol=2e-3)
    left = weights(theirs)
    for name, weight in weights(ours).items():
        torch.testing.assert_close(left[name], weight, atol=2e-5, rtol=2e-3)
    told = [body["weight_version"] for path, body in fake.asked if path == "/update_weights_from_disk"]
    assert told == ["0", "1"]
    log = theirs.state.log_history[0]
    assert "rollout/unique" in log
    assert not {"rollout/confidence", "rollout/entropy", "entropy"} & log.keys()
    assert "entropy" in ours.state.log_history[0]


def test_greedy_engines_are_refused_by_name(tmp_path):
    fake = FakeEngine(model(sharpness=2.0))
    draw = fake.config
    fake.config = lambda length, **_: draw(length, greedy=True)
    with serving(fake) as url:
        says = re.escape(f"{url} decodes greedily: the 4 completions of each prompt are the same at temperature=0.9")
        with pytest.raises(ValueError, match=says):
            run(tmp_path, rollout_engine="sglang", rollout_engine_url=url)


def test_weights_that_were_not_loaded_stop_the_run(tmp_path):
    fake = FakeEngine(model(sharpness=2.0))
    fake.update = lambda body: {"success": False, "message": "no such\ndirectory"}
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mine.txt").write_text("mine")
    with (
        serving(fake) as url,
        pytest.raises(ConnectionError, match=r"did not load the weights in .*: no such directory"),
    ):
        run(tmp_path, rollout_engine="sglang", rollout_engine_url=url, rollout_engine_weights=str(tmp_path / "shared"))
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"mine.txt", "rollout_weights"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rollout_engine": "vllm"}, "rollout_engine='vllm' is not one of transformers, sglang"),
        (
            {"rollout_engine_url": "http://me:secret@host"},
            "rollout_engine_url would be ignored: rollout_engine='transf",
        ),
        ({"rollout_engine_timeout": 3.0}, "rollout_engine_timeout would be ignored"),
        ({"rollout_engine": "sglang"}, "needs rollout_engine_url, http://HOST:PORT"),
        ({"rollout_engine": "sglang", "rollout_engine_url": "host:1"}, "rollout_engine_url='host:1' is no address"),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": "http://me:secret@host"},
            "holds a user, a password or a query",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "cache": "block"},
            "cache='block' would be ignored by",
        ),
        ({"rollout_engine": "sglang", "rollout_engine_url": URL, "steps": 4}, "steps=4 would be ignored by"),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "preset": "block"},
            "preset='block' would be ignored",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "threshold": 0.5},
            "threshold=0.5 would be ignored by",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "scope": "canvas"},
            "scope='canvas' does not go with",
        ),
        ({"rollout_engine": "sglang", "rollout_engine_url": URL, "top_entropy_quantile": 0.5}, "tells no entropies"),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "estimator": "forks"},
            "estimator='forks' does not go",
        ),
        (
            {
                "rollout_engine": "sglang",
                "rollout_engine_url": URL,
                "estimator": "trajectory",
                "position_temperature": 0.5,
            },
            "position_temperature=0.5 does not go with",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "rollout_engine_attempts": 0},
            "rollout_engine_attempts=0",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "rollout_engine_timeout": 0.0},
            "timeout=0.0 must be",
        ),
        (
            {"rollout_engine": "sglang", "rollout_engine_url": URL, "rollout_engine_attempts": "2"},
            "attempts='2' is no",
        ),
        ({"rollout_engine": "sglang", "rollout_engine_url": 3}, "rollout_engine_url=3 is no address"),
    ],
)
def test_options_that_an_engine_or_its_absence_would_ignore_are_refused(settings, says, tmp_path):
    common = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "max_completion_length": 8}
    with pytest.raises(ValueError, match=re.escape(says)) as refused:
        DiffusionGRPOConfig(**common, **settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("family", "length", "says"),
    [
        (BIDIRECTIONAL, 12, "bidirectional models do not attend so: rollout_engine='transformers'"),
        (CONTEXT_CAUSAL, 12, "models do not attend so"),
        (BLOCK_CAUSAL, 4, "max_completion_length=4: an engine counts blocks from the prompt's first token"),
    ],
)
def test_models_that_an_engine_denoises_otherwise_are_refused(family, length, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        engine(URL, random_denoiser("qwen3", family=family), canvas_length=length)
