"""Commands on another kind of machine, such as a slow or full one, for a `Launcher`."""

import os
import time

from train import finetune_classifier, pretrain
from train.checkpoint import checkpointer
from train.loop.run import Run

SLOW = 15  # seconds; more than `ddp_timeout` in these tests, and than a process may be silent


def is_main():
    return os.environ.get("RANK", "0") == "0"


def slow_model(argv):
    """The main process takes long to write the model."""
    real_write = pretrain.write_model

    def write(*args):
        time.sleep(SLOW)
        real_write(*args)

    pretrain.write_model = write
    return pretrain.main(argv)


def full_in_background(argv):
    """The main process finds no room for a checkpoint that it writes in the background."""

    def write(*args):
        raise OSError(28, "No space left on device")

    checkpointer.write_checkpoint = write
    return pretrain.main(argv)


def slow_in_background(argv):
    """Checkpoints that are written in the background take a second."""
    real_write = checkpointer.write_checkpoint

    def write(*args):
        time.sleep(1)
        real_write(*args)

    checkpointer.write_checkpoint = write
    return finetune_classifier.main(argv)


def memory_of_one(argv):
    """The second process runs out of memory in the first step."""
    if not is_main():
        from train.loop import train

        def backward(*args, **settings):
            raise MemoryError

        train.backward = backward
    return pretrain.main(argv)


def read_late(argv):
    """Outcomes of steps are read one step later, and the device skips updates, as on a GPU."""
    Run.reads_late = True
    return pretrain.main(argv)


def other_seed(argv):
    """The second process was started with another seed."""
    return pretrain.main(argv if is_main() else [*argv, "--seed=7"])


SCRIPTS = {
    function.__name__: function
    for function in (slow_model, full_in_background, slow_in_background, memory_of_one, read_late, other_seed)
}
