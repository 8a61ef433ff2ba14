"""`cpt landscape`: measure and draw the loss around the minima of finished runs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.analysis import Grid, Landscape, Minimum


def landscape(  # noqa: PLR0913, PLR0917  the options are its parameters
    runs: Annotated[list[Path], typer.Argument(help="Directories that cpt train wrote.")],
    folder: Annotated[
        Path, typer.Option("--out", help="Directory of landscape.csv and the plots; an existing one is continued.")
    ] = Path("landscape"),
    points: Annotated[int, typer.Option(min=3, help="Points in each dimension, an odd number.")] = 21,
    extent: Annotated[
        float,
        typer.Option(min=0.0, help="Multiple of the directions at the border; 1 changes each filter by its norm."),
    ] = 1.0,
    dimensions: Annotated[int, typer.Option(min=1, max=2, help="1 for a line, 2 for a plane.")] = 2,
    images: Annotated[int, typer.Option(min=1, help="Images on which the loss is measured.")] = 1000,
    split: Annotated[Literal["train", "test"], typer.Option(help="Training or test images.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of directions and images.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Number of points measured at once, each with its own threads.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw the loss around the minima of finished runs, side by side.

    Directions are random, scaled to the weights filter by filter, and the same for all runs. The networks are the
    calibrated ones at max_bits, as they are served; the float weights before quantization are moved.

    To resume an interrupted measurement, repeat the same command.
    """
    from cpt_deploy.analysis import Grid, LandscapeFiles, LandscapeSettings, load_minimum
    from cpt_deploy.workflows import run_at

    grid = Grid(points, extent, dimensions)
    found_runs = dict.fromkeys(map(run_at, runs))
    minima = [load_minimum(run, split=split, images=images, seed=seed, device=device) for run in found_runs]
    labels = _labels(minima)
    hashes = {label: minimum.weights_sha256 for label, minimum in zip(labels, minima, strict=True)}
    files = LandscapeFiles(folder, LandscapeSettings(grid, seed, split, minima[0].images, hashes))
    found = _measured(minima, labels, grid, files, seed=seed, jobs=jobs)
    files.finish(found)
    rows = [
        (label, f"{one.centre.loss:.4f}", readable.share(one.centre.accuracy), f"{one.mean_rise:.4f}")
        for label, one in found.items()
    ]
    out.table(("run", "loss at the minimum", "accuracy", "mean rise of the loss"), rows)
    which = "training" if split == "train" else "test"
    _draw(found, folder, f"Loss of {minima[0].images:,} {which} images")
    out.result({"folder": folder, "settings": files.settings, "runs": _entries(found)})


def _labels(minima: "list[Minimum]") -> list[str]:
    """Return the labels of the runs: their names, or their paths if names are not unique."""
    names = [minimum.name for minimum in minima]
    return names if len(set(names)) == len(names) else [str(minimum.path) for minimum in minima]


def _measured(
    minima: "list[Minimum]", labels: list[str], grid: "Grid", files: Any, *, seed: int, jobs: int
) -> "dict[str, Landscape]":
    from cpt_deploy.analysis import landscape_of

    done = sum(len(files.known[label]) for label in labels)
    if done:
        out.note(f"going on from {done} of {len(grid) * len(labels)} points")
    with out.bar("landscape", len(grid) * len(labels), start=done) as bar:

        def tell(label: str, point: Any, value: Any) -> None:
            nonlocal done
            done += 1
            files.append(label, point, value)
            bar.advance(done, detail=f"{label}  loss {value.loss:.3f}")

        return {
            label: landscape_of(
                minimum.model,
                minimum.batches,
                grid,
                seed=seed,
                known=files.known[label],
                jobs=jobs,
                on_point=partial(tell, label),
            )
            for label, minimum in zip(labels, minima, strict=True)
        }


def _draw(found: "dict[str, Landscape]", folder: Path, title: str) -> None:
    from cpt_deploy.report import LandscapePanel, plot_landscapes

    panels = [LandscapePanel(label, one.grid.ticks, one.losses, one.accuracies) for label, one in found.items()]
    for suffix in ("png", "svg"):
        picture = folder / f"landscape.{suffix}"
        with out.writing(picture):
            plot_landscapes(panels, picture, title=title)


def _entries(found: "dict[str, Landscape]") -> list[dict[str, Any]]:
    return [
        {
            "name": label,
            "loss": one.centre.loss,
            "accuracy": one.centre.accuracy,
            "mean_rise": one.mean_rise,
            "losses": one.losses,
            "accuracies": one.accuracies,
        }
        for label, one in found.items()
    ]


COMMAND = Command(
    landscape,
    "cpt landscape runs/static8 runs/cpt38 --jobs 2",
    "cpt landscape runs/cpt38 --dimensions 1 --points 51 --split test --out line/",
)
