"""--config and --config_overrides: what they may contain, and the config they make."""

import pytest
from transformers import AutoTokenizer

from hf_scratch_gpt import ScratchGPTConfig
from train.model.new import build_config, parse_overrides, read_config
from train.settings.json_files import DamagedFileError
from train.settings.training import ModelArguments


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("a=1,b=2.5,c=true,d=null,e=text", {"a": 1, "b": 2.5, "c": True, "d": None, "e": "text"}),
        ("layer_types=[x, y],a=1e-6", {"layer_types": ["x", "y"], "a": 1e-6}),
        ("a=~,b=''", {"a": None, "b": ""}),
        ("rope={rope_type: default, rope_theta: 1e6}", {"rope": {"rope_type": "default", "rope_theta": 1e6}}),
        ("rope={type=linear,factor=2},a=[1e3, [2e-1]]", {"rope": {"type": "linear", "factor": 2}, "a": [1e3, [0.2]]}),
    ],
)
def test_overrides_are_read_as_yaml_with_numbers_at_any_depth(text, values):
    assert parse_overrides(text) == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[]", "expected an object, not a list"),
    ],
)
def test_a_damaged_config_is_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"config.json is damaged: {message}.*Give another --config\."):
        read_config(str(tmp_path))


@pytest.mark.parametrize("text", ["a", "a=", "a=1,b=", "a=1,,b=2", "a=b=c", "[1]=2", "{a: 1}=2", "a={b", "a=&x [*x]"])
def test_overrides_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=r"--config_overrides .* must look like"):
        parse_overrides(text)


@pytest.mark.parametrize("text", ["a=1,a=2", "rope={a: 1, a: 2}"])
def test_an_override_given_twice_is_refused(text):
    with pytest.raises(ValueError, match="--config_overrides sets a twice: remove one of them"):
        parse_overrides(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rope_parameters={rope_type: linear}", "must contain factor"),
        ("rope_parameters={rope_theta: -5.0}", "rope_theta.* is -5.0, but must be a number above 0"),
        ("values=3", "unknown config key 'values'"),
        ("name=3", "unknown config key 'name'"),
    ],
)
def test_an_override_that_no_model_can_have_is_refused(override, message, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizer")
    with pytest.raises(ValueError, match=message):
        build_config(ModelArguments("tiny", override), tokenizer)


def test_a_saved_config_with_another_depth_or_window(data_dir, tmp_path):
    """Its layer types follow: nobody chose them."""
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizer")
    ScratchGPTConfig.from_preset("tiny").save_pretrained(tmp_path)
    config = build_config(ModelArguments(str(tmp_path), "num_hidden_layers=1,sliding_window=8"), tokenizer)
    assert config.layer_types == ["sliding_attention"]
    assert config.vocab_size == len(tokenizer)
