"""What all tests share: one thread, no hub, no progress bars; and the folder of the benchmarks' files.

The settings are environment variables, set before any library is imported, so that tests which need no torch do not
load it and the processes that tests start inherit them.
"""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are small: more threads wait for one another
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

# A job in the background of a shell ignores interrupts, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that LOCKSTITCH_DATA names, with the files of public benchmarks; skips the test when it is unset."""
    value = os.environ.get("LOCKSTITCH_DATA")
    if not value:
        pytest.skip("LOCKSTITCH_DATA is unset: it names the folder of the benchmarks' files, which are not shipped")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"LOCKSTITCH_DATA={value!r} is not a folder")
    return path


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Skips the test where there is no sandbox for code, except in continuous integration, which must have one."""
    from lockstitch.rewards.code_rewards import examiner_of
    from lockstitch.rewards.sandbox.bubblewrap import SandboxUnavailable

    try:
        examiner_of("bwrap")
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
