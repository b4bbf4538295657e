"""New processes: checkpoints with code, the cost of importing the package, and PEFT imported before or after it.

One script imports torch and transformers once and forks for each case, so that every case starts with none of our
modules loaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP
from tests.support.tiny import tiny_ids, tiny_model

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import json, os, shutil, sys, traceback
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file
from transformers import (
    AutoConfig, AutoModel, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2TokenizerFast
)
from transformers.utils.hub import HF_MODULES_CACHE

repository, saved, cases = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]

# Checkpoints, where the package is not importable

def load(name, folder):
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model

def load_first(name):
    sys.modules["hf_scratch_gpt"] = None  # makes `import hf_scratch_gpt` fail even where it is installed
    shutil.rmtree(HF_MODULES_CACHE, ignore_errors=True)
    tensors = load_file(saved / "expected.safetensors")
    model = load(name, saved)
    output = model(tensors["ids"])
    if name == "AutoModelForCausalLM":
        assert torch.equal(output.logits, tensors["logits"])
        assert torch.equal(model.generate(tensors["ids"], max_new_tokens=5, do_sample=False), tensors["generated"])
    if name == "AutoModel":
        assert torch.equal(output.last_hidden_state, tensors["hidden"])
    if name == "AutoModelForCausalLM":
        check_label_smoothing(model, tensors["ids"])
    again = Path(name)
    model.save_pretrained(again)
    assert (again / "modeling_scratch_gpt.py").exists() and (again / "configuration_scratch_gpt.py").exists()
    config = json.loads((again / "config.json").read_text())
    assert config["auto_map"] == json.loads((saved / "config.json").read_text())["auto_map"]
    for expected, actual in zip(output.to_tuple(), load(name, again)(tensors["ids"]).to_tuple()):
        assert not isinstance(expected, torch.Tensor) or torch.equal(actual, expected)

def check_label_smoothing(model, ids):
    arguments = transformers.TrainingArguments(label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    trainer = transformers.Trainer(model, arguments)
    with torch.no_grad():
        actual = trainer.compute_loss(model, {"input_ids": ids, "labels": ids})
        terms = -model(ids).logits[:, :-1].log_softmax(-1)
    expected = 0.9 * terms.gather(-1, ids[:, 1:, None]).mean() + 0.1 * terms.mean()
    assert abs(actual - expected) < 1e-5, (actual, expected)

def load_without_trust():
    try:
        transformers.AutoModelForCausalLM.from_pretrained(saved)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError("loaded code without being asked to")

# Importing the package

def build():
    import hf_scratch_gpt
    config = hf_scratch_gpt.ScratchGPTConfig.from_preset("tiny")
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert type(model) is hf_scratch_gpt.ScratchGPTForCausalLM
    return model

def import_costs_no_more_than_gpt2():
    before = set(sys.modules)
    import hf_scratch_gpt
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert added <= {"hf_scratch_gpt", "transformers", "torch", "tokenizers"}, added
    assert not {"datasets", "peft", "matplotlib"} & set(sys.modules)

def import_again():
    import importlib
    import hf_scratch_gpt
    importlib.reload(hf_scratch_gpt)
    build()
    for name in [name for name in sys.modules if name.partition(".")[0] == "hf_scratch_gpt"]:
        del sys.modules[name]
    build()
    assert transformers.AutoConfig.for_model("scratch_gpt").model_type == "scratch_gpt"

def check_lora_targets():
    import peft
    adapted = peft.get_peft_model(build(), peft.LoraConfig(task_type="CAUSAL_LM"))
    assert adapted.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    assert peft.get_peft_model(build(), config).peft_config["default"].target_modules == "self_attn"
    assert not [finder for finder in sys.meta_path if "hf_scratch_gpt" in type(finder).__module__]

def import_before_peft():
    import hf_scratch_gpt
    check_lora_targets()

def import_after_peft():
    import peft
    check_lora_targets()

def run(case):
    if case.startswith("AutoModel"):
        load_first(case)
    else:
        if case.startswith("import_"):
            sys.path.insert(0, repository)
        globals()[case]()

for case in cases:
    process = os.fork()
    if process == 0:
        try:
            run(case)
            result = "passed"
        except BaseException:
            result = traceback.format_exc()
        Path(case + ".txt").write_text(result)
        os._exit(0)
    os.waitpid(process, 0)
"""
CASES = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "load_without_trust",
    "import_costs_no_more_than_gpt2",
    "import_again",
    "import_before_peft",
    "import_after_peft",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working folder of the script; for each case it contains a file with "passed" or the traceback."""
    folder = tmp_path_factory.mktemp("new_process")
    model, ids = tiny_model(), tiny_ids(1)
    model.save_pretrained(folder / "saved")
    with torch.no_grad():
        tensors = {
            "ids": ids,
            "logits": model(ids).logits,
            "hidden": model.model(ids).last_hidden_state,
            "generated": model.generate(ids, max_new_tokens=5, do_sample=False),
        }
    save_file(tensors, folder / "saved" / "expected.safetensors")
    environment = {
        "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-I", "-c", SCRIPT, REPOSITORY, folder / "saved", *CASES]
    subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_in_a_new_process(case, folder):
    """Each Auto class is the first that its process uses, so that no other has registered our classes."""
    if "peft" in case:
        pytest.importorskip("peft")
    assert (folder / f"{case}.txt").read_text() == "passed"  # the file is missing if the process was killed


def test_saved_config_names_all_classes(folder):
    assert json.loads((folder / "saved" / "config.json").read_text())["auto_map"] == AUTO_MAP
