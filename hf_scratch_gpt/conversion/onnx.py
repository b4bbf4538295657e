"""A model of ours as an ONNX graph, for ONNX Runtime, which runs it without torch and transformers.

The graph of a language model is one step of `generate`. It reads new tokens and the keys and values of earlier ones,
and returns the logits of the new tokens and the keys and values of all. Without earlier tokens (length 0), it reads a
prompt. Inputs and outputs have the names of Optimum: https://huggingface.co/docs/optimum-onnx.

    input_ids, position_ids         (batch, seq)
    attention_mask                  (batch, past + seq), 0 at padding
    past_key_values.0.key, ...      (batch, kv_heads, past, head_dim)
    logits                          (batch, seq, vocab)
    present.0.key, ...              (batch, kv_heads, past + seq, head_dim)

That of a classifier reads input_ids and attention_mask, and returns logits, (batch, labels).
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..modeling_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification
from .families import UnsupportedModelError
from .folders import new_folder

GRAPH_FILE = "model.onnx"
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")  # their frequencies do not depend on the length of a text
TOLERANCE = 1e-4  # of the logits, relative to the largest one
# batch, tokens, earlier tokens and padding of the texts that graph and model are compared on
TEXTS = ((1, 5, 0, 0), (3, 4, 0, 2), (2, 1, 4, 2), (2, 2, 6, 0))
Past = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer
Arguments = Mapping[str, Any]  # of `forward`


class Step(nn.Module):
    """One step of generation: a language model whose cache consists of plain tensors."""

    tokens: ClassVar[dict[int, str]] = {0: "batch", 1: "seq"}
    cached: ClassVar[dict[int, str]] = {0: "batch", 2: "past"}

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.layers = range(model.config.num_hidden_layers)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, past: Past
    ) -> tuple[torch.Tensor, Past]:
        """The logits of the new tokens, and keys and values of all tokens."""
        cache: Any = DynamicCache(past)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.logits, [(layer.keys, layer.values) for layer in cache.layers]

    @property
    def dynamic_shapes(self) -> dict[str, Any]:
        """The names of the dimensions that vary, in the structure of the arguments."""
        mask = {0: "batch", 1: "past + seq"}
        past = [(self.cached, self.cached) for _ in self.layers]
        return {"input_ids": self.tokens, "attention_mask": mask, "position_ids": self.tokens, "past": past}

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs of the graph."""
        return ["logits", *(f"present.{layer}.{part}" for layer in self.layers for part in ("key", "value"))]

    def example(self, batch: int, seq: int, past: int, padding: int) -> Arguments:
        """Random arguments; the first `padding` tokens of the first row are padding."""
        config, random = self.model.config, torch.Generator().manual_seed(0)
        ids = torch.randint(config.vocab_size, (batch, seq), generator=random)
        mask = torch.ones(batch, past + seq, dtype=torch.long)
        mask[0, :padding] = 0
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -seq:]
        shape = (2, batch, config.num_key_value_heads, past, config.head_dim)
        cache = [torch.randn(shape, generator=random).unbind() for _ in self.layers]
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past": cache}


class Classification(nn.Module):
    """A classifier that returns only its logits."""

    output_names: ClassVar[list[str]] = ["logits"]
    dynamic_shapes: ClassVar[dict[str, Any]] = {"input_ids": Step.tokens, "attention_mask": Step.tokens}

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The logits of each text."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    def example(self, batch: int, seq: int, past: int, padding: int) -> Arguments:
        """Random arguments; the first `padding` tokens of the first row are padding."""
        config, random = self.model.config, torch.Generator().manual_seed(0)
        ids = torch.randint(config.vocab_size, (batch, past + seq), generator=random)
        mask = torch.ones_like(ids)
        ids[0, :padding], mask[0, :padding] = config.pad_token_id, 0
        return {"input_ids": ids, "attention_mask": mask}


def export_onnx(model: PreTrainedModel, folder: Path) -> float:
    """Write a language model or a classifier as `model.onnx`, with its weights in `model.onnx.data`, and its config.

    The graph is float32. It is written only if ONNX Runtime computes the same logits as the model: for several texts
    at once, with padding and, of a language model, with and without a cache.

    Args:
        folder: new or empty. After an error, it is empty.

    Returns:
        The largest difference between two logits.

    Raises:
        ValueError: a library is missing, a model that cannot be exported, or a folder with files.
    """
    check_installed()
    check_exportable(model)
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).cpu().float().eval()
    graph = Step(model) if isinstance(model, ScratchGPTForCausalLM) else Classification(model)
    with new_folder(folder), torch.no_grad():
        write_graph(graph, folder / GRAPH_FILE)
        difference = largest_difference(graph, folder / GRAPH_FILE)
        write_config(model, folder)
    return difference


def check_installed() -> None:
    """Import the libraries of the extra `onnx`, which takes seconds.

    Raises:
        ValueError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'conversion to ONNX needs {error.name}, which is not installed: pip install "hf_scratch_gpt[onnx]"'
        ) from None


def check_exportable(model: PreTrainedModel) -> None:
    """Refuse a model that has no graph.

    Raises:
        UnsupportedModelError: the reason.
    """
    if not isinstance(model, ScratchGPTForCausalLM | ScratchGPTForSequenceClassification):
        raise UnsupportedModelError(
            f"a {type(model).__name__} cannot be converted to ONNX, only a ScratchGPTForCausalLM or a "
            "ScratchGPTForSequenceClassification."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedModelError(
            "a quantized model cannot be converted to ONNX: convert the model that it was made from; "
            "onnxruntime.quantization quantizes the graph."
        )
    if isinstance(model, ScratchGPTForSequenceClassification) and model.config.pad_token_id is None:
        raise UnsupportedModelError("a classifier without pad_token_id cannot be converted to ONNX: set it.")
    rope_type = (model.config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in FIXED_ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_parameters['rope_type'] is {rope_type!r}, whose frequencies change with the length of the text, but "
            f"those of an ONNX graph are fixed: it must be one of {', '.join(FIXED_ROPE_TYPES)}."
        )


def write_graph(graph: Step | Classification, path: Path) -> None:
    """Trace a graph, and write it without the stack traces, which contain the paths of this machine."""
    arguments = graph.example(batch=2, seq=3, past=4, padding=0)
    with quiet_exporter():
        program = torch.onnx.export(
            graph,
            kwargs=dict(arguments),
            dynamic_shapes=graph.dynamic_shapes,
            input_names=list(feed(arguments)),
            output_names=graph.output_names,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(path, external_data=True)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the warnings of torch's exporter, which are about its own code and packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def feed(arguments: Arguments) -> dict[str, Any]:
    """The arguments as the inputs of the graph, by name."""
    inputs = {name: value.numpy() for name, value in arguments.items() if name != "past"}
    for layer, parts in enumerate(arguments.get("past", ())):
        for name, part in zip(("key", "value"), parts, strict=True):
            inputs[f"past_key_values.{layer}.{name}"] = part.numpy()
    return inputs


def largest_difference(graph: Step | Classification, path: Path) -> float:
    """The largest difference between the logits of a model and of its graph in ONNX Runtime.

    Raises:
        ValueError: it is more than rounding explains.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, seq, past, padding in TEXTS:
        arguments = graph.example(batch, seq, past, padding)
        outputs = graph(**arguments)
        expected = outputs[0] if isinstance(graph, Step) else outputs
        actual = torch.from_numpy(session.run(["logits"], feed(arguments))[0])
        if isinstance(graph, Step):  # what a padding token predicts does not matter
            is_token = arguments["attention_mask"][:, -seq:].bool()
            actual, expected = actual[is_token], expected[is_token]
        difference = float((actual - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ValueError(f"ONNX Runtime computes other logits than the model: they differ by {difference:.2g}.")
        largest = max(largest, difference)
    return largest


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config without the names of our classes, whose code is not in the folder, and those of `generate`."""
    values = model.config.to_dict() | {"dtype": "float32"}
    values.pop("auto_map", None)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
