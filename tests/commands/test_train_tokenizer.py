import itertools
import os
import re
import tracemalloc

import pytest

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer
from train import evaluate, finetune, generate, prepare_data, pretrain
from train import train_tokenizer as module
from train.data.corpora import Corpus, Document
from train.settings.command import run_command
from train.settings.corpus import TokenizerArguments
from train.train_tokenizer import bytes_per_token, main, sample_of, train_tokenizer


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"The number {number} is one more than {number - 1}.\n" for number in range(200)))
    return path


def test_the_summary_agrees_with_the_tokenizer(tmp_path, text, capsys):
    output = tmp_path / "new/tokenizer"
    assert not main(["--output_dir", str(output), "--text", str(text), "--vocab_size", "280"])
    tokenizer = ScratchGPTTokenizer.from_pretrained(output)
    assert (len(tokenizer), tokenizer.model_max_length) == (280, 1024)
    assert sorted(os.listdir(output)) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    said = capsys.readouterr().out
    assert re.search(rf"{output}: 280 tokens, .* 2 documents \(\d+\.\d KB\) in \d+\.\d s .* bytes per token", said)


def test_it_learns_from_the_training_part_only(tmp_path, capsys):
    """Zebra is only in the middle, which is held out."""
    path = tmp_path / "book.txt"
    path.write_text("plain words only\n" * 45 + "zebra stripes do\n" * 9 + "plain words only\n" * 46)
    main(["--output_dir", str(tmp_path / "t"), "--text", str(path), "--validation_fraction", "0.1"])
    vocabulary = ScratchGPTTokenizer.from_pretrained(tmp_path / "t").get_vocab()
    assert "plain" in vocabulary
    assert "zebra" not in vocabulary


def test_a_tokenizer_is_not_overwritten(tmp_path, text, capsys):
    argv = ["--output_dir", str(tmp_path / "t"), "--text", str(text), "--vocab_size", "300"]
    main(argv)
    before = (tmp_path / "t/tokenizer.json").read_bytes()
    assert run_command(main, [*argv, "--vocab_size", "280"]) == 2
    assert "already contains a tokenizer" in capsys.readouterr().err
    assert (tmp_path / "t/tokenizer.json").read_bytes() == before


def test_an_interrupted_save_leaves_no_tokenizer(tmp_path, text, monkeypatch):
    def broken(self, folder):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(ScratchGPTTokenizer, "save_pretrained", broken)
    argv = ["--output_dir", str(tmp_path / "t"), "--text", str(text), "--vocab_size", "300"]
    assert run_command(main, argv) == 2
    assert list((tmp_path / "t").iterdir()) == []


def test_unwritable_output_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command(main, ["--output_dir", str(tmp_path / "file/t"), "--text", "nowhere"]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--vocab_size", "100"], r"vocab_size \(100\) must be at least 262"),
        (["--type", "characters", "--vocab_size", "300"], r"--vocab_size \(300\) has no effect on --type characters"),
        (["--type", "words"], "bpe"),
        (["--type", "bytes"], r"--text \(.*book\.txt\) has no effect on --type bytes"),
        (["--vocab_siz", "300"], "did you mean --vocab_size"),
        (["--text", "no/where.txt"], r"no/where\.txt does not exist"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, text, capsys, argv, message):
    given = [] if "--text" in argv else ["--text", str(text)]
    assert run_command(main, ["--output_dir", str(tmp_path / "t"), *given, *argv]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_bytes_per_token_is_bytes_over_tokens(tmp_path, text, capsys):
    tokenizer = ScratchGPTTokenizer.train_from_texts([text.read_text()], 262, show_progress=False)
    assert bytes_per_token(tokenizer, [Document("a", "abcé"), Document("b", "x")]) == 1.0
    assert bytes_per_token(tokenizer, []) != bytes_per_token(tokenizer, [])  # nan


def endless(num_documents: int) -> Corpus:
    """Many documents, few distinct words."""
    line = "the same few words again and again in a line of text\n" * 20

    def read():
        for number in range(num_documents):
            yield Document(str(number), line)

    return Corpus("endless", "0", read)


def test_memory_does_not_grow_with_the_corpus(tmp_path, capsys):
    def peak(num_documents: int) -> int:
        output = tmp_path / str(num_documents)
        output.mkdir()
        tracemalloc.start()
        train_tokenizer(output, TokenizerArguments(vocab_size=270), endless(num_documents), endless(1))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    sizes = [peak(number) for number in (5, 50, 1500)]
    assert sizes[2] < 1.3 * sizes[1]  # 1 MB of text at once would be more


def test_the_corpus_is_read_once(tmp_path, capsys):
    passes = itertools.count()

    def read():
        next(passes)
        yield Document("a", "some text, some text")

    train_tokenizer(tmp_path, TokenizerArguments(vocab_size=270), Corpus("once", "0", read), endless(1))
    assert next(passes) == 1


def test_a_tokenizer_that_another_process_wrote_is_not_overwritten(tmp_path, monkeypatch, capsys):
    def read():
        yield Document("a", "some text, some text")
        (tmp_path / "tokenizer.json").write_text("of another process")

    (tmp_path / ".tmp-tokenizer-x").mkdir()  # left by kill -9
    (tmp_path / ".tmp-tokenizer-y.json").touch()
    settings = TokenizerArguments(vocab_size=270)
    with pytest.raises(ValueError, match="already contains a tokenizer"):
        train_tokenizer(tmp_path, settings, Corpus("slow", "0", read), endless(1))
    assert (tmp_path / "tokenizer.json").read_text() == "of another process"
    (tmp_path / "tokenizer.json").unlink()
    train_tokenizer(tmp_path, settings, endless(1), endless(1))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_temporary_is_left_once_the_tokenizer_is_complete(tmp_path, monkeypatch):
    """A kill at that moment would leave it for ever: the next call is refused."""
    left, real_flush = [], module.flush

    def flush(path):
        if (tmp_path / "tokenizer.json").exists():
            left.append(list(tmp_path.glob(".tmp-*")))
        real_flush(path)

    monkeypatch.setattr(module, "flush", flush)
    train_tokenizer(tmp_path, TokenizerArguments(vocab_size=270), endless(1), endless(1))
    assert left == [[]]


def test_a_file_in_the_way_is_named(tmp_path, text, capsys):
    for output in (text, text / "below"):
        assert run_command(main, ["--output_dir", str(output), "--text", str(text)]) == 2
        assert f"error: --output_dir: {text} is a file, not a folder: choose another place." in capsys.readouterr().err


def test_compression_is_measured_on_a_bounded_sample(monkeypatch):
    monkeypatch.setattr("train.train_tokenizer.COMPRESSION_SAMPLE", 25)
    texts = [Document(str(number), "0123456789") for number in range(9)]
    assert [document.text for document in sample_of(texts)] == ["0123456789", "0123456789", "01234"]
    assert list(sample_of([])) == []


@pytest.mark.slow
@pytest.mark.parametrize("type", ["unigram", "characters", "bytes"])
def test_every_type_goes_the_whole_way(type, tmp_path, capsys):
    """Tokenizer, data, pretraining, generation, bits per byte, and a conversation."""
    text = tmp_path / "book.txt"
    text.write_text("".join(f"The number {number} is one more than {number - 1}.\n" for number in range(400)))
    given = [] if type == "bytes" else ["--text", str(text)]
    size = ["--vocab_size", "280"] if type == "unigram" else []
    assert not main(["--output_dir", str(tmp_path / "t"), "--type", type, *given, *size])
    prepare_data.main([f"--tokenizer={tmp_path / 't'}", f"--text={text}", f"--output_dir={tmp_path / 'd'}",
                       "--block_size=16"])  # fmt: skip
    run = ["--config=tiny", f"--data_dir={tmp_path / 'd'}", f"--output_dir={tmp_path / 'run'}", "--max_steps=2"]
    assert not pretrain.main([*run, "--global_batch_size=8", "--warmup_steps=0", "--precision=fp32"])
    model = str(tmp_path / "run/model")
    capsys.readouterr()
    assert not evaluate.main(["--model", model, "--text", str(text)])
    said = capsys.readouterr().out
    assert f"{len(text.read_bytes()):,} bytes of text" in said
    assert not generate.main(["--model", model, "--prompt", "The number 5", "--max_new_tokens", "4"])
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "The"}, '
                                         '{"role": "assistant", "content": "number"}]}\n' * 20)  # fmt: skip
    tuned = ["--model", model, "--train_file", str(tmp_path / "chat.jsonl"), "--output_dir", str(tmp_path / "tuned")]
    assert not finetune.main([*tuned, "--max_steps=1", "--precision=fp32"])


def test_characters_of_the_held_out_text_have_tokens_too(tmp_path, capsys):
    path = tmp_path / "book.txt"
    path.write_text("plain words only\n" * 45 + "zebra stripes do\n" * 9 + "plain words only\n" * 46)
    main(["--output_dir", str(tmp_path / "t"), "--text", str(path), "--type", "characters"])
    assert "z" in ScratchGPTTokenizer.from_pretrained(tmp_path / "t").get_vocab()
