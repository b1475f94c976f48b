"""`lockstitch sample` as people run it: what it writes, blanks, refusals, resuming after a kill at any moment."""

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lockstitch.sampling.cli import main
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.prompts import Reader, draw, load_trajectories, result_row
from lockstitch.sampling.sample_options import SampleOptions, field_help, sampler_options
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform import sample_uniform
from lockstitch.sampling.uniform_config import UniformConfig
from models import random_denoiser, random_diffusion_gemma
from tokenizers.normalizers import Lowercase
from traces import simulate
from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

from lockstitch import embedded_model, files

PUZZLES = [
    "3102\n2000\n0210\n0320\n",
    "0140\n4320\n1402\n0000\n",
    "4310\n0100\n0030\n3420\n",
    "2004\n0012\n0320\n1003\n",
]
SUDOKU = ["--model", "embedded:sudoku", "--canvas_length", "20", "--steps", "5", "--temperature", "0.8",
          "--device", "cpu"]  # fmt: skip
CLOZE = "21*4=  \n  +8=  \n       \n       \n       \n21*4=[[a:2]]\n84+8=[[b:2]]\n####[[:6]]"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": puzzle, "answer": 1}) + "\n" for puzzle in PUZZLES))
    return path


@pytest.fixture(scope="module")
def sudoku():
    return Denoiser.from_pretrained(str(embedded_model("sudoku")), device="cpu")


def timeless(trajectories):
    return [replace(t, ledger=replace(t.ledger, seconds=0.0)) for t in trajectories]


def written(directory):
    return timeless(load_trajectories(directory / files.RESULTS))


# --- what is written -------------------------------------------------------------------------------------------------


def test_it_writes_what_sample_returns(sudoku, source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*SUDOKU, "--input", str(source), "--n", "3", "--seed", "7", "--output", str(out)]) == 0
    config = SamplerConfig(canvas_length=20, steps=5, temperature=0.8)
    expected = sample(sudoku, PUZZLES, config, n=3, seed=[derive_seed(7, i) for i in range(4)])
    assert written(out) == timeless(expected)
    assert "4 prompts, 12 trajectories" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["config.json", "results.jsonl"]
    # In other portions and batches: the same.
    other = tmp_path / "other"
    portions = ["--chunk", "1", "--batch_size", "2"]
    assert main([*SUDOKU, "--input", str(source), "--n", "3", "--seed", "7", "--output", str(other), *portions]) == 0
    assert [t.canvas_ids for t in written(other)] == [t.canvas_ids for t in expected]


@pytest.mark.parametrize("seed", range(10))
def test_a_written_trajectory_is_read_as_it_was(tmp_path, seed):
    trajectory, _ = simulate(seed)
    request = Reader(random_denoiser().tokenizer, {"canvas_length": 12}).request("a\u2028b")
    row = result_row(request, [trajectory, trajectory], lambda ids: [""] * len(ids))
    path = tmp_path / files.RESULTS
    assert list(files.append_chunks(path, [[row], [row]])) == [[row], [row]]
    assert load_trajectories(path) == [trajectory] * 4
    assert load_trajectories(path)[0].edits == trajectory.edits


def test_other_rows_are_not_loaded(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"question": 1}\n')
    with pytest.raises(ValueError, match="line 1: no 'trajectories'"):
        load_trajectories(path)


def test_prompts_may_come_from_standard_input(source, tmp_path, monkeypatch, capsys):
    def piped(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        return main([*SUDOKU, "--input", "-", "--output", str(tmp_path / "piped")])

    assert main([*SUDOKU, "--input", str(source), "--output", str(tmp_path / "file")]) == 0
    assert piped(source.read_bytes()) == piped(source.read_bytes()) == 0  # again: all rows are there
    assert written(tmp_path / "piped") == written(tmp_path / "file")
    assert piped(b'{"prompt": "1234"}\n') == 2
    assert "rows" in capsys.readouterr().err


def test_without_an_output_the_texts_are_printed(capsys):
    assert main([*SUDOKU, "--prompt", PUZZLES[0], "--color", "never"]) == 0
    shown = capsys.readouterr().out
    assert "3142\n2431\n4213\n1324" in shown
    assert "\x1b" not in shown
    assert main([*SUDOKU, "--prompt", PUZZLES[0], "--color", "always", "--watch"]) == 0
    assert "\x1b[38;5;" in capsys.readouterr().out


def test_finished_rows_are_watched_and_drawn_from_their_file(source, tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "trace.html"
    command = [*SUDOKU, "--input", str(source), "--output", str(out)]
    assert main(command) == 0
    before = (out / files.RESULTS).read_bytes()
    capsys.readouterr()
    assert main([*command, "--watch", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert (out / files.RESULTS).read_bytes() == before
    for trajectory in load_trajectories(out / files.RESULTS):
        assert f"#{trajectory.prompt} " in shown
        assert all(line in shown for line in trajectory.text.split("\n"))
    assert "step 5 of 5" in shown
    assert "<canvas" not in page.read_text()
    assert page.read_text().count('"canvas_ids"') == 4


def test_a_null_takes_back_what_a_preset_says(tmp_path):
    (tmp_path / "dream.yaml").write_text("preset: dream\nschedule_eps: null\ntop_p: 0.5\nmask_id: null\n")
    command = ["--model", "embedded:sudoku", "--prompt", PUZZLES[0], "--canvas_length", "20", "--device", "cpu"]
    said = {
        "file": ["--config", str(tmp_path / "dream.yaml")],
        "words": ["--preset", "dream", "--schedule_eps=null", "--top_p", "0.5"],
        "word over file": ["--config", str(tmp_path / "dream.yaml"), "--schedule_eps", "0.01", "--top_p", "null"],
    }
    found = {}
    for name, words in said.items():
        assert main([*command, *words, "--output", str(tmp_path / name)]) == 0
        config = json.loads((tmp_path / name / "config.json").read_text())
        found[name] = config["schedule_eps"], config["top_p"], config["certainty"]
    assert found["file"] == found["words"] == (None, 0.5, "entropy")
    assert found["word over file"] == (0.01, None, "entropy")


def test_a_preset_is_what_it_sets(tmp_path):
    out = tmp_path / "out"
    command = ["--model", "embedded:sudoku", "--prompt", PUZZLES[0], "--canvas_length", "20", "--output", str(out)]
    assert main([*command, "--preset", "dcd", "--window", "8"]) == 0
    config = json.loads((out / files.CONFIG).read_text())
    assert [config[name] for name in ("policy", "threshold", "window", "window_limit")] == ["deferred", 0.9, 8, 128]
    said = ["--policy", "deferred", "--threshold", "0.9", "--window", "8", "--window_limit", "128"]
    assert main([*command, *said]) == 0  # the same configuration: nothing is refused


# --- blanks and canvases ---------------------------------------------------------------------------------------------


def test_blanks_are_filled_and_the_rest_stays(tmp_path):
    out = tmp_path / "out"
    assert (
        main(
            [
                "--model",
                "embedded:arithmetic",
                "--prompt",
                CLOZE,
                "--n",
                "4",
                "--temperature",
                "1.5",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    (row,) = map(json.loads, (out / files.RESULTS).read_text().splitlines())
    a, b, last = row["blanks"]
    assert [(blank["name"], blank["start"], blank["stop"]) for blank in row["blanks"]] == [
        ("a", 0, 2),
        ("b", 8, 10),
        ("", 15, 21),
    ]
    for k, trajectory in enumerate(load_trajectories(out / files.RESULTS)):
        assert trajectory.text == f"{a['texts'][k]}\n84+8={b['texts'][k]}\n####{last['texts'][k]}"
        pinned = [position for position, step in enumerate(trajectory.commit_step) if step == 0]
        assert pinned == [*range(2, 8), *range(10, 15)]
    assert a["texts"][0] == "84"


class Hasty(torch.nn.Module):
    """A model that would end every completion at once."""

    def __init__(self, model, eos_id):
        super().__init__()
        self.model, self.config, self.generation_config, self.eos_id = (
            model,
            model.config,
            model.generation_config,
            eos_id,
        )

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, **arguments):
        logits = self.model(**arguments).logits
        logits[..., self.eos_id] += 100
        return SimpleNamespace(logits=logits)


def test_a_blank_cannot_end_the_completion_before_pinned_text():
    inner = random_denoiser()
    hasty = Denoiser(Hasty(inner.model, inner.eos_ids[0]), inner.tokenizer)
    request = Reader(hasty.tokenizer, {}).request("1+1=[[a:3]], so [[b:4]]!")
    ((trajectory,),) = draw(hasty, [request], 5, 1, 0)
    assert trajectory.prompt == 5
    assert trajectory.text.endswith("!")
    assert ", so " in trajectory.text
    open_end = Reader(hasty.tokenizer, {}).request("1+1=[[a:3]], so [[b:4]]")
    ((trajectory,),) = draw(hasty, [open_end], 0, 1, 0)
    assert trajectory.text.endswith(", so ")  # what comes last may be empty
    assert trajectory.finished


def test_rows_of_many_lengths_are_drawn_as_alone(sudoku):
    reader = Reader(sudoku.tokenizer, {"temperature": 1.0})
    texts = [f"31{i}2\n[[:{1 + i % 3}]]4[[:2]]" for i in range(6)]
    requests = [reader.request(text) for text in texts]
    together = draw(sudoku, requests, 10, 2, 3)
    alone = [draw(sudoku, [request], 10 + i, 2, 3)[0] for i, request in enumerate(requests)]
    assert [[t.canvas_ids for t in row] for row in together] == [[t.canvas_ids for t in row] for row in alone]
    assert [[t.prompt for t in row] for row in together] == [[10 + i] * 2 for i in range(6)]


def test_a_canvas_of_ones_own(sudoku, tmp_path):
    row = sudoku.encode(["2431\n"])[0]
    canvas = [None] * 5 + row + [None] * 10
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text(json.dumps({"prompt": PUZZLES[0], "canvas": canvas}) + "\n")
    command = ["--model", "embedded:sudoku", "--device", "cpu", "--input", str(source), "--output", str(out)]
    assert main(command) == 0
    (expected,) = sample(
        sudoku, [PUZZLES[0]], SamplerConfig(canvas_length=20), seed=derive_seed(0, 0), canvases=[canvas]
    )
    assert written(out) == timeless([expected])


# --- refusals --------------------------------------------------------------------------------------------------------


def test_bad_lines_are_named_before_any_model_is_loaded(tmp_path, capsys):
    lines = ['{"prompt": "1+1="}', "not json", '{"question": "x"}', '{"prompt": ""}', '{"prompt": "a[[b:0]]"}',
             '{"prompt": "[[b:2]]"}', '{"prompt": "a[[b:2]]"}', '{"prompt": "a", "canvas": [1, 5000]}',
             '{"prompt": "a", "canvas": [2]}', '{"prompt": "a[[b:2]]", "canvas": [1]}']  # fmt: skip
    source, out = tmp_path / "bad.jsonl", tmp_path / "out"
    source.write_text("\n".join(lines) + "\n")
    assert main([*SUDOKU, "--input", str(source), "--output", str(out)]) == 2
    said = capsys.readouterr().err
    for expected in (
        "9 bad lines",
        "line 2: not JSON",
        "line 3: 'prompt' must be a non-empty text or messages, not None",
        "line 4: 'prompt'",
        "line 5: blank '[[b:0]]'",
        "line 6: blank '[[b:2]]': some text must stand before",
        "line 7: canvas_length=20 would be ignored: the row's own canvas has 2 positions",
        "line 8: 'canvas' holds 5000 at position 1",
        "line 9: the mask token 2 is pinned at canvas position 0",
        "line 10: 'canvas' would be ignored: the prompt has blanks",
    ):
        assert expected in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "1+1="], "canvas_length is needed, for the prompt has neither blanks nor a canvas"),
        (["--canvas_length", "20"], "say what to sample from, once: --prompt, --input or --task (given: none)"),
        (["--prompt", "a", "--input", "b"], "(given: prompt and input)"),
        (["--input", "nowhere.jsonl"], "input 'nowhere.jsonl' is not a file"),
        (["--prompt", "a", "--n", "0"], "n=0"),
        (["--prompt", "a", "--chunk", "0"], "chunk=0"),
        (["--prompt", "a", "--chunk", "2", "--watch"], "chunk=2 does not go with watch"),
        (["--prompt", "a", "--canvas_length", "8", "--t_max", "1"], "t_max=1.0 is for diffusion_gemma models"),
        (["--prompt", "a", "--color", "red"], "color='red' is not one of auto, always, never"),
        (
            ["--prompt", "a", "--html", "no/where.html"],
            "html='no/where.html' must be a file in a directory that exists",
        ),
        (["--prompt", "a", "--html", "."], "html='.'"),
        (["--prompt", "a", "--preset", "best"], "preset='best' is not one of llada, fast"),
        (
            ["--prompt", "a", "--canvas_length", "64", "--preset", "block"],
            "cache='block' is not for bidirectional models",
        ),
        (
            ["--prompt", "a[[:8]]", "--length", "dynamic", "--max_length", "9", "--policy", "factor", "--factor", "1"],
            "length='dynamic' moves the positions",
        ),
        (["--prompt", "a", "--family", "gpt"], "family='gpt' is not one of bidirectional"),
        (["--prompt", "a", "--canvas_length", "8", "--threshold", "0.5"], "threshold=0.5 would be ignored"),
        (["--prompt", "a[[:7]]", "--block_length", "4"], "block_length=4 does not divide canvas_length=7"),
        (["--prompt", "a[[:7]]<mask>"], "the mask token 2 is pinned at canvas position 7"),
        (["--model", "embedded:chess", "--prompt", "a"], "no embedded model 'chess'"),
        (["--model", "/nowhere", "--prompt", "a"], "/nowhere"),
    ],
)
def test_refused_before_any_work(arguments, says, capsys):
    model = [] if "--model" in arguments else ["--model", "embedded:sudoku"]
    assert main([*model, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_tokenizer_that_changes_pinned_text_is_refused():
    tok = random_denoiser().tokenizer
    tok.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(ValueError, match="does not keep the text around the blanks: 'B' comes back as 'b'"):
        Reader(tok, {}).request("a[[:1]]B")


def test_a_changed_configuration_or_input_is_refused(source, tmp_path, capsys):
    command = [*SUDOKU, "--input", str(source), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert main([*command, "--chunk", "2", "--batch_size", "3"]) == 0
    for change, says in [
        ("--seed", "seed: 0 then, 1 now"),
        ("--n", "n: 1 then, 2 now"),
        ("--block_length", "block_length"),
    ]:
        assert main([*command, change, {"--seed": "1", "--n": "2", "--block_length": "20"}[change]]) == 2
        assert says in capsys.readouterr().err
    source.write_text(source.read_text() + "\n")
    assert main(command) == 2
    assert "sha256" in capsys.readouterr().err


# --- DiffusionGemma --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A directory with a tiny DiffusionGemma, blocks of 8, published with six steps a block."""
    path, denoiser = tmp_path_factory.mktemp("gemma"), random_diffusion_gemma()
    denoiser.model.save_pretrained(path)
    denoiser.tokenizer.save_pretrained(path)
    DiffusionGemmaGenerationConfig(max_denoising_steps=6, eos_token_id=denoiser.eos_ids).save_pretrained(path)
    return str(path)


def test_a_diffusion_gemma_is_driven_by_its_own_schedule(gemma, source, tmp_path, capsys):
    out, page = tmp_path / "out", tmp_path / "trace.html"
    command = ["--model", gemma, "--input", str(source), "--canvas_length", "16", "--n", "2", "--t_max", "0.9", "--device",
               "cpu", "--output", str(out)]  # fmt: skip
    assert main([*command, "--chunk", "3"]) == 0
    denoiser = DiffusionGemmaDenoiser.from_pretrained(gemma, device="cpu")
    config = UniformConfig(16, max_denoising_steps=6, t_max=0.9)
    expected = sample_uniform(denoiser, PUZZLES, config, n=2, seed=[derive_seed(0, i) for i in range(4)])
    assert [t.canvas_ids for t in written(out)] == [t.canvas_ids for t in expected]
    assert [t.prompt for t in written(out)] == [0, 0, 1, 1, 2, 2, 3, 3]
    # Cut, gone on with, watched and drawn.
    path = out / files.RESULTS
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:2]) + rows[2][:50])
    capsys.readouterr()
    assert main([*command, "--watch", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert [t.canvas_ids for t in written(out)] == [t.canvas_ids for t in expected]
    assert "#0 3102" in shown  # replayed
    assert "#3 2004" in shown
    assert "step 0\n" in shown  # live
    assert page.read_text().count('"canvas_ids"') == 8
    assert main([*command, "--t_min", "0.1"]) == 2
    assert "t_min: 0.4 then, 0.1 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "canvas_length is needed"),
        (["--canvas_length", "16", "--policy", "quota"], "policy='quota' is for models with a mask token; diffusion"),
        (["--canvas_length", "16", "--preset", "fast"], "preset='fast' would be ignored by a diffusion_gemma model"),
        (["--canvas_length", "16", "--family", "llada"], "family='llada' would be ignored"),
        (["--canvas_length", "16", "--t_min", "2"], "t_min=2.0 and t_max=0.8"),
        (["--canvas_length", "12"], "block_length=8 does not divide canvas_length=12"),
        (["--canvas_length", "16", "--prompt", "a[[:2]]"], "the prompt has blanks: diffusion_gemma models"),
    ],
)
def test_what_a_diffusion_gemma_would_ignore_is_refused(gemma, arguments, says, capsys):
    prompt = [] if "--prompt" in arguments else ["--prompt", "1+1="]
    assert main(["--model", gemma, *prompt, *arguments]) == 2
    assert says in capsys.readouterr().err


# --- options ---------------------------------------------------------------------------------------------------------


def test_every_setting_of_the_sampler_is_an_option_that_says_what_it_does():
    options = fields(sampler_options())
    records = [one.name for record in (SamplerConfig, UniformConfig) for one in fields(record)]
    assert [one.name for one in options] == list(dict.fromkeys(records))
    assert all(one.default is None and len(one.metadata["help"]) > 20 for one in options)
    assert not {one.name for one in options} & {one.name for one in fields(SampleOptions)}
    assert field_help(Trajectory)["entropy"] == "the trace."  # names that share an entry


def test_help_answers_within_a_second():
    script = Path(sysconfig.get_path("scripts")) / "lockstitch"

    def spent():  # by child processes, in seconds of their own, which a busy machine does not stretch
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    began = spent()
    shown = subprocess.run([script, "sample", "--help"], capture_output=True, text=True, check=True).stdout
    assert spent() - began < 1.0
    assert all(f"--{one.name}" in shown for one in (*fields(SampleOptions), *fields(SamplerConfig)))


def test_a_yaml_file_sets_options(tmp_path, capsys):
    path = tmp_path / "sample.yaml"
    path.write_text("model: embedded:sudoku\ncanvas_length: 20\nstop_at_eos: false\nsteps: 5\n")
    out = tmp_path / "out"
    assert main(["--config", str(path), "--prompt", PUZZLES[0], "--output", str(out), "--steps", "10"]) == 0
    config = json.loads((out / files.CONFIG).read_text())
    assert (config["stop_at_eos"], config["steps"], config["policy"]) == (False, 10, "quota")
    path.write_text("model: embedded:sudoku\nstepz: 5\n")
    assert main(["--config", str(path), "--prompt", PUZZLES[0]]) == 2
    assert "stepz" in capsys.readouterr().err


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_a_results_file_cut_anywhere_is_completed(source, tmp_path, share):
    command = [*SUDOKU, "--input", str(source), "--n", "2", "--chunk", "1", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    path = tmp_path / "out" / files.RESULTS
    expected, data = written(tmp_path / "out"), path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    kept = path.read_bytes()
    assert main(command) == 0
    assert written(tmp_path / "out") == expected
    whole = kept[: kept.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(whole)  # finished rows are not drawn again: their seconds are the first run's


@pytest.mark.slow
def test_stopped_at_any_moment_it_loses_and_repeats_nothing(tmp_path):
    """Runs are stopped at random moments; what they left is a beginning, and the next run goes on from there."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": puzzle}) + "\n" for puzzle in PUZZLES * 50))

    def start(out):
        command = [sys.executable, "-m", "lockstitch.sampling.cli", *SUDOKU, "--steps", "20", "--input", str(source),
                   "--chunk", "1", "--output", str(out)]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    assert start(tmp_path / "whole").wait(300) == 0
    expected = written(tmp_path / "whole")
    assert len(expected) == 200
    size = (tmp_path / "whole" / files.RESULTS).stat().st_size

    rng = random.Random(0)
    out = tmp_path / "stopped"
    path, seen = out / files.RESULTS, []
    stops = [(signal.SIGKILL, -9), (signal.SIGINT, 130)]
    for share, (stop, code) in zip(sorted(rng.random() * 0.5 for _ in stops), stops, strict=True):
        process = start(out)
        while not path.exists() or path.stat().st_size < share * size:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(stop)
        assert process.wait(60) == code
        rows = files.finished_rows(path)
        seen.append(len(rows))
        assert timeless([Trajectory.from_dict(row["trajectories"][0]) for row in rows]) == expected[: len(rows)]
    assert 0 < seen[0] <= seen[-1] < 200
    assert start(out).wait(300) == 0
    assert written(out) == expected
    assert sorted(os.listdir(out)) == ["config.json", "results.jsonl"]
