"""The tokenizer: training and encoding against an oracle, exact decoding, files, BPE-dropout."""

import itertools
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

import hf_scratch_gpt
from hf_scratch_gpt.tokenization_scratch_gpt import (
    CHAT_TEMPLATE,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    ScratchGPTTokenizer,
    text_pieces,
)

TEXTS = [
    "def add(first, second):\n        return first + second  # 12345 + 67890\n",
    "The quick brown fox doesn't jump over the lazy dog's 2 tails, does it?\r\n\r\n",
    "while True:\n\tprint('naïve café — 你好, 世界 😀')\n" * 3,
    "    if value is not None and value not in values:\n            raise ValueError(value)\n" * 2,
    "the them then there these they the them then there these they bananas banana aaaa aaaaaaa\n",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer() -> ScratchGPTTokenizer:
    return ScratchGPTTokenizer.train_from_texts(TEXTS, 340, show_progress=False)


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def words_as_bytes(text: str) -> list[str]:
    words = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated").pre_tokenize_str(text)
    return ["".join(BYTE_SIGNS[byte] for byte in word.encode()) for word, _ in words]


def byte_signs() -> dict[int, str]:
    """GPT-2's table: printable bytes map to themselves, the others to characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


BYTE_SIGNS = byte_signs()


def joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def oracle_merges(texts: list[str], vocab_size: int) -> list[tuple[str, str]]:
    """BPE as in the paper: count all pairs, merge the most frequent one, repeat.

    Ties go to the pair with the smallest ids, which are those of older tokens.
    """
    ids = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *sorted(BYTE_SIGNS.values())])}
    words = Counter(tuple(word) for text in texts for word in words_as_bytes(text))
    merges = []
    while len(ids) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        pair, count = max(pairs.items(), key=lambda item: (item[1], *(-ids[part] for part in item[0])))
        if count < 2:
            break
        merges.append(pair)
        ids.setdefault(pair[0] + pair[1], len(ids))
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            merged[joined(word, pair)] += count
        words = merged
    return merges


def oracle_encoding(text: str, merges: list[tuple[str, str]]) -> list[str]:
    tokens: list[str] = []
    for word in words_as_bytes(text):
        parts = tuple(word)
        for pair in merges:
            parts = joined(parts, pair)
        tokens += parts
    return tokens


def model_of(tokenizer: ScratchGPTTokenizer) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


def test_merges_and_encodings_equal_a_plain_oracle(tokenizer):
    merges = oracle_merges(TEXTS, len(tokenizer))
    assert [tuple(pair) for pair in model_of(tokenizer)["merges"]] == merges
    assert len(merges) > 70
    for text in [*TEXTS, "unseen: thermal bananas 😀\n        x"]:
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == oracle_encoding(text, merges)


def test_ids_are_specials_then_bytes_then_merges(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert sorted(tokenizer.convert_ids_to_tokens(list(range(6, 262)))) == sorted(BYTE_SIGNS.values())
    assert len(tokenizer) == tokenizer.vocab_size == 340
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<|pad|>",
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.model_max_length == 1024


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT)
def test_decode_inverts_encode_for_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"]) == text


@pytest.mark.parametrize(
    "text", ["\x00\x1b\x7f", "a\r\nb\rc\n", "\ufeff", "👩\u200d👩\u200d👧", " a ,  b . c !", "  \t\n "]
)
def test_decode_inverts_encode_for_awkward_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


AWKWARD = st.text(st.sampled_from("aé你e\u0301 1٣½Ⅷ_\n\r\t.('s\u00a0\u2028\x1c"), max_size=80)


@settings(max_examples=500, deadline=None)
@given(text=AWKWARD, length=st.integers(2, 12))
def test_pieces_have_the_words_of_the_whole(text, length):
    pieces = list(text_pieces(text, length))
    assert "".join(pieces) == text
    assert all(length <= len(piece) <= 2 * length for piece in pieces[:-1])
    if all(len(piece) < 2 * length for piece in pieces[:-1]):  # no forced cut
        assert [word for piece in pieces for word in words_as_bytes(piece)] == words_as_bytes(text)


@pytest.mark.parametrize("text", [*TEXTS, "你好。世界" * 9, "a1" * 30, "x.y_z" * 20, "-- \t" * 20, "1,2;" * 20])
def test_ordinary_text_needs_no_forced_cut(text):
    pieces = list(text_pieces(text * 9, 32))
    assert len(pieces) > 5
    assert all(len(piece) < 64 for piece in pieces[:-1])
    assert [word for piece in pieces for word in words_as_bytes(piece)] == words_as_bytes(text * 9)


def test_long_documents_are_encoded_in_pieces(tokenizer):
    text = "".join(TEXTS) * 40
    assert len(list(text_pieces(text))) > 3
    assert tokenizer.encode_texts(["", text])[1].tolist() == tokenizer.encode(text)
    assert tokenizer.encode_texts(["", text])[0].tolist() == []


def test_pieces_are_only_for_our_words(tokenizer):
    foreign = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    foreign = ScratchGPTTokenizer(tokenizer_object=foreign)
    text = "the quick brown fox\n" * 500  # a space prefixed at each cut would change the ids
    assert foreign.encode_texts([text])[0].tolist() == foreign.encode(text)


def test_digits_stand_alone_and_indentation_is_one_run():
    assert words_as_bytes("x = 67890") == ["x", "Ġ=", "Ġ", *"67890"]
    assert words_as_bytes("\n        return\n") == ["Ċ", "Ġ" * 7, "Ġreturn", "Ċ"]


def test_special_tokens_in_corpus_text_stay_text(tokenizer):
    text = "a<|endoftext|>b<|pad|>"
    assert {0, 1} <= set(tokenizer(text)["input_ids"])
    for ids in (tokenizer(text, split_special_tokens=True)["input_ids"], tokenizer.encode_texts([text])[0]):
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text
    assert {0, 1} <= set(tokenizer(text)["input_ids"])  # later calls are unaffected


def test_training_reads_special_tokens_as_text():
    text = "see <|endoftext|> there\n"
    tokenizer = ScratchGPTTokenizer.train_from_texts([text] * 5, 290, show_progress=False)
    assert tokenizer.decode(tokenizer.encode_texts([text])[0]) == text
    assert len(tokenizer.get_vocab()) == len(tokenizer)


def test_encode_texts_ignores_padding_and_truncation_of_earlier_calls(tokenizer):
    tokenizer(["a", "bb cc dd"], padding=True, truncation=True, max_length=2)
    short, long = tokenizer.encode_texts(["a", "bb cc dd"])
    assert (short.tolist(), long.tolist()) == (tokenizer.encode("a"), tokenizer.encode("bb cc dd"))


@pytest.mark.parametrize(
    "encode",
    [
        lambda tokenizer, text: tokenizer(text),
        lambda tokenizer, text: tokenizer.encode(text),
        lambda tokenizer, text: tokenizer(["fine", text]),
        lambda tokenizer, text: tokenizer.encode_texts(["fine", text]),
        lambda tokenizer, text: tokenizer.train_from_texts([text], 300, show_progress=False),
    ],
)
def test_lone_surrogates_are_refused(tokenizer, encode):
    with pytest.raises(ValueError, match=r"lone surrogate \(U\+D83D\) at character 3"):
        encode(tokenizer, "bad\ud83d")


def test_vocabulary_below_bytes_and_specials_is_refused():
    with pytest.raises(ValueError, match=rf"vocab_size \(261\) must be at least {SMALLEST_VOCABULARY}"):
        ScratchGPTTokenizer.train_from_texts(TEXTS, 261)
    assert len(ScratchGPTTokenizer.train_from_texts(TEXTS, 262, show_progress=False)) == 262


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_empty_corpus_is_refused(texts):
    with pytest.raises(ValueError, match="corpus is empty"):
        ScratchGPTTokenizer.train_from_texts(texts, 300, show_progress=False)


def test_vocabulary_larger_than_the_corpus_supports_warns(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = ScratchGPTTokenizer.train_from_texts(["hello hello"], 9999, show_progress=False)
    assert len(tokenizer) == 262 + 4  # he, ll, hell, hello
    assert "has 266 tokens instead of vocab_size=9999" in caplog.text


def test_training_streams_and_passes_errors_on():
    seen = 0

    def texts():
        nonlocal seen
        for text in TEXTS * 400:
            seen += 1
            yield text
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        ScratchGPTTokenizer.train_from_texts(texts(), 300, show_progress=False)
    assert seen == 2000


def test_saved_files_hold_what_transformers_4_needs_and_nothing_of_this_machine(folder):
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    entries = json.loads((folder / "tokenizer_config.json").read_text())
    assert (
        entries
        == {
            "tokenizer_class": "PreTrainedTokenizerFast",  # TokenizersBackend is unknown to 4.x
            "preferred_tokenizer_class": "ScratchGPTTokenizer",  # where this package is imported
            "additional_special_tokens": list(SPECIAL_TOKENS[2:]),  # a list of extra_special_tokens breaks 4.x
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
            "model_max_length": 1024,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        }
    )
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    tokenizer_json = json.loads((folder / "tokenizer.json").read_text())
    assert [token["content"] for token in tokenizer_json["added_tokens"] if token["special"]] == list(SPECIAL_TOKENS)


def test_saving_a_loaded_tokenizer_gives_the_same_files(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = ScratchGPTTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
        assert str(tmp_path) not in path.read_text()


def test_auto_tokenizer_loads_our_class_next_to_our_config(tokenizer, folder):
    hf_scratch_gpt.ScratchGPTConfig().save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is ScratchGPTTokenizer
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert len(loaded) == len(tokenizer)


def test_a_folder_without_config_loads_as_our_class_too(tokenizer, folder):
    text = TEXTS[2] + "<|user|>"
    for loaded in (ScratchGPTTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)):
        assert type(loaded) is ScratchGPTTokenizer
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.all_special_tokens == tokenizer.all_special_tokens
        assert loaded.chat_template == tokenizer.chat_template


PLAIN = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)  # the config has code
assert "hf_scratch_gpt" not in sys.modules
print(json.dumps([type(tokenizer).__name__, tokenizer.encode(sys.argv[2]), tokenizer.pad_token_id]))
"""


@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_loads_without_the_package_and_without_remote_code(tokenizer, folder, tmp_path, has_config):
    if has_config:
        hf_scratch_gpt.ScratchGPTConfig().save_pretrained(folder)
    command = [sys.executable, "-I", "-c", PLAIN, str(folder), TEXTS[2]]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(result.stdout) == ["TokenizersBackend", tokenizer.encode(TEXTS[2]), 1]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_dropout_cuts_text_differently_and_loses_nothing(tokenizer, dropout):
    text = "def read_lines(path):\n    return 12 + caf\u00e9\n"
    ids = tokenizer.encode_with_dropout(text, dropout, seed=0)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.encode_with_dropout(text, dropout, seed=0)
    plain = tokenizer.encode_texts([text])[0].tolist()
    others = {tuple(tokenizer.encode_with_dropout(text, dropout, seed)) for seed in range(5)}
    if dropout == 0:
        assert others == {tuple(plain)}
    elif dropout == 1:
        assert len(ids) == len(text.encode())
    else:
        assert len(others) > 1
        assert max(map(len, others)) > len(plain)


def test_dropout_out_of_range_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"dropout \(1\.5\) must be between 0 and 1"):
        tokenizer.encode_with_dropout("x", 1.5, seed=0)
