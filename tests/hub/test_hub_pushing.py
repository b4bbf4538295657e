"""The files that `push_to_hub` and `hf upload` leave on a Hub: everything that loading needs, and few secrets."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP
from tests.support.tiny_base import TEXTS

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT uses a name that transformers deprecated
    "ignore:Cannot enable progress bars",
)
REPOSITORY = Path(__file__).parents[2]
BOTH_CLIENTS = pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
CODE = {"configuration_scratch_gpt.py", "modeling_scratch_gpt.py"}
OF_MODEL = {"config.json", "generation_config.json", "model.safetensors", *CODE}
OF_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ALWAYS = {".gitattributes", "README.md"}


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(20, 30)[None]).logits


@pytest.fixture
def model(base):
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def all_that_is_stored(hub):
    """(where, bytes) of everything, as it is stored and, because that may be compressed, as it is read."""
    yield from hub.every_stored_byte()
    for repository in hub.repositories.values():
        for reference in repository.references():
            for commit in repository.history(reference):
                for path, data in repository.files(commit.id).items():
                    yield f"{repository.id} {path}", data


def leaks(hub, tmp_path):
    """Places where a token or a path of this machine can be read."""
    secrets = [hub.token(), str(tmp_path.parent), str(REPOSITORY), sys.prefix, str(Path.home())]
    found = all_that_is_stored(hub)
    return sorted({where for where, data in found for secret in secrets if secret.encode() in data})


def assert_whole(hub, name, model, revision="main"):
    """The repository has everything that loading needs, and loading gives the model."""
    files = hub.repo(name).files(revision)
    assert set(files) >= OF_MODEL - {"model.safetensors"}
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    for file in CODE:
        assert files[file] == (REPOSITORY / "hf_scratch_gpt" / file).read_bytes()
    loaded = type(model).from_pretrained(name, revision=revision)
    assert torch.equal(logits(loaded), logits(model))


@BOTH_CLIENTS
def test_a_model(hub, model, tmp_path):
    model.push_to_hub("alice/tiny", commit_message="Mine", private=True)
    repository = hub.repo("alice/tiny")
    assert set(repository.files()) == OF_MODEL | ALWAYS
    assert (repository.private, [commit.title for commit in repository.history()]) == (True, ["Mine", "initial commit"])
    assert_whole(hub, "alice/tiny", model)
    assert leaks(hub, tmp_path) == []


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_pushing_a_model_again_makes_no_commit(hub, model):
    for _ in range(2):
        model.push_to_hub("alice/tiny")
    assert len(hub.repo("alice/tiny").history()) == 2


def test_a_branch_and_a_pull_request(hub, model, monkeypatch):
    model.push_to_hub("alice/tiny")
    changed(model).push_to_hub("alice/tiny", revision="dev")
    assert_whole(hub, "alice/tiny", model, revision="dev")
    monkeypatch.setenv("HF_TOKEN", hub.token("bob"))
    changed(model).push_to_hub("alice/tiny", create_pr=True)
    assert_whole(hub, "alice/tiny", model, revision="refs/pr/1")
    assert len({data for commit in ("main", "dev", "refs/pr/1") for data in [weights(hub, commit)]}) == 3


def changed(model):
    with torch.no_grad():
        model.model.norm.weight += 1
    return model


def weights(hub, revision="main"):
    return hub.repo("alice/tiny").files(revision)["model.safetensors"]


@BOTH_CLIENTS
def test_shards(hub, model, tmp_path):
    model.push_to_hub("alice/tiny", max_shard_size="20KB")
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert set(hub.repo("alice/tiny").files()) == OF_MODEL - {"model.safetensors"} | shards | ALWAYS
    assert_whole(hub, "alice/tiny", model)
    assert leaks(hub, tmp_path) == []


def test_shards_after_a_single_file_are_not_loaded(hub, model):
    """A trap of transformers, and the reason why `publish` deletes old weights."""
    model.push_to_hub("alice/tiny")
    old = logits(model)
    changed(model).push_to_hub("alice/tiny", max_shard_size="20KB")
    assert "model.safetensors.index.json" in hub.repo("alice/tiny").files()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("alice/tiny")), old)


@pytest.mark.parametrize("tokenizer_class", [AutoTokenizer, PreTrainedTokenizerFast])
def test_a_tokenizer(tokenizer_class, hub, base, tmp_path):
    tokenizer = tokenizer_class.from_pretrained(base)
    tokenizer.push_to_hub("alice/words")
    assert set(hub.repo("alice/words").files()) == OF_TOKENIZER | ALWAYS
    loaded = AutoTokenizer.from_pretrained("alice/words")
    assert loaded(TEXTS) == tokenizer(TEXTS)
    assert loaded.chat_template == tokenizer.chat_template
    assert leaks(hub, tmp_path) == []


def test_a_config(hub, model, tmp_path):
    model.config.push_to_hub("alice/shape")
    assert set(hub.repo("alice/shape").files()) == {"config.json", "configuration_scratch_gpt.py"} | ALWAYS
    assert AutoConfig.from_pretrained("alice/shape").to_diff_dict() == model.config.to_diff_dict()
    assert leaks(hub, tmp_path) == []


def test_a_pipeline(hub, model, tokenizer, tmp_path):
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    writer.push_to_hub("alice/tiny")
    assert set(hub.repo("alice/tiny").files()) == OF_MODEL | OF_TOKENIZER | ALWAYS
    assert_whole(hub, "alice/tiny", model)
    again, settings = pipeline("text-generation", "alice/tiny"), {"max_new_tokens": 8, "do_sample": False}
    assert again(TEXTS[0], **settings) == writer(TEXTS[0], **settings)
    assert leaks(hub, tmp_path) == []


def test_readers_cannot_push(hub, model, monkeypatch):
    hub.create("alice/tiny")
    for token in (hub.token("alice", "read"), hub.token("bob")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
            model.push_to_hub("alice/tiny")
    assert len(hub.repo("alice/tiny").history()) == 1


# Adapters


def adapter_of(model):
    adapter = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return adapter


@BOTH_CLIENTS
def test_an_adapter_of_a_model_of_the_hub(hub, model, tmp_path):
    model.push_to_hub("alice/tiny")
    adapter = adapter_of(AutoModelForCausalLM.from_pretrained("alice/tiny"))
    adapter.push_to_hub("alice/adapter")
    files = hub.repo("alice/adapter").files()
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"} | ALWAYS
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "alice/tiny"
    for loaded in (
        peft.AutoPeftModelForCausalLM.from_pretrained("alice/adapter"),
        AutoModelForCausalLM.from_pretrained("alice/adapter"),
    ):
        assert torch.equal(logits(loaded), logits(adapter))
    assert not torch.equal(logits(adapter), logits(model))
    assert leaks(hub, tmp_path) == []


def test_an_adapter_of_a_local_model_contains_its_path(hub, model, base, tmp_path):
    """PEFT records the path that the base was loaded from; others cannot load the adapter with it."""
    adapter_of(model).push_to_hub("alice/adapter")
    config = json.loads(hub.repo("alice/adapter").files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == str(base)
    assert "alice/adapter adapter_config.json" in leaks(hub, tmp_path)


def test_an_adapter_forgets_the_revision_of_its_base(hub, model):
    """So `finetune` records it."""
    model.push_to_hub("alice/tiny")
    HfApi().create_tag("alice/tiny", tag="v1")
    adapter_of(AutoModelForCausalLM.from_pretrained("alice/tiny", revision="v1")).push_to_hub("alice/adapter")
    assert json.loads(hub.repo("alice/adapter").files()["adapter_config.json"])["revision"] is None


# Trainer


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.arange(20 + index, 30 + index)
        return {"input_ids": ids, "labels": ids}


def trained(model, tokenizer, tmp_path, **settings):
    """Trains for two steps, pushes after each of them and once more at the end."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trained"), push_to_hub=True, hub_model_id="alice/trained", max_steps=2,
        per_device_train_batch_size=2, save_strategy="steps", save_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Rows(), processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    return trainer.model


@BOTH_CLIENTS
def test_a_trainer(hub, model, tokenizer, tmp_path):
    model = trained(model, tokenizer, tmp_path, hub_private_repo=True)
    assert hub.repo("alice/trained").private
    assert set(hub.repo("alice/trained").files()) == OF_MODEL | OF_TOKENIZER | ALWAYS | {"training_args.bin"}
    assert_whole(hub, "alice/trained", model)


def test_during_training_a_trainer_does_not_push_the_code(hub, model, tokenizer, tmp_path):
    """Of its folder it uploads the files it knows; those of custom code follow with the last push."""
    trained(model, tokenizer, tmp_path)
    last, *before, initial = hub.repo("alice/trained").history()
    assert (last.title, initial.title, set(last.files) >= CODE) == ("End of training", "initial commit", True)
    assert before
    assert not [commit.title for commit in before if CODE & set(commit.files)]


def test_a_trainer_sends_its_pickle_with_the_name_of_the_folder_but_no_token_of_the_environment(
    hub, model, tokenizer, tmp_path
):
    trained(model, tokenizer, tmp_path)
    places = [where for where in leaks(hub, tmp_path) if where.startswith("alice/")]
    assert places == ["alice/trained training_args.bin"]
    pickled = hub.repo("alice/trained").files()["training_args.bin"]
    assert str(tmp_path / "trained").encode() in pickled
    assert not [where for where, data in all_that_is_stored(hub) if hub.token().encode() in data]


def test_a_trainer_publishes_a_token_that_it_is_given(hub, model, tokenizer, tmp_path):
    """So do not pass one: use HF_TOKEN or `hf auth login`."""
    trained(model, tokenizer, tmp_path, hub_token=hub.token())
    assert hub.token().encode() in hub.repo("alice/trained").files()["training_args.bin"]


# The command line of the hub


@BOTH_CLIENTS
def test_the_command_line(hub, model, base, tmp_path):
    def hf(*words):
        command = [Path(sys.executable).with_name("hf"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout + done.stderr

    environment = hub.environment(tmp_path / "home", hub.token(), xet=not constants.HF_HUB_DISABLE_XET)
    assert hf("upload", "alice/tiny", base, "--private")[0] == 0
    assert_whole(hub, "alice/tiny", model)
    assert leaks(hub, tmp_path) == []
    code, output = hf("download", "alice/tiny")
    assert code == 0, output
    (path,) = (tmp_path / "home").rglob("model.safetensors")
    assert path.read_bytes() == weights(hub)
    assert hf("cache", "verify", "alice/tiny")[0] == 0
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    code, output = hf("cache", "verify", "alice/tiny")
    assert code != 0, output
    assert "model.safetensors" in output
