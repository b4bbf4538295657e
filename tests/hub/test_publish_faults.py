"""train.publish against a hub of our own: what is refused, and what happens when something goes wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.local_hub.faults import Faults
from tests.support.tiny_publish import CARD, WEIGHTS, edit_json, hub_is_plain, log_in
from train.publish import main
from train.settings.command import run_command

# What is wrong here: before anything changes on the Hub


WRONG_FOLDERS = [
    (lambda f: shutil.rmtree(f), "is no folder"),
    (lambda f: (f / "config.json").unlink(), "is no model folder: it holds no config.json"),
    (lambda f: (f / WEIGHTS).unlink(), "weights do not fit config.json|holds no weights"),
    (lambda f: (f / "config.json").write_text("{"), "config.json is damaged: not valid JSON"),
    (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "model.safetensors is damaged"),
    (lambda f: edit_json(f / "config.json", hidden_size=32), "weights do not fit config.json, such as"),
    (lambda f: save_file({**load_file(f / WEIGHTS), "more": torch.zeros(1)}, f / WEIGHTS), "such as more"),
    (lambda f: edit_json(f / "config.json", architectures=["LlamaForCausalLM"]), "names no class of ours"),
    (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe"), "tokenizer.json is not UTF-8"),
    (lambda f: edit_json(f / "tokenizer_config.json", vocab_file=str(f / ".env")), "names a place on this machine"),
    (lambda f: (f / "README.md").write_text(f"{CARD}\n{Path.home()}/data"), "README.md names a place on this machine"),
    (lambda f: (f / "chat_template.jinja").write_text("hf_" + "a" * 34), "chat_template.jinja holds a token"),
    (lambda f: (f / "README.md").write_text("---\ntags: [\n---\n"), "metadata of README.md is damaged"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG_FOLDERS)
def test_a_folder_that_should_not_go_out_is_refused_before_the_hub_is_asked_to_change(
    hub, send, model_folder, spoil, message
):
    spoil(model_folder)
    with pytest.raises(ValueError, match=message):
        send()
    assert not hub.repositories


def test_a_word_like_the_home_folder_is_no_place(hub, send, model_folder, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    (model_folder / "README.md").write_text(f"{CARD}\nlogin as /root, or in src/root/lib\n")
    assert send().sha
    (model_folder / "README.md").write_text(f"{CARD}\nlogin in /root/lib\n")
    with pytest.raises(ValueError, match="names a place on this machine: login in /root/lib"):
        send()


def test_the_token_itself_is_found_in_any_text(hub, send, model_folder):
    (model_folder / "README.md").write_text(f"{CARD}\n{hub.token()}\n")
    with pytest.raises(ValueError, match="holds a token of the Hub"):
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
        ({"repo_id": "a/b/c"}, "is no name on the Hub"),
        ({"repo_id": "alice/.."}, "is no name on the Hub"),
        ({"max_shard_size": "lots"}, "give a size such as 5GB"),
        ({"revision": "0" * 40}, "commits never change: name a branch"),
        ({"base_model": "alice/other"}, "--base_model belongs to adapters"),
        ({"create_pr": True}, "there is no alice/tiny to open a pull request for"),
        ({"repo_id": "bob/tiny"}, "does not allow that for bob/tiny with this token"),
    ],
)
def test_settings_that_do_not_fit(hub, send, settings, message):
    with pytest.raises(ValueError, match=message):
        send(**settings)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "no token for"), ("nobody-knows-it", "does not accept the token"), ("read", "may only read")],
)
def test_tokens_that_may_not_publish(hub, model_folder, monkeypatch, capsys, token, message):
    log_in(monkeypatch, hub.token("alice", "read") if token == "read" else token)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert "hf auth login" in told
    assert not hub.repositories


def test_a_public_repository_is_not_taken_for_a_private_one(hub, send):
    hub.create("alice/tiny", private=False)
    with pytest.raises(ValueError, match="exists and is public: change that in its settings"):
        send(private=True)
    assert send().private is False


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "scratch_gpt", "architectures": ["Other"]}])
def test_another_model_of_that_name_is_not_replaced_by_mistake(hub, send, config):
    hub.create("alice/tiny")
    before = hub.commit("alice/tiny", {"config.json": json.dumps(config).encode()})
    with pytest.raises(ValueError, match="holds another kind of model"):
        send()
    assert hub.repo("alice/tiny").head("main").id == before.id
    assert send(overwrite=True).sha == hub.repo("alice/tiny").head("main").id


def test_an_adapter_of_that_name_is_not_replaced_by_mistake(hub, send):
    hub.create("alice/tiny")
    hub.commit("alice/tiny", {"adapter_config.json": b"{}"})
    with pytest.raises(ValueError, match="holds an adapter"):
        send()
    assert send(overwrite=True).remove == ["adapter_config.json"]


# What goes wrong on the way


def unchanged(hub):
    """Nothing of the model is seen by others."""
    repository = hub.find("alice/tiny")
    return repository is None or set(repository.files("main")) <= {".gitattributes"}


def test_a_commit_that_comes_between_is_kept(hub, send):
    send()
    hub.before_commit(lambda: hub.commit("alice/tiny", {"notes.md": b"mine"}, author="bob"))
    send(license="mit")
    titles = [commit.title for commit in hub.repo("alice/tiny").history("main")]
    assert titles[:3] == ["Publish model", "Commit", "Publish model"]
    assert hub.repo("alice/tiny").files("main")["notes.md"] == b"mine"
    assert [entry.status for entry in hub.requests.matching("POST", "/commit/")] == [200, 412, 200]


def test_somebody_who_commits_all_the_time(hub, send):
    send()
    number = iter(range(99))
    hub.before_commit(lambda: hub.commit("alice/tiny", {"notes.md": b"%d" % next(number)}), times=None)
    with pytest.raises(ValueError, match="was changed by somebody else at the same time"):
        send(license="mit")


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
def test_a_hub_out_of_order_for_a_moment(hub, send):
    hub.fail(path="/commit/", method="POST", status=503, retry_after=0)
    hub.fail(path="/preupload/", method="POST", status=503, retry_after=0)
    assert send().sha == hub.repo("alice/tiny").head("main").id


def test_a_hub_out_of_order_for_long(hub, send):
    hub.fail(path="/commit/", method="POST", status=503, retry_after=0, times=None)
    with pytest.raises(ConnectionError, match="out of order or busy: HTTP 503"):
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
def test_the_storage_takes_no_weights(hub, send, model_folder):
    if hub_is_plain():
        hub.cut_upload(1000, port="storage", times=None)
    else:  # where connections break, the client of Xet tries again for six minutes
        hub.fail(port="storage", path="xorbs", status=400, times=None)
    with pytest.raises(ConnectionError, match="the same command goes on"):
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


def test_a_hub_that_is_not_there(hub, model_folder, capsys, monkeypatch):
    hub.fail(times=None, status=500)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "out of order or busy: HTTP 500" in told[0]


def test_offline_mode_is_told(hub, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run_command(main, ["--folder_path", str(model_folder), "--repo_id", "alice/tiny"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_hub_that_lists_other_bytes_than_were_sent(hub, send, monkeypatch):
    found = HfApi.get_paths_info

    def other(self, *args, **kwargs):
        entries = found(self, *args, **kwargs)
        for entry in entries:
            entry.blob_id = "0" * 40
            if entry.lfs:
                entry.lfs.sha256 = "0" * 64
        return entries

    monkeypatch.setattr(HfApi, "get_paths_info", other)
    with pytest.raises(ValueError, match="does not hold what was sent"):
        send()


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_weights_that_arrive_as_other_bytes(hub, send, model_folder):
    """Of the right size: here because they change between hashing and sending, which with Xet is one pass."""

    def change():
        content = (model_folder / WEIGHTS).read_bytes()
        (model_folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    hub.before(change, path="/objects/batch")
    with pytest.raises((ValueError, ConnectionError), match="the same command goes on"):
        send()
    assert unchanged(hub)
    assert send().sha == hub.repo("alice/tiny").head("main").id
    assert hub.repo("alice/tiny").files("main")[WEIGHTS] == (model_folder / WEIGHTS).read_bytes()
