"""Files that are there whole or not at all, and the error that tells a person what to mend."""

import fcntl
import os
import re
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: one sentence that names the file or flag and the way out."""


@contextmanager
def replacing(path):
    """Write a file beside `path`, then put it there in one step.

    Yields the path to write to, a hidden file in the same folder. When the block ends the file is flushed to
    the disk and renamed to `path`; when it raises, `path` is left as it was and the hidden file is removed.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        settle(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def lock(folder, what):
    """Hold the folder for this process alone; the lock ends with the process, however that ends.

    Raises:
        UserError: another process holds it; `what` says in words what that does.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is {what} {folder}; wait for its end, or end it") from None
    finally:
        os.close(descriptor)


def check_folder(path):
    """See that a folder is, or can be made, at `path`, and can be written to, without making it.

    Raises:
        UserError: it cannot.
    """
    path = parent = Path(path)
    try:
        while not os.path.lexists(parent):
            parent = parent.parent
        with tempfile.TemporaryFile(dir=parent.resolve(strict=True)):
            pass
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "a link to itself"
        raise UserError(f"{path} cannot be written to ({parent}: {reason}); make it a folder of yours, or work in "
                        "another folder") from None


class Stream:
    """A standard stream whose other end may be gone, or full: what cannot be written is dropped."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        self.attempt(self.stream.write, text)
        return len(text)

    def flush(self):
        self.attempt(self.stream.flush)

    def attempt(self, action, *args):
        try:
            action(*args)
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # what is buffered, and what follows, goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def guard_streams():
    """Let no closed, full or broken standard output or error end the process, now or when it exits."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest free number
    for name, number in ("stdout", 1), ("stderr", 2):
        setattr(sys, name, Stream(getattr(sys, name) or os.fdopen(number, "w", closefd=False)))


def settle(part, path):
    """Rename the finished file `part` to `path`, its bytes on the disk before its name is."""
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)


def first_line(text):
    """The first line of a program's error output, without the "[component @ address] " that ffmpeg and Qt put first."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    return re.sub(r"^(\[[^]]*\] *|qt\.\S+: )+", "", lines[0]).strip().rstrip(".")
