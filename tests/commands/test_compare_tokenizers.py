import json
import re

import numpy as np
import pytest

from hf_scratch_gpt import ScratchGPTTokenizer
from train.compare_tokenizers import CompareArguments, limited, main, parse_type
from train.data.corpora import Corpus, Document
from train.metrics.tokenizer_scores import longest_tokens, round_trip, score_tokenizer, shown
from train.settings.command import run_command

TEXT = "".join(f"The number {number} is one more than {number - 1}.\n" for number in range(400))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return str(tmp_path / "book.txt")


def test_the_table_and_the_files_agree(text, tmp_path, capsys):
    ScratchGPTTokenizer.train_from_texts([TEXT], 270, show_progress=False).save_pretrained(tmp_path / "own")
    argv = ["--text", text, "--tokenizers", str(tmp_path / "own"), "--train_types", "characters", "bytes", "bpe:280"]
    assert not main([*argv, "--config", "tiny", "--output_dir", str(tmp_path / "c")])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "c/comparison.json").read_text())["tokenizers"]
    assert [row["name"] for row in found] == ["own", "characters", "bytes", "bpe:280"]
    assert [row["vocab_size"] for row in found] == [270, 6 + len(set(TEXT)), 262, 280]
    assert found[1]["bytes_per_token"] == found[2]["bytes_per_token"] == 1
    assert found[3]["num_tokens"] < found[0]["num_tokens"] < found[2]["num_tokens"]
    assert found[2]["embedding_percent"] == pytest.approx(100 * 262 * 64 / (262 * 64 + 98_880), abs=6)
    assert re.search(r"\| bpe:280 +\| 280 +\| .* exact", said)
    assert said.partition("\n\nSaved")[0].endswith(
        (tmp_path / "c/comparison.md").read_text().split("\n\n", 1)[1].strip()
    )
    assert (tmp_path / "c/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_training_spends_equal_compute_on_equal_contexts(text, tmp_path, capsys):
    argv = ["--text", text, "--train_types", "bytes", "bpe:300", "--config", "tiny", "--train", "true"]
    main([*argv, "--flops", "4e9", "--context_bytes", "32", "--output_dir", str(tmp_path / "c")])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "c/comparison.json").read_text())["tokenizers"]
    assert all(0 < row["bits_per_byte"]["32"] < 9 for row in rows)
    steps = {name: (int(n), int(rows), int(block)) for name, n, rows, block in
             re.findall(r"Training a model with (\S+): (\d+) steps of (\d+) x (\d+) tokens", said)}  # fmt: skip
    assert steps["bytes"][2] == 32
    assert steps["bpe:300"][2] == round(32 / rows[1]["bytes_per_token"])
    assert steps["bytes"][0] >= 2  # the smaller vocabulary costs less per token


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to compare: give --tokenizers or --train_types"),
        (["--train_types", "words"], "--train_types words: it must be characters, bytes, bpe:SIZE"),
        (["--train_types", "bytes:3"], "it must be characters"),
        (["--train_types", "bytes", "--flops", "1e9"], r"--flops \(1000000000\.0\) requires --train true"),
        (["--train_types", "bytes", "--context_bytes", "64"], r"--context_bytes \(\[64\]\) requires --train true"),
        (["--train_types", "bytes", "--train", "true", "--context_bytes", "4"], "must be at least 16"),
        (["--train_types", "bytes", "--train", "true", "--flops", "1e3"], "not enough for a step of bytes"),
        (["--train_types", "bytes", "--config", "huge"], "--config is huge: it must be one of tiny"),
        (["--tokenizers", "./nowhere"], r"--tokenizers \./nowhere does not exist"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(text, tmp_path, capsys, argv, message):
    assert run_command(main, ["--text", text, "--output_dir", str(tmp_path / "c"), *argv]) == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "c").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_existing_folder_is_kept(text, tmp_path, capsys):
    argv = ["--text", text, "--train_types", "bytes", "--output_dir", str(tmp_path)]
    assert run_command(main, argv) == 2
    assert "is not an empty folder: choose a new one" in capsys.readouterr().err


def test_all_is_six_tokenizers():
    types = [parse_type(entry) for entry in CompareArguments("out", train_types=["all"]).types]
    assert len(types) == 6
    assert {kind for kind, _ in types} == {"characters", "bytes", "bpe", "unigram"}


def test_a_text_is_limited():
    corpus = Corpus("c", "0", lambda: iter([Document("a", "x" * 600), Document("b", "y" * 600), Document("c", "z")]))
    assert [len(document.text) for document in limited(corpus, 0.001)] == [600, 400]


def test_scores_are_counted_on_the_text():
    tokenizer = ScratchGPTTokenizer.train_from_texts(type="bytes")
    scores = score_tokenizer("bytes", tokenizer, ["abé", "a"])
    assert (scores.num_tokens, scores.bytes_per_token, scores.round_trip) == (5, 1, "exact")
    assert scores.never_used == 1 - 4 / 256


def test_the_first_difference_of_a_round_trip_is_named():
    class Lowered:
        def decode(self, ids, **_):
            return "".join(map(chr, ids)).lower()

    texts = ["abc", "abCd"]
    encoded = [np.array([ord(sign) for sign in text]) for text in texts]
    assert round_trip(Lowered(), texts, encoded) == "document 1, character 2: Cd becomes cd"
    assert round_trip(Lowered(), texts[:1], encoded[:1]) == "exact"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a\n\tb\r", "\u00b7a\u21b5\u2192b\u240d"),
        (" " * 32, "\u00b7x32"),
        ("\x1b[0m", "\\x1b[0m"),
        ("a" * 9 + "b" * 30, "aaaaaaaaabbbbbbbbbbbb..."),
    ],
)
def test_tokens_are_shown_safely(text, expected):
    assert shown(text) == expected


def test_the_longest_tokens_come_first():
    tokenizer = ScratchGPTTokenizer.train_from_texts([TEXT], 300, show_progress=False)
    tokens = longest_tokens(tokenizer, np.unique(tokenizer.encode(TEXT)))
    assert tokens == sorted(tokens, key=lambda token: -len(token))
    assert "number" in tokens[0]
