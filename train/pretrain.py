"""Pretrain a model from scratch on prepared data; the same command again continues the run.

    python -m train.pretrain recipe.yaml --max_steps 2000
    accelerate launch -m train.pretrain recipe.yaml

The run folder then holds recipe.yaml, metrics.jsonl, samples.jsonl, checkpoint-*/ and, when all
steps are done, model/ with the trained model and its tokenizer.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hf_scratch_gpt import ScratchGPTTokenizer

from . import checkpoint, loop
from .arguments import (
    DataArguments,
    ModelArguments,
    TrainArguments,
    parse_recipe,
    recipe_text,
    run_script,
)
from .build import build_run, check_allowed
from .data import TOKENIZER_FOLDER, PreparedData, open_data
from .device import build_accelerator, keep_freed_memory
from .heartbeat import heartbeat
from .metrics import LOG_FILES, JsonLines
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve, model_card, run_figures
from .parallel import Grid, build_grid, whole
from .resume import resume
from .run import Run, TrainState
from .status import write_status

MODEL_FOLDER = "model"
RECIPE_FILE = "recipe.yaml"
PLACES = ("data_dir:", "output_dir:")  # entries of a recipe that hold only on this machine
STOPPED = 130  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (ModelArguments, DataArguments, TrainArguments)
    model_arguments, data_arguments, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    check_allowed(arguments.allow_change)
    keep_freed_memory()
    transformers_logging.disable_progress_bar()  # of each save
    folder = open_run_folder(arguments.output_dir)
    accelerator = build_accelerator(
        arguments.precision, arguments.report_to, arguments.output_dir, arguments.process_timeout
    )
    grid = build_grid(accelerator, arguments.fsdp_size, arguments.tp_size)
    arguments.check_processes(grid.data_size)
    # one process claims the folder; the lock ends with it
    claim = checkpoint.lock(folder) if accelerator.is_main_process else nullcontext()
    with claim, heartbeat(folder, accelerator):
        is_complete = pretrain(model_arguments, data_arguments, arguments, accelerator, grid)
    # in this order: a model that outlives the group of processes can hang in its destructor
    accelerator.free_memory()
    accelerator.end_training()
    return 0 if is_complete else STOPPED


def pretrain(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    accelerator: Accelerator,
    grid: Grid,
) -> bool:
    """Starts, continues or finds complete the run of these settings; returns whether it is complete."""
    data = open_data(data_arguments.data_dir)
    tokenizer = ScratchGPTTokenizer.from_pretrained(Path(data_arguments.data_dir) / TOKENIZER_FOLDER)
    run = build_run(model_arguments, arguments, data, tokenizer, accelerator, grid)
    state = resume(run)
    model_folder = run.folder / MODEL_FOLDER
    accelerator.print(describe(run, state, data))
    if model_folder.exists() and state.step == arguments.max_steps:
        accelerator.print(f"already complete: the model is in {model_folder}")
        return True
    recipe = recipe_text(model_arguments, data_arguments, arguments)
    if accelerator.is_main_process:
        (run.folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    if arguments.report_to:
        accelerator.init_trackers("hf_scratch_gpt")
    with told_in_status(run, state):
        loop.train(run, state)
        if state.step < arguments.max_steps:
            return False
        weights = {name: whole(tensor).cpu() for name, tensor in checkpoint.named_weights(run.bare_model).items()}
        if accelerator.is_main_process:
            save_model(run, model_folder, data, recipe, weights)
    accelerator.wait_for_everyone()
    accelerator.print(f"complete: the model is in {model_folder}")
    return True


@contextmanager
def told_in_status(run: Run, state: TrainState) -> Iterator[None]:
    """Writes to status.json that the run goes on, and in the end what became of it."""

    def tell(what: str, **facts: str) -> None:
        if run.accelerator.is_main_process:
            saved = [path.name for path in checkpoint.checkpoint_paths(run.folder)[-1:]]
            write_status(
                run.folder, what, step=state.step, max_steps=run.arguments.max_steps, checkpoint="".join(saved), **facts
            )

    tell("running")
    try:
        yield
    except BaseException as error:
        tell("failed", reason=str(error) or type(error).__name__)
        raise
    tell("complete" if state.step == run.arguments.max_steps else "stopped")


def open_run_folder(output_dir: str) -> Path:
    """The folder of the run, made or known as one, and writable.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be written.
    """
    folder = Path(output_dir)
    if folder.is_dir() and not (folder / checkpoint.LOCK_FILE).exists() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} is not empty and holds no run: name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checkpoint.LOCK_FILE).touch()
    return folder


def describe(run: Run, state: TrainState, data: PreparedData) -> str:
    """The table of what follows from the settings."""
    arguments, accelerator = run.arguments, run.accelerator
    block_size, num_rows = data.train.block_size, len(data.train)
    tokens = arguments.batch_size * block_size
    epochs = arguments.max_steps * arguments.batch_size / num_rows
    rows = {
        "model": f"{run.bare_model.num_parameters():,} parameters",
        "tokens per step": f"{tokens:,} ({arguments.batch_size} sequences of {block_size})",
        "micro-batches per step": f"{arguments.batch_size // arguments.micro_batch_size} of "
        f"{arguments.micro_batch_size} sequences",
        "processes": f"{accelerator.num_processes}{engine(arguments, run.grid)}",
        "tokens in total": f"{tokens * arguments.max_steps:,} ({epochs:.2f} epochs)",
        "steps": f"{state.step} of {arguments.max_steps} done",
        "optimizer": arguments.optimizer,
        "precision": run.frozen["precision"],
        "device": str(accelerator.device),
        "run folder": str(run.folder),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in rows.items())


def engine(arguments: TrainArguments, grid: Grid) -> str:
    """How processes share the model, in words."""
    if grid.mesh is None:
        return ""
    replicas = grid.data_size // arguments.fsdp_size
    return f": {replicas} replicas x {arguments.fsdp_size} shards (FSDP2) x {arguments.tp_size} (tensor parallel)"


def save_model(run: Run, folder: Path, data: PreparedData, recipe: str, weights: dict[str, Tensor]) -> None:
    """Writes the trained model, its tokenizer, card and loss curve; the folder appears when it is whole."""
    unfinished = folder.with_name(f".tmp-{folder.name}")
    run.bare_model.save_pretrained(unfinished, state_dict=weights)
    run.tokenizer.save_pretrained(unfinished)
    corpus = data.manifest["corpus"]["train"]["description"]
    metrics, samples = (JsonLines(run.folder / name).read() for name in LOG_FILES)
    parameters = run.bare_model.num_parameters()
    title = f"{parameters / 1e6:.1f} million parameters, trained on {corpus}"
    draw_loss_curve(metrics, unfinished / PICTURE_NAME, title=title, vocab_size=run.bare_model.config.vocab_size)
    lines = recipe.splitlines(keepends=True)
    recipe = "".join(line for line in lines if not line.startswith(PLACES))  # where it lay is nobody's business
    facts = {"name": f"scratch-gpt-{parameters / 1e6:.1f}M", "corpus": corpus, "recipe": recipe}
    figures = {"parameters": f"{parameters:,}"} | run_figures(metrics)
    last = [sample for sample in samples if sample["step"] == run.arguments.max_steps]
    (unfinished / CARD_NAME).write_text(model_card(facts, figures, last), encoding="utf-8")
    unfinished.rename(folder)


if __name__ == "__main__":
    sys.exit(run_script(main))
