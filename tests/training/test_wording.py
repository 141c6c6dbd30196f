from keras_mas.training.wording import did_you_mean, one_of


def test_values_are_quoted_and_long_lists_cut():
    assert one_of(["a", 1]) == "'a', 1"
    assert one_of("abc", limit=3) == "'a', 'b', 'c'"
    assert one_of("abcd", limit=3) == "'a', 'b', 'c', …"


def test_only_what_is_near_is_suggested():
    assert did_you_mean("clases", ["name", "classes"]) == " Did you mean 'classes'?"
    assert did_you_mean("colour", ["name", "classes"]) == ""
