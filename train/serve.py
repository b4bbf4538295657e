"""Serve a model with OpenAI's API: chat completions, completions and responses.

    scratch-gpt serve --model runs/assistant/model
    scratch-gpt serve --model alice/tiny --port 9000 --dtype bfloat16

Any OpenAI client can then use http://127.0.0.1:8000/v1, with any API key. Ctrl-C stops the server. There is no
authentication: choose another --host than 127.0.0.1 only in a network that you trust. Control tokens in a request, such
as <|end|>, are read as text.
"""

import importlib.util
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging as transformers_logging

from .model.generation import check_outputs, encode_prompt, max_positions
from .model.inference import load_for_inference
from .settings.address import listen
from .settings.checks import check_bounds, requires
from .settings.command import run_command
from .settings.inference import GenerationModelArguments
from .settings.recipe import option, parse_recipe, required

LIBRARIES = ("fastapi", "openai", "uvicorn")
DTYPES = ("float32", "bfloat16", "float16")
HIGHEST_PORT = 65535
DEFAULT_REQUESTS = 16


@dataclass
class ServeArguments:
    """The model, the address, and the limits of requests."""

    model: str = required("Model or adapter: a folder, or a name on the Hugging Face Hub.", is_path=True)
    served_model_name: str | None = option("Name of the model in requests (default: what --model says).")
    host: str = option("Address to listen at; 0.0.0.0: all of this machine.", "127.0.0.1")
    port: int = option("Port to listen at; 0: any that is free.", 8000)
    device: str | None = option("cpu, cuda, cuda:1, mps (default: the GPU if there is one).")
    dtype: str | None = option(f"{', '.join(DTYPES)} (default: that of the weights).")
    max_length: int | None = option("Maximum number of tokens of a prompt and its answer (default: the model's).")
    max_new_tokens: int | None = option(
        "Maximum number of tokens of an answer whose request does not limit it (default: as many as fit)."
    )
    continuous_batching: bool = option("Answer requests together; false: one after another.", True)
    max_concurrent_requests: int | None = option("Requests that are answered together; others wait (default: 16).")

    def __post_init__(self) -> None:
        lowest = {"port": 0, "max_length": 2, "max_new_tokens": 1, "max_concurrent_requests": 1}
        check_bounds(self, lowest, {"port": HIGHEST_PORT, "max_concurrent_requests": 1024})
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"--dtype is {self.dtype}: it must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
        if self.max_concurrent_requests is not None and not self.continuous_batching:
            name, value = "max_concurrent_requests", self.max_concurrent_requests
            raise ValueError(requires(name, value, "--continuous_batching true"))


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, and answer requests until Ctrl-C."""
    arguments, loading = parse_recipe([ServeArguments, GenerationModelArguments], argv, description=__doc__ or "")
    if loading.torch_compile and arguments.continuous_batching:
        raise ValueError(requires("torch_compile", "true", "--continuous_batching false"))
    try:
        run_server(arguments, loading)
    except KeyboardInterrupt:  # before the server has started
        return


def run_server(arguments: ServeArguments, loading: GenerationModelArguments) -> None:
    """Load the model, and answer requests until Ctrl-C.

    Raises:
        ValueError: a library is missing, or the address, the model or a setting cannot be used.
        OSError: the Hub cannot be reached.
    """
    check_libraries()
    from .serving.app import build_app
    from .serving.server import serve

    listener = listen(arguments.host, arguments.port)
    with listener:
        model, tokenizer = load_for_inference(
            arguments.model, device=arguments.device, dtype=arguments.dtype, quantization=loading.quantization
        )
        transformers_logging.set_verbosity_error()
        ids = encode_prompt(tokenizer, "?")
        check_outputs(arguments.model, model, ids)
        answers = start_answers(arguments, model, tokenizer)
        if loading.torch_compile:
            answers.compile(f"--model {arguments.model}", ids[0])
        name = arguments.served_model_name or arguments.model
        message = ready_message(arguments, listener, model, tokenizer)
        serve(build_app(name, answers), listener, answers, lambda: print(message, flush=True))


def check_libraries() -> None:
    """Refuse to start without the libraries of the server.

    Raises:
        ValueError: what to install.
    """
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise ValueError(f'{", ".join(missing)} must be installed: pip install "hf_scratch_gpt[serve]"')


def start_answers(arguments: ServeArguments, model: Any, tokenizer: Any) -> Any:
    """What generates the answers.

    Raises:
        ValueError: --max_length is more than the model reads, or too little memory.
    """
    from .serving.answers import ContinuousBatching, OneByOne

    longest = max_positions(model)
    if arguments.max_length is not None and arguments.max_length > longest:
        raise ValueError(f"--max_length is {arguments.max_length}: it must be at most {longest}, what the model reads.")
    settings = (model, tokenizer, arguments.max_length or longest, arguments.max_new_tokens)
    if not arguments.continuous_batching:
        return OneByOne(*settings)
    penalty = model.generation_config.repetition_penalty
    if penalty not in (None, 1.0):
        print(
            f"warning: the model's generation_config.json has repetition_penalty {penalty}, which requires "
            "--continuous_batching false",
            file=sys.stderr,
        )
        model.generation_config.repetition_penalty = None
    return ContinuousBatching(*settings, max_requests=arguments.max_concurrent_requests or DEFAULT_REQUESTS)


def ready_message(arguments: ServeArguments, listener: socket.socket, model: Any, tokenizer: Any) -> str:
    """Where the server is, and a request to try."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    if tokenizer.chat_template is None:
        path, body = "completions", {"prompt": "Once upon a time", "max_tokens": 30}
    else:
        path, body = "chat/completions", {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 30}
    return (
        f"{arguments.model} is served at {url} ({model.device}, {str(model.dtype).removeprefix('torch.')}). "
        "Ctrl-C stops the server.\n"
        f"curl {url}/{path} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
