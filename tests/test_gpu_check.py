"""`scripts/gpu_check`: what it refuses, what it reads and writes by hand, and one run of all of it on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import gpu_check
import gpu_figures
from gpu_page import page

REPORT = """<testsuites><testsuite>
<testcase name="test_tokens_are_the_cpus[llada]" time="1.5">
<properties><property name="off" value="0.25"/></properties>
</testcase>
<testcase name="test_tokens_are_the_cpus[dream]" time="0.5">
<properties><property name="off" value="nan"/></properties>
<failure message="assert 1 == 2&#10;more">trace</failure>
</testcase>
<testcase name="test_other" time="0.0"><skipped type="pytest.skip" message="no &lt;flash&gt;">why</skipped></testcase>
</testsuite></testsuites>"""


def run(*arguments):
    command = [sys.executable, gpu_check.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "9b"], "argument --size: invalid choice: '9b'"),
        (["--turns", "1"], "--turns 1: a spread wants at least 2"),
        (["--device", "cpu"], "--size 1b: --device cpu goes with --size tiny"),
        (["--output", __file__], "is not a directory"),
        (["--siez", "tiny"], "unrecognized arguments: --siez tiny"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(arguments)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu_check: ")
    assert said.count("\n") == 1
    assert says in said


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--output", str(tmp_path / "out")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu_check: no accelerator found")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def figures(device, rows):
    """What a check might have found."""
    side = {
        "seconds": gpu_figures.spread([1.0, 2.0, 3.0]),
        "tokens_per_second": 64.0,
        "ratio": 1.5,
        "ratio_quartiles": [1.25, 1.75],
        "tokens_of_the_loop": 0.5,
    }
    parts = {"weights": 1_000_000, "training": 2_000_000, "activations": 1_000_000}
    return {
        "conditions": {"device": device, "name": "A <b>"},
        "tests": rows,
        "seconds": 1.0,
        "throughput": {
            "parameters": 2e9,
            "prompt": 4,
            "canvas": 8,
            "block": 4,
            "batches": {"1": {"turns": 3, "sides": {"ours": side}}},
        },
        "memory": {
            "adapter": {"rows": 8, "length": 12, "rank": 2, "formula": parts, "peak": 6_000_000, "reason": None},
            "all weights": {
                "rows": 8,
                "length": 12,
                "rank": None,
                "formula": parts,
                "peak": None,
                "reason": "too little",
            },
        },
    }


def test_the_page_shows_what_failed_and_on_what_it_ran(tmp_path):
    (tmp_path / "tests.xml").write_text(REPORT)
    rows = gpu_check.read_report(tmp_path / "tests.xml")
    assert [row["outcome"] for row in rows] == ["passed", "failed", "skipped"]
    assert (rows[0]["test"], rows[0]["case"], rows[0]["recorded"]) == ("tokens are the cpus", "llada", {"off": 0.25})
    assert rows[1]["recorded"] == {"off": "nan"}
    on_gpu, on_cpu = (page(figures(device, rows)) for device in ("cuda", "cpu"))
    warning = "This ran on a CPU. Its figures say nothing of a GPU."
    assert warning in on_cpu
    assert warning not in on_gpu
    assert "<tr><td class=text>tokens are the cpus</td><td>1</td><td>1</td><td>0</td><td>2</td></tr>" in on_gpu
    assert "assert 1 == 2" in on_gpu
    assert "no &lt;flash&gt;" in on_gpu
    assert "A &lt;b&gt;" in on_gpu
    assert "<td class=text>6.0 MB</td><td>1.5</td>" in on_gpu  # of 4 MB
    assert "too little" in on_gpu


def test_both_files_are_written_or_neither(tmp_path):
    gpu_check.write_both(tmp_path, {"a": "1", "b": "2"})
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["1", "2"]
    with pytest.raises(UnicodeEncodeError):
        gpu_check.write_both(tmp_path / "new", {"a": "1", "b": "\ud800"})
    assert not list((tmp_path / "new").iterdir())


def test_an_output_that_cannot_be_made_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--device", "cpu", "--size", "tiny", "--output", str(tmp_path / "file" / "out")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu_check: ")
    assert said.count("\n") == 1


def test_the_random_llama_has_the_published_size():
    assert gpu_figures.shape_of("1b").parameters == 1_235_814_400  # Llama 3.2 1B
    assert gpu_figures.shape_of("3b").parameters == 3_212_749_824
    assert set(gpu_figures.MODELS) == set(gpu_figures.LENGTHS) == set(gpu_check.SIZES)


@pytest.mark.parametrize("batch", [1, 3])
def test_both_sides_of_the_comparison_do_the_same_work(batch):
    denoiser = gpu_figures.random_llama("tiny", torch.float32, "cpu")
    works = gpu_figures.works_of(denoiser, "tiny", batch)
    assert works["Lockstitch, no cache"]() == works["LLaDA's loop"]()


def test_what_does_not_fit_is_said_and_the_rest_goes_on():
    def fails():
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB.\nMore")

    assert gpu_figures.fits(fails) == {"peak": None, "reason": "Tried to allocate 9 GiB."}
    assert gpu_figures.fits(lambda: 7.0) == {"peak": 7, "reason": None}


@pytest.mark.slow
def test_a_run_on_the_cpu(tmp_path):
    (tmp_path / "gpu_check.json").write_text("of an earlier run")
    done = run("--device", "cpu", "--size", "tiny", "--turns", "2", "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.html", "gpu_check.json"]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    outcomes = {(row["outcome"], "flash_attention_2" in row["case"]) for row in found["tests"]}
    assert outcomes == {("passed", False), ("skipped", True)}
    assert sum("a logit is off" in what for row in found["tests"] for what in row["recorded"]) == 6
    assert set(found["throughput"]["batches"]) == {"1", "8"}
    for batch in found["throughput"]["batches"].values():
        assert all(side["tokens_per_second"] > 0 for side in batch["sides"].values())
        # Tokens that are all but equally probable differ in bfloat16; at random one in 500 would be the same.
        assert batch["sides"]["Lockstitch, no cache"]["tokens_of_the_loop"] > 0.5
    # The optimizer's moments, gradients and weights are there at the least.
    for kind in found["memory"].values():
        assert kind["peak"] > kind["formula"]["weights"] + kind["formula"]["training"]
    assert "This ran on a CPU" in (tmp_path / "gpu_check.html").read_text()
