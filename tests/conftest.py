"""What several tests share: a screen nobody looks at."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def display():
    """The name of an X display of its own, 1280x1024 pixels in 24 bits, without a window manager."""
    for program in "Xvfb", "xdotool":
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    read, write = os.pipe()
    # -noreset: else the server starts over, deaf for a moment, whenever its last client goes.
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with open(read) as pipe:
            number = pipe.readline().strip()  # Xvfb takes a free number and tells it once it is ready
        if not number:
            pytest.skip("Xvfb does not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()
