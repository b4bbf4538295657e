"""Minimal pairs: a model with known answers, sums by hand, and files with mistakes."""

import gzip
import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.support.tiny import tiny_model
from tests.support.tiny_loop import VOCABULARY
from train.metrics import minimal_pairs
from train.metrics.minimal_pairs import (
    Accuracy,
    accuracies,
    accuracy_table,
    encode_pairs,
    read_pairs,
    sum_log_probs,
)

GOOD, BAD = "def f(x): return x", "def f(x): return y"


def write(path, *pairs):
    path.parent.mkdir(exist_ok=True)
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "more fields"} for good, bad in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Unigrams:
    """A model in which each token has the same probability everywhere."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, favoured):
        self.logits = torch.zeros(len(tokenizer))
        for text, logit in favoured.items():
            (token,) = tokenizer(text)["input_ids"]
            self.logits[token] = logit

    def __call__(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.fixture
def favours_a(tokenizer):
    """A model that finds "a" more probable than "b", and both more probable than other letters."""
    return Unigrams(tokenizer, {"a": 5.0, "b": 4.0})


def score(model, tokenizer, paths, batch_size=3):
    pairs = read_pairs(paths)
    return accuracies(pairs, sum_log_probs(model, encode_pairs(pairs, tokenizer, 64), batch_size))


def test_known_answers(favours_a, tokenizer, tmp_path):
    correct, wrong, tie = ("aab", "abb"), ("zzab", "zzaa"), ("abz", "bza")
    first = write(tmp_path / "blimp" / "b.jsonl", correct, wrong, correct, correct)
    second = write(tmp_path / "blimp" / "a.jsonl", tie, ("a", "aa"))
    (tmp_path / "blimp" / "README.md").write_text("not a pair")
    third = write(tmp_path / "c.jsonl", wrong)
    found, groups = score(favours_a, tokenizer, [tmp_path / "blimp", third])
    assert found == [Accuracy(str(second), 2, 1), Accuracy(str(first), 4, 3), Accuracy(str(third), 1, 0)]
    assert groups == []
    table = accuracy_table(found)
    assert max(map(len, table.splitlines())) <= 80
    head, *lines = (line.split() for line in table.splitlines())
    assert head == ["file", "pairs", "accuracy", "+/-"]
    assert [line[1:] for line in lines[:3]] == [
        ["2", "0.5000", f"{math.sqrt(0.25 / 2):.4f}"], ["4", "0.7500", f"{math.sqrt(0.1875 / 4):.4f}"],
        ["1", "0.0000", "0.0000"],
    ]  # fmt: skip
    error = math.sqrt(0.25 / 2 + 0.1875 / 4) / 3
    assert lines[3] == ["mean", "of", "the", "files", f"{1.25 / 3:.4f}", f"{error:.4f}"]
    assert lines[4][:4] == ["all", "pairs", "7", f"{4 / 7:.4f}"]


def test_groups(favours_a, tokenizer, tmp_path):
    rows = [
        {"sentence_good": good, "sentence_bad": bad, "linguistics_term": term, "field": "syntax"}
        for good, bad, term in (("aab", "abb", "islands"), ("abb", "aab", "binding"), ("aab", "abb", "binding"))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files, groups = score(favours_a, tokenizer, [tmp_path / "pairs.jsonl"])
    assert groups == [Accuracy("binding", 2, 1), Accuracy("islands", 1, 1)]
    lines = [line.split() for line in accuracy_table(files, groups).splitlines()]
    assert ["binding", "2", "0.5000", "0.3536"] in lines


def test_control_tokens_in_a_sentence_are_text(tokenizer, tmp_path):
    special = tokenizer.eos_token
    (row, _) = encode_pairs(read_pairs([write(tmp_path / "a.jsonl", (special, "b"))]), tokenizer, 64)
    assert tokenizer.decode(row[1:]) == special
    assert tokenizer.eos_token_id not in row[1:]


def test_a_sum_matches_the_tokens_scored_one_by_one(tokenizer, tmp_path):
    model = tiny_model(vocab_size=VOCABULARY)
    rows = encode_pairs(read_pairs([write(tmp_path / "pairs.jsonl", (GOOD, BAD))]), tokenizer, 64)
    sums = sum_log_probs(model, rows, batch_size=2)
    for sentence, found in zip((GOOD, BAD), sums, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(sentence)["input_ids"]]
        expected = sum(
            float(model(torch.tensor([ids[:end]])).logits[0, -1].detach().double().log_softmax(-1)[ids[end]])
            for end in range(1, len(ids))
        )
        assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_batches_do_not_change_the_sums(position):
    model = tiny_model(vocab_size=VOCABULARY, position_embedding_type=position)
    rows = [torch.randint(6, VOCABULARY, (length,)).tolist() for length in (9, 2, 40, 3, 17, 17, 5)]
    one_by_one = sum_log_probs(model, rows, batch_size=1)
    for batch_size in (2, 7, 100):
        torch.testing.assert_close(sum_log_probs(model, rows, batch_size), one_by_one, atol=1e-4, rtol=0)


def test_similar_lengths_share_a_batch(tokenizer, favours_a, monkeypatch):
    lengths, padded = [], minimal_pairs.padded
    monkeypatch.setattr(minimal_pairs, "padded", lambda rows: lengths.append([*map(len, rows)]) or padded(rows))
    sum_log_probs(favours_a, [[0] * length for length in (2, 9, 3, 8)], batch_size=2)
    assert lengths == [[9, 8], [3, 2]]


LINES = {
    "missing field": ('{"sentence_good": "a"}', "has no 'sentence_bad' .found: sentence_good"),
    "empty sentence": ('{"sentence_good": "a", "sentence_bad": " "}', "'sentence_bad' is ' ': it must be a sentence"),
    "number": ('{"sentence_good": 1, "sentence_bad": "b"}', "'sentence_good' is 1: it must be a sentence"),
    "twice the same": ('{"sentence_good": "a", "sentence_bad": "a"}', "both sentences are 'a'"),
    "not JSON": ('{"sentence_good": "a",', "not JSON"),
    "no object": ('["a", "b"]', "must be a JSON object, not list"),
}


@pytest.mark.parametrize("line", LINES)
def test_refuses_a_line(tmp_path, line):
    path = write(tmp_path / "pairs.jsonl", ("a", "b"))
    text, message = LINES[line]
    path.write_text(path.read_text() + "\n" + text + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_pairs([path])
    assert f"{path}:3" in str(error.value)


def test_the_remedy_for_another_encoding_is_one_that_pairs_have(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"sentence_good": "Caf\xe9", "sentence_bad": "b"}\n')
    with pytest.raises(ValueError, match="looks like Latin-1: convert it with iconv -f ISO-8859-1"):  # no --encoding
        read_pairs([tmp_path])


def test_refuses_files_and_folders_without_pairs(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"empty\.jsonl has no pairs"):
        read_pairs([tmp_path])
    with pytest.raises(ValueError, match=r"folder has no \.jsonl file"):
        read_pairs([tmp_path / "folder"])
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        read_pairs([tmp_path / "gone"])


def test_refuses_a_file_given_twice(tmp_path):
    path = write(tmp_path / "pairs.jsonl", ("a", "b"))
    with pytest.raises(ValueError, match=r"pairs\.jsonl twice"):
        read_pairs([tmp_path, path])


def test_pairs_of_a_file_without_lines_are_named_by_their_row(tokenizer, tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(
        '[\n{"sentence_good": "zz",\n"sentence_bad": "zy"},\n{"sentence_good": "zzz", "sentence_bad": "zz"}]'
    )
    with pytest.raises(ValueError, match=r"pairs\.json, row 1: a sentence has 3 tokens"):
        encode_pairs(read_pairs([path]), tokenizer, block_size=2)


def test_refuses_a_sentence_longer_than_the_block_size(tokenizer, tmp_path):
    pairs = read_pairs([write(tmp_path / "pairs.jsonl", ("zz", "zy"), ("zzz", "zz"))])
    assert len(encode_pairs(pairs, tokenizer, block_size=3)[2]) == 1 + 3
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: a sentence has 3 tokens, but --block_size is 2"):
        encode_pairs(pairs, tokenizer, block_size=2)


def test_refuses_a_tokenizer_that_cannot_encode_the_sentence(tmp_path):
    pairs = read_pairs([write(tmp_path / "pairs.jsonl", ("a", "b"))])
    with pytest.raises(ValueError, match="neither a bos_token nor an eos_token"):
        encode_pairs(pairs, SimpleNamespace(bos_token_id=None, eos_token_id=None), 64)

    class Failing:
        bos_token_id, eos_token_id = None, 1

        def __call__(self, texts, **options):
            raise Exception("WordLevel error: Missing [UNK] token")

    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: the tokenizer cannot encode the text 'a' \(WordLevel"):
        encode_pairs(pairs, Failing(), 64)


def test_refuses_damaged_weights(tokenizer, favours_a):
    favours_a.logits[7] = float("nan")
    with pytest.raises(ValueError, match="not finite: its weights are damaged"):
        sum_log_probs(favours_a, [[1, 8], [1, 7]], batch_size=1)


def test_what_a_folder_of_pairs_has_besides_is_counted(tmp_path, capsys):
    folder = tmp_path / "blimp"
    folder.mkdir()
    write(folder / "a.JSONL", GOOD_AND_BAD := ("a", "b"))
    (folder / "deep").mkdir()
    (folder / "deep/b.jsonl.gz").write_bytes(gzip.compress(write(tmp_path / "x.jsonl", GOOD_AND_BAD).read_bytes()))
    (folder / "c.csv").write_text("sentence_good,sentence_bad")
    assert [pair.path.name for pair in read_pairs([folder])] == ["a.JSONL", "b.jsonl.gz"]
    assert f"note: --pairs {folder}: left out 1 file with other suffixes (1 .csv)." in capsys.readouterr().err
