import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.blocks import (
    BLOCKS_FILE,
    FORMAT,
    open_data,
    part_hashes,
    smallest_integer_type,
    write_blocks,
    write_manifest,
)
from train.data.tokens import tokenizer_sha256

TOKENIZER = '{"model": {"b": 1, "a": 2}}'


def chunks_of(tokens: list[int], *sizes: int) -> list[np.ndarray]:
    return [np.array(part) for part in np.split(np.array(tokens), np.cumsum(sizes)[:-1])]


def write_data(folder: Path, num_tokens: int = 1000, block_size: int = 4, vocab_size: int = 300) -> Path:
    tokens = np.arange(num_tokens) % vocab_size
    counts = {"num_documents": 1, "num_bytes": num_tokens, "seconds": 0.1}
    splits = {
        name: counts | write_blocks(folder / name, [part], block_size, vocab_size)
        for name, part in (("train", tokens), ("validation", tokens[:50]))
    }
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(TOKENIZER)
    corpus = {split: {"description": "numbers", "fingerprint": "0"} for split in splits}
    manifest = {
        "format": FORMAT,
        "block_size": block_size,
        "vocab_size": vocab_size,
        "splits": splits,
        "corpus": corpus,
    }
    write_manifest(folder, manifest | {"tokenizer_sha256": tokenizer_sha256(TOKENIZER)})
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


def test_blocks_overlap_by_one_so_that_each_token_is_predicted_once(tmp_path):
    facts = write_blocks(tmp_path / "train", chunks_of(list(range(12)), 12), block_size=3, vocab_size=300)
    rows = datasets.load_from_disk(str(tmp_path / "train"))["input_ids"][:]
    assert rows == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert (facts["num_tokens"], facts["num_rows"], facts["num_dropped_tokens"]) == (12, 3, 2)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), block_size=st.integers(1, 9))
def test_nothing_is_lost_between_chunks(tmp_path_factory, sizes, block_size):
    num_tokens = sum(sizes)
    if num_tokens <= block_size:
        return
    folder = tmp_path_factory.mktemp("blocks") / "train"
    facts = write_blocks(folder, chunks_of(list(range(num_tokens)), *sizes), block_size, 400)
    rows = np.array(datasets.load_from_disk(str(folder))["input_ids"][:])
    targets = rows[:, 1:].reshape(-1).tolist()
    assert targets == list(range(1, len(targets) + 1))
    assert rows[:, :-1].reshape(-1).tolist() == list(range(len(targets)))
    assert facts["num_dropped_tokens"] == num_tokens - 1 - len(targets) < block_size


def test_chunking_does_not_change_the_result(tmp_path):
    one = write_blocks(tmp_path / "one", chunks_of(list(range(50)), 50), 4, 300)
    many = write_blocks(tmp_path / "many", chunks_of(list(range(50)), 1, 30, 0, 19), 4, 300)
    other = write_blocks(tmp_path / "other", chunks_of([*range(49), 0], 50), 4, 300)
    assert one["tokens_sha256"] == many["tokens_sha256"] != other["tokens_sha256"]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")]
)
def test_smallest_integer_type_stores_every_id(tmp_path, vocab_size, dtype):
    assert smallest_integer_type(vocab_size) == dtype
    write_blocks(tmp_path / "train", [np.array([0, vocab_size - 1, 1])], 2, vocab_size)
    dataset = datasets.load_from_disk(str(tmp_path / "train"))
    assert dataset.features["input_ids"].feature.dtype == dtype
    assert dataset[0]["input_ids"] == [0, vocab_size - 1, 1]


def test_text_shorter_than_a_block_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"validation: the text has 4 tokens, fewer than one block of 4 \+ 1"):
        write_blocks(tmp_path / "validation", [np.arange(4)], 4, 300)
    assert write_blocks(tmp_path / "train", [np.arange(5)], 4, 300)["num_rows"] == 1


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Token 300 at position 1 is not below vocab_size \(300\)"):
        write_blocks(tmp_path / "train", [np.array([1, 300, 2])], 2, 300)
    with pytest.raises(ValueError, match="Token -1 at position 2"):
        write_blocks(tmp_path / "train", [np.array([1, 2, -1])], 2, 300)


def test_open_data_gives_memory_mapped_blocks(prepared):
    data = open_data(prepared)
    assert (len(data.train), len(data.validation)) == (249, 12)
    rows = data.train.rows([1, 0, 248])
    assert rows.dtype == torch.int64
    assert rows.tolist()[:2] == [[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]
    assert data.train.dataset.cache_files[0]["filename"].endswith(BLOCKS_FILE)
    assert data.manifest["splits"]["train"]["num_tokens"] == 1000


def test_ids_are_checked_against_the_vocabulary_when_read(prepared):
    blocks = open_data(prepared).train
    small = type(blocks)(blocks.dataset, blocks.block_size, vocab_size=6)
    assert small.rows([0]).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"Token 6 at position 7 is not below vocab_size \(6\)"):
        small.rows([0, 1])


def test_a_batch_is_shifted_and_contiguous(prepared):
    blocks = open_data(prepared).train
    batch = blocks.batch([1, 0])
    assert batch.keys() == {"input_ids", "shift_labels"}
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert batch["shift_labels"].tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    assert all(tensor.is_contiguous() for tensor in batch.values())


def edited_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(manifest | changes))


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"--data_dir \S+nothing contains no prepared.*scratch-gpt prepare_data"
    ):
        open_data(tmp_path / "nothing")


def test_the_folder_above_the_data_is_named(copied):
    with pytest.raises(FileNotFoundError, match=rf"contains no prepared data: did you mean {copied}\?"):
        open_data(copied.parent)


def test_other_format_is_refused(copied):
    edited_manifest(copied, format=99)
    with pytest.raises(ValueError, match=r"format 99, but this version reads format 1"):
        open_data(copied)


def test_damaged_manifest_is_refused(copied):
    (copied / "data.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        open_data(copied)


def test_truncated_blocks_are_refused(copied):
    path = copied / "train" / BLOCKS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"bytes, not \d+: it is truncated"):
        open_data(copied)
    path.unlink()
    with pytest.raises(ValueError, match="has 0 bytes"):
        open_data(copied)


def test_damaged_blocks_are_refused(copied):
    path = copied / "train" / BLOCKS_FILE
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match="is damaged"):
        open_data(copied)


def test_other_block_size_is_refused(copied):
    edited_manifest(copied, block_size=8)
    with pytest.raises(ValueError, match="has 249 blocks of 5 ids, not 249 of 9"):
        open_data(copied)


def test_other_tokenizer_is_refused(copied):
    (copied / "tokenizer/tokenizer.json").write_text('{"model": {"a": 2,\n "b": 1}}')
    open_data(copied)  # the same, written differently
    (copied / "tokenizer/tokenizer.json").write_text('{"model": {"a": 2, "b": 3}}')
    with pytest.raises(ValueError, match="is not the tokenizer that made the tokens"):
        open_data(copied)
    (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        open_data(copied)


# Damage


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_flipped_bit_is_noticed_wherever_it_is(copied, split):
    path = copied / split / BLOCKS_FILE
    size = path.stat().st_size
    for place in (*range(0, size, size // 17), size - 1):
        flip_bit(path, place, place % 8)
        with pytest.raises(ValueError, match=rf"{split}/{BLOCKS_FILE} is damaged"):
            open_data(copied)
        flip_bit(path, place, place % 8)
    open_data(copied)


def test_only_the_splits_asked_for_are_verified(copied):
    flip_bit(copied / "train" / BLOCKS_FILE, (copied / "train" / BLOCKS_FILE).stat().st_size // 2)
    assert len(open_data(copied, verify=["validation"]).validation) == 12
    with pytest.raises(ValueError, match=r"train/.* is damaged: a byte from 0 to "):
        open_data(copied)


def test_each_process_of_a_machine_verifies_its_share(copied, monkeypatch):
    monkeypatch.setattr("train.data.blocks.PART_SIZE", 256)
    path = copied / "train" / BLOCKS_FILE
    edited_split(copied, "train", part_sha256=part_hashes(path))
    edited_split(copied, "validation", part_sha256=part_hashes(copied / "validation" / BLOCKS_FILE))
    open_data(copied)
    first = path.stat().st_size // 256 // 2 // 4 * 4 * 256  # of a part of process 0 of 4
    flip_bit(path, first + 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        if rank == 0:
            with pytest.raises(ValueError, match=rf"is damaged: a byte from {first:,} to {first + 255:,} has changed"):
                open_data(copied)
        else:
            open_data(copied)


def edited_split(folder: Path, split: str, **changes) -> None:
    splits = json.loads((folder / "data.json").read_text())["splits"]
    edited_manifest(folder, splits=splits | {split: splits[split] | changes})


def test_data_of_an_earlier_version_has_no_hashes(copied, capsys):
    for split in ("train", "validation"):
        splits = json.loads((copied / "data.json").read_text())["splits"]
        del splits[split]["part_sha256"]
        edited_manifest(copied, splits=splits)
    assert len(open_data(copied).train) == 249
    assert "was prepared by an earlier version, without hashes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": "4"}, r"data\.json is damaged: block_size: expected a whole number, not text"),
        ({"splits": []}, r"data\.json is damaged: splits: expected an object, not a list"),
        ({"splits": {"train": {}}}, r"data\.json is damaged: splits\.validation is missing"),
        ({"corpus": None}, r"data\.json is damaged: corpus: expected an object, not null"),
        ({"tokenizer_sha256": 5}, r"data\.json is damaged: tokenizer_sha256: expected text"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_with_its_name(copied, changes, message):
    edited_manifest(copied, **changes)
    with pytest.raises(ValueError, match=message):
        open_data(copied)


@pytest.mark.parametrize("content", ["[1]", "5", '"x"', "null", "[" * 100_000, '{"format": 1', "\xff"])
def test_a_manifest_that_is_no_object_is_refused_with_its_name(copied, content):
    (copied / "data.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"data\.json (is damaged|has format)"):
        open_data(copied)


def test_the_other_files_of_a_split_do_not_matter(copied):
    for name in ("state.json", "dataset_info.json"):
        (copied / "train" / name).write_text("[")
    assert len(open_data(copied).train) == 249
