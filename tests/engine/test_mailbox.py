"""The mailbox: who waits for the end is not woken for every piece."""

import asyncio
import threading
import time

from specrouter_llm.engine.handle import Mailbox


def test_a_consumer_that_waits_for_a_kind_sleeps_until_it_is_there():
    """It then gets everything, in order."""
    mailbox: Mailbox = Mailbox()
    got = []
    consumer = threading.Thread(target=lambda: got.extend(mailbox.get(str) for _ in range(3)))
    consumer.start()
    mailbox.put(1)
    mailbox.put(2)
    time.sleep(0.05)
    assert got == []
    mailbox.put("end")
    consumer.join(5)
    assert got == [1, 2, "end"]


async def test_the_same_for_a_task():
    mailbox: Mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.aget(str))
    await asyncio.sleep(0)
    mailbox.put(1)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    threading.Thread(target=mailbox.put, args=("end",)).start()
    assert await asyncio.wait_for(waiting, 5) == 1
    assert await mailbox.aget() == "end"


def test_a_consumer_that_takes_anything_is_woken_by_anything():
    """Also after it has waited for a kind before."""
    mailbox: Mailbox = Mailbox()
    mailbox.put("end")
    assert mailbox.get(str) == "end"
    threading.Timer(0.02, mailbox.put, args=(1,)).start()
    assert mailbox.get() == 1


def test_who_waits_for_one_kind_reads_no_other_before():
    mailbox: Mailbox = Mailbox()
    assert mailbox.is_awaited(int)
    mailbox.put("end")
    mailbox.get(str)
    assert [mailbox.is_awaited(kind) for kind in (str, int)] == [True, False]
