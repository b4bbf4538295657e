"""A run: everything that the loop works on, built from settings, a model, an objective and examples."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.find import remove_leftovers, set_aside
from ..checkpoint.manifest import DamagedError
from ..checkpoint.recorded import recorded_settings
from ..checkpoint.settings_check import changed_settings, check_settings
from ..checkpoint.state import TrainState
from ..checkpoint.weights import named_weights
from ..data.examples import Examples
from ..data.sampler import StepSampler
from ..distributed.device import matmul_rate, wide_dtype
from ..distributed.errors import exchange, run_on_main
from ..distributed.parallel import Grid, build_grid, is_split, split_model, whole
from ..model.flops import training_flops_per_token
from ..settings.defaults import learning_rates_for
from ..settings.durable import replace_text
from ..settings.run_folder import ADAPTER_FOLDER, MODEL_FOLDER, RECIPE_FILE, TRAINING_FILE
from ..settings.training import MAY_CHANGE, TrainArguments
from .batches import Batches
from .compilation import cache_folder, compiles, planned_seconds
from .log import cut_back_logs
from .objective import Objective
from .optimizers import build_optimizers
from .result import read_result
from .skipped_steps import read_skip_windows
from .status import read_status, write_run_status

NOT_PART_OF_THE_MODEL = {"transformers_version", "auto_map", "_name_or_path"}  # config entries that may change


@dataclass
class Run:
    """The parts of a run; model and optimizers as `Accelerator.prepare` or `split_model` leave them.

    Args:
        sampler: the examples of each step.
        validation: examples for evaluations.
        grid: the position of this process among all.
        skip_windows: (first, last) steps that `rollback` asked to skip.
        is_complete: whether nothing is left to do; known after `resume`.
        peak_tokens_per_second: if all devices did nothing but the model's matrix products; for the MFU.
        batches_ahead: of the next step, if they are read already.
    """

    arguments: TrainArguments
    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Optimizer]
    sampler: StepSampler
    validation: Examples
    objective: Objective
    checkpoints: Checkpointer
    grid: Grid = field(default_factory=Grid)
    skip_windows: list[tuple[int, int]] = field(default_factory=list)
    is_complete: bool = False
    peak_tokens_per_second: float = math.inf
    batches_ahead: Batches | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.arguments.output_dir)

    @property
    def bare_model(self) -> Any:
        """The model without the wrapper that synchronizes processes."""
        return self.checkpoints.model

    @cached_property
    def is_split(self) -> bool:
        """Whether each process has only a part of the model, so that all must take part in every use of it."""
        return is_split(self.model)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the model."""
        return list(self.model.parameters())

    @property
    def reads_late(self) -> bool:
        """Whether the host reads the outcome of a step in the next one: the device computes on its own meanwhile."""
        return bool(self.accelerator.device.type == "cuda")

    def sum_over_processes(self, values: Tensor | Sequence[float]) -> Tensor:
        """Add up what each share of the examples has contributed; (values,). Waits for no device.

        With one process, the values of a list stay on the host.
        """
        device = self.accelerator.device
        own = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        if self.accelerator.num_processes == 1:
            return own.to(wide_dtype(own.device))
        total: Tensor = self.accelerator.reduce(own.to(device, wide_dtype(device), non_blocking=True), reduction="sum")
        return total / self.grid.tensor_size  # each tensor-parallel group adds the same values

    def from_main(self, value: Tensor) -> Tensor:
        """The main process's `value` in its part of `sum_over_processes`; 0 in that of the others."""
        return value * self.grid.tensor_size if self.accelerator.is_main_process else torch.zeros_like(value)

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights by name, gathered on the CPU of the main process; empty in the others. All must call."""
        weights = {}
        for name, tensor in named_weights(self.bare_model).items():
            gathered = whole(tensor)
            if self.accelerator.is_main_process:
                weights[name] = gathered.cpu()
        return weights


def build_run(
    arguments: TrainArguments,
    accelerator: Accelerator,
    model: PreTrainedModel,
    objective: Objective,
    train: Examples,
    validation: Examples,
    facts: dict[str, Any],
) -> Run:
    """Split or wrap the model, build its optimizers, and put everything together.

    Args:
        facts: identity of the data and of a base model; saved with the settings that must not change.

    Raises:
        ValueError: settings that contradict each other or the number of processes.
    """
    arguments = with_learning_rates(arguments, model.config)
    precision = precision_of(accelerator)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peak = peak_speed(accelerator, precision, model_flops(arguments, model, train))
    arguments = with_compilation(arguments, accelerator, peak, train)
    grid = build_grid(accelerator, arguments.dp_shard_size, arguments.tp_size)
    arguments.check_processes(grid.data_size)
    settings = frozen_settings(arguments, precision, model.config) | facts
    bare_model = prepare_model(model, arguments)
    if grid.mesh is not None:
        check_split(arguments, precision)
        reshard = arguments.reshard_after_forward
        split_model(model.to(accelerator.device), grid, dtype, reshard_after_forward=reshard)
    bare_optimizers = optimizers = optimizers_for(model, arguments, dtype)
    if grid.mesh is None:
        model, *optimizers = accelerator.prepare(model, *optimizers)
    batch_sizes = (arguments.global_batch_size, arguments.micro_batch_size)
    short_steps = 0 if arguments.is_finetuning else round(arguments.short_sequences * arguments.max_steps)
    sampler = StepSampler(train, *batch_sizes, arguments.seed, grid.data_index, grid.data_size, short_steps)
    checkpoints = Checkpointer(
        Path(arguments.output_dir),
        accelerator,
        bare_model,
        bare_optimizers,
        settings,
        arguments.save_total_limit,
        arguments.async_save,
    )
    return Run(
        arguments=arguments,
        accelerator=accelerator,
        model=model,
        optimizers=optimizers,
        sampler=sampler,
        validation=validation,
        objective=objective,
        checkpoints=checkpoints,
        grid=grid,
        peak_tokens_per_second=peak,
    )


def precision_of(accelerator: Accelerator) -> str:
    """The number format of the forward pass: fp32, bf16 or fp16."""
    name: str = accelerator.mixed_precision
    return {"no": "fp32"}.get(name, name)


def with_learning_rates(arguments: TrainArguments, config: PreTrainedConfig) -> TrainArguments:
    """The settings with learning rates: the given ones, those of an earlier start of the run, or the defaults."""
    if arguments.learning_rate is not None:
        return arguments
    earlier = recorded_settings(Path(arguments.output_dir))
    rate, matrix_rate = earlier.get("learning_rate"), earlier.get("matrix_learning_rate")
    if rate is None:
        rate, matrix_rate = learning_rates_for(arguments.optimizer, config)
    if arguments.matrix_learning_rate is not None:
        matrix_rate = arguments.matrix_learning_rate
    return replace(arguments, learning_rate=rate, matrix_learning_rate=matrix_rate)


def with_compilation(
    arguments: TrainArguments, accelerator: Accelerator, peak: float, train: Examples
) -> TrainArguments:
    """The settings with --torch_compile true or false: as given, as in an earlier start of the run, or by a rule.

    Args:
        peak: tokens per second that the devices can reach at most.
    """

    def decide() -> bool:
        earlier = recorded_settings(Path(arguments.output_dir)).get("torch_compile")
        if arguments.torch_compile == "auto" and earlier is not None:
            return bool(earlier)
        seconds = planned_seconds(arguments.max_steps * arguments.global_batch_size * train.mean_length, peak)
        is_split = arguments.dp_shard_size > 1 or arguments.tp_size > 1
        return compiles(arguments.torch_compile, accelerator.device, seconds, is_split=is_split)

    return replace(arguments, torch_compile="true" if run_on_main(accelerator, decide) else "false")


def optimizers_for(model: PreTrainedModel, arguments: TrainArguments, dtype: torch.dtype) -> list[Optimizer]:
    """The optimizers that the settings ask for; Muon orthogonalizes in `dtype`."""
    return build_optimizers(
        model,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate or learning_rates_for(arguments.optimizer, model.config)[0],
        matrix_learning_rate=arguments.matrix_learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        matrix_dtype=dtype,
    )


def prepare_model(model: PreTrainedModel, arguments: TrainArguments) -> PreTrainedModel:
    """Switch on gradient checkpointing and compilation as asked, and training mode; returns the model."""
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # the only name that transformers before 5.23 knows too
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    if arguments.torch_compile == "true":
        model.compile()
    model.train()
    return model


def check_split(arguments: TrainArguments, precision: str) -> None:
    """Refuse settings that do not work with a split model.

    Raises:
        ValueError: the setting, and what to do instead.
    """
    sizes = f"--dp_shard_size {arguments.dp_shard_size} --tp_size {arguments.tp_size}"
    if precision == "fp16":
        raise ValueError(f"--precision fp16 does not work with {sizes}: use bf16 or fp32.")
    if arguments.async_save:
        raise ValueError(f"--async_save does not work with {sizes} yet: remove one of them.")
    if arguments.torch_compile == "true":
        raise ValueError(f"--torch_compile does not work with {sizes} yet: remove one of them.")


def frozen_settings(arguments: TrainArguments, precision: str, config: PreTrainedConfig) -> dict[str, Any]:
    """Settings that decide the result of a run, besides its data: they must not change when the run continues."""
    settings = {name: value for name, value in asdict(arguments).items() if name not in MAY_CHANGE}
    shape = {name: value for name, value in config.to_dict().items() if name not in NOT_PART_OF_THE_MODEL}
    is_compiled = arguments.torch_compile == "true"
    return settings | {"precision": precision, "model": shape, "torch_compile": is_compiled}


def model_flops(arguments: TrainArguments, model: PreTrainedModel, train: Examples) -> float:
    """Operations per token; 0 where the formula does not apply: other architectures, and frozen weights."""
    return 0.0 if arguments.is_finetuning else training_flops_per_token(model.config, round(train.mean_length))


def peak_speed(accelerator: Accelerator, precision: str, flops_per_token: float) -> float:
    """Tokens per second if all devices did nothing but the model's matrix products; infinite if unknown."""
    if not flops_per_token:
        return math.inf
    num_devices: int = accelerator.num_processes
    return num_devices * matmul_rate(accelerator.device, precision) / flops_per_token


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
        "optimizer": f"{arguments.optimizer}, peak learning rate {arguments.learning_rate:g}",
        "precision": precision_of(run.accelerator),
        "device": str(run.accelerator.device),
        "torch.compile": compilation(arguments),
        "run folder": str(run.folder),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in rows.items())


def compilation(arguments: TrainArguments) -> str:
    """Whether the model is compiled, as text."""
    if arguments.torch_compile != "true":
        return "off"
    return f"on: the first step takes a minute or more; compiled code is kept in {cache_folder()}"


def engine(arguments: TrainArguments, grid: Grid) -> str:
    """How processes share the model, as text."""
    if grid.mesh is None:
        return ""
    replicas = grid.data_size // arguments.dp_shard_size
    return f": {replicas} replicas x {arguments.dp_shard_size} shards (FSDP2) x {arguments.tp_size} (tensor parallel)"
