import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from cpt_serving import create_app, load_settings


@pytest.fixture(scope="module")
def server(shared_bundle) -> Iterator[tuple[str, object]]:
    """The address of a real server in a thread, and its app."""
    app = create_app(load_settings(bundle=shared_bundle.path))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started and thread.is_alive():
        thread.join(0.01)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}", app
    running.should_exit = True
    thread.join(20)


class Scripted:
    """A server that answers as a test says; counts connections and requests.

    Args:
        answer: Maps the number of a request to the bytes of its answer; `None` hangs up, `b""` says nothing.
    """

    def __init__(self, answer: Callable[[int], bytes | None]) -> None:
        self.answer = answer
        self.connections = 0
        self.requests = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or b"0"
                self.bodies.append(await reader.readexactly(int(length)))
                self.heads.append(head)
                said = self.answer(self.requests)
                self.requests += 1
                if said is None:
                    return
                writer.write(said)
                await writer.drain()
                if b"connection: close" in said.lower():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@contextmanager
def scripted_server(answer: Callable[[int], bytes | None]) -> Iterator[tuple[str, Scripted]]:
    """The address of a scripted server in a thread, and the server."""
    script, started, stop = Scripted(answer), threading.Event(), []

    async def main() -> None:
        server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
        end = asyncio.Event()
        stop.extend([asyncio.get_running_loop(), end, server.sockets[0].getsockname()[1]])
        started.set()
        await end.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(10)
    loop, end, port = stop
    try:
        yield f"http://127.0.0.1:{port}", script
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


@pytest.fixture
def scripted():
    """Makes a server that answers as the test says."""
    return scripted_server
