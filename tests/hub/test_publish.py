"""`publish` with a local Hub: the files that are uploaded, and those that never are."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_scratch_gpt.configuration_scratch_gpt import AUTO_MAP
from tests.support.tiny_base import TEXTS
from tests.support.tiny_publish import SENT, WEIGHTS, edit_json, log_in, logits
from train.model.adapters import ignored_peft_warning
from train.model.inference import load_for_inference
from train.publish import main

# Files


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
def test_one_commit_contains_all_files_that_the_model_needs_and_no_others(hub, send, model_folder):
    done = send(commit_message="First")
    repository = hub.repo("alice/tiny")
    files = repository.files("main")
    assert set(files) == SENT | {".gitattributes"}
    assert [commit.title for commit in repository.history("main")][:-1] == ["First"]
    assert done.sha == repository.head("main").id
    assert files[WEIGHTS] == (model_folder / WEIGHTS).read_bytes()
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert 'from_pretrained("alice/tiny")' in files["README.md"].decode()
    model = AutoModelForCausalLM.from_pretrained("alice/tiny", revision=done.sha)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(model_folder)))
    tokenizer, here = (AutoTokenizer.from_pretrained(name) for name in ("alice/tiny", model_folder))
    assert tokenizer(TEXTS)["input_ids"] == here(TEXTS)["input_ids"]
    assert tokenizer.chat_template == here.chat_template


def test_no_traces_of_this_machine_are_uploaded(hub, send, model_folder, tmp_path):
    send()
    secrets = [hub.token(), str(tmp_path), str(Path.home()), str(Path.cwd()), "not for the Hub", "moment"]
    stored = [(where, content) for where, content in hub.every_stored_byte() if not where.startswith("request ")]
    assert any((model_folder / WEIGHTS).read_bytes()[:100] in content for _, content in stored)
    found = [(where, secret) for where, content in stored for secret in secrets if secret.encode() in content]
    assert not found


def test_local_paths_in_the_config_are_removed(hub, send, model_folder):
    edit_json(model_folder / "config.json", _name_or_path=str(model_folder), auto_map={"AutoConfig": "other.Config"})
    send()
    config = json.loads(hub.repo("alice/tiny").files("main")["config.json"])
    assert "_name_or_path" not in config
    assert config["auto_map"] == AUTO_MAP


@pytest.mark.parametrize(
    ("settings", "is_private"), [({}, True), ({"private": True}, True), ({"private": False}, False)]
)
def test_new_repositories_are_private_by_default(hub, send, settings, is_private, capsys):
    send(**settings)
    assert hub.repo("alice/tiny").private is is_private
    assert f"alice/tiny (new, {'private' if is_private else 'public'})" in capsys.readouterr().out


def test_a_bare_name_is_in_the_own_namespace(hub, send):
    assert send(repo_id="tiny").name.repo_id == "alice/tiny"
    assert hub.repo("alice/tiny").files("main").keys() > {WEIGHTS}


def test_an_organization(hub, send):
    send(repo_id="acme/tiny")
    assert hub.repo("acme/tiny").private


def test_publishing_again_makes_no_commit(hub, send, capsys):
    first = send()
    again = send()
    assert again.sha == first.sha
    assert not again.upload
    assert {file.name for file in again.unchanged} == SENT
    assert len(hub.repo("alice/tiny").history("main")) == 2


def test_only_changed_files_are_uploaded(hub, send, model_folder):
    send()
    (model_folder / "loss_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    hub.requests.clear()
    assert [file.name for file in send().upload] == ["loss_curve.png"]
    assert sum(entry.received for entry in hub.requests) < (model_folder / WEIGHTS).stat().st_size


def test_stale_files_of_an_earlier_upload_are_deleted_and_other_files_stay(hub, send, model_folder):
    send(max_shard_size="9KB")
    shards = {name for name in hub.repo("alice/tiny").files("main") if name.startswith("model-")}
    assert len(shards) > 2
    model = AutoModelForCausalLM.from_pretrained("alice/tiny")
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(model_folder)))
    theirs = {"LICENSE": b"mine", "notes/paper.md": b"read", "pytorch_model.bin": b"old", "tokenizer.model": b"kept"}
    theirs |= {"handler.py": b"mine", "demo/app.py": b"mine too"}
    hub.commit("alice/tiny", theirs)
    (model_folder / "chat_template.jinja").unlink()
    done = send()
    assert set(done.delete) == shards | {"model.safetensors.index.json", "pytorch_model.bin", "chat_template.jinja"}
    files = hub.repo("alice/tiny").files("main")
    assert set(files) == (SENT | {".gitattributes", *theirs}) - {"pytorch_model.bin", "chat_template.jinja"}


def test_shards_of_the_folder_are_uploaded_unchanged(hub, send, model_folder):
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(model_folder, max_shard_size="9KB")
    (model_folder / WEIGHTS).unlink(missing_ok=True)
    here = {path.name: path.read_bytes() for path in model_folder.glob("model-*")}
    assert len(here) > 2
    send()
    assert here.items() <= hub.repo("alice/tiny").files("main").items()


def test_a_new_branch_leaves_main_alone(hub, send, model_folder):
    first = send()
    edit_json(model_folder / "generation_config.json", temperature=0.5, do_sample=True)
    done = send(revision="cooler")
    repository = hub.repo("alice/tiny")
    assert repository.head("main").id == first.sha
    assert repository.head("cooler").id == done.sha
    assert json.loads(repository.files("cooler")["generation_config.json"])["temperature"] == 0.5


def test_a_new_branch_may_equal_main(hub, send, capsys):
    first = send()
    assert send(revision="v1").sha == first.sha
    assert hub.repo("alice/tiny").branches.keys() == {"main", "v1"}
    assert "alice/tiny (private), branch v1 (new):" in capsys.readouterr().out
    assert send(revision="v1").sha == first.sha


def test_a_pull_request_leaves_the_branch_alone(hub, send, model_folder):
    first = send()
    (model_folder / "loss_curve.png").write_bytes(b"\x89PNG other")
    done = send(create_pr=True, commit_message="Another picture")
    assert done.commit.pr_url == f"{hub.url}/alice/tiny/discussions/1"
    repository = hub.repo("alice/tiny")
    assert repository.head("main").id == first.sha
    assert repository.files("refs/pr/1")["loss_curve.png"] == b"\x89PNG other"


def test_a_dry_run_lists_exactly_the_files_that_are_then_uploaded(hub, model_folder, capsys):
    options = ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]
    main([*options, "--dry-run"])
    listed = capsys.readouterr().out
    assert not hub.repositories
    assert {entry.method for entry in hub.requests} <= {"GET", "HEAD"}
    main(options)
    told = capsys.readouterr().out
    assert listed.splitlines()[:-1] == told.splitlines()[: len(listed.splitlines()) - 1]
    files = hub.repo("alice/tiny").files("main")
    sizes = {
        line.split()[1]: int(line.split()[2].replace(",", ""))
        for line in told.splitlines()
        if line.startswith("  upload ")
    }
    assert sizes == {name: len(content) for name, content in files.items() if name in SENT}
    assert "note: not uploaded: .env, metrics.jsonl" in listed
    assert f'from_pretrained("alice/tiny", revision="{hub.repo("alice/tiny").head("main").id}")' in told


def test_a_dry_run_needs_no_token_and_no_hub(hub, send, monkeypatch, capsys):
    log_in(monkeypatch, None)
    assert send(dry_run=True).is_new_repo
    assert send(dry_run=True, repo_id="tiny").is_new_repo
    hub.fail(path="/api/", times=None)
    assert {file.name for file in send(dry_run=True).upload} == SENT
    assert "This plan assumes that the repository is empty." in capsys.readouterr().err


def test_a_checkpoint_without_card_and_tokenizer(hub, send, model_folder):
    for name in ("README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model_folder / name).unlink()
    done = send()
    assert any("no tokenizer" in note for note in done.notes)
    card = ModelCard(hub.repo("alice/tiny").files("main")["README.md"].decode())
    assert card.data.library_name == "transformers"
    AutoModelForCausalLM.from_pretrained("alice/tiny")


def test_an_adapter_names_its_base_on_the_hub(hub, send, model_folder, tmp_path):
    with ignored_peft_warning():
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(target_modules="all-linear")
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = logits(model)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(adapter)
    with pytest.raises(ValueError, match="which is not on the Hub: publish that model first"):
        send(folder_path=str(adapter), repo_id="alice/lora")
    sha = send().sha
    send(folder_path=str(adapter), repo_id="alice/lora", base_model=f"alice/tiny@{sha}")
    config = json.loads(hub.repo("alice/lora").files("main")["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("alice/tiny", sha)
    card = ModelCard(hub.repo("alice/lora").files("main")["README.md"].decode()).data
    assert (card.base_model, card.base_model_relation) == ("alice/tiny", "adapter")
    assert not any(str(tmp_path).encode() in content for content in hub.repo("alice/lora").files("main").values())
    loaded, _ = load_for_inference("alice/lora")
    torch.testing.assert_close(logits(loaded), expected)
    with ignored_peft_warning():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("alice/tiny"), "alice/lora")
    torch.testing.assert_close(logits(plain), expected)


# The card


def test_edits_of_the_metadata_on_the_hub_survive(hub, send, model_folder):
    send(license="mit")
    card = ModelCard(hub.repo("alice/tiny").files("main")["README.md"].decode())
    assert card.data.license == "mit"
    edited = hub.repo("alice/tiny").files("main")["README.md"].decode()
    edited = edited.replace("license: mit", "license: apache-2.0\nlanguage: de\nwidget:\n- text: Hallo\ntags: [poems]")
    edited = edited.replace("tags:\n- scratch_gpt\n", "")
    hub.commit("alice/tiny", {"README.md": edited.encode()})
    assert [file.name for file in send().upload] == ["README.md"]
    card = ModelCard(hub.repo("alice/tiny").files("main")["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.language == "de"
    assert card.data.tags == ["scratch_gpt", "poems"]
    assert card.data.to_dict()["widget"] == [{"text": "Hallo"}]
    send(license="cc-by-4.0", language=["en", "de"])
    card = ModelCard(hub.repo("alice/tiny").files("main")["README.md"].decode())
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en", "de"])


def test_a_missing_license_is_noted(hub, send):
    assert any("has no license" in note for note in send().notes)
    assert not any("has no license" in note for note in send(license="mit").notes)
