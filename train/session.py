"""What every training script does around its loop: claim the folder, continue or start, train, write the model.

Scripts differ in where model, examples and objective come from, and in what they write beside the weights: their `Job`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging as transformers_logging

from . import checkpoint, loop
from .arguments import TrainArguments
from .build import check_allowed
from .device import build_accelerator, keep_freed_memory
from .heartbeat import heartbeat
from .manifest import verified_manifest
from .parallel import Grid, build_grid, whole
from .resume import resume
from .run import Run, TrainState
from .status import write_status

MODEL_FOLDER = "model"
RECIPE_FILE = "recipe.yaml"
STOPPED = 130  # exit code


@dataclass(frozen=True)
class Job:
    """What a script adds.

    Args:
        arguments: the settings of the training.
        recipe: all settings of the script, as YAML.
        build: makes the run, in every process.
        write: called by the first process with the run, an empty folder, the final weights by name, and what
            `conclude` has returned, with the `step` of the weights: fills the folder.
        conclude: called by every process with the final weights in the model, such as for figures of a test set.
    """

    arguments: TrainArguments
    recipe: str
    build: Callable[[Accelerator, Grid], Run]
    write: Callable[[Run, Path, dict[str, Tensor], dict[str, Any]], None]
    conclude: Callable[[Run], dict[str, Any]] = lambda run: {}


def carry_out(job: Job) -> int:
    """Starts, continues or finds complete a run; returns 0 when it is complete, 130 when a signal has stopped it.

    Raises:
        ValueError: settings or data that do not fit, or a run that was started otherwise.
        OSError: something cannot be read or written.
    """
    arguments = job.arguments
    check_allowed(arguments.allow_change, type(arguments))
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
        is_complete = _carry_out(job, accelerator, grid)
    # in this order: a model that outlives the group of processes can hang in its destructor
    accelerator.free_memory()
    accelerator.end_training()
    return 0 if is_complete else STOPPED


def _carry_out(job: Job, accelerator: Accelerator, grid: Grid) -> bool:
    run = job.build(accelerator, grid)
    state = resume(run)
    model_folder = run.folder / MODEL_FOLDER
    accelerator.print(describe(run, state))
    if model_folder.exists() and state.step == run.arguments.max_steps:
        accelerator.print(f"already complete: the model is in {model_folder}")
        return True
    if accelerator.is_main_process:
        (run.folder / RECIPE_FILE).write_text(job.recipe, encoding="utf-8")
    if run.arguments.report_to:
        accelerator.init_trackers("hf_scratch_gpt")
    with told_in_status(run, state):
        loop.train(run, state)
        if state.step < run.arguments.max_steps:
            return False
        step = take_final_weights(run, state)
        conclusions = job.conclude(run) | {"step": step}
        weights = {name: whole(tensor).cpu() for name, tensor in checkpoint.named_weights(run.bare_model).items()}
        if accelerator.is_main_process:
            unfinished = model_folder.with_name(f".tmp-{MODEL_FOLDER}")
            job.write(run, unfinished, weights, conclusions)
            unfinished.rename(model_folder)  # it appears when it is whole
    accelerator.wait_for_everyone()
    accelerator.print(f"complete: the model is in {model_folder}")
    return True


def take_final_weights(run: Run, state: TrainState) -> int:
    """Goes back to the lowest validation loss where that is asked for; returns the step of the model's weights."""
    if getattr(run.arguments, "final_weights", "last") == "last":
        return state.step
    best = checkpoint.best_checkpoint(run.folder)
    if best is None:
        run.accelerator.print("no checkpoint was made right after an evaluation: the last weights are kept")
        return state.step
    found = checkpoint.Checkpoint(best, verified_manifest(best))
    found.load_model(run.bare_model)
    run.accelerator.print(f"the weights with the lowest validation loss are those of step {found.step}")
    return found.step


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


def describe(run: Run, state: TrainState) -> str:
    """The table of what follows from the settings."""
    arguments, accelerator, examples = run.arguments, run.accelerator, run.batches.source
    tokens = arguments.batch_size * examples.mean_length
    epochs = arguments.max_steps * arguments.batch_size / len(examples) * getattr(examples, "num_versions", 1)
    trained = sum(p.numel() for p in run.bare_model.parameters() if p.requires_grad)
    parameters = run.bare_model.num_parameters()
    rows = {
        "model": f"{parameters:,} parameters" + (f", {trained:,} of them trained" if trained < parameters else ""),
        "tokens per step": f"{tokens:,.0f} ({arguments.batch_size} sequences of {examples.mean_length:.4g})",
        "micro-batches per step": f"{arguments.batch_size // arguments.micro_batch_size} of "
        f"{arguments.micro_batch_size} sequences",
        "processes": f"{accelerator.num_processes}{engine(arguments, run.grid)}",
        "tokens in total": f"{tokens * arguments.max_steps:,.0f} ({epochs:.2f} epochs)",
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
