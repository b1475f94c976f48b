"""Rows of files as people have them, and output directories that belong to one configuration and one process."""

import gzip
import json
import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lockstitch import files, terminal


def read(path):
    return files.read_rows(path, lambda row: row["a"])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", b'{"a": "x"}\n{"a": "y"}\n'),
        ("rows.jsonl", b'\xef\xbb\xbf{"a": "x"}\r\n\r\n{"a": "y"}'),
        ("rows.json", b'\xef\xbb\xbf[{"a": "x"}, {"a": "y"}]'),
        ("rows.csv", b"a,b\r\nx,1\r\ny,2\r\n"),
        ("rows.csv", b'\xef\xbb\xbfa\nx\n"y"\n'),
    ],
)
def test_rows_are_read_as_people_write_them(name, data, tmp_path):
    for suffix, content in (("", data), (".gz", gzip.compress(data))):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        assert read(path) == ["x", "y"]


def test_what_looks_like_a_line_end_and_is_none_stays_in_its_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "one\u2028two\u0085three\x00"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read(path) == ["one\u2028two\u0085three\x00"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": "\xff"}', "line 2: not UTF-8"),
        (b'{"a": "\\ud800"}', "line 2: holds half of a surrogate pair"),
        (b'{"a": [1, NaN]}', "line 2: holds NaN or Infinity"),
        (b'{"a": 1e999}', "line 2: holds NaN or Infinity"),
        (b"[" * 100_000, "line 2: JSON that is nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2: JSON that is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2: not JSON"),
        (b'{"a": 1', "line 2: not JSON"),
        (b'"a"', "line 2: a JSON object is needed, not str"),
    ],
)
def test_bad_lines_are_named(line, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(ValueError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("rows.jsonl.gz", b"not gzip", "is not whole, or not compressed by gzip"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-9], "is not whole"),
        ("rows.json", b'{"a": 1}', "holds no JSON array but dict"),
        ("rows.json", b'[{"a": 1}', "holds no JSON array but not JSON"),
        ("rows.csv", b"a,b\n1,2,3\n", "line 2: more columns than the header has"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "rows.csv has two columns 'a'"),
        ("rows.csv", b"a\n\xff\n", "line 2 is not UTF-8"),
        ("rows.jsonl", b"\n", "holds no rows"),
        ("rows.parquet", b"PAR1 and nothing more", "is no parquet file that can be read"),
        ("rows.parquet", b"", "is no parquet file that can be read"),
    ],
)
def test_files_that_are_none_are_refused(name, data, says, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / name)


def _hold(directory, held, release):
    files.claim_directory(directory, {"seed": 0})
    held.set()
    release.wait(30)


def test_a_second_process_is_refused_and_a_dead_one_forgotten(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(60)
    with pytest.raises(ValueError, match="is being written into by another process"):
        files.claim_directory(tmp_path, {"seed": 0})
    other.kill()
    other.join()
    files.claim_directory(tmp_path, {"seed": 0})
    files.unlock_all()


@pytest.mark.parametrize(
    ("indices", "says"),
    [([0, 2], "line 2 .* is row 2, where row 1"), ([0, 1, 1], "line 3 .* is row 1"), ([1], "line 1 .* is row 1")],
)
def test_rows_that_were_taken_out_or_doubled_are_noticed(indices, says, tmp_path):
    path = tmp_path / files.RESULTS
    path.write_text("".join(json.dumps({"index": i}) + "\n" for i in indices))
    with pytest.raises(ValueError, match=says):
        files.finished_by_index(path)


def test_a_line_that_is_no_row_is_noticed_and_a_cut_one_removed(tmp_path):
    path = tmp_path / files.RESULTS
    path.write_text('{"index": 0}\n{"index": 1')
    assert files.finished_by_index(path) == [{"index": 0}]
    assert path.read_text() == '{"index": 0}\n'
    path.write_text('{"index": 0}\nrubbish\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is no row of ours"):
        files.finished_by_index(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b'{"seed": ', "not JSON"),
        (b"[]", "a JSON object is needed, not list"),
        (b'{"seed": "\xff"}', "not UTF-8"),
    ],
)
def test_a_configuration_that_is_none_is_named(data, says, tmp_path):
    files.append_rows(tmp_path / files.RESULTS, [{"index": 0}])
    (tmp_path / files.CONFIG).write_bytes(data)
    with pytest.raises(ValueError, match=f"{files.CONFIG}: {says}.*choose another output"):
        files.claim_directory(tmp_path, {"seed": 0})


def test_a_closed_pipe_is_silent(tmp_path):
    code = "from lockstitch.errors import one_line\nwith one_line('x'):\n    while True: print('line', flush=True)"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$1" | head -1', "-", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_a_cell_of_a_table_may_be_a_long_text(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    assert [len(text) for text in read(tmp_path / "rows.csv")] == [200_000]


def test_what_an_encoding_lacks_is_written_as_an_escape():
    code = "from lockstitch.errors import one_line\nwith one_line('x'):\n    print('100 \u2713')"
    for encoding, said in (("iso-8859-1", b"100 \\u2713\n"), ("utf-8", "100 \u2713\n".encode())):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
        assert (done.returncode, done.stdout) == (0, said)


@pytest.mark.parametrize(("kind", "coloured"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_that_says_it_is_dumb_is_given_no_colours(kind, coloured, monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", kind)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.use_color("auto") == coloured
    assert terminal.use_color("always")
