"""A checkpoint is translated while it is read: what a process holds of its own never comes to a second copy of the model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from lockstitch.sampling.families import translation_of
from lockstitch.sampling.loading import native_config, read_config, save_published
from test_families import GOLDEN
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

LARGER = {
    "llada": {
        "d_model": 512,
        "mlp_hidden_size": 1536,
        "n_layers": 8,
        "n_heads": 8,
        "n_kv_heads": 8,
        "vocab_size": 16384,
        "embedding_size": 16384,
    },
    "llada2": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rotary_dim": 32,
        "vocab_size": 16384,
        "num_experts": 16,
        "moe_intermediate_size": 256,
    },
}
LOAD = """
import sys, threading, time
import transformers.models.llama.modeling_llama, transformers.models.glm4_moe.modeling_glm4_moe
from lockstitch.sampling.loading import load_model, read_config

def own_memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024

before, peak, done = own_memory(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, own_memory() - before)
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(sys.argv[1], read_config(sys.argv[1]), device="cpu")
done = True
watcher.join()
print(peak / sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", LARGER)
def test_the_peak_is_at_most_the_weights(name, tmp_path):
    raw = read_config(str(GOLDEN / name)) | LARGER[name]
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(native_config(raw, translation_of(raw)))
    save_published(model, tmp_path)
    del model
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name / file, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == raw["model_type"]
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.15
