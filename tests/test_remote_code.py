"""New processes: checkpoints that carry their code, what importing the package costs, and PEFT before or after it.

The scripts import torch and transformers once and fork for each case, so that a case starts where none of our modules
has ever been loaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_ids, tiny_model

REPOSITORY = Path(__file__).parents[1]
PRELUDE = """
import json, os, shutil, sys, traceback
from pathlib import Path
import torch, transformers, transformers.modeling_utils

def in_new_process(function, *arguments):
    process = os.fork()
    if process == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, (function.__name__, arguments)
"""


def run_python(code, folder, *arguments):
    """Run `code` in isolation, away from the repository; returns its last line of output."""
    environment = {
        "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + code, *map(str, arguments)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().rpartition("\n")[2]


REMOTE = """
from transformers.utils.hub import HF_MODULES_CACHE
sys.modules["hf_scratch_gpt"] = None  # makes `import hf_scratch_gpt` fail even where it is installed
saved = Path(sys.argv[1])

def load(name, folder):
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model

def load_first(name):
    from safetensors.torch import load_file
    tensors = load_file(saved / "expected.safetensors")
    model = load(name, saved)
    output = model(tensors["ids"])
    if name == "AutoModelForCausalLM":
        assert torch.equal(output.logits, tensors["logits"])
        assert torch.equal(model.generate(tensors["ids"], max_new_tokens=5, do_sample=False), tensors["generated"])
    if name == "AutoModel":
        assert torch.equal(output.last_hidden_state, tensors["hidden"])
    again = Path(name)
    model.save_pretrained(again)
    assert (again / "modeling_scratch_gpt.py").exists() and (again / "configuration_scratch_gpt.py").exists()
    config = json.loads((again / "config.json").read_text())
    assert config["auto_map"] == json.loads((saved / "config.json").read_text())["auto_map"]
    for expected, actual in zip(output.to_tuple(), load(name, again)(tensors["ids"]).to_tuple()):
        assert not isinstance(expected, torch.Tensor) or torch.equal(actual, expected)

def load_without_trust():
    try:
        transformers.AutoModelForCausalLM.from_pretrained(saved)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError("loaded code without being asked to")

for name in sys.argv[2:]:
    shutil.rmtree(HF_MODULES_CACHE, ignore_errors=True)
    in_new_process(load_first, name)
in_new_process(load_without_trust)
"""


def test_checkpoints_load_where_the_package_is_not_installed(tmp_path):
    """Each Auto class as the first one that a process loads: a head must not rely on AutoModel knowing us."""
    saved = tmp_path / "saved"
    model, ids = tiny_model(), tiny_ids(1)
    model.save_pretrained(saved)
    with torch.no_grad():
        tensors = {
            "ids": ids,
            "logits": model(ids).logits,
            "hidden": model.model(ids).last_hidden_state,
            "generated": model.generate(ids, max_new_tokens=5, do_sample=False),
        }
    save_file(tensors, saved / "expected.safetensors")
    auto_classes = [name for name in model.config.auto_map if name != "AutoConfig"]
    assert len(auto_classes) == 5
    run_python(REMOTE, tmp_path, saved, *auto_classes)


IMPORT = """
from transformers import (
    AutoConfig, AutoModel, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2TokenizerFast
)
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import hf_scratch_gpt
added = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = sorted(name for name in ("accelerate", "datasets", "peft", "matplotlib", "pandas") if name in sys.modules)
print(json.dumps([sorted(added), heavy]))
"""


def test_importing_the_package_brings_no_more_than_gpt2_does(tmp_path):
    added, heavy = json.loads(run_python(IMPORT, tmp_path, REPOSITORY))
    assert set(added) <= {"hf_scratch_gpt", "transformers", "torch", "tokenizers"}
    assert not set(heavy) & {"datasets", "peft", "matplotlib"}


AGAIN = """
import importlib
sys.path.insert(0, sys.argv[1])
import hf_scratch_gpt
importlib.reload(hf_scratch_gpt)
config = hf_scratch_gpt.ScratchGPTConfig.from_preset("tiny")
assert type(transformers.AutoModelForCausalLM.from_config(config)) is hf_scratch_gpt.ScratchGPTForCausalLM
for name in [name for name in sys.modules if name.partition(".")[0] == "hf_scratch_gpt"]:
    del sys.modules[name]
import hf_scratch_gpt
config = hf_scratch_gpt.ScratchGPTConfig.from_preset("tiny")
assert type(transformers.AutoModelForCausalLM.from_config(config)) is hf_scratch_gpt.ScratchGPTForCausalLM
assert transformers.AutoConfig.for_model("scratch_gpt").model_type == "scratch_gpt"
"""


def test_importing_the_package_again_is_no_error(tmp_path):
    run_python(AGAIN, tmp_path, REPOSITORY)


PEFT = """
import importlib
sys.path.insert(0, sys.argv[1])

def import_in_order(*names):
    for name in names:
        importlib.import_module(name)
    import hf_scratch_gpt, peft
    model = hf_scratch_gpt.ScratchGPTForCausalLM(hf_scratch_gpt.ScratchGPTConfig.from_preset("tiny"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    assert adapted.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert not [finder for finder in sys.meta_path if "hf_scratch_gpt" in type(finder).__module__]

in_new_process(import_in_order, "hf_scratch_gpt", "peft")
in_new_process(import_in_order, "peft", "hf_scratch_gpt")
"""


def test_lora_targets_are_known_whichever_is_imported_first(tmp_path):
    pytest.importorskip("peft")
    run_python(PEFT, tmp_path, REPOSITORY)
