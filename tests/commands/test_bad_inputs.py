"""Each known mistake ends with exit code 2 and one message that names the place, the problem and the remedy."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_run import RECIPE, prepare
from train import evaluate, generate, prepare_data, pretrain, train_tokenizer
from train.settings.command import run_command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good and bad files, prepared data, a finished run and its model."""
    folder = tmp_path_factory.mktemp("place")
    prepare(folder)
    files = {
        "empty.txt": b"",
        "binary.txt": b"good text\n\xff\xfe\x00bad",
        "short.txt": b"def f(x):\n    return x\n",
        "broken.jsonl": b'{"text": "good"}\n{"text": "cut',
        "table.csv": b"title,body\nA,B\n",
        "list.yaml": b"- config\n",
        "twice.yaml": b"seed: 1\nseed: 2\n",
        "typo.yaml": b"learning_rat: 0.1\n",
        "text.yaml": b"learning_rate: fast\n",
        "list.json": b"[1]",
        "notes.pdf": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("precious")
    assert pretrain.main([*recipe_options(folder), f"--output_dir={folder}/run"]) == 0
    spoil_copies(folder)
    return folder


def recipe_options(folder):
    options = {name: value for name, value in RECIPE.items() if name != "sample_prompts"}
    return [f"--{name}={value}" for name, value in options.items()] + ["--config=tiny", f"--data_dir={folder}/blocks"]


def spoil_copies(folder):
    """Copies of good folders with one fault in each."""
    for name in ("other-tokenizer", "truncated", "no-manifest", "newer-data"):
        shutil.copytree(folder / "blocks", folder / name)
    path = folder / "other-tokenizer" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))
    blocks = next((folder / "truncated" / "train").glob("*.arrow"))
    blocks.write_bytes(blocks.read_bytes()[:-100])
    (folder / "no-manifest" / "data.json").unlink()
    for name in ("nan", "no-weights", "other-vocabulary"):
        shutil.copytree(folder / "run" / "model", folder / name)
    weights = load_file(folder / "nan" / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "nan" / "model.safetensors", metadata={"format": "pt"})
    (folder / "no-weights" / "model.safetensors").unlink()
    shutil.copytree(folder / "run", folder / "newer")
    shutil.rmtree(folder / "newer" / "model")  # a finished run is not touched
    path = folder / "newer" / "checkpoint-00000006" / "manifest.json"
    from train.checkpoint.manifest import seal_of

    manifest = json.loads(path.read_text())
    del manifest["seal"]
    manifest["format"] = 99
    path.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))


TOKENIZER = [train_tokenizer, "--output_dir={place}/new-tokenizer"]
DATA = [prepare_data, "--tokenizer={place}/tokenizer", "--output_dir={place}/new-data"]
TRAIN = [pretrain, "RECIPE", "--output_dir={place}/new-run"]
CONTINUE = [pretrain, "RECIPE", "--output_dir={place}/run"]
GENERATE = [generate, "--model={place}/run/model"]
EVALUATE = [evaluate, "--model={place}/run/model"]
GOOD_TEXT = "--text={place}/0.txt"

MISTAKES = {
    # the tokenizer
    "empty corpus": ([*TOKENIZER, "--text={place}/empty.txt"], "empty.txt.*(empty|no text)"),
    "missing file": ([*TOKENIZER, "--text={place}/missing.txt"], "{place}/missing.txt"),
    "binary file": ([*TOKENIZER, "--text={place}/binary.txt"], r"binary.txt.*(byte|offset) 10"),
    "file that is no text": ([*TOKENIZER, "--text={place}/notes.pdf"], r"notes.pdf.*byte"),
    "vocabulary below the bytes": ([*TOKENIZER, GOOD_TEXT, "--vocab_size=10"], "vocab_size.*10.*at least 2[56]"),
    "no vocabulary": ([*TOKENIZER, GOOD_TEXT, "--vocab_size=0"], "--vocab_size is 0: .* at least 1"),
    "negative vocabulary": ([*TOKENIZER, GOOD_TEXT, "--vocab_size=-5"], "--vocab_size is -5"),
    "tokenizer there already": ([train_tokenizer, "--output_dir={place}/tokenizer", GOOD_TEXT], "already contains"),
    "two corpora": ([*TOKENIZER, GOOD_TEXT, "--dataset_name=x"], r"--text .* and --dataset_name \(x\) exclude"),
    "setting alone": ([*TOKENIZER, GOOD_TEXT, "--streaming=true"], r"--streaming \(True\) requires --dataset_name"),
    # the data
    "corpus shorter than a block": ([*DATA, "--text={place}/short.txt", "--validation_text={place}/1.txt",
                                     "--block_size=500"], r"fewer than one block of 500 \+ 1.*block_size of at most"),
    "validation shorter than a block": ([*DATA, GOOD_TEXT, "--validation_text={place}/short.txt", "--block_size=500"],
                                        "validation.*fewer than one block"),
    "one document for two splits": ([*DATA, "--text={place}/short.txt", "--block_size=4"], "validation"),
    "broken line": ([*DATA, "--text={place}/broken.jsonl", "--block_size=4"], r"broken\.jsonl:2: column 10: not JSON"),
    "missing column": ([*DATA, "--text={place}/table.csv", "--block_size=4"], "text.*title, body"),
    "no tokenizer": ([prepare_data, "--tokenizer={place}/full", "--output_dir={place}/x", GOOD_TEXT], "{place}/full"),
    # the recipe
    "misspelt setting": ([pretrain, "{place}/typo.yaml"], "typo.yaml.*learning_rat: did you mean learning_rate"),
    "setting twice": ([pretrain, "{place}/twice.yaml"], "twice.yaml.*'seed' is set twice"),
    "wrong type": ([pretrain, "{place}/text.yaml"], "learning_rate.*fast"),
    "recipe that is a list": ([pretrain, "{place}/list.yaml"], "list.yaml must consist of lines"),
    "missing recipe": ([pretrain, "{place}/missing.yaml"], "missing.yaml"),
    "required setting": ([pretrain], "required.*config.*data_dir.*output_dir"),
    # the model
    "heads that do not divide": ([*TRAIN, "--config_overrides=num_attention_heads=5"], r"num_attention_heads \(5\)"),
    "key heads that do not divide": ([*TRAIN, "--config_overrides=num_key_value_heads=3"], "num_key_value_heads"),
    "no layers": ([*TRAIN, "--config_overrides=num_hidden_layers=0"], "num_hidden_layers.*0"),
    "misspelt config key": ([*TRAIN, "--config_overrides=num_layer=3"], "num_layer"),
    "unknown preset": ([*TRAIN, "--config=huge"], "--config huge is neither a preset .tiny"),
    "config that is a list": ([*TRAIN, "--config={place}/list.json"], "list.json is damaged: expected an object"),
    "too few positions": ([*TRAIN, "--config_overrides=max_position_embeddings=8"], "sequences of 16.*is 8: raise it"),
    # training
    "negative rate": ([*TRAIN, "--learning_rate=-1"], "--learning_rate is -1.0: it must be a number of at least 0"),
    "rate of nothing": ([*TRAIN, "--learning_rate=nan"], "--learning_rate is nan"),
    "no micro-batch": ([*TRAIN, "--micro_batch_size=0"], "--micro_batch_size is 0"),
    "batch that does not divide": ([*TRAIN, "--global_batch_size=5"], r"--global_batch_size \(5\) must be a multiple"),
    "sharding option without shards": ([*TRAIN, "--reshard_after_forward=false"], "requires --dp_shard_size above 1"),
    "warmup longer than the run": ([*TRAIN, "--warmup_steps=99"], r"--warmup_steps \(99\) .* exceed --max_steps \(6\)"),
    "data of another tokenizer": ([*TRAIN, "--data_dir={place}/other-tokenizer"], "is not the tokenizer that made the"),
    "truncated data": ([*TRAIN, "--data_dir={place}/truncated"], r"has \d+ bytes, not \d+: it is truncated"),
    "no data": ([*TRAIN, "--data_dir={place}/no-manifest"], "{place}/no-manifest contains no prepared data"),
    "folder of something else": ([*TRAIN, "--output_dir={place}/full"], "full is not empty and not a run folder"),
    "output below a file": ([*TRAIN, "--output_dir={place}/file/run"], "Not a directory: {place}/file/run"),
    "output nowhere": ([*TRAIN, "--output_dir=/proc/run"], "/proc/run"),
    # continuing
    "changed seed": ([*CONTINUE, "--seed=5"], "(?s)seed: was 0, now 5.*--allow_change seed"),
    "changed data": ([*CONTINUE, "--data_dir={place}/new-blocks"], "(?s)data.block_size: was 16, now 8"),
    "change of no setting": ([*CONTINUE, "--allow_change=sed"], "'sed' in --allow_change. Known: .*seed"),
    "change that is always allowed": ([*CONTINUE, "--allow_change=logging_steps"], "no effect: this setting may"),
    "checkpoint of a newer version": ([pretrain, "RECIPE", "--output_dir={place}/newer"], "has format 99, but"),
    # using
    "folder without model": ([generate, "--model={place}/full"], "{place}/full is not a model folder"),
    "model without weights": ([generate, "--model={place}/no-weights"], "{place}/no-weights"),
    "missing model": ([generate, "--model={place}/gone"], "{place}/gone does not exist"),
    "negative temperature": ([*GENERATE, "--temperature=-1"], "--temperature is -1.0: .* at least 0"),
    "negative top_k": ([*GENERATE, "--top_k=-1"], "--top_k is -1"),
    "top_p above 1": ([*GENERATE, "--top_p=2"], "--top_p is 2.0: it must be above 0"),
    "no new tokens": ([*GENERATE, "--max_new_tokens=0"], "--max_new_tokens is 0: .* at least 1"),
    "no room for a prompt": ([*GENERATE, "--max_new_tokens=9999"], "leaves no room for a prompt"),
    "weights that are not numbers": ([generate, "--model={place}/nan", "--prompt=x"], "of {place}/nan are not finite"),
    "block above the model's": ([*EVALUATE, GOOD_TEXT, "--block_size=99999"], "--block_size is 99999, but"),
    "nothing to evaluate": ([*EVALUATE, "--text={place}/empty.txt"], "empty.txt"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_message(place, capsys, mistake):
    (script, *options), message = MISTAKES[mistake]
    if mistake == "changed data" and not (place / "new-blocks").exists():
        prepare_data.main([
            f"--tokenizer={place}/tokenizer", f"--output_dir={place}/new-blocks", "--block_size=8",
            f"--text={place}/0.txt", f"--validation_text={place}/1.txt",
        ])  # fmt: skip
    arguments = []
    for option in options:
        arguments += recipe_options(place) if option == "RECIPE" else [option.format(place=place)]
    capsys.readouterr()
    assert run_command(script.main, arguments) == 2
    errors = [line for line in capsys.readouterr().err.split("\n") if not line.startswith(("Warning", "tokenize"))]
    shown = "\n".join(errors)
    assert "error: " in shown
    assert "Traceback" not in shown
    assert re.search(message.format(place=re.escape(str(place))) if "{place}" in message else message, shown), shown
