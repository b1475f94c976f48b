"""What draft and verify saves on SmolLM2 with a draft adapter: passes and seconds a token, beside plain decoding.

    python scripts/bench_drafting.py --model models/smollm2 --adapter runs/smollm2/adapter --data DIR --output runs/smollm2

Prompts that `adapt_smollm2.py` keeps apart, one at a time, greedy: transformers' own `generate`, plain decoding by the
sampler (a block of 1), and each block length with masks after each token or after the last, taking turns prompt by prompt.
Says for each whether the text is that of `generate`, tokens a pass with the 95 % interval of the mean over prompts, and the
median seconds a token, which mean something on a machine that does nothing else. A run that was stopped goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from adapt_smollm2 import chat, prompts_of, read_lines
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample


def measure(options: argparse.Namespace) -> None:
    """Draws prompts one by one, each way in turn, and says how many passes and seconds a token takes."""
    denoiser = Denoiser.from_pretrained(f"{options.adapter}@{options.model}", dtype=torch.float32, device="cpu")
    model, tokenizer = denoiser.model, denoiser.tokenizer
    common: dict[str, Any] = {"canvas_length": options.length, "policy": "verify", "cache": "block"}
    ways = {"plain": SamplerConfig(block_length=1, **common)}
    ways |= {
        f"{d} of {b}": SamplerConfig(block_length=b, drafts=d, **common)
        for b in options.blocks
        for d in options.drafts
    }
    path = Path(options.output) / "measured.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_lines(path) if path.exists() else []
    _, prompts = prompts_of(Path(options.data))
    for prompt in prompts[len(rows) : options.n]:
        ids = tokenizer(chat(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        entry: dict[str, Any] = {}
        began = time.perf_counter()
        with torch.inference_mode(), model.disable_adapter():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=options.length,
                do_sample=False,
                suppress_tokens=denoiser.never_drawn,
            )
        text = out[0, len(ids) :].tolist()
        entry["generate"] = {
            "tokens": len(text),
            "passes": len(text),
            "seconds": time.perf_counter() - began,
            "same": True,
        }
        for name, config in ways.items():
            began = time.perf_counter()
            (drawn,) = sample(denoiser, [ids], config)
            written = list(drawn.completion_ids)
            entry[name] = {
                "tokens": len(written),
                "passes": drawn.ledger.sequential_steps,
                "seconds": time.perf_counter() - began,
                "same": written == text,
            }
        rows.append(entry)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
    print("| way | the parent's greedy text | tokens a pass | seconds a token, median | against plain, median |")
    print("|---|---|---|---|---|")
    for name in rows[0]:
        per_pass = [row[name]["tokens"] / row[name]["passes"] for row in rows]
        half = 1.96 * statistics.stdev(per_pass) / len(rows) ** 0.5 if len(rows) > 1 else 0.0
        seconds = statistics.median(row[name]["seconds"] / row[name]["tokens"] for row in rows)
        times = statistics.median(row["plain"]["seconds"] / row[name]["seconds"] for row in rows)
        same = sum(row[name]["same"] for row in rows)
        mean = statistics.mean(per_pass)
        print(f"| {name} | {same} of {len(rows)} | {mean:.2f} ± {half:.2f} | {seconds:.3f} | {times:.2f} |")


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the parent's directory")
    parser.add_argument("--adapter", required=True, help="a directory, or embedded:NAME")
    parser.add_argument("--data", required=True, help="a directory of benchmark files")
    parser.add_argument("--output", required=True, help="a directory for what was measured")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a completion")
    parser.add_argument("--n", type=int, default=32, help="prompts, of those that are kept apart")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4], help="tokens that a pass checks")
    parser.add_argument("--drafts", nargs="+", default=["each", "last"], choices=["each", "last"])
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
