"""Work that one process does for all, and errors that reach all processes.

A collective fails when a process comes later than `ddp_timeout`, but a save or the check of a large checkpoint may take
as long as it takes. So processes wait for each other here: through the key-value store of the process group, for as
long as the process that they wait for is alive.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from .heartbeat import EndedError, SilentError, check_alive

Result = TypeVar("Result")

# raised by a full disk, a missing permission or a lost folder; safetensors and torch each have their own error
WRITE_ERRORS = (OSError, SafetensorError, CheckpointException)
LONGEST_PAUSE = 0.2  # seconds between two looks for an answer

_rounds = itertools.count()  # equal in all processes, because all of them take part in every round
_own_keys: list[str] = []


def run_on_all(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Call `action` in every process and wait for all of them; an error in one is raised in each.

    Raises:
        OSError: this or another process could not write.
        ValueError: the error of another process.
    """
    error = None
    try:
        with _as_os_error():
            action()
    except BaseException as caught:
        error = caught
    answers = exchange(accelerator, _as_json(error))
    if error is not None:
        raise error
    for rank, answer in enumerate(answers):
        if answer is not None:
            raise _of_another(rank, answer)


def run_on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Call `action` in the main process while the others wait; its result or its error reaches each.

    Args:
        action: its result must be a JSON value, and is one afterwards in the others: a tuple becomes a list.

    Raises:
        OSError: the main process could not write.
        ValueError: another error of the main process.
    """
    key = f"hf_scratch_gpt/{next(_rounds)}/main"
    if not accelerator.is_main_process:
        error, result = _wait_for(key, 0)
        if error is not None:
            raise _of_another(0, error)
        answer: Result = result
        return answer
    try:
        with _as_os_error():
            result = action()
    except BaseException as caught:
        _post(accelerator, key, [_as_json(caught), None])
        raise
    _post(accelerator, key, [None, result])
    return result


def exchange(accelerator: Accelerator, value: Any) -> list[Any]:
    """The values of all processes, which must be JSON values; waits for all of them."""
    if accelerator.num_processes == 1:
        return [value]
    name = f"hf_scratch_gpt/{next(_rounds)}"
    _post(accelerator, f"{name}/{accelerator.process_index}", value)
    values = [_wait_for(f"{name}/{rank}", rank) for rank in range(accelerator.num_processes)]
    for key in _own_keys[:-1]:  # all have read them, because all have come to this round
        _store().delete_key(key)
    del _own_keys[:-1]
    return values


def end_after_the_others(accelerator: Accelerator, longest: float = math.inf) -> None:
    """Let the main process end last: without a launcher that has the store, it takes the store with it.

    It waits until the others have read their last answer; not for one that has ended or is silent.

    Args:
        longest: seconds to wait for each. After an error, others may be in the middle of a step.
    """
    if not accelerator.is_main_process:
        _post(accelerator, f"hf_scratch_gpt/end/{accelerator.process_index}", None)
        return
    for rank in range(1, accelerator.num_processes):
        with suppress(EndedError, SilentError, TimeoutError):
            _wait_for(f"hf_scratch_gpt/end/{rank}", rank, longest)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _post(accelerator: Accelerator, key: str, value: Any) -> None:
    if accelerator.num_processes > 1:
        _store().set(key, json.dumps(value))
        _own_keys.append(key)


def _wait_for(key: str, rank: int, longest: float = math.inf) -> Any:
    store, started, pause = _store(), time.monotonic(), 1e-3
    while not store.check([key]):
        waiting_for = time.monotonic() - started
        if waiting_for > longest:
            raise TimeoutError(key)
        check_alive(rank, waiting_for=waiting_for)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return json.loads(store.get(key))


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn the libraries' own write errors into an OSError."""
    try:
        yield
    except OSError:
        raise
    except CheckpointException as error:  # its own text is the tracebacks of all processes
        failures = (f"process {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
        raise OSError(", ".join(failures)) from error
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except Exception as error:
        if type(error) is Exception and "(os error " in str(error):  # of tokenizers
            raise OSError(str(error)) from error
        raise


def _as_json(error: BaseException | None) -> list[str] | None:
    """An error as [class, text]."""
    if error is None:
        return None
    kind = next((kind.__name__ for kind in (OSError, ValueError) if isinstance(error, kind)), "")
    return [kind, str(error) if kind else f"{type(error).__name__}: {error}"]


def _of_another(rank: int, answer: list[str]) -> Exception:
    kind, text = answer
    if kind == "OSError":
        return OSError(text)
    return ValueError(text if kind else f"process {rank} failed with {text}")
