"""Addresses of servers, as people write them."""

import ipaddress

import httpx2

from cpt_deploy.errors import UsageError


def normalize_address(url: str) -> httpx2.URL:
    """Return the address of a server; `http://` may be left out, and `/predict` may stand at its end.

    Raises:
        UsageError: If it is none.
    """
    try:
        parsed = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL as error:
        raise UsageError(f"Expected the address of a server, but got {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"Expected an address like http://127.0.0.1:8000, but got {url!r}")
    path = parsed.path.rstrip("/").removesuffix("/predict")
    return parsed.copy_with(path=path or "/", query=None, fragment=None)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine; a proxy of the environment could not reach it."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
