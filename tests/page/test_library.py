"""The models of the page."""

import pytest

from train.page.library import OPEN_MODELS, Library, run_of


def test_the_list_has_the_checkpoints_of_a_run(folders):
    library = Library([str(folders.model), str(folders.gpt2)])
    assert library.names == [str(folders.model), str(folders.run / "checkpoint-00000020"), str(folders.gpt2)]
    assert run_of(str(folders.model)) == run_of(str(folders.run)) == folders.run
    assert run_of(str(folders.gpt2)) is None
    assert run_of("alice/tiny") is None


def test_a_public_page_opens_only_the_models_of_its_list(folders):
    library = Library([str(folders.gpt2)], is_private=False)
    assert library.open(str(folders.gpt2)).positions == 64
    with pytest.raises(ValueError, match="only the models of its list"):
        library.open(str(folders.model))


def test_models_and_texts_are_remembered_but_not_forever(folders):
    library = Library([str(folders.model)])
    opened = library.open(str(folders.model))
    assert library.open(str(folders.model)) is opened
    inside = opened.inside("The a")
    assert opened.inside("The a") is inside
    for number in range(20):
        opened.inside(f"The {number}")
    assert opened.inside("The a") is not inside
    assert OPEN_MODELS == 2
    library.open(str(folders.gpt2))
    library.open(str(folders.classifier))
    assert library.open(str(folders.model)) is not opened


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "Choose a model"),
        ("empty", "is not a model folder"),
        ("no tokenizer", "has no tokenizer"),
        ("gone", "does not exist"),
    ],
)
def test_folders_that_are_no_model_get_a_sentence(folders, name, message):
    with pytest.raises(ValueError, match=message):
        Library(["x"]).open(str(folders.top / name) if name else name)


def test_a_model_that_is_too_large_gets_a_sentence(folders, monkeypatch):
    monkeypatch.setattr("train.model.load.memory_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"needs .* GB of memory"):
        Library(["x"]).open(str(folders.gpt2))


def test_a_classifier_writes_nothing_and_an_empty_text_has_no_inside(folders):
    library = Library([str(folders.model)])
    with pytest.raises(ValueError, match="is a classifier"):
        library.open(str(folders.classifier)).inside("a")
    with pytest.raises(ValueError, match="no text yet"):
        library.open(str(folders.model)).inside("")
    with pytest.raises(ValueError, match="the limit is 256"):
        library.open(str(folders.model)).inside("a b " * 300)
