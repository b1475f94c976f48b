"""Stands in for the code of a LLaDA checkpoint: its module names, the name of its head, and a `forward` without a mask.

Copied into a checkpoint's directory and run as remote code (`write_checkpoint`).
"""

import json
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=32, vocab_size=403, mask_token_id=2, **kwargs):
        self.d_model, self.n_layers, self.n_heads = d_model, n_layers, n_heads
        self.mlp_hidden_size, self.vocab_size, self.mask_token_id = mlp_hidden_size, vocab_size, mask_token_id
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.heads = config.n_heads
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def forward(self, x):
        heads = [project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                 for project in (self.q_proj, self.k_proj, self.v_proj)]  # fmt: skip
        x = x + self.attn_out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.ff_out(functional.silu(self.ff_proj(x)) * self.up_proj(x))


class LLaDAModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.d_model),
            "wpe": nn.Embedding(256, config.d_model),
            "blocks": nn.ModuleList([Block(config) for _ in range(config.n_layers)]),
            "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
        })  # fmt: skip

    def forward(self, input_ids):
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"].weight[: input_ids.shape[1]]
        for block in self.transformer["blocks"]:
            x = block(x)
        return self.transformer["ff_out"](x)


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.model.transformer["ff_out"]

    def prepare_inputs_for_generation(self, input_ids, **kwargs):  # makes transformers add a generation config
        return {"input_ids": input_ids}

    def forward(self, input_ids, inputs_embeds=None, attention_mask=None):
        return CausalLMOutputWithPast(logits=self.model(input_ids))


def write_checkpoint(path, tokenizer):
    """A random checkpoint that brings this file along as its code."""
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LLaDAModelLM(LLaDAConfig(vocab_size=len(tokenizer)))
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    shutil.copyfile(__file__, path / "modeling_llada.py")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}
    (path / "config.json").write_text(json.dumps(config))
    return Path(path)
