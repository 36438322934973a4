"""The one tree of errors: how they end the program, and what they say to do next."""

import pytest

from compress.formats.errors import (
    CompressError,
    GateError,
    InputError,
    RefusedError,
    StorageError,
    UsageError,
    suggest,
    within,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(CompressError, 1), (UsageError, 2), (InputError, 2), (RefusedError, 3), (GateError, 4), (StorageError, 1)],
)
def test_every_error_has_its_exit_code_and_hint(kind, code):
    error = kind("what and where", "what to do next")
    assert (str(error), error.hint, error.exit_code) == ("what and where", "what to do next", code)
    assert isinstance(error, CompressError)


def test_a_word_that_is_near_is_suggested_or_all_are_listed():
    assert suggest("grup_size", ["group_size", "bits"]) == "; did you mean 'group_size'?"
    assert suggest("zzz", ["b", "a"]) == "; valid: a, b"


def test_an_error_knows_the_option_that_it_speaks_of():
    error = InputError("absent.txt is not there")
    with pytest.raises(InputError) as caught, within("data", 1), within("path"):
        raise error
    assert caught.value is error and error.at == ("data", 1, "path")
    with pytest.raises(KeyError), within("data"):
        raise KeyError("no error of ours")
