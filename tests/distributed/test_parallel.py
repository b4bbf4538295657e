"""Two processes on the CPU (gloo): tensor parallelism and native FSDP2 give what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.forks import free_port
from tests.support.tiny import GPT2, tiny_ids, tiny_model

REPOSITORY = Path(__file__).parents[2]
EVEN = {"num_attention_heads": 8, "num_key_value_heads": 4}  # heads that two processes can share

PRELUDE = """
import json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import torch, transformers
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from safetensors.torch import load_file
from transformers.distributed import DistributedConfig
import hf_scratch_gpt

folder, mode = sys.argv[2], sys.argv[4]

def check():
    expected = load_file(folder + "/expected.safetensors")
    config = DistributedConfig(**{mode: 2})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)
    assert dist.get_world_size() == 2
    assert any(isinstance(parameter, DTensor) for parameter in model.parameters()), "nothing was split"
    ids = expected["ids"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # before any forward: FSDP2 swaps parameters
    losses = []
    for _ in range(2):
        output = model(ids, labels=ids, use_cache=False)
        losses.append(output.loss.detach())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(torch.stack(losses), expected["losses"], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        logits = model.eval()(ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    dist.destroy_process_group()

children = []
for rank in range(2):
    process = os.fork()
    if process == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(process)
assert [os.waitpid(process, 0)[1] for process in children] == [0, 0]
"""


def expected_of_one_process(model, ids):
    """Two steps of SGD, then the logits."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = model(ids, labels=ids).loss
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = model(ids).logits
    return {"ids": ids, "losses": torch.stack(losses), "logits": logits}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["tp_size", "fsdp_size"])  # names of transformers
@pytest.mark.parametrize("overrides", [{}, GPT2], ids=["default", "gpt2"])
def test_two_processes_train_as_one(overrides, mode, tmp_path):
    model = tiny_model(**{**EVEN, **overrides}, vocab_size=98)
    model.save_pretrained(tmp_path)
    save_file(expected_of_one_process(model, tiny_ids()), tmp_path / "expected.safetensors")
    arguments = [REPOSITORY, tmp_path, free_port(), mode]
    result = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE, *map(str, arguments)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-5000:]
