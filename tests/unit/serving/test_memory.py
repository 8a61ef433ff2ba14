"""The memory budget of decoding: in order of arrival, and not for work that nobody waits for."""

import threading
import time
from contextlib import suppress

from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.threads import AbandonedError, Work


def test_memory_is_given_in_order_and_not_to_those_who_left():
    budget, taken, give_back = MemoryBudget(10), [], threading.Event()

    def fixed(name, size, work):
        with suppress(AbandonedError), budget.holding(size, work):
            taken.append(name)
            assert give_back.wait(60)

    works = {name: Work() for name in "abcd"}
    threads = []
    for name, size in (("a", 8), ("b", 8), ("c", 8), ("d", 2)):
        threads.append(threading.Thread(target=fixed, args=(name, size, works[name])))
        threads[-1].start()
        while len(budget._line) + len(taken) < len(threads):
            time.sleep(0.001)
    # There would be room for d, but others came before.
    assert taken == ["a"]
    works["b"].abandoned = True
    threads[1].join(60)
    assert taken == ["a"]
    give_back.set()
    for thread in threads:
        thread.join(60)
    assert taken == ["a", "c", "d"]
