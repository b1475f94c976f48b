"""Pictures of traces: what each position shows at each step, the terminal's frames, the page."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.loop import sample
from lockstitch.sampling.page import write_trace
from lockstitch.sampling.replay import State, cells_at, cells_of, last_step, token_ids, token_text
from lockstitch.sampling.terminal import Ink, Live, Screen, frame, frames, render, title_of, watch
from models import random_denoiser, tokenizer
from traces import MASK, simulate

from lockstitch.terminal import cells

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \x1b[31m"
SEEDS = range(20)


@pytest.fixture(scope="module")
def tok():
    """The embedded tokenizer with tokens that no text should have: markup, an escape code, a wide character."""
    made = tokenizer()
    made.add_tokens([HOSTILE, "\x1b]0;owned\x07", "漢字"])
    return made


@pytest.fixture(scope="module")
def every(tok):
    return range(3, len(tok))


def plain_ids(tok):
    """Tokens of one visible ASCII character each."""
    return [i for i in range(3, 403) if re.fullmatch("[!-~]", token_text(tok, i))]


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_replay_shows_what_happened(seed):
    trajectory, history = simulate(seed)
    for step, row in enumerate(history):
        found = cells_at(trajectory, step)
        assert [(cell.token, str(cell.state)) for cell in found] == row
        assert [cell.token for cell in found] == trajectory.canvas_at(step)
    assert {cell.state for cell in cells_at(trajectory, len(history))} <= {State.PINNED, State.COMMITTED, State.MASKED}
    assert last_step([trajectory]) <= len(history) - 1
    assert {token for row in history for token, _ in row if token is not None} <= token_ids(trajectory)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_confidence_is_shown_with_its_own_token_alone(seed):
    trajectory, history = simulate(seed)
    for step in range(len(history)):
        for position, cell in enumerate(cells_at(trajectory, step)):
            final = 0 <= trajectory.commit_step[position] <= step
            assert cell.fork == (final and position in trajectory.forks)
            assert cell.confidence == (trajectory.confidence[position] if final else None)


def test_token_texts_join_to_the_text(tok):
    text = "21*4=84\n+ 8 (so 92)  #### 92"
    ids = tok(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_text(tok, i) for i in ids) == text


# --- terminal --------------------------------------------------------------------------------------------------------


def expected_frame(row, tok, forks):
    """A canvas in plain characters, from what happened and which positions are forks."""
    shown = []
    for position, (token, happened) in enumerate(row):
        text = {"masked": "░", "reopened": "▒"}.get(happened) or token_text(tok, token)
        left, right = "⟪⟫" if position in forks else "⟨⟩"
        shown.append(left + text + right if happened == "now" else text)
    return "".join(shown)


@pytest.mark.parametrize("seed", SEEDS)
def test_frames_agree_with_the_canvas(tok, seed):
    trajectory, history = simulate(seed, tokens=plain_ids(tok))
    history = history[: trajectory.last_step + 1]
    drawn = list(frames([trajectory], "a title", Ink(tok, False), 100))
    assert len(drawn) == len(history)
    for step, (lines, row) in enumerate(zip(drawn, history, strict=True)):
        title, count, canvas = (line.shown for line in lines)
        assert title == f"a title  step {step} of {trajectory.last_step}"
        assert count == f"T0  {sum(token is not None for token, _ in row)} of {len(row)}"
        forks = {p for p in trajectory.forks if trajectory.commit_step[p] == step}
        assert canvas == expected_frame(row, tok, forks)


@pytest.mark.parametrize("seed", SEEDS)
def test_colours_change_nothing_but_colours(tok, every, seed):
    trajectories = [simulate(seed + k, length=30, tokens=every)[0] for k in range(3)]
    for step in range(last_step(trajectories) + 1):
        colored = frame(trajectories, step, Ink(tok, True), 70)
        assert all("\x1b" not in ESCAPES.sub("", line.shown) for line in colored)
        # The same characters in the same order, but for the brackets that stand for a colour, and the spaces of columns.
        flat = [
            "".join(ESCAPES.sub("", line.shown) for line in frame([t], step, Ink(tok, True), 500))
            for t in trajectories
        ]
        plain = ["".join(line.shown for line in frame([t], step, Ink(tok, False), 500)) for t in trajectories]
        assert [text.replace(" ", "") for text in flat] == [re.sub("[⟨⟩⟪⟫ ]", "", text) for text in plain]


@pytest.mark.parametrize("width", [20, 33, 80, 200])
def test_no_line_is_longer_than_the_terminal(tok, every, width):
    trajectories = [simulate(seed, length=70, tokens=every)[0] for seed in range(4)]
    for color in (True, False):
        for lines in frames(trajectories, title_of(3, "word " * 60, width), Ink(tok, color), width):
            for line in lines:
                assert cells(ESCAPES.sub("", line.shown)) <= width
        for line in render(trajectories, "#3", Ink(tok, color), width).split("\n"):
            assert cells(ESCAPES.sub("", line)) <= max(width, 50)  # the line of costs is as long as it is


def written(tok, text):
    """A trajectory that has committed a text, from left to right."""
    ids = tuple(tok(text, add_special_tokens=False)["input_ids"])
    n, zeros = len(ids), (0,) * len(ids)
    made = replace(
        simulate(0)[0], canvas_ids=ids, length=n, text=text, finished=False, edits=(), forks=(), block=zeros
    )
    return replace(made, commit_step=tuple(range(1, n + 1)), confidence=(0.5,) * n, entropy=zeros)


@pytest.mark.parametrize("text", ["3102 日本 ü🎉", "é", "word " * 60 + "\nend", "日" * 30])
def test_completions_are_printed_as_they_are(tok, text):
    trajectory = written(tok, text)
    assert render([trajectory], "#0", Ink(tok, False), 40).split("\n", 3)[3] == text
    colored = ESCAPES.sub("", render([trajectory], "#0", Ink(tok, True), 40)).split("\n", 3)[3]
    assert colored.replace("\n", "") == text.replace("\n", "")
    last = frame([trajectory], trajectory.last_step, Ink(tok, True), 40)[1:]
    assert "".join(ESCAPES.sub("", line.shown) for line in last).replace(" ", "") == re.sub(r"\s", "", text)


def test_a_part_of_a_character_waits_for_the_others(tok):
    trajectory = written(tok, "日")
    shown = [frame([trajectory], step, Ink(tok, False), 40)[1].shown for step in range(trajectory.last_step + 1)]
    assert shown[0] == "░" * trajectory.length
    assert shown[1] == "⟨\ufffd⟩" + "░" * (trajectory.length - 1)
    assert shown[-1] == "⟨日⟩"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 6},
        {"speculate": 3},
        {"policy": "threshold", "threshold": 0.6, "fallback": "leftmost"},
        {"policy": "random", "correction": "remdm", "sigma": "rescale", "eta": 0.5},
        {"correction": "edit", "edit_threshold": 0.3, "steps": 4},
        {"block_length": 4, "correction": "revise", "revise_fraction": 0.4},
    ],
)
def test_what_is_seen_live_is_what_the_trace_replays(settings):
    denoiser, looks = random_denoiser(), []
    canvas = [None, 7, *[None] * 10]
    config = SamplerConfig(canvas_length=12, temperature=1.0, stop_at_eos=False, batch_size=3, **settings)
    drawn = sample(denoiser, ["1+1=", "31"], config, n=2, canvases=[canvas, [None] * 12], on_step=looks.append)
    seen = {}
    for look in looks:
        for a, row in enumerate(look.rows):
            step = int(look.step_A[a])
            seen[row, step] = cells_of(look, a, seen.get((row, step - 1), []))
            assert look.masked_AG[a].tolist() == [cell.token is None for cell in seen[row, step]]
    assert set(seen) >= {(row, step) for row, t in enumerate(drawn) for step in range(t.last_step + 1)}
    for (row, step), row_cells in seen.items():
        for live, replayed in zip(row_cells, cells_at(drawn[row], step), strict=True):
            assert (live.state, live.token) == (replayed.state, replayed.token)
            assert replayed.confidence is None or live.fork == replayed.fork
            assert replayed.confidence in (None, live.confidence)
    assert sample(denoiser, ["1+1="], config, n=2, canvases=[canvas])[1].canvas_ids == drawn[1].canvas_ids


def test_a_canvas_is_drawn_while_it_is_denoised(tok, capsys):
    denoiser, shown = random_denoiser(), []
    for height in (None, 12):
        live = Live(Screen(height), "#0", Ink(tok, False), 60, 2)
        config = SamplerConfig(canvas_length=6, stop_at_eos=False, temperature=1.0, batch_size=1)

        def on_step(look, live=live):
            live(look)
            shown.append(capsys.readouterr().out)

        sample(denoiser, ["1+1="], config, n=2, on_step=on_step)
        live.screen.close()
        assert len(shown) == 14
        assert "T1  0 of 6" in shown[7]
        assert "T0  6 of 6" in shown[7]
        for step, frame_shown in enumerate(shown[:7]):
            assert f"step {step}" in frame_shown
            assert f"T0  {step} of 6" in frame_shown
            assert ("\x1b" in frame_shown) == (height is not None)
        assert capsys.readouterr().out.endswith("\x1b[?25h" if height else "")
        shown.clear()


def test_a_pipe_gets_every_frame_and_no_escape_code(tok, capsys):
    trajectories = [simulate(seed, tokens=plain_ids(tok))[0] for seed in range(3)]
    watch(trajectories, "#0", Ink(tok, False), 80)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    last = last_step(trajectories)
    assert re.findall(r"step (\d+) of", shown) == [str(step) for step in range(last + 1)]


def test_a_terminal_is_left_clean_and_never_overfilled(tok, capsys):
    trajectories = [simulate(seed, length=300, steps=3)[0] for seed in range(3)]
    watch(trajectories, "#0", Ink(tok, True), 60, 12)
    shown = capsys.readouterr().out
    assert shown.startswith("\x1b[?25l")
    assert shown.endswith("\x1b[J\x1b[?25h")  # wiped, cursor back
    drawn = re.split(r"(?:\x1b\[\d+F)?\x1b\[J", shown)[1:-1]
    assert len(drawn) == last_step(trajectories) + 1
    assert all(text.count("\n") <= 11 and "step" in text for text in drawn)
    moved = [int(up) for up in re.findall(r"\x1b\[(\d+)F", shown)]
    assert moved == [text.count("\n") for text in drawn]


# --- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects a page's scripts and attributes, and checks that elements nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.scripts, self.names, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names += [name for name, _ in attrs]
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names += [name for name, _ in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def rows_of(trajectories, prompt="2+2=[[a:3]]"):
    """Lines of results, one prompt a trajectory."""
    return [
        {
            "index": i,
            "prompt": prompt,
            "blanks": [{"name": HOSTILE, "start": 0, "stop": 3, "texts": [HOSTILE]}],
            "trajectories": [trajectory.to_dict()],
        }
        for i, trajectory in enumerate(trajectories)
    ]


def test_the_page_holds_every_token_and_nothing_else_runs(tok, every, tmp_path):
    hostile = [i for i in every if i >= 403]
    trajectories = [simulate(seed, tokens=[*hostile, *every[:60]])[0] for seed in range(10)]
    path = tmp_path / "trace.html"
    path.write_text("an older page")
    write_trace(path, iter(rows_of(trajectories, HOSTILE)), {"model": HOSTILE, "seed": 0}, tok)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    data, code = page.scripts  # the hostile texts opened no third one
    assert "alert" not in code
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", code)
    assert not re.search(r"https?:|src=|url\(|@import", text)
    assert not {"src", "href", "srcset", "style"} & set(page.names)
    assert not [name for name in page.names if name.startswith("on")]
    read = json.loads(data)
    assert HOSTILE in read["tokens"].values()
    for row, trajectory in zip(read["rows"], trajectories, strict=True):
        drawn = row["trajectories"][0]
        assert drawn["text"] == trajectory.text
        assert drawn["seed"] == str(trajectory.seed)
        assert drawn["ledger"] == asdict(trajectory.ledger)
        assert drawn["edits"] == [list(edit) for edit in trajectory.edits]
        for name in ("canvas_ids", "commit_step", "block"):
            assert drawn[name] == list(getattr(trajectory, name))
        assert drawn["confidence"] == pytest.approx(trajectory.confidence, abs=5e-5)
        for token in token_ids(trajectory):
            assert read["tokens"][str(token)] == token_text(tok, token)
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.html"]


def test_the_page_knows_which_tokens_make_a_character_together(tok, tmp_path):
    trajectory = written(tok, "a日b漢")
    write_trace(tmp_path / "trace.html", rows_of([trajectory]), {}, tok)
    data, _ = Page((tmp_path / "trace.html").read_text(encoding="utf-8")).scripts
    parts = [",".join(map(str, tok(text, add_special_tokens=False)["input_ids"])) for text in "日漢"]
    assert json.loads(data)["runs"] == dict(zip(parts, "日漢", strict=True))


def dom(tmp_path, place):
    """The page's document, drawn by a browser at a place of it."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/trace.html#{place}"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def spans_of(drawn):
    """State and text of each cell of a document."""
    return re.findall(r'<span class="cell (\w+)[^"]*" data-position="\d+"[^>]*>([^<]*)</span>', drawn)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to draw the page")
@pytest.mark.parametrize("step", [0, 1, 3, 6, 8])
def test_the_browser_draws_what_happened(tok, tmp_path, step):
    trajectory, history = simulate(3, tokens=plain_ids(tok))
    assert MASK in trajectory.canvas_ids  # a position that the run did not reach is drawn too
    write_trace(tmp_path / "trace.html", rows_of([trajectory]), {"model": "made up"}, tok)
    drawn = dom(tmp_path, f"0.0@{step}")
    spans = spans_of(drawn)
    assert len(spans) == len(history[0])
    for (state, text), (token, happened), before in zip(spans, history[step], history[max(0, step - 1)], strict=True):
        assert state == happened
        if happened == "reopened":
            token = before[0]
        if token is not None:
            assert html.unescape(text) == token_text(tok, token)
    assert f"step {step} of {trajectory.last_step}" in drawn


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to draw the page")
def test_the_browser_draws_whole_characters_once_all_their_tokens_are_there(tok, tmp_path):
    trajectory = written(tok, "a日b")
    write_trace(tmp_path / "trace.html", rows_of([trajectory]), {"model": "made up"}, tok)
    last = [text for _, text in spans_of(dom(tmp_path, f"0.0@{trajectory.last_step}"))]
    assert [text for text in last if text] == ["a", "日", "b"]
    part = spans_of(dom(tmp_path, "0.0@2"))
    assert [text for state, text in part if state == "now"] == ["\ufffd"]
