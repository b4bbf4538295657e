"""How well a model predicts a text: `python -m train.evaluate --model runs/quickstart/model --text book.txt`."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .arguments import CorpusArguments, option, parse_recipe, required, run_script
from .corpora import Corpus, open_corpora, text_corpus
from .data import TokenBlocks, open_data
from .generate import load_model
from .metrics import bits_per_byte, perplexity, token_byte_lengths
from .prepare_data import load_tokenizer, token_stream


@dataclass
class EvaluateArguments:
    """Settings of train.evaluate."""

    model: str = required("Model folder, such as runs/quickstart/model, or a name on the Hugging Face Hub.")
    data_dir: str | None = option("Evaluate the validation split of this folder of train.prepare_data.")
    context: int | None = option("Tokens that the model sees at once; without it what it was made for, at most 1024.")
    batch_size: int = option("Windows per forward pass.", 8)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("context", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is {value}: it must be at least 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Print loss, perplexity and bits per byte.

    The text is that of --text or --dataset, all of it; or the validation split of --data_dir; or, without any of
    them, the held-out part of this Python's own text.
    """
    arguments, corpus = parse_recipe([EvaluateArguments, CorpusArguments], argv, description=__doc__ or "")
    if arguments.data_dir and (corpus.text or corpus.dataset):
        raise ValueError("--data_dir and --text or --dataset are two texts to evaluate: give one of them.")
    model, _ = load_model(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {arguments.model} has {len(tokenizer)} tokens, but the model only "
            f"{model.config.vocab_size}: it is another model's tokenizer."
        )
    longest = getattr(model.config, "max_position_embeddings", 1024)
    context = arguments.context or min(longest, 1024)
    if context > longest:
        raise ValueError(f"--context is {context}, but the model was made for {longest} tokens at once.")
    if arguments.data_dir:
        rows = all_rows(open_data(arguments.data_dir).validation)
        stream: Iterable[np.ndarray] = (row if i == 0 else row[1:] for i, row in enumerate(rows))
    else:
        start = np.array([tokenizer.eos_token_id])  # so that the first token is predicted from something
        stream = itertools.chain([start], token_stream(evaluation_text(corpus), tokenizer))
    windows = tqdm(windows_of(stream, context), unit=" windows", mininterval=0.5)
    nats, ids = total_loss(model, windows, arguments.batch_size)
    num_bytes = int(token_byte_lengths(tokenizer)[ids].sum())
    print(report(arguments.model, context, nats, len(ids), num_bytes))


def evaluation_text(settings: CorpusArguments) -> Corpus:
    """All of a text that the user names; of Python's own text, which models here were trained on, the held-out part."""
    if settings.text:
        return text_corpus(settings.text, settings.text_column)
    return open_corpora(settings)[1]


def all_rows(blocks: TokenBlocks) -> Iterator[np.ndarray]:
    """The rows of a split one by one, (block_size + 1,)."""
    for index in range(len(blocks)):
        yield blocks.rows([index])[0].numpy()


def windows_of(stream: Iterable[np.ndarray], context: int) -> Iterator[np.ndarray]:
    """Cut a stream of ids into windows of context + 1 that share one id, so that each id is predicted once.

    The last window may be shorter.
    """
    rest = np.empty(0, np.int64)
    for chunk in stream:
        rest = np.concatenate([rest, chunk])
        while len(rest) > context:
            yield rest[: context + 1]
            rest = rest[context:]
    if len(rest) > 1:
        yield rest


@torch.no_grad()
def total_loss(model: PreTrainedModel, windows: Iterable[np.ndarray], batch_size: int) -> tuple[float, torch.Tensor]:
    """Sum of the losses in nats over all windows, and the ids that were predicted, (tokens,)."""
    nats, predicted = 0.0, []
    for _, same_length in itertools.groupby(windows, key=len):
        while batch := list(itertools.islice(same_length, batch_size)):
            ids = torch.from_numpy(np.stack(batch)).long()  # (batch, length + 1)
            inputs, labels = ids[:, :-1].to(model.device), ids[:, 1:].contiguous().to(model.device)
            loss = model(
                input_ids=inputs, labels=labels, shift_labels=labels, num_items_in_batch=1, use_cache=False
            ).loss
            nats += float(loss)
            predicted.append(ids[:, 1:].flatten())
    if not predicted:
        raise ValueError("The text has no token to predict: give a longer one.")
    return nats, torch.cat(predicted)


def report(name: str, context: int, nats: float, num_tokens: int, num_bytes: int) -> str:
    """The table that main prints."""
    loss = nats / num_tokens
    rows = {
        "model": name,
        "text": f"{num_bytes:,} bytes, {num_tokens:,} tokens, {num_bytes / num_tokens:.2f} bytes per token",
        "context": f"{context} tokens at once",
        "loss": f"{loss:.4f} nats per token",
        "perplexity": f"{perplexity(loss):.2f}",
        "bits per byte": f"{bits_per_byte(nats, num_bytes):.4f}",
    }
    return "\n".join(f"{label:<15}{value}" for label, value in rows.items())


if __name__ == "__main__":
    sys.exit(run_script(main))
