"""`cpt quickstart`: run every step from training to prediction once, on data that needs no download."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli.command import Command
from cpt_cli.output import out
from cpt_cli.shown.export_summary import show_export
from cpt_cli.shown.training import show_trained
from cpt_cli.shown.training_progress import TrainingProgress
from cpt_cli.shown.validation import require_passed, show_evidence
from cpt_deploy import readable
from cpt_deploy.errors import CptError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle

STEPS = ("train", "export", "validate", "serve", "predict")


def quickstart(
    directory: Annotated[
        Path,
        typer.Option("--out", help="Directory for the outputs; the outputs of an earlier quickstart are replaced."),
    ] = Path("quickstart-output"),
) -> None:
    """Train, export, validate, serve and predict once, on scikit-learn's handwritten digits.

    Trains a small ResNet with bits that cycle between 5 and 8, exports it to 8-bit integers, compares every integer
    with onnxruntime's, starts a server on a free port, sends it one real digit as a PNG, and stops it.
    """
    from cpt_deploy.workflows.quickstart import BITS, DIGIT, LOG, make_room

    make_room(directory)
    steps = _Steps()
    results: dict[str, Any] = {}
    steps.begin("train", "a small ResNet with cyclic precision")
    results["accuracy"] = _train(directory)
    steps.begin("export", f"freeze to {BITS}-bit integers")
    bundle = _export(directory)
    steps.begin("validate", "accuracy and every integer, against onnxruntime")
    results["validation"] = _validate(bundle)
    results["prediction"] = _serve_and_predict(bundle, directory, steps)
    steps.end()
    results |= {"seconds": steps.seconds, "bundle": bundle.path, "image": directory / DIGIT, "log": directory / LOG}
    _finish(directory, results)


class _Steps:
    """Announces steps and measures their times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._started = "", time.perf_counter()

    def begin(self, name: str, what: str) -> None:
        self.end()
        out.note(f"\n[{STEPS.index(name) + 1}/{len(STEPS)}] {name}: {what}")
        self._name, self._started = name, time.perf_counter()

    def end(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._started
            out.note(f"{self._name} took {readable.duration(self.seconds[self._name])}")


def _train(directory: Path) -> float:
    from cpt_deploy.workflows.quickstart import RUN, train_digits

    with TrainingProgress() as progress:
        report = train_digits(directory, progress)
    show_trained(report, directory / RUN)
    return report.figure


def _export(directory: Path) -> "Bundle":
    from cpt_deploy.workflows.quickstart import export_digits

    bundle = export_digits(directory, out)
    show_export(bundle)
    return bundle


def _validate(bundle: "Bundle") -> dict[str, Any]:
    from cpt_deploy.workflows.quickstart import MAX_DROP, validate_digits

    evidence = validate_digits(bundle, out)
    show_evidence(evidence)
    require_passed(evidence)
    report = evidence.report
    out.line(
        f"  {report.dataset.samples} images are too few to distinguish a loss of the usual 0.5 points from none; "
        f"{MAX_DROP:g} points are allowed here"
    )
    return {
        "passed": True,
        "verdict": report.verdict,
        "accuracy": {entry.name: entry.value for entry in report.runtimes},
        "compared_integers": report.compared_integers,
        "mismatching_integers": report.mismatching_integers,
    }


def _serve_and_predict(bundle: "Bundle", directory: Path, steps: _Steps) -> dict[str, Any]:
    from cpt_deploy.workflows import image_classifier, running_server
    from cpt_deploy.workflows.quickstart import DIGIT, LOG, write_digit
    from cpt_serving.client import PredictClient

    label = write_digit(bundle, directory / DIGIT)
    here = image_classifier(bundle.path, top_k=3, threads=1)(directory / DIGIT)
    steps.begin("serve", "an HTTP server on a free port")
    with running_server(bundle.path, directory / LOG) as url, PredictClient(url) as client:
        out.line(f"  ready at {url}, log in {readable.path(directory / LOG)}")
        steps.begin("predict", f"POST {readable.path(directory / DIGIT)} to {url}/predict")
        answer = client.predict([directory / DIGIT], top_k=3)
    if answer.predictions[0] != here:
        raise CptError(f"Expected the server to answer {here}, as the bundle does here, but got {answer.predictions}")
    best = here[0]
    others = ", ".join(f"{entry.label} {readable.share(entry.probability)}" for entry in here[1:])
    out.line(
        f"  the image shows a {label}; the server answers {best.label} with {readable.share(best.probability)} "
        f"(then {others}) in {answer.timings['total_ms']:.2f} ms"
    )
    out.line("  server stopped")
    return {"shown": label, "label": best.label, "probability": best.probability, "timings_ms": answer.timings}


def _finish(directory: Path, results: dict[str, Any]) -> None:
    from cpt_deploy.workflows.quickstart import RUN, SUMMARY

    document = json.dumps(results, indent=2, default=str) + "\n"
    (directory / SUMMARY).write_text(document, encoding="utf-8")
    run, validation = directory / RUN, results["validation"]
    out.fields(
        f"\nDone in {readable.duration(sum(results['seconds'].values()))}",
        {
            "accuracy": f"{readable.share(validation['accuracy']['onnxruntime'])} in onnxruntime, "
            f"{readable.share(validation['accuracy']['trained'])} trained",
            "integers that differ": f"{validation['mismatching_integers']} of {validation['compared_integers']:,}",
            "trained run": f"{readable.path(run)} (curves.png, metrics.csv, report.json, model.safetensors)",
            "bundle to ship": readable.path(results["bundle"]),
            "everything": readable.path(directory / SUMMARY),
        },
    )
    out.result(results)
    out.hint(f"cpt serve {readable.path(results['bundle'])}, then open its address in a browser")


COMMAND = Command(quickstart, "cpt quickstart", "cpt quickstart --out /tmp/first-steps --json")
