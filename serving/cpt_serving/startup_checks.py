"""Checks of the settings before the server listens, so that a wrong setting is an error at the start."""

import ipaddress
import logging

from cpt_deploy.bundle.integrity.signatures import public_keys
from cpt_deploy.errors import UsageError
from cpt_serving.access.api_keys import read_keys
from cpt_serving.certificates import Certificate
from cpt_serving.settings import ServeSettings
from cpt_serving.telemetry.access_log import open_access_log
from cpt_serving.telemetry.tracing import require_tracing

logger = logging.getLogger(__name__)


def check_settings(settings: ServeSettings) -> None:
    """Raise an error if a file named in the settings cannot be used or a package that they need is missing.

    Raises:
        DataError: If the API keys, the public keys, the certificate, its key or the access log cannot be used.
        UsageError: If a key for TLS comes without a certificate.
        MissingExtraError: If tracing is asked for and not installed.
    """
    if settings.api_keys is not None:
        read_keys(settings.api_keys)
    if settings.require_signature is not None:
        public_keys(settings.require_signature)
    _check_tls(settings)
    if settings.tracing == "on":
        require_tracing()
    access_log = open_access_log(settings)
    if access_log is not None:
        access_log.close()


def warn_if_exposed(settings: ServeSettings, address: str) -> None:
    """Log a warning if other machines can reach the address and no API key is required.

    Args:
        settings: Settings of the server, for whether there are keys.
        address: Address of the listening socket.
    """
    if settings.api_keys is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        logger.warning(
            "everyone who can reach %s can send requests and read the metrics: --api-keys FILE requires a key, "
            "and without --host only this machine can connect",
            address,
        )


def _check_tls(settings: ServeSettings) -> None:
    if settings.tls_cert is not None:
        Certificate(settings.tls_cert, settings.tls_key)
    elif settings.tls_key is not None:
        raise UsageError(f"Expected a certificate for the key {settings.tls_key}, but got none", hint="--tls-cert")
