"""The command line on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

PROMPT, PROMPT_ENDS = "\x1b[?2004h", "\x1b[?2004l"  # pasted text is marked as long as a prompt is shown


class OnTerminal:
    """`infllm` with arguments, in a session of its own that Ctrl-C reaches.

    Parameters
    ----------
    args : str
    rows, columns : int
        Size of the terminal.
    only_stdout : bool
        stdin is a pipe, stderr goes nowhere.
    env : dict
        More variables.
    """

    def __init__(
        self,
        *args: str,
        rows: int = 24,
        columns: int = 80,
        only_stdout: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self.master, self._slave = pty.openpty()
        ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(self._slave)
        self._seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infllm_cpp", *args],
            stdin=subprocess.PIPE if only_stdout else self._slave,
            stdout=self._slave,
            stderr=subprocess.DEVNULL if only_stdout else self._slave,
            start_new_session=True,
            # a size that others were told is not that of this one
            env={
                **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                **(env or {}),
            },
            # the terminal must be the process's own for Ctrl-C to reach it
            preexec_fn=lambda: ioctl(1, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self.master)

    def settings_now(self) -> list[object]:
        """Settings of the terminal; `settings` were those at first."""
        return termios.tcgetattr(self._slave)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.master, keys.encode())

    def expect(self, text: str) -> str:
        """Wait for `text`, and return what comes before it."""
        n_left = 30
        while text not in self._seen:
            if select.select([self.master], [], [], 2)[0]:
                self._seen += os.read(self.master, 4096).decode(errors="replace")
            else:
                n_left -= 1
                assert n_left, f"{text!r} is not in {self._seen!r}"
        before, _, self._seen = self._seen.partition(text)
        return before

    def rest(self) -> str:
        """What is written until the process ends."""
        while self.process.poll() is None or select.select([self.master], [], [], 0.2)[0]:
            if select.select([self.master], [], [], 0.2)[0]:
                self._seen += os.read(self.master, 4096).decode(errors="replace")
        return self._seen
