"""What is done later is done beside, and what it gives or raises comes back where it is wanted."""

from __future__ import annotations

import threading

import pytest

from compress.kernels.later import Later


def test_it_begins_at_once_and_gives_its_result_again_and_again() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert go_on.wait(10)
        return threading.current_thread().name

    later = Later(work)
    assert begun.wait(10)
    go_on.set()
    assert later.result() == later.result() != threading.current_thread().name


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_is_raised_where_the_result_is_wanted(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        Later(work).result()
    assert raised.value is error
