"""A model that is saved in milliseconds, and its checkpoints."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from train.checkpoint import manifest
from train.checkpoint.find import checkpoint_folder
from train.checkpoint.weights import named_weights
from train.checkpoint.write import Contents, write_checkpoint

SETTINGS = {"seed": 1, "model": {"hidden_size": 16}}


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def save(run, step, model=None, keep=10, eval_loss=None, eval_step=None):
    """Write the checkpoint of a step, in which the optimizer state is that number."""
    model = model or tiny_model(step)
    optimizer = {"model.norm.weight.exp_avg": torch.full((16,), float(step))}
    facts = {
        "format": manifest.FORMAT, "step": step, "versions": manifest.versions(), "num_processes": 1,
        "state": {"step": step, "eval_step": eval_step or step, "eval_loss": eval_loss}, "settings": SETTINGS,
    }  # fmt: skip
    write_checkpoint(run, Contents(model, named_weights(model), optimizer, facts), keep)
    return checkpoint_folder(run, step)
