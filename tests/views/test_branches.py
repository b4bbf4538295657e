"""Texts side by side."""

import pytest

from train.views.branches import Branches

START = Branches.of([1, 2])


def test_a_token_goes_to_the_end_of_the_text():
    grown = START.take(3).take(4)
    assert grown.texts == ((1, 2, 3, 4),)
    assert (grown.current, grown.at, grown.ids) == (0, 4, (1, 2, 3, 4))


def test_another_token_in_the_middle_begins_a_text_beside_it():
    grown = START.take(3).take(4).go(0, 2).take(5)
    assert grown.texts == ((1, 2, 3, 4), (1, 2, 5))
    assert (grown.current, grown.ids) == (1, (1, 2, 5))


def test_the_same_token_only_goes_on():
    grown = START.take(3).take(4).go(0, 2).take(3)
    assert grown.texts == ((1, 2, 3, 4),)
    assert grown.at == 3


def test_a_token_of_another_text_goes_there():
    grown = START.take(3).go(0, 2).take(5).go(0, 2).take(5)
    assert grown.texts == ((1, 2, 3), (1, 2, 5))
    assert grown.current == 1


def test_what_follows_can_be_deleted():
    grown = START.take(3).take(4).go(0, 3).cut()
    assert (grown.texts, grown.at) == (((1, 2, 3),), 3)
    assert START.take(3).go(0, 2).cut() == START


def test_a_text_that_becomes_the_beginning_of_another_goes():
    grown = START.take(3).take(4).go(0, 3).take(5).go(1, 3).cut()
    assert grown.texts == ((1, 2, 3, 4),)
    assert (grown.current, grown.at) == (0, 3)


@pytest.mark.parametrize(("text", "at"), [(1, 2), (0, 1), (0, 4), (-1, 2)])
def test_other_places_are_refused(text, at):
    with pytest.raises(ValueError, match="no place"):
        START.take(3).go(text, at)
