"""The output of `cpt train` before and after a run: the plan of a dry run, and the result."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_cli.output import out
from cpt_cli.shown.training_progress import TrainingProgress, show_plan, show_step_costs
from cpt_deploy import readable

if TYPE_CHECKING:
    from cpt_deploy.recipe import Recipe
    from cpt_deploy.training import RunReport


def show_dry_run(recipe: "Recipe", directory: Path, *, doubts: bool = True) -> None:
    """Print the plan of a run, and what makes it doubtful."""
    from cpt_deploy.training import plan_run

    plan = plan_run(recipe, directory)
    show_plan(plan, doubts=doubts)
    out.note("dry run: nothing was written")
    out.result(
        {
            "run": directory,
            "device": plan.device,
            "parameters": plan.parameters,
            "macs": plan.macs,
            "layers": plan.layers,
            "total_steps": plan.total_steps,
            "steps_per_epoch": plan.steps_per_epoch,
            "relative_cost": plan.relative_cost,
            "pretrained": plan.pretrained,
            "left_out": plan.left_out,
            "divided": plan.divided,
            "doubts": plan.doubts,
            "recipe": plan.recipe.model_dump(mode="json"),
        }
    )


def run_training(
    recipe: "Recipe", directory: Path, *, resume: bool = False, profile_steps: int = 0, doubts: bool = True
) -> "RunReport":
    """Train, show the progress and the result, and return the report."""
    from cpt_deploy.training import train as train_run

    finished_before = resume and (directory / "report.json").is_file()
    with TrainingProgress(doubts=doubts) as progress:
        report = train_run(recipe, directory, resume=resume, reporter=progress, profile_steps=profile_steps)
    if finished_before:
        out.note(f"the run in {readable.path(directory)} was finished already")
    show_trained(report, directory)
    return report


def show_trained(report: "RunReport", directory: Path) -> None:
    """Print the result of a run, and the files in its directory."""
    files = files_bytes(directory)
    max_bits, cost = report.bits["max_bits"], report.cost
    out.fields(
        f"Trained {report.name}",
        {
            **_describe_result(report),
            "cost": f"{readable.figure(cost['gbitops'])} GBitOPs, {_against_static(cost['saving'], max_bits)}",
            "time": _describe_time(report),
            "run": readable.path(directory),
            "files": ", ".join(f"{name} ({readable.size(size)})" for name, size in files.items()),
        },
    )
    if report.steps_by_bits and not out.quiet:
        show_step_costs(report)
    if out.quiet:
        out.line(readable.path(directory))


def _against_static(saving: float, max_bits: int) -> str:
    if saving < 0:  # steps in float32
        return f"{readable.figure(1 - saving)} times those of static {max_bits} bits"
    return f"{readable.share(saving)} below static {max_bits} bits"


def _describe_result(report: "RunReport") -> dict[str, str]:
    """Return the result of a run: the metric of the calibrated model."""
    from cpt_deploy.tasks import task_named

    metric, best, unit = report.metric, report.best, task_named(report.task).unit
    shown = f"{metric.text(report.figure)} of {report.test.samples:,} test {unit}"
    if report.valid is not None:
        shown += f", {metric.text(report.valid.metrics[metric.name])} on the {report.held_out} split"
    if best is not None:
        shown += f", best during training {metric.text(best.metrics[metric.name])}"
    return {f"{metric.title} at {report.bits['max_bits']} bits": shown}


def _describe_time(report: "RunReport") -> str:
    waiting = report.seconds.get("waiting_for_data", 0.0) / max(report.seconds["training"], 1e-9)
    from cpt_deploy.tasks import task_named

    rate = f"{report.images_per_s:,.0f} {task_named(report.task).unit}/s in training"
    return f"{readable.duration(report.seconds['total'])}, {rate}, {readable.share(waiting, 0)} of it waiting for data"


def files_bytes(directory: Path) -> dict[str, int]:
    """Return the size in bytes of each file in the directory of a run by its name.

    Of several machines, those without the directory have none.
    """
    if not directory.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}
