"""SIGTERM ends a run within seconds, wherever it is, with a state that can be continued."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

GRACE = 7.0  # seconds that the step in progress may take to its end
UNWIND = 8.0  # seconds after that until the process is ended from outside its main thread


class Stopped(BaseException):
    """Ends a run that shall stop. Not an Exception, so that no handler on the way takes it for a failure."""


class Stopping:
    """Handles SIGTERM from entering this context to leaving it, in the main thread; elsewhere it does nothing.

    While a step is in progress the signal is noted in ``asked``, and the run ends after the step. Everywhere else what
    happens can be done again from the files in the run folder: ``Stopped`` is raised at once, in the first process; the
    others wait for it to end them. Where a step takes longer than ``GRACE``, it is given up. And since no handler runs
    while the main thread waits in C code (for another process, say), a thread of its own that the signal wakes ends the
    process after ``UNWIND`` more seconds.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leads = getattr(rank_zero_only, "rank", 0) == 0
        self._launcher: Any = None
        self.asked = False
        self.in_step = False
        self.step, self.saved_step = 0, -1
        self._forced = self._leaving = False
        self._saving, self._forcing = threading.Lock(), threading.Lock()
        self._left = threading.Event()
        self._installed = False
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._handler_before = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
            if os.name == "posix":  # elsewhere a signal wakes no pipe
                self._start_watcher()
        return self

    def _start_watcher(self) -> None:
        self._pipe, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        self._wakes_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="langdepth-stop", daemon=True)
        self._watcher.start()

    def __exit__(self, *_: object) -> None:
        if not self._installed:
            return
        self._leaving = True
        with self._forcing:  # the watcher's signal must not meet the handler of before, which ends the process
            self._left.set()
        signal.signal(signal.SIGTERM, self._handler_before)
        if self._watcher is not None:
            signal.set_wakeup_fd(self._wakes_before)
            os.write(self._wakes, b"\0")
            self._watcher.join()
            os.close(self._pipe)
            os.close(self._wakes)

    def guard(self, trainer: pl.Trainer) -> None:
        """Take care of the processes that the trainer starts, and keep this handler instead of Lightning's.

        Lightning's would end the others before they agree on the last step, in a way that may hang.
        """
        self.leads, self._launcher = trainer.is_global_zero, trainer.strategy.launcher
        connector = trainer._signal_connector
        register = connector.register_signal_handlers

        def keep() -> None:
            register()
            if self._installed:
                signal.signal(signal.SIGTERM, self._handle)

        connector.register_signal_handlers = keep  # type: ignore[method-assign]

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data worker that was just forked: the trainer ends it
        self.asked = True
        may_raise = self._forced or (self.leads and not self.in_step)
        if may_raise and not self._leaving and not self._saving.locked():
            self._leaving = True
            raise Stopped

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """The work inside may be cut off anywhere: the state before it is saved."""
        inside, self.in_step = self.in_step, False
        if self.asked and self.leads:
            self._leaving = True
            raise Stopped
        yield
        self.in_step = inside

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Files that are written inside are completed."""
        with self._saving:
            yield
        if self._forced:
            raise Stopped

    def message(self) -> str:
        """Where the run was stopped, and how it continues."""
        if not (self.folder / "start.safetensors").exists():
            return "stopped by SIGTERM before the run had begun; start it again"
        if self.saved_step < 0:
            return "stopped by SIGTERM before the first checkpoint; --resume continues from the start"
        holds = "is written" if self.step == self.saved_step else f"holds step {self.saved_step}"
        return (
            f"stopped by SIGTERM after step {self.step}; {self.folder / 'resume.ckpt'} {holds}, continue with --resume"
        )

    def end_others(self) -> None:
        """End the processes that this one started. Lightning's observer, which would end this one too, forgets them."""
        started = getattr(self._launcher, "procs", [])
        for process in started:
            process.kill()
        started.clear()

    def _watch(self) -> None:
        while signal.SIGTERM not in (numbers := os.read(self._pipe, 64)):
            if 0 in numbers:
                return
        if self._left.wait(GRACE):
            return
        with self._forcing:
            if self._left.is_set():
                return
            self._forced = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if self._left.wait(UNWIND):
            return
        with self._saving:
            self.end_others()
            if self.leads:
                os.write(2, f"langdepth train: {self.message()}\n".encode())
            os._exit(1)


def _in_forked_child() -> None:
    signal.set_wakeup_fd(-1)  # or a signal to a data worker would wake the trainer's thread


if os.name == "posix":
    os.register_at_fork(after_in_child=_in_forked_child)
