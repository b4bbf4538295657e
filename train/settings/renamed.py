"""Old names of options. A recipe that uses one gets an error with the new name; CONTRIBUTING.md has the same table."""

# old name -> new names, of which each command knows at most one
RENAMED: dict[str, tuple[str, ...]] = {
    "batch_size": ("global_batch_size", "micro_batch_size"),
    "schedule": ("lr_scheduler_type",),
    "final_learning_rate_ratio": ("min_lr_ratio",),
    "log_every": ("logging_steps",),
    "eval_every": ("eval_steps",),
    "save_every": ("save_steps",),
    "eval_sequences": ("max_eval_samples",),
    "keep_checkpoints": ("save_total_limit",),
    "final_weights": ("load_best_model_at_end",),
    "num_epochs": ("num_train_epochs",),
    "sample_tokens": ("max_new_tokens",),
    "compile": ("torch_compile",),
    "process_timeout": ("ddp_timeout",),
    "fsdp_size": ("dp_shard_size",),
    "fsdp_keep_weights": ("reshard_after_forward",),
    "lora_rank": ("lora_r",),
    "num_blocks": ("num_trainable_layers",),
    "dataset": ("dataset_name",),
    "dataset_config": ("dataset_config_name",),
    "data": ("train_file",),
    "validation_data": ("validation_file",),
    "test_data": ("test_file",),
    "context": ("block_size",),
    "leave_out": ("skip_steps",),
    "folder": ("folder_path",),
    "message": ("commit_message",),
    "runs": ("output_dir",),
    "output": ("report_file",),
}
# new names whose values changed too
RENAMED_VALUES = {
    "load_best_model_at_end": " (best: true, last: false)",
    "reshard_after_forward": " (true and false are swapped)",
}
