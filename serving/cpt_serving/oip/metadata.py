"""The protocol's metadata of the server."""

import cpt_deploy
from cpt_serving.oip.schemas import ServerMetadata

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "statistics",
]


def server_metadata() -> ServerMetadata:
    """Return the server's name and version, and its extensions of the protocol."""
    return ServerMetadata(name="cpt-deploy", version=cpt_deploy.__version__, extensions=EXTENSIONS)
