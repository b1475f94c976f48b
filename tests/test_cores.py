"""How many cores a process may use."""

import os

import pytest

from lockstitch import cores

SECOND = {"cpu.max": "{} 100000\n"}
FIRST = {"cpu/cpu.cfs_quota_us": "{}\n", "cpu/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize("version", [FIRST, SECOND], ids=["cgroups 1", "cgroups 2"])
@pytest.mark.parametrize(
    ("quota", "found"), [(200000, 2), (250000, 3), (1000, 1), (10**7, 8), (-1, 8), ("max", 8), ("", 8)]
)
def test_the_quota_of_a_container_counts(version, quota, found, tmp_path, monkeypatch):
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    assert cores.available() == 8
    for name, text in version.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.format(quota))
    assert cores.available() == found


def test_files_that_say_nothing_are_no_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    (tmp_path / "cpu").mkdir()
    for text in ("100000", "100000 0", "\xff 1"):
        (tmp_path / "cpu.max").write_bytes(text.encode("latin-1"))
        assert cores.available() == 8
