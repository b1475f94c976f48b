"""Every family's golden checkpoint on an accelerator, against the same on the CPU.

Without an accelerator each test skips itself. `scripts/gpu_check` runs them and shows what they record; with `--device cpu`
it names the CPU in LOCKSTITCH_GPU_TESTS_ON, which proves that the tests run and says nothing of a GPU.
"""

import math
import os

import pytest
import torch
from lockstitch.recipes import grpo, sft
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.export import ExportConfig, export
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import FAMILIES
from lockstitch.sampling.layouts import EXACT
from lockstitch.sampling.loop import sample
from lockstitch.sampling.presets import preset
from peft import PeftModel
from test_every_family_trains import SMALL, SUPERVISED, history, words
from test_families import GOLDEN, NAMES, PROMPTS, golden, settings, tokens
from transformers.utils import is_flash_attn_2_available

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float32_as_it_is")]
every_family = pytest.mark.parametrize("name", NAMES)

# Blocks that divide a short canvas, where the preset's would not.
SHORT = {"llada": {"block_length": 8}, "llada_moe": {"block_length": 8}, "dream": {}, "sdar": {"block_length": 4},
         "fastv2": {"block_length": 8, "sub_block_length": 4}, "llada2": {"block_length": 8}}  # fmt: skip
CANVAS = 16
# Most that bfloat16 may move logits (of their spread) and a token's log-likelihood (nats, the mean). An expert that is
# chosen in the other's place moves more than rounding does.
LOGITS_DRIFT, LIKELIHOOD_DRIFT = 0.05, 0.15
FULL = [name for name in NAMES if FAMILIES[NAMES[name]].layout == "full"]  # flash attention takes no masks of blocks
ATTENTION = [(name, "sdpa") for name in NAMES] + [(name, "flash_attention_2") for name in FULL]
DTYPES = [(name, "float32") for name in NAMES] + [("llada", "bfloat16"), ("sdar", "bfloat16")]


@pytest.fixture(scope="module")
def device():
    """Where the tests run; skips them where there is no accelerator."""
    said = os.environ.get("LOCKSTITCH_GPU_TESTS_ON")
    if said is not None:
        return torch.device(said)
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    return torch.accelerator.current_accelerator()


@pytest.fixture
def float32_as_it_is():
    """No TF32: products of float32 are of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def there(name, device, **more):
    return Denoiser.from_pretrained(str(GOLDEN / name), device=device, **more)


def drawn_on_the_cpu(name):
    return sample(golden(name), PROMPTS, settings(name, temperature=1.0, steps=6), n=2)


def likelihoods(denoiser, drawn, config):
    """Of the trajectories' tokens, `(B, G)`, on the CPU."""
    scorer = Scorer(denoiser, denoiser.model, block_length=None if denoiser.family.layout == "full" else 4)
    with torch.no_grad():
        return estimate(config, scorer, Canvases.from_trajectories(drawn, denoiser), 0).float().cpu()


@every_family
def test_tokens_under_the_familys_preset_are_the_cpus(name, device):
    config = preset(FAMILIES[NAMES[name]].decoding, CANVAS, **SHORT[name])
    ours, expected = (sample(one, PROMPTS, config, seed=3) for one in (there(name, device), golden(name)))
    assert tokens(ours) == tokens(expected)
    assert [t.commit_step for t in ours] == [t.commit_step for t in expected]


@every_family
def test_every_cache_gives_the_tokens_of_the_cpu(name, device):
    """At temperature 1: the noise, too, is the same."""
    denoiser = there(name, device)
    for cache in EXACT[denoiser.family.layout]:
        deferred = {"policy": "deferred", "threshold": 0.5} if cache == "interval" else {"steps": 6}
        config = settings(name, cache=cache, temperature=1.0, **deferred)
        ours, expected = (sample(one, PROMPTS, config, n=2, seed=3) for one in (denoiser, golden(name)))
        assert tokens(ours) == tokens(expected), cache


@every_family
@pytest.mark.parametrize("estimator", ["trajectory", "elbo"])
def test_likelihoods_are_the_cpus(name, estimator, device, record_property):
    drawn, config = drawn_on_the_cpu(name), EstimatorConfig(estimator)
    ours, expected = (likelihoods(one, drawn, config) for one in (there(name, device), golden(name)))
    record_property("most a likelihood is off, nats", float((ours - expected).abs().max()))
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_bfloat16_stays_near_float32(name, attention, device, record_property):
    if attention == "flash_attention_2" and (device.type == "cpu" or not is_flash_attn_2_available()):
        pytest.skip("flash attention is not installed, or not for this device")
    exact, denoiser = golden(name), there(name, device, dtype=torch.bfloat16, attn_implementation=attention)
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        expected = exact.model(input_ids=ids, use_cache=False).logits
        found = denoiser.model(input_ids=ids.to(device), use_cache=False).logits.float().cpu()
    moved = float((found - expected).abs().max() / (expected.max() - expected.min()))
    drawn, config = drawn_on_the_cpu(name), EstimatorConfig("elbo")
    off_BG = (likelihoods(denoiser, drawn, config) - likelihoods(exact, drawn, config)).abs()
    record_property("most a logit is off, of their spread", moved)
    record_property("mean a likelihood is off, nats", float(off_BG.mean()))
    record_property("most a likelihood is off, nats", float(off_BG.max()))
    assert 0 < moved < LOGITS_DRIFT
    assert 0 < off_BG.mean() < LIKELIHOOD_DRIFT
    (t, *_) = sample(denoiser, PROMPTS, settings(name, temperature=1.0, steps=6))
    assert denoiser.mask_id not in t.completion_ids


@pytest.mark.parametrize(("name", "dtype"), DTYPES)
def test_a_step_of_reinforcement_learning_and_its_export(name, dtype, device, tmp_path):
    run = tmp_path / "run"
    changed = {
        "rl_preset": "espo",
        "model_name_or_path": GOLDEN / name,
        "output_dir": run,
        "use_peft": "true",
        "max_steps": 1,
        "gradient_accumulation_steps": 1,
        "dtype": dtype,
        **on(device, dtype),
    }
    grpo.train(*grpo.parse(words(SMALL | changed)))
    (step,) = history(run)
    assert math.isfinite(step["loss"])
    assert step["grad_norm"] > 0
    if dtype == "float32":
        check_exports(name, device, run, tmp_path)


@every_family
def test_a_supervised_step(name, device, tmp_path, monkeypatch):
    rows = "".join(f'{{"prompt": "{i}+{i}=", "completion": "{2 * i}"}}\n' for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    changed = {
        "model_name_or_path": GOLDEN / name,
        "dataset_name": tmp_path / "rows.jsonl",
        "save_strategy": "no",
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        **on(device, "float32"),
    }
    if golden(name).family.layout != "full":
        changed["block_length"] = 4
    monkeypatch.setattr("sys.argv", ["sft", *words(SUPERVISED | changed)])
    sft.main()
    (step,) = history(tmp_path / "run")
    assert math.isfinite(step["loss"])
    assert step["grad_norm"] > 0


def on(device, dtype):
    return {"use_cpu": str(device.type == "cpu").lower(), "bf16": str(dtype == "bfloat16").lower()}


def check_exports(name, device, run, directory):
    """Merged under either kind of names and read back, the model is the adapter's on its base, there and on the CPU."""
    ids = torch.tensor([PROMPTS[2]])

    def logits(model):
        with torch.no_grad():
            return model(input_ids=ids.to(model.device), use_cache=False).logits.cpu()

    adapted = PeftModel.from_pretrained(there(name, device).model, str(run)).eval()
    expected = logits(adapted)
    assert (expected - logits(golden(name).model)).abs().max() > 1e-4
    for names in ("native", "published"):
        output = directory / names
        export(ExportConfig(run, output, merge=True, names=names))
        for where in (device, "cpu"):
            again = Denoiser.from_pretrained(str(output), device=where).model
            torch.testing.assert_close(logits(again), expected, atol=2e-4, rtol=1e-4)
