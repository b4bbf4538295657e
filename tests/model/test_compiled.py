"""`--torch_compile`: the same text, one compilation for every length, and what is refused."""

import io

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.support.tiny import SLIDING, VARIANTS, shake, tiny_ids, tiny_model
from tests.support.tiny_base import save_base
from train import chat, generate, serve
from train.model import compiled
from train.model.generation import TextStream, generate_text
from train.model.inference import load_for_inference
from train.model.int8 import quantize_model
from train.settings.command import run_command

WIDE = {"hidden_size": 64, "intermediate_size": 96}  # whole numbers of 8 bits need rows of 32
PEER = {"vocab_size": 97, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_base(tmp_path_factory.mktemp("original"), num_hidden_layers=1, **WIDE)
    shake(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled; a backend that only keeps them is quick."""
    torch._dynamo.reset()
    found = []
    settings = compiled.compile_settings

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    def quick_settings():
        config = settings()
        config.backend, config.mode = keep, None
        return config

    monkeypatch.setattr(compiled, "compile_settings", quick_settings)
    return found


def model_of(kind):
    if kind == "llama":
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, **PEER,
        )  # fmt: skip
        return shake(LlamaForCausalLM(config)).eval()
    if kind == "transformers' GPT-2":
        torch.manual_seed(0)
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, **PEER)
        return shake(GPT2LMHeadModel(config)).eval()
    types = {"layer_types": SLIDING["layer_types"][:2]} if kind == "sliding" else {}
    model = tiny_model(**{"num_hidden_layers": 2, "max_position_embeddings": 128, **VARIANTS.get(kind, WIDE), **types})
    if kind.startswith("bfloat16"):
        model = model.bfloat16()
    if kind.endswith("int8"):
        quantize_model(model)
    return model


def generated(model, length, **generation):
    torch.manual_seed(0)
    return model.generate(tiny_ids(1, length), max_new_tokens=12, pad_token_id=0, eos_token_id=None, **generation)


KINDS = [
    "default",
    "gpt2",
    "sinusoidal",
    "sliding",
    "int8",
    "bfloat16",
    "bfloat16 int8",
    "llama",
    "transformers' GPT-2",
]


@pytest.mark.parametrize("kind", KINDS)
def test_one_compilation_serves_every_length_with_the_same_tokens(kind, graphs):
    model = model_of(kind)
    requests = [(5, {"do_sample": False}), (17, {"do_sample": True}), (1, {"do_sample": True, "top_k": 5}),
                (70, {"do_sample": False, "repetition_penalty": 1.5}), (100, {"do_sample": False})]  # fmt: skip
    expected = [generated(model, length, **generation) for length, generation in requests]
    assert not graphs
    compiled.compile_generation("--model it", model, first_id=1)
    times = 2 if kind == "sliding" else 1  # before and after the window is full
    assert len(graphs) == times
    for (length, generation), tokens in zip(requests, expected, strict=True):
        same = length + 2 if kind.startswith("bfloat16") else None  # then it decides near ties otherwise
        assert torch.equal(generated(model, length, **generation)[:, :same], tokens[:, :same])
    assert len(graphs) == times


def test_an_answer_that_has_been_stopped_does_not_spoil_the_next(folder, graphs):
    model, tokenizer = load_for_inference(str(folder))
    texts = []
    for _ in range(2):
        stream = TextStream(tokenizer, lambda text: None)
        texts.append(generate_text(model, tokenizer, [5, 6, 7], stream, max_new_tokens=20, do_sample=False))
        if len(texts) == 1:
            compiled.compile_generation("--model it", model, first_id=5)
            stopped = TextStream(tokenizer, lambda text: None, stop=[texts[0][2:4]])
            assert (
                generate_text(model, tokenizer, [5, 6, 7], stopped, max_new_tokens=20, do_sample=False) == texts[0][:2]
            )
    assert texts[0] == texts[1]
    assert len(graphs) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------------------------------------------------


def both_outputs(main, capsys, graphs, *options):
    """What a command prints without and with the option."""
    outputs = []
    for more in ([], ["--torch_compile", "true"]):
        assert not graphs
        assert run_command(main, [*options, *more]) == 0
        outputs.append(capsys.readouterr())
    assert len(graphs) == 1
    assert "compiling the model" in outputs[1].err
    return [output.out for output in outputs]


@pytest.mark.parametrize("more", [["--num_samples", "2"], ["--temperature", "0", "--quantization", "int8"]])
def test_generate_prints_the_same(folder, graphs, capsys, more):
    prompts = ["--prompt", "The", "The a number 1 is", "", "--max_new_tokens", "12"]
    before, after = both_outputs(generate.main, capsys, graphs, "--model", str(folder), *prompts, *more)
    assert before == after
    assert len(before) > 100


def test_chat_answers_the_same_over_several_turns(folder, graphs, capsys, monkeypatch):
    real = chat.main

    def talk(argv):
        monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo and more?\n/reset\nThree?\n"))
        return real(argv)

    before, after = both_outputs(talk, capsys, graphs, "--model", str(folder), "--max_new_tokens", "9")
    assert before == after
    assert len(before.splitlines()) >= 3


# ----------------------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------------------


def refused(main, capsys, *options):
    assert run_command(main, [*options, "--torch_compile", "true"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_beams": 3}, "has a generation_config.json that asks for beam_search, which cannot be compiled"),
        ({"prompt_lookup_num_tokens": 3}, "has a generation_config.json that asks for assisted_generation, which"),
        ({"use_cache": False}, "has a generation_config.json with use_cache false, but a compiled step needs a cache"),
    ],
)
def test_a_way_to_generate_that_cannot_be_compiled(settings, reason, folder, capsys, monkeypatch):
    model, tokenizer = load_for_inference(str(folder))
    model.generation_config.update(**settings)
    monkeypatch.setattr(generate, "load_for_inference", lambda *names, **options: (model, tokenizer))
    error = refused(generate.main, capsys, "--model", str(folder), "--prompt", "The")
    assert error.startswith(f"error: --torch_compile true: --model {folder} {reason}")
    assert error.endswith("Remove --torch_compile.")


def test_a_model_that_transformers_cannot_compile(folder, capsys, monkeypatch):
    model, tokenizer = load_for_inference(str(folder))
    monkeypatch.setattr(generate, "load_for_inference", lambda *names, **options: (model, tokenizer))
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    error = refused(generate.main, capsys, "--model", str(folder), "--prompt", "The")
    assert "is a scratch_gpt model, which transformers cannot compile. Remove --torch_compile." in error


def test_weights_that_cannot_be_compiled(folder):
    model = model_of("int8")
    model.hf_quantizer = type(
        "Quantizer", (), {"is_compileable": False, "quantization_config": type("Config", (), {"quant_method": "gptq"})}
    )
    with pytest.raises(ValueError, match="it is quantized with gptq, which cannot be compiled"):
        compiled.compile_generation("it", model, 1)


def test_a_machine_without_a_compiler(folder, capsys):
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        error = refused(generate.main, capsys, "--model", str(folder), "--prompt", "The")
    assert "cannot be compiled, because this machine has no C++ compiler: install g++ or clang++. Remove" in error


def test_an_error_of_the_compiler_is_one_sentence(folder, capsys, monkeypatch):
    settings = compiled.compile_settings

    def broken(graph, inputs):
        raise RuntimeError("Python.h: No such file\nand forty more lines")

    def broken_settings():
        config = settings()
        config.backend, config.mode = broken, None
        return config

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "compile_settings", broken_settings)
    error = refused(chat.main, capsys, "--model", str(folder))
    assert error.startswith(f"error: --torch_compile true: --model {folder} cannot be compiled (")
    assert "Python.h: No such file). Remove --torch_compile." in error


def test_options_that_exclude_each_other(folder, capsys):
    error = refused(generate.main, capsys, "--model", str(folder), "--show_top", "3")
    assert "--show_top (3) requires --torch_compile false." in error
    error = refused(serve.main, capsys, "--model", str(folder))
    assert "--torch_compile (true) requires --continuous_batching false." in error


# ----------------------------------------------------------------------------------------------------------------------
# With torch's own compiler
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("more", [[], ["--quantization", "int8"]])
def test_code_for_this_machine(folder, more, capsys):
    if compiled.compiler_problem():
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    outputs = []
    for compile_too in ([], ["--torch_compile", "true"]):
        options = ["--prompt", "The", "The a number 1 is", "--max_new_tokens", "12", *more, *compile_too]
        assert run_command(generate.main, ["--model", str(folder), *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
