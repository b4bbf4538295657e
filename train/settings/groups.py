"""The groups of options in `--help`: an option with the same name is in the same group of every command."""

from collections.abc import Iterable

from .options import Option

GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        *("model", "config", "config_overrides", "tokenizer", "pattern", "random_weights", "folder_path", "repo_id"),
        *("type", "vocab_size", "model_max_length", "local_dir", "force_download", "quantization"),
    ),
    "trained parameters": ("trainable", "num_trainable_layers", "lora_r", "lora_alpha", "lora_dropout"),
    "data": (
        *("data_dir", "text", "train_file", "dataset_name", "dataset_config_name", "dataset_split", "streaming"),
        *("text_column", "label_column", "columns", "suffixes", "encoding", "keep_crlf", "strip_gutenberg"),
        *("file", "validation_text", "validation_file", "validation_part"),
        *("validation_split", "validation_fraction", "test_file", "test_split", "test_fraction", "pairs"),
        *("too_long", "packing", "chat_template", "class_weights", "bpe_dropout"),
    ),
    "run folder": ("output_dir", "allow_change", "seed"),
    "length and batch": (
        *("minutes", "flops", "max_steps", "num_train_epochs", "tokens", "global_batch_size", "micro_batch_size"),
        *("block_size", "max_length"),
    ),
    "optimizer": (
        *(
            "optimizer",
            "learning_rate",
            "matrix_learning_rate",
            "muon_momentum",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
        ),
        *("lr_scheduler_type", "warmup_steps", "decay_fraction", "min_lr_ratio", "max_grad_norm", "spike_sigmas"),
        "max_skipped",
    ),
    "engine": (
        *("precision", "torch_compile", "gradient_checkpointing", "dp_shard_size", "reshard_after_forward", "tp_size"),
        *("ddp_timeout", "num_gpus"),
    ),
    "hardware": (
        *("gpu_memory_gb", "tflops", "mfu", "bandwidth_gb_per_second", "overlap", "save_seconds"),
        "hours_between_failures",
    ),
    "evaluation and samples": (
        *("eval_steps", "max_eval_samples", "load_best_model_at_end", "sample_prompts", "max_new_tokens"),
    ),
    "sampling": (
        *(
            "prompt",
            "system",
            "num_samples",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "stop",
            "show_top",
        ),
    ),
    "checkpoints": ("save_steps", "save_total_limit", "async_save", "to_step", "skip_steps"),
    "logging": ("logging_steps", "report_to"),
}
OTHERS = "options"
FEW = 10  # so many options need no groups


def group_of(name: str) -> str:
    """The title of an option's group."""
    return next((title for title, names in GROUPS.items() if name in names), OTHERS)


def grouped(options: Iterable[Option]) -> list[tuple[str, list[Option]]]:
    """The groups of a command with their options, those that must be given first."""
    options = sorted(options, key=lambda option: not option.required)
    if len(options) <= FEW:
        return [(OTHERS, options)]
    found = {title: [option for option in options if group_of(option.name) == title] for title in (*GROUPS, OTHERS)}
    return [(title, in_order(title, some)) for title, some in found.items() if some]


def in_order(title: str, options: Iterable[Option]) -> list[Option]:
    """The options of a group: those that must be given first, the others as in GROUPS."""
    names = GROUPS.get(title, ())
    return sorted(options, key=lambda option: (not option.required, option.name in names and names.index(option.name)))
