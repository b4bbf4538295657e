"""Call a function in several processes that share a store, as those of a run do, in a fraction of a second."""

import json
import os
import traceback
from types import SimpleNamespace

import torch.distributed as dist

from train.distributed import errors


def call_in_ranks(function, count, folder):
    """[result] or [name and text of the error] of `function(accelerator)` in each of `count` forked processes."""
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            call(function, rank, count, folder)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(count)]


def call(function, rank, count, folder):
    """Never returns."""
    try:
        store = dist.FileStore(str(folder / "store"), count)
        errors._store = lambda: store
        accelerator = SimpleNamespace(num_processes=count, process_index=rank, is_main_process=rank == 0)
        try:
            result = function(accelerator)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        (folder / f"result-{rank}.json").write_text(json.dumps(result))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
