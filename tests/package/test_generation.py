"""Decoding: every cache and every strategy gives the same tokens as plain forward passes."""

import threading

import pytest
import torch
import transformers
from packaging import version
from transformers import GenerationConfig, TextIteratorStreamer
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.streamers import BaseStreamer

from tests.support.tiny import BATCH, POSITIONS, SLIDING, VARIANTS, assert_same, shake, tiny_ids, tiny_model

NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def greedy_by_hand(model, ids, length=NEW):
    """Append the most likely token `length` times, without a cache."""
    with torch.no_grad():
        for _ in range(length):
            best = model(ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat((ids, best[:, None]), dim=1)
    return ids


def padded(rows):
    """Rows of different lengths, padded on the left, and their attention mask."""
    length = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (length - row.shape[1], 0)) for row in rows])
    mask = torch.cat([(torch.arange(length) >= length - row.shape[1])[None].long() for row in rows])
    return ids, mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_logits_equal_uncached_ones(variant, implementation):
    model, ids = tiny_model(**VARIANTS[variant], attn_implementation=implementation), tiny_ids(seq=12)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        parts = [model(part, past_key_values=cache).logits for part in ids.split([5, 1, 1, 3, 2], dim=1)]
    assert cache.get_seq_length() == 12
    assert_same(torch.cat(parts, dim=1), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_equals_the_loop_by_hand(variant):
    model, ids = tiny_model(**VARIANTS[variant]), tiny_ids()
    expected = greedy_by_hand(model, ids)
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    assert torch.equal(model.generate(ids, **GREEDY, use_cache=False), expected)


@pytest.mark.parametrize(("implementation", "use_cache"), [("sdpa", True), ("sdpa", False), ("eager", True)])
@pytest.mark.parametrize("overrides", [*({"position_embedding_type": p} for p in POSITIONS), SLIDING])
def test_left_padded_batches_generate_what_single_rows_do(overrides, implementation, use_cache):
    model = tiny_model(**overrides, attn_implementation=implementation)
    rows = [tiny_ids(1, length, seed=length) for length in (3, 8, 5)]
    ids, mask = padded(rows)
    together = model.generate(ids, attention_mask=mask, **GREEDY, use_cache=use_cache)
    for row, result in zip(rows, together, strict=True):
        assert torch.equal(result[-NEW:], greedy_by_hand(model, row)[0, -NEW:])


@pytest.mark.parametrize("position", POSITIONS)
def test_left_padding_changes_no_logits(position):
    """Without `generate`, which computes the positions itself."""
    model = tiny_model(position_embedding_type=position)
    rows = [tiny_ids(1, length, seed=length) for length in (3, 8, 5)]
    ids, mask = padded(rows)
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        for row, logits in zip(rows, together, strict=True):
            assert_same(logits[-row.shape[1] :], model(row).logits[0])


@pytest.mark.parametrize("position", POSITIONS)
def test_padded_rows_continue_from_a_cache_without_positions(position):
    model = tiny_model(position_embedding_type=position)
    ids, mask = padded([tiny_ids(1, length, seed=length) for length in (6, 8)])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache)
        actual = model(ids[:, 5:], attention_mask=mask, past_key_values=cache).logits
    assert_same(actual, expected[:, 5:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_static_cache(variant):
    model, ids = tiny_model(**VARIANTS[variant]), tiny_ids()
    expected = greedy_by_hand(model, ids)
    assert torch.equal(model.generate(ids, **GREEDY, cache_implementation="static"), expected)
    rows = [tiny_ids(1, length, seed=length) for length in (3, 8)]
    ids, mask = padded(rows)
    together = model.generate(ids, attention_mask=mask, **GREEDY, cache_implementation="static")
    for row, result in zip(rows, together, strict=True):
        assert torch.equal(result[-NEW:], greedy_by_hand(model, row)[0, -NEW:])


def test_a_sliding_cache_holds_the_window_and_generates_beyond_it():
    model, ids = tiny_model(**SLIDING), tiny_ids()
    output = model.generate(ids, **GREEDY, return_dict_in_generate=True)
    assert torch.equal(output.sequences, greedy_by_hand(model, ids))
    lengths = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert lengths == [2, 12, 2, 12]  # a window of 3 sees 2 earlier tokens
    full = tiny_model()
    full.load_state_dict(model.state_dict())
    assert not torch.equal(output.sequences, greedy_by_hand(full, ids))  # the window matters


def test_the_cache_that_forward_makes_knows_the_windows():
    model, ids = tiny_model(**SLIDING), tiny_ids()
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        assert [layer.keys.shape[-2] for layer in cache.layers] == [2, 5, 2, 5]
        assert model(ids[:, :1], past_key_values=cache, use_cache=False).past_key_values is None


@pytest.mark.slow  # the first time, quanto compiles its extension
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # of quanto
def test_quantized_cache():
    pytest.importorskip("optimum.quanto")
    model, ids = tiny_model(num_key_value_heads=6, head_dim=16), tiny_ids(4)
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4}
    output = model.generate(ids, **GREEDY, cache_implementation="quantized", cache_config=settings)
    assert output.shape == (4, 5 + NEW)
    expected = greedy_by_hand(model, ids)
    assert torch.equal(output[:, :6], expected[:, :6])  # the prompt is not quantized when the first token is chosen
    assert (output == expected).float().mean() > 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("variant", ["default", "gpt2", "sliding"])
def test_compiled_as_one_graph(variant):
    model, ids = tiny_model(**VARIANTS[variant]), tiny_ids()
    expected = model.generate(ids, **GREEDY)
    torch.compiler.reset()
    with torch.no_grad():
        logits = model(ids).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(compiled(ids, use_cache=False).logits, logits)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(model.generate(ids, **GREEDY, cache_implementation="static"), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_by_inductor():
    model, ids = tiny_model(num_hidden_layers=1), tiny_ids()
    torch.compiler.reset()
    cache = StaticCache(config=model.config, max_cache_len=32)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_same(compiled(ids, past_key_values=cache).logits, model(ids).logits)


# ----------------------------------------------------------------------------------------------------------------------
# Strategies
# ----------------------------------------------------------------------------------------------------------------------


def log_probability(model, ids, start):
    """Log-probability of the tokens from `start` on, given the earlier ones."""
    with torch.no_grad():
        scores = model(ids, use_cache=False).logits[:, start - 1 : -1].log_softmax(-1)
    return scores.gather(-1, ids[:, start:, None]).sum((1, 2))


def test_beam_search_is_at_least_as_likely_as_greedy():
    model, ids = tiny_model(), tiny_ids()
    beams = model.generate(ids, **GREEDY, num_beams=8)
    likely, greedy = log_probability(model, beams, 5), log_probability(model, greedy_by_hand(model, ids), 5)
    assert (likely >= greedy - 1e-4).float().mean() > 0.7  # beam search is a heuristic
    assert likely.sum() > greedy.sum()
    uncached = model.generate(ids, **GREEDY, num_beams=8, use_cache=False)
    assert torch.equal(beams, uncached)


def test_sampling_follows_the_seed():
    model, ids = tiny_model(), tiny_ids()
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(model.generate(ids, **{**GREEDY, "do_sample": True}, top_k=20, top_p=0.9, temperature=1.5))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_assisted_decoding_and_prompt_lookup_change_nothing():
    model, ids = tiny_model(), tiny_ids(1)
    expected = greedy_by_hand(model, ids)
    assistant = shake(tiny_model())
    assert torch.equal(model.generate(ids, **GREEDY, assistant_model=assistant), expected)
    assert torch.equal(model.generate(ids, **GREEDY, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("overrides", [{}, SLIDING, {"position_embedding_type": "learned"}])
def test_drafting_with_the_first_layers_changes_nothing(overrides):
    if overrides == SLIDING and version.parse(transformers.__version__) < version.parse("5.23"):
        pytest.skip("transformers before 5.23 cannot crop the cache of a sliding layer that drafting does not use")
    model, ids = tiny_model(**overrides), tiny_ids(1)
    expected = greedy_by_hand(model, ids)
    assert torch.equal(model.generate(ids, **GREEDY, assistant_early_exit=1), expected)
    assert model.config.num_hidden_layers == 4
    assert torch.equal(model.generate(ids, **GREEDY), expected)


class Collect(BaseStreamer):
    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids.extend(value.flatten().tolist())

    def end(self):
        self.ids.append("end")


def test_streamers_see_every_token():
    model, ids = tiny_model(), tiny_ids(1)
    expected = greedy_by_hand(model, ids)[0].tolist()
    collect = Collect()
    model.generate(ids, **GREEDY, streamer=collect)
    assert collect.ids == [*expected, "end"]


class Numbers:
    """The part of a tokenizer that a streamer uses."""

    def decode(self, ids, **kwargs):
        return "".join(f"{int(token)} " for token in ids)


def test_text_can_be_streamed_from_another_thread():
    model, ids = tiny_model(), tiny_ids(1)
    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs={**GREEDY, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(token) for token in greedy_by_hand(model, ids)[0, 5:].tolist()]


@pytest.mark.parametrize("overrides", [{}, {"position_embedding_type": "learned"}])
def test_continuous_batching_equals_generate(overrides):
    model = tiny_model(**overrides)
    prompts = [tiny_ids(1, length, seed=length)[0].tolist() for length in (3, 8, 5)]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64)
    outputs = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=batching)
    assert len(outputs) == 3
    for output in outputs.values():
        expected = greedy_by_hand(model, torch.tensor([output.prompt_ids]))
        assert output.generated_tokens == expected[0, -NEW:].tolist()


def test_generation_from_embeddings():
    model, ids = tiny_model(), tiny_ids()
    embeds = model.get_input_embeddings()(ids)
    output = model.generate(inputs_embeds=embeds, attention_mask=torch.ones(BATCH, 5), **GREEDY)
    assert torch.equal(output, greedy_by_hand(model, ids)[:, 5:])
