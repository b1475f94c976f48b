"""Stands in for the code that a checkpoint of an unknown type brings along, with the habits that published code has.

Copied into a checkpoint's directory and run as remote code (`write_checkpoint`). `habit` in its config says which: `plain`
honours everything; `blind` knows token ids alone; `inverted` hides what an additive mask shows; `flat` reads masks of two
dimensions and ignores others; `silent` answers nothing in training mode; `unplaced` counts positions itself, from 0 in each
pass. All of them leave their rotary frequencies as they
came from loading.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class FogConfig(PretrainedConfig):
    model_type = "fog"

    def __init__(
        self,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=403,
        mask_token_id=2,
        habit="plain",
        rope_theta=10_000.0,
        max_position_embeddings=256,
        dropout=0.0,
        **kwargs,
    ):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.max_position_embeddings = num_attention_heads, max_position_embeddings
        self.dropout = dropout
        self.vocab_size, self.mask_token_id, self.habit, self.rope_theta = vocab_size, mask_token_id, habit, rope_theta
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width, bias=False))

    def forward(self, x, angle, mask, cache, layer):
        maps = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in maps)
        q, k = turned(q, angle), turned(k, angle)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        return x + self.o_proj(
            functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        )


def turned(x, angle):
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class FogModel(PreTrainedModel):
    config_class = FogConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        half = config.hidden_size // config.num_attention_heads // 2
        self.register_buffer("inv_freq", config.rope_theta ** -(torch.arange(half) / half), persistent=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):  # makes transformers add a generation config
        return {"input_ids": input_ids}

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        logits_to_keep=None,
        **kwargs,
    ):
        habit = self.config.habit
        if habit == "blind":
            attention_mask = position_ids = past_key_values = logits_to_keep = None
        if position_ids is None or habit == "unplaced":
            position_ids = torch.arange(input_ids.shape[1])[None]
        if attention_mask is not None and attention_mask.ndim != 2 and habit == "flat":
            attention_mask = None
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = attention_mask.bool()[:, None, None].expand(-1, -1, input_ids.shape[1], -1)
            attention_mask = torch.zeros(attention_mask.shape).masked_fill(
                ~attention_mask, torch.finfo(torch.float32).min
            )
        if attention_mask is not None and habit == "inverted":
            attention_mask = torch.finfo(torch.float32).min - attention_mask
        angle = (position_ids[..., None].float() * self.inv_freq)[:, None]
        x = self.embed(input_ids)
        for number, layer in enumerate(self.layers):
            x = layer(x, angle, attention_mask, past_key_values, number)
        if self.training and habit == "silent":
            return CausalLMOutputWithPast(logits=None)
        return CausalLMOutputWithPast(
            logits=self.head(self.drop(x if logits_to_keep is None else x[:, logits_to_keep]))
        )


def write_checkpoint(path, tokenizer, habit="plain", **config):
    """A random checkpoint that brings this file along as its code."""
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FogModel(FogConfig(vocab_size=len(tokenizer), habit=habit, **config))
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    shutil.copyfile(__file__, path / "modeling_fog.py")
    written = json.loads((path / "config.json").read_text())
    written["auto_map"] = {"AutoConfig": "modeling_fog.FogConfig", "AutoModelForCausalLM": "modeling_fog.FogModel"}
    (path / "config.json").write_text(json.dumps(written))
    return Path(path)
