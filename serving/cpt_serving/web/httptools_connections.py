"""The limits of `connections` for uvicorn's protocol in C, where httptools is installed."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cpt_serving.web.connections import HeadLimits


class TimedHttpToolsProtocol(HeadLimits, HttpToolsProtocol):
    """The protocol in C."""
