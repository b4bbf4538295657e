"""The launch files parse, start pretraining with options that exist, and do what their comments say."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from train.settings.recipe import parse_recipe
from train.settings.training import DataArguments, ModelArguments, TrainArguments

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
ACCELERATE = {"ddp.yaml": 8, "ddp_cpu.yaml": 2, "multi_node.yaml": 16}  # processes
SHELL = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
YAML = [path for path in FILES if path.suffix == ".yaml"]
RECIPE = "config: tiny\ndata_dir: data\noutput_dir: run\nwarmup_steps: 0\n"  # required settings
KINDS = (ModelArguments, DataArguments, TrainArguments)


def name_of(path):
    return path.name


def settings_in(path):
    """The settings after each `-m train.pretrain` of a file, comments included, as lists of words."""
    if path.name == "kubernetes_trainjob.yaml":
        return [yaml.safe_load(path.read_text())["spec"]["trainer"]["command"][3:]]
    text = re.sub(r"\\\n#? *", "", path.read_text())
    return [
        shlex.split(rest, comments=True)
        for rest in re.findall(r"-m (?:train\.pretrain|examples\.launch\.ray_train) (.*)", text)
    ]


def test_the_folder_contains_the_files_that_are_tested():
    known = {*ACCELERATE, "slurm.sbatch", "hf_jobs.sh", "ray_train.py", "kubernetes_trainjob.yaml", "skypilot.yaml"}
    assert {path.name for path in FILES} == known


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_says_how_far_it_was_tried(path):
    (status,) = re.findall(r"^(?:# )?Status: (.+)", path.read_text(), re.MULTILINE)
    assert status.startswith(("parsed only", "run in tests", "run by hand on"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_starts_pretraining_with_settings_that_exist(path, tmp_path):
    """The command lines go through the parser of pretrain; shell variables become words."""
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
    """`use_cpu` makes accelerate start one process; the variable in the header starts two."""
    assert load_config_from_file(str(LAUNCH / "ddp_cpu.yaml")).use_cpu is False
    assert "ACCELERATE_USE_CPU=true" in (LAUNCH / "ddp_cpu.yaml").read_text()


@pytest.mark.parametrize("path", SHELL, ids=name_of)
def test_shell_files_are_valid_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_commands_of_skypilot_are_valid_bash(part):
    script = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())[part]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_slurm_signals_the_script_in_time_and_may_requeue_it():
    directives = re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    directives = dict(directives)
    receiver, _, rest = directives["signal"].partition(":")
    name, _, seconds = rest.partition("@")
    assert (receiver, name) == ("B", "TERM")  # B: the script, whose trap forwards the signal
    assert int(seconds) >= 60
    assert "requeue" in directives
    assert directives["open-mode"] == "append"  # a requeued job keeps the log


SRUN = """#!/bin/bash
# a run that ends as FINAL says: "stopped" after a signal, at most 20 s later
mkdir -p "$RUN_FOLDER"; echo '{"state": "running"}' > "$RUN_FOLDER/status.json"
echo "$@" > "$CALLS/srun"
for _ in {1..1000}; do [ "$FINAL" = stopped ] && [ ! -e "$CALLS/scancel" ] && sleep 0.02; done
echo "{\\"state\\": \\"$FINAL\\"}" > "$RUN_FOLDER/status.json"
[ "$FINAL" = complete ]
"""
STUBS = {
    "srun": SRUN,
    "scancel": '#!/bin/bash\necho "$@" > "$CALLS/scancel"\n',
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then echo node1; else echo "$@" > "$CALLS/scontrol"; fi\n',
}


def run_slurm(tmp_path, final):
    """Start slurm.sbatch with SLURM's commands replaced, as job 7, whose training ends as `final`."""
    calls = tmp_path / "calls"
    for folder in (calls, tmp_path / "bin"):
        folder.mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls), "FINAL": final,
        "RUN_FOLDER": str(tmp_path / "run"), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip
    return subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), "recipe.yaml"], env=environment), calls


def test_a_slurm_job_that_is_signalled_forwards_the_signal_and_requeues_itself(tmp_path):
    job, calls = run_slurm(tmp_path, "stopped")
    deadline = time.monotonic() + 30
    while not (calls / "srun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 0
    assert (calls / "scancel").read_text() == "--signal=TERM 7.0\n"
    assert (calls / "scontrol").read_text() == "requeue 7\n"
    assert "-m train.pretrain recipe.yaml --output_dir" in (calls / "srun").read_text()


@pytest.mark.parametrize(("final", "code"), [("complete", 0), ("failed", 1)])
def test_a_slurm_job_that_ends_is_not_requeued(tmp_path, final, code):
    job, calls = run_slurm(tmp_path, final)
    assert job.wait(timeout=30) == code
    assert not (calls / "scontrol").exists()


def test_the_ray_script_trains_in_a_thread(recipe, tmp_path, monkeypatch):
    """With Ray replaced by one worker in a thread."""

    class TorchTrainer:
        def __init__(self, worker, *, train_loop_config, scaling_config, run_config):
            assert scaling_config == {"num_workers": 8, "use_gpu": True}
            assert run_config["failure_config"]["max_failures"] > 0
            self.thread = threading.Thread(target=worker, args=(train_loop_config,))

        def fit(self):
            self.thread.start()
            self.thread.join()

    names = dict.fromkeys(("FailureConfig", "RunConfig", "ScalingConfig"), dict)
    modules = {"ray": {}, "ray.train": names, "ray.train.torch": {"TorchTrainer": TorchTrainer}}
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["ray_train", recipe(), "--max_steps=2", "--warmup_steps=0"])
    runpy.run_module("examples.launch.ray_train", run_name="__main__")
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_contains_secrets_or_paths_of_one_machine(path):
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|/home/|/root/|/Users/", path.read_text())
