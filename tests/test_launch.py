"""`lockstitch grpo | sft`, and how the console script answers to words that it does not know."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lockstitch.recipes.launch import CONFIGS, command
from lockstitch.rewards.sandbox.sandbox_watch import processes_of

from lockstitch.cli import COMMANDS, main


def test_one_process_needs_no_launcher_and_several_have_accelerates():
    module = ["-m", "lockstitch.recipes.grpo"]
    assert command("grpo", ["--task", "sudoku"]) == ([sys.executable, "-P", *module, "--task", "sudoku"], False)
    assert command("grpo", ["--cpu"]) == ([sys.executable, "-P", *module, "--use_cpu", "true"], False)
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    # Told of a CPU alone, accelerate starts one process, however many are asked for.
    for asked, mode in (
        (["--num_processes", "1"], "--cpu"),
        (["--num_processes", "2"], "--multi_gpu"),
        (["--accelerate_config", "single"], "--cpu"),
        (["--accelerate_config", "ddp"], "--multi_gpu"),
    ):
        words, _ = command("grpo", ["--cpu", *asked])
        assert {"--cpu", "--multi_gpu"} & set(words) == {mode}
        assert words[-2:] == ["--use_cpu", "true"]
    words, is_launcher = command("grpo", ["--accelerate_config", "fsdp2", "--num_processes", "8"])
    assert words == [*launcher, "--config_file", str(CONFIGS / "fsdp2.yaml"), "--num_processes", "8", *module]
    assert is_launcher
    with pytest.raises(ValueError, match="accelerate_config='zero9' is neither a file nor one of ddp, fsdp2, single"):
        command("sft", ["--accelerate_config", "zero9"])


def wait_for(found, seconds=60.0):
    """What a function finds, once it finds something."""
    end = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return there


def words_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def runs(pid):
    """Whether it is there, and not only waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--num_processes", "1", "--cpu"], marks=pytest.mark.slow, id="accelerate")]
)
def test_training_ends_with_its_command(options, tmp_path):
    """The process that trains is told, whoever started it, and is no orphan."""
    said = ["--config", "tiny/prm_sudoku.yaml", *options, "--output_dir", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "lockstitch", "prm", *said], stderr=subprocess.DEVNULL)

    def training():
        both = {pid: words_of(pid) for pid in processes_of(process.pid)}
        launcher, module = "accelerate.commands.launch", "lockstitch.recipes.prm"
        return [pid for pid, words in both.items() if module in words and launcher not in words]

    pids = wait_for(training)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    wait_for(lambda: not any(map(runs, pids)), 5.0)


TOLD = """
import sys
from lockstitch.recipes.launch import run_to_its_end
try:
    status = run_to_its_end(["sh", "-c", {script!r}])
except KeyboardInterrupt:
    status = 130
sys.exit(status)
"""


@pytest.mark.parametrize(("sent", "ends"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_what_a_launcher_started_is_told_of_signals(sent, ends, tmp_path):
    # As accelerate's launcher of one process, which waits and passes nothing on.
    script = f'{sys.executable} -c \'import time; open("{tmp_path}/there", "w"); time.sleep(600)\'; exit 1'
    process = subprocess.Popen([sys.executable, "-c", TOLD.format(script=script)], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "there").exists)
    pids = processes_of(process.pid)
    assert len(pids) == 3
    os.kill(process.pid, sent)
    assert process.wait(30) == ends
    wait_for(lambda: not any(map(runs, pids)), 5.0)


def test_a_launcher_that_is_killed_is_no_success():
    done = subprocess.run([sys.executable, "-c", TOLD.format(script="kill -9 $$")], check=False)
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("usual", ["SIG_DFL", "SIG_IGN"])
def test_the_end_of_a_command_is_heard_whatever_is_done_about_children(usual, tmp_path):
    """What nobody handles is dropped: on macOS what is so by default too, so that there is a handler while it runs."""
    script = f"cat /proc/$PPID/status >{tmp_path}/status; exit 3"
    before = f"import signal; signal.signal(signal.SIGCHLD, signal.{usual})"
    after = f"import signal; assert signal.getsignal(signal.SIGCHLD) == signal.{usual}"
    code = before + TOLD.format(script=script).replace("sys.exit", f"{after}\nsys.exit")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 3
    (caught,) = [line for line in (tmp_path / "status").read_text().splitlines() if line.startswith("SigCgt:")]
    assert int(caught.split()[1], 16) >> (signal.SIGCHLD - 1) & 1


def test_what_is_ignored_stays_ignored(tmp_path):
    script = f"echo >{tmp_path}/there; sleep .2; exit 3"
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + TOLD.format(script=script)  # as nohup does
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for((tmp_path / "there").exists)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 3


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
