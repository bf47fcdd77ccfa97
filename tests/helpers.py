"""Functions that several test files share: learn.py in processes of its own, and waiting for them."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # s that a busy machine may take for what an idle one does at once


def command(*flags):
    """The command line of learn.py with `flags`."""
    return [sys.executable, str(ROOT / "learn.py"), *map(str, flags)]


def learn(folder, *flags, timeout=PATIENCE, **options):
    """Run learn.py with `flags` in `folder` to its end."""
    return subprocess.run(command(*flags), cwd=folder, capture_output=True, text=True, timeout=timeout, **options)


def start(folder, *flags, **options):
    """Start learn.py with `flags` in `folder`."""
    return subprocess.Popen(command(*flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def until(found, process=None, seconds=PATIENCE):
    """What `found()` returns once it is true, while `process`, if given, runs."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)
    return result
