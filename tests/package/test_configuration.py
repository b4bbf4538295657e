"""The config: derived fields, validation, presets and their parameter counts, and its file."""

import dataclasses
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_scratch_gpt import PRESETS, ScratchGPTConfig, ScratchGPTForCausalLM
from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP
from tests.support.tiny import GPT2, SLIDING, TINY, VARIANTS, tiny_config

# ----------------------------------------------------------------------------------------------------------------------
# Derived fields
# ----------------------------------------------------------------------------------------------------------------------


def test_the_default_is_the_modern_decoder():
    config = ScratchGPTConfig()
    assert (config.position_embedding_type, config.norm_type, config.mlp_type) == ("rope", "rmsnorm", "swiglu")
    assert config.qk_norm
    assert config.tie_word_embeddings
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_missing_fields_are_derived():
    config = ScratchGPTConfig(hidden_size=48, num_attention_heads=6, num_hidden_layers=3)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (8, 6, 128)
    assert config.layer_types == ["full_attention"] * 3
    assert ScratchGPTConfig(hidden_size=48, num_attention_heads=6, mlp_type="relu2").intermediate_size == 192
    sliding = ScratchGPTConfig(num_hidden_layers=3, sliding_window=5)
    assert sliding.layer_types == ["sliding_attention"] * 3
    assert ScratchGPTConfig(position_embedding_type="learned").rope_parameters is None


def test_nothing_derived_goes_stale():
    """Overrides are applied before fields are derived."""
    assert ScratchGPTConfig.from_preset("tiny", hidden_size=96).head_dim == 24
    assert ScratchGPTConfig.from_preset("tiny", num_hidden_layers=5).layer_types == ["full_attention"] * 5
    assert ScratchGPTConfig.from_preset("gpt2", mlp_type="swiglu").intermediate_size == 2048


def test_default_layer_types_follow_a_field_that_is_changed_later():
    """As for any transformers model, whose tests change the window of a built config."""
    config = tiny_config()
    config.sliding_window = 2
    assert config.layer_types == ["sliding_attention"] * 4
    config.num_hidden_layers = 6
    assert config.layer_types == ["sliding_attention"] * 6
    config.validate()
    config.sliding_window = None
    assert config.layer_types == ["full_attention"] * 6
    config.validate()


def test_chosen_layer_types_stay():
    config = tiny_config(**SLIDING)
    config.sliding_window = 2
    assert config.layer_types == SLIDING["layer_types"]
    config.validate()
    config.num_hidden_layers = 5
    with pytest.raises(StrictDataclassError, match=r"(?s)num_hidden_layers.*5.*layer_types.*4"):
        config.validate()


def test_a_saved_config_with_another_depth(tmp_path):
    """Its file contains the layer types, which nobody chose."""
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert ScratchGPTConfig.from_values(saved, num_hidden_layers=1).layer_types == ["full_attention"]
    assert ScratchGPTConfig.from_values(saved, sliding_window=3).layer_types == ["sliding_attention"] * 4
    assert ScratchGPTConfig.from_pretrained(tmp_path, num_hidden_layers=2).layer_types == ["full_attention"] * 2
    with pytest.raises(ValueError, match=r"(?s)num_hidden_layers.*1.*layer_types.*4"):
        ScratchGPTConfig.from_values({**saved, **SLIDING}, num_hidden_layers=1)
    chosen = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    assert ScratchGPTConfig.from_values(saved, **chosen).layer_types == ["full_attention"]


def test_the_inner_width_is_a_multiple_of_64():
    """Tiles of GPUs and blocks of quantized runtimes have 32 or 64 entries."""
    expected = {16: 64, 48: 128, 64: 192, 192: 512, 512: 1344, 768: 2048}
    actual = {size: ScratchGPTConfig(hidden_size=size, head_dim=8).intermediate_size for size in expected}
    assert actual == expected


def test_old_names_of_rotary_options_are_understood():
    assert ScratchGPTConfig(rope_theta=500.0).rope_parameters == {"rope_type": "default", "rope_theta": 500.0}


# ----------------------------------------------------------------------------------------------------------------------
# Errors name the fields and their values
# ----------------------------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"hidden_size": 50, "head_dim": None}, r"hidden_size \(50\) must be a multiple of num_attention_heads \(6\)"),
    ({"num_key_value_heads": 4}, r"num_attention_heads \(6\) must be a multiple of num_key_value_heads \(4\)"),
    ({"head_dim": 7}, r"head_dim \(7\) must be even with position_embedding_type='rope'"),
    (
        {"hidden_size": 45, "position_embedding_type": "sinusoidal"},
        r"hidden_size \(45\) must be even with position_embedding_type='sinusoidal'",
    ),
    ({"rope_parameters": {"rope_type": "linaer"}}, r"rope_type'\] is 'linaer'; .*: default, dynamic, linear"),
    ({"rope_parameters": {"rope_type": ["linear"]}}, r"rope_type'\] is \['linear'\]; allowed"),
    ({"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters of rope_type 'linear' must contain factor"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "must contain factor, high_freq_factor, low_freq_factor"),
    ({"rope_parameters": {"rope_theta": None}}, "rope_parameters of rope_type 'default' must contain rope_theta"),
    ({"rope_parameters": {"rope_theta": -5.0}}, r"rope_parameters\['rope_theta'\] is -5.0, .* number above 0"),
    ({"rope_parameters": {"rope_theta": 0}}, r"rope_parameters\['rope_theta'\] is 0, .* number above 0"),
    ({"rope_parameters": {"rope_theta": True}}, r"rope_parameters\['rope_theta'\] is True, .* number above 0"),
    ({"rope_parameters": {"rope_theta": "1e6"}}, r"rope_parameters\['rope_theta'\] is '1e6', .* number above 0"),
    ({"rope_parameters": {"rope_theta": float("inf")}}, r"rope_parameters\['rope_theta'\] is inf, .* number above 0"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, r"\['factor'\] is 0.5, .* number of at least 1"),
    ({"rope_parameters": {"partial_rotary_factor": 1.5}}, r"\['partial_rotary_factor'\] is 1.5, .* at most 1"),
    ({"rope_parameters": {"partial_rotary_factor": 0.1}}, r"\['partial_rotary_factor'\] is 0.1, .* at least one"),
    ({"rope_parameters": {"rope_thea": 1.0}}, "unknown key 'rope_thea'; known keys: .*rope_theta"),
    (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}},
        r"rope_parameters\['short_factor'\] must be a list of 4 numbers, not \[1.0\]",
    ),
    *(
        ({"pad_token_id": value}, rf"pad_token_id \({value}\) must be the id of a token, between 0 and 96 .*or None")
        for value in (-1, 97)
    ),
    (
        {"position_embedding_type": "learned", "rope_parameters": {"rope_theta": 9.0}},
        r"rope_parameters requires position_embedding_type='rope', but it is 'learned'",
    ),
    (
        {"position_embedding_type": "sinusoidal", "rope_theta": 9.0},
        r"rope_parameters requires position_embedding_type='rope', but it is 'sinusoidal'",
    ),
    ({"attention_dropout": 1.0}, r"attention_dropout \(1.0\) must be at least 0 and below 1"),
    ({"residual_dropout": -0.1}, r"residual_dropout \(-0.1\) must be at least 0 and below 1"),
    ({"embedding_dropout": 2}, r"embedding_dropout \(2\) must be at least 0 and below 1"),
    ({"final_logit_softcapping": 0.0}, r"final_logit_softcapping \(0.0\) must be positive, or None"),
    ({"final_logit_softcapping": float("nan")}, r"final_logit_softcapping \(nan\) must be positive, or None"),
    ({"initializer_range": float("inf")}, r"initializer_range \(inf\) must be positive"),
    ({"layer_types": ["full"] * 4}, r"layer_types.*must be in .*'full_attention'.*got \['full'"),
    ({"layer_types": ["chunked_attention"] * 4}, r"layer_types contains \['chunked_attention'\]; allowed"),
    ({"layer_types": ["sliding_attention"] * 4}, r"sliding_window \(None\) must be at least 1"),
    ({"sliding_window": 0}, r"sliding_window \(0\) must be at least 1"),
    ({"sliding_window": 4, "layer_types": ["full_attention"] * 4}, r"sliding_window \(4\) requires 'sliding_att"),
    ({"layer_types": ["full_attention"] * 3}, r"num_hidden_layers.*4.*layer_types.*3"),
    ({"hidden_size": "48"}, r"hidden_size.*48"),
    ({"hidden_size": 48.0}, r"hidden_size.*48.0"),
    ({"qk_norm": "yes"}, r"qk_norm.*yes"),
    ({"norm_type": "batchnorm"}, r"norm_type.*batchnorm"),
    ({"mlp_type": "relu"}, r"mlp_type.*relu"),
    ({"position_embedding_type": "alibi"}, r"position_embedding_type.*alibi"),
    *(
        ({name: value}, rf"{name} \({value}\) must be positive")
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range",
        )
        for value in (0, -3)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_are_named_with_their_values(values, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny_config(**values)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("num_hidden_layer", "did you mean 'num_hidden_layers'"),
        (
            "dropout",
            "did you mean 'residual_dropout'|did you mean 'embedding_dropout'|did you mean 'attention_dropout'",
        ),
        ("zzz", "known keys: vocab_size, hidden_size, "),
    ],
)
def test_unknown_keys_are_refused_by_our_loaders(key, hint):
    for build in (ScratchGPTConfig.from_values, lambda values: ScratchGPTConfig.from_preset("tiny", **values)):
        with pytest.raises(ValueError, match=f"unknown config key '{key}'; ({hint})"):
            build({key: 1})


def test_names_of_arguments_are_unknown_keys_too():
    with pytest.raises(ValueError, match="unknown config key 'values'"):
        ScratchGPTConfig.from_values({}, values=1)
    with pytest.raises(ValueError, match="unknown config key 'name'"):
        ScratchGPTConfig.from_preset("tiny", name=1)


def test_other_model_types_and_presets_are_refused():
    with pytest.raises(ValueError, match="model_type is 'llama', but must be 'scratch_gpt'"):
        ScratchGPTConfig.from_values({"model_type": "llama"})
    with pytest.raises(ValueError, match="unknown preset 'gpt3'; allowed values: tiny, laptop, small, gpt2, "):
        ScratchGPTConfig.from_preset("gpt3")


def test_a_later_assignment_is_checked_too():
    config = tiny_config()
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        config.hidden_size = "wide"


# ----------------------------------------------------------------------------------------------------------------------
# Presets and parameter counts
# ----------------------------------------------------------------------------------------------------------------------


def count_on_meta(config):
    with torch.device("meta"):
        model = ScratchGPTForCausalLM(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model.num_parameters()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_as_many_parameters_as_its_formula_says(name):
    config = ScratchGPTConfig.from_preset(name)
    assert count_on_meta(config) == config.parameter_count


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama3-1b", 1_235_814_400),
    ],
)
def test_presets_have_the_published_sizes(name, published):
    assert ScratchGPTConfig.from_preset(name).parameter_count == published


def test_the_smallest_preset_is_small():
    assert 50_000 < ScratchGPTConfig.from_preset("tiny").parameter_count < 200_000


FLAGS = [  # contain all four combinations of every two flags
    (True, True, True, True),
    (True, False, False, False),
    (False, True, False, True),
    (False, False, True, True),
    (False, True, True, False),
]


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
def test_the_formula_holds_for_all_options(position, norm, mlp):
    for tie, attention_bias, mlp_bias, qk_norm in FLAGS:
        config = tiny_config(
            position_embedding_type=position, norm_type=norm, mlp_type=mlp, tie_word_embeddings=tie,
            attention_bias=attention_bias, mlp_bias=mlp_bias, qk_norm=qk_norm, num_hidden_layers=1,
        )  # fmt: skip
        assert count_on_meta(config) == config.parameter_count


# ----------------------------------------------------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), {**GPT2, **SLIDING}, {"rope_parameters": {
    "rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0, "original_max_position_embeddings": 16}}])  # fmt: skip
def test_the_saved_file_round_trips(overrides, tmp_path):
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == AUTO_MAP
    assert saved["model_type"] == "scratch_gpt"
    assert ScratchGPTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved.pop("transformers_version")
    assert ScratchGPTConfig.from_values(saved).to_dict() == config.to_dict()


def test_a_broken_config_is_not_saved(tmp_path):
    config = tiny_config()
    config.num_key_value_heads = 4
    with pytest.raises(StrictDataclassError, match=r"num_attention_heads \(6\)"):
        config.save_pretrained(tmp_path)


def test_auto_map_names_classes_that_exist():
    from hf_scratch_gpt import configuration_scratch_gpt, modeling_scratch_gpt

    modules = {
        module.__name__.rpartition(".")[2]: module for module in (configuration_scratch_gpt, modeling_scratch_gpt)
    }
    for auto_class, reference in AUTO_MAP.items():
        module, name = reference.split(".")
        assert hasattr(modules[module], name), auto_class
    assert len(AUTO_MAP) == 6


def test_every_field_is_described():
    described = ScratchGPTConfig.__doc__
    special_tokens = {"bos_token_id", "eos_token_id", "pad_token_id"}
    own = set(ScratchGPTConfig.__annotations__) & {field.name for field in dataclasses.fields(ScratchGPTConfig)}
    assert all(f"    {name}:" in described for name in own - special_tokens)
    assert set(TINY) <= own


def test_the_number_of_labels_is_kept(tmp_path):
    ScratchGPTConfig.from_values({**TINY, "num_labels": 5}).save_pretrained(tmp_path)
    assert ScratchGPTConfig.from_pretrained(tmp_path).num_labels == 5
