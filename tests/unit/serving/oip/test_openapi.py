"""Requests made from the server's own OpenAPI file: every answer fits what is documented, and none is a 5xx."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")

CHECKED = ("/predict", "/v2", "/health")


@pytest.fixture(scope="module")
def operations(serve, shared_bundle):
    with serve(shared_bundle, access_log=False) as address:
        schema = schemathesis.openapi.from_url(f"http://{address}/openapi.json")
        found = [result.ok() for result in schema.get_all_operations()]
        # What unloads the model would leave nothing to ask.
        yield [each for each in found if each.path.startswith(CHECKED) and not each.path.endswith("/unload")]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_documented(operations, mode):
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    checks = [not_a_server_error, response_schema_conformance, content_type_conformance]
    statuses = set()
    for operation in operations:
        if mode.is_negative and operation.method != "post":
            # Any text can be in a path, so there is nothing wrong to make.
            continue

        @settings(
            max_examples=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def ask(case, known):
            for name, value in {"model": "colours", "version": "1"}.items():
                if known and name in case.path_parameters:
                    case.path_parameters[name] = value
            response = case.call()
            case.validate_response(response, checks=checks)
            if response.status_code >= 400:
                assert set(response.json()) == {"error", "request_id"}
            statuses.add(response.status_code)

        ask()
    assert ({400, 404} if mode.is_negative else {200, 400, 404}) <= statuses
