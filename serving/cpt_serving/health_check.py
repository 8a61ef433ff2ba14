"""Check whether the server of this container is ready: `python -m cpt_serving.health_check`, for Docker's HEALTHCHECK.

It asks at the address in the server's variables and configuration file, over TLS if they name a certificate. It loads
the standard library and YAML only, because it is run every few seconds.
"""

import http.client
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

import yaml

_PREFIX = "CPT_SERVE_"
_TIMEOUT_S = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> str | None:
    """Return an error message if the server is not ready."""
    settings = {"host": "127.0.0.1", "port": "8000"}
    if config := os.environ.get(f"{_PREFIX}CONFIG"):
        settings |= yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
    settings |= {
        name.removeprefix(_PREFIX).lower(): value for name, value in os.environ.items() if name.startswith(_PREFIX)
    }
    host = _ANY.get(settings["host"], settings["host"])
    scheme = "https" if settings.get("tls_cert") else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings['port']}/health/ready"
    # The certificate names the address for clients, not this one.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # This machine is asked directly, without the proxies of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(500).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(main())
