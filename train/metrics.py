"""Numbers that tell how a run does: bits per byte, perplexity, and the file they are written to."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

LOG_FILES = ("metrics.jsonl", "samples.jsonl")
IGNORED_LABEL = -100  # in place of a target that is not predicted


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """How many bytes of text each token id stands for; (vocab,), 0 for special tokens.

    In a byte-level vocabulary each character of a token is one byte, which is exact even where a
    token ends within a character. For others the decoded token is encoded as UTF-8.
    """
    is_byte_level = "ByteLevel" in _decoder_types(tokenizer)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    lengths = torch.zeros(len(tokenizer), dtype=torch.long)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        if index in added:  # the decoder garbles what it has not encoded
            lengths[index] = len(added[index].content.encode())
        elif is_byte_level:
            lengths[index] = len(token)
        else:
            lengths[index] = len(str(tokenizer.decode([index])).encode())
    return lengths


def _decoder_types(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in pure Python have none
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return {part["type"] for part in (decoder or {}).get("decoders", [decoder]) if part}


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Bits that the model needs per byte of text: comparable between tokenizers, unlike the loss.

    The end-of-text tokens count among the nats but have no bytes: the figure is that of a
    compressor which also stores where documents end.
    """
    return total_nats / math.log(2) / num_bytes if num_bytes else math.inf


def perplexity(loss: float) -> float:
    """exp(loss in nats per token), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


class JsonLines:
    """A file of one JSON object per line, each with its `step`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, which must hold a `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records; a line that a kill has cut off is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def cut_back(self, step: int) -> None:
        """Removes what was written after `step`: a continued run writes it again."""
        kept = [record for record in self.read() if record["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept),
            encoding="utf-8",
        )
        os.replace(partial, self.path)


class Progress:
    """What a person sees of a run: a bar on a terminal, elsewhere a line per log.

    Of several processes only one passes `is_shown`.
    """

    def __init__(self, first_step: int, last_step: int, *, is_shown: bool = True) -> None:
        self.is_shown = is_shown
        self.first_step, self.last_step = first_step, last_step
        self.started = time.monotonic()
        self.has_bar = is_shown and sys.stdout.isatty()
        self.bar = tqdm(
            total=last_step,
            initial=first_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self.has_bar,
        )

    def line(self, text: str) -> None:
        """Shows a line above the bar."""
        if self.has_bar:
            tqdm.write(text)
        elif self.is_shown:
            print(text, flush=True)

    def show(self, step: int, text: str) -> None:
        """Tells how far the run is; `text` holds the figures of the last step."""
        if self.has_bar:
            self.bar.set_postfix_str(text.replace(" | ", ", "), refresh=False)
            self.bar.update(step - self.bar.n)
            return
        seconds_per_step = (time.monotonic() - self.started) / max(1, step - self.first_step)
        left = timedelta(seconds=round((self.last_step - step) * seconds_per_step))
        width = len(str(self.last_step))
        self.line(f"step {step:>{width}}/{self.last_step} | {text} | {left} left")

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


class TrainProgress(Protocol):
    """How far a run is."""

    step: int
    tokens_seen: int


class RunLog:
    """Writes what happens to metrics.jsonl, samples.jsonl, the trackers and the screen."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        first_step: int,
        last_step: int,
        peak_speed: float = math.inf,
    ) -> None:
        self.accelerator, self.peak_speed = accelerator, peak_speed
        self.metrics, self.samples = (JsonLines(folder / name) for name in LOG_FILES)
        self.last_step = last_step
        self.progress = Progress(first_step, last_step, is_shown=accelerator.is_main_process)
        self.tokens, self.seconds = 0, 0.0  # since the last line

    @staticmethod
    def cut_back(folder: Path, step: int) -> None:
        """Removes from all files what was written after `step`."""
        for name in LOG_FILES:
            JsonLines(folder / name).cut_back(step)

    def add(self, tokens: int, seconds: float) -> None:
        """Counts a step's tokens and training time for the throughput of the next line."""
        self.tokens += tokens
        self.seconds += seconds

    def write_step(self, state: TrainProgress, figures: dict[str, float]) -> None:
        """Writes loss, grad_norm and learning_rate of a step, and the throughput since the last.

        `mfu` is the model FLOPs utilisation (https://huggingface.co/papers/2204.02311, appendix B), measured against
        what matrix products alone reach on this machine.
        """
        speed = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        mfu = speed / self.peak_speed
        share = {} if math.isinf(self.peak_speed) else {"mfu": round(mfu, 4)}
        self._write(state, figures | {"tokens_per_second": round(speed, 1)} | share)
        self.progress.show(
            state.step,
            f"loss {figures['loss']:.4f} | gradient {figures['grad_norm']:.2f} | "
            f"rate {figures['learning_rate']:.2e} | {speed:,.0f} tokens/s" + (f" | MFU {mfu:.0%}" if share else ""),
        )

    def write_skip(self, state: TrainProgress, reason: str) -> None:
        """Writes that the update of a step was left out, and why."""
        if self.accelerator.is_main_process:
            self.metrics.write({"step": state.step, "tokens_seen": state.tokens_seen, "skipped": reason})
        self.progress.line(f"step {state.step}: update left out: {reason}")

    def write_evaluation(self, state: TrainProgress, figures: dict[str, Any], in_words: str) -> None:
        """Writes the figures of an evaluation; trackers take numbers only."""
        self._write(state, figures)
        self.progress.line(f"step {state.step}: {in_words}")

    def write_samples(self, step: int, samples: Iterable[tuple[str, str]]) -> None:
        """Writes (prompt, completion) pairs, which all processes have where the model is split."""
        for prompt, text in samples:
            if not self.accelerator.is_main_process:
                continue
            self.samples.write({"step": step, "prompt": prompt, "text": text})
            self.progress.line(f"  {prompt!r} -> {text[:120]!r}")

    def close(self, step: int) -> None:
        """Ends the display; says how to go on where the run was stopped early."""
        self.progress.close()
        if step < self.last_step:
            self.progress.line(f"stopped after step {step} and saved: the same command continues from there")

    def _write(self, state: TrainProgress, figures: dict[str, Any]) -> None:
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=state.step)
        if self.accelerator.is_main_process:
            record = {"step": state.step, "tokens_seen": state.tokens_seen}
            self.metrics.write(record | figures)
