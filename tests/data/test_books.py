"""A book: Project Gutenberg's license, and passages that are held out of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.corpora import open_corpora, split_corpus, text_corpus
from train.data.gutenberg import without_gutenberg
from train.data.passages import LARGEST_SHIFT, held_out_passages
from train.settings.corpus import CorpusArguments
from train.settings.reading import Reading

HEADER = """\ufeffThe Project Gutenberg eBook of The Tale

This ebook is for the use of anyone anywhere in the United States.

Title: The Tale

"""
CREDITS = "\n\n\nProduced by Jane Doe and the Online\nDistributed Proofreading Team\n\n\n"
BOOK = "THE TALE\n\n" + "".join(f"Paragraph {i} of the tale.\nIt has two lines.\n\n" for i in range(10000))
LICENSE = "\nSTART: FULL LICENSE\n\n" + "THE FULL PROJECT GUTENBERG LICENSE. Do not copy.\n" * 400
EBOOK = "PROJECT GUTENBERG EBOOK"
MARKS = {
    "today": (f"*** START OF THE {EBOOK} THE TALE ***", f"*** END OF THE {EBOOK} THE TALE ***"),
    "2010": (
        f"***START OF THE {EBOOK} THE\nTALE***",
        f"End of the Project Gutenberg EBook of The Tale, by Anon\n\n*** END OF THIS {EBOOK} THE TALE ***",
    ),
}


def book_of(marks, line_end="\n"):
    start, end = MARKS[marks]
    return f"{HEADER}{start}{CREDITS}{BOOK}\n\n{end}\n{LICENSE}".replace("\n", line_end)


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_only_the_book_is_left(tmp_path, marks, line_end):
    path = tmp_path / "pg1.txt"
    path.write_bytes(book_of(marks, line_end).encode())
    (document,) = text_corpus([path], reading=Reading(strip_gutenberg=True))
    assert document.text == BOOK.rstrip("\n") + "\n"


def test_text_without_marks_is_kept():
    for text in (BOOK, "", "*** START OF A CHAPTER ***\nx\n"):
        assert without_gutenberg(text) == text
    start, _end = MARKS["today"]
    assert without_gutenberg(f"{start}\nbook") == "book\n"


def test_a_note_names_the_option_if_it_is_not_set(tmp_path, capsys):
    path, other = tmp_path / "pg1.txt", tmp_path / "notes.txt"
    path.write_text(book_of("today"))
    other.write_text("mine")
    before = text_corpus([path, other])
    said = capsys.readouterr().err
    assert "license of Project Gutenberg in pg1.txt" in said
    assert "--strip_gutenberg true removes them" in said
    after = text_corpus([path, other], reading=Reading(strip_gutenberg=True))
    assert capsys.readouterr().err == ""
    assert before.fingerprint != after.fingerprint
    assert next(document.text for document in after) == "mine"
    text_corpus([other], reading=Reading(strip_gutenberg=True))
    assert "no text file has the header of Project Gutenberg" in capsys.readouterr().err


def test_held_out_passages_come_from_all_of_the_book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    train, validation = open_corpora(CorpusArguments(text=[str(path)]))
    kept, held_out = list(train), list(validation)
    assert (len(kept), len(held_out)) == (11, 10)
    pieces = sorted([*kept, *held_out], key=lambda document: int(document.name.partition("#")[2]))
    assert "".join(document.text for document in pieces) == BOOK  # complete, disjoint, in order
    assert [piece in held_out for piece in pieces] == [False, True] * 10 + [False]
    assert all(document.text.startswith("Paragraph") and document.text.endswith("\n\n") for document in held_out)
    share = sum(len(document.text) for document in held_out) / len(BOOK)
    assert share == pytest.approx(0.05, abs=0.003)
    assert "5 % of its only document, in 10 passages" in validation.description
    assert list(open_corpora(CorpusArguments(text=[str(path)]))[1]) == held_out


@given(
    text=st.text(alphabet="ab \n", max_size=300).map(lambda text: text * 60),
    fraction=st.floats(0.001, 0.999),
)
def test_passages_are_disjoint_and_in_order(text, fraction):
    passages = held_out_passages(text, fraction)
    edges = [edge for passage in passages for edge in passage]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(text) for edge in edges)
    held_out = sum(last - first for first, last in passages)
    assert abs(held_out - fraction * len(text)) <= 2 * LARGEST_SHIFT * max(len(passages), 1)


def test_the_end_is_for_a_single_document(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    with pytest.raises(ValueError, match="--validation_part end is for a single document"):
        split_corpus(text_corpus([tmp_path]), 0.1, "end")
    with pytest.raises(ValueError, match=r"--validation_part \(end\) and --validation_text exclude each other"):
        CorpusArguments(text=["a"], validation_text=["b"], validation_part="end")
