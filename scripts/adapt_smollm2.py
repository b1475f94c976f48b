"""A draft adapter for SmolLM2-135M-Instruct, trained on its own completions: the same text in fewer passes, on two cores.

    python scripts/fetch_smollm2.py models/smollm2
    python scripts/adapt_smollm2.py complete --model models/smollm2 --data DIR --output runs/smollm2
    python scripts/adapt_smollm2.py train --model models/smollm2 --output runs/smollm2 --steps 400
    python scripts/adapt_smollm2.py curve --output runs/smollm2 --image curve.png
    python scripts/bench_drafting.py --model models/smollm2 --adapter runs/smollm2/adapter --data DIR --output runs/smollm2

`complete` writes the parent's greedy completions of real prompts (GSM8K's and MATH's questions, MBPP's texts), of which 256
are kept apart. `train` fits a LoRA that acts at mask positions alone (I-DLM, 2604.11035): after each of some written
tokens stands a row of masks, which are to say what the parent would say there, by KL(parent || masks), all of them in one
pass over keys and values that the parent made of the written text without a gradient. `curve.jsonl` says what they come to
on completions that are not trained on. Both can be stopped and started again.

Axes: B rows, L written tokens, A anchors (written tokens with masks after them), K masks after each, M masks, V vocabulary.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MASK = "<jupyter_script>"  # a token that SmolLM2 reserves and its chats never hold
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
KEPT_APART = 256
Pair = dict[str, list[int]]


def read_lines(path: Path) -> list[Any]:
    """The rows of a JSON Lines file; one that was cut off at the end is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def prompts_of(data: Path) -> tuple[list[str], list[str]]:
    """Prompts to train on, and those that are kept apart, in an order that is always the same."""
    texts = [row["question"] for row in read_lines(data / "gsm8k/train.jsonl")]
    texts += [row["question"] for row in read_lines(data / "math_train/train.jsonl")]
    texts += [row["text"] for row in read_lines(data / "mbpp/mbpp.jsonl")]
    texts = [text for text in dict.fromkeys(texts) if len(text) < 400]
    random.Random(0).shuffle(texts)
    return texts[KEPT_APART:], texts[:KEPT_APART]


def load(path: str) -> tuple[Any, Any]:
    """The parent, in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def chat(tokenizer: Any, prompt: str) -> str:
    """A prompt as its chat template puts it."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return text


def complete(options: argparse.Namespace) -> None:
    """Writes `completions.jsonl`, batch by batch, until there are `--tokens` of them."""
    model, tokenizer = load(options.model)
    tokenizer.padding_side = "left"
    prompts, _ = prompts_of(Path(options.data))
    path = Path(options.output) / "completions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_lines(path) if path.exists() else []
    written, at, chunk = sum(len(row["completion_ids"]) for row in rows), len(rows), 8 * options.batch_size
    began = time.time()
    with path.open("a", encoding="utf-8") as file:
        while at < len(prompts) and written < options.tokens:
            start, rest = at - at % chunk, at % chunk
            batch = sorted(prompts[start : start + chunk], key=len)[rest : rest + options.batch_size]
            inputs = tokenizer(
                [chat(tokenizer, p) for p in batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=options.length, do_sample=False)
            width = inputs["input_ids"].shape[1]
            for ids, real, new in zip(
                inputs["input_ids"], inputs["attention_mask"], out[:, width:].tolist(), strict=True
            ):
                end = new.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in new else len(new)
                pair = {"prompt_ids": ids[real.bool()].tolist(), "completion_ids": new[:end]}
                file.write(json.dumps(pair) + "\n")
                written += end
            file.flush()
            at += len(batch)
            print(f"{time.time() - began:.0f} s, {at} prompts, {written} tokens", flush=True)


class Packed:
    """Some rows of written text, right-padded, with masks after some of their tokens.

    Args:
        rows: prompt and completion of each.
        anchors: of each, the places of its tokens (counted from the prompt's first) after which masks stand.
        masks: how many, K.
    """

    def __init__(self, rows: list[Pair], anchors: list[list[int]], masks: int, mask_id: int) -> None:
        texts = [row["prompt_ids"] + row["completion_ids"] for row in rows]
        self.length_B = torch.tensor([len(text) for text in texts])
        self.ids_BL = torch.tensor([text + [0] * (int(self.length_B.max()) - len(text)) for text in texts])
        most = max(map(len, anchors))
        self.anchor_BA = torch.tensor([one + [-1] * (most - len(one)) for one in anchors])
        offset_K = torch.arange(1, masks + 1)
        position_BAK = self.anchor_BA[:, :, None] + offset_K
        # A mask in the place of token i says, as all of the parent's logits, what comes at i + 1.
        asked_BAK = (self.anchor_BA >= 0)[:, :, None] & (position_BAK + 1 < self.length_B[:, None, None])
        self.position_BM, self.asked_BM = position_BAK.flatten(1).clamp(min=0), asked_BAK.flatten(1)
        self.mask_BM = torch.full_like(self.position_BM, mask_id)
        anchor_BM1 = self.anchor_BA.repeat_interleave(masks, 1)[:, :, None]
        block_M = torch.arange(most).repeat_interleave(masks)
        L, M = self.ids_BL.shape[1], len(block_M)
        clean_BML = torch.arange(L)[None, None] <= anchor_BM1
        own_MM = (block_M[:, None] == block_M) & torch.ones(M, M, dtype=torch.bool).tril()
        seen_BMK = torch.cat([clean_BML, own_MM[None].expand(len(rows), M, M)], 2)
        self.attention_B1MK = torch.zeros(seen_BMK.shape).masked_fill_(~seen_BMK, torch.finfo(torch.float32).min)[
            :, None
        ]


def passes(model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the parent and of the masks where the latter are asked, both `(M, V)`; the parent's have no gradient."""
    from transformers import DynamicCache

    keys, base = DynamicCache(), model.get_base_model()
    with torch.no_grad():
        hidden_BLD = base.model(input_ids=packed.ids_BL, past_key_values=keys).last_hidden_state
        row_M, place_M = packed.asked_BM.nonzero(as_tuple=True)
        parent_MV = base.lm_head(hidden_BLD[row_M, packed.position_BM[row_M, place_M]])
    hidden_BMD = base.model(
        input_ids=packed.mask_BM,
        attention_mask=packed.attention_B1MK,
        position_ids=packed.position_BM,
        past_key_values=keys,
    ).last_hidden_state
    return parent_MV, base.lm_head(hidden_BMD[packed.asked_BM])


def drafts_of(model: Any, row: Pair, masks: int, mask_id: int) -> tuple[float, list[float]]:
    """Tokens per pass if this greedy completion is drafted and verified, and the share of right masks by their place."""
    start, stop = len(row["prompt_ids"]) - 1, len(row["prompt_ids"]) + len(row["completion_ids"]) - 1
    packed = Packed([row], [list(range(start, stop))], masks, mask_id)
    with torch.no_grad():
        _, logits_MV = passes(model, packed)
    logits_MV[:, mask_id] = -torch.inf
    text = torch.tensor(row["prompt_ids"] + row["completion_ids"])
    right_M = logits_MV.argmax(-1) == text[packed.position_BM[packed.asked_BM] + 1]
    right_AK = torch.zeros(packed.asked_BM.shape[1], dtype=torch.bool).masked_scatter_(packed.asked_BM[0], right_M)
    right_AK = right_AK.view(-1, masks)
    written, count = 1, 1  # the first pass reads the prompt, and drafts
    while written < len(right_AK):
        written += 1 + int(right_AK[written - 1].long().cumprod(0).sum())
        count += 1
    return len(right_AK) / count, right_AK.float().mean(0).tolist()


def batches(path: Path, options: argparse.Namespace, done: int) -> Iterator[tuple[list[Pair], list[list[int]]]]:
    """Rows and their anchors for each step from `done` on; rows that are written meanwhile come in with the next epoch."""
    step, epoch, generator = 0, 0, random.Random(0)
    while True:
        rows = [
            row for i, row in enumerate(read_lines(path)) if i % 16 and len(row["completion_ids"]) > options.masks + 1
        ]
        random.Random(epoch).shuffle(rows)
        for at in range(0, len(rows) - options.rows + 1, options.rows):
            batch, anchors = rows[at : at + options.rows], []
            for row in batch:
                first, last = len(row["prompt_ids"]) - 1, len(row["prompt_ids"]) + len(row["completion_ids"]) - 3
                places = range(first, last + 1)
                anchors.append(sorted(generator.sample(places, min(options.anchors, len(places)))))
            step += 1
            if step > done:
                yield batch, anchors
        epoch += 1


def train(options: argparse.Namespace) -> None:
    """Trains, with a checkpoint, the averaged adapter and a line of `curve.jsonl` every so many steps."""
    from lockstitch.rl.adaptation_losses import forward_kl
    from lockstitch.rl.lora import lora_config
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.families import IDLM
    from lockstitch.sampling.mask_gate import gated

    output = Path(options.output)
    parent, tokenizer = load(options.model)
    tokenizer.add_special_tokens({"mask_token": MASK})
    denoiser = Denoiser(parent, tokenizer, IDLM)
    torch.manual_seed(0)
    model = gated(parent, lora_config(denoiser, options.rank, 2 * options.rank, gated=True))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    state: dict[str, Any] = {"step": 0, "tokens": 0, "masks": 0, "seconds": 0.0}
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        state = saved["state"]
        optimizer.load_state_dict(saved["optimizer"])
        for values, kept in ((weights, saved["weights"]), (average, saved["average"])):
            for value, one in zip(values, kept, strict=True):
                value.data.copy_(one)

    def save(losses: list[float]) -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "state": state,
                "optimizer": optimizer.state_dict(),
                "average": average,
                "weights": [weight.detach() for weight in weights],
            },
            partial,
        )
        partial.rename(checkpoint)
        now = [weight.detach().clone() for weight in weights]
        for weight, mean in zip(weights, average, strict=True):
            weight.data.copy_(mean)
        model.eval()
        save_small(model, output / "adapter")
        rows = [row for i, row in enumerate(read_lines(output / "completions.jsonl")) if i % 16 == 0][
            : options.held_out
        ]
        rows = [row for row in rows if len(row["completion_ids"]) > options.masks + 1]
        found = [drafts_of(model, row, options.masks, denoiser.mask_id) for row in rows]
        entry = {
            **state,
            "loss": sum(losses) / max(1, len(losses)),
            "tokens_per_pass": sum(one for one, _ in found) / len(found),
            "right": [sum(column) / len(found) for column in zip(*(right for _, right in found), strict=True)],
            "held_out": len(found),
        }
        with (output / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        for weight, own in zip(weights, now, strict=True):
            weight.data.copy_(own)
        model.train()

    if not state["step"]:
        save([])
    losses: list[float] = []
    model.train()
    for rows, anchors in batches(output / "completions.jsonl", options, state["step"]):
        if state["step"] >= options.steps:
            break
        began = time.time()
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (state["step"] + 1) / 20)
        packed = Packed(rows, anchors, options.masks, denoiser.mask_id)
        parent_MV, logits_MV = passes(model, packed)
        loss = forward_kl(parent_MV, logits_MV).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        keep = min(options.average, state["step"] / (state["step"] + 10))
        for weight, mean in zip(weights, average, strict=True):
            mean.lerp_(weight.detach(), 1 - keep)
        losses.append(float(loss.detach()))
        state["tokens"] += int(packed.length_B.sum())
        state["masks"] += len(logits_MV)
        state["seconds"] += time.time() - began
        print(
            f"step {state['step']} loss {losses[-1]:.3f} {state['seconds'] / state['step']:.1f} s a step", flush=True
        )
        if state["step"] % options.save_every == 0:
            save(losses)
            losses = []


def save_small(model: Any, directory: Path) -> None:
    """The adapter in half precision: numbers of about 0.01 keep three digits, and PEFT reads them back into float32."""
    from safetensors.torch import load_file, save_file

    model.active_peft_config.base_model_name_or_path = BASE  # on any machine, and not where it lay here
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's form, with nothing filled in
    path = directory / "adapter_model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})


def curve(options: argparse.Namespace) -> None:
    """Prints `curve.jsonl` as a table, and draws it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_lines(Path(options.output) / "curve.jsonl")
    print("| steps | tokens read | masks | tokens a pass | first mask | second | third |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        right = " | ".join(f"{share:.2f}" for share in row["right"])
        print(f"| {row['step']} | {row['tokens']:,} | {row['masks']:,} | {row['tokens_per_pass']:.2f} | {right} |")
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot([row["masks"] for row in rows], [row["tokens_per_pass"] for row in rows], "o-", markersize=4)
    axes.set(
        xlabel="masks of training", ylabel="tokens a pass", title="SmolLM2-135M with a draft adapter, blocks of 4"
    )
    figure.savefig(options.image, dpi=110)


def main() -> None:
    """Parses the command line and runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("complete", complete), ("train", train), ("curve", curve)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        if name != "curve":
            command.add_argument("--model", required=True, help="the parent's directory")
        command.add_argument("--output", required=True, help="a directory for everything that is written")
        if name == "complete":
            command.add_argument("--data", required=True, help="a directory of benchmark files")
            command.add_argument("--length", type=int, default=128, help="most tokens of a completion")
            command.add_argument("--tokens", type=int, default=100_000, help="completion tokens to write in all")
            command.add_argument("--batch_size", type=int, default=32)
        if name == "train":
            command.add_argument("--steps", type=int, default=400)
            command.add_argument("--rank", type=int, default=8, help="of the adapter; alpha is twice as much")
            command.add_argument(
                "--learning_rate", type=float, default=1e-3, help="warmed up over 20 steps, then constant"
            )
            command.add_argument(
                "--average", type=float, default=0.97, help="of the weights over the steps, which is saved"
            )
            command.add_argument("--rows", type=int, default=2, help="completions a step")
            command.add_argument("--anchors", type=int, default=32, help="tokens of each after which masks stand")
            command.add_argument("--masks", type=int, default=3, help="masks after each: drafted tokens but the first")
            command.add_argument("--save_every", type=int, default=25)
            command.add_argument("--held_out", type=int, default=12, help="completions that the curve is measured on")
        if name == "curve":
            command.add_argument("--image", required=True, help="a PNG file")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
