"""One run of ssh: bytes go in, marked lines come out, and leaving it ends the far side."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import IO, NamedTuple, Self, cast, final

from .errors import ProfileError

_LONGEST = 64 << 20  # bytes of one line; raw samples are a few hundred kilobytes
_KEPT_LINES = 64
_GRACE_S = 5.0
_TAKEN_LEAVE_S = 0.5


class Answer(NamedTuple):
    """One line of the far side: what it is, and the rest of it."""

    kind: str
    text: str


END = Answer("end", "")
"""Nothing more will come."""


@final
class Link:
    """A running ssh. Leaving the context hangs up, upon which the far side cleans up and ends, and waits for that.

    Whatever else a login shell or a library writes is noise: kept for messages, never read as an answer.

    Attributes:
        sent_bytes: written to ssh so far.
        farewell: what the far side said last: "gone" when its folder is removed, "left" with its path when not.
    """

    def __init__(self, command: Sequence[str], frame: str) -> None:
        self.sent_bytes = 0
        self.farewell: Answer | None = None
        self._mark = f"<{frame}> "
        self._noise: deque[str] = deque(maxlen=_KEPT_LINES)
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._answers: queue.Queue[Answer | ProfileError] = queue.Queue()
        # In a session of its own an interrupt from the keyboard does not reach ssh: the far side can still be ended.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._writers: list[threading.Thread] = []
        self._readers = [_begun(self._read), _begun(self._listen)]

    def send(self, parts: Iterable[bytes]) -> None:
        """Write these, beside reading the answers; once. Before the far side has answered, its shell may eat them."""
        self._writers.append(_begun(partial(self._write, parts)))

    def next(self, timeout_s: float) -> Answer | None:
        """Wait for the next answer; None if none comes in time, `END` when ssh has ended.

        Raises:
            ProfileError: a file could not be read to the end while it was sent.
        """
        try:
            found = self._answers.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(found, ProfileError):
            raise found
        return found

    def ended(self) -> tuple[int, str]:
        """Wait for ssh to end after `END`; return its exit code and all that is kept of what was written to read."""
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        for thread in self._readers:
            thread.join(_GRACE_S)
        return self._process.wait(), "\n".join([*self._noise, *self._errors])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        try:
            self._hang_up()
            self._process.wait(_GRACE_S if self.farewell is None else _TAKEN_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
        finally:
            self._clear()

    def _hang_up(self) -> None:
        if any(thread.is_alive() for thread in self._writers):
            self._process.terminate()  # a pipe that is being written to cannot be closed
        else:
            cast(IO[bytes], self._process.stdin).close()

    def _clear(self) -> None:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        threads = [*self._writers, *self._readers]
        for thread in threads:
            thread.join(1.0)
        # A helper of ssh may hold a pipe open; what a thread still reads stays open too.
        if not any(thread.is_alive() for thread in threads):
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                cast(IO[bytes], pipe).close()

    def _write(self, parts: Iterable[bytes]) -> None:
        pipe = cast(IO[bytes], self._process.stdin).fileno()
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    written = os.write(pipe, rest)
                    self.sent_bytes += written
                    rest = rest[written:]
        except ProfileError as fault:
            self._answers.put(fault)
        except OSError:
            pass  # ssh has ended; what it wrote says why

    def _read(self) -> None:
        pipe = cast(IO[bytes], self._process.stdout)
        for line in iter(partial(pipe.readline, _LONGEST), b""):
            before, marked, rest = line.decode("utf-8", "replace").partition(self._mark)
            if before.strip():
                self._noise.append(before.rstrip()[-500:])
            if marked and rest.endswith("\n"):  # else the line was cut
                self._take(Answer(*rest.strip().partition(" ")[::2]))
        self._answers.put(END)

    def _take(self, answer: Answer) -> None:
        if answer.kind in ("gone", "left"):
            self.farewell = answer
        self._answers.put(answer)

    def _listen(self) -> None:
        for line in iter(partial(cast(IO[bytes], self._process.stderr).readline, 1 << 16), b""):
            self._errors.append(line.decode("utf-8", "replace").rstrip()[-500:])


def _begun(job: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread
