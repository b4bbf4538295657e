"""What transformers and its ecosystem expect of a model: files, Trainer, adapters, export, attention plug-ins."""

import ast
import inspect
import json
import textwrap

import pytest
import torch
from safetensors import safe_open
from tiny import (
    BATCH,
    GPT2,
    SEQ,
    SLIDING,
    TINY,
    VARIANTS,
    assert_same,
    shake,
    tiny_config,
    tiny_ids,
    tiny_model,
)
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)
from transformers.masking_utils import sdpa_mask

from hf_scratch_gpt import (
    ScratchGPTConfig,
    ScratchGPTForCausalLM,
    ScratchGPTForQuestionAnswering,
    ScratchGPTForSequenceClassification,
    ScratchGPTForTokenClassification,
    ScratchGPTModel,
)
from hf_scratch_gpt.modeling_scratch_gpt import ScratchGPTAttention

AUTO_CLASSES = [
    (AutoModel, ScratchGPTModel),
    (AutoModelForCausalLM, ScratchGPTForCausalLM),
    (AutoModelForSequenceClassification, ScratchGPTForSequenceClassification),
    (AutoModelForTokenClassification, ScratchGPTForTokenClassification),
    (AutoModelForQuestionAnswering, ScratchGPTForQuestionAnswering),
]

# ----------------------------------------------------------------------------------------------------------------------
# Saving and loading
# ----------------------------------------------------------------------------------------------------------------------

ROPE = {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize("overrides", [*VARIANTS.values(), {"rope_parameters": ROPE}])
def test_a_loaded_model_gives_bit_equal_logits(overrides, tmp_path):
    model, ids = tiny_model(**overrides), tiny_ids()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is ScratchGPTForCausalLM
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    for name, buffer in loaded.named_buffers():  # of rotary positions; they are in no file
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_tied(tie, tmp_path):
    tiny_model(tie_word_embeddings=tie).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != tie  # noqa: SIM118
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118
    loaded = ScratchGPTForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie
    loaded.save_pretrained(tmp_path / "again")
    again = ScratchGPTForCausalLM.from_pretrained(tmp_path / "again")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tie


def test_the_base_model_loads_from_a_language_model_and_back(tmp_path):
    model, ids = tiny_model(), tiny_ids()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
        base.save_pretrained(tmp_path / "base")
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits, model(ids).logits)


def test_saved_folders_carry_the_code_and_the_whole_auto_map(tmp_path):
    tiny_model(ScratchGPTForSequenceClassification).save_pretrained(tmp_path)
    assert {"modeling_scratch_gpt.py", "configuration_scratch_gpt.py"} < {path.name for path in tmp_path.iterdir()}
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto_class.__name__ for auto_class, _ in AUTO_CLASSES)}


def test_resizing_the_embeddings_keeps_the_old_logits():
    for tie in (True, False):
        model, ids = tiny_model(tie_word_embeddings=tie), tiny_ids()
        before = model(ids).logits
        model.resize_token_embeddings(110)
        assert (model.config.vocab_size, model.lm_head.out_features) == (110, 110)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
        after = model(torch.where(ids == 5, 109, ids)).logits
        assert after.shape == (BATCH, SEQ, 110)
        assert_same(model(ids).logits[..., :97], before, 1e-6)
        assert model(ids, labels=ids).loss.isfinite()


# ----------------------------------------------------------------------------------------------------------------------
# Auto classes and heads
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto_class", "model_class"), AUTO_CLASSES)
def test_auto_classes_build_our_classes(auto_class, model_class):
    assert type(auto_class.from_config(tiny_config())) is model_class


def test_sequence_classification_reads_the_last_token_that_is_not_padding(tmp_path):
    model = tiny_model(ScratchGPTForSequenceClassification, num_labels=5)
    ids = tiny_ids()
    filled = torch.nn.functional.pad(ids, (0, 3))  # pad_token_id is 0
    mask = (filled != 0).long()
    labels = torch.arange(BATCH) % 5
    output = model(filled, attention_mask=mask, labels=labels)
    assert output.logits.shape == (BATCH, 5)
    assert_same(output.logits, model(ids).logits)
    assert_same(output.logits, model.score(model.model(ids).last_hidden_state[:, -1]))
    assert_same(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert_loads_bit_equal(model, tmp_path)


def test_token_classification_scores_every_token(tmp_path):
    model, ids = tiny_model(ScratchGPTForTokenClassification, num_labels=5), tiny_ids()
    output = model(ids, labels=ids % 5)
    assert output.logits.shape == (BATCH, SEQ, 5)
    assert_same(output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), (ids % 5).flatten()))
    assert_loads_bit_equal(model, tmp_path)


def test_question_answering_scores_start_and_end(tmp_path):
    model, ids = tiny_model(ScratchGPTForQuestionAnswering), tiny_ids()
    start, end = torch.zeros(BATCH, dtype=torch.long), torch.full((BATCH,), 3)
    output = model(ids, start_positions=start, end_positions=end)
    assert output.start_logits.shape == output.end_logits.shape == (BATCH, SEQ)
    cross_entropy = torch.nn.functional.cross_entropy
    assert_same(output.loss, (cross_entropy(output.start_logits, start) + cross_entropy(output.end_logits, end)) / 2)
    assert_loads_bit_equal(model, tmp_path)


def assert_loads_bit_equal(model, folder):
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    with torch.no_grad():
        for expected, actual in zip(model(tiny_ids()).to_tuple(), loaded(tiny_ids()).to_tuple(), strict=True):
            assert not isinstance(expected, torch.Tensor) or torch.equal(actual, expected)


# ----------------------------------------------------------------------------------------------------------------------
# Trainer
# ----------------------------------------------------------------------------------------------------------------------


class Recorder(torch.utils.data.Dataset):
    """Sequences of different lengths in effect: the prompt's labels are left out."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = tiny_ids(seed=index, batch=1)[0]
        return {"input_ids": ids, "labels": torch.where(torch.arange(SEQ) < index % 4, -100, ids)}


def train(folder, batch_size, accumulation, steps=2, **settings):
    pytest.importorskip("accelerate")
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        max_steps=steps, learning_rate=1e-2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, seed=1, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    model = tiny_model(tie_word_embeddings=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=Recorder(), eval_dataset=Recorder())
    trainer.train()
    return trainer


def test_trainer_reports_the_mean_loss_per_target(tmp_path):
    rows = [Recorder()[index] for index in range(16)]
    ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    expected = tiny_model(tie_word_embeddings=False)(ids, labels=labels).loss.item()
    trainer = train(tmp_path, batch_size=16, accumulation=1, steps=1)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)
    metrics = trainer.evaluate()
    with torch.no_grad():
        expected = trainer.model(ids, labels=labels).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=0.05)  # Trainer's mean of the means of micro-batches


def test_gradient_accumulation_does_not_change_training(tmp_path):
    whole = train(tmp_path, batch_size=8, accumulation=1)
    for batch_size, accumulation in ((2, 4), (1, 8)):
        split = train(tmp_path, batch_size, accumulation)
        for expected, actual in zip(whole.state.log_history[:2], split.state.log_history[:2], strict=True):
            assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-4)
            assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        for name, expected in whole.model.state_dict().items():
            assert_same(split.model.state_dict()[name], expected, 1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Adapters
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked by PEFT
def test_lora_finds_its_default_targets(tmp_path):
    peft = pytest.importorskip("peft")
    model, ids = tiny_model(), tiny_ids()
    before = model(ids).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    targets = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_modules() if ".lora_A" in name}
    assert targets == {"q_proj", "v_proj"}
    assert torch.equal(adapted(ids).logits, before)  # B starts at zero
    shake(adapted)
    adapted.save_pretrained(tmp_path)
    fresh = tiny_model()
    fresh.load_state_dict({name: p for name, p in adapted.base_model.model.state_dict().items() if "lora" not in name
                           and "base_layer" not in name}, strict=False)  # fmt: skip
    assert (tmp_path / "adapter_model.safetensors").exists()
    merged = adapted.merge_and_unload()
    assert type(merged) is ScratchGPTForCausalLM
    assert (merged(ids).logits - before).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------------------------
# Attention kernels and serving engines
# ----------------------------------------------------------------------------------------------------------------------


def test_attention_kwargs_reach_a_registered_kernel():
    calls = []

    def probe(module, query, key, value, attention_mask, **kwargs):
        calls.append((module.layer_idx, kwargs))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("probe", probe)
    AttentionMaskInterface.register("probe", sdpa_mask)
    model = AutoModel.from_config(tiny_config(**SLIDING), attn_implementation="probe").eval()
    instances, lengths = {index: object() for index in range(4)}, torch.tensor([0, 3, 5])
    positions = torch.arange(SEQ)[None]
    hidden, *_ = model(
        tiny_ids(1), position_ids=positions, use_cache=False, return_dict=False,
        attention_instances=instances, cu_seq_lens_q=lengths,
    )  # fmt: skip
    assert hidden.shape == (1, SEQ, 48)
    assert [layer_idx for layer_idx, _ in calls] == [0, 1, 2, 3]
    assert [kwargs["sliding_window"] for _, kwargs in calls] == [3, None, 3, None]
    for _, kwargs in calls:
        assert kwargs["attention_instances"] is instances
        assert kwargs["cu_seq_lens_q"] is lengths
        assert kwargs["scaling"] == 8**-0.5
        assert torch.equal(kwargs["position_ids"], positions)


def interface_variables(function):
    """Local variables assigned from ALL_ATTENTION_FUNCTIONS."""
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AnnAssign)]
    return {
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id
        for node in assignments
        if "ALL_ATTENTION_FUNCTIONS" in ast.unparse(node.value)
    }


def test_the_attention_source_is_what_vllm_looks_for():
    source = inspect.getsource(ScratchGPTAttention.forward)
    function = ast.parse(textwrap.dedent(source)).body[0]
    (variable,) = interface_variables(function)
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and ast.unparse(node.func) == variable]
    assert len(calls) == 1
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    assert keywords["scaling"] == "self.scaling"
    assert keywords[None] == "kwargs"  # the rest of the keyword arguments is passed on
    assert "is_causal=False" not in source
    assert "ALL_ATTENTION_FUNCTIONS.get_interface(" in source
    assert ScratchGPTAttention.__bases__ == (torch.nn.Module,)
    assert ScratchGPTModel._can_set_attn_implementation()
    assert ScratchGPTModel.is_backend_compatible()
    attention = tiny_model().model.layers[2].self_attn
    assert (attention.layer_idx, attention.is_causal, attention.num_key_value_groups) == (2, True, 2)
    assert attention.config.model_type == "scratch_gpt"


def test_forward_hides_no_label_argument_from_trainer():
    """A named argument with "label" in its name, other than `labels`, makes Trainer drop eval_loss."""
    names = inspect.signature(ScratchGPTForCausalLM.forward).parameters
    assert [name for name in names if "label" in name] == ["labels"]
    assert "kwargs" in names


# ----------------------------------------------------------------------------------------------------------------------
# The dense mask that plain training must not make
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sdpa_calls(monkeypatch):
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def record(*args, **kwargs):
        calls.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return calls


@pytest.mark.parametrize("arguments", [{"labels": tiny_ids()}, {"use_cache": True}, {}])
def test_sdpa_is_causal_by_itself_without_a_mask(arguments, sdpa_calls):
    model = tiny_model().train("labels" in arguments)
    model(tiny_ids(), **arguments)
    assert sdpa_calls == [(None, True)] * 4


def test_sdpa_gets_a_mask_where_one_is_needed(sdpa_calls):
    tiny_model()(tiny_ids(), position_ids=torch.tensor([[0, 1, 0, 1, 2]]).expand(BATCH, -1))
    tiny_model(**SLIDING)(tiny_ids())
    has_mask = [mask is not None for mask, _ in sdpa_calls]
    assert has_mask == [True] * 4 + [True, False] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("overrides", [{}, GPT2])
def test_compiled_training_makes_no_dense_mask(overrides):
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model, ids = tiny_model(**overrides).train(), tiny_ids()
    torch.compile(model, fullgraph=True, backend=keep_graph)(ids, labels=ids)
    (graph,) = graphs
    calls = [
        node for node in graph.graph.nodes
        if node.op == "call_function" and "scaled_dot_product" in getattr(node.target, "__name__", "")
    ]  # fmt: skip
    assert len(calls) == 4
    assert all(node.kwargs["attn_mask"] is None and node.kwargs["is_causal"] is True for node in calls)


# ----------------------------------------------------------------------------------------------------------------------
# Export and parallel plans
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's own exporter
@pytest.mark.parametrize("variant", ["default", "gpt2"])
def test_export_with_dynamic_batch_and_sequence(variant):
    model = tiny_model(**VARIANTS[variant])
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=64)}, "use_cache": None}
    arguments = {"input_ids": tiny_ids(), "use_cache": False}
    program = torch.export.export(model, (), arguments, dynamic_shapes=dynamic, strict=False)
    for ids in (tiny_ids(), tiny_ids(3, 11)):
        with torch.no_grad():
            assert_same(program.module()(input_ids=ids, use_cache=False).logits, model(ids).logits, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_linear_layer_is_in_the_tensor_parallel_plan(variant):
    model = tiny_model(**VARIANTS[variant])
    patterns = {name.replace("*", "#") for name in model._tp_plan}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert "".join("#" if part.isdigit() else part for part in _split(name)) in patterns, name
    for pattern, style in model._tp_plan.items():
        assert style.startswith("rowwise") == pattern.endswith(("o_proj", "down_proj")), pattern


def _split(name):
    """ "a.0.b" -> ["a", ".", "0", ".", "b"]."""
    parts = name.split(".")
    return [piece for part in parts for piece in (part, ".")][:-1]


def test_pipeline_and_sharding_plans_name_what_exists():
    model = tiny_model()
    assert set(model._pp_plan) >= {"model.embed_tokens", "model.layers", "model.norm", "lm_head"} or set(
        ScratchGPTConfig.base_model_pp_plan
    ) == {"embed_tokens", "layers", "norm"}
    assert {"embed_tokens", "layers", "norm"} == set(ScratchGPTConfig.base_model_pp_plan)
    children = dict(model.model.named_children())
    assert set(ScratchGPTConfig.base_model_pp_plan) <= set(children)
    assert "lm_head" in model._pp_plan
    assert model._fsdp_plan["lm_head"] == "keep_full_weight"
    assert model._no_split_modules == ["ScratchGPTDecoderLayer"] or "ScratchGPTDecoderLayer" in model._no_split_modules
    assert TINY["num_hidden_layers"] == len(model.model.layers)
