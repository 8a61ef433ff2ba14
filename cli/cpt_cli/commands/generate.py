"""`cpt generate`: continue a text with a bundle, here or on a server."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.server_key import ApiKeyOption, key_headers
from cpt_deploy.errors import UsageError

_SEEDS = 2**32


def generate(  # noqa: PLR0913, PLR0917  the options are its parameters
    words: Annotated[
        list[str] | None,
        typer.Argument(help="A bundle, then the text to continue. With --url only the text.", metavar="BUNDLE TEXT"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Use the server at this address instead of computing here.")] = None,
    api_key: ApiKeyOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="0 always chooses the most probable token; higher is more varied.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many of the most probable tokens; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=1e-9, max=1, help="Draw from the smallest set of tokens with this total probability.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same text.", show_default="random")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string; can be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="all cores")] = None,
) -> None:
    """Continue a text, token by token.

    Text is printed as it is generated: first the given text, then the continuation; with --quiet only the
    continuation. The seed is shown, so that any text can be reproduced.
    """
    from cpt_cli.generation import TextOptions, local_text, remote_text
    from cpt_deploy.workflows import bundle_at

    given = words or []
    expected = 1 if url is None else 0
    if len(given) not in (expected, expected + 1):
        raise UsageError(
            f"Expected {'a bundle and a text' if url is None else 'a text'}, but got {len(given)} arguments",
            hint="put the text into quotes" if len(given) > expected else "cpt generate BUNDLE TEXT",
        )
    prompt = given[expected] if len(given) > expected else ""
    chosen = secrets.randbelow(_SEEDS) if seed is None else seed
    options = TextOptions(max_tokens, temperature, top_k, top_p, chosen, tuple(stop or ()))
    if not all(options.stop):
        raise UsageError("Expected --stop to be a string that is not empty")
    if url is None:
        events = local_text(bundle_at(Path(given[0])), prompt, options, threads=threads)
    else:
        events = remote_text(url, prompt, options, key_headers(api_key))
    texts = []
    shown = "" if out.quiet else prompt
    for event in events:
        texts.append(event["text"])
        out.text(shown + event["text"])
        shown = ""
    out.text("\n")
    summary = {key: value for key, value in event.items() if key != "text"}
    out.result({"prompt": prompt, "text": "".join(texts), **summary})
    rate = summary["timings"]["tokens_per_s"]
    out.note(
        f"{summary['model']}: {summary['usage']['generated_tokens']} tokens"
        + (f", {rate:,.0f} per second" if rate else "")
        + f", seed {summary['seed']}"
    )


COMMAND = Command(
    generate,
    'cpt generate runs/ptb-lstm/bundle-8bit "the company said"',
    'cpt generate runs/ptb-lstm/bundle-8bit "the company said" --temperature 0 --max-tokens 20 --json',
    'cpt generate --url http://127.0.0.1:8000 "the company said" --seed 1  # on a server',
)
