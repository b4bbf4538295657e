"""PEFT's adapters find their targets in our models, and compute what they promise."""

import peft
import pytest
import torch

from hf_scratch_gpt.modeling_scratch_gpt import rotate
from tests.support.tiny import BATCH, GPT2, SEQ, SLIDING, assert_same, tiny_ids, tiny_model

# asked by PEFT
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROMPT = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2)
NO_BIASES = {**GPT2, "attention_bias": False}
CONFIGS = {
    "lora": peft.LoraConfig(task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
    "vera": peft.VeraConfig(task_type="CAUSAL_LM"),
    "adalora": peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=10),
    "layer norms": peft.LNTuningConfig(task_type="CAUSAL_LM"),
    "fourier": peft.FourierFTConfig(task_type="CAUSAL_LM", n_frequency=10),
    "adaption prompt": PROMPT,
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type.*Norm:UserWarning")  # PEFT warns about Llama's too
@pytest.mark.parametrize("shape", [{}, NO_BIASES, SLIDING], ids=["default", "gpt2", "sliding"])
@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_have_default_targets(name, shape):
    adapted, ids = peft.get_peft_model(tiny_model(**shape), CONFIGS[name]), tiny_ids()
    before = {name: tensor.clone() for name, tensor in adapted.named_parameters()}
    optimizer = torch.optim.AdamW([tensor for tensor in adapted.parameters() if tensor.requires_grad], 0.05)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.02
    trained = {name for name, tensor in adapted.named_parameters() if tensor.requires_grad}
    assert all(torch.equal(tensor, before[name]) != (name in trained) for name, tensor in adapted.named_parameters())


@pytest.mark.parametrize("shape", [{}, NO_BIASES], ids=["default", "gpt2"])
def test_an_adaption_prompt_adds_gated_attention_to_learned_tokens(shape, tmp_path):
    model, ids, inputs = tiny_model(**shape), tiny_ids(), torch.randn(BATCH, SEQ, 48)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(ids).logits
        adapted = peft.get_peft_model(model, PROMPT)
        assert_same(adapted(ids).logits, before)  # the gate is zero at first
        for name, parameter in adapted.named_parameters():
            if "adaption" in name:
                parameter += torch.randn(parameter.shape)
        rotary = None if shape else model.model.rotary_emb(inputs, torch.arange(SEQ)[None])
        attention = model.model.layers[-1].self_attn
        plain, _ = attention.model(inputs, position_embeddings=rotary)
        output, _ = attention(hidden_states=inputs, position_embeddings=rotary)
        assert_same(output, plain + attention.adaption_gate * attended_prompt(attention, inputs, rotary))
        adapted.save_pretrained(tmp_path)
        expected = adapted(ids).logits
        assert not torch.allclose(expected, before, atol=0.1)
        again = tiny_model(**shape)
        again.load_state_dict(weights)
        assert_same(peft.PeftModel.from_pretrained(again, tmp_path)(ids).logits, expected)


def attended_prompt(adapted, inputs, rotary):
    """The attention of each head to the prompt alone, projected."""
    module, heads = adapted.model, []
    query = module.q_norm(module.q_proj(inputs).view(BATCH, SEQ, 6, 8))
    query = query if rotary is None else rotate(query, *rotary)
    key, value = (project(adapted.adaption_prompt).view(3, 3, 8) for project in (module.k_proj, module.v_proj))
    for head in range(6):
        weights = (query[:, :, head] @ key[:, head // 2].T / 8**0.5).softmax(-1)
        heads.append(weights @ value[:, head // 2])
    return module.o_proj(torch.cat(heads, dim=-1))


def test_an_adaption_prompt_refuses_biases():
    adapted = peft.get_peft_model(tiny_model(**GPT2), PROMPT)
    with pytest.raises(ValueError, match="AdaptionPrompt requires a model with attention_bias=False"):
        adapted(tiny_ids())


def test_layers_can_be_replicated():
    """PEFT repeats layers and sets `num_hidden_layers`; the layer types follow."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", layer_replication=[[0, 3], [1, 4]])
    model, ids = tiny_model(), tiny_ids()
    with torch.no_grad():
        expected = model.model.embed_tokens(ids)
        rotary = model.model.rotary_emb(expected, torch.arange(5)[None])
        for number in (0, 1, 2, 1, 2, 3):
            expected = model.model.layers[number](expected, position_embeddings=rotary)
        adapted = peft.get_peft_model(model, config)
        assert_same(adapted(ids).logits, model.lm_head(model.model.norm(expected)))
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = adapted.generate(input_ids=ids, **settings)
    assert torch.equal(cached, adapted.generate(input_ids=ids, use_cache=False, **settings))
