"""TLS handshakes of new connections, which count as connections before they are complete."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from cpt_serving.web.connections import Connections

logger = logging.getLogger(__name__)

_RETRY_S = 0.5


async def accept(
    listener: socket.socket, connections: Connections, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol]
) -> None:
    """Accept connections over TLS until cancelled; then nothing listens any more.

    uvicorn's own listening would count a connection only after its handshake, for which it gives a client a minute.

    Args:
        listener: Socket that listens.
        connections: The connections of the server, in which handshakes count.
        tls: Context of TLS.
        protocol: Makes the protocol of a connection.
    """
    listener.setblocking(False)
    try:
        while True:
            await _accept_next(listener, connections, tls, protocol)
            await asyncio.sleep(0)  # While clients queue, accepting does not wait.
    finally:
        listener.close()


async def _accept_next(
    listener: socket.socket, connections: Connections, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol]
) -> None:
    loop = asyncio.get_running_loop()
    try:
        client, _ = await loop.sock_accept(listener)
    except OSError as error:  # there are too many files, or the client has left
        logger.error("a connection could not be accepted: %s", error.strerror)
        await asyncio.sleep(_RETRY_S)
        return
    if connections.full:
        connections.refused()
        client.close()
        return
    handshake = loop.create_task(_shake(client, tls, protocol, connections.head_timeout_s))
    connections.shaking.add(handshake)
    handshake.add_done_callback(connections.shaking.discard)


async def _shake(
    client: socket.socket, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol], timeout_s: float
) -> None:
    loop = asyncio.get_running_loop()
    try:
        client.setblocking(False)
        await loop.connect_accepted_socket(protocol, client, ssl=tls, ssl_handshake_timeout=timeout_s)
    except OSError as error:  # no handshake, or none in time; the connection is closed
        logger.debug("no TLS handshake: %s", error)
