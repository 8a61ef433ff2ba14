"""Tokens per second of a server of language models: batched texts compared with texts one by one.

Two servers of the same bundle on one core, with `max_batch` 16 (the default) and 1; clients on the other core generate
texts from prompts of different lengths. Measured in turn, while the other server is suspended. The answers of both must
be the same, text by text.

    python benchmarks/text_serving.py [--rounds 5] [--tokens 64]
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from load_generation import PreparedRequest
from measuring import machine, machine_line, markdown_table, write_results
from server_processes import RunningServer, ServerCommand, only_awake, running, set_niceness

from cpt_deploy import QuantizationConfig, TextProcessor, calibrate, export_bundle
from cpt_deploy.bundle.processors.tokenization import WordTokenizer
from cpt_deploy.models.language import build_language_model
from cpt_deploy.models.language.preparing import preparing_arguments
from cpt_deploy.quantization import prepare

VOCABULARY = 10_000
MODELS: dict[str, dict[str, Any]] = {
    "lstm-lm": {"embedding": 650, "hidden": 650, "layers": 2},
    "transformer-lm": {"features": 256, "layers": 4, "heads": 4, "inner": 1024, "context": 256},
}
CLIENTS = (1, 4, 16)
TOGETHER, ALONE = "together", "one by one"
FIRST_PORT = 18100


def write_bundle(name: str, folder: Path) -> Path:
    """Write the bundle of a model with random weights and known ranges."""
    torch.manual_seed(0)
    network = build_language_model(name, VOCABULARY, **MODELS[name])
    (example, *empty), shapes, states = preparing_arguments(network, VOCABULARY)
    model = prepare(network, (example, *empty), QuantizationConfig(), dynamic_shapes=shapes, states=states)
    calibrate(model, [(torch.randint(0, VOCABULARY, (len(example), 64)), *empty)])
    tokenizer = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])
    golden = torch.randint(0, VOCABULARY, (4, 16))
    processor = TextProcessor(tokenizer)
    return export_bundle(model.eval(), folder / name, golden, task="text-generation", processor=processor).path


def requests(clients: int, tokens: int) -> list[PreparedRequest]:
    """Return one request per client; prompts have 4 to 40 words."""
    source = random.Random(0)
    bodies = [
        {
            "prompt": " ".join(f"w{source.randrange(VOCABULARY - 2)}" for _ in range(source.randint(4, 40))),
            "max_tokens": tokens,
            "seed": number,
        }
        for number in range(clients)
    ]
    return [PreparedRequest("/generate", json.dumps(body).encode(), {}) for body in bodies]


def generate(server: RunningServer, given: Sequence[PreparedRequest], tokens: int) -> tuple[float, list[str]]:
    """Return tokens per second over all clients, and the texts."""
    with ThreadPoolExecutor(len(given)) as pool:
        began = time.perf_counter()
        answers = [json.loads(content) for _, content in pool.map(server.post, given)]
        seconds = time.perf_counter() - began
    assert all(answer["usage"]["generated_tokens"] == tokens for answer in answers)
    return len(given) * tokens / seconds, [answer["text"] for answer in answers]


def measure(name: str, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Measure one model with each number of clients."""
    measured = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder / "servers.log").open("wb"))
        bundle = write_bundle(name, folder)
        servers = []
        for port, (label, batch) in enumerate(((TOGETHER, 16), (ALONE, 1)), FIRST_PORT):
            line = [sys.executable, "-m", "cpt_cli", "serve", str(bundle), "--port", str(port), "--quiet"]
            environment = {"CPT_SERVE_MAX_BATCH": str(batch)}
            command = ServerCommand(label, line, port, "/health/ready", environment)
            servers.append(stack.enter_context(running(command, core=1, log=log)))
        for clients in CLIENTS:
            given, speeds, texts = requests(clients, tokens), {TOGETHER: [], ALONE: []}, {}
            for number in range(rounds + 1):
                for server in servers[:: 1 if number % 2 else -1]:
                    with only_awake(server, servers):
                        speed, texts[server.name] = generate(server, given, tokens)
                    if number:  # the first round warms up
                        speeds[server.name].append(speed)
                assert texts[TOGETHER] == texts[ALONE]
            medians = {label: statistics.median(values) for label, values in speeds.items()}
            ratios = [one / other for one, other in zip(*speeds.values(), strict=True)]
            measured.append({"model": name, "clients": clients, **medians, "ratio": statistics.median(ratios)})
    return measured


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per model and number of clients."""
    rows = [
        [row["model"], str(row["clients"]), f"{row[ALONE]:,.0f}", f"{row[TOGETHER]:,.0f}", f"{row['ratio']:.2f}"]
        for row in content["results"]
    ]
    return (
        f"Tokens a second of one core, {content['tokens']} of each text, all clients at once, vocabulary of "
        f"{VOCABULARY:,}; medians of {content['rounds']} rounds (`python benchmarks/text_serving.py`)\n\n"
        f"{markdown_table(['model', 'clients', 'one by one', 'together', 'ratio'], rows)}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--niceness", type=int, default=0, help="below zero needs root")
    arguments = parser.parse_args()
    set_niceness(arguments.niceness)
    measured = [row for name in MODELS for row in measure(name, arguments.rounds, arguments.tokens)]
    settings = {"rounds": arguments.rounds, "tokens": arguments.tokens}
    content = {"machine": machine(), **settings, "models": MODELS, "results": measured}
    write_results("text_serving", content, table(content))


if __name__ == "__main__":
    main()
