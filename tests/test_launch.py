"""`lockstitch grpo | sft`, and how the console script answers to words that it does not know."""

import subprocess
import sys

import pytest
from lockstitch.recipes.launch import CONFIGS, command

from lockstitch.cli import COMMANDS, main


def test_one_process_needs_no_launcher_and_several_have_accelerates():
    module = ["-m", "lockstitch.recipes.grpo"]
    assert command("grpo", ["--task", "sudoku"]) == [sys.executable, "-P", *module, "--task", "sudoku"]
    assert command("grpo", ["--cpu"]) == [sys.executable, "-P", *module, "--use_cpu", "true"]
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    assert command("grpo", ["--accelerate_config", "fsdp2", "--num_processes", "8"]) == [
        *launcher,
        "--config_file",
        str(CONFIGS / "fsdp2.yaml"),
        "--num_processes",
        "8",
        *module,
    ]
    with pytest.raises(ValueError, match="accelerate_config='zero9' is neither a file nor one of ddp, fsdp2, single"):
        command("sft", ["--accelerate_config", "zero9"])


def test_a_word_like_a_command_is_guessed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["stich"])
    assert ended.value.code == 2
    assert "unknown command 'stich'; stitch?; known: sample, stitch" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once(name):
    """Nothing heavy is imported for it."""
    code = (
        "import sys; from lockstitch.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'datasets'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


@pytest.mark.slow
def test_a_mistake_in_a_recipe_is_one_line_and_status_2(tmp_path):
    words = ["grpo", "--config", "tiny/sudoku.yaml", "--max_stepz", "1", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "lockstitch", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "did you mean 'max_steps'" in done.stderr.splitlines()[-1]
