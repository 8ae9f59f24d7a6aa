"""SIGTERM ends a run at once, wherever it is, and ``--resume`` ends it as if it had never been stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from langdepth.errors import ImageError, LangdepthError
from langdepth.training import run as training
from langdepth.training import stopping, validation
from langdepth.training.loaders import TrainingSet
from langdepth.training.stopping import Stopped, Stopping
from langdepth.utils.threads import reading_threads
from tests.helpers import Learner
from tests.training.test_train import Run, assert_same_run, at_call, run, terminate, uninterrupted  # noqa: F401

FIELDS = {"train__validate_every_steps": 2, "train__previews": 1}
"""9 steps in 3 epochs, evaluated after steps 2, 4, 6, 8 and 9."""
UNSAVED = "stopped by SIGTERM before the first checkpoint; --resume continues from the start"


def stopped_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, go: Callable[[], Any]) -> str:
    """Send SIGTERM at a call of a function; returns the message of the run, which has to end soon."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(call, terminate, getattr(owner, name)))
        with pytest.raises(LangdepthError) as caught:
            go()
    assert signal.getsignal(signal.SIGTERM) is before
    return str(caught.value)


@pytest.mark.parametrize("name", ["start_system", "_training_loader"])
def test_before_the_run_has_begun(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:  # noqa: F811
    message = stopped_at(monkeypatch, training, name, 1, run)
    assert message == "stopped by SIGTERM before the run had begun; start it again"
    run(train__max_steps=1)


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        pytest.param(validation.KeepWeights, "on_fit_start", 1, None, id="features of a frozen trunk"),
        pytest.param(TrainingSet, "__getitem__", 1, None, id="the first image"),
        pytest.param(Learner, "loss", 4, 4, id="a step"),
        pytest.param(pl.Trainer, "save_checkpoint", 1, 2, id="a checkpoint"),
        pytest.param(validation, "evaluate", 1, 2, id="validation"),
        pytest.param(validation, "evaluate", 5, 9, id="the last validation"),
        pytest.param(validation, "save", 2, 4, id="weights"),
        pytest.param(validation.viz, "sheet", 2, 4, id="previews"),
    ],
)
def test_later(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Run,  # noqa: F811
    owner: Any,
    name: str,
    call: int,
    step: int | None,
) -> None:
    message = stopped_at(monkeypatch, owner, name, call, lambda: run("stopped", **FIELDS))
    if step is None:
        assert message == UNSAVED
    else:
        assert message.startswith(f"stopped by SIGTERM after step {step}; ")
        assert message.endswith("stopped/resume.ckpt is written, continue with --resume")
    assert_same_run(run("stopped", **FIELDS, resume=True), uninterrupted(**FIELDS))


def test_the_validation_of_a_pause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    message = stopped_at(monkeypatch, validation, "evaluate", 1, lambda: run(train__max_steps=2))
    assert message.startswith("stopped by SIGTERM after step 2; ")
    run(train__max_steps=2, resume=True)


def test_data_workers_end_with_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    stopped_at(monkeypatch, validation, "evaluate", 1, lambda: run(data__workers=1, train__validate_every_steps=2))
    assert not multiprocessing.active_children()


def test_a_step_that_takes_long_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(stopping, "GRACE", 0.1)

    def stuck() -> None:
        terminate()
        time.sleep(60)

    monkeypatch.setattr(Learner, "loss", at_call(5, stuck, Learner.loss))
    with pytest.raises(LangdepthError, match=r"after step 4; \S+/resume.ckpt holds step 3, continue with --resume$"):
        run()


def test_a_thread_ends_what_the_main_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.05)
    monkeypatch.setattr(stopping, "UNWIND", 0.05)
    ended, codes, written = threading.Event(), [], []
    monkeypatch.setattr(stopping.os, "_exit", lambda code: (codes.append(code), ended.set()))
    write = os.write
    monkeypatch.setattr(
        stopping.os, "write", lambda file, data: written.append(data) if file == 2 else write(file, data)
    )
    with Stopping(tmp_path):
        try:
            terminate()
        except Stopped:  # as where an exception is swallowed, or no handler runs
            assert ended.wait(30)
    assert codes == [1]
    assert written == [b"langdepth train: stopped by SIGTERM before the run had begun; start it again\n"]


def test_a_checkpoint_is_written_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.05)
    done = []

    def save_slowly() -> None:
        with Stopping(tmp_path) as stop, stop.saving():
            terminate()
            time.sleep(0.5)
            done.append(True)

    with pytest.raises(Stopped):
        save_slowly()
    assert done


def test_a_data_worker_is_not_the_run(tmp_path: Path) -> None:
    with Stopping(tmp_path) as stop:
        child = os.fork()
        if not child:
            terminate()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not stop.asked


def test_threads_drop_what_they_have_not_begun() -> None:
    started, go_on, done = threading.Event(), threading.Event(), []

    def read(number: int) -> None:
        started.set()
        go_on.wait(30)
        done.append(number)

    def interrupted() -> None:
        with reading_threads(1) as pool:
            for number in range(3):
                pool.submit(read, number)
            started.wait(30)
            threading.Timer(0.2, go_on.set).start()  # what has begun is waited for
            raise Stopped

    with pytest.raises(Stopped):
        interrupted()
    assert done == [0]


class TestFailedStart:
    def test_an_unusable_first_image_blocks_no_later_run(
        self,
        run: Run,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        def broken(self: TrainingSet, draw: Any) -> Any:
            raise ImageError("first.png: damaged")

        first = run("first", train__max_steps=1) / "last.safetensors"
        with monkeypatch.context() as patch:
            patch.setattr(TrainingSet, "__getitem__", broken)
            with pytest.raises(ImageError, match=r"^first\.png: damaged$"):
                run(system__weights=str(first))
        assert (tmp_path / "run" / "best.safetensors").exists()  # the start was evaluated
        run(optim__lr=0.02, train__max_steps=1)  # another recipe
