"""What makes long work safe to stop: files that are whole or absent, and signals that wait until a step is done.

Used by runs (rundir.py, train.py) and by dictionaries (interp/sae).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from toylab.errors import UserError


class Interrupted(Exception):
    """Training was asked to stop (SIGINT, SIGTERM) and has saved its state; `signal` is the number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


def write_atomic(path: Path, data: bytes) -> None:
    """All of data at path, or nothing new. A full disk is a UserError that says what is safe."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, len(data), error) from error


def cannot_write(path: Path, size: int, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "the disk is full" if full else error.strerror
    return UserError(
        f"cannot write {size:,} bytes to {path}: {reason}; everything saved before is intact: "
        "make room and give the same command again to go on from the last state"
    )


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying by them. A second one falls through to the usual handler."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    usual = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for n, previous in usual.items():
            signal.signal(n, previous)

    for n in usual:
        signal.signal(n, handler)
    try:
        yield received
    finally:
        for n, previous in usual.items():
            signal.signal(n, previous)
