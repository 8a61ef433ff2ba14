"""`cpt quickstart`: run every step from training to prediction once, on data that needs no download."""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpt_cli import formats
from cpt_cli.command import TRAIN_PANEL, Command, DebugFlag, JsonFlag, QuietFlag
from cpt_cli.output import out
from cpt_deploy.errors import CptError, UsageError

if TYPE_CHECKING:
    from cpt_deploy.bundle import Bundle

PRESET = "digits-quickstart"
BITS = 8
MAX_DROP = 2.0
"""Points of accuracy that may be lost; the digits are so few that even equal answers cannot prove a loss below one."""
RUN, DIGIT, LOG, SUMMARY = "run", "digit.png", "server.log", "quickstart.json"
STEPS = ("train", "export", "validate", "serve", "predict")


def quickstart(
    directory: Annotated[
        Path,
        typer.Option("--out", help="Directory for the outputs; the outputs of an earlier quickstart are replaced."),
    ] = Path("quickstart-output"),
    json_output: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Train, export, validate, serve and predict once, on scikit-learn's handwritten digits.

    Trains a small ResNet with bits that cycle between 3 and 8, exports it to 8-bit integers, compares every integer
    with onnxruntime's, starts a server on a free port, sends it one real digit as a PNG, and stops it.
    """
    _make_room(directory)
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
            out.note(f"{self._name} took {formats.duration(self.seconds[self._name])}")


def _make_room(directory: Path) -> None:
    """Remove the outputs of an earlier quickstart; refuse any other directory."""
    if not directory.exists():
        directory.mkdir(parents=True)
    ours = {RUN, DIGIT, LOG, SUMMARY}
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else {directory.name}
    if found and not (found <= ours and SUMMARY in found):
        raise UsageError(
            f"Expected a new directory or that of an earlier quickstart, but {formats.path(directory)} holds "
            f"{', '.join(sorted(found - ours)[:3] or sorted(found)[:3])}",
            hint="choose another one with --out",
        )
    shutil.rmtree(directory / RUN, ignore_errors=True)
    for name in (DIGIT, LOG):
        (directory / name).unlink(missing_ok=True)
    (directory / SUMMARY).write_text("{}\n", encoding="utf-8")


def _train(directory: Path) -> float:
    import torch

    from cpt_cli.commands.train import run_training
    from cpt_deploy.recipe import load_recipe

    # The network is so small that more threads would only wait for each other.
    torch.set_num_threads(1)
    return run_training(load_recipe(PRESET), directory / RUN).test.top1


def _export(directory: Path) -> "Bundle":
    from cpt_cli.export_summary import show_export
    from cpt_cli.workflow import ExportOptions, export_run

    bundle = export_run(directory / RUN, ExportOptions(bits=BITS))
    show_export(bundle)
    return bundle


def _validate(bundle: "Bundle") -> dict[str, Any]:
    from cpt_cli.validation_summary import failure, show_report
    from cpt_cli.workflow import measure_bundle

    report = measure_bundle(
        bundle,
        bundle.facts["dataset"],
        None,
        run_dir=None,
        limit=None,
        max_drop=MAX_DROP,
        allow_undecided=True,
        require_exact=True,
    )
    show_report(report)
    if not report.passed:
        raise failure(report.reasons, report.undecided)
    out.line(
        f"  {report.dataset.samples} images are too few to distinguish a loss of the usual 0.5 points from none; "
        f"{MAX_DROP:g} points are allowed here"
    )
    return {
        "passed": True,
        "verdict": report.verdict,
        "accuracy": {entry.name: entry.accuracy.value for entry in report.runtimes},
        "compared_integers": report.compared_integers,
        "mismatching_integers": report.mismatching_integers,
    }


def _serve_and_predict(bundle: "Bundle", directory: Path, steps: _Steps) -> dict[str, Any]:
    from cpt_cli.prediction import local_classifier
    from cpt_cli.server_process import running_server
    from cpt_serving.client import PredictClient

    label = _write_digit(bundle, directory / DIGIT)
    with local_classifier(bundle.path, top_k=3, threads=1) as classify:
        here = classify(directory / DIGIT)
    steps.begin("serve", "an HTTP server on a free port")
    with running_server(bundle.path, directory / LOG) as url, PredictClient(url) as client:
        out.line(f"  ready at {url}, log in {formats.path(directory / LOG)}")
        steps.begin("predict", f"POST {formats.path(directory / DIGIT)} to {url}/predict")
        answer = client.predict([directory / DIGIT], top_k=3)
    if answer.predictions[0] != here:
        raise CptError(f"Expected the server to answer {here}, as the bundle does here, but got {answer.predictions}")
    best = here[0]
    others = ", ".join(f"{entry.label} {formats.share(entry.probability)}" for entry in here[1:])
    out.line(
        f"  the image shows a {label}; the server answers {best.label} with {formats.share(best.probability)} "
        f"(then {others}) in {answer.timings['total_ms']:.2f} ms"
    )
    out.line("  server stopped")
    return {"shown": label, "label": best.label, "probability": best.probability, "timings_ms": answer.timings}


def _write_digit(bundle: "Bundle", path: Path) -> str:
    """Write the first image of the test set as a PNG and return its class."""
    import numpy as np
    from PIL import Image

    from cpt_deploy.data import load_images

    images = load_images(bundle.facts["dataset"], split="test")
    Image.fromarray(np.asarray(images.image(0))).save(path)
    return str(images.classes[int(images.labels[0])])


def _finish(directory: Path, results: dict[str, Any]) -> None:
    document = json.dumps(results, indent=2, default=str) + "\n"
    (directory / SUMMARY).write_text(document, encoding="utf-8")
    run, validation = directory / RUN, results["validation"]
    out.fields(
        f"\nDone in {formats.duration(sum(results['seconds'].values()))}",
        {
            "accuracy": f"{formats.share(validation['accuracy']['onnxruntime'])} in onnxruntime, "
            f"{formats.share(validation['accuracy']['trained'])} trained",
            "integers that differ": f"{validation['mismatching_integers']} of {validation['compared_integers']:,}",
            "trained run": f"{formats.path(run)} (curves.png, metrics.csv, report.json, model.safetensors)",
            "bundle to ship": formats.path(results["bundle"]),
            "everything": formats.path(directory / SUMMARY),
        },
    )
    out.result(results)
    out.hint(f"cpt serve {formats.path(results['bundle'])}, then open its address in a browser")


COMMAND = Command(
    name="quickstart",
    function=quickstart,
    panel=TRAIN_PANEL,
    examples=("cpt quickstart", "cpt quickstart --out /tmp/first-steps --json"),
)
