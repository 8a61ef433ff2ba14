"""Serve a bundle, or a directory of bundles, on a Ray cluster: the server's app in any number of replicas.

serve run deployment:build bundle=/shared/digits/bundle-8bit replicas=2
"""

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.routing import Router

from cpt_deploy.errors import UsageError
from cpt_serving import ServeSettings, create_app, load_settings


def build(arguments: dict[str, Any]) -> Application:
    """Return the application for `serve run`, or for `import_path` in a file of `serve deploy`.

    Args:
        arguments: `replicas` (1) and any setting of the server; `bundle` is a path that every machine of the cluster
            can read. Other settings come from `CPT_SERVE_...` or the YAML file on this machine.

    Raises:
        UsageError: If a setting is invalid, or concerns something that Ray does here.
    """
    given = dict(arguments)
    replicas = given.pop("replicas", 1)
    # A replica must not take the cores of others: the default would be all cores of the machine.
    settings = load_settings(**given)
    settings = settings.model_copy(
        update={"concurrency": settings.concurrency or 1, "bundle": settings.bundle.resolve()}
    )
    _check(settings)

    def app() -> Router:
        return create_app(settings)

    return serve.deployment(
        serve.ingress(app)(),
        name="cpt-deploy",
        num_replicas=replicas if replicas == "auto" else int(replicas),
        ray_actor_options={"num_cpus": settings.threads * settings.inferences_at_once},
        # Requests wait in the server's own queue, where they are batched and, if there are too many, refused.
        max_ongoing_requests=settings.queue_rows + settings.inferences_at_once * settings.max_batch,
        graceful_shutdown_timeout_s=settings.shutdown_s,
    ).bind()


def _check(settings: ServeSettings) -> None:
    """Raise a `UsageError` for settings that do not apply to a replica."""
    if settings.grpc_port is not None:
        raise UsageError(
            f"Expected no grpc_port, but got {settings.grpc_port}", hint="Ray's proxy routes HTTP to the replicas"
        )
