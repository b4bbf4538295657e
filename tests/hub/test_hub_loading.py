"""Loading models from a Hub, with and without our package installed.

Tests without the package fork from a process that has imported torch and transformers, but none of our modules.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi, constants
from packaging.version import Version
from safetensors.torch import load_file, save, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import hf_scratch_gpt
from tests.support.tiny import tiny_ids, tiny_model
from tests.support.tiny_base import TEXTS

BOTH_CLIENTS = pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
RESOLVES_COMMITS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers 5.17 does not resolve the commit first: it asks again for each file of the branch",
)
HEADS = {
    "AutoModel": hf_scratch_gpt.ScratchGPTModel,
    "AutoModelForCausalLM": hf_scratch_gpt.ScratchGPTForCausalLM,
    "AutoModelForSequenceClassification": hf_scratch_gpt.ScratchGPTForSequenceClassification,
    "AutoModelForTokenClassification": hf_scratch_gpt.ScratchGPTForTokenClassification,
    "AutoModelForQuestionAnswering": hf_scratch_gpt.ScratchGPTForQuestionAnswering,
}
APART = """
import json, os, sys, traceback, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import huggingface_hub, pytest, torch, transformers
from huggingface_hub import constants
from tests.support.local_hub.client import connect
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel, pipeline  # takes seconds

def work(task):
    sys.modules["hf_scratch_gpt"] = None  # makes the import fail even where the package is installed
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    hub = types.SimpleNamespace(url=task["url"])
    connect(pytest.MonkeyPatch(), hub, task["home"], task["token"], task["xet"])
    exec(task["source"], globals())
    return {"value": globals()[task["name"]](*task["arguments"])}

for line in sys.stdin:
    task = json.loads(line)
    process = os.fork()
    if process == 0:
        try:
            answer = work(task)
        except BaseException:
            answer = {"error": traceback.format_exc()}
        Path(task["answer"]).write_text(json.dumps(answer))
        os._exit(0)
    os.waitpid(process, 0)
    print(flush=True)
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """A process to fork from."""
    home = tmp_path_factory.mktemp("nursery")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-I", "-c", APART, str(Path(__file__).parents[2])]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=home, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        yield process


@pytest.fixture
def apart(hub, nursery, tmp_path):
    """Runs a function of this file in a new process without our package, with the caches of the folder `home`."""

    def apart(function, *arguments, home="home", token=None):
        task = {
            "source": inspect.getsource(function), "name": function.__name__, "arguments": arguments,
            "answer": str(tmp_path / "answer.json"), "url": hub.url, "home": str(tmp_path / home),
            "token": hub.token() if token is None else token or None, "xet": not constants.HF_HUB_DISABLE_XET,
        }  # fmt: skip
        nursery.stdin.write(json.dumps(task) + "\n")
        nursery.stdin.flush()
        assert nursery.stdout.readline()
        answer = json.loads((tmp_path / "answer.json").read_text())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    return apart


def publish(hub, name, folder, **settings):
    hub.create(name, **settings)
    sha = HfApi().upload_folder(repo_id=name, folder_path=str(folder)).oid
    hub.requests.clear()
    return sha


@pytest.fixture
def tiny(hub, base):
    """The commit of alice/tiny, a model with its tokenizer."""
    return publish(hub, "alice/tiny", base)


def logits_of(model, seed=0):
    with torch.no_grad():
        return model(torch.arange(20, 30)[None]).logits


# Without our package


def compare(auto_class, name, expected, trust):
    model = getattr(transformers, auto_class).from_pretrained(name, **trust)
    assert type(model).__module__.startswith("transformers_modules.alice."), type(model)
    tensors = load_file(expected)
    with torch.no_grad():
        output = model(tensors.pop("ids"))
    return {key: torch.equal(output[key], tensors[key]) for key in tensors}


@BOTH_CLIENTS
@pytest.mark.parametrize("auto_class", HEADS)
def test_each_class_computes_what_it_computed_before(auto_class, hub, apart, tmp_path):
    model, ids = tiny_model(HEADS[auto_class]), tiny_ids()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        outputs = {key: value for key, value in model(ids).items() if isinstance(value, torch.Tensor)}
    save_file({"ids": ids, **outputs}, tmp_path / "expected.safetensors")
    publish(hub, "alice/tiny", tmp_path / "model")
    found = apart(
        compare, auto_class, "alice/tiny", str(tmp_path / "expected.safetensors"), {"trust_remote_code": True}
    )
    assert found == dict.fromkeys(outputs, True)
    code = [entry.path.rpartition("/")[2] for entry in hub.requests.matching("GET", r"\.py$")]
    assert sorted(code) == ["configuration_scratch_gpt.py", "modeling_scratch_gpt.py"]
    assert not [entry for entry in hub.requests.matching(path="^/lfs/|^/xorb/", port="storage") if entry.authorised]


def load_revisions(name, revisions):
    found = {}
    for revision in revisions:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True)
        module = sys.modules[type(model).__module__]
        found[revision] = [getattr(module, "EDITION", 1), round(float(model.model.norm.weight.sum()), 3)]
    return found


def test_every_revision_has_its_own_weights_and_code(hub, tiny, base, apart):
    """Including a commit whose code was changed later, in the repository and in the cache."""
    old = [1, 16.0]
    assert apart(load_revisions, "alice/tiny", [tiny]) == {tiny: old}
    HfApi().create_tag("alice/tiny", tag="v1")
    weights = load_file(base / "model.safetensors") | {"model.norm.weight": torch.full((16,), 2.0)}
    code = (base / "modeling_scratch_gpt.py").read_bytes() + b"\nEDITION = 2\n"
    hub.commit("alice/tiny", {"modeling_scratch_gpt.py": code, "model.safetensors": save(weights, {"format": "pt"})})
    HfApi().create_branch("alice/tiny", branch="dev", revision="v1")
    sha = hub.repo("alice/tiny").commit_at().id
    found = apart(load_revisions, "alice/tiny", ["main", "v1", "dev", tiny, sha])
    assert found == {"main": [2, 32.0], "v1": old, "dev": old, tiny: old, sha: [2, 32.0]}
    hub.requests.clear()
    assert apart(load_revisions, "alice/tiny", [tiny]) == {tiny: old}
    (request,) = hub.requests  # the only one that transformers does not remember the answer of
    assert (request.method, request.path.partition(tiny)[2]) == ("HEAD", "/custom_generate/generate.py")


def refusal(name):
    try:
        transformers.AutoModelForCausalLM.from_pretrained(name)
    except ValueError as error:
        return str(error)


def test_code_is_not_even_fetched_without_consent(hub, tiny, apart, tmp_path):
    assert "Please pass the argument `trust_remote_code=True`" in apart(refusal, "alice/tiny")
    assert not hub.requests.matching(path=r"\.py$")
    assert not list(tmp_path.rglob("*.py"))


def run_pipelines(text, chat):
    generate = transformers.pipeline("text-generation", "alice/tiny", trust_remote_code=True)
    classify = transformers.pipeline("text-classification", "alice/labels", trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained("alice/tiny")  # which needs no consent
    return [
        generate(text, max_new_tokens=8, do_sample=False)[0]["generated_text"], classify(text, top_k=None),
        type(tokenizer).__name__, tokenizer(text)["input_ids"], tokenizer.apply_chat_template(chat, tokenize=False),
    ]  # fmt: skip


@pytest.fixture
def labels(hub, base, tmp_path):
    """alice/labels: a classifier with names for its labels."""
    config = AutoConfig.from_pretrained(base, num_labels=3, id2label=dict(enumerate(["red", "green", "blue"])))
    torch.manual_seed(1)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "labels")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "labels")
    publish(hub, "alice/labels", tmp_path / "labels")
    return tmp_path / "labels"


def test_pipelines_give_the_same_results(tiny, labels, base, apart):
    text, chat = TEXTS[0], [{"role": "user", "content": "What is 1?"}]
    generated, classified, tokenizer_class, ids, prompt = apart(run_pipelines, text, chat)
    tokenizer = AutoTokenizer.from_pretrained(base)
    generate = pipeline("text-generation", str(base))
    assert generated == generate(text, max_new_tokens=8, do_sample=False)[0]["generated_text"] != text
    assert classified == pipeline("text-classification", str(labels))(text, top_k=None)
    assert {row["label"] for row in classified} == {"red", "green", "blue"}
    assert (tokenizer_class, ids) == (PreTrainedTokenizerFast.__name__, tokenizer(text)["input_ids"])
    assert prompt == tokenizer.apply_chat_template(chat, tokenize=False)


def logits_apart(name, revision, offline):
    constants.HF_HUB_OFFLINE = offline
    model = transformers.AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True)
    return model(torch.arange(20, 30)[None]).logits.tolist()


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_offline_the_cache_has_model_and_code(revision, hub, tiny, apart):
    HfApi().create_tag("alice/tiny", tag="v1")
    logits = apart(logits_apart, "alice/tiny", revision, False)
    hub.requests.clear()
    assert apart(logits_apart, "alice/tiny", revision, True) == logits
    assert list(hub.requests) == []


def load_as_stranger(name):
    try:
        transformers.AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    except OSError as error:
        return str(error)


def test_private_and_gated_code_needs_the_token(hub, tiny, apart):
    hub.repo("alice/tiny").private = True
    stranger = apart(load_as_stranger, "alice/tiny", home="bob", token=hub.token("bob"))
    assert "alice/tiny is not a local folder and is not a valid model identifier" in stranger
    assert apart(load_as_stranger, "alice/tiny", home="nobody", token="") == stranger
    assert apart(load_as_stranger, "alice/tiny", home="alice") is None
    hub.repo("alice/tiny").private, hub.repo("alice/tiny").gated = False, "auto"
    stranger = apart(load_as_stranger, "alice/tiny", home="bob", token=hub.token("bob"))
    assert "You are trying to access a gated repo." in stranger
    assert not hub.requests.matching("GET", r"\.py$")[2:]


# With our package


def paths(hub, name="alice/tiny"):
    """The requests to the hub, without the commit."""
    commit = hub.repo(name).commit_at().id
    return [f"{entry.method} {entry.path.replace(commit, 'SHA')}" for entry in hub.requests if entry.port == "hub"]


def test_with_the_package_no_code_is_downloaded(hub, tiny, base):
    for trust in (None, True, False):
        for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
            model = getattr(transformers, name).from_pretrained("alice/tiny", trust_remote_code=trust)
            assert type(model) is HEADS[name]
    local = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained("alice/tiny")), logits_of(local))
    pipeline("text-generation", "alice/tiny")(TEXTS[0], max_new_tokens=2)
    code = {path.partition("/resolve/")[2] for path in paths(hub) if path.endswith(".py")}
    assert code <= {"SHA/custom_generate/generate.py", "main/custom_generate/generate.py"}  # ours is not such a model


@RESOLVES_COMMITS
def test_requests_of_a_first_and_a_second_load(hub, tiny):
    AutoModelForCausalLM.from_pretrained("alice/tiny")
    assert sorted(paths(hub)) == [
        "GET /alice/tiny/resolve/SHA/config.json",
        "GET /alice/tiny/resolve/SHA/generation_config.json",
        "GET /api/models/alice/tiny",
        "GET /api/models/alice/tiny/xet-read-token/SHA",
        *(f"HEAD /alice/tiny/resolve/SHA/{name}.json" for name in ("adapter_config", "config", "generation_config")),
        "HEAD /alice/tiny/resolve/SHA/model.safetensors",
    ]
    hub.requests.clear()
    AutoModelForCausalLM.from_pretrained("alice/tiny")
    assert [str(entry).partition(" 200")[0] for entry in hub.requests] == ["hub GET /api/models/alice/tiny"]
    hub.requests.clear()
    AutoModelForCausalLM.from_pretrained("alice/tiny", revision=tiny)
    assert list(hub.requests) == []


@RESOLVES_COMMITS
def test_a_second_load_of_the_tokenizer_requests_only_chat_templates(hub, tiny):
    AutoTokenizer.from_pretrained("alice/tiny")
    hub.requests.clear()
    AutoTokenizer.from_pretrained("alice/tiny")
    tree = "GET /api/models/alice/tiny/tree/main"
    assert paths(hub) == ["GET /api/models/alice/tiny", f"{tree}/additional_chat_templates", tree]


@BOTH_CLIENTS
def test_afterwards_the_hub_is_not_needed(hub, tiny, base, monkeypatch):
    AutoTokenizer.from_pretrained("alice/tiny")
    online = logits_of(AutoModelForCausalLM.from_pretrained("alice/tiny"))
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained("alice/tiny")), online)
    text = pipeline("text-generation", "alice/tiny")(TEXTS[0], max_new_tokens=8, do_sample=False)
    assert text == pipeline("text-generation", str(base))(TEXTS[0], max_new_tokens=8, do_sample=False)
    assert list(hub.requests) == []


@pytest.mark.parametrize("visibility", ["private", "gated"])
def test_others_get_a_reason(visibility, hub, tiny, base, tmp_path):
    if visibility == "private":
        hub.repo("alice/tiny").private = True
    else:
        hub.repo("alice/tiny").gated = "manual"
    why = "not a valid model identifier" if visibility == "private" else "trying to access a gated repo"
    for token in (hub.token("bob"), False):
        for auto_class in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
            # with transformers 5.17, AutoTokenizer then tries the token of this machine, and the config is in its cache
            cache = tmp_path / auto_class.__name__ / str(token)
            with pytest.raises(OSError, match=why):
                auto_class.from_pretrained("alice/tiny", token=token, cache_dir=cache)
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained("alice/tiny")),
        logits_of(AutoModelForCausalLM.from_pretrained(base)),
    )
    assert AutoTokenizer.from_pretrained("alice/tiny")(TEXTS[0]) == AutoTokenizer.from_pretrained(base)(TEXTS[0])
