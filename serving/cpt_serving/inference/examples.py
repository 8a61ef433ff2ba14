"""An image that a model was exported with, to warm it up."""

from cpt_deploy.bundle import Bundle
from cpt_serving.samples import sample_image, to_png

_LARGEST_SIDE = 32


def example_image(bundle: Bundle) -> bytes:
    """Return the first golden input as a small PNG file."""
    image = sample_image(bundle, 0)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return to_png(image)
