"""The settings of fine-tuning: the base model, what of it is trained, and for how long."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from .arguments import TrainArguments, check_at_least, option, required, without_effect

DEFAULT_EPOCHS = 3.0
NUM_EVALUATIONS = 10  # of a run that does not say how often
# settings that only some value of --trainable has a use for
OF_TRAINABLE = {"num_blocks": "blocks", "lora_rank": "lora", "lora_alpha": "lora", "lora_dropout": "lora"}


@dataclass
class BaseArguments:
    """The model to start from, and what of it is trained."""

    model: str = required("Pretrained model to start from: its folder, or its name on the Hugging Face Hub.")
    tokenizer: str | None = option("Folder or name of its tokenizer, where that is not beside the model.")
    random_weights: bool = option("Take only shape and tokenizer of --model, and begin with new weights.", False)
    config_overrides: str | None = option('Changes to the config of --model, such as "residual_dropout=0.1".')
    trainable: Literal["all", "blocks", "head", "lora"] = option(
        "all: every weight; blocks: the last --num_blocks and what lies above them; head: the new head alone; "
        "lora: low-rank adapters beside all matrices (needs peft).",
        "all",
    )
    num_blocks: int | None = option("Blocks to train with --trainable blocks; without it 1.")
    lora_rank: int | None = option("Rank of the adapters; without it 8.")
    lora_alpha: float | None = option("Adapters are scaled by lora_alpha / lora_rank; without it twice the rank.")
    lora_dropout: float | None = option("Dropout before the adapters; without it 0.")

    def __post_init__(self) -> None:
        check_at_least(self, {"num_blocks": 1, "lora_rank": 1, "lora_alpha": 0, "lora_dropout": 0})
        for name, where in OF_TRAINABLE.items():
            if getattr(self, name) is not None and self.trainable != where:
                raise ValueError(without_effect(name, getattr(self, name), f"with --trainable {where}"))
        if self.lora_dropout is not None and self.lora_dropout >= 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}: it must lie below 1.")
        if self.random_weights and self.trainable != "all":
            raise ValueError(f"--random_weights with --trainable {self.trainable} would keep most weights random.")

    def check_engine(self, arguments: TrainArguments) -> None:
        """Refuses adapters in a split model.

        Raises:
            ValueError: the settings that do not go together.
        """
        for name in ("fsdp_size", "tp_size"):
            if self.trainable == "lora" and getattr(arguments, name) > 1:
                raise ValueError(f"--trainable lora does not go with --{name} {getattr(arguments, name)} yet: use DDP.")


@dataclass
class TuneArguments(TrainArguments):
    """How a pretrained model is trained on; the base class says the rest."""

    num_epochs: float | None = option("Passes over the training examples; without it (and --max_steps) 3.")
    max_steps: int | None = option("Optimizer steps of the whole run, instead of --num_epochs.")  # type: ignore[assignment]
    optimizer: Literal["muon", "adamw"] = option(
        "muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all.", "adamw"
    )
    learning_rate: float = option("Peak learning rate.", 3e-4)
    weight_decay: float = option("Decoupled weight decay of matrices and embeddings.", 0.01)
    adam_beta2: float = option("Decay of AdamW's mean of squared gradients.", 0.98)
    eval_every: int | None = option(  # type: ignore[assignment]
        "Steps between two evaluations; without it a tenth of the run; 0: only before the first and after the last."
    )
    save_every: int | None = option(  # type: ignore[assignment]
        "Steps between two checkpoints; without it as --eval_every, so that the best one can be kept."
    )
    eval_sequences: int = option("Validation examples per evaluation; 0: all.", 0)
    final_weights: Literal["best", "last"] = option(
        "Weights of the model: those with the lowest validation loss, or those after the last step.", "best"
    )

    def __post_init__(self) -> None:
        if self.num_epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"--num_epochs ({self.num_epochs}) and --max_steps ({self.max_steps}) both say how long to train: "
                "give one of them."
            )
        if self.num_epochs is not None and not 0 < self.num_epochs < math.inf:
            raise ValueError(f"--num_epochs is {self.num_epochs}: it must be a positive number.")
        super().__post_init__()

    @property
    def num_warmup_steps(self) -> int:
        """`warmup_steps` or its default; 0 while nobody knows how many steps there are."""
        return 0 if self.max_steps is None else super().num_warmup_steps

    def _check_steps_and_batch(self) -> None:
        if self.max_steps is not None:
            super()._check_steps_and_batch()
        else:
            self.check_processes(num_processes=1)

    def for_examples(self, num_examples: int) -> "TuneArguments":
        """The same settings with all that follows from the number of training examples filled in."""
        steps = self.max_steps
        if steps is None:
            epochs = DEFAULT_EPOCHS if self.num_epochs is None else self.num_epochs
            steps = max(1, math.ceil(epochs * num_examples / self.batch_size))
        every = math.ceil(steps / NUM_EVALUATIONS) if self.eval_every is None else self.eval_every
        saves = every if self.save_every is None else self.save_every
        filled: dict[str, Any] = {"num_epochs": None, "max_steps": steps, "eval_every": every, "save_every": saves}
        return replace(self, **filled)
