"""Attention kernels, compilers, serving engines and the plans that distribute a model over devices."""

import ast
import inspect
import re
import textwrap

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.masking_utils import sdpa_mask

from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTModel
from hf_scratch_gpt.modeling_scratch_gpt import ScratchGPTAttention
from tests.support.tiny import BATCH, GPT2, SEQ, SLIDING, VARIANTS, assert_same, tiny_config, tiny_ids, tiny_model


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
    assert hasattr(tiny_model(ScratchGPTForSequenceClassification), "score")
    attention = tiny_model().model.layers[2].self_attn
    assert (attention.layer_idx, attention.is_causal, attention.num_key_value_groups) == (2, True, 2)
    assert attention.config.model_type == "scratch_gpt"


def test_forward_hides_no_label_argument_from_trainer():
    """Trainer drops eval_loss if another argument than `labels` has "label" in its name."""
    names = inspect.signature(ScratchGPTForCausalLM.forward).parameters
    assert [name for name in names if "label" in name] == ["labels"]
    assert "kwargs" in names


# ----------------------------------------------------------------------------------------------------------------------
# Plain training must not create a dense mask
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
    model, ids = tiny_model(**overrides, num_hidden_layers=1).train(), tiny_ids()
    torch.compile(model, fullgraph=True, backend=keep_graph)(ids, labels=ids)
    (graph,) = graphs
    calls = [
        node for node in graph.graph.nodes
        if node.op == "call_function" and "scaled_dot_product" in getattr(node.target, "__name__", "")
    ]  # fmt: skip
    assert [(node.kwargs["attn_mask"], node.kwargs["is_causal"]) for node in calls] == [(None, True)]


# ----------------------------------------------------------------------------------------------------------------------
# Export and parallel plans
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's own exporter
@pytest.mark.parametrize("variant", ["default", "gpt2"])
def test_export_with_dynamic_batch_and_sequence(variant, tmp_path):
    model = tiny_model(**VARIANTS[variant], num_hidden_layers=1)
    dynamic = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=64)}, "use_cache": None}
    arguments = {"input_ids": tiny_ids(), "use_cache": False}
    program = torch.export.export(model, (), arguments, dynamic_shapes=dynamic, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    for ids in (tiny_ids(), tiny_ids(3, 11), tiny_ids(1, 1)):
        with torch.no_grad():
            assert_same(program.module()(input_ids=ids, use_cache=False).logits, model(ids).logits, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_linear_layer_is_in_the_tensor_parallel_plan(variant):
    model = tiny_model(**VARIANTS[variant])
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert re.sub(r"\.\d+\.", ".*.", name) in model._tp_plan, name
    for pattern, style in model._tp_plan.items():
        assert style.startswith("rowwise") == pattern.endswith(("o_proj", "down_proj")), pattern


def test_pipeline_and_sharding_plans_name_what_exists():
    model = tiny_model()
    assert set(ScratchGPTConfig.base_model_pp_plan) == {"embed_tokens", "layers", "norm"}
    assert set(ScratchGPTConfig.base_model_pp_plan) <= dict(model.model.named_children()).keys()
    assert "lm_head" in model._pp_plan
    assert model._fsdp_plan["lm_head"] == "keep_full_weight"
    assert set(model._no_split_modules) == {type(layer).__name__ for layer in model.model.layers}
