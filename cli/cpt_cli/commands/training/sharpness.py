"""`cpt sharpness`: measure the sharpness of the minima of finished runs."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpt_cli.command import Command
from cpt_cli.output import out

if TYPE_CHECKING:
    from cpt_deploy.analysis import Sharpness

COLUMNS = ("run", "coordinates", "loss", "eigenvalue", "trace", "trace_standard_error", "radius", "rise")


def sharpness(  # noqa: PLR0913, PLR0917  the options are its parameters
    runs: Annotated[list[Path], typer.Argument(help="Directories that cpt train wrote.")],
    images: Annotated[int, typer.Option(min=1, help="Images on which the loss is measured.")] = 500,
    split: Annotated[Literal["train", "test"], typer.Option(help="Training or test images.")] = "train",
    eigenvalues: Annotated[int, typer.Option(min=1, help="Number of the Hessian's largest eigenvalues.")] = 1,
    tolerance: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Relative accuracy of the eigenvalues.")] = 0.01,
    probes: Annotated[int, typer.Option(min=1, help="Number of random vectors for the estimate of the trace.")] = 20,
    radius: Annotated[
        float,
        typer.Option(min=0.0, help="Radius of the ball in which the loss is maximised, in units of the coordinates."),
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient ascent in the ball; 1 is SAM's.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images and random vectors.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    table: Annotated[Path | None, typer.Option("--csv", help="Write the numbers to this file.")] = None,
) -> None:
    """Measure the sharpness of the minima of finished runs.

    Measures the largest eigenvalues and the trace of the Hessian of the loss, and the rise of the loss in a ball around
    the weights: in absolute coordinates, and relative to the norms of the filters, which makes networks comparable.

    The Hessian is that of the network whose quantizers keep their current rounding errors; the rise is that of the
    quantized network itself.
    """
    from cpt_deploy.analysis import SharpnessSettings, load_minimum
    from cpt_deploy.workflows import run_at

    settings = SharpnessSettings(eigenvalues, tolerance, probes, radius, steps, seed)
    entries = []
    for run in dict.fromkeys(map(run_at, runs)):
        minimum = load_minimum(run, split=split, images=images, seed=seed, device=device)
        entries += [
            {"run": run, "name": minimum.name, "images": minimum.images, **found.to_dict()}
            for found in _measured(minimum.model, minimum.batches, settings, minimum.name)
        ]
    header = ("run", "weights", "loss", "largest eigenvalue", "trace", f"rise within {radius:g}")
    out.table(header, [_row(entry) for entry in entries])
    if table is not None:
        _write(table, entries, radius)
    out.result({"radius": radius, "split": split, "runs": entries})


def _measured(model: Any, batches: Any, settings: Any, name: str) -> "list[Sharpness]":
    from cpt_deploy.analysis import measure_sharpness

    found = []
    for coordinates in ("absolute", "relative"):
        done = 0
        with out.bar(f"{name}, {coordinates} weights", 0) as bar:

            def tell(bar: Any = bar) -> None:
                nonlocal done
                done += 1
                bar.advance(done, max(done, settings.probes + settings.steps + 20), detail="products")

            found.append(measure_sharpness(model, batches, coordinates, settings, on_product=tell))
    return found


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    trace = entry["trace"]
    error = "" if trace["standard_error"] is None else f" ± {trace['standard_error']:.3g}"
    return (
        entry["name"],
        entry["coordinates"],
        f"{entry['loss']:.4f}",
        ", ".join(f"{value:.4g}" for value in entry["eigenvalues"]),
        f"{trace['mean']:.4g}{error}",
        f"{entry['rise']:.4g}",
    )


def _write(path: Path, entries: list[dict[str, Any]], radius: float) -> None:
    with out.writing(path), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in entries:
            trace = entry["trace"]
            figures = (entry["eigenvalues"][0], trace["mean"], trace["standard_error"], radius, entry["rise"])
            writer.writerow((entry["run"], entry["coordinates"], entry["loss"], *figures))


COMMAND = Command(
    sharpness,
    "cpt sharpness runs/static8 runs/cpt38",
    "cpt sharpness runs/cpt38 --eigenvalues 5 --tolerance 0.001 --csv sharpness.csv",
)
