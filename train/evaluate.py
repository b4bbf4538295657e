"""How good a model is: `scratch-gpt evaluate --model runs/quickstart/run/model --text book.txt --pairs blimp/`."""

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
from .model.pretrained import load_model
from .settings.command import run_command
from .settings.corpus import CorpusArguments
from .settings.recipe import option, option_list, parse_recipe, required


@dataclass
class EvaluateArguments:
    """Settings of train.evaluate."""

    model: str = required("Model folder, such as runs/quickstart/run/model, or a name on the Hugging Face Hub.")
    data_dir: str | None = option("Evaluate the validation split of this folder of train.prepare_data.")
    pairs: list[str] = option_list(
        "Files or folders of .jsonl with sentence_good and sentence_bad: which does it prefer?"
    )
    block_size: int | None = option("Tokens per window (default: the maximum length of the model, at most 1024).")
    micro_batch_size: int = option("Windows or sentences per forward pass.", 8)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("block_size", "micro_batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is {value}: it must be at least 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print how well the model predicts a text, and which sentences of --pairs it prefers.

    The text is that of --text or --dataset_name, all of it; or the validation split of --data_dir; or, without any of
    them and without --pairs, the held-out part of this Python's own text.
    """
    arguments, corpus = parse_recipe([EvaluateArguments, CorpusArguments], argv, description=__doc__ or "")
    has_text = bool(corpus.text or corpus.dataset_name)
    if arguments.data_dir and has_text:
        raise ValueError("--data_dir and --text or --dataset_name are two texts to evaluate: give one of them.")
    pairs = read_pairs(arguments.pairs)
    folder = str(find_model("--model", arguments.model))
    model, _ = load_model(folder)
    tokenizer = load_data_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {arguments.model} has {len(tokenizer)} tokens, but the model only "
            f"{model.config.vocab_size}: it is another model's tokenizer."
        )
    block_size = checked_block_size(model, arguments.block_size)
    rows = encode_pairs(pairs, tokenizer, block_size)  # before the long work: its mistakes should not wait for it
    if has_text or arguments.data_dir or not pairs:
        stream = data_stream(arguments.data_dir) if arguments.data_dir else text_stream(corpus, tokenizer)
        windows = tqdm(windows_of(stream, block_size), unit=" windows", mininterval=0.5)
        figures = score_windows(model, windows, arguments.micro_batch_size, token_byte_lengths(tokenizer))
        print(report(arguments.model, block_size, figures))
    if pairs:
        print(accuracy_table(accuracies(pairs, sum_log_probs(model, rows, arguments.micro_batch_size))))


def checked_block_size(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens per window: `wanted`, or what the model was made for, at most 1024."""
    longest = getattr(model.config, "max_position_embeddings", 1024)
    if wanted and wanted > longest:
        raise ValueError(f"--block_size is {wanted}, but the model was made for {longest} tokens at once.")
    return wanted or min(longest, 1024)


def data_stream(folder: str) -> Iterator[np.ndarray]:
    """The ids of the validation split of prepared data; its rows share their first id with the row before."""
    blocks = open_data(folder).validation
    for index in range(len(blocks)):
        row = blocks.rows([index])[0].numpy()  # (block_size + 1,)
        yield row if index == 0 else row[1:]


def text_stream(settings: CorpusArguments, tokenizer: ScratchGPTTokenizer) -> Iterator[np.ndarray]:
    """The ids of a text behind an end-of-text token, so that its first token is predicted from something."""
    yield np.array([tokenizer.eos_token_id])
    yield from token_stream(evaluation_text(settings), tokenizer)


def evaluation_text(settings: CorpusArguments) -> Corpus:
    """All of a text that the user names; of Python's own text, which models here were trained on, the held-out part."""
    if settings.text:
        return text_corpus(settings.text, settings.text_column)
    return open_corpora(settings)[1]


def windows_of(stream: Iterable[np.ndarray], block_size: int) -> Iterator[np.ndarray]:
    """Cut a stream of ids into windows of block_size + 1 that share one id, so that each id is predicted once.

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
    """The figures of `token_metrics` over all windows, and `num_tokens` and `num_bytes` of what was predicted."""
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


def report(name: str, block_size: int, figures: dict[str, float]) -> str:
    """The table that main prints."""
    num_tokens, num_bytes = figures["num_tokens"], figures["num_bytes"]
    rows = {
        "model": name,
        "text": f"{num_bytes:,} bytes, {num_tokens:,} tokens, {num_bytes / num_tokens:.2f} bytes per token",
        "block size": f"{block_size} tokens",
        "loss": f"{figures['nats_per_token']:.4f} nats per token",
        "perplexity": f"{figures['perplexity']:.2f}",
        "bits per byte": f"{figures['bits_per_byte']:.4f}",
        "token accuracy": f"{figures['token_accuracy']:.4f}",
    }
    return "\n".join(f"{label:<16}{value}" for label, value in rows.items())


if __name__ == "__main__":
    sys.exit(run_command(main))
