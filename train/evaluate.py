"""Evaluate a language model: perplexity, bits per byte and token accuracy on texts, and accuracy on minimal pairs.

    scratch-gpt evaluate --model runs/quickstart/run/model --text book.txt letters/
    scratch-gpt evaluate --model runs/quickstart/run/model
    scratch-gpt evaluate --model alice/tiny --pairs blimp/

--text is evaluated in full, one line per file or folder; of --dataset_name, only the held-out part. Without any of
them, a model in the folder of its run is evaluated on the validation split that it was pretrained with.
"""

import contextlib
import io
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_scratch_gpt import ScratchGPTTokenizer

from .data.blocks import TOKENIZER_FOLDER, PreparedData, open_data, read_manifest
from .data.corpora import Corpus, given_text, open_corpora
from .data.tokens import load_data_tokenizer, token_stream
from .metrics.evaluate_metrics import score_targets
from .metrics.minimal_pairs import accuracies, accuracy_table, encode_pairs, read_pairs, sum_log_probs
from .metrics.perplexity import token_byte_lengths
from .metrics.text_scores import TextScores, score_table
from .model.find import find_model, tokenizer_folder
from .model.generation import max_positions
from .model.hints import data_of_model
from .model.inference import load_found
from .model.load import memory_errors
from .model.vocabulary import num_different_ids
from .settings.checks import check_bounds
from .settings.command import interruptible, run_command
from .settings.corpus import CorpusArguments
from .settings.inference import InferenceArguments
from .settings.recipe import option, option_list, parse_recipe, required

LONGEST_DEFAULT = 1024  # tokens per window
Stream = Iterator[np.ndarray]


@dataclass
class EvaluateArguments:
    """The model, and what to evaluate it on."""

    model: str = required("Model or adapter: a folder, or a name on the Hugging Face Hub.", is_path=True)
    data_dir: str | None = option(
        "Evaluate on the validation split of this folder, written by scratch-gpt prepare_data (default for a model in "
        "the folder of its run: the data of the run).",
        is_path=True,
    )
    pairs: list[str] = option_list(
        "Minimal pairs: .jsonl files, or folders of them, with sentence_good and sentence_bad.", is_path=True
    )
    block_size: int | None = option(
        "Tokens per window (default: as in training if the data of the run is there, else the maximum length of the "
        "model, at most 1024)."
    )
    micro_batch_size: int = option("Windows or sentences per forward pass.", 8)

    def __post_init__(self) -> None:
        check_bounds(self, {"block_size": 1, "micro_batch_size": 1})


@interruptible
def main(argv: Sequence[str] | None = None) -> None:
    """Print the scores of the texts, and the accuracy on the pairs."""
    arguments, loading, corpus = parse_recipe(
        [EvaluateArguments, InferenceArguments, CorpusArguments], argv, description=__doc__ or ""
    )
    check_effects(arguments, corpus)
    pairs = read_pairs(arguments.pairs)
    folder = find_model("--model", arguments.model)
    trained_on = data_of_model(folder)
    has_text = bool(corpus.text or corpus.dataset_name)
    data_dir = arguments.data_dir or (None if has_text or pairs else trained_on)
    if not (data_dir or has_text or pairs):
        raise ValueError(
            "there is nothing to evaluate on: give --text, --dataset_name, --data_dir (a folder of prepare_data) or "
            "--pairs."
        )
    place = f"--model {arguments.model}"
    model, _ = load_found(place, folder, quantization=loading.quantization)
    tokenizer = load_data_tokenizer(place, tokenizer_folder(folder))
    data = None if data_dir is None else open_checked(data_dir, tokenizer)
    block_size, reason = choose_block_size(model, arguments.block_size, data, trained_on)
    rows = encode_pairs(pairs, tokenizer, block_size)  # errors in the pairs must not wait for the text
    print(f"model       {arguments.model}\nblock size  {block_size} tokens{reason}")
    print(f"data        {data_dir}\n" if data else "")
    if data or has_text:
        named = data_streams(data) if data else text_streams(corpus, tokenizer)
        scores = score_streams(model, named, block_size, arguments.micro_batch_size, tokenizer)
        print(score_table(scores))
        warn_if_guessing(scores, model)
    if pairs:
        print(accuracy_table(*accuracies(pairs, sum_log_probs(model, rows, arguments.micro_batch_size))))


def check_effects(arguments: EvaluateArguments, corpus: CorpusArguments) -> None:
    """Refuse options that have no effect.

    Raises:
        ValueError: the option, and why it has none.
    """
    has_text = bool(corpus.text or corpus.dataset_name)
    if arguments.data_dir and has_text:
        raise ValueError(f"--data_dir ({arguments.data_dir}) excludes --text and --dataset_name: remove one of them.")
    for name, default in vars(CorpusArguments()).items():
        value = getattr(corpus, name)
        if value == default or (has_text and not name.startswith("validation_")):
            continue
        if corpus.text:
            raise ValueError(f"--{name} ({value}) has no effect: --text is evaluated in full. Remove it.")
        if not corpus.dataset_name:
            raise ValueError(f"--{name} ({value}) requires --text or --dataset_name.")


def open_checked(data_dir: str | Path, tokenizer: ScratchGPTTokenizer) -> PreparedData:
    """Open prepared data whose ids mean the same tokens as those of the model.

    Raises:
        ValueError: it was encoded with another tokenizer.
        OSError: it cannot be read.
    """
    data = open_data(data_dir, verify=["validation"])
    num_different = num_different_ids(
        tokenizer, load_data_tokenizer(f"--data_dir {data_dir}", Path(data_dir) / TOKENIZER_FOLDER)
    )
    if num_different:
        raise ValueError(
            f"--data_dir {data_dir} was encoded with another tokenizer than that of the model: {num_different:,} "
            "tokens differ. Evaluate on the text itself with --text."
        )
    return data


def choose_block_size(
    model: PreTrainedModel, given: int | None, data: PreparedData | None, trained_on: Path | None
) -> tuple[int, str]:
    """Tokens per window, and the reason to print behind it.

    Raises:
        ValueError: the model cannot process that many tokens.
    """
    longest = max_positions(model)
    if given and given > longest:
        raise ValueError(f"--block_size is {given}, but the model reads at most {longest} tokens: lower it.")
    if given:
        return given, ""
    if data is not None:
        return min(data.validation.block_size, longest), ", as in the data"
    if trained_on is not None and (trained_with := block_size_of(trained_on)):
        return min(trained_with, longest), ", as in training"
    return min(longest, LONGEST_DEFAULT), ""


def block_size_of(data_dir: Path) -> int | None:
    """The block size of prepared data; None if it cannot be read: it only sets a default."""
    try:
        return int(read_manifest(data_dir)["block_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_streams(data: PreparedData) -> Iterator[tuple[str, Stream]]:
    """The ids of the validation split, with its name. Each row begins with the last id of the row before it."""
    blocks = data.validation
    rows = (blocks.rows([index])[0].numpy() for index in range(len(blocks)))  # each (block_size + 1,)
    yield "validation split", (row if index == 0 else row[1:] for index, row in enumerate(rows))


def text_streams(settings: CorpusArguments, tokenizer: ScratchGPTTokenizer) -> Iterator[tuple[str, Stream]]:
    """The ids of each --text after an end-of-text token, from which its first token is predicted, with their names.

    Of a dataset, only the held-out part: the model may have been trained on the rest.
    """
    if len(settings.text) > 1:
        with contextlib.redirect_stderr(io.StringIO()):  # notes about a folder come when it is opened on its own
            given_text(settings)  # refuses a file that is given twice
    corpora = [given_text(replace(settings, text=[text])) for text in settings.text] or [open_corpora(settings)[1]]
    for corpus in corpora:
        yield corpus.description, text_stream(corpus, tokenizer)


def text_stream(corpus: Corpus, tokenizer: ScratchGPTTokenizer) -> Stream:
    """The ids of a corpus after an end-of-text token."""
    yield np.array([tokenizer.eos_token_id])
    yield from token_stream(corpus, tokenizer)


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


def score_streams(
    model: PreTrainedModel,
    named: Iterable[tuple[str, Stream]],
    block_size: int,
    micro_batch_size: int,
    tokenizer: ScratchGPTTokenizer,
) -> list[tuple[str, TextScores]]:
    """The scores of each stream, with its name.

    Raises:
        ValueError: a text is empty, damaged weights, or too little memory.
    """
    token_bytes = token_byte_lengths(tokenizer)
    scores = []
    with tqdm(unit=" windows", mininterval=0.5, leave=False, disable=None) as bar:
        for name, stream in named:
            one = TextScores()
            for windows in batches_of(windows_of(stream, block_size), micro_batch_size):
                score_windows(model, windows, token_bytes, one)
                bar.update(len(windows))
            if not one.num_tokens:
                raise ValueError(f"The text has no token to predict ({name}): give a longer one.")
            scores.append((name, one))
    return scores


def batches_of(windows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Up to `size` windows of equal length at once, (batch, length + 1)."""
    for _, same_length in itertools.groupby(windows, key=len):
        while batch := list(itertools.islice(same_length, size)):
            yield np.stack(batch)


@torch.no_grad()
def score_windows(model: PreTrainedModel, windows: np.ndarray, token_bytes: torch.Tensor, scores: TextScores) -> None:
    """Add windows, (batch, length + 1), to `scores`.

    Args:
        token_bytes: (vocab,), bytes of text per token id.
    """
    ids = torch.from_numpy(windows).long()
    targets = ids[:, 1:]
    with memory_errors(f"a batch of {len(ids)} windows (--micro_batch_size)"):
        logits = model(input_ids=ids[:, :-1].to(model.device), use_cache=False).logits  # (batch, length, vocab)
        predictions, log_probs = score_targets(logits, targets.to(logits.device))
    if log_probs.isnan().any():
        raise ValueError("the outputs of the model are not finite: its weights are damaged.")
    scores.add_windows(log_probs.cpu(), predictions.cpu() == targets, int(token_bytes[targets].sum()))


def warn_if_guessing(scores: Sequence[tuple[str, TextScores]], model: PreTrainedModel) -> None:
    """Warn about a loss above that of guessing, which another model's tokenizer causes."""
    total = sum((one for _, one in scores), TextScores())
    guessing = math.log(model.config.vocab_size)
    if total.loss > guessing:
        print(
            f"warning: the loss is worse than guessing (ln {model.config.vocab_size} = {guessing:.4f}): is this the "
            "tokenizer of the model?",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
