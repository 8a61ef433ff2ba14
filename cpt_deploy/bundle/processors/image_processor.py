"""The processor of image classifiers: images to one normalised input, logits to labelled predictions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpt_deploy import readable
from cpt_deploy.bundle.formatting import json_bytes
from cpt_deploy.bundle.layout import CONFIG_FILE, LABELS_FILE, PREPROCESSOR_FILE
from cpt_deploy.bundle.processors.descriptions import PIXELS, described_ends, described_preprocessing
from cpt_deploy.bundle.processors.pixel_format import PixelFormat
from cpt_deploy.bundle.processors.postprocessing import Prediction, top_k
from cpt_deploy.bundle.processors.preprocessing import Preprocessing
from cpt_deploy.bundle.processors.processor import CardText, ReadFile
from cpt_deploy.errors import BundleError
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME, Signature, TensorSpec

_TAKES = "takes"
"""The key of the bytes that the model takes itself."""
_INPUTS = "inputs"
"""The key under "cpt" in config.json of the preprocessing at the time of export."""

_SHOWN_LABELS = 20


@dataclass(frozen=True)
class ImageProcessor:
    """Preprocessing and labels of an image classifier.

    Args:
        preprocessing: How an image becomes the model's input.
        labels: Names of the classes, in the order of the logits.
        pixels: The bytes of images that the model takes; None if it takes normalised real values.

    Raises:
        BundleError: If labels are not different, non-empty single lines.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...]
    pixels: PixelFormat | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if not labels or any(label.splitlines() != [label] for label in labels) or len(set(labels)) != len(labels):
            raise BundleError(f"Expected labels to be different, non-empty single lines, but got {list(labels[:10])}")

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one row of the model's input."""
        shape = self.preprocessing.input_shape
        return shape if self.pixels is None else self.pixels.shape(*shape)

    @property
    def input(self) -> TensorSpec:
        """The model's input."""
        return TensorSpec(INPUT_NAME, "float32" if self.pixels is None else "uint8", self.row_shape)

    def row(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return one row of the model's input; see `Preprocessing.apply`."""
        if self.pixels is None:
            return self.preprocessing.apply(image)
        return self.pixels.arranged(self.preprocessing.fit(image))

    def inputs(self, images: Sequence[Image.Image | npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[Any]]:
        """Return the model's input for images, (N, ...)."""
        return {INPUT_NAME: np.stack([self.row(image) for image in images])}

    def pixels_of(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return the pixels of rows of the model's input, uint8 (..., H, W, C), red first."""
        if self.pixels is not None:
            return self.pixels.pixels(rows)
        mean, std = (np.asarray(values)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std))
        pixels = np.clip(np.rint((rows * std + mean) * 255), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(pixels, -3, -1))

    def answers(self, outputs: Mapping[str, npt.NDArray[Any]], k: int) -> list[list[Prediction]]:
        """Return the `k` most probable classes of each image, best first."""
        return top_k(outputs[OUTPUT_NAME], self.labels, k)

    @classmethod
    def read(cls, config: Mapping[str, Any], read_file: ReadFile) -> Self:
        """See `Processor`."""
        try:
            labels = tuple(read_file(LABELS_FILE).decode("utf-8").splitlines())
        except UnicodeDecodeError as error:
            raise BundleError(f"Expected UTF-8 text in {LABELS_FILE}, but got: {error}") from error
        try:
            described = _described(read_file)
            pixels = PixelFormat.from_dict(described[PIXELS]) if PIXELS in described else None
            return cls(Preprocessing.from_dict(described["cpt"]), labels, pixels)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"Expected a preprocessing in {PREPROCESSOR_FILE}, but got: {error}") from error

    def files(self) -> dict[str, bytes]:
        """See `Processor`."""
        return {
            PREPROCESSOR_FILE: json_bytes(described_preprocessing(self.preprocessing, self.pixels)),
            LABELS_FILE: "".join(f"{label}\n" for label in self.labels).encode(),
        }

    def config(self) -> dict[str, Any]:
        """See `Processor`; the keys of timm and transformers."""
        return described_ends(self.labels, self.preprocessing)

    def facts(self) -> dict[str, Any]:
        """See `Processor`."""
        takes = {} if self.pixels is None else {_TAKES: str(self.pixels)}
        return {_INPUTS: self.preprocessing.to_dict(), **takes}

    def check(self, signature: Signature) -> None:
        """See `Processor`."""
        expected = Signature(
            (self.input,),
            (TensorSpec(OUTPUT_NAME, "float32", (len(self.labels),)),),
        )
        if signature != expected:
            raise ValueError(
                f"Expected a classifier with one {_described_tensor(expected.inputs[0])}, as the preprocessing makes "
                f"it, and one {_described_tensor(expected.outputs[0])}, one for each label, but this model's are "
                f"{', '.join(map(_described_tensor, (*signature.inputs, *signature.outputs)))}"
            )

    def contradictions(self, config: Mapping[str, Any], read_file: ReadFile) -> list[str]:
        """See `Processor`."""
        exported = exported_preprocessing(config)
        found = [] if exported is None else preprocessing_differences(self.preprocessing, exported, CONFIG_FILE)
        if exported is None:
            found.append(f"{CONFIG_FILE} does not have the preprocessing with which the bundle was exported")
        if self.facts().get(_TAKES) != config["cpt"].get(_TAKES):
            found.append(f"{PREPROCESSOR_FILE} and {CONFIG_FILE} differ in the bytes that the model takes")
        written, expected = _described(read_file), described_preprocessing(self.preprocessing, self.pixels)
        found += differing(PREPROCESSOR_FILE, written, expected, "its entry cpt")
        # compare with the exported preprocessing, so that one edit gives one sentence
        ends = described_ends(self.labels, exported or self.preprocessing)
        return found + differing(CONFIG_FILE, config, ends, f"{LABELS_FILE} and {PREPROCESSOR_FILE}")

    def onnx_metadata(self) -> dict[str, str]:
        """See `Processor`."""
        names = str(dict(enumerate(self.labels)))
        if self.pixels is None:
            return {"task": "classify", "names": names, "Image.NominalPixelRange": "Normalized_0_1"}
        kind = "Gray8" if self.preprocessing.channels == 1 else f"{self.pixels.order.capitalize()}8"
        range_and_kind = {"Image.NominalPixelRange": "NominalRange_0_255", "Image.BitmapPixelFormat": kind}
        return {"task": "classify", "names": names, **range_and_kind}

    def card(self, signature: Signature) -> CardText:
        """See `Processor`."""
        shown = ", ".join(self.labels[:_SHOWN_LABELS])
        more = len(self.labels) - _SHOWN_LABELS
        normalised = f"mean {list(self.preprocessing.mean)}, standard deviation {list(self.preprocessing.std)}"
        return CardText(
            f"An image classifier with {readable.counted(len(self.labels), 'class', 'classes')}",
            ("cpt predict . image.png      # here", "cpt serve .                  # over HTTP"),
            f"`{PREPROCESSOR_FILE}` describes how an image becomes the model's input.",
            {"normalised with": normalised, "classes": shown + (f" and {more} more" if more > 0 else "")},
        )


def exported_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing at the time of export, from config.json; `None` if it has none."""
    try:
        return Preprocessing.from_dict(config["cpt"][_INPUTS])
    except (KeyError, TypeError, ValueError):
        return None


def preprocessing_differences(served: Preprocessing, known: Preprocessing, source: str) -> list[str]:
    """Return the differences of a bundle's preprocessing from another one, as one sentence or an empty list.

    Args:
        served: The preprocessing of preprocessor_config.json.
        known: The preprocessing to compare with.
        source: Where `known` is from.
    """
    ours, theirs = served.to_dict(), known.to_dict()
    found = [f"{key} is {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    return [f"{PREPROCESSOR_FILE} is not as in {source}: {', '.join(found)}"] if found else []


def differing(name: str, found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> list[str]:
    """Return the keys of a file whose values are not those that follow from another source, as one sentence or none."""
    keys = [key for key, value in expected.items() if found.get(key) != value]
    return [f"{', '.join(keys)} of {name} contradict{'s' if len(keys) == 1 else ''} {source}"] if keys else []


def _described(read_file: ReadFile) -> dict[str, Any]:
    content = json.loads(read_file(PREPROCESSOR_FILE))
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} in place of an object")
    return content


def _described_tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name!r} of {tensor.dtype} ({', '.join(map(str, ('N', *tensor.shape)))})"
