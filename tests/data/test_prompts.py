"""Prompts from held-out text: whole lines of paragraphs, found by a rule and not by taste."""

import pytest

from hf_scratch_gpt import ScratchGPTTokenizer
from train.data.blocks import open_data
from train.data.prompts import MAX_LENGTH, MAX_TOKENS, held_out_prompts
from train.prepare_data import main as prepare_data

FUNCTIONS = "\n\n\n".join(
    f"def function_{i}(argument):\n    value = argument + {i}\n    value *= {i}\n    return value" for i in range(200)
)
TABLES = "\n\n".join(f"| {i} | a cell of a table that goes on |\n" * 4 for i in range(80))
PROSE = "\n\n".join(f"Chapter {i}. " + "It was a bright cold day in April, and the clocks were striking. " * 9
                    for i in range(40))  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    def prompts(text, count=4):
        (tmp_path / "train.txt").write_text(text)
        (tmp_path / "validation.txt").write_text(text)
        tokenizer = ScratchGPTTokenizer.train_from_texts([text], 400, model_max_length=512, show_progress=False)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        prepare_data([
            f"--text={tmp_path / 'train.txt'}", f"--validation_text={tmp_path / 'validation.txt'}",
            f"--tokenizer={tmp_path / 'tokenizer'}", f"--output_dir={tmp_path / 'data'}", "--block_size=192",
        ])  # fmt: skip
        found = held_out_prompts(open_data(tmp_path / "data").validation, tokenizer, count)
        assert all(len(tokenizer(prompt)["input_ids"]) <= MAX_TOKENS for prompt in found)
        return found

    return prompts


def test_the_first_lines_of_functions_from_all_over_the_split(prompts):
    found = prompts(FUNCTIONS)
    assert len(set(found)) == 4
    numbers = []
    for prompt in found:
        first, *rest = prompt.splitlines()
        numbers.append(int(first.removeprefix("def function_").removesuffix("(argument):")))
        assert rest == [f"    value = argument + {numbers[-1]}", f"    value *= {numbers[-1]}"]
        assert prompt.endswith("\n")
    assert numbers == sorted(numbers)
    assert numbers[-1] - numbers[0] > 100


def test_long_lines_of_prose_are_cut_between_words(prompts):
    for prompt in prompts(PROSE, count=2):
        assert prompt.startswith("Chapter ")
        assert len(prompt) <= MAX_LENGTH
        assert PROSE[PROSE.index(prompt) + len(prompt)] == " "


def test_without_such_paragraphs_the_split_begins(prompts):
    (found,) = prompts(TABLES)
    assert TABLES.startswith(found)
    assert found
