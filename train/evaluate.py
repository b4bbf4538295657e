"""Evaluate a model: perplexity, bits per byte and token accuracy on a text, and accuracy on minimal pairs.

    scratch-gpt evaluate --model runs/quickstart/run/model --text book.txt
    scratch-gpt evaluate --model alice/tiny --pairs blimp/

--text is evaluated in full; of --dataset_name, only the held-out part. If no text, --data_dir or --pairs is given, the
held-out part of Python's own standard library and documentation is used.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_scratch_gpt import ScratchGPTTokenizer

from .data.blocks import open_data
from .data.corpora import Corpus, open_corpora, text_corpus
from .data.tokens import load_data_tokenizer, token_stream
from .metrics.evaluate_metrics import score_targets, token_metrics
from .metrics.minimal_pairs import accuracies, accuracy_table, encode_pairs, read_pairs, sum_log_probs
from .metrics.perplexity import token_byte_lengths
from .model.find import find_model
from .model.inference import load_for_inference
from .settings.checks import check_bounds
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.recipe import option, option_list, parse_recipe, required


@dataclass
class EvaluateArguments:
    """The model, and what to evaluate it on."""

    model: str = required("Model: a folder, or a name on the Hugging Face Hub.", is_path=True)
    data_dir: str | None = option(
        "Evaluate on the validation split of this folder, written by scratch-gpt prepare_data.", is_path=True
    )
    pairs: list[str] = option_list(
        "Minimal pairs: .jsonl files, or folders of them, with sentence_good and sentence_bad.", is_path=True
    )
    block_size: int | None = option("Tokens per window (default: the maximum length of the model, at most 1024).")
    micro_batch_size: int = option("Windows or sentences per forward pass.", 8)

    def __post_init__(self) -> None:
        check_bounds(self, {"block_size": 1, "micro_batch_size": 1})


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics of a text, and the accuracy on the pairs."""
    arguments, corpus = parse_recipe([EvaluateArguments, CorpusArguments], argv, description=__doc__ or "")
    has_text = bool(corpus.text or corpus.dataset_name)
    if arguments.data_dir and has_text:
        raise ValueError(f"--data_dir ({arguments.data_dir}) excludes --text and --dataset_name: remove one of them.")
    pairs = read_pairs(arguments.pairs)
    folder = str(find_model("--model", arguments.model))
    model, _ = load_for_inference(folder)
    tokenizer = load_data_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {arguments.model} has {len(tokenizer)} tokens, but the model has only "
            f"{model.config.vocab_size}: it is another model's tokenizer."
        )
    block_size = checked_block_size(model, arguments.block_size)
    rows = encode_pairs(pairs, tokenizer, block_size)  # errors in the pairs must not wait for the text
    if has_text or arguments.data_dir or not pairs:
        stream = data_stream(arguments.data_dir) if arguments.data_dir else text_stream(corpus, tokenizer)
        windows = tqdm(windows_of(stream, block_size), unit=" windows", mininterval=0.5)
        metrics = score_windows(model, windows, arguments.micro_batch_size, token_byte_lengths(tokenizer))
        print(format_table(arguments.model, block_size, metrics))
    if pairs:
        print(accuracy_table(accuracies(pairs, sum_log_probs(model, rows, arguments.micro_batch_size))))


def checked_block_size(model: PreTrainedModel, block_size: int | None) -> int:
    """Tokens per window: `block_size`, or by default the maximum length of the model up to 1024.

    Raises:
        ValueError: the model cannot process that many tokens.
    """
    longest = getattr(model.config, "max_position_embeddings", 1024)
    if block_size and block_size > longest:
        raise ValueError(f"--block_size is {block_size}, but the model reads at most {longest} tokens: lower it.")
    return block_size or min(longest, 1024)


def data_stream(folder: str) -> Iterator[np.ndarray]:
    """The ids of the validation split of prepared data. Each row begins with the last id of the row before it."""
    blocks = open_data(folder).validation
    for index in range(len(blocks)):
        row = blocks.rows([index])[0].numpy()  # (block_size + 1,)
        yield row if index == 0 else row[1:]


def text_stream(settings: CorpusArguments, tokenizer: ScratchGPTTokenizer) -> Iterator[np.ndarray]:
    """The ids of a text after an end-of-text token, from which its first token is predicted."""
    yield np.array([tokenizer.eos_token_id])
    yield from token_stream(evaluation_text(settings), tokenizer)


def evaluation_text(settings: CorpusArguments) -> Corpus:
    """All of --text, or the held-out part of the other sources: models may have been trained on the rest."""
    if settings.text:
        return text_corpus(settings.text, settings.text_column)
    return open_corpora(settings)[1]


def windows_of(stream: Iterable[np.ndarray], block_size: int) -> Iterator[np.ndarray]:
    """Cut a stream of ids into windows of block_size + 1; they overlap by one id, so each id is predicted once.

    The last window may be shorter.
    """
    rest = np.empty(0, np.int64)
    for chunk in stream:
        rest = np.concatenate([rest, chunk])
        while len(rest) > block_size:
            yield rest[: block_size + 1]
            rest = rest[block_size:]
    if len(rest) > 1:
        yield rest


@torch.no_grad()
def score_windows(
    model: PreTrainedModel, windows: Iterable[np.ndarray], micro_batch_size: int, token_bytes: torch.Tensor
) -> dict[str, float]:
    """The `token_metrics` of all windows, and the `num_tokens` and `num_bytes` that were predicted.

    Args:
        token_bytes: (vocab,), bytes of text per token id.

    Raises:
        ValueError: the text is empty.
    """
    metrics, num_tokens, num_bytes = token_metrics(token_bytes), 0, 0
    for _, same_length in itertools.groupby(windows, key=len):
        while batch := list(itertools.islice(same_length, micro_batch_size)):
            ids = torch.from_numpy(np.stack(batch)).long()  # (batch, length + 1)
            targets = ids[:, 1:]
            logits = model(input_ids=ids[:, :-1].to(model.device), use_cache=False).logits  # (batch, length, vocab)
            predictions, log_probs = score_targets(logits, targets.to(logits.device))
            metrics.add_batch(predictions=predictions, references=targets, log_probs=log_probs)
            num_tokens += targets.numel()
            num_bytes += int(token_bytes[targets].sum())
    if not num_tokens:
        raise ValueError("The text has no token to predict: give a longer one.")
    return {**metrics.compute(), "num_tokens": num_tokens, "num_bytes": num_bytes}


def format_table(name: str, block_size: int, metrics: dict[str, float]) -> str:
    """The metrics as lines of text."""
    num_tokens, num_bytes = metrics["num_tokens"], metrics["num_bytes"]
    rows = {
        "model": name,
        "text": f"{num_bytes:,} bytes, {num_tokens:,} tokens, {num_bytes / num_tokens:.2f} bytes per token",
        "block size": f"{block_size} tokens",
        "loss": f"{metrics['nats_per_token']:.4f} nats per token",
        "perplexity": f"{metrics['perplexity']:.2f}",
        "bits per byte": f"{metrics['bits_per_byte']:.4f}",
        "token accuracy": f"{metrics['token_accuracy']:.4f}",
    }
    return "\n".join(f"{label:<16}{value}" for label, value in rows.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
