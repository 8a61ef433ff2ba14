"""Convert a float model to a CPT model: quantized layers, and a quantizer on every activation of the graph."""

import warnings
from collections.abc import Callable, Sequence

from torch import fx, nn

from cpt_deploy.errors import ConversionError, CptWarning
from cpt_deploy.quantization.conversion.activation_quantizers import insert_quantizers
from cpt_deploy.quantization.conversion.chosen_layers import excluded_modules, float_layers
from cpt_deploy.quantization.conversion.comparison.equivalence import DiffersError, Reference
from cpt_deploy.quantization.conversion.comparison.handed_in import HandedIn
from cpt_deploy.quantization.conversion.comparison.rows import why_apart
from cpt_deploy.quantization.conversion.example_inputs import read_example
from cpt_deploy.quantization.conversion.graphs import graphs_of
from cpt_deploy.quantization.conversion.quantized_layers import replace_layers
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError
from cpt_deploy.quantization.graph.results import complete_signature
from cpt_deploy.quantization.graph.signature import DynamicShapes, Example, ExampleInputs, States
from cpt_deploy.quantization.model import Calling, QuantizedModel
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent
from cpt_deploy.quantization.state.config import REAL_ZERO_POINTS, QuantizationConfig
from cpt_deploy.quantization.state.conversion import Conversion
from cpt_deploy.quantization.state.precision_state import PrecisionState

Trial = Callable[[QuantizedModel, Example], None]

_TOKENS = "networks of token ids keep the operations between their layers in float"


def prepare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    config: QuantizationConfig,
    *,
    dynamic_shapes: DynamicShapes = None,
    states: States = None,
    trial: Trial | None = None,
) -> QuantizedModel:
    """Convert a float model to one that trains with cyclic precision; `cpt_deploy.prepare` documents it.

    Args:
        model: The float model.
        example_inputs: Its inputs.
        config: Bounds of the bits, which layers are scheduled, and the quantizers.
        dynamic_shapes: Free dimensions beside the batch.
        states: Pairs (input, output) of names.
        trial: Called with a prepared model and its example; raises a ConversionError if the model cannot be deployed.
            Then one with operations in float is tried. `cpt_deploy.prepare` freezes the model and writes it as ONNX.

    Raises:
        UsageError: If the example inputs are not such tensors, or `dynamic_shapes` or `states` do not fit them.
        ConversionError: If the model cannot be captured, products with weights have no integer form, or no graph
            computes the same as the model; names the operation and the module.
    """
    given = HandedIn.of(model)
    example = read_example(given.network, example_inputs, dynamic_shapes, states)
    with given.untouched():
        reference = Reference.of(given, example)
        prepared, reason = _first_that_is_the_same(reference, config, trial)
        apart = why_apart(reference)
    dropped = given.dropped()
    if dropped:
        warnings.warn(
            f"{', '.join(dropped)} does not change the network's computation: the prepared network does not have it",
            CptWarning,
            stacklevel=2,
        )
    if config.scheme == "sbm":
        prepared.conversion = Conversion("training only", REAL_ZERO_POINTS, dropped)
    else:
        prepared.conversion = Conversion("float parts" if reason else "integers", reason, dropped, apart)
    if apart and config.scheme != "sbm":
        warnings.warn(
            f"each request will be computed by itself: {apart}; if the first dimension is not the batch, make it the "
            "batch: batch_first=True",
            CptWarning,
            stacklevel=2,
        )
    prepared.train(given.network.training)
    return prepared.to(given.device)


def _first_that_is_the_same(
    reference: Reference, config: QuantizationConfig, trial: Trial | None
) -> tuple[QuantizedModel, str | None]:
    """Return the first prepared network that computes the same as the original, and why it is not all integers."""
    reasons: list[NoIntegerFormError] = []
    excluded = excluded_modules(reference.given.model, config)
    *integers, with_float_parts = graphs_of(reference, excluded)
    for graph_of in integers if config.scheme == "integers" else []:
        try:
            prepared = _prepared(graph_of(reference), config, reference)
            _try(prepared, reference.example, trial)
            return prepared, None
        except NoIntegerFormError as error:
            reasons.append(error)
            if not isinstance(error, DiffersError):
                break  # tracing as in training yields no fewer operations
    try:
        prepared = _prepared(with_float_parts(reference), config, reference)
        if trial is not None:
            trial(prepared, reference.example)
    except ConversionError as error:
        differs = next((reason for reason in reasons if isinstance(reason, DiffersError)), None)
        if differs is None:
            raise
        raise differs from error
    reason = f"excluded from quantization: {', '.join(sorted(excluded))}" if excluded else _TOKENS
    return prepared, reasons[0].reason if reasons else reason


def _try(prepared: QuantizedModel, example: Example, trial: Trial | None) -> None:
    """Try to deploy a network of integers; if it fails, the error is the reason to keep operations in float."""
    try:
        if trial is not None:
            trial(prepared, example)
    except ConversionError as error:
        raise NoIntegerFormError(
            error.message, hint=error.hint, reason=f"as integers it cannot be deployed: {error.message}"
        ) from error


def _prepared(traced: fx.GraphModule, config: QuantizationConfig, reference: Reference) -> QuantizedModel:
    """Quantize the layers and activations of a captured graph, and compare with the network.

    Raises:
        DiffersError: If it computes something else.
    """
    example, kept = reference.example, float_layers(traced)
    precision = PrecisionState(config.max_bits, config.seed, {group.name: group.max_bits for group in config.groups})
    ends: Sequence[str] = getattr(reference.given.model, "ends", ())
    layers = replace_layers(traced, precision, config, ends)
    insert_quantizers(traced, precision, config)
    traced.graph.lint()
    traced.recompile()
    signature = complete_signature(traced, example.signature, reference.structure.names, example.states)
    calling = Calling(example.parameters, reference.structure)
    prepared = QuantizedModel(traced, precision, config, signature, calling, layers).to(reference.given.device)
    prepared.float_layers = kept
    reference.check(prepared)
    _join_biases(prepared)
    return prepared


def _join_biases(prepared: QuantizedModel) -> None:
    """Give LSTMs one bias instead of two, after the comparison with the network, which has two."""
    for module in prepared.modules():
        if isinstance(module, QuantizedRecurrent):
            module.join_biases()
