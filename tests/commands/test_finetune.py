"""scratch-gpt finetune from start to end: an assistant that ends its answers, shown before and after."""

import inspect
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_scratch_gpt.tokenization_scratch_gpt import CHAT_TOKENS, END_OF_TURN, ScratchGPTTokenizer
from tests.support.stopped import killed_after
from tests.support.tiny_base import TEXTS, chat, options, save_base, write_conversations, write_rows
from train import finetune, finetune_classifier, pretrain
from train.loop import train as loop
from train.loop.language_modeling import LanguageModeling, next_token_objective
from train.settings import defaults
from train.settings.command import run_command


@pytest.fixture
def tune(tmp_path, base):
    """Run the command with changed settings; returns the run folder."""

    def tune(name="run", **settings):
        data = [str(write_conversations(tmp_path / "rows.jsonl"))]
        held_out = [str(write_conversations(tmp_path / "held_out.jsonl", 3))]
        defaults = {
            "model": str(base),
            "train_file": data,
            "validation_file": held_out,
            "output_dir": str(tmp_path / name),
        }
        assert finetune.main(options(**defaults | settings)) == 0
        return tmp_path / name

    return tune


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_assistant_answers_and_stops(tune, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the answers depend on the dropout masks
    few = [str(write_conversations(tmp_path / "few.jsonl", 4))]
    run = tune(train_file=few, max_steps=300, learning_rate=0.01, eval_steps=150, logging_steps=40, max_new_tokens=20)
    losses = [record["eval_loss"] for record in read(run / "metrics.jsonl") if "eval_loss" in record]
    assert losses[0] > 5
    assert losses[-1] < 0.5
    samples = read(run / "samples.jsonl")
    assert {sample["step"] for sample in samples} == {0, 150, 300}
    assert [sample["prompt"] for sample in samples[:3]] == ["What is 0?", "What is 1?", "What is 2?"]
    talk = pipeline("text-generation", model=str(run / "model"), device="cpu")
    answer = talk(chat("What is 1?"), max_new_tokens=40, do_sample=False)[0]["generated_text"][-1]
    assert answer == {"role": "assistant", "content": TEXTS[1]}
    again = talk(chat("What is 0?", TEXTS[0], "Sure?"), max_new_tokens=40, do_sample=False)[0]["generated_text"][-1]
    assert again["content"] == "Yes."
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    stops = json.loads((run / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    card = (run / "model" / "README.md").read_text()
    assert f"reference: {TEXTS[1]}" in card
    assert f"after:     {TEXTS[1]}" in card
    assert re.search(r"loss on held-out answers \(nats per token\) \| 5\.\d+ \| 0\.\d+ \|", card)
    assert str(run) not in card


@pytest.mark.parametrize("settings", [{"packing": False}, {"trainable": "layers"}, {"optimizer": "muon"}])
def test_ways_to_train(tune, settings):
    run = tune(**settings)
    losses = [record["loss"] for record in read(run / "metrics.jsonl") if "loss" in record]
    assert losses[-1] < losses[0]


def test_questions_that_leave_no_room_for_an_answer_are_not_asked(tune, tmp_path):
    rows = [{"messages": chat("what " * 50, "a")}, {"messages": chat("Why?", "b")}]
    run = tune(validation_file=[str(write_rows(tmp_path / "long.jsonl", rows))], max_new_tokens=20, too_long="truncate")
    assert {sample["prompt"] for sample in read(run / "samples.jsonl")} == {"Why?"}


@pytest.mark.parametrize("is_best", [True, False])
def test_the_card_has_the_step_of_the_final_weights(tune, monkeypatch, is_best):
    losses = [9.5, 8.25, 7.5, 3.125, 5.5, 6.5, 7.75]  # before training, and after each step
    real, given = LanguageModeling.compute_metrics, iter(losses)
    monkeypatch.setattr(
        LanguageModeling, "compute_metrics", lambda self, sums: real(self, sums) | {"eval_loss": next(given)}
    )
    run = tune(load_best_model_at_end=is_best, max_steps=6, eval_steps=1, save_total_limit=9)
    step = 3 if is_best else 6
    card = (run / "model" / "README.md").read_text()
    assert f"the weights are those of step {step}." in card
    assert f"| {losses[step]:.4f} |" in card
    kept, saved = (
        load_file(folder / "model.safetensors") for folder in (run / "model", run / f"checkpoint-{step:08d}")
    )
    assert all(torch.equal(kept[name], saved[name]) for name in kept)


def test_packing_changes_the_rows_but_not_the_evaluation(tune):
    first = [read(tune(str(packing), packing=packing) / "metrics.jsonl")[0]["eval_loss"] for packing in (True, False)]
    assert first[0] == pytest.approx(first[1], abs=1e-5)


@pytest.mark.parametrize("trainable", ["lora", "layers"])
def test_gradient_checkpointing_changes_nothing(tune, trainable):
    losses = []
    for how in ("false", "selective", "true"):
        run = tune(how, trainable=trainable, gradient_checkpointing=how, max_steps=3, learning_rate=0.01)
        losses.append([record["loss"] for record in read(run / "metrics.jsonl") if "loss" in record])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_lora_trains_the_embeddings_of_control_tokens_too(tune, base):
    run = tune(trainable="lora", learning_rate=0.05)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run / "model"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if "_proj" in name} | {"model.embed_tokens.weight"}
    rows = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(dim=1).nonzero().flatten()
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert set(rows.tolist()) <= set(tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)))
    assert tokenizer.convert_tokens_to_ids(END_OF_TURN) in rows
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tokenizer_without_chat_tokens_gets_them_and_the_model_embeddings_for_them(tune, base, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # 150 steps suffice with the dropout masks of the CPU
    folder = save_base(tmp_path / "plain")
    text = (folder / "tokenizer.json").read_text()
    for number, token in enumerate(CHAT_TOKENS):
        text = text.replace(token, f"<|unused{number}|>")
    (folder / "tokenizer.json").write_text(text)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = []
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink()
    few = [str(write_conversations(tmp_path / "few.jsonl", 4))]
    run = tune(model=str(folder), train_file=few, max_steps=150, learning_rate=0.02, eval_steps=150, logging_steps=50)
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, run / "model"))
    assert new.config.vocab_size == old.config.vocab_size + len(CHAT_TOKENS)
    talk = pipeline("text-generation", model=str(run / "model"), device="cpu")
    assert talk(chat("What is 1?"), max_new_tokens=40, do_sample=False)[0]["generated_text"][-1]["content"] == TEXTS[1]


def test_new_embeddings_lie_among_the_old_ones(base, tmp_path):
    from train.model.pretrained import load_base
    from train.settings.finetuning import BaseArguments

    loaded = load_base(BaseArguments(str(base)), 0, AutoModelForCausalLM)
    old = loaded.model.get_input_embeddings().weight.detach().clone()
    loaded.tokenizer.chat_template = None
    loaded.tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    finetune.learn_to_chat(loaded, "model")
    rows = loaded.model.get_input_embeddings().weight.detach()
    assert len(rows) == len(old) + 1
    assert torch.equal(rows[: len(old)], old)
    assert (rows[-1] - old.mean(dim=0)).norm() < 0.1 * (old - old.mean(dim=0)).norm(dim=1).mean()


def test_a_stopped_run_continues_bit_identically(tune):
    whole = tune("whole", max_steps=6, save_steps=2, eval_steps=2)
    with killed_after(3):
        tune("parts", max_steps=6, save_steps=2, eval_steps=2)
    parts = tune("parts", max_steps=6, save_steps=2, eval_steps=2)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read(whole / "samples.jsonl") == read(parts / "samples.jsonl")


def test_a_continued_run_keeps_the_values_that_it_has_chosen(tune, monkeypatch, capsys):
    """Also if the rules for them have changed in between."""
    chosen = dict.fromkeys(("max_steps", "global_batch_size", "micro_batch_size", "learning_rate"))
    with killed_after(3):
        tune(**chosen, save_steps=2)
    first = capsys.readouterr().out
    assert "12 conversations x 10 epochs = 30 updates of 4 conversations, peak learning rate 0.021 (adamw)" in first
    for name in ("MOST_EPOCHS", "SMALLEST_BATCH"):
        monkeypatch.setattr(defaults, name, 2 * getattr(defaults, name))
    monkeypatch.setattr(defaults, "TUNING_RATES", {"adamw": 1.0})
    tune(**chosen, save_steps=2)
    assert "= 30 updates of 4 conversations, peak learning rate 0.021 (adamw)" in capsys.readouterr().out


@pytest.mark.parametrize("trainable", [None, "all", "lora"])  # None: pretrain
def test_a_full_disk_while_the_tokenizer_is_saved_is_an_error_of_the_system(
    recipe, base, tmp_path, monkeypatch, capsys, trainable
):
    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    rows = write_conversations(tmp_path / "rows.jsonl")
    line = [recipe(max_steps=1, warmup_steps=0)]
    if trainable:
        line = options(model=base, train_file=rows, output_dir=tmp_path / "run", max_steps=1, trainable=trainable)
    monkeypatch.setattr(ScratchGPTTokenizer, "save_pretrained", full)
    assert run_command((finetune if trainable else pretrain).main, line) == 2
    assert f"error: No space left on device: {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [pretrain, finetune, finetune_classifier])
def test_all_commands_use_the_same_loop(command):
    assert command.train is loop.train
    assert not re.search(r"\.backward\(|\.step\(\)|zero_grad|optimizer\.", inspect.getsource(command))


def test_pretraining_and_fine_tuning_have_the_same_objective():
    assert finetune.LanguageModeling is next_token_objective.__globals__["LanguageModeling"]


LONG = [{"messages": chat("Why?", "The " * 80)}, {"messages": chat("Who?", "The a.")}] * 5
BAD = {
    "no answer": ({"rows": [{"messages": chat("Hello?")}] * 9}, "rows.jsonl:.: no message is from the assistant"),
    "too long": ({"rows": LONG}, r"5 of 9 conversations .* --max_length \(64 tokens\).*--too_long truncate"),
    "columns": ({"rows": [{"text": "x"}] * 9}, "a conversation needs the columns messages; .*, not text"),
    "control": ({"rows": [{"prompt": "a <|end|>", "completion": "b"}] * 9}, r"contains the control token '<\|end\|>'"),
    "length": ({"max_length": 65}, "--max_length is 65, but the model reads at most 64 tokens"),
    "prompt": ({"sample_prompts": ["why " * 40]}, "--sample_prompts 'why .* tokens, but the model reads at most 64 "),
    "template": ({"template": "{{ messages[0]['content'] }}"}, "has no generation markers.*--chat_template own"),
    "head": ({"trainable": "head"}, "the head of this model is its embedding table; train layers, lora or all"),
    "nothing fits": ({"rows": LONG[::2] * 3, "too_long": "skip"}, r"no train conversation fits .* \(64\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_training_starts(name, tmp_path, capsys):
    settings, message = dict(BAD[name][0]), BAD[name][1]
    model = save_base(tmp_path / "model")
    if template := settings.pop("template", None):
        (model / "chat_template.jinja").write_text(template)
    data = [str(write_conversations(tmp_path / "rows.jsonl"))]
    if rows := settings.pop("rows", None):
        write_rows(tmp_path / "rows.jsonl", rows)
    defaults = {"model": str(model), "train_file": data, "output_dir": str(tmp_path / "run")}
    assert run_command(finetune.main, options(**defaults | settings)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# Adapters as a start


@pytest.fixture
def adapter(tune):
    return tune("adapted", trainable="lora", learning_rate=0.05) / "adapter"


def test_an_adapter_can_be_tuned_further(tune, adapter):
    run = tune("further", model=str(adapter), max_steps=1)
    merged = adapter.parent / "model"
    first = read(run / "metrics.jsonl")[0]["eval_loss"]
    assert first == pytest.approx(read(tune("same", model=str(merged), max_steps=1) / "metrics.jsonl")[0]["eval_loss"])


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path, capsys):
    rows = str(write_conversations(tmp_path / "rows.jsonl"))
    assert (
        run_command(
            finetune.main, options(model=adapter, train_file=rows, output_dir=tmp_path / "run", trainable="lora")
        )
        == 2
    )
    assert "is an adapter: it takes neither --random_weights nor another adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "is an adapter for other weights than those in"),
        ({"hidden_size": 32, "forget": True}, "is an adapter for another model"),
        ({"num_hidden_layers": 1, "forget": True}, "another model: 14 of its weights do not match this one"),
        ({"gone": True}, r"is an adapter whose base model \./nowhere does not exist"),
    ],
)
def test_adapters_for_another_model_are_refused(adapter, tmp_path, capsys, changes, message):
    changes = dict(changes)
    if changes.pop("forget", False):
        (adapter / "base_model.json").unlink()
    name = "./nowhere" if changes.pop("gone", False) else str(save_base(tmp_path / "other", **changes))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": name}))
    data = [str(write_conversations(tmp_path / "rows.jsonl"))]
    line = options(model=str(adapter), train_file=data, output_dir=str(tmp_path / "run"))
    assert run_command(finetune.main, line) == 2
    assert re.search(message, capsys.readouterr().err)
