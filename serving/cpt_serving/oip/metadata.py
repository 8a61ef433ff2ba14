"""What the protocol tells of the server."""

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
    """Return who serves, and which extensions of the protocol it knows."""
    return ServerMetadata(name="cpt-deploy", version=cpt_deploy.__version__, extensions=EXTENSIONS)
