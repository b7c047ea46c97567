"""The room where questions wait for the models: what has come while one answer was computed is answered together next.

Nobody waits for company: a question that comes alone is computed at once. One thread computes, since the models use all cores
already; the event loop only ever waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fleetune.cohort.lanes import single_threads
from fleetune.serve.models import Answer, Asked, Models

# Texts of one turn. More would keep those that come next waiting, and gain nothing: passes are full long before.
MOST_TEXTS = 1024


class Full(Exception):
    """As many questions wait as may."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    asked: Asked
    answer: asyncio.Future[Answer]


class WaitingRoom:
    """Questions in the order that they came. most: how many may wait at once."""

    def __init__(self, models: Models, most: int) -> None:
        self._models = models
        self._most = most
        self._line: deque[_Waiting] = deque()
        self._came = asyncio.Event()
        # One thread within each operation, as in a lane: with more of them beside those of the main thread, each operation
        # waited for its own (49 ms for a text of MiniLM instead of 22).
        self._thread = single_threads(1, "fleetune-serve")

    async def ask(self, asked: Asked) -> Answer:
        """Wait for the answer. Full: nothing was taken; DataError: the model gives no numbers; else what computing raised."""
        if len(self._line) >= self._most:
            self._line = deque(one for one in self._line if not one.answer.done())
        if len(self._line) >= self._most:
            raise Full
        one = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._line.append(one)
        self._came.set()
        return await one.answer

    async def work(self) -> None:
        """Answer whatever comes, until cancelled."""
        while True:
            await self._came.wait()
            turn = self._turn()
            if not turn:
                self._came.clear()
                continue
            for one, answer in zip(turn, await self._answers(turn), strict=True):
                _give(one.answer, answer)

    async def _answers(self, turn: Sequence[_Waiting]) -> Sequence[Answer | Exception]:
        """What is to be said to each. Where they cannot be computed together, each is alone: one of them may be to blame."""
        loop = asyncio.get_running_loop()
        asked = [one.asked for one in turn]
        try:
            return await loop.run_in_executor(self._thread, self._models.answer, asked)
        except Exception as error:
            if len(turn) == 1:
                return [error]  # whoever asked is told; the next may do better
        return [answer for one in turn for answer in await self._answers([one])]

    def _turn(self) -> list[_Waiting]:
        """The next questions, without those whose askers have gone."""
        turn: list[_Waiting] = []
        texts = 0
        while self._line and (not turn or texts + len(self._line[0].asked.first) <= MOST_TEXTS):
            one = self._line.popleft()
            if not one.answer.done():
                turn.append(one)
                texts += len(one.asked.first)
        return turn


def _give(waiting: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if waiting.done():
        return
    if isinstance(answer, Exception):
        waiting.set_exception(answer)
    else:
        waiting.set_result(answer)
