"""PEFT's adapters on our models: default targets, saving, loading by path, merging, wrong bases, trained heads."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from tests.support.tiny import assert_same, tiny_ids, tiny_model

# PEFT uses a name that transformers 5.23 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WITH_DEFAULT_TARGETS = pytest.mark.parametrize(
    ("config_class", "targets"),
    [
        pytest.param(peft.LoraConfig, {"q_proj", "v_proj"}, id="lora"),
        pytest.param(peft.IA3Config, {"k_proj", "v_proj", "down_proj"}, id="ia3"),
    ],
)


@pytest.fixture
def base(tmp_path):
    """The folder of a language model."""
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits(model, ids=None):
    with torch.no_grad():
        return model(tiny_ids() if ids is None else ids).logits


def adapted(base, config_class=peft.LoraConfig, **settings):
    """A model with an adapter after training: all trained weights have changed."""
    config = config_class(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    return changed(model).eval()


def changed(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@WITH_DEFAULT_TARGETS
def test_adapters_find_their_default_targets_and_start_as_the_base(config_class, targets, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    before = logits(model)
    adapter = peft.get_peft_model(model, config_class(task_type="CAUSAL_LM"))
    assert {name.rpartition(".")[2] for name in adapter.targeted_module_names} == targets
    assert len(adapter.targeted_module_names) == len(targets) * model.config.num_hidden_layers
    assert torch.equal(logits(adapter), before)


@WITH_DEFAULT_TARGETS
def test_an_adapter_loads_by_its_path_and_merges(config_class, targets, base, tmp_path):
    model = adapted(base, config_class)
    expected = logits(model)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(loaded.get_base_model()) is ScratchGPTForCausalLM
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is ScratchGPTForCausalLM
    merged.save_pretrained(tmp_path / "merged")
    assert_same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, 1e-4)


def test_an_adapter_is_refused_by_a_model_of_another_shape(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RuntimeError, match=r"size mismatch.*lora_A"):
        peft.PeftModel.from_pretrained(tiny_model(hidden_size=24), tmp_path / "adapter")


def test_an_adapter_without_some_layers_gives_a_warning(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"missing adapter keys.*layers\.4\."):
        peft.PeftModel.from_pretrained(tiny_model(num_hidden_layers=5), tmp_path / "adapter")


def test_an_adapter_without_its_base_is_not_loaded(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="base"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.filterwarnings(
    "ignore:Position ids are not supported:UserWarning"
)  # generate creates them, PEFT drops them
@pytest.mark.parametrize("config_class", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_learned_prompts_load_by_their_path_and_generate(config_class, base, tmp_path):
    model = adapted(base, config_class, num_virtual_tokens=4)
    ids = tiny_ids()
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected)
    generated = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert torch.equal(generated[:, ids.shape[1]], expected[:, -1].argmax(-1))
    again = logits(loaded, generated)[:, -2].argmax(-1)  # the last token, without a cache
    assert torch.equal(generated[:, -1], again)


def test_a_classifier_keeps_its_trained_head(tmp_path):
    tiny_model(ScratchGPTForSequenceClassification, num_labels=3).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"])
    head = model.score.weight.detach().clone()
    model = changed(peft.get_peft_model(model, config)).eval()
    assert not torch.equal(model.get_base_model().score.weight, head)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert type(loaded.get_base_model()) is ScratchGPTForSequenceClassification
    assert torch.equal(logits(loaded), logits(model))
    assert_same(logits(loaded.merge_and_unload()), logits(model), 1e-4)
