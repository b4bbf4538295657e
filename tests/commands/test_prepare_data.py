import base64
import json
import re
import shutil
import tracemalloc
from pathlib import Path
from random import Random

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer
from train.data.blocks import BLOCKS_FILE, open_data
from train.data.corpora import Corpus, Document, python_corpus, split_corpus
from train.data.tokens import load_data_tokenizer, token_stream
from train.prepare_data import main, prepare_data
from train.settings.command import run_command

END = 0
TEXTS = [f"Document {number} of <|endoftext|> and <|pad|>.\n" * (1 + number % 3) for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> ScratchGPTTokenizer:
    return ScratchGPTTokenizer.train_from_texts(TEXTS, 280, show_progress=False)


@pytest.fixture
def folders(tokenizer, tmp_path) -> list[str]:
    """The arguments of a good call; its output goes to tmp_path / "data"."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / f"texts/{number:02}.txt").write_text(text)
    arguments = {"tokenizer": "tokenizer", "output_dir": "data", "text": "texts"}
    options = [part for name, value in arguments.items() for part in (f"--{name}", str(tmp_path / value))]
    return [*options, "--block_size", "16", "--validation_fraction", "0.2"]


def corpus_of(*texts: str, name: str = "corpus") -> Corpus:
    documents = [Document(f"{name}/{number}", text) for number, text in enumerate(texts)]
    return Corpus(name, str(hash(texts)), lambda: iter(documents))


def stream_of(folder: Path) -> list[int]:
    rows = np.array(datasets.load_from_disk(str(folder))["input_ids"][:])
    return [*rows[:, :-1].reshape(-1).tolist(), int(rows[-1, -1])]


def test_blocks_are_the_documents_in_order(tokenizer, tmp_path, capsys):
    train, validation = corpus_of(*TEXTS), corpus_of(TEXTS[0] * 3)
    data = prepare_data(tmp_path / "data", tokenizer, (train, validation), block_size=16)
    whole = [token for text in TEXTS for token in (*tokenizer(text, split_special_tokens=True)["input_ids"], END)]
    facts = data.manifest["splits"]["train"]
    kept = stream_of(tmp_path / "data/train")
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) == facts["num_dropped_tokens"] < 16
    assert facts["num_tokens"] == len(whole)
    assert facts["num_documents"] == 40
    assert facts["num_bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_only_the_end_of_a_document_gives_a_control_token(tokenizer):
    (ids,) = token_stream([Document("a", "<|endoftext|><|user|>"), Document("b", "<|pad|>")], tokenizer)
    assert np.flatnonzero(ids < 6).tolist() == [
        len(ids) - 1 - len(tokenizer.encode_texts(["<|pad|>"])[0]) - 1,
        len(ids) - 1,
    ]
    assert ids[-1] == tokenizer.eos_token_id == END


def test_token_stream_comes_in_chunks_of_whole_documents(tokenizer, monkeypatch):
    documents = [Document(str(number), text) for number, text in enumerate(TEXTS)]
    (whole,) = token_stream(documents, tokenizer)
    monkeypatch.setattr("train.data.tokens.BATCH_LENGTH", 100)
    chunks = list(token_stream(documents, tokenizer))
    assert len(chunks) > 10
    assert np.concatenate(chunks).tolist() == whole.tolist()


def test_the_summary_agrees_with_the_data(folders, tmp_path, capsys):
    assert not main(folders)
    said = capsys.readouterr().out
    manifest = open_data(tmp_path / "data").manifest
    train, validation = manifest["splits"]["train"], manifest["splits"]["validation"]
    assert train["num_documents"] + validation["num_documents"] == 40
    assert re.search(rf"{tmp_path}/data: \d+\.\d KB of blocks, in \d+\.\d s \(.* MB/s\)", said)
    assert f"train: {train['num_documents']} documents" in said
    assert (
        f"{train['num_rows']} blocks of 16; {train['num_dropped_tokens']} tokens after the last full block dropped"
        in said
    )
    assert manifest["vocab_size"] == 280
    assert str(tmp_path) not in json.dumps(manifest)
    assert not list(tmp_path.glob(".tmp-*"))


def files_of(folder: Path) -> dict[str, object]:
    """The content of all files; of data.json, without the times."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(files.pop("data.json"))
    return files | {"data.json": {**manifest, "splits": [{**x, "seconds": 0} for x in manifest["splits"].values()]}}


def random_texts(seed: int) -> list[str]:
    generator = Random(seed)
    signs = [
        *"aeiou tnrs\n\t\r.,'\"()_=-0123456789",
        *" " * 9,
        *"éß你好\u00a0\u2003😀\u0301½",
        "'s",
        "'LL",
        "<|endoftext|>",
    ]
    return ["".join(generator.choices(signs, k=generator.choice([1, 20, 300, 9000]))) for _ in range(60)]


def check_same_files(tmp_path: Path, tokenizer: ScratchGPTTokenizer, corpora: tuple[Corpus, Corpus]) -> None:
    """The files must be those that the tokenizer makes of whole texts."""
    prepare_data(tmp_path / "words", tokenizer, corpora, block_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.tokens.cutter_for", lambda _: None)
        prepare_data(tmp_path / "texts", tokenizer, corpora, block_size=64)
    assert files_of(tmp_path / "words") == files_of(tmp_path / "texts")


def test_files_are_those_of_whole_texts(tokenizer, tmp_path, capsys):
    _, part = split_corpus(python_corpus(), 0.05)
    check_same_files(tmp_path, tokenizer, (part, corpus_of(*random_texts(1))))


@pytest.mark.slow
def test_all_files_are_those_of_whole_texts(tmp_path, capsys):
    train, validation = split_corpus(python_corpus(), 0.05)
    tokenizer = ScratchGPTTokenizer.train_from_texts(
        (document.text for document in validation), 2048, show_progress=False
    )
    check_same_files(tmp_path, tokenizer, (train, validation))


def test_a_second_call_keeps_the_blocks(folders, tmp_path, capsys):
    main(folders)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    main(folders)
    assert f"{tmp_path}/data already contains these blocks" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--block_size", "8"], r"contains other blocks: --block_size was 16, is now 8\. Choose a new folder"),
        (
            ["--validation_fraction", "0.5"],
            r"the train text was '.*20 % of the documents.*', is now '.*50 % of the documents",
        ),
    ],
)
def test_other_settings_are_refused_by_name(folders, capsys, change, message):
    main(folders)
    assert run_command(main, [*folders, *change]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_changed_text_and_tokenizer_are_refused(folders, tmp_path, capsys):
    main(folders)
    (tmp_path / "texts/00.txt").write_text("changed")
    assert run_command(main, folders) == 2
    said = capsys.readouterr().err
    assert "the train text (40 files of texts, " in said
    assert "or how it is read, has changed" in said
    assert "sha256" not in said
    (tmp_path / "texts/00.txt").write_text(TEXTS[0])
    shutil.rmtree(tmp_path / "tokenizer")
    other = ScratchGPTTokenizer.train_from_texts(TEXTS, 279, show_progress=False)
    other.save_pretrained(tmp_path / "tokenizer")
    assert run_command(main, folders) == 2
    assert "--tokenizer is another one" in capsys.readouterr().err


def test_an_interrupted_call_leaves_nothing_and_can_be_repeated(folders, tmp_path, monkeypatch, capsys):
    def broken(*_):
        yield np.zeros(100, np.int32)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("train.prepare_data.token_stream", broken)
        assert run_command(main, folders) == 2
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".tmp-*"))
    (tmp_path / ".tmp-data/train").mkdir(parents=True)  # left by kill -9
    main(folders)
    assert len(open_data(tmp_path / "data").train) > 0


def test_other_files_in_the_output_are_refused(folders, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.txt").write_text("mine")
    assert run_command(main, folders) == 2
    assert "contains other files" in capsys.readouterr().err
    assert (tmp_path / "data/notes.txt").read_text() == "mine"
    (tmp_path / "data/notes.txt").unlink()
    main(folders)  # an empty folder is fine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--block_size", "100000"], r"train: the text has \d+ tokens, fewer than one block of 100000 \+ 1"),
        (["--block_size", "0"], "--block_size is 0: it must be a number of at least 1"),
        (
            ["--tokenizer", "./nowhere"],
            "--tokenizer ./nowhere does not exist: write one with scratch-gpt train_tokenizer",
        ),
        (["--text", "./nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(folders, tmp_path, capsys, change, message):
    place = folders.index(change[0]) if change[0] == "--text" else len(folders)  # a list is given once
    assert run_command(main, [*folders[:place], *change, *folders[place + 2 :]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (tmp_path / "data").exists()


def test_tokenizer_without_end_of_text_is_refused(tokenizer, tmp_path):
    ScratchGPTTokenizer(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--tokenizer mine has no eos_token"):
        load_data_tokenizer("--tokenizer mine", tmp_path)


def test_the_tokenizer_travels_with_the_data(folders, tmp_path, capsys):
    main(folders)
    for path in (tmp_path / "tokenizer").iterdir():
        assert (tmp_path / "data/tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_memory_does_not_grow_with_the_corpus(tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.data.tokens.BATCH_LENGTH", 20_000)
    text = "a few words in a line of text\n" * 40

    def peak(num_documents: int) -> int:
        corpus = Corpus("endless", "0", lambda: (Document(str(number), text) for number in range(num_documents)))
        tracemalloc.start()
        prepare_data(tmp_path / str(num_documents), tokenizer, (corpus, corpus_of(text)), block_size=16)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(20)  # imports and caches
    assert peak(500) < 1.3 * peak(100)


def test_two_calls_at_once_do_not_disturb_each_other(folders, tokenizer, tmp_path, capsys, monkeypatch):
    """The second one starts and finishes while the first one writes."""
    other = [*folders]
    started = []

    def stream(documents, some_tokenizer):
        if not started:
            started.append(True)
            main(other)
        yield from token_stream(documents, some_tokenizer)

    monkeypatch.setattr("train.prepare_data.token_stream", stream)
    main(folders)
    said = capsys.readouterr().out
    assert said.index("Saved to") < said.index("Nothing to do:")
    assert len(open_data(tmp_path / "data").train) > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []
    started.clear()
    shutil.rmtree(tmp_path / "data")
    other[-1] = "0.5"
    assert run_command(main, folders) == 2
    assert "the train text was" in capsys.readouterr().err
    assert "50 % of the documents" in json.dumps(open_data(tmp_path / "data").manifest)


def test_damaged_blocks_are_not_called_complete(folders, tmp_path, capsys):
    main(folders)
    path = tmp_path / "data/train" / BLOCKS_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert run_command(main, folders) == 2
    assert re.search(
        r"data/train/.*\.arrow is damaged: a byte from 0 to .* Prepare the data again", capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_way_is_named(folders, tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert run_command(main, [*folders, "--output_dir", str(tmp_path / name)]) == 2
    message = rf"error: --output_dir:? {tmp_path}/file is a file(, not a folder)?: choose "
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_of_the_disk_in_the_tokenizer_are_errors_of_the_system(folders, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(ScratchGPTTokenizer, "save_pretrained", full)
    assert run_command(main, folders) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]


def test_the_tokenizer_of_another_library_is_prepared_with(folders, tokenizer, tmp_path, capsys):
    """A rank file of two-byte tokens; the blocks come with it as tokenizer.json."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"in", b"an"]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (tmp_path / "own.tiktoken").write_text("".join(lines))
    folders[1] = str(tmp_path / "own.tiktoken")
    assert run_command(main, folders) == 2
    assert "give --pattern" in capsys.readouterr().err
    assert not main([*folders, "--pattern", "cl100k_base"])
    assert "note:" not in capsys.readouterr().err
    data = open_data(tmp_path / "data")
    assert data.manifest["vocab_size"] == 260
    again = load_data_tokenizer("--data_dir", tmp_path / "data/tokenizer")
    assert again.decode(stream_of(tmp_path / "data/validation")).startswith("Document ")


def test_a_tokenizer_that_changes_texts_is_named_once(folders, tmp_path, capsys):
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    backend.save(str(tmp_path / "tokenizer/tokenizer.json"))
    main(folders)
    said = capsys.readouterr().err
    assert said.count("does not restore every text. It changes capital letters") == 1
