"""Images at the size and with the channels of the model's input; decoded images are cached in memory."""

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data.images import ArrayImages, ImageSet, Pixels
from cpt_deploy.data.shared import SharedArray


class FittedImages:
    """Images as `Preprocessing.fit` returns them, uint8 (N, H, W, C).

    Arrays that already have that size are only indexed. Other images are decoded and scaled once and then kept, if all
    of them fit the budget. The memory is shared with loading processes, and allocated as it fills.

    Args:
        source: The images.
        preprocessing: Channels and size.
        budget: Maximum number of bytes for cached images.
    """

    def __init__(self, source: ImageSet, preprocessing: Preprocessing, budget: int = 0) -> None:
        self.source, self.preprocessing = source, preprocessing
        self._kept: SharedArray | None = None
        self._filled: SharedArray | None = None
        needed = self.bytes_kept
        if needed and needed + len(source) <= budget:
            shape = (len(source), *preprocessing.size, preprocessing.channels)
            self._kept, self._filled = SharedArray(shape), SharedArray((len(source),))

    @property
    def bytes_kept(self) -> int:
        """The number of bytes needed to cache all images; 0 if nothing has to be decoded."""
        if self._only_picks:
            return 0
        height, width = self.preprocessing.size
        return len(self.source) * height * width * self.preprocessing.channels

    @property
    def is_kept(self) -> bool:
        """Whether decoded images are cached."""
        return self._kept is not None

    @property
    def _only_picks(self) -> bool:
        images, wanted = self.source, self.preprocessing
        if not isinstance(images, ArrayImages) or images.size != wanted.size:
            return False
        return wanted.resize in {None, min(images.size)} and (images.channels == 1 or wanted.channels == 3)

    def pick(self, chosen: npt.NDArray[np.int64]) -> Pixels:
        """Return the chosen images, uint8 (N, H, W, C).

        Raises:
            DataError: If an image cannot be read; the message names it.
        """
        images = self.source
        if isinstance(images, ArrayImages) and self._only_picks:
            pixels: Pixels = images.pixels[chosen]
            return pixels if images.channels == 3 else np.repeat(pixels[..., None], self.preprocessing.channels, -1)
        if self._kept is None or self._filled is None:
            return np.stack([self.preprocessing.fit(images.image(int(index))) for index in chosen])
        kept, filled = self._kept.values, self._filled.values
        for index in chosen[filled[chosen] == 0]:
            # Two processes may decode the same image at once: they write the same bytes, and set the mark after them.
            kept[index] = self.preprocessing.fit(images.image(int(index)))
            filled[index] = 1
        picked: Pixels = kept[chosen]
        return picked
