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
    smallest_integer_type,
    tokenizer_sha256,
    write_blocks,
    write_manifest,
)
from train.data.sampler import StepSampler, examples_at

TOKENIZER = '{"model": {"b": 1, "a": 2}}'


def chunks_of(tokens: list[int], *sizes: int) -> list[np.ndarray]:
    return [np.array(part) for part in np.split(np.array(tokens), np.cumsum(sizes)[:-1])]


def write_data(folder: Path, num_tokens: int = 1000, block_size: int = 4, vocab_size: int = 300) -> Path:
    tokens = np.arange(num_tokens) % vocab_size
    splits = {
        name: write_blocks(folder / name, [part], block_size, vocab_size)
        for name, part in (("train", tokens), ("validation", tokens[:50]))
    }
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(TOKENIZER)
    manifest = {"format": FORMAT, "block_size": block_size, "vocab_size": vocab_size, "splits": splits}
    write_manifest(folder, manifest | {"tokenizer_sha256": tokenizer_sha256(TOKENIZER)})
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


def test_rows_overlap_by_one_so_that_each_token_is_predicted_once(tmp_path):
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
def test_smallest_integer_type_holds_every_id(tmp_path, vocab_size, dtype):
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


def test_open_data_gives_memory_mapped_rows(prepared):
    data = open_data(prepared)
    assert (len(data.train), len(data.validation)) == (249, 12)
    rows = data.train.rows([1, 0, 248])
    assert rows.dtype == torch.int64
    assert rows.tolist()[:2] == [[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]
    assert data.train.dataset.cache_files[0]["filename"].endswith(BLOCKS_FILE)
    assert data.manifest["splits"]["train"]["num_tokens"] == 1000


def test_rows_check_ids_against_the_vocabulary(prepared):
    blocks = open_data(prepared).train
    small = type(blocks)(blocks.dataset, blocks.block_size, vocab_size=6)
    assert small.rows([0]).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"Token 6 at position 7 is not below vocab_size \(6\)"):
        small.rows([0, 1])


def edited_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(manifest | changes))


def test_missing_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing holds no prepared data.*train\.prepare_data"):
        open_data(tmp_path / "nothing")


def test_other_format_is_refused(copied):
    edited_manifest(copied, format=99)
    with pytest.raises(ValueError, match=r"format 99, this version reads 1"):
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
    with pytest.raises(ValueError, match="has 249 rows of 5 ids, not 249 of 9"):
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


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 64, 65, 1000])
@pytest.mark.parametrize("batch_size", [1, 8, 50])
def test_each_epoch_visits_every_row_once(num_rows, batch_size):
    num_steps = -(-3 * num_rows // batch_size)
    stream = np.concatenate(
        [examples_at(step, seed=1, num_rows=num_rows, batch_size=batch_size) for step in range(num_steps)]
    )
    for epoch in range(3):
        assert sorted(stream[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_the_order_depends_on_epoch_and_seed_and_is_no_identity():
    def order(epoch, seed):
        return examples_at(epoch, seed=seed, num_rows=1000, batch_size=1000)

    orders = [order(0, 0), order(1, 0), order(0, 1), np.arange(1000)]
    for number, one in enumerate(orders):
        for other in orders[number + 1 :]:
            assert (one == other).sum() < 12  # a random order has 1 fixed point on average


def test_the_order_looks_uniform():
    """Chi-square of (tenth of the positions) x (tenth of the rows): 81 degrees of freedom, mean 81, deviation 13."""
    for num_rows in (1000, 1024, 5000):
        orders = [examples_at(0, seed=seed, num_rows=num_rows, batch_size=num_rows) for seed in range(20)]
        tenth = np.arange(num_rows) * 10 // num_rows
        counts = sum(np.histogram2d(tenth, order * 10 // num_rows, bins=10)[0] for order in orders)
        expected = counts.sum() / 100
        assert ((counts - expected) ** 2 / expected).sum() < 81 + 5 * 13
        neighbours = np.mean([np.mean(np.diff(order) == 1) for order in orders])
        assert neighbours < 5 / num_rows


def test_examples_are_a_pure_function_of_the_step():
    def at(step, batch_size=5):
        return examples_at(step, seed=3, num_rows=13, batch_size=batch_size).tolist()

    assert at(7) == at(7)
    assert at(0) + at(1) + at(2) + at(3) == at(0, batch_size=20)
    assert at(0) == [10, 1, 7, 3, 11]  # if you meant to change the order, runs cannot be continued: raise FORMAT
    assert max(at(10**15)) < 13


def test_sampler_gives_shifted_contiguous_micro_batches(prepared):
    sampler = StepSampler(open_data(prepared).train, batch_size=6, micro_batch_size=2, seed=0)
    batches = list(sampler.micro_batches(3))
    assert [number for number, _ in batches] == [0, 1, 2]
    examples = examples_at(3, seed=0, num_rows=249, batch_size=6)
    for number, batch in batches:
        assert batch.keys() == {"input_ids", "shift_labels"}
        assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, 4)
        assert all(tensor.is_contiguous() for tensor in batch.values())
        rows = sampler.source.rows(examples[2 * number : 2 * number + 2])
        assert torch.equal(batch["input_ids"], rows[:, :4])
        assert torch.equal(batch["shift_labels"], rows[:, 1:])


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_together_see_the_same_micro_batches(prepared, num_processes):
    blocks = open_data(prepared).train
    alone = dict(StepSampler(blocks, 8, 2, seed=5).micro_batches(11))
    together = {}
    for index in range(num_processes):
        sampler = StepSampler(blocks, 8, 2, 5, process_index=index, num_processes=num_processes)
        mine = dict(sampler.micro_batches(11))
        assert all(number % num_processes == index for number in mine)
        assert not together.keys() & mine.keys()
        together |= mine
    assert sorted(together) == sorted(alone) == [0, 1, 2, 3]
    assert all(torch.equal(together[number]["input_ids"], alone[number]["input_ids"]) for number in alone)


def test_batch_that_cannot_be_shared_is_refused(prepared):
    blocks = open_data(prepared).train
    with pytest.raises(
        ValueError, match=r"batch_size \(8\) must be a multiple of micro_batch_size \(2\) x processes \(3\) = 6"
    ):
        StepSampler(blocks, 8, 2, seed=0, num_processes=3)


def test_more_processes_than_sequences_are_refused(prepared):
    blocks = open_data(prepared).train
    num_processes = len(blocks) + 1
    with pytest.raises(ValueError, match=rf"{num_processes} processes share {len(blocks)} sequences.*start fewer"):
        StepSampler(blocks, num_processes, 1, seed=0, num_processes=num_processes)
