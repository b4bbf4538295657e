"""What a GGUF file contains, what transformers reads from it, and what cannot become one."""

import errno
import fcntl
import json

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForSequenceClassification, ScratchGPTTokenizer
from hf_scratch_gpt.conversion import UnsupportedModelError
from hf_scratch_gpt.conversion.gguf import write_gguf
from hf_scratch_gpt.conversion.gguf_architectures import architecture_of
from hf_scratch_gpt.tokenization_scratch_gpt import SETTINGS
from tests.support.tiny import assert_same
from tests.support.tiny_gguf import GPT2_HEADS, LLAMA, LLAMA3, SIZES, YARN, english_tokenizer, save_model, split_by

gguf = pytest.importorskip("gguf")

TEXT = "The statement  calls wörld 123\n<|user|>漢字<|end|>"


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "mine")
    return tmp_path / "mine"


def fields_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, message, kind=ValueError, dtype="f32"):
    """No file, whole or half, is left."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind, match=message):
        write_gguf(folder, folder.parent / "model.gguf", dtype)
    assert sorted(folder.parent.iterdir()) == before


# ----------------------------------------------------------------------------------------------------------------------
# What transformers reads
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "lacking"),  # values that the reader of transformers does not take from the file
    [
        ({}, {"head_dim": 24}),
        ({"head_dim": 128, "tie_word_embeddings": False}, {}),
        ({**LLAMA, "num_key_value_heads": 1}, {}),
        ({**LLAMA, "tie_word_embeddings": False}, {}),
        (GPT2_HEADS, {"n_positions": 128}),
        ({**GPT2_HEADS, "max_position_embeddings": 1024, "tie_word_embeddings": False, "mlp_bias": False}, {}),
    ],
    ids=["qwen3", "qwen3-untied", "llama", "llama-untied", "gpt2", "gpt2-untied"],
)
def test_transformers_reads_the_same_model(shape, lacking, tmp_path):
    model, tokenizer = save_model(tmp_path / "mine", **{"intermediate_size": 256, **shape})
    (tmp_path / "output").mkdir()
    write_gguf(tmp_path / "mine", tmp_path / "output" / "model.gguf", "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "output", gguf_file="model.gguf", **lacking)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert_same(theirs(ids).logits, model(ids).logits)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="5.17 takes special tokens for text")
@pytest.mark.parametrize("shape", [{}, LLAMA, GPT2_HEADS], ids=["qwen3", "llama", "gpt2"])
def test_transformers_reads_the_same_tokenizer(shape, tmp_path):
    _, tokenizer = save_model(tmp_path / "mine", **shape)
    write_gguf(tmp_path / "mine", tmp_path / "model.gguf", "f16")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert read.chat_template == tokenizer.chat_template
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|pad|>")


# ----------------------------------------------------------------------------------------------------------------------
# What the file contains
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_get_the_type_and_vectors_keep_theirs(dtype, tmp_path):
    save_model(tmp_path, **GPT2_HEADS)
    write_gguf(tmp_path, tmp_path / "model.gguf", dtype)
    for name, tensor in tensors_of(tmp_path / "model.gguf").items():
        is_matrix = len(tensor.shape) > 1 and name != "position_embd.weight"
        assert tensor.tensor_type.name.lower() == (dtype if is_matrix else "f32"), name


def test_numbers_of_each_type(tmp_path):
    save_model(tmp_path)
    ours = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    for dtype, expected in (("f32", ours), ("f16", ours.half()), ("bf16", ours.bfloat16())):
        write_gguf(tmp_path, tmp_path / dtype, dtype)
        tensor = tensors_of(tmp_path / dtype)["blk.1.ffn_up.weight"]
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), expected.float().numpy())
    write_gguf(tmp_path, tmp_path / "q8_0", "q8_0")
    tensor = tensors_of(tmp_path / "q8_0")["blk.1.ffn_up.weight"]
    blocks = ours.reshape(-1, 32).abs().amax(1, keepdim=True).expand(-1, 32).reshape(ours.shape)
    error = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)) - ours
    assert (error.abs() <= blocks / 127 * 0.51 + blocks * 2**-11).all()


def test_rows_that_are_no_multiple_of_a_block_keep_16_bits(tmp_path):
    save_model(tmp_path, intermediate_size=80, head_dim=24)
    notes = write_gguf(tmp_path, tmp_path / "model.gguf", "q8_0")
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors_of(tmp_path / "model.gguf").items()}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert notes[-1] == (
        "these tensors are stored as f16, because the length of their rows is not a multiple of 32: "
        "blk.{0-1}.ffn_down.weight."
    )


def test_fields_of_the_tokenizer(folder):
    notes = write_gguf(folder, folder / "model.gguf", "f16")
    fields = fields_of(folder / "model.gguf")
    num_tokens = len(english_tokenizer())
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:2] == ["<|endoftext|>", "<|pad|>"]
    assert tokens[num_tokens:] == [f"[PAD{number}]" for number in range(num_tokens, num_tokens + 7)]
    assert fields["tokenizer.ggml.token_type"] == [3] * 6 + [1] * (num_tokens - 6) + [5] * 7
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": 0, "eos": 0, "eot": 5, "padding": 1}
    assert not fields["tokenizer.ggml.add_bos_token"]
    assert not fields["tokenizer.ggml.add_eos_token"]
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["general.name"] == "mine"
    assert [note for note in notes if "Unicode" not in note] == []


def test_all_tokens_that_end_a_text(folder):
    change_json(folder / "generation_config.json", eos_token_id=[0, 3, 4, 2])
    notes = write_gguf(folder, folder / "model.gguf", "f16")
    fields = fields_of(folder / "model.gguf")
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [0, 5, 3]
    assert notes[0] == (
        "'<|assistant|>', '<|system|>' does not end a text, because a GGUF file names only three such tokens."
    )


def test_a_tokenizer_that_adds_tokens(tmp_path):
    _, tokenizer = save_model(tmp_path)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    tokenizer = ScratchGPTTokenizer(tokenizer_object=backend, **SETTINGS, add_bos_token=True)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "f16")
    assert fields_of(tmp_path / "model.gguf")["tokenizer.ggml.add_bos_token"]
    assert not fields_of(tmp_path / "model.gguf")["tokenizer.ggml.add_eos_token"]


def test_shards_give_the_same_file(tmp_path):
    model, tokenizer = save_model(tmp_path / "one" / "mine")
    model.save_pretrained(tmp_path / "many" / "mine", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "many" / "mine")
    assert (tmp_path / "many" / "mine" / "model.safetensors.index.json").exists()
    for name in ("one", "many"):
        write_gguf(tmp_path / name / "mine", tmp_path / f"{name}.gguf", "q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# What llama.cpp cannot express
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "reasons"),
    [
        ({"mlp_type": "relu2", "final_logit_softcapping": 3.0},
         "As qwen3: mlp_type is 'relu2', but must be 'swiglu'; final_logit_softcapping is 3.0, but must be None."),
        ({"position_embedding_type": "sinusoidal", "sliding_window": 4},
         "As qwen3: position_embedding_type is 'sinusoidal', but must be 'rope'; sliding_window is 4, but must be "
         "None."),
        ({**GPT2_HEADS, "position_embedding_type": "rope"},
         "As gpt2: position_embedding_type is 'rope', but must be 'learned'."),
        ({**GPT2_HEADS, "head_dim": 8},
         r"As gpt2: head_dim is 8, but must be hidden_size / num_attention_heads (16)."),
        ({"attention_bias": True, "mlp_bias": True},
         "As llama: qk_norm is True, but must be False."),
        ({"attention_bias": True},
         "As llama: qk_norm is True, but must be False, or as qwen3: attention_bias is True, but must be False."),
        ({"rope_parameters": LLAMA3},
         "As qwen3: rope_parameters['rope_type'] is 'llama3', but must be 'default', 'linear' or 'yarn'."),
        ({"rope_parameters": {**YARN, "beta_fast": 8, "beta_slow": 2}},
         "As qwen3: rope_parameters['beta_fast'] is 8, but must be 32; rope_parameters['beta_slow'] is 2, but must "
         "be 1."),
        ({**LLAMA, "rope_parameters": {"rope_theta": 9.0, "rope_type": "dynamic", "factor": 2.0,
                                       "partial_rotary_factor": 0.5}},
         "As llama: rope_parameters['rope_type'] is 'dynamic', but must be 'default', 'linear', 'yarn' or 'llama3'; "
         "rope_parameters['partial_rotary_factor'] is 0.5, but must be 1.0."),
    ],
)  # fmt: skip
def test_all_fields_in_the_way_are_named(shape, reasons):
    config = ScratchGPTConfig.from_values({**SIZES, "vocab_size": 97, **shape})
    with pytest.raises(UnsupportedModelError) as error:
        architecture_of(config)
    assert str(error.value) == f"llama.cpp cannot compute this model. {reasons}"


def no_byte_level():
    backend = Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    return ScratchGPTTokenizer(tokenizer_object=backend, **SETTINGS)


def changed(**changes):
    tokenizer = ScratchGPTTokenizer(
        tokenizer_object=Tokenizer.from_str(english_tokenizer().backend_tokenizer.to_str()), **SETTINGS
    )
    for name, value in changes.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (no_byte_level, "its model is Unigram, but must be BPE over bytes"),
        (lambda: changed(pre_tokenizer=split_by(r"\p{N}{1,2}|\s+")), r"it splits words by .*none of dbrx, gpt-2"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel()), "it splits words by .*add_prefix_space.* true"),
        (lambda: changed(pre_tokenizer=pre_tokenizers.Split(Regex("a"), "isolated")), "it splits words by"),
        (lambda: changed(normalizer=normalizers.Lowercase()), "its normalizer is .*Lowercase.*changes no characters"),
    ],
    ids=["unigram", "pattern", "prefix", "no-bytes", "normalizer"],
)
def test_tokenizers_that_llama_cpp_lacks(tokenizer, message, tmp_path):
    save_model(tmp_path / "mine", tokenizer=tokenizer(), vocab_size=3000)
    refused(tmp_path / "mine", f"llama.cpp has no tokenizer like this one: .*{message}")


def test_special_tokens_that_take_the_spaces_beside_them(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"][3]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(state))
    refused(folder, "its token '<.user.>' has lstrip")


def test_nfc_is_told(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(state | {"normalizer": {"type": "NFC"}}))
    assert "NFC" in write_gguf(folder, folder / "model.gguf")[-1]


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes
# ----------------------------------------------------------------------------------------------------------------------


def test_a_file_that_exists_is_kept(folder):
    path = folder / "model.gguf"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"model\.gguf exists: choose another name, or delete it"):
        write_gguf(folder, path)
    assert path.read_text() == "mine"


def test_an_unknown_type(folder):
    refused(folder, "dtype is 'q4_0'; allowed values: f32, f16, bf16, q8_0", dtype="q4_0")


def test_missing_extra_and_wrong_tensors_are_all_named(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["extra"] = torch.zeros(2)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)

    change_tensors(folder, spoil)
    refused(folder, r"missing: model\.norm\.weight; .*up_proj\.weight is \[3, 4\] instead of \[96, 64\]; .*: extra\.")


def test_a_tied_head_may_be_stored_twice(folder):
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(2, 2)}))
    write_gguf(folder, folder / "model.gguf")
    assert "output.weight" not in tensors_of(folder / "model.gguf")


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "model.safetensors is damaged")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_no_numbers(value, folder):
    change_tensors(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(value))
    refused(folder, r"model\.layers\.1\.mlp\.up_proj\.weight has weights that are infinite or not a number")


def test_weights_too_large_for_16_bits(folder):
    change_tensors(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(-70000))
    refused(folder, r"up_proj\.weight has the weight 70000, too large for f16: choose bf16 or f32", dtype="f16")
    write_gguf(folder, folder / "model.gguf", "bf16")


def test_weights_too_large_for_the_factor_of_a_block(folder):
    change_tensors(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(9e6))
    refused(folder, r"up_proj\.weight has the weight 9e\+06, too large for q8_0", dtype="q8_0")


def test_a_folder_that_does_not_exist(folder):
    with pytest.raises(ValueError, match=r"the folder .*/absent does not exist"):
        write_gguf(folder, folder / "absent" / "model.gguf")


def test_no_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    refused(folder, r"mine has no tokenizer \(tokenizer.json\)")


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "its tokenizer cannot be read")


def test_the_tokenizer_of_another_model(tmp_path):
    save_model(tmp_path / "mine", vocab_size=1999)
    refused(tmp_path / "mine", "the tokenizer and the model disagree: the id of .* is 1999, .* only 1999 tokens")


def test_a_tokenizer_without_an_end(folder):
    change_json(folder / "tokenizer_config.json", eos_token=None)
    refused(folder, "the tokenizer has no eos_token, and llama.cpp would stop at token 11 instead")


def test_a_classifier(tmp_path):
    config = ScratchGPTConfig.from_values({**SIZES, "vocab_size": 97})
    ScratchGPTForSequenceClassification(config).save_pretrained(tmp_path / "mine")
    refused(tmp_path / "mine", "is a ScratchGPTForSequenceClassification, but a GGUF file holds a language model")


def test_another_kind_of_model(folder):
    change_json(folder / "config.json", model_type="llama", auto_map={})
    refused(folder, "is not a ScratchGPT model: its model_type is 'llama'")


def test_no_space(folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    refused(folder, r"model\.gguf needs 1 MB, but only 0 MB are free")


def test_the_disk_fills_up(folder, monkeypatch):
    def fail(writer, tensor):
        raise OSError("3145728 requested and 3015744 written")  # all that numpy says

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="No space left on the disk") as error:
        write_gguf(folder, folder / "model.gguf")
    assert error.value.errno == errno.ENOSPC
    assert list(folder.glob("*.gguf")) + list(folder.glob(".*")) == []


def test_what_a_killed_process_has_left_is_overwritten(folder):
    partial = folder / ".tmp-model.gguf"
    partial.write_bytes(b"x" * 10_000_000)
    write_gguf(folder, folder / "model.gguf")
    assert not partial.exists()
    assert (folder / "model.gguf").stat().st_size < 5_000_000


def test_two_processes_with_the_same_file(folder):
    partial = folder / ".tmp-model.gguf"
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written by another process"):
            write_gguf(folder, folder / "model.gguf")
        assert partial.exists()
