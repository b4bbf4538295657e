"""Rows with labels become tokens; mistakes in them get short messages."""

import hashlib
import json

import numpy as np
import pytest

from hf_scratch_gpt import ScratchGPTTokenizer
from train.data.labelled_texts import LabelledTexts, label_names, tokenize
from train.data.rows import Row

COLUMNS = ("text", "label")


@pytest.fixture(scope="module")
def tokenizer(base):
    return ScratchGPTTokenizer.from_pretrained(base)


def rows(labels):
    return [Row(f"x:{i}", {"label": label, "text": f"The number {i}"}) for i, label in enumerate(labels)]


def test_a_column_of_text_is_not_taken_for_labels():
    titles = [f"title {i} " + "x" * 200 for i in range(1200)]
    with pytest.raises(ValueError, match=r"column 'label' has 1,200 different values in 1,300 training rows \(title 0 x"
                       r".*, \.\.\. \(1,200 in all\)\).*--label_column") as error:  # fmt: skip
        label_names(rows([*titles, *titles[:100]]), "label")
    assert len(str(error.value)) < 500
    assert len(label_names(rows(titles * 2), "label")) == 1200  # many labels, each on two rows
    assert len(label_names(rows(titles[:99]), "label")) == 99


def test_an_unknown_label_is_shown_with_five_known_ones(tokenizer):
    names = [f"label {i}" for i in range(1200)]
    with pytest.raises(
        ValueError, match=r"x:0: the label '1x+ is not .* label 0, .*, label 4, \.\.\. \(1,200 in all\)\."
    ) as e:
        tokenize(rows(["1" + "x" * 5000]), COLUMNS, names, tokenizer, 64)
    assert len(str(e.value)) < 400


def test_batches_of_texts_give_the_ids_of_all_at_once(tokenizer, monkeypatch):
    some = rows(["a", "b"] * 20)
    whole = tokenize(some, COLUMNS, ["a", "b"], tokenizer, 3)
    monkeypatch.setattr("train.data.labelled_texts.ENCODE_BATCH", 7)
    parts = tokenize(some, COLUMNS, ["a", "b"], tokenizer, 3)
    assert parts.ids == whole.ids
    assert parts.num_truncated == whole.num_truncated == 40
    assert parts.sha256 == whole.sha256


def test_the_text_that_cannot_be_encoded_is_named(tokenizer):
    class Picky:
        pad_token_id, padding_side = 0, "left"

        def __call__(self, texts, **options):
            if any("number 7" in text for text in texts):
                raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")  # as tokenizers does
            return tokenizer(texts, **options)

    with pytest.raises(ValueError, match=r"x:7: the tokenizer cannot encode the text 'The number 7' \(WordLevel error"):
        tokenize(rows(["a", "b"] * 5), COLUMNS, ["a", "b"], Picky(), 64)


@pytest.mark.parametrize("ids", [[], [[]], [[1, 2], [3]]])
def test_the_hash_is_that_of_the_json(ids):
    texts = LabelledTexts(ids, np.arange(len(ids)), 0, "left")
    assert texts.sha256 == hashlib.sha256(json.dumps([ids, list(range(len(ids)))]).encode()).hexdigest()
