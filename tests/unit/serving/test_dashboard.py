"""The Grafana dashboard asks for metrics and labels that the server has, in PromQL that a parser accepts."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "cpt-serve.json"
VARIABLES = {"$__rate_interval": "5m", "$model": ".*"}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def exposed(client, png):
    """Names of the samples on /metrics after some requests, each with its labels."""
    client.post("/predict", content=png())
    client.post("/predict", content=b"no image")
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(node):
    """Every query in a JSON document, wherever it stands."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for child in node.values():
            yield from expressions(child)
    elif isinstance(node, list):
        for child in node:
            yield from expressions(child)


def parsed(expression):
    for variable, text in VARIABLES.items():
        expression = expression.replace(variable, text)
    assert "$" not in expression
    return promql_parser.parse(expression)


def selectors(tree):
    found = []

    def note(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(tree, note)
    return found


def test_every_query_asks_for_metrics_and_labels_that_are_exposed(dashboard, exposed):
    queries = list(expressions(dashboard))
    assert len(queries) > 20
    for query in queries:
        tree = parsed(query)
        asked = selectors(tree)
        assert asked, query
        labels = set()
        for selector in asked:
            assert selector.name in exposed, f"{selector.name} of {query}"
            labels |= exposed[selector.name]
            assert {matcher.name for matcher in selector.matchers.matchers} <= exposed[selector.name], query
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert {name.strip() for name in grouped.split(",")} <= labels, query


def test_legends_name_labels_that_are_left_after_aggregation(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            kept = {
                name.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in group.split(",")
            }
            assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= kept, panel["title"]


def test_variables_ask_for_metrics_that_are_exposed(dashboard, exposed):
    queries = [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert queries
    for query in queries:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
        assert label in exposed[metric]
    declared = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used == declared


def test_panels_have_unique_ids_descriptions_and_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["type"] == "row" or panel["description"] for panel in panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
