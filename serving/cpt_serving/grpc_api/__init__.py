"""The Open Inference Protocol over gRPC. The modules in here need the extra `grpc`: import them only on demand."""

from cpt_deploy.errors import MissingExtraError


def require_grpc() -> None:
    """Raise an error unless the packages for gRPC are installed.

    Raises:
        MissingExtraError: With the command that installs them.
    """
    try:
        import grpc_health.v1  # noqa: F401
        import grpc_reflection.v1alpha  # noqa: F401
        from tritonclient.grpc import service_pb2  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"Expected the extra for gRPC to be installed, but got: {error}", extra="grpc"
        ) from error
