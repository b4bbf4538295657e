"""Folders with tiny models and tokenizers, to be converted to GGUF."""

import functools
import itertools
import pydoc_data.topics
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from hf_scratch_gpt import ScratchGPTTokenizer
from hf_scratch_gpt.tokenization_scratch_gpt import SETTINGS, SPECIAL_TOKENS, SPLIT_PATTERN
from tests.support.tiny import GPT2, tiny_model

ROPE = {"rope_theta": 1000.0}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
LLAMA = {"qk_norm": False}
GPT2_HEADS = {**GPT2, "num_key_value_heads": 4, "head_dim": 16}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 24}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
SHAPES = {
    "qwen3": {},
    "qwen3-untied": {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "qwen3-all-keys": {"num_key_value_heads": 4, "head_dim": 16},
    "qwen3-linear": {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
    "qwen3-yarn": {"rope_parameters": YARN},
    "qwen3-yarn-attention": {"rope_parameters": {**YARN, "attention_factor": 1.5}},
    "llama": LLAMA,
    "llama-untied": {**LLAMA, "tie_word_embeddings": False, "num_key_value_heads": 4, "head_dim": 16},
    "llama-biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama-linear": {**LLAMA, "rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
    "llama-yarn": {**LLAMA, "rope_parameters": YARN},
    "llama-yarn-range": {**LLAMA, "rope_parameters": {**YARN, "beta_fast": 4, "beta_slow": 2}},
    "llama-llama3": {**LLAMA, "rope_parameters": LLAMA3},
    "gpt2": GPT2_HEADS,
    "gpt2-grouped-untied": {**GPT2_HEADS, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt2-without-biases": {**GPT2_HEADS, "attention_bias": False, "mlp_bias": False},
}


@functools.cache
def english_tokenizer():
    """2,000 tokens, learned from the reference of Python."""
    return ScratchGPTTokenizer.train_from_texts(pydoc_data.topics.topics.values(), 2000, show_progress=False)


def pairs_tokenizer(pre_tokenizer, num_merges=20000):
    """Merges any two bytes of the same word, so that ids show where words end, whatever the text.

    No merges lead to its token "hello": only a tokenizer that ignores merges finds it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.product(alphabet, alphabet))
    Random(0).shuffle(merges)
    merges = merges[:num_merges]
    tokens = [*SPECIAL_TOKENS, *alphabet, *map("".join, merges), "hello"]
    backend = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return ScratchGPTTokenizer(tokenizer_object=backend, **SETTINGS)


def split_by(pattern=SPLIT_PATTERN):
    """The pre-tokenizer of most byte-level tokenizers."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save_model(folder, tokenizer=None, **overrides):
    """A folder with a model that has seven rows more than tokens; returns the model and the tokenizer."""
    tokenizer = tokenizer or english_tokenizer()
    model = tiny_model(**{**SIZES, "vocab_size": len(tokenizer) + 7, "pad_token_id": 1, **overrides})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
