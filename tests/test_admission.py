"""How many streams a process holds, in all and of each who asks."""

from contextlib import ExitStack

import pytest

from relay.admission import Admission
from relay.errors import TooMany


def test_a_process_holds_as_many_as_it_may_and_no_more() -> None:
    admission = Admission(3, 10)
    with ExitStack() as held:
        for number in range(3):
            held.enter_context(admission.hold(f"sub-{number}"))
        with pytest.raises(TooMany) as caught, admission.hold("sub-3"):
            pass
        assert caught.value.code == "too_many_streams"
        assert caught.value.retry_after_s
        assert admission.held == 3
    assert admission.held == 0


def test_one_who_asks_holds_as_many_as_each_may() -> None:
    admission = Admission(10, 2)
    with admission.hold("ada"), admission.hold("ada"):
        with pytest.raises(TooMany, match="you hold 2 streams"), admission.hold("ada"):
            pass
        with admission.hold("bob"):
            assert admission.held == 3
    with admission.hold("ada"):
        assert admission.held == 1


def test_a_place_is_given_back_however_it_ends() -> None:
    admission = Admission(1, 1)
    for error in (RuntimeError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), admission.hold("ada"):
            raise error
    with admission.hold("ada"):
        pass


def test_who_holds_nothing_costs_nothing() -> None:
    admission = Admission(10, 2)
    for number in range(100):
        with admission.hold(f"sub-{number}"):
            pass
    assert not admission._each


def test_a_refusal_takes_no_place() -> None:
    admission = Admission(10, 1)
    with admission.hold("ada"):
        for _ in range(3):
            with pytest.raises(TooMany), admission.hold("ada"):
                pass
        assert admission.held == 1
        assert admission._each == {"ada": 1}
