"""The launch files can be read by what they are for, and name only options that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from train.settings.recipe import parse_recipe
from train.settings.training import DataArguments, ModelArguments, TrainArguments

LAUNCH = Path(__file__).parents[2] / "train" / "launch"
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
ACCELERATE = {"ddp.yaml": 8, "ddp_cpu.yaml": 2, "multi_node.yaml": 16}  # processes
SHELL = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
YAML = [path for path in FILES if path.suffix == ".yaml"]
RECIPE = "config: tiny\ndata_dir: data\noutput_dir: run\nwarmup_steps: 0\n"  # what a recipe must hold
KINDS = (ModelArguments, DataArguments, TrainArguments)


def name_of(path):
    return path.name


def settings_in(path):
    """The settings that follow each `-m train.pretrain` of a file, comments included, as lists of words."""
    if path.name == "kubernetes_trainjob.yaml":
        return [yaml.safe_load(path.read_text())["spec"]["trainer"]["command"][3:]]
    text = re.sub(r"\\\n#? *", "", path.read_text())
    return [
        shlex.split(rest, comments=True) for rest in re.findall(r"-m train\.(?:pretrain|launch\.ray_train) (.*)", text)
    ]


def test_the_folder_holds_what_the_tests_know():
    known = {*ACCELERATE, "slurm.sbatch", "hf_jobs.sh", "ray_train.py", "kubernetes_trainjob.yaml", "skypilot.yaml"}
    assert {path.name for path in FILES} == known


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_says_how_far_it_was_tried(path):
    (status,) = re.findall(r"^(?:# )?Status: (.+)", path.read_text(), re.MULTILINE)
    assert status.startswith(("parsed only", "run in tests", "run by hand on"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_starts_pretraining_with_settings_that_exist(path, tmp_path):
    """The command lines go through the parser of train.pretrain itself; shell variables become words."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    commands = settings_in(path)
    assert commands
    for words in commands:
        words = [word for word in words if word not in ("&", "$@") and not word.endswith(".yaml")]
        parse_recipe(KINDS, [str(recipe), *words])


@pytest.mark.parametrize("path", YAML, ids=name_of)
def test_yaml_files_parse(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_files(name):
    config = load_config_from_file(str(LAUNCH / name))
    assert config.num_processes == ACCELERATE[name]
    assert config.distributed_type == "MULTI_GPU"
    assert config.mixed_precision == "no"
    assert not config.fsdp_config
    assert not config.deepspeed_config


def test_ddp_on_cpus_is_not_told_to_use_the_cpu():
    """`use_cpu` makes accelerate start one process; the variable in the header is what starts two."""
    assert load_config_from_file(str(LAUNCH / "ddp_cpu.yaml")).use_cpu is False
    assert "ACCELERATE_USE_CPU=true" in (LAUNCH / "ddp_cpu.yaml").read_text()


@pytest.mark.parametrize("path", SHELL, ids=name_of)
def test_shell_files_are_valid_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_commands_of_skypilot_are_valid_bash(part):
    script = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())[part]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_slurm_signals_requeues_and_appends():
    text = (LAUNCH / "slurm.sbatch").read_text()
    for line in ("--requeue", "--signal=B:TERM@120", "--open-mode=append"):
        assert f"\n#SBATCH {line}\n" in text
    assert text.index("trap ") < text.index("scontrol requeue")


def test_the_ray_script_is_short_and_compiles():
    text = (LAUNCH / "ray_train.py").read_text()
    compile(text, "ray_train.py", "exec")
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_holds_secrets_or_places_of_one_machine(path):
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|/home/|/root/|/Users/", path.read_text())
