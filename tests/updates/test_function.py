"""Sources of the kind `python`: an async iterator of one's own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from relay import Update
from tests.updates.conftest import Watch
from tests.waiting import wait_for

SOURCE: dict[str, Any] = {"kind": "python", "url": None, "items": None, "private": None, "version": None}
HERE = "tests.updates.test_function"


async def counting(options: dict[str, Any], place: str | None) -> AsyncIterator[Update]:
    """Two at a time, from the place on, of which the first has been told before."""
    for number in range(max(0, int(place or 0)), int(place or 0) + 2):
        yield Update({"id": number, "unit": options["unit"]}, place=str(number))


async def failing(options: dict[str, Any], place: str | None) -> AsyncIterator[Update]:
    """Fails behind each update, and goes on from there."""
    number = int(place or 0) + 1
    if number < 4:
        yield Update({"id": number}, place=str(number))
        raise ZeroDivisionError("a fault of its own")
    await asyncio.Event().wait()


async def rubbish(options: dict[str, Any], place: str | None) -> AsyncIterator[Any]:
    yield {"id": 1}


def test_it_is_asked_again_from_the_place_of_the_last_update(watch: Watch) -> None:
    watched = watch(**SOURCE, call=f"{HERE}:counting", options={"unit": "C"})
    wait_for("some are there", lambda: len(watched.data()) >= 5)
    found = watched.data()
    assert found == [{"id": number, "unit": "C"} for number in range(len(found))]


def test_one_that_fails_goes_on_from_its_place(watch: Watch) -> None:
    watched = watch(**SOURCE, call=f"{HERE}:failing")
    watched.tells("ZeroDivisionError: a fault of its own")
    wait_for("all are there", lambda: watched.data() == [{"id": 1}, {"id": 2}, {"id": 3}])


def test_what_is_no_update_is_told(watch: Watch) -> None:
    watched = watch(**SOURCE, call=f"{HERE}:rubbish")
    watched.tells("yields a dict, which is no Update")
