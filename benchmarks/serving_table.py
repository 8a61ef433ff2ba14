"""The results of benchmarks/serving.py as tables: throughput and latency, then start-up and memory."""

from collections.abc import Mapping
from typing import Any

from measuring import machine_line, markdown_table
from serving_systems import HTTP_ALONE

OURS = "cpt-deploy"


def table(content: Mapping[str, Any]) -> str:
    """Return both tables with the text that explains them."""
    results, plan, info = content["results"], content["plan"], content["machine"]
    names = [name for name in results[0]["servers"] if name != HTTP_ALONE]
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in ("litserve", "bentoml", "mlserver")
                         if name in info["versions"])  # fmt: skip
    skipped = "".join(f"\n\n{name} is missing: {reason}." for name, reason in content["skipped"].items())
    return (
        f"One thread of one core for the server, wrk on another; medians of {plan['rounds']} interleaved rounds "
        "(`python benchmarks/serving.py`). Each cell: rows/s, as a share of the bare session's, p50 / p99 latency. "
        f"`{HTTP_ALONE}` is an empty app under our HTTP server, in requests/s.\n\n"
        f"{_speed(results, names)}\n\n{_footprint(results, names)}\n\n"
        f"Errors: {_errors(results, names)}. {machine_line(info)} Peers: {versions or 'none'}.{skipped}"
    )


def _speed(results: list[dict[str, Any]], names: list[str]) -> str:
    header = ["network", "rows per request", "clients", "bare session, rows/s", *names, f"{HTTP_ALONE}, requests/s"]
    rows = []
    for result in results:
        for cell in result["cells"]:
            systems = cell["systems"]
            best = max(names, key=lambda name: systems[name]["rows_per_s"])
            rows.append(
                [
                    result["network"].rpartition("/")[2],
                    str(result["rows_per_request"]),
                    str(cell["clients"]),
                    f"{cell['bare_rows_per_s']:.0f}",
                    *(_speed_cell(systems[name], emphasised=name == best) for name in names),
                    f"{systems[HTTP_ALONE]['requests_per_s']:.0f}",
                ]
            )
    return markdown_table(header, rows)


def _speed_cell(system: Mapping[str, Any], *, emphasised: bool) -> str:
    rate = f"{system['rows_per_s']:.0f} ({system['of_bare']:.2f})"
    latency = f"{_milliseconds(system['p50_ms'])} / {_milliseconds(system['p99_ms'])} ms"
    return f"{f'**{rate}**' if emphasised else rate}, {latency}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _footprint(results: list[dict[str, Any]], names: list[str]) -> str:
    rows = []
    for network in dict.fromkeys(result["network"] for result in results):
        servers = next(result["servers"] for result in results if result["network"] == network)
        rows.append(
            [network.rpartition("/")[2]]
            + [f"{servers[name]['start_s']:.2f} s, {servers[name]['resident_mib']:.0f} MiB" for name in names]
        )
    return markdown_table(["start to ready, memory after the load", *names], rows)


def _errors(results: list[dict[str, Any]], names: list[str]) -> str:
    counts = {
        name: sum(cell["systems"][name]["errors"] for result in results for cell in result["cells"]) for name in names
    }
    return ", ".join(f"{name} {count}" for name, count in counts.items())
