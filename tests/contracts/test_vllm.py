"""The plugin that lets vLLM load our models without remote code, called as vLLM calls it.

The rules for the attention code are in tests/package/test_kernels.py. `benchmarks/vllm_greedy.py` runs vLLM itself.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
AS_VLLM_DOES = """
import sys
from importlib.metadata import EntryPoint

import transformers  # vLLM has imported it before

plugin = EntryPoint("scratch_gpt", sys.argv[1], "vllm.general_plugins").load()
plugin()
plugin()

import transformers
from transformers import AutoConfig, AutoModel
from transformers.processing_utils import ProcessorMixin

model_class = getattr(transformers, "ScratchGPTForCausalLM")
assert model_class.is_backend_compatible()
config = AutoConfig.for_model("scratch_gpt", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
assert type(AutoModel.from_config(config)) is getattr(transformers, "ScratchGPTModel")
assert getattr(transformers, "ScratchGPTForSequenceClassification")
assert "vllm" not in sys.modules
"""


def test_the_plugin_puts_our_classes_where_vllm_looks():
    """In a process of its own: it changes the module `transformers`."""
    plugins = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["vllm.general_plugins"]
    assert list(plugins) == ["scratch_gpt"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AS_VLLM_DOES, plugins["scratch_gpt"]],
        cwd=PROJECT.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
