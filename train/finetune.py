"""Fine-tune a pretrained model on conversations. Run the same command again to continue.

    scratch-gpt finetune --model runs/quickstart/run/model --train_file conversations.jsonl --output_dir runs/assistant
    accelerate launch -m train.finetune recipe.yaml

Each row has `messages`; or `prompt` and `completion`; or `instruction`, `output` and optionally `input`. The loss is
computed on the assistant's answers only. The run folder contains the same files as in pretraining; samples.jsonl has
answers to held-out questions before, during and after training, and model/ works with pipeline("text-generation").
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from hf_scratch_gpt.tokenization_scratch_gpt import CHAT_TEMPLATE, CHAT_TOKENS

from .checkpoint.recorded import recorded_settings
from .data.conversations import (
    Conversation,
    PackedConversations,
    count_tokens,
    end_of_turn,
    limit_length,
    parse_conversations,
    unread_columns,
)
from .data.plain_text import Message, prompt_ids
from .data.rows import read_parts
from .distributed.device import launched_processes
from .hub.cards.finetuned import write_assistant_card
from .hub.cards.origin import Origin, origin_of
from .loop.claim import claimed
from .loop.evaluation import logged_evaluation, sample
from .loop.finish import COMPLETE, STOPPED, final_evaluation, load_best_weights, report_complete, write_result
from .loop.language_modeling import LanguageModeling, Prompt, check_prompts, skips_logits
from .loop.log import JsonLines
from .loop.resume import is_complete, resume
from .loop.run import Run, build_run
from .loop.status import recorded_status
from .loop.train import train
from .metrics.perplexity import token_byte_lengths
from .metrics.plots import draw_loss_curve
from .model.pretrained import BaseModel, choose_trained, load_base, trained_settings, write_tuned_model
from .settings.command import run_command
from .settings.finetuning import (
    DEFAULT_FRACTION,
    BaseArguments,
    ConversationArguments,
    FinetuneArguments,
    TuneArguments,
    checked_max_length,
)
from .settings.recipe import parse_recipe, recipe_text
from .settings.run_folder import LOSS_CURVE_FILE, METRICS_FILE, SAMPLES_FILE
from .settings.words import counted

NUM_SHOWN = 5  # held-out conversations whose first question is answered at each evaluation


@dataclass
class ConversationData:
    """The conversations as rows of tokens."""

    train: PackedConversations
    validation: PackedConversations
    shown: list[Conversation]  # held out; their first question is asked at each evaluation
    stop_id: int  # the token that ends every answer
    new_ids: list[int]  # control tokens, which pretraining has never seen
    notes: list[str]  # sizes of the parts, for the terminal and the model card


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 130 when a signal has stopped it."""
    kinds = (BaseArguments, ConversationArguments, TuneArguments)
    settings = base_arguments, data_arguments, tuning = parse_recipe(kinds, argv, description=__doc__ or "")
    base_arguments.check_engine(tuning)
    recipe = recipe_text(*settings)
    origin = origin_of("finetune", recipe, base_arguments, data_arguments, "validation")
    base, data = load(base_arguments, data_arguments, tuning)
    arguments = tuning.continued(recorded_settings(Path(tuning.output_dir))).for_examples(
        len(data.train),
        data.train.longest,
        base.model.config,
        base_arguments.trainable,
        launched_processes() // tuning.tp_size,
    )
    with claimed(arguments) as accelerator:
        return finetune(base_arguments, arguments, base, data, origin, accelerator, recipe)


def finetune(
    base_arguments: BaseArguments,
    arguments: FinetuneArguments,
    base: BaseModel,
    data: ConversationData,
    origin: Origin,
    accelerator: Accelerator,
    recipe: str,
) -> int:
    """Build the run, train it, and write the model; returns the exit code."""
    run = build_assistant(base_arguments, arguments, base, data, accelerator)
    state = resume(run, recipe)
    if is_complete(run, state):
        return COMPLETE
    with recorded_status(run, state):
        if not train(run, state):
            return STOPPED
        step = load_best_weights(run, state) if arguments.load_best_model_at_end else state.step
        final, samples = final_evaluation(run, step), sample(run)
        weights = run.whole_weights()

        def write(folder: Path, adapter: Path) -> None:
            write_tuned_model(run.bare_model, base, folder, weights, adapter)
            write_card(run, (folder, adapter), data, origin, final, samples)

        write_result(run, state, write)
    return report_complete(run)


def load(
    base_arguments: BaseArguments, data_arguments: ConversationArguments, arguments: TuneArguments
) -> tuple[BaseModel, ConversationData]:
    """Load the base model with a chat template, and all conversations as rows of tokens.

    Raises:
        ValueError: rows, a tokenizer or a model that cannot be used.
    """
    rows = read_parts(data_arguments, {"validation": DEFAULT_FRACTION}, arguments.seed)
    parts = {part: parse_conversations(some) for part, some in rows.items()}
    base = load_base(base_arguments, arguments.seed, AutoModelForCausalLM)
    known_tokens = base.model.config.vocab_size
    new_ids = learn_to_chat(base, data_arguments.chat_template)
    if base_arguments.trainable == "lora" and base.model.config.vocab_size > known_tokens:
        raise ValueError(
            f"the tokenizer of {base.name} lacks control tokens, and --trainable lora cannot train their embeddings: "
            "use --trainable all or layers."
        )
    return base, make_rows(parts, data_arguments, base, new_ids, arguments.max_new_tokens)


def learn_to_chat(base: BaseModel, chat_template: str) -> list[int]:
    """Add our chat template and its control tokens to a tokenizer without one; returns the ids of its control tokens.

    New embeddings are drawn around the mean of the old ones (https://nlp.stanford.edu/~johnhew/vocab-expansion.html),
    so the model does not start by predicting the new tokens everywhere.

    Raises:
        ValueError: the tokenizer's own chat template does not mark answers.
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
            f"the chat template of {base.name} has no generation markers, so it does not say which tokens are answers: "
            "use ours with --chat_template own."
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
    max_new_tokens: int,
) -> ConversationData:
    """Encode conversations and pack them into rows of tokens.

    Raises:
        ValueError: conversations that are too long.
    """
    longest = base.model.config.max_position_embeddings
    max_length = checked_max_length(settings.max_length, longest)
    rows, ends, notes = {}, set(), []
    for part, found in parts.items():
        encoded, counts = limit_length(found, base.tokenizer, max_length, settings.too_long)
        if not encoded:
            raise ValueError(f"no {part} conversation fits into --max_length ({max_length}): raise it.")
        rows[part] = PackedConversations(encoded, base.tokenizer.pad_token_id, settings.packing)
        ends.add(end_of_turn(encoded))
        tokens = count_tokens(encoded)
        too_long = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        notes.append(
            f"{part:<24}{counted(len(encoded), 'conversation')}, {tokens['tokens']:,} tokens "
            f"({tokens['answers']:,} of answers)"
            f"{'; too long: ' + too_long if too_long else ''}"
        )
    if unread := unread_columns(one for found in parts.values() for one in found):
        notes.append(f"note: {unread}")
    (stop_id,) = ends
    shown = [one for one in parts["validation"] if fits_with_answer(one, base, max_new_tokens)][:NUM_SHOWN]
    return ConversationData(rows["train"], rows["validation"], shown, stop_id, new_ids, notes)


def build_assistant(
    base_arguments: BaseArguments,
    arguments: FinetuneArguments,
    base: BaseModel,
    data: ConversationData,
    accelerator: Accelerator,
) -> Run:
    """A run that trains the parameters chosen by --trainable on the answers."""
    stop_ids = [data.stop_id, base.tokenizer.eos_token_id]
    base.model.generation_config.eos_token_id = sorted({i for i in stop_ids if i is not None})
    base.model.generation_config.pad_token_id = base.tokenizer.pad_token_id
    prompts = questions(arguments.sample_prompts, data.shown, base.tokenizer)
    check_prompts(base.model.config, prompts, arguments)
    kwargs = {} if base_arguments.trainable == "lora" else skips_logits(base.model)
    model = choose_trained(base, base_arguments, data.new_ids)
    accelerator.print("\n".join([*data.notes, *arguments.describe(len(data.train), "conversations")]))
    objective = LanguageModeling(
        base.tokenizer,
        token_byte_lengths(base.tokenizer),
        prompts,
        {"do_sample": False, "max_new_tokens": arguments.max_new_tokens},
        arguments.seed,
        kwargs,
    )
    identity = {"data": {"train": data.train.sha256, "validation": data.validation.sha256}}
    facts = base.identity | trained_settings(base_arguments) | identity
    return build_run(arguments, accelerator, model, objective, data.train, data.validation, facts)


def questions(given: Sequence[str], shown: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Questions for each evaluation: --sample_prompts, or the first question of held-out conversations."""
    beginnings = [before_answer(one) for one in shown]
    if given:
        beginnings = [[{"role": "user", "content": text}] for text in given]
    return [Prompt(messages[-1]["content"], prompt_ids(tokenizer, messages)) for messages in beginnings]


def fits_with_answer(one: Conversation, base: BaseModel, max_new_tokens: int) -> bool:
    """Whether the first question leaves the model room for an answer."""
    room: int = base.model.config.max_position_embeddings - max_new_tokens
    return len(prompt_ids(base.tokenizer, before_answer(one))) <= room


def before_answer(one: Conversation) -> list[Message]:
    """The messages before the first answer."""
    first = next(i for i, message in enumerate(one.messages) if message["role"] == "assistant")
    return one.messages[:first] or [{"role": "user", "content": ""}]


def write_card(
    run: Run,
    folders: tuple[Path, Path],
    data: ConversationData,
    origin: Origin,
    final: dict[str, Any],
    final_samples: list[tuple[str, str]],
) -> None:
    """Write the model card and the loss curve; print the answers before and after fine-tuning.

    Args:
        folders: of the model and of the adapter, if there is one.
        final: evaluation of the final weights.
        final_samples: prompts and answers of these weights.
    """
    records, samples = JsonLines(run.folder / METRICS_FILE).read(), JsonLines(run.folder / SAMPLES_FILE).read()
    config = run.bare_model.config
    draw_loss_curve(
        records, folders[0] / LOSS_CURVE_FILE, title="Answers to held-out questions", num_choices=config.vocab_size
    )
    first = logged_evaluation(run.folder, 0) or dict.fromkeys(final, math.nan)
    shown = before_and_after(samples, final_samples, data)
    write_assistant_card(*folders, config.model_type, origin, data.notes, (first, final), shown)
    for one in shown:
        print(f"\n{one['prompt']}\n  before: {one['before']!r:.200}\n  after:  {one['after']!r:.200}")


def before_and_after(
    samples: Sequence[dict[str, Any]], final: Sequence[tuple[str, str]], data: ConversationData
) -> list[dict[str, str]]:
    """Each prompt that was also asked before training, with both answers and the one in the data."""
    answers_before: dict[str, list[str]] = {}
    for record in samples:
        if record["step"] == 0 and {"prompt", "text"} <= record.keys():
            answers_before.setdefault(record["prompt"], []).append(record["text"])
    references = {before_answer(one)[-1]["content"]: one.messages for one in data.shown}
    shown = []
    for prompt, after in final:
        if not answers_before.get(prompt):  # --sample_prompts has changed since the run started
            continue
        messages = references.get(prompt, [])
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        before = answers_before[prompt].pop(0)
        shown.append({"prompt": prompt, "before": before, "after": after, "reference": "".join(answers[:1])})
    return shown


if __name__ == "__main__":
    sys.exit(run_command(main))
