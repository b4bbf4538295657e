"""TRL's trainers work with our models and tokenizer, passed as a path or as objects.

All models are random and tiny. The tests compare losses with hand-written ones and check which weights change.
"""

import math

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from hf_scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification, ScratchGPTTokenizer
from tests.support.tiny import shake, tiny_config

# TRL and PEFT use names that are deprecated in transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_.*)?` is deprecated:FutureWarning")
SETTINGS = {
    "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 5e-3, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True, "dataloader_pin_memory": False,
    "seed": 1, "lr_scheduler_type": "constant",
}  # fmt: skip
FACTS = [("len", "counts"), ("sorted", "sorts a list"), ("print", "shows"), ("abs", "drops the sign")]
BY_PATH_OR_AS_OBJECT = pytest.mark.parametrize("given", ["path", "object"])
WITH_AND_WITHOUT_ADAPTER = pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])


def asked(name):
    return {"role": "user", "content": f"{name}?"}


def answered(text):
    return {"role": "assistant", "content": text}


CONVERSATIONS = [{"messages": [asked(name), answered(text)]} for name, text in FACTS]
CONVERSATIONS[0]["messages"] += [asked("and min"), answered("the least")]  # a second turn
CONVERSATIONS[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
PREFERENCES = [
    {"prompt": [asked(name)], "chosen": [answered(text)], "rejected": [answered("no idea")]} for name, text in FACTS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved language model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    texts = [f"{name}? {text}\n" for name, text in FACTS] * 20
    tokenizer = ScratchGPTTokenizer.train_from_texts(texts, 290, model_max_length=64, show_progress=False)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    shake(ScratchGPTForCausalLM(tiny_config(vocab_size=len(tokenizer), **special))).save_pretrained(folder)
    return folder


def model_arguments(folder, given, adapter=False):
    """The path, or the model and the tokenizer as objects; optionally LoRA with its default targets."""
    arguments = {"model": str(folder)}
    if given == "object":
        arguments["model"] = AutoModelForCausalLM.from_pretrained(folder)
        arguments["processing_class"] = AutoTokenizer.from_pretrained(folder)
    if adapter:
        arguments["peft_config"] = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32)
    return arguments


def train(trainer):
    """Train and return a function that lists the values of a logged metric, one per step."""
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.train()
    for name, tensor in trainer.model.named_parameters():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, before[name]) != tensor.requires_grad, name
    return lambda key: [record[key] for record in trainer.state.log_history if key in record]


def assert_trained_what_was_given(trainer, folder, adapter):
    model = trainer.model
    assert all(tensor.requires_grad == (not adapter or "lora_" in name) for name, tensor in model.named_parameters())
    if adapter:
        assert isinstance(model, peft.PeftModel)
        assert {name.rpartition(".")[2] for name in model.targeted_module_names} == {"q_proj", "v_proj"}
        model = model.get_base_model()
    assert type(model) is ScratchGPTForCausalLM
    assert type(trainer.processing_class) is ScratchGPTTokenizer
    assert model.config.name_or_path == str(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Supervised fine-tuning
# ----------------------------------------------------------------------------------------------------------------------


def mean_loss(folder, rows):
    """Mean over the targets of all rows, one row at a time; a row is a list of (id, whether it is a target)."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    targets = []
    for row in rows:
        ids = torch.tensor([[token for token, _ in row]])
        with torch.no_grad():
            log_probabilities = model(ids).logits[0].log_softmax(-1)
        targets += [-log_probabilities[t - 1, row[t][0]] for t in range(1, len(row)) if row[t][1]]
    return torch.stack(targets).mean().item()


def turns(folder, messages):
    """A conversation in our template: role, text, end. Text and end of the assistant's turns are targets."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = []
    for message in messages:
        spoken = [*tokenizer(message["content"])["input_ids"], tokenizer.convert_tokens_to_ids("<|end|>")]
        row.append((tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), False))
        row += [(token, message["role"] == "assistant") for token in spoken]
    return row


@BY_PATH_OR_AS_OBJECT
@WITH_AND_WITHOUT_ADAPTER
def test_sft_learns_only_the_turns_of_the_assistant(given, adapter, folder, tmp_path):
    trainer = SFTTrainer(
        **model_arguments(folder, given, adapter),
        args=SFTConfig(str(tmp_path), **SETTINGS, assistant_only_loss=True),
        train_dataset=Dataset.from_list(CONVERSATIONS),
    )
    losses = train(trainer)("loss")
    assert_trained_what_was_given(trainer, folder, adapter)
    expected = mean_loss(folder, [turns(folder, row["messages"]) for row in CONVERSATIONS])
    assert losses[0] == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_sft_with_packing_keeps_conversations_apart(folder, tmp_path):
    settings = SETTINGS | {"per_device_train_batch_size": 2, "max_steps": 1}
    trainer = SFTTrainer(
        **model_arguments(folder, "path"),
        args=SFTConfig(str(tmp_path), **settings, assistant_only_loss=True, packing=True, max_length=64),
        train_dataset=Dataset.from_list(CONVERSATIONS),
    )
    assert len(trainer.train_dataset) <= 2
    losses = train(trainer)("loss")
    expected = mean_loss(folder, [turns(folder, row["messages"]) for row in CONVERSATIONS])
    assert losses == [pytest.approx(expected, abs=1e-4)]


@BY_PATH_OR_AS_OBJECT
def test_sft_learns_completions_and_their_end(given, folder, tmp_path):
    trainer = SFTTrainer(
        **model_arguments(folder, given),
        args=SFTConfig(str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list([{"prompt": f"{name}?", "completion": f" {text}"} for name, text in FACTS]),
    )
    losses = train(trainer)("loss")
    tokenizer = trainer.processing_class
    rows = []
    for name, text in FACTS:
        completion = [*tokenizer(f" {text}")["input_ids"], tokenizer.eos_token_id]
        rows.append([(token, False) for token in tokenizer(f"{name}?")["input_ids"]])
        rows[-1] += [(token, True) for token in completion]
    assert losses[0] == pytest.approx(mean_loss(folder, rows), abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]


# ----------------------------------------------------------------------------------------------------------------------
# Preferences
# ----------------------------------------------------------------------------------------------------------------------


@BY_PATH_OR_AS_OBJECT
@WITH_AND_WITHOUT_ADAPTER
def test_dpo_starts_at_its_reference_and_moves_to_the_preferred_answers(given, adapter, folder, tmp_path):
    trainer = DPOTrainer(
        **model_arguments(folder, given, adapter),
        args=DPOConfig(str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list(PREFERENCES),
    )
    metrics = train(trainer)
    assert_trained_what_was_given(trainer, folder, adapter)
    losses, margins = metrics("loss"), metrics("rewards/margins")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert margins[-1] > 0.1
    assert metrics("rewards/accuracies")[-1] == 1


@BY_PATH_OR_AS_OBJECT
def test_a_reward_model_learns_preferences(given, folder, tmp_path):
    arguments = model_arguments(folder, given)
    if given == "object":
        arguments["model"] = ScratchGPTForSequenceClassification.from_pretrained(folder, num_labels=1)
    trainer = RewardTrainer(
        **arguments,
        args=RewardConfig(str(tmp_path), **SETTINGS),
        train_dataset=Dataset.from_list(PREFERENCES),
    )
    assert type(trainer.model) is ScratchGPTForSequenceClassification
    assert trainer.model.score.out_features == 1
    metrics = train(trainer)
    losses, margins = metrics("loss"), metrics("margin")
    assert losses[0] == pytest.approx(math.log(2), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]
    assert margins[-1] > margins[0] + 0.5
    assert metrics("accuracy")[-1] == 1


# ----------------------------------------------------------------------------------------------------------------------
# Reinforcement
# ----------------------------------------------------------------------------------------------------------------------


@BY_PATH_OR_AS_OBJECT
def test_grpo_increases_the_reward(given, folder, tmp_path):
    def share_of_letters(completions, **columns):
        return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in completions]

    trainer = GRPOTrainer(
        **model_arguments(folder, given),
        reward_funcs=share_of_letters,
        args=GRPOConfig(
            str(tmp_path), **SETTINGS | {"max_steps": 10, "per_device_train_batch_size": 32, "learning_rate": 1e-2},
            num_generations=16, max_completion_length=8,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{name}?"} for name, _ in FACTS]),
    )  # fmt: skip
    rewards = train(trainer)("reward")
    assert_trained_what_was_given(trainer, folder, adapter=False)
    assert sum(rewards[-3:]) > 1.2 * sum(rewards[:3])
