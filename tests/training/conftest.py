import os
import signal

import pytest

from subquad.training.callbacks import LogFile


@pytest.fixture
def stop_after(monkeypatch):
    """Send this process a signal after a given update."""

    def arrange(step: int, number: int = signal.SIGTERM) -> None:
        on_log = LogFile.on_log

        def then_kill(self, args, state, control, logs=None, **kwargs):
            on_log(self, args, state, control, logs, **kwargs)
            if state.global_step == step:
                monkeypatch.setattr(LogFile, "on_log", on_log)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(LogFile, "on_log", then_kill)

    return arrange
