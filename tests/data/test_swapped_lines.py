"""Which statements of a function the example of swapped lines exchanges."""

import textwrap

import pandas
import pytest

from benchmarks import swapped_lines as benchmark
from examples.swapped_lines import make_data as swapped
from train.data.corpora import Corpus, Document

BEFORE = "def f(a, items):\n"


@pytest.mark.parametrize(
    ("body", "swaps"),
    [
        ("x = 1\nprint(x)", ["print(x)\nx = 1"]),
        ("x: int = 1\nx += a\ny = x", []),  # `x += a` reads x too, but ast calls it a store
        ("x = a\ny = 2\nprint(x)", []),  # the statement between does not need x
        ("a = 1\nprint(a)", []),  # a has a value already
        ("x = 0\nx = x + 1\nprint(x)", ["x = x + 1\nx = 0\nprint(x)"]),  # only the first value counts
        ("x = 1\nreturn x", []),
        ("x = 1\nraise x", []),
        ("global x\nx = 1\nprint(x)", []),
        ("import x\nx = 1\nprint(x)", []),
        ("x = 1\nf = lambda: x", []),  # reads x later
        ("x = 1\ndef g():\n    return x", []),
        ("x = 1\nfor x in items:\n    print(x)", []),  # sets x before it reads it
        ("x = 1\ny = [x for x in items]", []),
        ("x = 1; print(x)", []),
        ("x = 1  # one\nprint(x)  # two", ["print(x)  # two\nx = 1  # one"]),
        ("x = (1,\n     2)\n\nif a:\n    print(x)", ["if a:\n    print(x)\n\nx = (1,\n     2)"]),
        ("if a:\n    x = 1\n    print(x)", ["if a:\n    print(x)\n    x = 1"]),
        ("try:\n    pass\nexcept E as x:\n    x = 1\n    print(x)", []),
        ("match a:\n    case x:\n        x = 1\n        print(x)", []),
        ("x = 1\nprint(x, 'éééééééé'); b = 2", []),  # the columns of ast count bytes
    ],
)
def test_statements_that_cannot_change_places(body, swaps):
    found = list(swapped.pairs_of_source(BEFORE + textwrap.indent(body, "    "), "a.py"))
    assert [pair.swapped for pair in found] == [BEFORE + textwrap.indent(swap, "    ") for swap in swaps]


def test_a_swapped_function_reads_a_variable_without_a_value():
    source = BEFORE + "    total = len(items)\n    half = total / 2\n    return half"
    (pair,) = swapped.pairs_of_source(source, "a.py")
    functions = {}
    for text in (pair.original, pair.swapped):
        exec(text, functions)
        if text == pair.original:
            assert functions["f"](0, [1, 2]) == 1
        else:
            with pytest.raises(UnboundLocalError, match="total"):
                functions["f"](0, [1, 2])


def test_methods_come_without_decorators_and_indentation():
    source = (
        "if True:\n    class A:\n        @property\n        def b(self):\n            x = 1\n            print(x)\n"
    )
    source += "\f\ndef c(x):\n    def inner():\n        a = 1\n        print(a)\n    return inner\n"
    found = list(swapped.pairs_of_source(source, "a.py"))
    assert [pair.original.partition("(")[0] for pair in found] == ["def b", "def c"]
    assert found[0].swapped == "def b(self):\n    print(x)\n    x = 1"
    assert [pair.line for pair in found] == [5, 10]


def test_a_function_of_two_splits_stays_in_the_first(monkeypatch):
    monkeypatch.setattr(swapped, "MIN_PAIRS", 1)

    def corpus(**files):
        return Corpus("", "", lambda: (Document(f"{name}.py", text) for name, text in files.items()))

    def function(number):
        return f"def f(a):\n    x = {number}\n    print(x)\n"

    held_out = {f"file{number}": function(number) for number in range(8)}
    parts = swapped.split(corpus(read=function(3) + function(9)), corpus(**held_out))
    texts = {name: [pair.original for pair in pairs] for name, pairs in parts.items()}
    assert len(texts["train"]) == 2
    assert sorted(text for some in texts.values() for text in some) == sorted(
        function(number).strip() for number in [*range(8), 9]
    )
    monkeypatch.setattr(swapped, "MIN_PAIRS", 5)
    with pytest.raises(ValueError, match=r"The library has 2 pairs of statements for train\.csv, and at least 5"):
        swapped.split(corpus(read=function(3) + function(9)), corpus(**held_out))


def test_a_long_function_is_skipped():
    long = "    # " + swapped.MAX_CHARACTERS * "a" + "\n"
    assert not list(swapped.pairs_of_source(BEFORE + long + "    x = 1\n    print(x)", "a.py"))


def test_accuracy_of_rows_and_pairs():
    test = pandas.DataFrame({"label": 3 * ["in order", "swapped"], "place": ["a", "a", "b", "b", "c", "c"]})
    # a: the right order, one row on the wrong side of 0; b: equal; c: the wrong order, both rows wrong
    rows, pairs = benchmark.accuracies(test, [1.0, 2.0, 0.0, 0.0, 3.0, -1.0])
    assert rows == "33.3% +- 27.2%"  # a swapped, b in order; sqrt(1/3 * 2/3 / 3 pairs)
    assert pairs == "50.0% +- 28.9%"


def test_the_benchmark_names_the_folder_that_is_missing(tmp_path):
    line = ["--data_dir", str(tmp_path), "--base", str(tmp_path / "base"), "--model", str(tmp_path)]
    with pytest.raises(ValueError, match=rf"--base {tmp_path}/base is not a folder: run the commands of"):
        benchmark.main(line)
