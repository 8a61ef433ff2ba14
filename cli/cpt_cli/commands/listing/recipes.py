"""`cpt recipes`: list the recipes of the package, with their cost and the figures that the paper reports."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_deploy import readable
from cpt_deploy.errors import UsageError

if TYPE_CHECKING:
    from cpt_deploy.recipe import Experiment


def recipes(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="A name, to show the recipe in full, or a shell pattern such as 'resnet74-*'.", metavar="NAME"
        ),
    ] = None,
) -> None:
    """List the recipes that come with the package: the paper's experiments, and a few to start with.

    Each experiment is listed with its steps, its cost in BitOPs, the share that is saved against its static baseline,
    and the paper's result. cpt train NAME runs one; cpt train NAME --smoke takes two steps of it on the CPU.
    """
    from cpt_deploy.recipe import preset_names
    from cpt_deploy.registry import nearest_names

    names = preset_names(pattern or "*")
    if not names:
        raise UsageError(
            f"Expected the name of a recipe or a pattern that matches some, but got {pattern!r}",
            hint=nearest_names(pattern or "", preset_names()),
        )
    if names == [pattern]:
        _show(names[0])
        return
    rows = [_describe(name) for name in names]
    starters = [(row["name"], _length(row), row["model"], row["data"]) for row in rows if "gbitops" not in row]
    experiments = [_cells(row) for row in rows if "gbitops" in row]
    if starters:
        out.table(("recipe", "length", "model", "data"), starters, title="To start with")
    if experiments:
        out.table(
            ("recipe", "steps", "BitOPs", "saved", "by the paper's count", "paper prints", "paper reports", "baseline"),
            experiments,
            title="The paper's experiments",
            optional=("by the paper's count", "paper prints", "baseline", "BitOPs"),
        )
        out.note("10^9 BitOPs; cpt recipes NAME shows all settings and where the figures come from")
    out.result({"recipes": rows})


def _length(row: dict[str, Any]) -> str:
    steps = row["steps"]
    return f"{steps:,} steps" if isinstance(steps, int) else str(steps)


def _describe(name: str) -> dict[str, Any]:
    """Return the entry of a recipe: its model and data, its cost, and the published figures."""
    from cpt_deploy.recipe import experiments, load_recipe

    experiment = experiments().get(name)
    if experiment is None:
        recipe = load_recipe(name)
        length = f"{recipe.train.epochs} epochs" if recipe.train.steps is None else recipe.train.steps
        return {"name": name, "model": recipe.model.name, "data": recipe.data.name, "steps": length}
    cost = experiment.cost()
    return {
        "name": name,
        "model": experiment.values["model"]["name"],
        "data": experiment.data,
        "steps": cost.steps,
        "gbitops": cost.gbitops,
        "saving": cost.saving,
        "paper_gbitops": cost.paper_gbitops,
        "paper_saving": cost.paper_saving,
        "baseline": experiment.baseline,
        "published": {kind: {"value": figure.value, "source": figure.source} for kind, figure in _figures(experiment)},
        "note": experiment.note,
    }


def _figures(experiment: "Experiment") -> list[tuple[str, Any]]:
    return sorted(experiment.figures.items())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    published, cycles = row["published"], row["baseline"] is not None
    return (
        row["name"],
        f"{row['steps']:,}",
        f"{row['gbitops']:.3g}",
        readable.share(row["saving"], 1) if cycles else "",
        readable.share(row["paper_saving"], 1) if cycles else "",
        f"{published['saving']['value']:g} %" if "saving" in published else "",
        _reported(published),
        row["baseline"] or "",
    )


def _reported(published: dict[str, Any]) -> str:
    if "perplexity" in published:
        return f"perplexity {published['perplexity']['value']:g}"
    top1 = published.get("top1")
    if top1 is None:
        return ""
    about = "" if top1["source"].startswith("printed in a table") else "~" if "scatter" in top1["source"] else "* "
    gain = f" ({published['gain']['value']:+g})" if "gain" in published else ""
    return f"{about}{top1['value']:g} %{gain}"


def _show(name: str) -> None:
    """Print one recipe with all settings."""
    from cpt_deploy.recipe import load_recipe, recipe_text

    row, recipe = _describe(name), load_recipe(name)
    if not out.quiet:
        out.fields(name, _fields(row))
    out.line(recipe_text(recipe).rstrip())
    out.hint(f"cpt train {name}")
    out.result({**row, "recipe": recipe.model_dump(mode="json")})


def _fields(row: dict[str, Any]) -> dict[str, object]:
    if "gbitops" not in row:
        return {"model": row["model"], "data": row["data"], "steps": row["steps"]}
    fields: dict[str, object] = {
        "steps": f"{row['steps']:,}",
        "cost": f"{row['gbitops']:.4g} GBitOPs" + _against(row["baseline"], row["saving"]),
        "by the paper's count": f"{row['paper_gbitops']:.4g} GBitOPs" + _against(row["baseline"], row["paper_saving"]),
    }
    labels = {
        "top1": "accuracy",
        "perplexity": "perplexity",
        "gain": "gain over the baseline",
        "saving": "saving",
        "gbitops": "GBitOPs",
    }
    units = {"top1": " %", "perplexity": "", "gain": " points", "saving": " %", "gbitops": ""}
    for kind, figure in row["published"].items():
        fields[f"published {labels[kind]}"] = f"{figure['value']:.4g}{units[kind]}, {figure['source']}"
    if not row["published"]:
        fields["published"] = "no figures found"
    if row["note"]:
        fields["note"] = row["note"]
    return fields


def _against(baseline: str | None, saving: float) -> str:
    return "" if baseline is None else f", {readable.share(saving)} less than {baseline}"


COMMAND = Command(
    recipes,
    "cpt recipes 'resnet74-cifar100-*'",
    "cpt recipes resnet18-imagenet-cpt4-8  # all settings, cost, and the paper's figure",
    "cpt recipes '*-imagenet-*' --json",
)
