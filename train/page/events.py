"""Events of the page: one computation at a time, and errors as a sentence in the page."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from .markup import message

EXPECTED = (ValueError, OSError)  # what a user can cause


def when(
    triggers: Any,
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    errors: Any,
    *,
    api_name: str | None = None,
    waits: bool = True,
    **settings: Any,
) -> Any:
    """Call a function when something happens.

    Args:
        function: returns or yields a tuple with one value per output.
        errors: the component for the sentence of an error, which is emptied otherwise. Then the outputs stay.
        waits: whether it uses a model, and so waits until no other event does.
        api_name: of the endpoint for programs; None: there is none.
    """
    return gr.on(
        triggers,
        in_a_sentence(function, len(outputs)),
        list(inputs),
        [errors, *outputs],
        api_name=api_name,
        api_visibility="private" if api_name is None else "public",
        concurrency_id="model" if waits else None,
        concurrency_limit=1 if waits else None,
        **settings,
    )


def in_a_sentence(function: Callable[..., Any], num_outputs: int) -> Callable[..., Any]:
    """A function that returns the sentence of an error and then the outputs of another function."""

    def failed(error: Exception) -> list[Any]:
        return [message(" ".join(str(error).split())), *[gr.skip() for _ in range(num_outputs)]]

    @functools.wraps(function)
    def once(*values: Any, **named: Any) -> list[Any]:
        try:
            return ["", *function(*values, **named)]
        except EXPECTED as error:
            return failed(error)

    @functools.wraps(function)
    def many(*values: Any, **named: Any) -> Iterator[list[Any]]:
        try:
            for outputs in function(*values, **named):
                yield ["", *outputs]
        except EXPECTED as error:
            yield failed(error)

    return many if inspect.isgeneratorfunction(function) else once
