"""transformers' Trainer works with our models: losses, resuming, saved folders, pushing to the Hub, heads."""

import json
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_scratch_gpt import (
    ScratchGPTForCausalLM,
    ScratchGPTForSequenceClassification,
    ScratchGPTForTokenClassification,
    ScratchGPTTokenizer,
)
from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP
from tests.support.tiny import SEQ, assert_same, shake, tiny_ids, tiny_model

DROPOUT = {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}
IS_LOADABLE = {
    "config.json", "generation_config.json", "model.safetensors",
    "configuration_scratch_gpt.py", "modeling_scratch_gpt.py",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip


class MaskedRows(torch.utils.data.Dataset):
    """16 rows of 5 tokens with 1 to 4 targets: the first i % 5 labels of row i are ignored."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        ids = tiny_ids(seed=index, batch=1)[0]
        return {"input_ids": ids, "labels": torch.where(torch.arange(SEQ) < index % 5, -100, ids)}


def stacked(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def build(folder, model=None, train_dataset=None, eval_dataset=None, parts=None, **settings):
    """A Trainer on CPU that logs every step; `parts` are further arguments of Trainer."""
    settings = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16, "max_steps": 2, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1,
        "dataloader_pin_memory": False,
        "adam_epsilon": 1e-4,  # by default, rounding errors in gradients near zero cause full-size updates
    } | settings  # fmt: skip
    return Trainer(
        model=model or tiny_model(tie_word_embeddings=False),
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=train_dataset or MaskedRows(),
        eval_dataset=eval_dataset or MaskedRows(),
        **(parts or {}),
    )


def train(folder, resume_from_checkpoint=None, **changes):
    trainer = build(folder, **changes)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def losses(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def assert_trained_alike(actual, expected):
    """Same loss and gradient norm at each step, same weights in the end."""
    assert losses(actual) == pytest.approx(losses(expected), abs=1e-5)
    norms = [
        [record["grad_norm"] for record in run.state.log_history if "loss" in record] for run in (actual, expected)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    weights = actual.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        assert_same(weights[name], tensor, 1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------------------------------


def token_mean(model, rows):
    """Mean negative log-likelihood over all targets of all rows, written out."""
    batch = stacked(rows)
    with torch.no_grad():
        log_probabilities = model.eval()(batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    picked = log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -picked[targets != -100].mean().item()


def test_training_and_eval_loss_are_the_mean_per_target(tmp_path):
    rows = [MaskedRows()[index] for index in range(16)]
    expected = token_mean(tiny_model(tie_word_embeddings=False), rows)
    trainer = train(tmp_path, per_device_train_batch_size=16, max_steps=1)
    assert losses(trainer) == [pytest.approx(expected, abs=1e-5)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(token_mean(trainer.model, rows), abs=1e-5)


class Subclass(ScratchGPTForCausalLM):
    """A user's own model, whose name transformers does not know."""


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked by PEFT
@pytest.mark.parametrize(("model_class", "wrap"), [
    (ScratchGPTForCausalLM, lambda model: model), (Subclass, lambda model: model), (ScratchGPTForCausalLM, with_lora),
])  # fmt: skip
def test_label_smoothing_predicts_the_next_token(model_class, wrap, tmp_path):
    """Trainer takes the labels away and shifts them itself if it knows the name of the class."""
    model = wrap(tiny_model(model_class))
    trainer = build(tmp_path, model=model, label_smoothing_factor=0.1)
    batch = stacked([MaskedRows()[index] for index in range(8)])
    with torch.no_grad():
        actual = trainer.compute_loss(model.eval(), dict(batch))
        log_probabilities = model(batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    picked = log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    smoothed = 0.9 * -picked + 0.1 * -log_probabilities.mean(-1)
    assert_same(actual, smoothed[targets != -100].mean())


def test_a_subclass_counts_only_targets_too(tmp_path):
    rows = [MaskedRows()[index] for index in range(16)]
    expected = token_mean(tiny_model(), rows)
    trainer = train(tmp_path, model=tiny_model(Subclass), per_device_train_batch_size=16, max_steps=1)
    assert losses(trainer) == [pytest.approx(expected, abs=1e-5)]


def test_the_rotary_frequencies_survive_an_evaluation_in_bfloat16(tmp_path):
    trainer = build(tmp_path, bf16_full_eval=True)
    trainer.evaluate()
    assert trainer.model.lm_head.weight.dtype == torch.bfloat16
    assert trainer.model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 4), (1, 8)])
def test_gradient_accumulation_does_not_change_training(batch_size, accumulation, tmp_path):
    whole = train(tmp_path)
    split = train(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    assert_trained_alike(split, whole)


# renamed to activation_checkpointing in transformers 5.23; 5.17 has only the old name
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_does_not_change_training(tmp_path):
    assert_trained_alike(train(tmp_path, gradient_checkpointing=True), train(tmp_path))


def token_accuracy(prediction):
    labels = prediction.label_ids[:, 1:]
    return {"accuracy": (prediction.predictions[:, :-1] == labels)[labels != -100].mean()}


def test_compute_metrics_sees_all_predictions_and_labels(tmp_path):
    parts = {
        "compute_metrics": token_accuracy,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    trainer = train(tmp_path, max_steps=20, per_device_eval_batch_size=3, parts=parts)
    batch = stacked([MaskedRows()[index] for index in range(16)])
    with torch.no_grad():
        hits = trainer.model.eval()(batch["input_ids"]).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    expected = hits[batch["labels"][:, 1:] != -100].float().mean().item()
    assert expected > 0.1
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(expected)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ----------------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 2}
    whole = train(tmp_path, model=tiny_model(**DROPOUT), **settings)
    other = shake(tiny_model(**DROPOUT))  # its weights are replaced
    resumed = train(tmp_path, tmp_path / "checkpoint-3", model=other, **settings)
    assert resumed.state.global_step == 6
    assert losses(resumed) == losses(whole)
    weights = resumed.model.state_dict()
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(weights[name], expected), name


def test_a_checkpoint_loads_by_its_path_and_generates_with_a_cache(tmp_path):
    trainer = train(tmp_path, save_strategy="steps", save_steps=2)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert type(loaded) is ScratchGPTForCausalLM
    ids = tiny_ids()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    # Trainer writes `use_cache: false` into config.json, but generate reads generation_config.json
    cached = loaded.generate(ids, **settings)
    assert cached.past_key_values.get_seq_length() == ids.shape[1] + 5
    assert torch.equal(cached.sequences, loaded.generate(ids, use_cache=False, **settings).sequences)


def test_save_model_writes_all_files_needed_to_load(tmp_path, tokenizer):
    model = tiny_model(vocab_size=len(tokenizer))
    trainer = build(tmp_path / "run", model=model, parts={"processing_class": tokenizer})
    trainer.save_model(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} >= IS_LOADABLE
    assert json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"] == AUTO_MAP
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(loaded) is ScratchGPTTokenizer
    text = "def f(x):\n    return x  # \N{SNOWMAN}"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template


# ----------------------------------------------------------------------------------------------------------------------
# The Hub
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def commits(monkeypatch):
    """Receives (message, {path in the repository: bytes}) for each commit that Trainer would send."""
    received = []

    def create_repo(*names, repo_id=None, **options):
        return RepoUrl(f"https://huggingface.co/{repo_id or names[-1]}")

    def upload_folder(*api, folder_path, commit_message, path_in_repo="", ignore_patterns=None, **options):
        assert options["repo_id"] == "someone/tiny"
        folder = Path(folder_path)
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        names = filter_repo_objects(names, ignore_patterns=ignore_patterns)
        files = {str(Path(path_in_repo, name)): (folder / name).read_bytes() for name in names}
        received.append((commit_message, files))
        done = Future()
        done.set_result(None)
        return done

    for name, fake in (("create_repo", create_repo), ("upload_folder", upload_folder)):
        monkeypatch.setattr(HfApi, name, fake)
        monkeypatch.setattr(transformers.trainer, name, fake, raising=False)  # called by older versions
    return received


def test_push_to_hub_sends_a_folder_that_loads(tmp_path, tokenizer, commits):
    model = tiny_model(vocab_size=len(tokenizer))
    settings = {"push_to_hub": True, "hub_model_id": "someone/tiny", "save_strategy": "steps", "save_steps": 1}
    trainer = train(tmp_path / "run", model=model, parts={"processing_class": tokenizer}, **settings)
    trainer.push_to_hub()
    assert [message for message, _ in commits] == [
        "Training in progress, step 1", "Training in progress, step 2", "End of training",
    ]  # fmt: skip
    _, files = commits[-1]
    assert files.keys() == IS_LOADABLE | {"README.md", "training_args.bin"}  # and no checkpoints
    card = files["README.md"].decode()
    assert "# tiny\n" in card
    assert "generated_from_trainer" in card
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pulled = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tiny_ids()
    with torch.no_grad():
        assert torch.equal(pulled(ids).logits, trainer.model.eval()(ids).logits)


def test_a_checkpoint_pushed_during_training_carries_the_code(tmp_path, commits):
    settings = {"push_to_hub": True, "hub_model_id": "someone/tiny", "hub_strategy": "checkpoint"}
    train(tmp_path, save_strategy="steps", save_steps=2, **settings)
    _, files = commits[-1]
    needed = {name for name in IS_LOADABLE if "token" not in name and "chat" not in name}
    assert {f"last-checkpoint/{name}" for name in needed} < files.keys()


# ----------------------------------------------------------------------------------------------------------------------
# Classification
# ----------------------------------------------------------------------------------------------------------------------

SNIPPETS = [f"def f{number}(x):\n    return x" for number in range(8)] + [f"import m{number}" for number in range(8)]
CODE, IMPORT = 0, 1


def texts(tokenizer, is_per_token=False, **truncation):
    """16 snippets of two lengths and kinds; the label of a token is id % 2, and the first token has none."""
    labels = [CODE if text.startswith("def") else IMPORT for text in SNIPPETS]
    rows = Dataset.from_dict({"text": SNIPPETS, "label": labels})

    def encode(row):
        encoded = tokenizer(row["text"], **truncation)
        if is_per_token:
            encoded["labels"] = [-100] + [token % 2 for token in encoded["input_ids"][1:]]
        return encoded

    # "text" stays: Trainer drops columns that forward does not accept
    return rows.map(encode, remove_columns=["label"] if is_per_token else None)


def classifier(model_class, tokenizer, **overrides):
    return tiny_model(
        model_class, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        id2label={CODE: "code", IMPORT: "import"}, label2id={"code": CODE, "import": IMPORT}, **overrides,
    )  # fmt: skip


def accuracy(prediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": hits[prediction.label_ids != -100].mean()}


def train_sequences(folder, tokenizer, padding_side="left", truncation=None, **settings):
    rows = texts(tokenizer, **(truncation or {}))
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", padding_side=padding_side)
    parts = {
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": accuracy,
        "processing_class": tokenizer,
    }
    model = classifier(ScratchGPTForSequenceClassification, tokenizer)
    return train(folder / "run", model=model, train_dataset=rows, eval_dataset=rows, parts=parts, **settings)


def train_tokens(folder, tokenizer, truncation=None, **settings):
    rows = texts(tokenizer, is_per_token=True, **(truncation or {}))
    parts = {"data_collator": DataCollatorForTokenClassification(tokenizer), "compute_metrics": accuracy}
    model = classifier(ScratchGPTForTokenClassification, tokenizer)
    return train(folder, model=model, train_dataset=rows, eval_dataset=rows, parts=parts, **settings)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_sequence_classification_learns_and_answers_with_label_names(padding_side, tmp_path, tokenizer):
    settings = {"max_steps": 15, "eval_on_start": True, "per_device_eval_batch_size": 5}
    trainer = train_sequences(tmp_path, tokenizer, padding_side, **settings)
    untrained = classifier(ScratchGPTForSequenceClassification, tokenizer)
    first = trainer.state.log_history[0]["eval_loss"]
    assert first == pytest.approx(mean_loss_per_text(untrained, trainer.eval_dataset), abs=1e-5)
    assert first > 0.5
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.1
    assert metrics["eval_accuracy"] == 1
    trainer.save_model(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    answers = pipeline("text-classification", loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "model"))
    assert [answer["label"] for answer in answers(SNIPPETS[6:10])] == ["code"] * 2 + ["import"] * 2


def mean_loss_per_text(model, rows):
    """One text at a time, without padding."""
    with torch.no_grad():
        scores = torch.cat([model.eval()(torch.tensor([ids])).logits for ids in rows["input_ids"]])
    return torch.nn.functional.cross_entropy(scores, torch.tensor(rows["label"])).item()


def test_token_classification_learns(tmp_path, tokenizer):
    trainer = train_tokens(tmp_path, tokenizer, max_steps=15)
    assert losses(trainer)[0] > 0.5
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.1
    assert metrics["eval_accuracy"] > 0.95
    trainer.save_model()
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    ids = tiny_ids()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("train_classifier", [train_sequences, train_tokens])
def test_accumulation_does_not_change_the_training_of_classifiers(train_classifier, tmp_path, tokenizer):
    """The texts differ in length, so the micro-batches differ in the number of labels."""
    whole = train_classifier(tmp_path, tokenizer)
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_trained_alike(train_classifier(tmp_path, tokenizer, **settings), whole)
