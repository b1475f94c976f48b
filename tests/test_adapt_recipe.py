"""The adaptation recipe: its presets and configs through the real parser, and what it leaves behind.

That what is adapted is sampled, trained further and stitched is what the page runs (`docs/adaptation.md`).
"""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from lockstitch.recipes.adapt import parse, prepare, run, train
from lockstitch.recipes.gpu_memory import adaptation_memory
from lockstitch.recipes.layers import preset_names
from lockstitch.sampling.denoiser import Denoiser
from models import random_denoiser
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
PAPERS = ("cap", "idlm", "mixscale", "nbdiff", "opdlm", "tidar")
CPU = ["--bf16", "false", "--use_cpu", "true", "--dtype", "float32"]
CONFIGS = sorted((ROOT / "recipes/configs").glob("*/adapt*.yaml"))


def test_the_presets_are_those_of_the_papers():
    assert preset_names("adapt_preset") == list(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_is_accepted_and_every_value_has_a_source(name):
    _, training, model = parse(
        ["--adapt_preset", name, "--model_name_or_path", "m", "--generate", "sudoku", "--output_dir", "o", *CPU]
    )
    path = ROOT / f"recipes/presets/adapt/{name}.yaml"
    lines = [line for line in path.read_text().split("\n") if line[:1].isalpha()]
    assert len(lines) >= 10
    assert not [line for line in lines if not re.search(r" # \[[PCO]\]", line)]
    for key, value in yaml.safe_load(path.read_text()).items():
        found = getattr(training, key, None) if hasattr(training, key) else getattr(model, key)
        assert found == value, key
    published = {
        "nbdiff": ("context_causal", 32),
        "tidar": ("tidar", 16),
        "idlm": ("idlm", 4),
        "opdlm": ("block_causal", 4),
        "mixscale": ("block_causal", 4),
    }
    if name in published:
        family = training.family(None)
        assert (family.name, family.block_length) == published[name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_config_is_accepted_and_its_header_is_true(path):
    recipe, training, model = parse(["--config", str(path), *CPU[:4]])
    header = "\n".join(line.lstrip("# ") for line in path.read_text().split("\n") if line.startswith("#"))
    named = re.search(r"--config (recipes/configs/\S+)", header)
    assert named is not None
    assert (ROOT / named[1]).samefile(path)
    assert training.output_dir == f"runs/{path.parent.name}/{path.stem}"
    assert training.family(None).layout != "full"
    if path.parent.name != "tiny":
        assert re.search(r"--config_file (\S+)", header)
        said = re.search(r"Needs (\d+) GB", header)
        assert said is not None
        assert int(said[1]) == round(sum(adaptation_memory(recipe, training, model).values()))
        assert "not run here" in header


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--adapt_preset", "nbdif"], "adapt_preset='nbdif' is not one of .*; did you mean 'nbdiff'"),
        (["--layout", "context_causl"], "layout='context_causl' is not one of context_causal"),
        (["--blok_growth", "x"], "'--blok_growth'; did you mean 'block_growth'"),
    ],
)
def test_wrong_options_are_refused(more, says):
    with pytest.raises(ValueError, match=says):
        parse(["--model_name_or_path", "m", "--generate", "sudoku", "--output_dir", "o", *CPU, *more])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "layout=None: the model is autoregressive; say what it becomes: context_causal"),
        (
            ["--adapt_preset", "idlm", "--ar_loss", "none", "--lora_gate", "true"],
            "lora_gate=True gates an adapter: use_peft: true",
        ),
        (["--adapt_preset", "nbdiff", "--chat_template", "true"], "chat_template=True would be ignored: text='data'"),
        (
            ["--model_name_or_path", "embedded:sudoku", "--objective", "distillation"],
            "teacher_name_or_path=None: the model is a diffusion model already",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_model_loads(more, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        prepare(
            *parse(
                [
                    "--model_name_or_path",
                    "embedded:solver",
                    "--generate",
                    "sudoku",
                    "--output_dir",
                    str(tmp_path),
                    *CPU,
                    *more,
                ]
            )
        )


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """An autoregressive model of random weights: a plain Qwen3 checkpoint, without a word of diffusion."""
    folder = tmp_path_factory.mktemp("parent")
    denoiser = random_denoiser("qwen3")
    del denoiser.model.config.diffusion, denoiser.model.config.is_causal
    denoiser.model.save_pretrained(folder)
    denoiser.tokenizer.save_pretrained(folder)
    assert not {"diffusion", "is_causal"} & json.loads((folder / "config.json").read_text()).keys()
    return folder


SMALL = [
    "--generate",
    "sudoku",
    "--num_problems",
    "16",
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--gradient_accumulation_steps",
    "1",
    "--report_to",
    "none",
    "--logging_steps",
    "1",
    "--canvas_length",
    "20",
    "--learning_rate",
    "1e-3",
    "--disable_tqdm",
    "true",
    "--warmup_steps",
    "0",
    *CPU,
]


@pytest.fixture(scope="module")
def maskless(parent, tmp_path_factory):
    """The same, whose tokenizer names no mask token, and whose every row of embeddings has a token."""
    folder = tmp_path_factory.mktemp("maskless")
    for path in parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tok = AutoTokenizer.from_pretrained(folder)
    tok.mask_token = None
    tok.save_pretrained(folder)
    return folder


DISTILLED = ["--layout", "block_causal", "--block_length", "4", "--objective", "distillation", *SMALL]


def test_the_parent_is_a_teacher_also_where_the_mask_has_a_new_row(maskless, tmp_path):
    argv = ["--model_name_or_path", str(maskless), "--output_dir", str(tmp_path), *DISTILLED]
    made = [prepare(*parse([*argv, *more])).trainer for more in ([], ["--teacher_name_or_path", str(maskless)])]
    batch = next(iter(made[0].get_train_dataloader()))
    losses = [trainer.compute_loss(trainer.model.train(), batch).item() for trainer in made]
    rows = [trainer._teacher.model.get_input_embeddings().weight.shape[0] for trainer in made]
    assert rows == [404, 404]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vocab_size": 300}, "has a vocabulary of 300 tokens, and the model one of 403"),
        ({}, r"has another tokenizer: 2 tokens of the model are none of the teacher's, or another \('A' is"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused_before_weights_are_read(changed, says, maskless, tmp_path):
    teacher, model = tmp_path / "teacher", tmp_path / "model"
    for folder in (teacher, model):
        folder.mkdir()
        for path in maskless.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | changed))
    tok = json.loads((teacher / "tokenizer.json").read_text())
    vocab = tok["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (teacher / "tokenizer.json").write_text(json.dumps(tok))
    argv = ["--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run"), *DISTILLED]
    with pytest.raises(ValueError, match=says):
        prepare(*parse([*argv, "--teacher_name_or_path", str(teacher)]))


def adapt(parent, output, preset, *more):
    """A model that the recipe made of a parent in two steps."""
    blocks = ["--block_length", "4"] if preset != "cap" else ["--lora_r", "2", "--lora_alpha", "2"]
    ramp = ["--rollout_length_start", "8", "--rollout_ramp_steps", "2"] if preset == "opdlm" else []
    train(
        *parse(
            [
                "--adapt_preset",
                preset,
                "--model_name_or_path",
                str(parent),
                "--output_dir",
                str(output),
                *SMALL,
                *blocks,
                *ramp,
                *more,
            ]
        )
    )
    return output


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nbdiff", "opdlm", "idlm", "tidar", "mixscale"])
def test_every_preset_takes_two_steps_and_says_what_it_became(preset, parent, tmp_path):
    adapt(parent, tmp_path / "run", preset)
    before, after = (Denoiser.from_pretrained(str(p), family="idlm", device="cpu") for p in (parent, tmp_path / "run"))
    moved = [not torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert Denoiser.from_pretrained(str(tmp_path / "run"), device="cpu").block_length == 4
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stage"] == "adapt"
    assert log[0]["loss"] > 0


@pytest.mark.slow
def test_step_distillation_keeps_the_layout_of_its_model(parent, tmp_path):
    for preset, family in (("mixscale", "block_causal"), ("tidar", "tidar")):
        adapt(adapt(parent, tmp_path / preset, preset), tmp_path / f"{preset}-cap", "cap")
        fewer = Denoiser.from_pretrained(str(tmp_path / f"{preset}-cap"), device="cpu")
        assert (fewer.family.name, fewer.block_length) == (family, 4)


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_uninterrupted_one(parent, tmp_path):
    """On rollouts, whose noise depends on the step: stopped after two steps of four, with all weights as they would be."""
    ends = []
    for name, stops in (("whole", (4,)), ("twice", (2, 4))):
        for steps in stops:
            arguments = [
                "--adapt_preset",
                "opdlm",
                "--model_name_or_path",
                str(parent),
                "--output_dir",
                str(tmp_path / name),
                *SMALL,
                "--block_length",
                "4",
                "--save_steps",
                "2",
                "--max_steps",
                str(steps),
                "--lr_scheduler_type",
                "constant",
                "--rollout_length_start",
                "8",
                "--rollout_ramp_steps",
                "4",
            ]
            run(prepare(*parse([*arguments, "--lr_scheduler_kwargs", "{}"])))
        ends.append(Denoiser.from_pretrained(str(tmp_path / name), device="cpu").model)
    assert all(torch.equal(a, b) for a, b in zip(*(end.parameters() for end in ends), strict=True))


@pytest.mark.slow
def test_own_texts_own_prompts_and_a_gate(parent, tmp_path):
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{a}+{b}={a + b}\n" * 6}) + "\n" for a in range(4) for b in range(4)))
    small = [word for word in SMALL if word not in ("--generate", "sudoku", "--num_problems", "16")]
    common = ["--model_name_or_path", str(parent), *small, "--block_length", "4"]
    train(
        *parse(["--adapt_preset", "nbdiff", *common, "--dataset_name", str(rows), "--output_dir", str(tmp_path / "a")])
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"{a}+{a}="}) + "\n" for a in range(8)))
    train(
        *parse(
            [
                "--adapt_preset",
                "opdlm",
                *common,
                "--dataset_name",
                str(prompts),
                "--columns",
                "prompt:question",
                "--rollout_length_start",
                "4",
                "--rollout_ramp_steps",
                "2",
                "--output_dir",
                str(tmp_path / "b"),
            ]
        )
    )
    train(
        *parse(
            [
                "--adapt_preset",
                "idlm",
                *common,
                "--dataset_name",
                str(rows),
                "--use_peft",
                "true",
                "--lora_gate",
                "true",
                "--ar_loss",
                "none",
                "--output_dir",
                str(tmp_path / "c"),
            ]
        )
    )
    gated, plain = (
        Denoiser.from_pretrained(str(path), **more, device="cpu")
        for path, more in ((tmp_path / "c", {}), (parent, {"family": "idlm"}))
    )
    assert (gated.family.name, gated.block_length) == ("idlm", 4)
    ids = torch.tensor([[9, 10, 11, 12, 13]])
    with torch.no_grad():
        assert torch.equal(gated.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)
