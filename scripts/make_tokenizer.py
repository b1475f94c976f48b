"""Writes the embedded models' tokenizer: `python scripts/make_tokenizer.py src/lockstitch/embedded/tokenizer`."""

import sys

from lockstitch.recipes.tiny import build_tokenizer, tokenizer_texts

if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_tokenizer.py DIR")
    build_tokenizer(tokenizer_texts()).save_pretrained(sys.argv[1])
