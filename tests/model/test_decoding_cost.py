"""What it costs to generate one more token, without seconds: operations, memory, compilations.

If a change needs fewer operations, lower the numbers. If it needs more, it should be worth it.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CompileConfig, StaticCache
from transformers.cache_utils import DynamicCache

from tests.support.tiny import VARIANTS, tiny_ids, tiny_model
from train.model.int8 import quantize_model

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # whole numbers of 8 bits need rows of 32
LAYERS, KV_HEADS, HEAD_DIM = 4, 3, 8
# operations of a step: of each layer, and of everything else; sliding windows need 2 less since transformers 5.23
OPERATIONS = {"default": (88, 27), "gpt2": (41, 21), "sliding": (93, 54), "int8": (97, 31)}


class Operations(TorchDispatchMode):
    """Counts the operations that torch runs, and the bytes of the tensors that they create."""

    def __init__(self):
        super().__init__()
        self.names, self.num_bytes = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_of((args, kwargs))}
        self.names.append(str(function))
        self.num_bytes += sum(
            tensor.untyped_storage().nbytes()
            for tensor in tensors_of(result)
            if tensor.untyped_storage().data_ptr() not in given
        )
        return result


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def model_of(variant, **overrides):
    model = tiny_model(**{**VARIANTS.get(variant, WIDE), **overrides})
    if variant == "int8":
        quantize_model(model)
    return model


@torch.no_grad()
def steps(model, cache, count):
    """The operations of each of `count` steps after a prompt of 5 tokens."""
    model(tiny_ids(1), past_key_values=cache)
    measured = []
    for _ in range(count):
        with Operations() as operations:
            model(tiny_ids(1, 1), past_key_values=cache, logits_to_keep=1)
        measured.append(operations)
    return measured


@pytest.mark.parametrize("variant", OPERATIONS)
def test_operations_of_a_step(variant):
    counts = {}
    for num_layers in (2, 4):
        types = VARIANTS["sliding"]["layer_types"][:num_layers] if variant == "sliding" else None
        model = model_of(variant, num_hidden_layers=num_layers, layer_types=types)
        numbers = [len(step.names) for step in steps(model, DynamicCache(config=model.config), 4)]
        assert len(set(numbers[1:])) == 1
        counts[num_layers] = numbers[-1]
    per_layer = (counts[4] - counts[2]) // 2
    most_per_layer, most_besides = OPERATIONS[variant]
    assert per_layer <= most_per_layer
    assert counts[4] - 4 * per_layer <= most_besides


@pytest.mark.parametrize("variant", ["default", "gpt2", "int8"])
def test_the_memory_of_a_step_grows_with_nothing_but_the_cache(variant):
    model = model_of(variant)
    static = StaticCache(config=model.config, max_cache_len=20)
    sizes = [step.num_bytes for step in steps(model, static, 12)]
    assert sizes[1:] == sizes[:1] * 11
    kv_heads = model.config.num_key_value_heads
    sizes = [step.num_bytes for step in steps(model, DynamicCache(config=model.config), 12)]
    per_token = LAYERS * kv_heads * HEAD_DIM * 2 * 4  # keys and values in float32
    assert sizes[-1] - sizes[0] == 11 * per_token


# layers with a sliding window keep a number that changes with each token: it becomes a variable when it first does
@pytest.mark.parametrize(("variant", "times"), [("default", 1), ("gpt2", 1), ("int8", 1), ("sliding", 2)])
def test_a_step_is_compiled_once_and_whole(variant, times):
    types = VARIANTS["sliding"]["layer_types"][:2] if variant == "sliding" else None
    model, ids = model_of(variant, num_hidden_layers=2, layer_types=types), tiny_ids(2)
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids, **greedy)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(fullgraph=True, backend=backend, mode=None)  # raises at a graph break
    config._compile_all_devices = True  # otherwise generate compiles on accelerators only
    for _ in range(2):
        compiled = model.generate(ids, **greedy, cache_implementation="static", compile_config=config)
        assert torch.equal(compiled, expected)
    assert len(graphs) == times
