"""Tokenizers of other libraries: the ids of the library itself, and what is refused."""

import base64
import functools
import json
import operator
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hf_scratch_gpt import ScratchGPTTokenizer, open_tokenizer
from hf_scratch_gpt.tokenizer_formats import changed_by, rank_files

SIGNS = (
    "the cat's 12345 IT'S \u017ft naïve caf\u00e9 你好 \U0001f600 ٣½Ⅷ \n\n\t  \r\n\u00a0\u2028 <|endoftext|> _.(-" * 3
)
TEXTS = [
    "The quick brown fox doesn't jump over the lazy dog's 2 tails, does it?\n" * 3,
    "def add(first, second):\n        return first + second  # 12345 + 67890\n" * 3,
    "naïve café — 你好, 世界 😀 HTTPServer IT'S WE'LL\n" * 3,
]


def random_texts(number: int) -> list[str]:
    """Pieces of ordinary text, awkward signs and any code points."""
    generator = random.Random(0)
    anything = [*range(0xD800), *range(0xE000, 0x30000)]

    def part() -> str:
        choice = generator.randrange(4)
        if choice == 0:
            return chr(generator.choice(anything))
        if choice == 1:
            return generator.choice(
                ["the ", "ing", "  ", "\n\n", "'S", "123456789", "aaaa", "HTTPServer", "<s>", "<0x41>"]
            )
        return generator.choice(SIGNS)

    return ["".join(part() for _ in range(generator.randrange(40))) for _ in range(number)] + python_text()


@functools.cache
def python_text() -> list[str]:
    import pydoc_data.topics

    return [pydoc_data.topics.topics[name] for name in ("if", "strings", "lambda")] + [
        Path(functools.__file__).read_text()
    ]


def tokens_of_bytes(tokenizer: ScratchGPTTokenizer) -> dict[bytes, int]:
    """A byte-level vocabulary without special tokens, by bytes, with ids from 0."""
    signs = {sign: byte for byte, sign in enumerate(byte_signs())}
    plain = sorted(
        (number, token) for token, number in tokenizer.get_vocab().items() if number not in tokenizer.all_special_ids
    )
    return {bytes(signs[sign] for sign in token): rank for rank, (_, token) in enumerate(plain)}


def byte_signs() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@pytest.fixture(scope="module")
def ours() -> ScratchGPTTokenizer:
    return ScratchGPTTokenizer.train_from_texts([*TEXTS, *python_text()], 1200, show_progress=False)


@pytest.fixture(scope="module")
def ranks(ours) -> dict[bytes, int]:
    return tokens_of_bytes(ours)


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture
def gpt2(ours, tmp_path) -> Path:
    """The files of a small vocabulary, as GPT-2's: <|endoftext|> comes last."""
    model = json.loads(ours.backend_tokenizer.to_str())["model"]
    tokens = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in ours.all_special_tokens]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|endoftext|>"])}
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def encoding_of(tiktoken, pattern: str, ranks: dict[bytes, int]):
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base", "llama3"])
def test_ranks_give_the_ids_of_tiktoken(name, ranks, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    patterns = {"gpt2": public.r50k_pat_str, "llama3": rank_files.LLAMA3, "o200k_base": rank_files.O200K}
    cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    pattern = patterns.get(name, cl100k + r"|\s+(?!\S)|\s")
    original = encoding_of(tiktoken, pattern, ranks)
    tokenizer = open_tokenizer(write_ranks(tmp_path / "a.tiktoken", ranks), pattern=name)
    texts = random_texts(2000)
    assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == [original.encode_ordinary(text) for text in texts]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_texts(texts)] == texts
    special = "a<|endoftext|>b"
    assert tokenizer.encode(special) == original.encode(special, allowed_special="all")
    assert changed_by(tokenizer) == []


def test_merges_that_reach_a_token_in_several_ways_give_the_ids_of_tiktoken(tmp_path):
    """Ranks of no BPE training: tokens overlap, and many of them cannot be reached."""
    tiktoken = pytest.importorskip("tiktoken")
    generator = random.Random(0)
    for _ in range(5):
        ranks, tokens = {bytes([byte]): byte for byte in range(256)}, [b"a", b"b", b"c"]
        while len(ranks) < 300:
            token = generator.choice(tokens) + generator.choice(tokens)
            if len(token) < 12 and token not in ranks:
                ranks[token] = len(ranks)
                tokens.append(token)
        tokenizer = open_tokenizer(write_ranks(tmp_path / "a.tiktoken", ranks), pattern=r"[abc]+|[^abc]+")
        original = encoding_of(tiktoken, r"[abc]+|[^abc]+", ranks)
        for _ in range(400):
            text = "".join(generator.choice("aab bc") for _ in range(generator.randrange(30)))
            assert tokenizer.encode_texts([text])[0].tolist() == original.encode_ordinary(text)


def test_whitespace_at_the_end_is_one_word_only_there(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"\n ": 256, b"\n  ": 257}
    tokenizer = open_tokenizer(write_ranks(tmp_path / "a.tiktoken", ranks), pattern="cl100k_base")
    assert tokenizer.encode("a\n  ") == [97, 257]
    assert tokenizer.encode("a\n  b") == [97, 10, 32, 32, 98]


def test_gpt2_files_give_the_ids_of_tiktoken(gpt2, ranks):
    tiktoken = pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    original = encoding_of(tiktoken, public.r50k_pat_str, ranks)
    tokenizer = open_tokenizer(gpt2)
    texts = random_texts(2000)
    assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == [original.encode_ordinary(text) for text in texts]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (len(ranks), len(ranks), None)
    assert len(tokenizer) == len(ranks) + 1


def test_gpt2_files_may_have_the_names_of_openai(gpt2, tmp_path):
    other = tmp_path / "openai"
    other.mkdir()
    shutil.copy(gpt2 / "vocab.json", other / "encoder.json")
    shutil.copy(gpt2 / "merges.txt", other / "vocab.bpe")
    expected = open_tokenizer(gpt2).encode(TEXTS[0])
    for place in (other, other / "encoder.json", other / "vocab.bpe", gpt2 / "merges.txt"):
        assert open_tokenizer(place).encode(TEXTS[0]) == expected


def test_a_saved_copy_has_the_same_ids(gpt2, tmp_path):
    tokenizer = open_tokenizer(gpt2)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = open_tokenizer(tmp_path / "saved")
    assert again.encode(SIGNS) == tokenizer.encode(SIGNS)
    assert again.eos_token_id == tokenizer.eos_token_id


def test_special_tokens_of_an_original_rank_file_have_their_ids(tmp_path):
    two = [bytes([first, second]) for first in range(256) for second in range(256)]
    three = [pair + b"a" for pair in two]
    tokens = [*(bytes([byte]) for byte in range(256)), *two, *three]
    path = write_ranks(tmp_path / "cl100k_base.tiktoken", {token: i for i, token in enumerate(tokens[:100256])})
    tokenizer = open_tokenizer(path)
    names = ["<|endoftext|>", "<|fim_suffix|>", "<|endofprompt|>", "<|reserved_100256|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [100257, 100260, 100276, 100256]
    assert len(tokenizer) == 100277  # so a model has a row for every id
    p50k = {token: i + (i >= 50256) for i, token in enumerate(tokens[:50280])}
    tokenizer = open_tokenizer(write_ranks(tmp_path / "p50k_base.tiktoken", p50k))
    assert (tokenizer.eos_token_id, len(tokenizer)) == (50256, 50281)
    assert 50256 not in tokenizer.encode_texts(["<|endoftext|>"])[0]


def test_given_special_tokens_fill_the_gap_between_them(ranks, tmp_path):
    number = len(ranks)
    path = write_ranks(tmp_path / "a.tiktoken", ranks)
    tokenizer = open_tokenizer(path, pattern="gpt2", special_tokens={"<eos>": number + 2, "<x>": number})
    assert tokenizer.convert_ids_to_tokens([number, number + 1]) == ["<x>", f"<|reserved_{number + 1}|>"]
    assert tokenizer.eos_token == "<eos>"


SENTENCEPIECE = {
    "identity": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True},
    "default": {},
    "symbols": {"user_defined_symbols": ["<sep>", "the"], "control_symbols": ["<ctl>"], "pad_id": 3},
    "no prefix": {"add_dummy_prefix": False, "byte_fallback": True},
}


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("options", SENTENCEPIECE)
def test_a_model_gives_the_ids_of_sentencepiece(kind, options, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [line for text in [*TEXTS, *python_text()] for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "a"), vocab_size=600, minloglevel=2,
        hard_vocab_limit=False, model_type=kind, **SENTENCEPIECE[options],
    )  # fmt: skip
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    tokenizer = open_tokenizer(tmp_path / "a.model")
    texts = [*lines, "", " ", "   ", " a", "a ", "a  b", "<s>", "x</s>y<unk> <0x41>", "a<sep>b <sep>", "\u2581a"]
    texts += random_texts(1000) if options == "identity" else []
    found = [ids.tolist() for ids in tokenizer.encode_texts(texts)]
    expected = [original.encode(text) for text in texts]
    different = [text for text, one, other in zip(texts, found, expected, strict=True) if one != other]
    # equal scores: sentencepiece adds them in 32 bits, tokenizers in 64
    assert len(different) <= (0 if kind == "bpe" else 0.002 * len(texts)), different[:3]
    assert all(len(one) == len(other) for one, other in zip(found, expected, strict=True))
    assert len(tokenizer) == original.vocab_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (original.bos_id(), original.eos_id())
    controls = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert not controls & {*functools.reduce(operator.iadd, found, [])}
    if options == "identity":
        assert [tokenizer.decode(ids) for ids in found] == [text.replace("\u2581", " ") for text in texts]
        assert changed_by(tokenizer) == ["the sign \u2581"]
    else:
        assert "line breaks and tabs" in changed_by(tokenizer)


def test_a_tokenizer_json_alone_gets_its_roles_by_name(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = open_tokenizer(place)
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
        assert tokenizer.encode(SIGNS) == ours.encode(SIGNS)


def test_a_tokenizer_json_without_a_known_end_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no special token known to end a text .*it has none"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_a_lossy_tokenizer_json_is_named(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert "several spaces in a row" in changed_by(open_tokenizer(tmp_path))


def damaged(folder: Path, name: str, change) -> Path:
    path = folder / name
    path.write_text(change(path.read_text()))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("merges.txt", lambda text: text + "zq qz\n", r"merges\.txt does not fit .*vocab\.json, which lacks 3 tokens"),
        ("merges.txt", lambda text: text + "a b c\n", r"line \d+: a merge is two tokens"),
        ("vocab.json", lambda text: text[:-20], "is not valid JSON"),
        ("vocab.json", lambda text: "[1, 2]", "is not a vocabulary"),
        ("vocab.json", lambda text: text.replace('"!": 0', '"!": 5000'), "the id 0 is missing"),
        ("vocab.json", lambda text: text.replace('"!": 0', '"!": 1'), "the id 1 is given twice|the id 0 is missing"),
        ("vocab.json", lambda text: text.replace('"!": 0', '"new": 0'), "lacks 1 of the 256 bytes, such as '!'|fit"),
    ],
)
def test_damaged_gpt2_files_are_refused(gpt2, name, change, message):
    with pytest.raises(ValueError, match=message):
        open_tokenizer(damaged(gpt2, name, change))


def without(ranks: dict[bytes, int], *tokens: bytes) -> dict[bytes, int]:
    return {token: rank for token, rank in ranks.items() if token not in tokens}


@pytest.mark.parametrize(
    ("change", "pattern", "message"),
    [
        (lambda ranks: ranks, None, r"does not say how text is split into words: give --pattern with gpt2, r50k"),
        (lambda ranks: ranks, "cl200k", "the pattern cl200k is unknown: give gpt2"),
        (lambda ranks: ranks, "(a", "is not a regular expression"),
        (lambda ranks: ranks, r"\p{N}{1,3}+|.", "possessive interval"),
        (lambda ranks: without(ranks, b"th"), "gpt2", r"lacks 1 of the ranks 0 to 1,193, the first one \d+"),
        (lambda ranks: ranks | {b"th": 5}, "gpt2", "two tokens have the same rank"),
        (lambda ranks: {t: i for i, t in enumerate(without(ranks, b"a"))}, "gpt2", "lacks 1 of the 256 bytes"),
    ],
)
def test_damaged_rank_files_are_refused(ranks, tmp_path, change, pattern, message):
    path = write_ranks(tmp_path / "own.tiktoken", change(ranks))
    with pytest.raises(ValueError, match=message):
        open_tokenizer(path, pattern=pattern)


def test_an_incomplete_rank_file_is_refused(ranks, tmp_path):
    path = write_ranks(tmp_path / "o200k_base.tiktoken", ranks)
    with pytest.raises(ValueError, match=r"has 1,194 tokens, but o200k_base has 199,998: it is incomplete"):
        open_tokenizer(path)
    path.write_bytes(path.read_bytes() + b"rubbish\n")
    with pytest.raises(ValueError, match=r"line 1195: each line must be a new token in base64"):
        open_tokenizer(path)
    path.write_text("rubbish\n")
    with pytest.raises(ValueError, match="is not a rank file"):
        open_tokenizer(path)


def test_a_damaged_model_is_refused(tmp_path):
    path = tmp_path / "a.model"
    for content in (b"", b"\x0a\x90rubbish", b"rubbish " * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a sentencepiece model, or damaged"):
            open_tokenizer(path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    def missing():
        raise ImportError

    monkeypatch.setattr("hf_scratch_gpt.tokenizer_formats.sentencepiece_models.import_protobuf", missing)
    (tmp_path / "a.model").write_bytes(b"x")
    with pytest.raises(ImportError, match=r'pip install "hf_scratch_gpt\[sentencepiece\]"'):
        open_tokenizer(tmp_path / "a.model")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no tokenizer: it must contain tokenizer.json"),
        (["a.model", "b.model"], r"has several tokenizers \(a\.model, b\.model\)"),
        (["vocab.json"], r"has vocab\.json, but no merges\.txt"),
        (["vocab.bpe"], r"has vocab\.bpe, but no encoder\.json"),
    ],
)
def test_a_folder_without_one_tokenizer_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        open_tokenizer(tmp_path)


def test_arguments_without_effect_are_refused(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a pattern \\(gpt2\\) has no effect"):
        open_tokenizer(tmp_path, pattern="gpt2")
    with pytest.raises(ValueError, match="special_tokens has no effect"):
        open_tokenizer(tmp_path, special_tokens={})
    with pytest.raises(ValueError, match=r"is not a tokenizer: give tokenizer\.json"):
        open_tokenizer(__file__)
    with pytest.raises(ValueError, match="does not exist"):
        open_tokenizer(tmp_path / "nowhere")
