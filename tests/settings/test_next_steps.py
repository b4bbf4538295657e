"""What to do after a command: every line that is printed is a valid command line with the paths of this run."""

import shlex

import pytest

from train import cli, report, rollback
from train.cli import early
from train.settings.command import run_command
from train.settings.next_steps import FOLLOWING, command_line, next_steps, print_next_steps
from train.settings.recipe import parse_recipe

VALUES = {
    "train_tokenizer": {"output_dir": "runs/tokenizer", "text": ["a b.txt", "c.txt"], "validation_fraction": 0.1},
    "prepare_data": {"output_dir": "runs/data"},
    "plan": {"config": "gpt2", "num_gpus": 8, "dp_shard_size": 2, "gradient_checkpointing": True, "tflops": 100.0},
    "pretrain": {"output_dir": "runs/one", "data_dir": "runs/data", "sample_prompts": ["It's\nlate", "x"]},
    "finetune": {"output_dir": "runs/chat"},
    "finetune_classifier": {"output_dir": "runs/labels"},
    "rollback": {"output_dir": "runs/one"},
    "pull": {"model": "alice/tiny"},
    "publish": {"folder_path": "runs/one/model", "repo_id": "alice/tiny", "dry_run": True, "language": ["en", "de"]},
}


@pytest.mark.parametrize("command", FOLLOWING)
def test_every_command_line_is_valid(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    recipe = "config: tiny\ndata_dir: d\noutput_dir: runs/one\n"
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text(recipe)
    steps = next_steps(command, VALUES[command])
    assert steps
    for name, *arguments in steps:
        if name in cli.COMMANDS:
            assert early.check_command_line("train", name, arguments) is None


def test_a_plan_is_trained_as_planned():
    one = next_steps("plan", {"config": "gpt2", "max_steps": 5})
    assert one == [["pretrain", "--config", "gpt2", "--max_steps", "5", "--global_batch_size", "512",
                    "--data_dir", "runs/data", "--output_dir", "runs/mine"]]  # fmt: skip
    ((*launch, _, config), *_) = [step[:8] for step in next_steps("plan", VALUES["plan"])]
    assert launch == ["accelerate", "launch", "--num_processes", "8", "-m", "train.pretrain"]
    assert config == "gpt2"
    assert command_line(next_steps("plan", VALUES["plan"])[0], "scratch-gpt ").startswith("accelerate launch ")


def test_the_paths_and_texts_are_those_of_the_run():
    assert next_steps("train_tokenizer", VALUES["train_tokenizer"]) == [
        ["prepare_data", "--tokenizer", "runs/tokenizer", "--output_dir", "runs/data", "--text", "a b.txt", "c.txt",
         "--validation_fraction", "0.1"]
    ]  # fmt: skip
    generate, evaluate, *_ = next_steps("pretrain", VALUES["pretrain"])
    assert generate == ["generate", "--model", "runs/one/model", "--prompt", "It's"]
    assert evaluate == ["evaluate", "--model", "runs/one/model", "--data_dir", "runs/data"]


@pytest.mark.parametrize(
    ("recipe", "command"),
    [("data_dir: d", "pretrain"), ("packing: true", "finetune"), ("label_column: l", "finetune_classifier")],
)
def test_after_rollback_the_run_continues_with_its_own_command(recipe, command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: r\n{recipe}\n")
    assert next_steps("rollback", {"output_dir": str(tmp_path)}) == [[command, str(tmp_path / "recipe.yaml")]]


def test_a_real_publication_and_other_commands_have_no_next_step():
    assert next_steps("publish", VALUES["publish"] | {"dry_run": False}) == []
    assert next_steps("report", {}) == []
    assert next_steps("plan", VALUES["plan"] | {"tokens": 1e9}) == []  # pretrain has no --tokens


def test_they_are_printed_so_that_a_shell_reads_them_back(capsys):
    print_next_steps(rollback.main, {"output_dir": "nowhere"})
    assert capsys.readouterr() == ("", "")
    from train import pretrain

    print_next_steps(pretrain.main, VALUES["pretrain"])
    printed, hints = capsys.readouterr()
    assert printed == ""  # scripts read what a command prints
    heading, *lines = hints.strip().splitlines()
    assert heading == "next:"
    assert [shlex.split(line)[1:] for line in lines] == next_steps("pretrain", VALUES["pretrain"])
    assert shlex.split(lines[0])[0].endswith("scratch-gpt")


def test_only_the_first_process_prints_them(capsys, monkeypatch):
    from train import pretrain

    monkeypatch.setenv("RANK", "1")
    print_next_steps(pretrain.main, VALUES["pretrain"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("code", "is_shown"), [(0, True), (None, True), (130, False)])
def test_they_follow_a_success(code, is_shown, monkeypatch):
    shown = []
    monkeypatch.setattr("train.settings.command.print_next_steps", lambda main, values: shown.append(values))

    def main(argv):
        parse_recipe([report.ReportArguments], argv)
        return code

    run_command(main, ["--output_dir", "a"])
    assert shown == ([{"output_dir": ["a"]}] if is_shown else [])
