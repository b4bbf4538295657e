"""A run: everything that the loop works on, built from settings, a model, an objective and examples."""

import math
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
from ..checkpoint.recorded import recorded_settings
from ..checkpoint.weights import named_weights
from ..data.examples import Examples
from ..data.sampler import StepSampler
from ..distributed.device import matmul_rate, wide_dtype
from ..distributed.errors import run_on_main
from ..distributed.parallel import Grid, build_grid, is_split, split_model, whole
from ..model.flops import training_flops_per_token
from ..model.recomputation import set_gradient_checkpointing
from ..settings.defaults import learning_rates_for
from ..settings.run_folder import MODEL_FOLDER
from ..settings.training import MAY_CHANGE, TrainArguments
from .batches import Batches
from .compilation import check_compiler, compiles, planned_seconds
from .objective import Objective
from .optimizers import build_optimizers

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
    sampler = StepSampler(train, *batch_sizes, arguments.seed, grid.data_index, grid.data_size)
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

    Raises:
        ValueError: the model shall be compiled on a machine that cannot compile.
    """

    def decide() -> bool:
        is_split = arguments.dp_shard_size > 1 or arguments.tp_size > 1
        earlier = recorded_settings(Path(arguments.output_dir)).get("torch_compile")
        is_again = arguments.torch_compile == "auto" and earlier is not None and not is_split
        is_compiled = arguments.torch_compile == "true" or (is_again and earlier)
        if is_compiled and not (Path(arguments.output_dir) / MODEL_FOLDER).exists():  # else the run is complete
            check_compiler(accelerator.device, is_again=is_again)
        if is_again:
            return bool(earlier)
        num_tokens = arguments.max_steps * arguments.global_batch_size * train.mean_length
        seconds = planned_seconds(num_tokens, peak, accelerator.device)
        processes = accelerator.num_processes
        return compiles(
            arguments.torch_compile, accelerator.device, seconds, is_split=is_split, num_processes=processes
        )

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
        momentum=arguments.muon_momentum,
        matrix_dtype=dtype,
    )


def prepare_model(model: PreTrainedModel, arguments: TrainArguments) -> PreTrainedModel:
    """Switch on gradient checkpointing and compilation as asked, and training mode; returns the model."""
    set_gradient_checkpointing(model, arguments.gradient_checkpointing)
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
