"""Stop a training in this process before one of its updates."""

import os
from contextlib import contextmanager

import pytest

from train.loop import train as loop


@contextmanager
def before_update(step, action):
    """Call `action` before the update that follows `step`."""
    real_step = loop.train_step

    def watched(run, state, **kwargs):
        if state.step == step:
            action()
        return real_step(run, state, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", watched)
        yield


@contextmanager
def killed_after(step):
    """The training ends without a save, like a killed one."""

    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), before_update(step, kill):
        yield


@contextmanager
def signalled_after(step, number):
    """This process gets a signal."""
    with before_update(step, lambda: os.kill(os.getpid(), number)):
        yield
