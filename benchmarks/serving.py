"""Serving under load: our server, LitServe, BentoML and MLServer, relative to a bare onnxruntime session in a loop.

All run the same integer ONNX file on one thread of one core; wrk sends from another core, with 1, 8 and 64 clients that
each wait for an answer before the next request. The servers alternate in short rounds, all but one suspended, and the
figures are medians over the rounds. `HTTP alone` is an empty app under our HTTP server, an upper bound for any server
in Python with requests of few rows. Each peer has a virtual environment of its own, created if it is missing. On x86
without VNNI the results are named `serving_without_vnni`.

    python benchmarks/serving.py [--rounds 5] [--seconds 2] [--peers-python build/serving-peers] [--nice -10] [--quick]

`--earlier DIR` adds the server of another checkout, for the question whether a change made it slower; a bundle of its
own holds the same network. `--no-peers` leaves the other systems out.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import serving_systems as systems
import torch
from load_generation import Load, generate_load, require_wrk
from measuring import machine, measures_all, write_results
from onnx_latency import images
from server_processes import RunningServer, only_awake, running, set_niceness
from serving_systems import PEERS, Rows, System
from serving_table import table

from cpt_deploy.bundle import Bundle, ImageProcessor, Preprocessing
from cpt_deploy.bundle.runtime.sessions import may_saturate
from cpt_deploy.export import ModelIdentity, export_bundle
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare


@dataclass(frozen=True)
class Case:
    """A network and the sizes of its requests.

    Args:
        network: Name of the network.
        shape: Input shape (C, H, W).
        classes: Number of classes.
        rows: Rows of a request, one measurement for each.
    """

    network: str
    shape: tuple[int, int, int]
    classes: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Duration and cores of the measurement.

    Args:
        rounds: Turns of each server.
        seconds: Length of a turn; longer if each client would get only a few answers.
        clients: Numbers of clients.
        server_core: Core of the servers and of the bare session.
        load_core: Core of wrk.
    """

    rounds: int
    seconds: float
    clients: tuple[int, ...]
    server_core: int
    load_core: int


@dataclass(frozen=True)
class Peers:
    """The other servers.

    Args:
        folder: Folder of their virtual environments.
        installed: Names of the installed ones.
        skipped: Reasons why others are missing, by name.
        earlier: Another checkout of this project, whose server is measured too; None for none.
    """

    folder: Path
    installed: tuple[str, ...]
    skipped: dict[str, str]
    earlier: Path | None = None


CASES = (
    Case("resnet20", (3, 32, 32), 10, (1, 32)),
    Case("torchvision/resnet18", (3, 224, 224), 1000, (1, 4)),
)
BARE = "bare session"
ANSWERS_PER_CLIENT = 2.5


def make_bundle(case: Case, folder: Path) -> Bundle:
    """Export a network with random weights, on which speed does not depend."""
    torch.manual_seed(0)
    network = build_model(case.network, num_classes=case.classes, in_channels=3, input_size=case.shape[1:])
    model = prepare(network, torch.zeros(2, *case.shape), QuantizationConfig())
    calibrate(model, [images(8, case.shape) for _ in range(4)])
    model.eval()
    name = case.network.rpartition("/")[2]
    preprocessing = Preprocessing(3, case.shape[1:], mean=(0.5,) * 3, std=(0.25,) * 3)
    labels = tuple(f"class {i}" for i in range(case.classes))
    identity = ModelIdentity(name, case.network, "image-classification", ImageProcessor(preprocessing, labels))
    return export_bundle(model, folder / name, identity, images(4, case.shape))


def bare_session(bundle: Bundle) -> onnxruntime.InferenceSession:
    """Load a bundle's model as all servers do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle.onnx_path), options, providers=["CPUExecutionProvider"])


def bare_rows_per_s(session: onnxruntime.InferenceSession, rows: Rows, seconds: float, core: int) -> float:
    """Run a session repeatedly on the same rows on one core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    runs, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        session.run(None, {"image": rows})
        runs += 1
    os.sched_setaffinity(0, everywhere)
    return runs * len(rows) / elapsed


def measure(case: Case, bundle: Bundle, rows_per_request: int, plan: Plan, peers: Peers) -> dict[str, Any]:
    """Measure all servers with requests of one size."""
    rows = images(rows_per_request, case.shape).numpy()
    session = bare_session(bundle)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((work / "servers.log").open("wb"))
        chosen = [
            systems.cpt_deploy_system(bundle, rows),
            *([] if peers.earlier is None else [systems.earlier_system(peers.earlier, case.network, rows, work)]),
            *systems.peer_systems(peers.installed, peers.folder, bundle, rows, work),
            systems.http_alone_system(rows),
        ]
        started: dict[str, tuple[System, RunningServer]] = {}
        for system in chosen:
            server = stack.enter_context(running(system.server, core=plan.server_core, log=log))
            _check(system, server, session, rows)
            started[server.name] = system, server
        cells = [{"clients": clients, **_rounds(session, rows, started, clients, plan)} for clients in plan.clients]
        servers = {
            name: {"start_s": server.start_s, "resident_mib": server.resident_mib(), "tensors": system.tensors}
            for name, (system, server) in started.items()
        }
    return {"network": case.network, "rows_per_request": rows_per_request, "servers": servers, "cells": cells}


def _check(system: System, server: RunningServer, session: onnxruntime.InferenceSession, rows: Rows) -> None:
    """Check that a server returns the session's logits, which also warms it up."""
    if system.read is None:
        return
    expected = session.run(None, {"image": rows})[0]
    for _ in range(3):
        found = system.read(*server.post(system.request))
        # Another version may calibrate differently: its answers are checked for their shape alone.
        same = found.shape == expected.shape if server.name == systems.EARLIER else np.array_equal(found, expected)
        if not same:
            raise RuntimeError(f"Expected {server.name} to answer the session's logits, but got others")


def _rounds(
    session: onnxruntime.InferenceSession,
    rows: Rows,
    started: dict[str, tuple[System, RunningServer]],
    clients: int,
    plan: Plan,
) -> dict[str, Any]:
    """Measure the bare session and all servers in turn, in reversed order every other round."""
    servers = [server for _, server in started.values()]
    bare: list[float] = []
    loads: dict[str, list[Load]] = defaultdict(list)
    for index in range(plan.rounds):
        turns = [BARE, *started] if index % 2 == 0 else [*started, BARE][::-1]
        for name in turns:
            if name == BARE:
                with only_awake(None, servers):
                    bare.append(bare_rows_per_s(session, rows, plan.seconds, plan.server_core))
                continue
            system, server = started[name]
            seconds = max(plan.seconds, ANSWERS_PER_CLIENT * clients * len(rows) / (bare[-1] if bare else 1e9))
            with only_awake(server, servers):
                load = generate_load(server.port, system.request, clients=clients, seconds=seconds, core=plan.load_core)
                # wrk disconnects in the middle of requests: the next request is answered when those are done.
                server.post(system.request)
            loads[name].append(load)
    return {
        "bare_rows_per_s": statistics.median(bare),
        "systems": {name: _summary(values, bare, len(rows)) for name, values in loads.items()},
    }


def _summary(loads: list[Load], bare: list[float], rows: int) -> dict[str, Any]:
    requests = statistics.median(load.requests_per_s for load in loads)
    ratios = [load.requests_per_s * rows / rate for load, rate in zip(loads, bare, strict=True)]
    return {
        "requests_per_s": requests,
        "rows_per_s": requests * rows,
        "of_bare": statistics.median(ratios),
        "p50_ms": statistics.median(load.p50_ms for load in loads),
        "p99_ms": statistics.median(load.p99_ms for load in loads),
        "errors": sum(load.errors for load in loads),
        "rounds": [asdict(load) for load in loads],
    }


def install_peers(folder: Path, names: Sequence[str], earlier: Path | None) -> Peers:
    """Install missing peers, and print which could not be installed."""
    reasons = {name: systems.install_peer(name, folder) for name in names}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in skipped.items():
        print(f"skipped {name}, which could not be installed: {reason}", file=sys.stderr)
    return Peers(folder, tuple(name for name in names if name not in skipped), skipped, earlier)


def main() -> None:
    """Measure all cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--networks", nargs="+", default=[case.network for case in CASES])
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=Path("build/serving-peers"),
        metavar="DIR",
        help="where the peers' virtual environments are, or are made: DIR/litserve, DIR/bentoml, DIR/mlserver",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave the other systems out")
    parser.add_argument("--earlier", type=Path, metavar="DIR", help="another checkout and its DIR/.venv")
    parser.add_argument("--nice", type=int, default=0, help="niceness of servers, session and load (< 0 needs root)")
    parser.add_argument("--quick", action="store_true", help="a trial: short, the small network only")
    arguments = parser.parse_args()
    require_wrk()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("Expected two cores, one for the server and one for the load, but got one")
    set_niceness(arguments.nice)
    plan = Plan(arguments.rounds, arguments.seconds, tuple(arguments.clients), cores[-1], cores[0])
    cases = [case for case in CASES if case.network in arguments.networks]
    if arguments.quick:
        plan, cases = Plan(1, 1.0, plan.clients, plan.server_core, plan.load_core), cases[:1]
    names = () if arguments.no_peers else PEERS
    peers = install_peers(arguments.peers_python.resolve(), names, arguments.earlier)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            bundle = make_bundle(case, Path(folder))
            results += [measure(case, bundle, rows, plan, peers) for rows in case.rows]
    info = machine()
    info["versions"].update(systems.peer_versions(peers.folder, peers.installed))
    content = {"machine": info, "skipped": peers.skipped, "plan": asdict(plan), "results": results}
    whole = measures_all(parser, arguments, "clients", "networks", "no_peers", "earlier", "quick")
    name = "serving_without_vnni" if may_saturate() else "serving"
    write_results(name, content, table(content), whole=whole)


if __name__ == "__main__":
    main()
