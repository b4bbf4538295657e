"""Try a model in the browser, and look inside it.

    scratch-gpt demo
    scratch-gpt demo --model runs/assistant/model alice/tiny
    scratch-gpt demo --model runs/tiny/model --port 9000

Write with the model, see what it expects at each token and where its heads look, choose each token yourself. The page
is only for this machine unless you choose another --host or --share true. Ctrl-C stops it.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .settings.address import listen
from .settings.checks import check_bounds
from .settings.command import run_command
from .settings.recipe import option, option_list, parse_recipe

QUICKSTART_MODEL = "runs/quickstart/run/model"
HIGHEST_PORT = 65535
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class DemoArguments:
    """The models, the address, and the limits of the page."""

    model: list[str] = option_list(
        f"Models to choose from: folders, or names on the Hugging Face Hub (default: {QUICKSTART_MODEL}).", is_path=True
    )
    host: str = option("Address to listen at; 0.0.0.0: all of this machine.", "127.0.0.1")
    port: int = option("Port to listen at; 0: any that is free.", 7860)
    share: bool = option("Whether to open a public link through gradio's servers.", False)
    device: str | None = option("cpu, cuda, cuda:1, mps (default: the GPU if there is one).")
    dtype: str | None = option(f"{', '.join(DTYPES)} (default: that of the weights).")
    max_prompt_tokens: int = option("Maximum number of tokens of a text to continue.", 1024)
    max_new_tokens: int = option("Maximum number of tokens of a continuation.", 512)
    max_queue_size: int = option("Requests that wait for the model; further ones are refused.", 16)

    def __post_init__(self) -> None:
        lowest = {"port": 0, "max_prompt_tokens": 1, "max_new_tokens": 1, "max_queue_size": 1}
        check_bounds(self, lowest, {"port": HIGHEST_PORT})
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"--dtype is {self.dtype}: it must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")
        if repeated := [name for name in self.model if self.model.count(name) > 1]:
            raise ValueError(f"--model gives {repeated[0]} more than once: give each model once.")


def main(argv: Sequence[str] | None = None) -> None:
    """Open the page, and serve it until Ctrl-C."""
    (arguments,) = parse_recipe([DemoArguments], argv, description=__doc__ or "")
    try:
        run_page(arguments)
    except KeyboardInterrupt:
        return


def run_page(arguments: DemoArguments) -> None:
    """Load the first model, and serve the page until Ctrl-C.

    Raises:
        ValueError: gradio is missing, or the address or the first model cannot be used.
        OSError: the Hub cannot be reached.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('gradio must be installed: pip install "hf_scratch_gpt[demo]"')
    from .page.app import build_page, launch_settings
    from .page.library import Library

    with listen(arguments.host, arguments.port) as listener:  # gradio opens the port again
        port = listener.getsockname()[1]
    library = Library(
        arguments.model or [QUICKSTART_MODEL],
        is_private=arguments.host in THIS_MACHINE and not arguments.share,
        device=arguments.device,
        dtype=arguments.dtype,
        max_prompt_tokens=arguments.max_prompt_tokens,
    )
    opened = library.open(library.names[0], "--model")
    blocks = build_page(library, arguments.max_new_tokens)
    blocks.queue(max_size=arguments.max_queue_size)
    _, url, public = blocks.launch(
        server_name=arguments.host, server_port=port, share=arguments.share, quiet=True, prevent_thread_lock=True,
        **launch_settings(),
    )  # fmt: skip
    print(ready_message(opened, public or url), flush=True)
    blocks.block_thread()


def ready_message(opened: Any, url: str) -> str:
    """Where the page is."""
    return f"{opened.name} is at {url} ({opened.model.device}). Ctrl-C stops it."


if __name__ == "__main__":
    sys.exit(run_command(main))
