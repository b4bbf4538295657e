"""Fine-tune a pretrained model on conversations, so that it answers; the same command again continues the run.

    python -m train.finetune --model runs/quickstart/run/model --data conversations.jsonl --output_dir runs/assistant

A row holds messages, prompt and completion, or instruction, (input) and output. The loss falls on the assistant's
words only. The run folder then holds what a pretraining run holds, with answers to held-out questions before, during
and after the training, and in model/ the assistant, for pipeline("text-generation").
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from hf_scratch_gpt.tokenization_scratch_gpt import CHAT_TEMPLATE, CHAT_TOKENS

from .arguments import check_at_least, option, parse_recipe, recipe_text, run_script
from .base_model import ADAPTER_FOLDER, BaseModel, choose_trained, load_base, trained_facts, write_weights
from .build import build_run, check_prompts, skips_logits
from .card_data import LANGUAGE_FIGURES, Origin, figures_named, model_tags, origin_of, tuned_data
from .conversations import (
    Conversation,
    PackedConversations,
    conversations,
    count_tokens,
    end_of_turn,
    fit,
    pack,
    prompt_ids,
)
from .language_modelling import LanguageModelling, Prompt
from .loop import sample
from .metrics import LOG_FILES, JsonLines, token_byte_lengths
from .model_card import CARD_NAME, PICTURE_NAME, draw_loss_curve
from .parallel import Grid
from .rows import DEFAULT_FRACTION, RowsArguments, read_parts
from .run import Run
from .session import Job, carry_out
from .tuned_card import adapter_card, assistant_card
from .tuning import BaseArguments, TuneArguments

NUM_SHOWN = 5  # held-out conversations whose first question is answered at each evaluation


@dataclass
class ConversationArguments(RowsArguments):
    """Where conversations come from, and how they become rows of tokens."""

    max_length: int | None = option("Tokens per row; without it as many as the model reads.")
    too_long: Literal["error", "cut", "skip"] = option(
        "Conversations that do not fit: error: refuse; cut: shorten, with the end of turn behind the last answer; "
        "skip: leave out.",
        "error",
    )
    packing: bool = option("Several conversations per row; they do not see each other.", True)
    chat_template: Literal["model", "own"] = option(
        "model: that of the tokenizer, if it has one; own: ours, with the control tokens that it needs.", "model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, {"max_length": 2})


@dataclass
class ConversationData:
    """All that the run needs of its rows."""

    train: PackedConversations
    validation: PackedConversations
    shown: list[Conversation]  # held out; their first question is asked at each evaluation
    stop_id: int  # ends every answer
    new_ids: list[int]  # control tokens, which pretraining has never seen
    notes: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (BaseArguments, ConversationArguments, TuneArguments)
    base_arguments, settings, arguments = parse_recipe(kinds, argv, description=__doc__ or "")
    base_arguments.check_engine(arguments)
    recipe = recipe_text(base_arguments, settings, arguments)
    origin = origin_of("finetune", recipe, base_arguments, settings, "validation")
    rows = read_parts(settings, {"validation": DEFAULT_FRACTION}, arguments.seed)
    parts = {part: conversations(some) for part, some in rows.items()}
    base = load_base(base_arguments, arguments.seed, AutoModelForCausalLM)
    known_tokens = base.model.config.vocab_size
    new_ids = learn_to_chat(base, settings.chat_template)
    if base_arguments.trainable == "lora" and base.model.config.vocab_size > known_tokens:
        raise ValueError(
            f"the tokenizer of {base.name} lacks control tokens, and an adapter cannot hold their embeddings: "
            "use --trainable all or blocks."
        )
    data = make_rows(parts, settings, base, new_ids, arguments.sample_tokens)
    arguments = arguments.for_examples(len(data.train))
    return carry_out(
        Job(
            arguments,
            recipe,
            partial(build_assistant, base_arguments, arguments, base, data),
            partial(write_model, origin, base, data),
            lambda run: {"samples": sample(run)},
        )
    )


def learn_to_chat(base: BaseModel, chat_template: str) -> list[int]:
    """Gives a tokenizer without chat template ours, and the model embeddings for what is new; the control tokens' ids.

    New embeddings are drawn around the mean of the old ones (https://nlp.stanford.edu/~johnhew/vocab-expansion.html),
    so that the model does not begin by predicting them everywhere.

    Raises:
        ValueError: the tokenizer's own template does not mark answers.
    """
    tokenizer = base.tokenizer
    if tokenizer.chat_template is None or chat_template == "own":
        missing = [token for token in CHAT_TOKENS if token not in tokenizer.get_vocab()]
        tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, *missing]})
        tokenizer.chat_template = CHAT_TEMPLATE
        if len(tokenizer) > base.model.config.vocab_size:
            base.model.resize_token_embeddings(len(tokenizer))
    if "generation" not in str(tokenizer.chat_template):
        raise ValueError(
            f"the chat template of {base.name} has no generation markers, so nobody knows which tokens are answers: "
            "take ours with --chat_template own."
        )
    return control_ids(tokenizer)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the special tokens that the chat template uses."""
    tokens = {token for token in tokenizer.all_special_tokens if token in str(tokenizer.chat_template)}
    roles = {token for token in CHAT_TOKENS if token in tokenizer.all_special_tokens}  # the template composes these
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary[token] for token in tokens | roles)


def make_rows(
    parts: dict[str, list[Conversation]],
    settings: ConversationArguments,
    base: BaseModel,
    new_ids: list[int],
    sample_tokens: int,
) -> ConversationData:
    """Conversations as rows of tokens.

    Raises:
        ValueError: conversations that do not fit.
    """
    longest = base.model.config.max_position_embeddings
    max_length = settings.max_length or longest
    if max_length > longest:
        raise ValueError(f"--max_length is {max_length}, but the model reads at most {longest} tokens: lower it.")
    rows, ends, notes = {}, set(), []
    for part, found in parts.items():
        encoded, counts = fit(found, base.tokenizer, max_length, settings.too_long)
        if not encoded:
            raise ValueError(f"No {part} conversation fits into --max_length ({max_length}) tokens.")
        lengths = [len(one.ids) - 1 for one in encoded]
        numbers = pack(lengths, max_length) if settings.packing else [[i] for i in range(len(encoded))]
        rows[part] = PackedConversations(encoded, numbers, base.tokenizer.pad_token_id)
        ends.add(end_of_turn(encoded))
        tokens = count_tokens(encoded)
        left_out = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        notes.append(
            f"{part:<24}{len(encoded):,} conversations, {tokens['tokens']:,} tokens ({tokens['answers']:,} of answers) "
            f"in {len(numbers):,} rows{'; too long: ' + left_out if left_out else ''}"
        )
    (stop_id,) = ends
    shown = [one for one in parts["validation"] if fits_with_answer(one, base, sample_tokens)][:NUM_SHOWN]
    return ConversationData(rows["train"], rows["validation"], shown, stop_id, new_ids, notes)


def build_assistant(
    base_arguments: BaseArguments,
    arguments: TuneArguments,
    base: BaseModel,
    data: ConversationData,
    accelerator: Accelerator,
    grid: Grid,
) -> Run:
    """A run that trains what --trainable names on the answers."""
    stop_ids = [data.stop_id, base.tokenizer.eos_token_id]
    base.model.generation_config.eos_token_id = sorted({i for i in stop_ids if i is not None})
    base.model.generation_config.pad_token_id = base.tokenizer.pad_token_id
    prompts = questions(arguments.sample_prompts, data.shown, base.tokenizer)
    check_prompts(base.model.config, prompts, arguments)
    kwargs = {} if base_arguments.trainable == "lora" else skips_logits(base.model)
    model = choose_trained(base, base_arguments, data.new_ids)
    accelerator.print("\n".join(data.notes))
    objective = LanguageModelling(
        base.tokenizer,
        token_byte_lengths(base.tokenizer),
        prompts,
        {"do_sample": False, "max_new_tokens": arguments.sample_tokens},
        arguments.seed,
        kwargs,
    )
    facts = base.facts | trained_facts(base_arguments)
    facts |= {"data": {"train": data.train.sha256, "validation": data.validation.sha256}}
    return build_run(
        arguments,
        model,
        objective,
        (data.train, data.validation),
        base.tokenizer,
        (accelerator, grid),
        facts,
        is_tuning=True,
    )


def questions(given: Sequence[str], shown: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """What is asked at each evaluation: the user's own prompts, or what held-out conversations begin with."""
    beginnings = [before_answer(one) for one in shown]
    if given:
        beginnings = [[{"role": "user", "content": text}] for text in given]
    return [Prompt(messages[-1]["content"], prompt_ids(tokenizer, messages)) for messages in beginnings]


def fits_with_answer(one: Conversation, base: BaseModel, sample_tokens: int) -> bool:
    """Whether what a conversation begins with leaves the model room to answer."""
    room = base.model.config.max_position_embeddings - sample_tokens
    return len(prompt_ids(base.tokenizer, before_answer(one))) <= room


def before_answer(one: Conversation) -> list[dict[str, str]]:
    """The messages before the first answer."""
    first = next(i for i, message in enumerate(one.messages) if message["role"] == "assistant")
    return one.messages[:first] or [{"role": "user", "content": ""}]


def write_model(
    origin: Origin, base: BaseModel, data: ConversationData, run: Run, folder: Path, weights: dict[str, Tensor],
    conclusions: dict[str, Any],
) -> None:  # fmt: skip
    """Writes the assistant, its tokenizer, card and loss curve; prints what it said before and says now."""
    write_weights(run, base, folder, weights)
    metrics, samples = (JsonLines(run.folder / name).read() for name in LOG_FILES)
    vocabulary = run.bare_model.config.vocab_size
    draw_loss_curve(metrics, folder / PICTURE_NAME, title="Answers to held-out questions", num_choices=vocabulary)
    shown = before_and_after(samples, conclusions["samples"], data)
    evaluations = [record for record in metrics if "eval_loss" in record]
    final = next(record for record in evaluations if record["step"] == conclusions["step"])
    model_type: str = run.bare_model.config.model_type
    name, tags = f"{model_type.replace('_', '-')} assistant", model_tags(model_type, folder, "conversational")
    figures = figures_named(LANGUAGE_FIGURES, final)
    metadata = tuned_data(name, "text-generation", tags, origin, figures)
    card = assistant_card(metadata, origin, data.notes, [evaluations[0], final], shown)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    if (adapter := run.folder / ADAPTER_FOLDER).exists():
        (adapter / CARD_NAME).write_text(adapter_card(metadata, origin), encoding="utf-8")
    for one in shown:
        print(f"\n{one['prompt']}\n  before: {one['before']!r:.200}\n  after:  {one['after']!r:.200}")


def before_and_after(
    samples: Sequence[dict[str, Any]], final: Sequence[tuple[str, str]], data: ConversationData
) -> list[dict[str, str]]:
    """Prompt, both answers, and what the data says."""
    first = [sample for sample in samples if sample["step"] == 0]
    references = {before_answer(one)[-1]["content"]: one.messages for one in data.shown}
    shown = []
    for before, (prompt, after) in zip(first, final, strict=True):
        messages = references.get(prompt, [])
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        shown.append({"prompt": prompt, "before": before["text"], "after": after, "reference": "".join(answers[:1])})
    return shown


if __name__ == "__main__":
    sys.exit(run_script(main))
