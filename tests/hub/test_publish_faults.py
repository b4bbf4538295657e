"""`publish` with a local Hub: what it refuses, and what happens if the Hub or the connection fails."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.support.local_hub.faults import Faults
from tests.support.tiny_publish import CARD, WEIGHTS, edit_json, hub_is_plain, log_in
from train.publish import main
from train.settings.command import run_command

# Refused before anything changes on the Hub


WRONG_FOLDERS = [
    (lambda f: shutil.rmtree(f), "does not exist"),
    (lambda f: (f / "config.json").unlink(), "is not a model folder: it has no config.json"),
    (lambda f: (f / WEIGHTS).unlink(), r"has no weights \(model\.safetensors\): is the run complete"),
    (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
    (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "model.safetensors is damaged"),
    (lambda f: edit_json(f / "config.json", hidden_size=32), "weights do not match config.json, such as"),
    (lambda f: save_file({**load_file(f / WEIGHTS), "more": torch.zeros(1)}, f / WEIGHTS), "such as more"),
    (
        lambda f: edit_json(f / "config.json", architectures=["LlamaForCausalLM"]),
        "LlamaForCausalLM.*not a class of hf_scratch_gpt",
    ),
    (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe"), "tokenizer.json is damaged: it is not UTF-8"),
    (
        lambda f: edit_json(f / "tokenizer_config.json", vocab_file=str(f / ".env")),
        "tokenizer_config.json contains a local path",
    ),
    (lambda f: (f / "README.md").write_text(f"{CARD}\n{Path.home()}/data"), "README.md contains a local path"),
    (lambda f: (f / "chat_template.jinja").write_text("hf_" + "a" * 34), "chat_template.jinja contains a Hub token"),
    (lambda f: (f / "README.md").write_text("---\ntags: [\n---\n"), "metadata of README.md is damaged"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG_FOLDERS)
def test_a_wrong_folder_is_refused_before_anything_changes_on_the_hub(hub, send, model_folder, spoil, message):
    spoil(model_folder)
    with pytest.raises(ValueError, match=message):
        send()
    assert not hub.repositories


def test_a_word_like_the_home_folder_is_not_a_path(hub, send, model_folder, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    (model_folder / "README.md").write_text(f"{CARD}\nlogin as /root, or in src/root/lib\n")
    assert send().sha
    (model_folder / "README.md").write_text(f"{CARD}\nlogin in /root/lib\n")
    with pytest.raises(ValueError, match="contains a local path: login in /root/lib"):
        send()


def test_the_folder_of_a_run_leads_to_its_model(send, model_folder):
    (model_folder.parent / "recipe.yaml").write_text("data_dir: x")
    with pytest.raises(ValueError, match=f"is the folder of a run: its model is {model_folder}"):
        send(folder_path=str(model_folder.parent))


def test_a_model_of_transformers_without_all_weights_is_refused(hub, send, model_folder):
    sizes = {"vocab_size": 300, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(model_folder)
    assert send(dry_run=True)
    weights = load_file(model_folder / WEIGHTS)
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, model_folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weight \(transformer\.h\.0\.mlp\.c_fc\.weight\)"):
        send(dry_run=True)
    assert not hub.repositories


def test_the_token_itself_is_found_in_any_text(hub, send, model_folder):
    (model_folder / "README.md").write_text(f"{CARD}\n{hub.token()}\n")
    with pytest.raises(ValueError, match="contains a Hub token"):
        send()
    assert not hub.repositories


@pytest.mark.parametrize("spoil", ["missing", "wrong"])
def test_shards_that_do_not_fit_their_index(hub, send, model_folder, spoil):
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(model_folder, max_shard_size="9KB")
    (model_folder / WEIGHTS).unlink(missing_ok=True)
    index = model_folder / "model.safetensors.index.json"
    if spoil == "missing":
        index.unlink()
    else:
        content = json.loads(index.read_text())
        content["weight_map"] = {name: "../../elsewhere.safetensors" for name in content["weight_map"]}
        index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        send()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repo_id": "a/b/c"}, "is not a name on the Hub"),
        ({"repo_id": "alice/.."}, "is not a name on the Hub"),
        ({"max_shard_size": "lots"}, "give a size such as 5GB"),
        ({"revision": "0" * 40}, "--revision is 0{40}, which is a commit: give the name of a branch"),
        ({"base_model": "alice/other"}, "--base_model .alice/other. requires an adapter"),
        ({"create_pr": True}, "--create_pr requires an existing repository, and alice/tiny does not exist"),
        ({"repo_id": "bob/tiny"}, "the token does not have the permissions for bob/tiny"),
    ],
)
def test_wrong_settings(hub, send, settings, message):
    with pytest.raises(ValueError, match=message):
        send(**settings)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no token for"), ("nobody-knows-it", "the Hub rejected the token"), ("read", "is read-only")],
)
def test_tokens_without_write_access(hub, model_folder, monkeypatch, capsys, token, message):
    log_in(monkeypatch, hub.token("alice", "read") if token == "read" else token)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert "hf auth login" in told
    assert not hub.repositories


def test_a_public_repository_is_not_mistaken_for_a_private_one(hub, send):
    hub.create("alice/tiny", private=False)
    with pytest.raises(ValueError, match="exists and is public: change that in its settings"):
        send(private=True)
    assert send().private is False


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "scratch_gpt", "architectures": ["Other"]}])
def test_another_model_of_that_name_is_not_replaced_by_mistake(hub, send, config):
    hub.create("alice/tiny")
    before = hub.commit("alice/tiny", {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="contains another type of model"):
        send()
    assert hub.repo("alice/tiny").head("main").id == before.id
    assert send(overwrite=True).sha == hub.repo("alice/tiny").head("main").id


def test_an_adapter_of_that_name_is_not_replaced_by_mistake(hub, send):
    hub.create("alice/tiny")
    hub.commit("alice/tiny", {"adapter_config.json": b"{}"})
    with pytest.raises(ValueError, match="contains an adapter"):
        send()
    assert send(overwrite=True).delete == ["adapter_config.json"]


# Failures of the Hub and of the connection


def unchanged(hub):
    """No file of the model is visible on the Hub."""
    repository = hub.find("alice/tiny")
    return repository is None or set(repository.files("main")) <= {".gitattributes"}


def test_a_commit_in_between_is_kept(hub, send):
    send()
    hub.before_commit(lambda: hub.commit("alice/tiny", {"notes.md": b"mine"}, author="bob"))
    send(license="mit")
    titles = [commit.title for commit in hub.repo("alice/tiny").history("main")]
    assert titles[:3] == ["Publish model", "Commit", "Publish model"]
    assert hub.repo("alice/tiny").files("main")["notes.md"] == b"mine"
    assert [entry.status for entry in hub.requests.matching("POST", "/commit/")] == [200, 412, 200]


def test_others_who_keep_committing(hub, send):
    send()
    number = iter(range(99))
    hub.before_commit(lambda: hub.commit("alice/tiny", {"notes.md": b"%d" % next(number)}), times=None)
    with pytest.raises(ValueError, match="alice/tiny was changed by another commit"):
        send(license="mit")


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
def test_a_hub_that_is_unavailable_for_a_moment(hub, send):
    hub.fail(path="/commit/", method="POST", status=503, retry_after=0)
    hub.fail(path="/preupload/", method="POST", status=503, retry_after=0)
    assert send().sha == hub.repo("alice/tiny").head("main").id


def test_a_hub_that_stays_unavailable(hub, send):
    hub.fail(path="/commit/", method="POST", status=503, retry_after=0, times=None)
    with pytest.raises(ConnectionError, match="busy or unavailable: HTTP 503"):
        send()
    assert unchanged(hub)
    hub.faults = Faults()
    assert send().sha == hub.repo("alice/tiny").head("main").id


def test_the_answer_to_a_commit_is_lost(hub, send):
    hub.cut_download(0, path="/commit/", method="POST")
    done = send()
    assert done.sha == hub.repo("alice/tiny").head("main").id
    assert len(hub.repo("alice/tiny").history("main")) == 2


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
@pytest.mark.parametrize("reset", [False, True])
def test_the_network_breaks_once_while_weights_are_sent(hub, send, model_folder, reset):
    (model_folder / "loss_curve.png").unlink()  # the weights are the only large file
    hub.cut_upload(1000, port="storage", path="/xorbs/|/upload/", reset=reset)
    assert send().sha == hub.repo("alice/tiny").head("main").id
    sent = [entry for entry in hub.requests.matching("", "/xorbs/|/upload/", port="storage") if entry.method != "GET"]
    assert [entry.status for entry in sent] == [None, 200]
    assert sent[0].received == 1000


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
def test_the_storage_refuses_the_weights(hub, send, model_folder):
    if hub_is_plain():
        hub.cut_upload(1000, port="storage", times=None)
    else:  # where connections break, the client of Xet tries again for six minutes
        hub.fail(port="storage", path="xorbs", status=400, times=None)
    with pytest.raises(ConnectionError, match="run the same command again"):
        send()
    assert unchanged(hub)
    assert (model_folder / WEIGHTS).exists()
    hub.faults = Faults()
    assert send().sha == hub.repo("alice/tiny").head("main").id
    AutoModelForCausalLM.from_pretrained("alice/tiny")


def test_the_hub_refuses_the_card(hub, send):
    hub.card_error = "license must be one of the list"
    with pytest.raises(ValueError, match=r"refuses the metadata of README.md: .*license must be one of the list"):
        send()
    assert not hub.repositories


def test_a_hub_that_fails(hub, model_folder, capsys, monkeypatch):
    hub.fail(times=None, status=500)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "busy or unavailable: HTTP 500" in told[0]


def test_offline_mode_is_named(hub, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_hub_that_lists_other_checksums(hub, send, monkeypatch):
    found = HfApi.get_paths_info

    def other(self, *args, **kwargs):
        entries = found(self, *args, **kwargs)
        for entry in entries:
            entry.blob_id = "0" * 40
            if entry.lfs:
                entry.lfs.sha256 = "0" * 64
        return entries

    monkeypatch.setattr(HfApi, "get_paths_info", other)
    with pytest.raises(ValueError, match=r"the checksums of .*model\.safetensors.* in alice/tiny differ"):
        send()


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_weights_that_change_on_the_way(hub, send, model_folder):
    """They keep their size. Here they change between hashing and sending, which with Xet is one pass."""

    def change():
        content = (model_folder / WEIGHTS).read_bytes()
        (model_folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    hub.before(change, path="/objects/batch")
    with pytest.raises((ValueError, ConnectionError), match="run the same command again"):
        send()
    assert unchanged(hub)
    assert send().sha == hub.repo("alice/tiny").head("main").id
    assert hub.repo("alice/tiny").files("main")[WEIGHTS] == (model_folder / WEIGHTS).read_bytes()
