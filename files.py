"""Files that are there whole or not at all, and the error that tells a person what to mend."""

import fcntl
import os
import re
import secrets
import shlex
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PART = re.compile(r"\.(.+)\.[\w-]+\.part(?:\..+)?", re.DOTALL)  # a hidden file of `replacing`: it becomes group 1
STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class UserError(Exception):
    """Something the user can mend: one sentence that names the file or flag and the way out."""


def printable(text):
    """`text` on one line: what a terminal does not show as itself, of names of files, by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(text):
    """Print one line, now."""
    print(printable(text), flush=True)


def quoted(path):
    """The path as a shell takes it, on one line."""
    path = os.fspath(path)
    path = f"./{path}" if path.startswith("-") else path
    if path.isprintable():
        return shlex.quote(path)
    escaped = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03o}" for byte in os.fsencode(path))
    return f"$'{''.join(escaped)}'"


@contextmanager
def replacing(path, ending=""):
    """Write a file beside `path`, then put it there in one step.

    Yields the path to write to, a hidden file in the same folder, whose name has the `ending`. When the block ends the
    file is flushed to the disk and renamed to `path`; when it raises, `path` is left as it was and the hidden file is
    removed. Hidden files of the same `path` that killed processes left are removed first, once they are an hour old.
    """
    path = Path(path)
    name = path.name if len(os.fsencode(path.name)) < 200 else path.name[-40:]  # of 255 bytes at most
    part = path.with_name(f".{name}.{secrets.token_hex(8)}.part{ending}")
    with suppress(OSError):
        for old in path.parent.iterdir():
            if abandoned(old) == name:
                old.unlink()
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def abandoned(path):
    """The name of the file that a killed process left unfinished at `path`; None of any other file.

    An unfinished file that grew within the hour may be in the making by another process.
    """
    match = PART.fullmatch(path.name)
    return match[1] if match and time.time() - path.stat().st_mtime > 3600 else None


@contextmanager
def lock(folder, what):
    """Hold the folder for this process alone, where the file system has locks; it ends with the process at the latest.

    Raises:
        UserError: another process holds it; `what` says in words what that does.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is {what} {folder}; wait for its end, or take another folder") from None
        except OSError:  # no locks there
            pass
        yield
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


@contextmanager
def handling(handler):
    """Let `handler` act on STOPS, the signals that ask a process to end, but not on those it ignores, as under nohup.

    Yields the handlers before, by signal; they are back when the block ends.
    """
    previous = {number: signal.signal(number, handler) for number in STOPS
                if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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


def first_line(text):
    """The first line of a program's error output, without the "[component @ address] " that ffmpeg and Qt put first."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    return re.sub(r"^(\[[^]]*\] *|qt\.\S+: )+", "", lines[0]).strip().rstrip(".")
