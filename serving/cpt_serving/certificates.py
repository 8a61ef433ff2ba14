"""The TLS certificate of the server; it is reloaded when its files change."""

import asyncio
import logging
import os
import ssl
from pathlib import Path

from cpt_deploy.errors import DataError

logger = logging.getLogger(__name__)

_LOOK_S = 1.0


class Certificate:
    """A certificate and its key; new connections use the current content of the files.

    Args:
        chain: Certificate with its chain, in PEM.
        key: Its private key in PEM, if it is in another file.

    Raises:
        DataError: If the certificate or the key cannot be used.
    """

    def __init__(self, chain: Path, key: Path | None) -> None:
        self.chain = chain
        self.key = key or chain
        self.version = 0
        """Number of loads so far."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._seen: object = None
        self._load()

    def pem(self) -> tuple[bytes, bytes]:
        """Return the key and the chain as bytes, in the order that gRPC expects."""
        return self._pem

    def reload(self) -> None:
        """Load the files again if they have changed; if they cannot be used, the last good ones stay in use."""
        if self._fingerprint() == self._seen:
            return
        try:
            self._load()
        except DataError as error:
            logger.error("%s; the last certificate stays", error.message)
        else:
            logger.info("the certificate %s was reloaded", self.chain)

    async def watch(self) -> None:
        """Check the files for changes every second; never returns."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.reload()

    def _load(self) -> None:
        self._seen = self._fingerprint()
        # Loading a mismatched pair would leave the context with only one of the two.
        _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.chain, self.key)
        _load_pair(self.context, self.chain, self.key)
        self._pem = self.key.read_bytes(), self.chain.read_bytes()
        self.version += 1

    def _fingerprint(self) -> object:
        try:
            return [
                (file.stat().st_mtime_ns, file.stat().st_ino, file.stat().st_size) for file in (self.chain, self.key)
            ]
        except OSError as error:
            return error.errno


def _load_pair(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except OSError as error:
        if isinstance(error, ssl.SSLError):
            reason = "they are no matching pair in PEM"
        else:
            reason = os.strerror(error.errno) if error.errno else str(error)
        files = chain if key == chain else f"{chain} and {key}"
        raise DataError(f"Expected a certificate and its key in {files}, but got: {reason}") from error
    except ValueError as error:
        raise DataError(f"Expected a private key without a password, but that of {chain} has one") from error


def _no_password() -> str:
    raise ValueError
