"""Options of `plan`: the run and its hardware."""

from dataclasses import asdict, dataclass
from typing import Literal

from .checks import requires
from .defaults import PLANNED_BATCH
from .recipe import option
from .training import GRADIENT_CHECKPOINTING, GradientCheckpointing

FP32 = 4  # bytes


@dataclass
class PlanArguments:
    """The run and its hardware. Options that pretrain has too have the same meaning."""

    num_gpus: int = option("Number of GPUs, with one process each.", 1)
    dp_shard_size: int = option("Processes over which FSDP2 shards weights, gradients and optimizer state.", 1)
    tp_size: int = option("Processes over which each matrix of a layer is split (tensor parallelism).", 1)
    gpu_memory_gb: float = option("Memory of one GPU, in 10^9 bytes.", 80.0)
    micro_batch_size: int = option("Sequences per forward pass of one process.", 8)
    global_batch_size: int = option("Sequences per step, over all processes.", PLANNED_BATCH)
    block_size: int = option("Tokens per sequence.", 1024)
    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the layers, AdamW for the rest; adamw: AdamW for all.", "muon"
    )
    precision: Literal["bf16", "fp16", "fp32"] = option("Number format of the forward pass.", "bf16")
    gradient_checkpointing: GradientCheckpointing = option(GRADIENT_CHECKPOINTING, "false")
    max_steps: int = option("Optimizer steps of the whole run.", 1000)
    tokens: float | None = option("Tokens of the whole run, such as 1e10; replaces --max_steps.")
    tflops: float | None = option("Matrix multiplication speed of one GPU, in 10^12 FLOPs per second.")
    mfu: float = option("Assumed model FLOPs utilization: the fraction of --tflops that training reaches.", 0.4)
    bandwidth_gb_per_second: float | None = option("Bandwidth from one GPU to the others, in 10^9 bytes per second.")
    overlap: float = option("Assumed fraction of the traffic that overlaps with computation.", 0.0)
    save_seconds: float | None = option("Seconds that training waits for a checkpoint.")
    hours_between_failures: float | None = option("Mean hours between two failures of one GPU or its machine.")
    measure: bool = option(
        "With one process and without --tflops: time a few steps on this machine, if the model fits into its memory.",
        True,
    )

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0 and name != "overlap":
                raise ValueError(f"--{name} is {value}: it must be positive.")
        for name in ("mfu", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: it must be between 0 and 1.")
        if self.num_gpus % (parts := self.dp_shard_size * self.tp_size):
            raise ValueError(
                f"--num_gpus ({self.num_gpus}) must be a multiple of --dp_shard_size ({self.dp_shard_size}) x "
                f"--tp_size ({self.tp_size}) = {parts}: change one of them."
            )
        if self.global_batch_size % (at_once := self.micro_batch_size * self.data_size):
            raise ValueError(
                f"--global_batch_size ({self.global_batch_size}) must be a multiple of --micro_batch_size "
                f"({self.micro_batch_size}) x data-parallel processes ({self.data_size}) = {at_once}: change one of "
                "them."
            )
        if self.tflops and self.num_gpus > 1 and not self.bandwidth_gb_per_second:
            condition = f"--bandwidth_gb_per_second with --num_gpus {self.num_gpus}"
            raise ValueError(requires("tflops", self.tflops, condition))
        if self.save_seconds and not self.hours_between_failures:
            raise ValueError(requires("save_seconds", self.save_seconds, "--hours_between_failures"))
        if self.hours_between_failures and not self.save_seconds:
            raise ValueError(requires("hours_between_failures", self.hours_between_failures, "--save_seconds"))

    @property
    def data_size(self) -> int:
        """Number of processes that see different examples."""
        return self.num_gpus // self.tp_size

    @property
    def num_micro_batches(self) -> int:
        """Forward passes of one process per step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_size)

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens per forward pass."""
        return self.micro_batch_size * self.block_size

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in matrix products."""
        return FP32 if self.precision == "fp32" else 2
