"""Results and errors reach all processes, and a wait lasts as long as the other process is alive."""

import time

import pytest
from safetensors import SafetensorError

from tests.support.ranks import call_in_ranks
from train.distributed.errors import exchange, run_on_all, run_on_main


def test_the_main_process_works_for_all(tmp_path):
    """Slowly, and twice."""

    def work(accelerator):
        def slow():
            time.sleep(0.3)
            return {"found": [accelerator.process_index, None]}

        return [run_on_main(accelerator, slow), run_on_main(accelerator, lambda: 2)]

    assert call_in_ranks(work, 3, tmp_path) == [[{"found": [0, None]}, 2]] * 3


def test_all_see_the_values_of_all(tmp_path):
    def work(accelerator):
        return [exchange(accelerator, [accelerator.process_index, step]) for step in range(3)]

    assert call_in_ranks(work, 2, tmp_path) == [[[[0, step], [1, step]] for step in range(3)]] * 2


FAILURES = {
    "OSError: [Errno 28] No space left on device: 'a'": OSError(28, "No space left on device", "a"),
    "OSError: full": SafetensorError("full"),
    "ValueError: wrong": ValueError("wrong"),
}


@pytest.mark.parametrize("shown", FAILURES)
@pytest.mark.parametrize("function", [run_on_main, run_on_all])
def test_an_error_has_the_same_words_in_all_processes(tmp_path, function, shown):
    def work(accelerator):
        def fail():
            if accelerator.process_index == 0:
                raise FAILURES[shown]

        function(accelerator, fail)

    assert call_in_ranks(work, 2, tmp_path) == [shown] * 2


def test_a_bug_in_one_process_ends_the_others_with_one_line(tmp_path):
    def work(accelerator):
        run_on_all(accelerator, lambda: {}["name"] if accelerator.process_index == 1 else None)

    assert call_in_ranks(work, 2, tmp_path) == [
        "ValueError: process 1 failed with KeyError: 'name'", "KeyError: 'name'"
    ]  # fmt: skip
