import pytest

from keras_mas.training.wording import amount, did_you_mean, one_of, sentence


def test_values_are_quoted_and_long_lists_cut():
    assert one_of(["a", 1]) == "'a', 1"
    assert one_of("abc", limit=3) == "'a', 'b', 'c'"
    assert one_of("abcd", limit=3) == "'a', 'b', 'c', …"


def test_only_what_is_near_is_suggested():
    assert did_you_mean("clases", ["name", "classes"]) == " Did you mean 'classes'?"
    assert did_you_mean("MAS", ["Mas", "ewc"]) == " Did you mean 'Mas'?"
    assert did_you_mean("colour", ["name", "classes"]) == ""


@pytest.mark.parametrize(
    ("count", "words"),
    [(999, "999 bytes"), (1000, "1.0 kB"), (64_000_000, "64.0 MB"), (3.01e15, "3,010.0 TB")],
)
def test_bytes_in_words(count, words):
    assert amount(count) == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Lower it", "Lower it."), ("Lower it.",) * 2, ("Is it there?",) * 2, ("It is!",) * 2],
)
def test_a_sentence_ends_once(text, expected):
    assert sentence(text) == expected
