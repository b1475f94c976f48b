"""Merges an adapter into its base, checks what was written, and loads it with Lockstitch and with plain transformers.

`python examples/export_and_reload.py`
"""

from pathlib import Path

from lockstitch.rl.export import ExportConfig, export
from transformers import AutoModelForCausalLM

from lockstitch import Denoiser, SamplerConfig, embedded_adapter, sample

output = Path("exports/sudoku")
checks = export(
    ExportConfig(
        adapter=embedded_adapter("sudoku-early"),  # or a run's output directory
        output=output,
        base="embedded:sudoku-early",
        merge=True,
    )
)
print("checks:", {name: value for name, value in checks.items() if isinstance(value, float)})

puzzle = "3102\n2000\n0210\n0320\n"
for model in ("embedded:sudoku-early", str(output)):
    trajectories = sample(Denoiser.from_pretrained(model), [puzzle], SamplerConfig(canvas_length=20), n=1)
    print(model, trajectories[0].text.split())

print(type(AutoModelForCausalLM.from_pretrained(output)).__name__, sorted(path.name for path in output.iterdir()))
