"""scratch-gpt pretrain from prepared data to a model folder, and its errors."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch_gpt import ScratchGPTConfig
from tests.support.stopped import signalled_after
from tests.support.tiny_run import SHAPE, records, weights
from train import pretrain
from train.model.new import build_config, new_model
from train.settings import defaults
from train.settings.command import run_command
from train.settings.finetuning import FinetuneArguments
from train.settings.training import MAY_CHANGE, ModelArguments, TrainArguments


def test_a_run_writes_its_files_and_prints_its_settings(recipe, tmp_path, capsys):
    assert pretrain.main([recipe()]) == 0
    run, shown = tmp_path / "run", capsys.readouterr().out
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "samples.jsonl", "checkpoint-00000003", "checkpoint-00000006"} <= names
    assert [record["step"] for record in records(run) if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records(run) if "eval_bits_per_byte" in record] == [3, 6]
    for line in (
        r"model +[\d,]+ parameters",
        r"tokens per step +64 \(4 sequences of 16\)",
        r"micro-batches per step +2 of 2 sequences\n",
        r"processes +1\n",
        r"tokens in total +384 \(0.\d\d epochs\)",
        r"steps +0 of 6 done",
        r"precision +fp32",
    ):
        assert re.search(line, shown), line


def test_the_model_folder_loads_by_itself(recipe, tmp_path):
    pretrain.main([recipe()])
    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    saved = weights(tmp_path / "run" / "checkpoint-00000006")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_the_expected_time_of_a_new_run_is_printed(recipe, capsys):
    pretrain.main([recipe(max_steps=2)])
    assert re.search(r"^expected time +about [\d.]+ seconds \(measured", capsys.readouterr().out, re.M)
    pretrain.main([recipe(max_steps=2)])
    assert "expected time" not in capsys.readouterr().out


def test_a_model_too_large_for_the_memory_gives_a_warning_and_is_not_timed(recipe, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "free_memory_of", lambda _device: 1e5)
    monkeypatch.setattr(pretrain, "measure_speed", None)
    pretrain.main([recipe(max_steps=2)])
    shown = capsys.readouterr().out
    assert re.search(
        r"^WARNING +weights, gradients and optimizer state need 0\.00\d+ GB or more, but only 0\.0001 GB are free",
        shown,
        re.M,
    )


def test_the_engine_is_checked_before_anything_takes_time(recipe, monkeypatch):
    monkeypatch.setattr(pretrain, "new_model", None)
    with pytest.raises(ValueError, match=r"--dp_shard_size \(8\) .* must divide the number of processes \(1\)"):
        pretrain.main([recipe(dp_shard_size=8)])


def test_pretraining_continues_from_the_weights_of_a_model(recipe, tmp_path, data_dir, capsys):
    pretrain.main([recipe(learning_rate=1e-2, max_steps=12)])
    first = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    model = tmp_path / "run" / "model"
    command = [recipe(learning_rate=1e-4), "--config", "null", "--model", str(model), "--output_dir"]
    assert run_command(pretrain.main, [*command, str(tmp_path / "longer")]) == 0
    again = [record["loss"] for record in records(tmp_path / "longer") if "loss" in record]
    assert again[0] < first[0] - 0.5
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "longer" / "model").config.hidden_size == SHAPE["hidden_size"]
    )
    card = (tmp_path / "longer" / "model" / "README.md").read_text()
    assert "the pretraining of a model that is not on the Hub was continued" in card
    assert "from-scratch" not in card
    assert str(tmp_path) not in card
    other = model.rename(tmp_path / "other")  # with other weights, the run is another
    changed = load_file(other / "model.safetensors")
    changed["model.norm.weight"] += 1
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert run_command(pretrain.main, [*command, str(tmp_path / "longer"), "--model", str(other)]) == 2
    assert "the weights of --model: other contents than before" in capsys.readouterr().err


def test_the_tokenizer_of_the_model_must_be_that_of_the_data(recipe, tmp_path, capsys):
    pretrain.main([recipe(max_steps=2)])
    model = tmp_path / "run" / "model"
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace('"def"', '"fed"').replace("<|user|>", "<|human|>"))
    (model / "training.json").unlink()  # it names the tokenizer that the model was trained with
    command = [recipe(), "--config=null", f"--model={model}", f"--output_dir={tmp_path / 'longer'}"]
    assert run_command(pretrain.main, command) == 2
    message = capsys.readouterr().err
    assert "the data was not prepared with the tokenizer of --model" in message
    assert f"scratch-gpt prepare_data --tokenizer {model}" in message


def test_a_shape_and_a_model_exclude_each_other(recipe, capsys):
    assert run_command(pretrain.main, [recipe(), "--model", "x"]) == 2
    assert "give only one of them" in capsys.readouterr().err


def test_no_file_of_a_run_is_a_pickle(recipe, tmp_path):
    pretrain.main([recipe()])
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80", b"PK")), path
            assert path.suffix not in (".bin", ".pt", ".pth", ".pkl"), path


def test_the_written_recipe_gives_the_same_run(recipe, tmp_path):
    pretrain.main([recipe()])
    again = tmp_path / "again"
    pretrain.main([str(tmp_path / "run" / "recipe.yaml"), f"--output_dir={again}"])
    first, second = weights(tmp_path / "run" / "model"), weights(again / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_is_left_alone(recipe, tmp_path, capsys):
    pretrain.main([recipe()])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()}
    capsys.readouterr()
    assert pretrain.main([recipe()]) == 0
    assert "already complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()}


def test_pretraining_continues_from_a_checkpoint_with_the_tokenizer_of_its_run(recipe, tmp_path):
    assert pretrain.main([recipe()]) == 0
    checkpoint = tmp_path / "run" / "checkpoint-00000003"
    assert not (checkpoint / "tokenizer.json").exists()
    longer = [recipe(), "--config=null", f"--model={checkpoint}", f"--output_dir={tmp_path / 'longer'}"]
    assert pretrain.main(longer) == 0
    assert (tmp_path / "longer" / "model" / "tokenizer.json").exists()


def test_the_same_command_continues_a_stopped_run(recipe, tmp_path, capsys):
    whole = recipe(output_dir=str(tmp_path / "whole"))
    pretrain.main([whole])
    command = [recipe(output_dir=str(tmp_path / "parts"))]
    with signalled_after(3, signal.SIGTERM):
        assert pretrain.main(command) == 130
    assert not (tmp_path / "parts" / "model").exists()
    capsys.readouterr()
    assert pretrain.main(command) == 0
    assert "5 of 6 done" in capsys.readouterr().out
    first, second = weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_continued_run_keeps_the_learning_rate_that_it_has_chosen(recipe, tmp_path, monkeypatch, capsys):
    """Also if the rule for it has changed in between."""
    command = [recipe(learning_rate=None)]
    assert pretrain.main(command) == 0
    line = "muon, peak learning rates 0.069 (AdamW) and 0.028 (Muon)"  # 8e-3 x sqrt(192 / 16), and 2.5 times that
    assert line in capsys.readouterr().out
    monkeypatch.setitem(defaults.PRETRAINING_RATES, "muon", 1.0)
    assert pretrain.main(command) == 0
    assert line in capsys.readouterr().out
    pretrain.main([recipe(learning_rate=None, output_dir=str(tmp_path / "new"))])
    assert "muon, peak learning rates 8.7 (AdamW) and 3.5 (Muon)" in capsys.readouterr().out


def test_a_changed_recipe_is_refused_with_all_differences(recipe):
    pretrain.main([recipe()])
    command = [recipe(), "--seed=1", "--learning_rate=1e-2", "--config_overrides=num_hidden_layers=1"]
    with pytest.raises(ValueError, match="was started with other settings") as error:
        pretrain.main(command)
    for line in ("seed: was 0, now 1", "learning_rate: was 0.003, now 0.01", "model.num_hidden_layers: was 2, now 1"):
        assert line in str(error.value)


@pytest.mark.parametrize("kind", [TrainArguments, FinetuneArguments])
def test_settings_that_decide_the_result_are_frozen(kind):
    """A new setting must be added here or to MAY_CHANGE."""
    assert {entry.name for entry in fields(kind)} - MAY_CHANGE == {
        *("seed", "max_steps", "global_batch_size", "micro_batch_size", "precision", "torch_compile", "spike_sigmas"),
        *(
            "muon_momentum",
            "optimizer",
            "learning_rate",
            "matrix_learning_rate",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
        ),
        *("lr_scheduler_type", "warmup_steps", "decay_fraction", "min_lr_ratio", "max_grad_norm"),
    }


def test_all_settings_that_may_change_exist():
    assert {entry.name for entry in fields(FinetuneArguments)} > MAY_CHANGE


@pytest.mark.parametrize("how", ["selective", True])
def test_gradient_checkpointing_changes_nothing(recipe, tmp_path, how):
    pretrain.main([recipe()])
    pretrain.main([recipe(output_dir=str(tmp_path / "other"), gradient_checkpointing=how)])
    for one, other in zip(records(tmp_path / "run"), records(tmp_path / "other"), strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-6)


def test_bfloat16_trains(recipe, tmp_path):
    pretrain.main([recipe(precision="bf16")])
    losses = [record["loss"] for record in records(tmp_path / "run") if "loss" in record]
    assert losses[-1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run" / "model").values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"config_overrides": "max_position_embeddings=15"},
            "sequences of 16 tokens, but max_position_embeddings is 15",
        ),
        ({"max_new_tokens": 31}, "--sample_prompts 'def ' and --max_new_tokens 31 are 3[2-9] tokens, .* at most 32 "),
        ({"config_overrides": "vocab_size=99"}, "vocab_size, which comes from the tokenizer"),
        ({"config_overrides": "num_layers=3"}, "num_layers"),
        ({"config_overrides": "num_hidden_layers"}, "must look like"),
        ({"config_overrides": "num_attention_heads=3"}, r"hidden_size \(16\).*num_attention_heads \(3\)"),
        ({"config_overrides": "hidden_size=wide"}, "hidden_size"),
        ({"config": "huge"}, "--config huge is neither a preset"),
        ({"data_dir": "nowhere"}, "nowhere contains no prepared data"),
        ({"report_to": "nonsense"}, "nonsense"),
        ({"learning_rat": 1.0}, "did you mean learning_rate"),
        ({"precision": "fp16"}, "needs a GPU"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_one_message(recipe, capsys, monkeypatch, changes, message):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert run_command(pretrain.main, [recipe(**changes)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert "Traceback" not in error


def test_a_folder_that_is_not_a_run_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    assert run_command(pretrain.main, [recipe()]) == 2
    assert "is not empty and not a run folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_mistake_in_the_data_creates_no_run_folder(recipe, tmp_path):
    assert run_command(pretrain.main, [recipe(data_dir="nowhere")]) == 2
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written_is_named(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command(pretrain.main, [recipe(output_dir=str(tmp_path / "file" / "run"))]) == 2
    assert re.fullmatch(r"error: Not a directory: \S+file/run\n", capsys.readouterr().err)


def test_a_tracker_that_is_not_installed_is_named(recipe, monkeypatch):
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda log_with, folder: [])
    with pytest.raises(ValueError, match="--report_to tensorboard is not installed"):
        pretrain.main([recipe(report_to="tensorboard")])


def test_presets_and_overrides_make_the_config(recipe, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizer")
    arguments = ModelArguments("gpt2", "num_hidden_layers=3,rms_norm_eps=1e-7,attention_bias=false")
    config = build_config(arguments, tokenizer)
    expected = ScratchGPTConfig.from_preset("gpt2", num_hidden_layers=3, rms_norm_eps=1e-7, attention_bias=False)
    assert config.hidden_size == expected.hidden_size
    assert (config.num_hidden_layers, config.rms_norm_eps, config.attention_bias) == (3, 1e-7, False)
    assert config.vocab_size == len(tokenizer)


def test_the_initial_weights_depend_on_the_seed_alone():
    config = ScratchGPTConfig.from_values(SHAPE | {"vocab_size": 30})
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(built))
        built.append(new_model(config, seed).model.embed_tokens.weight)
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def launch(*command, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=root, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    """(exit code, stdout, stderr) of a process, which ends in any case."""
    try:
        shown, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()
        shown, errors = process.communicate()
    return process.returncode, shown, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate.commands.launch --multi_gpu --num_processes=2 --main_process_port=0",
        "torch.distributed.run --standalone --nproc_per_node=2",
    ],
    ids=["accelerate", "torchrun"],
)
def test_two_processes_train_as_one_does(recipe, tmp_path, launcher):
    path = recipe(config_overrides="residual_dropout=0.0")
    pretrain.main([path, f"--output_dir={tmp_path / 'one'}"])
    process = launch(*launcher.split(), "-m", "train.pretrain", path, ACCELERATE_USE_CPU="true")
    code, shown, errors = finish(process)
    assert code == 0, errors
    assert re.search(r"processes +2\n", shown)
    one, two = records(tmp_path / "one"), records(tmp_path / "run")
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        for name in first.keys() & {"loss", "grad_norm", "eval_loss", "eval_bits_per_byte", "tokens_seen"}:
            assert first[name] == pytest.approx(second[name], abs=1e-5), name


@pytest.mark.slow
def test_a_mistake_on_the_command_line_has_exit_code_2_and_no_traceback(recipe):
    code, shown, errors = finish(launch("train.pretrain", recipe(), "--global_batch_size=5"))
    assert code == 2
    assert shown == ""
    assert errors.startswith("error: --global_batch_size (5) must be a multiple of")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_continue(recipe, tmp_path):
    process = launch("train.pretrain", recipe(max_steps=100_000, save_steps=0, eval_steps=0))
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not records(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, shown, errors = finish(process)
    assert code == 130, errors
    assert "run the same command again to continue" in shown
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
