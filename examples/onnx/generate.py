"""Generate text with a model that `scratch-gpt convert --to onnx` has written: only NumPy, ONNX Runtime and tokenizers.

python examples/onnx/generate.py runs/quickstart/onnx "def main("
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def greedy(session: onnxruntime.InferenceSession, ids: list[int], max_new_tokens: int) -> Iterator[int]:
    """The most probable token after `ids`, then the one after that, and so on.

    The first step reads all of `ids`; each of the others reads one token, and the keys and values of those before.
    """
    past = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in session.get_inputs() if value.name.startswith("past_key_values")}  # fmt: skip
    names = [value.name for value in session.get_outputs()]
    length = 0
    for _ in range(max_new_tokens):
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": np.arange(length, length + len(ids))[None],
            "attention_mask": np.ones((1, length + len(ids)), np.int64),
        }
        outputs = dict(zip(names, session.run(names, inputs | past), strict=True))
        length += len(ids)
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        ids = [int(outputs["logits"][0, -1].argmax())]
        yield ids[0]


def main() -> None:
    """Print the prompt and its continuation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that scratch-gpt convert has written")
    parser.add_argument("prompt")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(arguments.model / "model.onnx")
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    end = json.loads((arguments.model / "config.json").read_text())["eos_token_id"]
    ids = tokenizer.encode(arguments.prompt).ids
    new = []
    for token in greedy(session, ids, arguments.max_new_tokens):
        if token == end:
            break
        new.append(token)
    print(tokenizer.decode(ids + new))


if __name__ == "__main__":
    main()
