"""Folders that cannot be converted: one sentence that names everything wrong, and nothing is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM
from hf_scratch_gpt.conversion import UnsupportedModelError, export_model, import_model, our_config
from hf_scratch_gpt.conversion.plan import by_layer

SIZES = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}


@pytest.fixture
def gpt2(tmp_path):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(**SIZES)).save_pretrained(folder)
    return folder


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder, message, tmp_path, kind=ValueError):
    """The import fails, and leaves the output folder empty."""
    with pytest.raises(kind, match=message):
        import_model(folder, tmp_path / "output")
    output = tmp_path / "output"
    assert not output.exists() or not any(output.iterdir())


def test_missing_extra_and_misshaped_tensors_are_listed_at_once(gpt2, tmp_path):
    def change(tensors):
        for layer in range(3):
            del tensors[f"transformer.h.{layer}.ln_1.bias"]
        tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(48, 191)
        tensors["transformer.wte.extra"] = torch.zeros(2)

    change_tensors(gpt2, change)
    refused(
        gpt2,
        r"missing: transformer.h.\{0-2\}.ln_1.bias; of another shape: transformer.h.1.mlp.c_fc.weight is \[48, 191\] "
        r"instead of \[48, 192\]; without a place in the model: transformer.wte.extra\.",
        tmp_path,
    )


def test_layers_with_the_same_name_are_listed_once():
    names = ["h.0.a", "h.1.a", "h.2.a", "b", "h.0.c", "h.2.c", "h.7.d", "model/h0/e", "model/h1/e"]
    assert by_layer(names) == ["h.{0-2}.a", "b", "h.{0,2}.c", "h.7.d", "model/h{0-1}/e"]


def test_masks_in_old_files_and_names_without_the_prefix_are_accepted(gpt2, tmp_path):
    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    expected = load_file(gpt2 / "model.safetensors")["transformer.wte.weight"]
    change_tensors(gpt2, change)
    import_model(gpt2, tmp_path / "output")
    assert torch.equal(load_file(tmp_path / "output" / "model.safetensors")["model.embed_tokens.weight"], expected)


def test_a_model_in_several_files(gpt2, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    import_model(tmp_path / "sharded", tmp_path / "output", max_shard_size="50KB")
    files = sorted((tmp_path / "output").glob("*.safetensors"))
    assert len(files) > 5
    assert max(path.stat().st_size for path in files) < 52_000
    ours = ScratchGPTForCausalLM.from_pretrained(tmp_path / "output")
    assert torch.equal(ours.model.embed_tokens.weight, model.transformer.wte.weight)
    assert torch.equal(ours.model.layers[2].mlp.down_proj.weight, model.transformer.h[2].mlp.c_proj.weight.t())


def test_an_index_that_names_a_missing_file_or_tensor(gpt2, tmp_path):
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first = sorted(set(weight_map.values()))[0]
    change_json(index, weight_map=weight_map | {"transformer.h.9.lost": first})
    refused(tmp_path / "sharded", f"lists transformer.h.9.lost, but {first} lacks it", tmp_path)
    (tmp_path / "sharded" / first).unlink()
    refused(tmp_path / "sharded", f"index.json lists {first}, which is missing", tmp_path)
    index.write_text("{")
    refused(tmp_path / "sharded", "index.json is damaged", tmp_path)


def test_truncated_weights(gpt2, tmp_path):
    path = gpt2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(gpt2, "model.safetensors is damaged .*copy or download it again", tmp_path)


def test_pickles_are_refused_with_the_remedy(gpt2, tmp_path):
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model.bin")
    refused(gpt2, r"pickle \(pytorch_model.bin\).*from_pretrained\(folder\).save_pretrained\(new_folder\)", tmp_path)
    (gpt2 / "pytorch_model.bin").unlink()
    refused(gpt2, "has no weights: model.safetensors is missing", tmp_path)


def test_weights_of_another_type(gpt2, tmp_path):
    change_tensors(gpt2, lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(48, dtype=torch.int8)}))
    refused(gpt2, "has tensors of type I8; allowed: F64, F32, F16, BF16", tmp_path)


def test_other_families_and_heads_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    refused(
        tmp_path / "bert",
        "model_type bert is not supported; .* gpt2, llama, qwen2, qwen3",
        tmp_path,
        UnsupportedModelError,
    )
    GPT2DoubleHeadsModel(GPT2Config(**SIZES)).save_pretrained(tmp_path / "double")
    refused(tmp_path / "double", "architecture GPT2DoubleHeadsModel is not supported", tmp_path, UnsupportedModelError)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(activation_function="relu", scale_attn_weights=False), "activation_function is 'relu', but must be "
         "'gelu_new' or 'gelu_pytorch_tanh' or 'gelu_fast'; scale_attn_weights is False, but must be True"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        (GPT2Config(add_cross_attention=True), "add_cross_attention is True"),
        (LlamaConfig(hidden_act="gelu"), "hidden_act is 'gelu', but must be 'silu' or 'swish'"),
    ],
)  # fmt: skip
def test_configs_that_ours_cannot_express(config, message):
    with pytest.raises(UnsupportedModelError, match=message):
        our_config(config)


OWN = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
CANNOT = {
    "relu2": ({"mlp_type": "relu2"}, "llama", "mlp_type is 'relu2', but must be 'swiglu'"),
    "sinusoidal": ({"position_embedding_type": "sinusoidal"}, "qwen3", "position_embedding_type is 'sinusoidal'"),
    "softcapping": ({"final_logit_softcapping": 30.0}, "qwen3", "final_logit_softcapping is 30.0, but must be None"),
    "layer types": (
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "qk_norm": False}, "llama",
        "sliding_window is 4, but must be None",
    ),
    "qk_norm": ({}, "llama", r"qk_norm is True, but must be False\. It can be converted to qwen3\."),
    "mlp_bias": ({"mlp_bias": True}, "qwen3", r"mlp_bias is True, but must be False\.$"),
    "heads": (
        {"position_embedding_type": "learned", "norm_type": "layernorm", "mlp_type": "gelu", "qk_norm": False,
         "num_key_value_heads": 3, "head_dim": 10}, "gpt2",
        r"num_key_value_heads is 3, but must equal num_attention_heads \(6\); head_dim is 10, but must be hidden_size",
    ),
    "partial": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "qwen3",
        r"rope_parameters\['partial_rotary_factor'\] is 0.5, but must be 1.0",
    ),
    "width": ({"hidden_size": 50, "head_dim": 8, "qk_norm": False}, "llama", "hidden_size is 50, but must be"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "target", "message"), CANNOT.values(), ids=CANNOT)
def test_fields_that_the_target_cannot_express(changes, target, message, tmp_path):
    ScratchGPTForCausalLM(ScratchGPTConfig(**OWN | changes)).save_pretrained(tmp_path / "ours")
    with pytest.raises(UnsupportedModelError, match=message):
        export_model(tmp_path / "ours", tmp_path / "output", target)
    assert not (tmp_path / "output").exists()


def test_gpt2_without_biases_gets_zeros(tmp_path):
    style = {"position_embedding_type": "learned", "norm_type": "layernorm", "mlp_type": "gelu", "qk_norm": False}
    ours = ScratchGPTForCausalLM(ScratchGPTConfig(**OWN | style)).eval()
    ours.save_pretrained(tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "output", "gpt2")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "output").eval()
    assert theirs.transformer.h[1].attn.c_attn.bias.shape == (144,)
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-5, rtol=1e-5)


def test_only_our_models_are_exported(gpt2, tmp_path):
    with pytest.raises(ValueError, match="is not a ScratchGPT model, but has the model_type gpt2"):
        export_model(gpt2, tmp_path / "output", "llama")


def test_the_output_folder_must_be_empty(gpt2, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="output is not empty: choose another folder"):
        import_model(gpt2, tmp_path / "output")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["notes.txt"]


def test_nothing_is_left_when_the_disk_is_full(gpt2, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ScratchGPTConfig, "save_pretrained", full)  # after the weights were written
    refused(gpt2, "No space left", tmp_path, OSError)


def test_padding_ids_outside_of_the_vocabulary_are_dropped():
    assert our_config(LlamaConfig(**LLAMA, pad_token_id=-1)).pad_token_id is None


def test_dtype_is_that_of_the_file_unless_it_is_given(tmp_path):
    LlamaForCausalLM(LlamaConfig(**LLAMA)).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    for dtype, expected in ((None, torch.bfloat16), (torch.float16, torch.float16)):
        import_model(tmp_path / "theirs", tmp_path / str(expected), dtype)
        tensors = load_file(tmp_path / str(expected) / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {expected}
        assert AutoConfig.from_pretrained(tmp_path / str(expected)).dtype == expected
