"""The threads that compute and decode."""

import threading

from cpt_serving.inference.threads import Threads


def test_threads_outlive_a_job_that_fails(caplog):
    threads, done = Threads(1, "compute"), threading.Event()
    threads.offer(lambda: 1 // 0)
    threads.offer(done.set)
    assert done.wait(60)
    threads.close()
    assert "a job of the thread compute-0 failed" in caplog.text
