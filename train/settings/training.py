"""Options of pretraining, and those that every kind of training shares."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from .checks import check_bounds, requires
from .recipe import option, option_list, required

# of hf_scratch_gpt.PRESETS, which cannot be imported without torch
PRESET_NAMES = ("tiny", "laptop", "small", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama3-1b")

GradientCheckpointing = Literal["false", "selective", "true"]
GRADIENT_CHECKPOINTING = (
    "Recompute activations in the backward pass instead of storing them. true: everything inside a layer, which takes "
    "a second forward pass. selective: only what is cheap; most results of matrix products and attention are stored."
)


@dataclass
class ModelArguments:
    """The model to build."""

    config: str | None = required(
        f"Shape of a new model: a preset ({', '.join(PRESET_NAMES)}), a config.json, or its folder.",
        is_path=True,
        unless=("model", "minutes", "flops"),
    )
    config_overrides: str | None = option(
        'Changes to the config, such as "num_hidden_layers=4,qk_norm=false" or "residual_dropout=0.1".'
    )
    model: str | None = option(
        "Instead of --config: start from the weights of this model, a folder or a name on the Hugging Face Hub. The "
        "data must have been prepared with its tokenizer.",
        is_path=True,
    )

    def __post_init__(self) -> None:
        if self.config and self.model:
            raise ValueError(f"--config {self.config} and --model {self.model}: give only one of them.")


@dataclass
class BudgetArguments:
    """What the training is worth. The model, batch, steps and learning rates follow from it, unless they are given."""

    minutes: float | None = option(
        "Train for about this many minutes on this machine. Chooses the model, the batch, the number of steps and the "
        "learning rates. Options that you set are kept, but --max_steps cannot be set."
    )
    flops: float | None = option("The same for a number of floating-point operations, such as 1e15.")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}: it must be positive.")
        if self.minutes and self.flops:
            raise ValueError(f"--minutes {self.minutes:g} and --flops {self.flops:g}: give only one of them.")

    @property
    def is_given(self) -> bool:
        """Whether there is a budget."""
        return bool(self.minutes or self.flops)


@dataclass
class DataArguments:
    """The data to train on."""

    data_dir: str = required("Folder written by scratch-gpt prepare_data.", is_path=True)


@dataclass
class LoopArguments:
    """How a model is trained: the options that pretraining and fine-tuning share."""

    output_dir: str = required("Run folder. If it contains a run, that run is continued.", is_path=True)
    seed: int = option("Seed of initial weights, order of examples and dropout.", 0)
    global_batch_size: int | None = option("Sequences per step, over all processes and micro-batches.", 32)
    micro_batch_size: int | None = option("Sequences per forward pass of one process.", 8)
    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the layers, AdamW for the rest; adamw: AdamW for all.", "muon"
    )
    learning_rate: float | None = option(
        "Peak learning rate of AdamW (default: by optimizer and width of the model; laptop with muon: 2e-2)."
    )
    matrix_learning_rate: float | None = option(
        "Peak learning rate of Muon (default: --learning_rate; if that is not given either, by width; laptop: 8e-3)."
    )
    muon_momentum: float = option("Momentum of Muon; short runs with small batches do better with 0.9.", 0.95)
    weight_decay: float = option("Decoupled weight decay of matrices and embeddings.", 0.1)
    adam_beta1: float = option("AdamW's beta1.", 0.9)
    adam_beta2: float = option("AdamW's beta2.", 0.95)
    lr_scheduler_type: Literal["cosine", "wsd"] = option(
        "After warmup: cosine decay, or constant and then linear decay (wsd).", "cosine"
    )
    warmup_steps: int | None = option("Steps of linear warmup (default: a tenth of all steps, at most 100).")
    decay_fraction: float | None = option("Fraction of steps in the WSD decay phase (default: 0.2).")
    min_lr_ratio: float = option("Final learning rate as a fraction of the peak.", 0.1)
    max_grad_norm: float = option("Clip the gradient norm to this value; 0 disables clipping.", 1.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "Number format of the forward pass. auto: the setting of accelerate launch if there is one, else bf16 if the "
        "hardware supports it, else fp32.",
        "auto",
    )
    torch_compile: Literal["auto", "true", "false"] = option(
        "Compile the model with torch.compile. auto: if pretraining would otherwise take 150 seconds on a CUDA GPU, or "
        "20 minutes on a CPU.",
        "auto",
    )
    gradient_checkpointing: GradientCheckpointing = option(GRADIENT_CHECKPOINTING, "false")
    dp_shard_size: int = option(
        "Processes over which FSDP2 shards weights, gradients and optimizer state; 1 disables sharding.", 1
    )
    reshard_after_forward: bool = option(
        "Let FSDP2 free gathered weights after the forward pass (ZeRO-3) instead of keeping them (ZeRO-2).", True
    )
    tp_size: int = option(
        "Processes over which each matrix of a layer is split (tensor parallelism); 1 disables it.", 1
    )
    ddp_timeout: float = option("Seconds to wait for another process before it is considered hung.", 600.0)
    spike_sigmas: float = option(
        "Skip updates whose loss or gradient norm is this many standard deviations above the recent mean, for the "
        "gradient norm at most two in a row; 0 disables it. Non-finite updates are always skipped.",
        6.0,
    )
    max_skipped: int = option("Stop the run after this many skipped updates in a row.", 5)
    logging_steps: int | None = option("Steps between log lines.", 10)
    async_save: bool = option("Write checkpoints in the background, from a copy in memory.", False)
    max_eval_samples: int = option("Validation sequences per evaluation; 0: all.", 256)
    save_total_limit: int = option("Number of newest checkpoints to keep, in addition to the best one.", 2)
    allow_change: list[str] = option_list("Names of settings that may change when the run continues.")
    sample_prompts: list[str] = option_list("Prompts to complete at each evaluation.")
    max_new_tokens: int = option("Maximum number of tokens per completion.", 64)
    report_to: str | None = option("Tracker in addition to metrics.jsonl, such as tensorboard, trackio or wandb.")

    def __post_init__(self) -> None:
        check_bounds(self, LOWER_BOUNDS, UPPER_BOUNDS)
        if self.learning_rate == 0 or self.matrix_learning_rate == 0:
            raise ValueError("A learning rate of 0 trains nothing: choose a positive one.")
        if self.optimizer == "adamw" and self.matrix_learning_rate is not None:
            raise ValueError(requires("matrix_learning_rate", self.matrix_learning_rate, "--optimizer muon"))
        if self.optimizer == "adamw" and self.muon_momentum != type(self).muon_momentum:
            raise ValueError(requires("muon_momentum", self.muon_momentum, "--optimizer muon"))
        if not self.reshard_after_forward and self.dp_shard_size == 1:
            raise ValueError(requires("reshard_after_forward", False, "--dp_shard_size above 1"))
        if self.lr_scheduler_type == "cosine" and self.decay_fraction is not None:
            raise ValueError(requires("decay_fraction", self.decay_fraction, "--lr_scheduler_type wsd"))

    @property
    def wsd_decay_fraction(self) -> float:
        """`decay_fraction` or its default. The field stays None in a recipe, so that cosine can refuse it."""
        return 0.2 if self.decay_fraction is None else self.decay_fraction

    def warmup_steps_of(self, max_steps: int) -> int:
        """`warmup_steps`, or its default for a run of `max_steps`."""
        return min(100, max_steps // 10) if self.warmup_steps is None else self.warmup_steps

    def check_schedule(self, max_steps: int) -> None:
        """Refuse warmup and decay that do not fit into `max_steps`.

        Raises:
            ValueError: the three lengths.
        """
        warmup_steps = self.warmup_steps_of(max_steps)
        decay_steps = round(self.wsd_decay_fraction * max_steps) if self.lr_scheduler_type == "wsd" else 0
        if warmup_steps + decay_steps > max_steps:
            raise ValueError(
                f"--warmup_steps ({warmup_steps}) and the decay ({decay_steps} steps) exceed --max_steps "
                f"({max_steps}): lower them or train longer."
            )

    def check_processes(self, num_processes: int) -> None:
        """Refuse a batch that cannot be divided equally among `num_processes`.

        Raises:
            ValueError: global_batch_size is not a multiple of micro_batch_size x processes.
        """
        if self.global_batch_size is None or self.micro_batch_size is None:
            return  # will be chosen to fit
        if self.global_batch_size % (self.micro_batch_size * num_processes):
            raise ValueError(
                f"--global_batch_size ({self.global_batch_size}) must be a multiple of --micro_batch_size "
                f"({self.micro_batch_size}) x processes ({num_processes}) = "
                f"{self.micro_batch_size * num_processes}: change one of them."
            )


@dataclass
class TrainArguments(LoopArguments):
    """How a model is pretrained, and for how long."""

    is_finetuning: ClassVar[bool] = False  # whether training starts from a pretrained model

    global_batch_size: int = option("Sequences per step, over all processes and micro-batches.", 32)
    micro_batch_size: int = option("Sequences per forward pass of one process.", 8)
    logging_steps: int = option("Steps between log lines.", 10)
    max_steps: int = option("Optimizer steps of the whole run.", 1000)
    eval_steps: int = option("Steps between evaluations; 0: only after the last step.", 250)
    save_steps: int = option("Steps between checkpoints; 0: only after the last step.", 250)
    load_best_model_at_end: bool = option(
        "Finish with the weights with the lowest validation loss instead of the last ones.", False
    )

    def __post_init__(self) -> None:
        check_bounds(self, {"max_steps": 1, "eval_steps": 0, "save_steps": 0})
        super().__post_init__()

    def check_lengths(self) -> None:
        """Refuse batches and phases of the schedule that do not fit together, once all are known.

        Raises:
            ValueError: the lengths.
        """
        self.check_processes(num_processes=1)
        self.check_schedule(self.max_steps)

    @property
    def num_warmup_steps(self) -> int:
        """`warmup_steps` or its default."""
        return self.warmup_steps_of(self.max_steps)


AT_LEAST_ONE = (
    *("global_batch_size", "micro_batch_size", "dp_shard_size", "tp_size", "ddp_timeout", "max_skipped"),
    *("logging_steps", "save_total_limit", "max_new_tokens"),
)
AT_LEAST_ZERO = (
    *(
        "seed",
        "learning_rate",
        "matrix_learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "muon_momentum",
        "warmup_steps",
    ),
    *("decay_fraction", "min_lr_ratio", "max_grad_norm", "max_eval_samples", "spike_sigmas"),
)
LOWER_BOUNDS = dict.fromkeys(AT_LEAST_ONE, 1) | dict.fromkeys(AT_LEAST_ZERO, 0)
UPPER_BOUNDS = {
    "muon_momentum": 0.9999,
    "adam_beta1": 0.9999,
    "adam_beta2": 0.999999,
    "decay_fraction": 1,
    "min_lr_ratio": 1,
}

# Settings that may differ when a run continues: what is logged and kept, and how many processes share the work.
# All others are frozen, even those that only affect dropout masks and rounding.
MAY_CHANGE = {
    *("output_dir", "report_to", "logging_steps", "eval_steps", "max_eval_samples", "sample_prompts", "max_new_tokens"),
    *("save_steps", "save_total_limit", "async_save", "allow_change", "max_skipped", "ddp_timeout"),
    *("dp_shard_size", "reshard_after_forward", "tp_size", "gradient_checkpointing", "load_best_model_at_end"),
}


def allowable(kind: type[TrainArguments] = TrainArguments) -> set[str]:
    """The names that --allow_change takes: settings of the loop, the shape of the model, and the data."""
    return {entry.name for entry in fields(kind)} - MAY_CHANGE | {"precision", "model", "data"}


def check_allow_change(names: Sequence[str], kind: type[TrainArguments]) -> None:
    """Refuse unknown names.

    Raises:
        ValueError: the name, and the known ones.
    """
    known = sorted(allowable(kind))
    for name in names:
        if name in MAY_CHANGE:
            raise ValueError(f"--allow_change {name} has no effect: this setting may always change.")
        if name not in known:
            raise ValueError(f"unknown setting {name!r} in --allow_change. Known: {', '.join(known)}.")
