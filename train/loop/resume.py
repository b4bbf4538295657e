"""Continue a run, or start it: restore its newest checkpoint, check what must not change, and describe it."""

from dataclasses import asdict

from ..checkpoint.find import remove_leftovers, set_aside
from ..checkpoint.manifest import DamagedError
from ..checkpoint.settings_check import changed_settings, check_settings
from ..checkpoint.state import TrainState
from ..distributed.errors import exchange, run_on_main
from ..distributed.parallel import Grid
from ..settings.durable import replace_text
from ..settings.run_folder import ADAPTER_FOLDER, MODEL_FOLDER, RECIPE_FILE, TRAINING_FILE
from ..settings.training import TrainArguments
from .compilation import cache_folder
from .log import cut_back_logs
from .result import read_result
from .run import Run, precision_of
from .skipped_steps import read_skip_windows
from .status import read_status, write_run_status


def resume(run: Run, recipe: str) -> TrainState:
    """Restore the newest checkpoint, if any, cut the logs back to it, and print what the settings amount to.

    A run whose model is finished is not touched, whatever has become of its checkpoints.

    Args:
        recipe: all settings of the command as YAML, saved to the run folder.

    Raises:
        ValueError: settings that must not change have changed, or differ between processes; fewer steps than are done;
            or a model without a checkpoint to continue from.
    """
    check_same_settings(run)
    finished = run_on_main(run.accelerator, lambda: finished_step(run))
    if finished == run.arguments.max_steps:
        run.is_complete = True
        run.accelerator.print(summary(run, finished))
        run.accelerator.print(f"already complete: the model is in {run.folder / MODEL_FOLDER}")
        return TrainState(finished)
    state = run.checkpoints.restore(run.arguments.allow_change)
    check_steps(run, state.step)

    def prepare_folder() -> list[tuple[int, int]]:
        set_damaged_aside(run, state.step)
        remove_leftovers(run.folder, "")
        cut_back_logs(run.folder, state.step or -1)  # a run that has saved nothing yet starts over
        replace_text(run.folder / RECIPE_FILE, recipe)
        return read_skip_windows(run.folder)

    run.skip_windows = [(first, last) for first, last in run_on_main(run.accelerator, prepare_folder)]
    run.accelerator.print(summary(run, state.step))
    if run.arguments.report_to:
        run_on_main(run.accelerator, lambda: run.accelerator.init_trackers("hf_scratch_gpt"))
    return state


def check_same_settings(run: Run) -> None:
    """Refuse processes that were started with different settings or data: they would train different runs.

    Raises:
        ValueError: the settings that differ.
    """
    own = asdict(run.arguments) | {"output_dir": None} | run.checkpoints.settings  # a folder may have several paths
    main, *others = exchange(run.accelerator, own)
    for rank, settings in enumerate(others, start=1):
        if changes := changed_settings(main, settings):
            raise ValueError(
                f"process {rank} was started with other settings than process 0 (was: process 0, now: process {rank}): "
                + "; ".join(changes.values())
            )


def finished_step(run: Run) -> int:
    """The last step of the finished model; 0 if there is none or it is damaged. Main process only.

    Raises:
        ValueError: it is the model of other settings, or of more steps.
    """
    try:
        record = read_result(run.folder)
    except DamagedError:
        return 0
    if record is None:
        return 0
    settings, allowed = run.checkpoints.settings, run.arguments.allow_change
    check_settings(run.folder, record, settings, allowed, run.accelerator.num_processes)
    step: int = record["step"]
    check_steps(run, step)
    return step


def check_steps(run: Run, step: int) -> None:
    """Refuse to end a run before the step that it has reached.

    Raises:
        ValueError: both steps, and what to do.
    """
    if run.arguments.max_steps < step:
        raise ValueError(
            f"--max_steps is {run.arguments.max_steps}, but {run.folder} is at step {step}: give at least {step}, "
            f"rewind it first with scratch-gpt rollback --output_dir {run.folder} --to_step ..., or choose another "
            "--output_dir."
        )


def set_damaged_aside(run: Run, step: int) -> None:
    """Move a damaged model away, which will be written again. Main process only.

    Args:
        step: of the checkpoint to continue from; 0 if there is none.

    Raises:
        ValueError: a model, or the status of a complete run, but no checkpoint: starting over would lose what is left.
    """
    model, reason = run.folder / MODEL_FOLDER, ""
    try:
        if model.exists() and read_result(run.folder) is None:
            reason = f"{TRAINING_FILE} is missing"
    except DamagedError as error:
        reason = str(error)
    if step == 0 and (model.exists() or read_status(run.folder).get("state") == "complete"):
        what = f"is damaged ({reason})" if reason else "is finished" if model.exists() else "is missing"
        raise ValueError(
            f"{model} {what}, and the run has no intact checkpoint to continue from. Restore the folder from a copy, "
            "choose another --output_dir, or delete the run folder to start over."
        )
    if reason:
        for path in (model, run.folder / ADAPTER_FOLDER):
            if path.exists():
                set_aside(path, "damaged", reason)


def is_complete(run: Run, state: TrainState) -> bool:
    """Whether nothing is left to do: all steps are done and the model is written. Corrects a status of before.

    A kill between the model and the last status leaves a status that says "running".
    """
    if run.is_complete and run.accelerator.is_main_process and read_status(run.folder).get("state") != "complete":
        write_run_status(run, "complete", state.step)
    return run.is_complete


def summary(run: Run, step: int) -> str:
    """A table of the values that follow from the settings."""
    arguments, examples = run.arguments, run.sampler.source
    tokens = arguments.global_batch_size * examples.mean_length
    epochs = arguments.max_steps * arguments.global_batch_size / len(examples) * getattr(examples, "num_versions", 1)
    trained = sum(p.numel() for p in run.bare_model.parameters() if p.requires_grad)
    parameters = run.bare_model.num_parameters()
    rows = {
        "model": f"{parameters:,} parameters" + (f", {trained:,} of them trained" if trained < parameters else ""),
        "tokens per step": f"{tokens:,.0f} ({arguments.global_batch_size} sequences of {examples.mean_length:.4g})",
        "micro-batches per step": f"{arguments.global_batch_size // arguments.micro_batch_size} of "
        f"{arguments.micro_batch_size} sequences",
        "processes": f"{run.accelerator.num_processes}{engine(arguments, run.grid)}",
        "tokens in total": f"{tokens * arguments.max_steps:,.0f} ({epochs:.2f} epochs)",
        "steps": f"{step} of {arguments.max_steps} done",
        "optimizer": f"{arguments.optimizer}, {peak_rates(arguments)}",
        "precision": precision_of(run.accelerator),
        "device": str(run.accelerator.device),
        "torch.compile": compilation(arguments),
        "run folder": str(run.folder),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in rows.items())


def peak_rates(arguments: TrainArguments) -> str:
    """The peak learning rates, as text."""
    rate, matrix_rate = arguments.learning_rate, arguments.matrix_learning_rate
    if matrix_rate is None:
        return f"peak learning rate {rate:g}"
    return f"peak learning rates {rate:g} (AdamW) and {matrix_rate:g} (Muon)"


def compilation(arguments: TrainArguments) -> str:
    """Whether the model is compiled, as text."""
    if arguments.torch_compile != "true":
        return "off"
    return f"on: the first step takes half a minute or more; compiled code is kept in {cache_folder()}"


def engine(arguments: TrainArguments, grid: Grid) -> str:
    """How processes share the model, as text."""
    if grid.mesh is None:
        return ""
    replicas = grid.data_size // arguments.dp_shard_size
    return f": {replicas} replicas x {arguments.dp_shard_size} shards (FSDP2) x {arguments.tp_size} (tensor parallel)"
