"""The adapter of image classification: images in, logits or labels out."""

import base64
from typing import Any

from PIL import Image

from cpt_deploy.bundle import Bundle, ImageProcessor, decode_image
from cpt_deploy.bundle.processors.postprocessing import Prediction
from cpt_deploy.signature import INPUT_NAME, TensorSpec
from cpt_serving.adapters.adapter import Adapter, Received
from cpt_serving.adapters.image_inputs import ImageReader
from cpt_serving.adapters.samples import Samples, drawing_style, list_samples, sample_image, to_png
from cpt_serving.inference.memory import MemoryBudget
from cpt_serving.inference.model import Tensors
from cpt_serving.inference.threads import Work
from cpt_serving.oip.datatypes import FLOATS
from cpt_serving.oip.schemas import InferInput
from cpt_serving.oip.tensors import Array
from cpt_serving.settings import ServeSettings
from cpt_serving.web.uploads import EncodedImage, parse_json

_EXAMPLE_SIDE = 32


class ImageAdapter(Adapter):
    """One version of an image classifier."""

    form = "image"

    def __init__(self, bundle: Bundle, settings: ServeSettings, memory: MemoryBudget) -> None:
        super().__init__(bundle, settings, memory)
        self._processor = bundle.expect_processor(ImageProcessor)
        self.labels = self._processor.labels
        self._reader = ImageReader(self._processor, settings, memory)

    def load(self) -> None:
        """See `Adapter`."""
        image = sample_image(self._processor, self.bundle.golden, 0)
        image.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
        # Pillow loads its formats at the first image, which should not delay a client.
        decode_image(to_png(image))
        super().load()

    def read(self, spec: TensorSpec, tensor: InferInput, work: Work) -> Array:
        """See `Adapter`; reads pixels and image files too, see `ImageReader.read_tensor`.

        A model that takes bytes gets those of the input's own shape as they are.
        """
        bytes_of_model = self._processor.pixels is not None and [*tensor.shape[1:]] == [*spec.shape]
        as_it_is = tensor.datatype in FLOATS or (tensor.datatype == "UINT8" and bytes_of_model)
        return super().read(spec, tensor, work) if as_it_is else self._reader.read_tensor(tensor, work)

    def receive(self, content: list[EncodedImage] | bytes) -> Received:
        """See `Adapter`; files, or JSON as `parse_json` describes it."""
        uploads = parse_json(content, max_rows=self.settings.max_rows) if isinstance(content, bytes) else content
        return Received(len(uploads), lambda work: self.complete({INPUT_NAME: self._reader.read(uploads, work)}))

    def predictions(self, outputs: Tensors, top_k: int) -> list[list[Prediction]]:
        """See `Adapter`; the most probable classes of each image, best first."""
        return self._processor.answers(outputs, top_k)

    def examples(self) -> dict[str, Any]:
        """See `Adapter`."""
        image = base64.b64encode(to_png(Image.linear_gradient("L").resize((16, 16)))).decode()
        return {
            "one image": {"image": image},
            "several images": {"images": [image, image]},
            "pixels": {"instances": [[[0, 128], [255, 64]]]},
        }

    def facts(self) -> dict[str, int | str | None]:
        """See `Adapter`."""
        channels, height, width = self._processor.preprocessing.input_shape
        return {
            "input": f"{width} x {height} {'grey' if channels == 1 else 'colour'}",
            "classes": len(self.labels),
        }

    def samples(self) -> Samples:
        """See `Adapter`."""
        golden = self.bundle.golden
        return Samples(list_samples(self._processor, golden), drawing_style(self._processor, golden))

    def sample_png(self, index: int) -> bytes:
        """See `Adapter`; the image has the size of the model's input."""
        return to_png(sample_image(self._processor, self.bundle.golden, index))
