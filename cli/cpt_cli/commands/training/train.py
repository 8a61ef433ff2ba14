"""`cpt train`: train a network with Cyclic Precision Training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.recipes import parse_bounds, split_words
from cpt_cli.shown.range_test import show_range_test
from cpt_cli.shown.training import files_bytes, run_training, show_dry_run
from cpt_deploy import readable
from cpt_deploy.errors import MissingDataError, ProcessLostError, UsageError

if TYPE_CHECKING:
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import RunReport

AUTO = "auto"


def _complete(incomplete: str) -> list[str]:
    """Return the presets and recipe files whose name starts with the typed text."""
    from cpt_deploy.recipe import preset_names

    files = [str(path) for path in Path().glob("*.yaml")]
    return [name for name in [*preset_names(), *files] if name.startswith(incomplete)]


def train(  # noqa: PLR0913, PLR0917  the options are its parameters
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A preset or a recipe file, then settings such as train.batch_size=64; without both, the digits.",
            metavar="[PRESET_OR_FILE] [KEY=VALUE]...",
            autocompletion=_complete,
            show_default=False,
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run.", show_default="runs/NAME, or the next free one")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the run in this directory from its last checkpoint.")
    ] = None,
    automatic_resume: Annotated[
        bool,
        typer.Option(
            "--automatic-resume",
            help="Resume the run of this recipe if it has begun, else begin it: for jobs that are started again.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Take two steps on the CPU, with few samples, to check that everything works; without the data, with "
            "made-up samples.",
        ),
    ] = False,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Bounds of the bits: MIN-MAX such as 4-8, or auto: a precision range test finds the minimum first.",
            rich_help_panel="Common settings",
            show_default="the recipe's",
        ),
    ] = None,
    profile: Annotated[
        int, typer.Option(min=0, help="Profile this many steps: show where their time goes, and save a trace.")
    ] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Length of the run: train.epochs.", rich_help_panel="Common settings")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all random numbers: seed.", rich_help_panel="Common settings")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda or cuda:N: train.device.", rich_help_panel="Common settings", show_default="auto"
        ),
    ] = None,
) -> None:
    """Train a network with Cyclic Precision Training and write all results to one directory.

    A recipe has all settings: defaults, then a preset or a YAML file, then key=value. Ctrl-C finishes the step, saves,
    and shows how to resume; a second Ctrl-C stops at once.

    With quantization.scheme=sbm it trains with the quantizers of the paper's code; such a run cannot be exported.

    On several processors: torchrun --no-python --nproc-per-node 4 cpt train … (docs/how-to/distributed.md).
    """
    from cpt_deploy.recipe import load_recipe, smoke_recipe, with_made_up_data
    from cpt_deploy.workflows import RUNS, run_at

    source, overrides = split_words(words or [])
    overrides += [
        f"{key}={value}"
        for key, value in (("train.epochs", epochs), ("seed", seed), ("train.device", device))
        if value is not None
    ]
    if smoke and (resume is not None or bits == AUTO):
        raise UsageError("Expected --smoke without --resume and --bits auto, but got it with one of them")
    if resume is not None and bits is not None:
        raise UsageError("Expected a run to resume with the bits that it began with, but got --bits")
    if automatic_resume and (resume is not None or bits == AUTO):
        raise UsageError("Expected --automatic-resume without --resume and --bits auto, but got it with one of them")
    begun = resume is not None
    if resume is None:
        recipe = load_recipe(source, [*overrides, *_given_bounds(bits)])
        recipe = smoke_recipe(recipe) if smoke else recipe
        directory = run_dir or (RUNS / recipe.name if automatic_resume else _free_directory(recipe.name))
        begun = automatic_resume and (directory / "recipe.yaml").is_file()
    else:
        resume = run_at(resume)
        if source is not None or run_dir is not None:
            raise UsageError(
                "Expected a run to resume without a recipe or --out, but got both",
                hint=f"cpt train --resume {readable.argument(resume)}; recipe and directory are those of the run",
            )
        recipe, directory = load_recipe(_recipe_of(resume), overrides), resume
    if bits == AUTO and not dry_run:
        recipe = _with_tested_bounds(recipe, directory)

    def carry_out(recipe: "Recipe") -> "RunReport | None":
        if dry_run:
            show_dry_run(recipe, directory, doubts=not smoke)
            return None
        return run_training(recipe, directory, resume=begun, profile_steps=profile, doubts=not smoke)

    try:
        report = carry_out(recipe)
    except (MissingDataError, ProcessLostError) as error:
        missing = error if isinstance(error, MissingDataError) else error.__cause__  # in the other processes of a run
        if not smoke or not isinstance(missing, MissingDataError):
            raise
        out.warning(f"this smoke run takes made-up samples of the right shape. {missing.message}")
        report = carry_out(with_made_up_data(recipe))
    if report is None:
        return
    out.result({"run": directory, "report": report.to_dict(), "files_bytes": files_bytes(directory)})
    if recipe.quantization.scheme == "sbm":
        out.note("this run cannot be exported: quantization.scheme=sbm trains only, since zero points are real-valued")
    else:
        out.hint(f"cpt export {readable.argument(directory)}" + (" --bits 8" if report.bits["max_bits"] == 8 else ""))


def _given_bounds(bits: str | None) -> list[str]:
    """Return the settings that --bits overrides."""
    if bits is None or bits == AUTO:
        return []
    min_bits, max_bits = parse_bounds(bits)
    return [f"precision.min_bits={min_bits}", f"precision.max_bits={max_bits}"]


def _with_tested_bounds(recipe: "Recipe", directory: Path) -> "Recipe":
    """Return a recipe with min_bits from a range test, whose result is written next to the run."""
    from cpt_deploy.training import RunDirectory
    from cpt_deploy.workflows import find_lower_bound, with_lower_bound

    RunDirectory(directory).check_new()  # before a test that takes minutes
    evidence = directory.with_name(f"{directory.name}-range-test")
    outcome = find_lower_bound(recipe, folder=evidence, reporter=out)
    show_range_test(outcome, recipe.name, evidence)
    return with_lower_bound(recipe, outcome)


def _free_directory(name: str) -> Path:
    """Return runs/NAME, or runs/NAME-N with the first number that is free."""
    from cpt_deploy.workflows import RUNS

    candidate, number = RUNS / name, 2
    while candidate.exists():
        candidate, number = RUNS / f"{name}-{number}", number + 1
    return candidate


def _recipe_of(run_dir: Path) -> Path:
    from cpt_deploy.errors import CheckpointError

    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"Expected a run to resume in {run_dir}, but it has no recipe.yaml",
            hint="cpt train writes runs below runs/",
        )
    return path


COMMAND = Command(
    train,
    "cpt train digits-quickstart  # a preset; --dry-run shows the plan",
    "cpt train fashion-mnist-resnet20 train.epochs=20 --bits auto  # finds min_bits first, as cpt range-test",
    "cpt train my-recipe.yaml data.name=photos/ model.name=torchvision/resnet18 model.weights=resnet18.pth",
    "cpt train resnet74-cifar100-cpt3-8 --smoke  # two steps of one of the paper's experiments (cpt recipes)",
    "cpt train --resume runs/fashion-mnist-resnet20",
)
