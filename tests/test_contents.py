"""A run does not go on with other weights of the same name."""

import json
import shutil

import pytest
from lockstitch.sampling.cli import main
from lockstitch.stitching.cli import stitch
from lockstitch.stitching.config import StitchConfig

from lockstitch import embedded_model
from lockstitch.contents import sums_of_models


def test_the_folders_of_a_model_count_and_that_of_an_adapters_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, name in ((base, "config.json"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / name).write_text(json.dumps({"base_model_name_or_path": str(base)}))
        (folder / "model.safetensors").write_bytes(b"weights")
    before = sums_of_models(str(adapter), None, "openai:x", "owner/name", "embedded:sudoku")
    assert list(before) == [str(adapter), str(base)]
    assert sums_of_models(f"{adapter}@{base}") == before
    for name in ("trainer_state.json", "optimizer.pt", "README.md"):  # which do not change what it says
        (adapter / name).write_text("more")
    assert sums_of_models(str(adapter)) == before
    (base / "model.safetensors").write_bytes(b"others!")
    after = sums_of_models(str(adapter))
    assert after[str(adapter)] == before[str(adapter)]
    assert after[str(base)] != before[str(base)]


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(embedded_model("sudoku"), tmp_path / "model")


def changed(model):
    """Trained on, in its place."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))


def test_sampling_does_not_go_on_with_another_model(model, tmp_path, capsys):
    words = ["--model", str(model), "--prompt", "3102\n2000\n0210\n0320\n", "--canvas_length", "20", "--output",
             str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    assert main(words) == 0
    changed(model)
    assert main(words) == 2
    assert "holds results of another configuration (models" in capsys.readouterr().err


def test_stitching_does_not_go_on_with_another_model(model, tmp_path):
    config = {"task": "sudoku", "generate": 1, "num_trajectories": 2, "solver": "none", "methods": ["best_of_n"],
              "model": str(model), "output": str(tmp_path / "out")}  # fmt: skip
    assert stitch(StitchConfig(**config)) == 0
    changed(model)
    with pytest.raises(ValueError, match=r"holds results of another configuration \(models"):
        stitch(StitchConfig(**config))
