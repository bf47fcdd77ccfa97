"""Files that are there whole or not at all, and the error that tells a person what to mend."""

import os
import re
from contextlib import contextmanager
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


def settle(part, path):
    """Rename the finished file `part` to `path`, its bytes on the disk before its name is."""
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    os.replace(part, path)


def first_line(text):
    """The first line of a program's error output, without the "[component @ address] " that ffmpeg and Qt put first."""
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    return re.sub(r"^(\[[^]]*\] *|qt\.\S+: )+", "", lines[0]).strip().rstrip(".")
