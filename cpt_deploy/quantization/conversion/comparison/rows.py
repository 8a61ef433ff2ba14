"""Check whether rows of several requests can be computed together: whether a row has the same results alone."""

import torch
from torch import Tensor

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.comparison.equivalence import Reference, are_close
from cpt_deploy.quantization.conversion.comparison.handed_in import untouched
from cpt_deploy.quantization.conversion.comparison.running import Run, varied

#: Factors of the rows that are tried, so that statistics of the batch show.
_SPREAD = (1.0, 4.0, 0.25)
#: Allowed difference of a row's results in a batch with others, relative to the largest that differs.
_INDEPENDENT = 1e-3


def why_apart(reference: Reference) -> str | None:
    """Return why rows of several requests cannot be computed together; None if they can.

    Raises:
        ConversionError: If the sizes of a row's results depend on the number of rows, or if rows depend on each other
            in a network with states.
    """
    example, model = reference.example, reference.given.model
    generator, run, rows = torch.Generator().manual_seed(0), Run(False, 0), range(len(_SPREAD))
    device = reference.batches[0][0].device
    batch = [_spread(x.to(device)) for x in example.random(len(_SPREAD), 1.0, generator)]
    with untouched(model), varied(model):
        together = reference.result(model, tuple(batch), run)
        try:
            alone = [reference.result(model, tuple(x[row : row + 1] for x in batch), run) for row in rows]
        except Exception as error:  # as a BatchNorm without running averages of a single value per channel
            return f"the network does not take a single row: {next(iter(str(error).splitlines()), '')}"
    for place, name in enumerate(reference.structure.names):
        joined, each = together[place], [results[place] for results in alone]
        if any(result.shape != joined[:1].shape for result in each):
            raise ConversionError(
                f"Expected results whose sizes do not depend on the number of rows, but {name!r} is "
                f"{tuple(each[0].shape)} for a single row, and {tuple(joined.shape)} for {len(joined)}",
                hint="return a row for each sample, and compare the rows in the code that reads the results",
            )
        if not are_close(torch.cat(each), joined, _INDEPENDENT):
            if example.states:
                raise ConversionError(
                    f"Expected rows that do not depend on each other beside states, but those of {name!r} do",
                    hint="the first dimension of inputs and results is the batch: batch_first=True",
                )
            return f"the rows of {name!r} depend on each other"
    return None


def _spread(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x * torch.tensor(_SPREAD, device=x.device).view(-1, *[1] * (x.dim() - 1))
