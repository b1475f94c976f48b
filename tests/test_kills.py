"""Commands that are killed at random moments and started again end as one does that nobody killed.

Three kills of each; `scripts/kill_commands.py` does fifteen, and prints a table.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import kill_commands

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the commands read, and where they write."""
    place = tmp_path_factory.mktemp("kills")
    kill_commands.prepare(place)
    return place


@pytest.mark.parametrize("command", list(kill_commands.SETTINGS))
def test_kills_lose_nothing(command, folder, capsys):
    ends = kill_commands.kill(command, folder, kills=3, seed=1, limit=300)
    assert ends.bad == 0, capsys.readouterr().err
    assert ends.kills == 3
    assert ends.runs >= 1
