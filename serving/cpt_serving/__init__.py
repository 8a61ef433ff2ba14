"""The server of bundles over HTTP and gRPC, and its clients. Never imports torch; public names are resolved lazily."""

import importlib

_PUBLIC = {
    "AsyncPredictClient": "cpt_serving.client",
    "PredictClient": "cpt_serving.client",
    "ServeSettings": "cpt_serving.settings",
    "create_app": "cpt_serving.app",
    "load_settings": "cpt_serving.settings",
    "run": "cpt_serving.server",
}

__all__ = ["AsyncPredictClient", "PredictClient", "ServeSettings", "create_app", "load_settings", "run"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cpt_serving' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
