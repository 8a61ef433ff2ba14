import asyncio
import os
import subprocess

import pytest

from cpt_serving.repository.orders import Order, OrderBook
from cpt_serving.web.errors import RequestError

LOAD, UNLOAD = Order("load", "one", None), Order("unload", "one", "2")


def another_process():
    """A process that lives until the test ends it, for its id."""
    return subprocess.Popen(["sleep", "600"])


def test_every_worker_carries_out_every_order_in_the_same_order(tmp_path):
    other = another_process()

    async def scenario():
        books = [OrderBook(tmp_path), OrderBook(tmp_path, other.pid)]
        done = [[], []]

        def doing(index):
            async def do(order):
                done[index].append(order)

            return do

        followers = [asyncio.create_task(book.follow(doing(index))) for index, book in enumerate(books)]
        await asyncio.gather(books[0].carry_out(LOAD), books[1].carry_out(UNLOAD), books[0].carry_out(UNLOAD))
        assert sorted(done[0], key=str) == [LOAD, UNLOAD, UNLOAD]
        assert done[0] == done[1]
        # A worker that starts later knows what was ordered, and nobody waits for it.
        late = OrderBook(tmp_path, os.getppid())
        assert late.so_far() == done[0]
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    try:
        asyncio.run(scenario())
    finally:
        other.kill()
        other.wait()


def test_a_failure_in_any_worker_is_the_answer_and_the_next_order_works(tmp_path):
    other = another_process()

    async def scenario():
        books = [OrderBook(tmp_path), OrderBook(tmp_path, other.pid)]

        async def works(order):
            pass

        async def refuses(order):
            if order == LOAD:
                raise RequestError(400, "Expected one to load")
            if order == UNLOAD:
                raise ValueError("a bug")

        followers = [asyncio.create_task(books[0].follow(works)), asyncio.create_task(books[1].follow(refuses))]
        for order, status in ((LOAD, 400), (UNLOAD, 500)):
            with pytest.raises(RequestError) as caught:
                await books[0].carry_out(order)
            assert caught.value.status == status
            assert "bug" not in caught.value.message
        await books[0].carry_out(Order("load", "two", None))
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    try:
        asyncio.run(scenario())
    finally:
        other.kill()
        other.wait()


def test_a_worker_that_died_is_not_waited_for(tmp_path):
    dead = another_process()
    dead.kill()
    dead.wait()

    async def scenario():
        OrderBook(tmp_path, dead.pid)
        book = OrderBook(tmp_path)

        async def do(order):
            pass

        follower = asyncio.create_task(book.follow(do))
        await book.carry_out(LOAD)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)

    asyncio.run(scenario())
