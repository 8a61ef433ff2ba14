"""Requests made from the server's own OpenAPI file: whatever comes, answers fit what is documented, and none is a 5xx."""

import pytest
from hypothesis import HealthCheck, settings

from cpt_serving import create_app, load_settings

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
from schemathesis.checks import (  # noqa: E402
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def api(shared_bundle):
    app = create_app(load_settings(bundle=shared_bundle.path, concurrency=1, golden="off", access_log=False))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_documented(case):
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error, response_schema_conformance, content_type_conformance])
    if response.status_code >= 400:
        assert set(response.json()) == {"error", "request_id"}
