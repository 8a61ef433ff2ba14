"""Convert a float model to a CPT model: quantized layers, and a quantizer on every activation of the graph."""

import math
import warnings
from collections.abc import Callable, Sequence

from torch import fx, nn

from cpt_deploy.errors import ConversionError, CptWarning
from cpt_deploy.quantization.conversion.activation_quantizers import insert_quantizers
from cpt_deploy.quantization.conversion.capture.exported import capture
from cpt_deploy.quantization.conversion.capture.functional_layers import lift_products
from cpt_deploy.quantization.conversion.capture.padding import lift_paddings
from cpt_deploy.quantization.conversion.capture.parametrized import as_parametrizations, check_capturable
from cpt_deploy.quantization.conversion.capture.sizes.outputs import fix_output_sizes
from cpt_deploy.quantization.conversion.capture.tracing import trace
from cpt_deploy.quantization.conversion.chosen_layers import excluded_modules, float_layers, mark_excluded
from cpt_deploy.quantization.conversion.comparison.equivalence import DiffersError, Reference
from cpt_deploy.quantization.conversion.comparison.handed_in import HandedIn, same_randomness, untouched
from cpt_deploy.quantization.conversion.example_inputs import read_example
from cpt_deploy.quantization.conversion.lifting import lift
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError, no_integer_form
from cpt_deploy.quantization.graph.operator_kinds import Kind, classify, computes, kind_of, module_of
from cpt_deploy.quantization.graph.results import complete_signature
from cpt_deploy.quantization.graph.shapes import describe, is_tensor, results_of, shape_of
from cpt_deploy.quantization.graph.signature import DynamicShapes, ExampleInputs, States, check_parameters, unwrapped
from cpt_deploy.quantization.model import Calling, QuantizedModel
from cpt_deploy.quantization.modules.layers import (
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedEmbedding,
    QuantizedLayer,
    quantized_layer,
)
from cpt_deploy.quantization.modules.recurrent import QuantizedRecurrent, RecurrentLayer, quantized_recurrent
from cpt_deploy.quantization.scheduled_model import LayerInfo
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.conversion import Conversion
from cpt_deploy.quantization.state.groups import layer_roles
from cpt_deploy.quantization.state.precision_state import PrecisionState

Trial = Callable[[QuantizedModel], None]

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
        config: Bounds of the bits, and which layers are scheduled.
        dynamic_shapes: Free dimensions beside the batch.
        states: Pairs (input, output) of names.
        trial: Raises a ConversionError for a prepared model that cannot be deployed; then a model that keeps operations
            in float is tried. `cpt_deploy.prepare` freezes the model and writes it as ONNX.

    Raises:
        UsageError: If the example inputs are not such tensors, or `dynamic_shapes` or `states` do not fit them.
        ConversionError: If the model cannot be captured, products with weights have no integer form, or no graph
            computes the same as the model; names the operation and the module.
    """
    model = unwrapped(model)
    example = read_example(model, example_inputs, dynamic_shapes, states)
    check_parameters(model)
    if any(isinstance(module, QuantizedModel) for module in model.modules()):
        raise ConversionError(
            "Expected a float model, but this one is prepared already", hint="prepare the float model"
        )
    given = HandedIn.of(as_parametrizations(model))
    with untouched(model), same_randomness(model):
        reference = Reference.of(given, example)
        prepared, reason = _first_that_is_the_same(reference, config, trial)
    dropped = given.dropped()
    if dropped:
        warnings.warn(
            f"{', '.join(dropped)} does not change the network's computation: the prepared network does not have it",
            CptWarning,
            stacklevel=2,
        )
    prepared.conversion = Conversion("float parts" if reason else "integers", reason, dropped)
    prepared.train(model.training)
    return prepared.to(next((p.device for p in model.parameters()), None))


def _first_that_is_the_same(
    reference: Reference, config: QuantizationConfig, trial: Trial | None
) -> tuple[QuantizedModel, str | None]:
    """Return the first prepared network that computes the same as the original, and why it is not all integers.

    Candidates in order: branches on `self.training` traced as in evaluation; as in training; operations in float.
    """
    reasons: list[NoIntegerFormError] = []
    excluded = excluded_modules(reference.given.model, config)
    for training in (False, True) if reference.example.is_float and not excluded else ():
        source, model = reference.given.to_convert()
        try:
            prepared = _prepared(_integer_graph(source, model, reference, training=training), config, reference)
            reference.check(prepared)
            _try(prepared, trial)
            return prepared, None
        except NoIntegerFormError as error:
            reasons.append(error)
            if not isinstance(error, DiffersError):
                break  # tracing as in training yields no fewer operations
    source, model = reference.given.to_convert()
    try:
        check_capturable(model)
        traced = capture(source, model, reference.example, reference.structure, excluded)
        mark_excluded(traced, excluded)
        lifted = lift(traced, model)
        prepared = _prepared(lifted, config, reference)
        prepared.float_layers = float_layers(lifted)
        reference.check(prepared)
        _join_biases(prepared)
        if trial is not None:
            trial(prepared)
    except ConversionError as error:
        differs = next((reason for reason in reasons if isinstance(reason, DiffersError)), None)
        if differs is None:
            raise
        raise differs from error
    reason = f"excluded from quantization: {', '.join(sorted(excluded))}" if excluded else _TOKENS
    return prepared, reasons[0].reason if reasons else reason


def _try(prepared: QuantizedModel, trial: Trial | None) -> None:
    """Try to deploy a network of integers; if it fails, the error is the reason to keep operations in float."""
    try:
        if trial is not None:
            trial(prepared)
    except ConversionError as error:
        raise NoIntegerFormError(
            error.message, hint=error.hint, reason=f"as integers it cannot be deployed: {error.message}"
        ) from error


def _prepared(traced: fx.GraphModule, config: QuantizationConfig, reference: Reference) -> QuantizedModel:
    """Quantize the layers and activations of a graph in the vocabulary, and return the model."""
    precision = PrecisionState(config.max_bits, config.seed, {group.name: group.max_bits for group in config.groups})
    ends: Sequence[str] = getattr(reference.given.model, "ends", ())
    layers = _replace_layers(traced, precision, config, ends)
    insert_quantizers(traced, precision, config)
    traced.graph.lint()
    traced.recompile()
    device = next((parameter.device for parameter in traced.parameters()), None)
    calling = Calling(reference.example.parameters, reference.structure)
    example = reference.example
    signature = complete_signature(traced, example.signature, reference.structure.names, example.states)
    return QuantizedModel(traced, precision, config, signature, calling, layers).to(device)


def _integer_graph(source: nn.Module, model: nn.Module, reference: Reference, *, training: bool) -> fx.GraphModule:
    """Return the graph of a model that is integer from end to end.

    Raises:
        NoIntegerFormError: If an operation has no integer form.
    """
    traced = trace(source, model, reference.example, reference.structure, training=training)
    if lift_products(traced):  # the network's module no longer needs the parameters that the layers have now
        traced = fx.GraphModule(traced, traced.graph, class_name=type(model).__name__)
    lift_paddings(traced)
    fix_output_sizes(traced, reference.example.signature)
    _check_parameters(traced)
    for node in traced.graph.nodes:
        if computes(node):
            classify(node, traced)
            _check_features(node, traced)
        elif "parts" in node.meta or ("other" in node.meta and node.op.startswith("call")):  # a mask, positions
            raise no_integer_form(node, traced)
    _check_output(traced)
    return traced


def _check_parameters(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if node.op == "get_attr" and any(is_tensor(user) for user in node.users):
            raise NoIntegerFormError(
                f"Expected parameters in layers only, but got the bare parameter {node.target!r}",
                reason=f"the parameter {node.target!r} is outside of a layer",
            )


def _check_features(node: fx.Node, traced: fx.GraphModule) -> None:
    if isinstance(module_of(node, traced), nn.Linear) and len(shape_of(node)) != 1:
        place = describe(node, traced)
        raise NoIntegerFormError(
            f"Expected Linear layers on (N, features) at {place}", reason=f"{place} works on more than (N, features)"
        )


def _check_output(traced: fx.GraphModule) -> None:
    for result in results_of(traced.graph):
        if not is_tensor(result) or result.op == "get_attr":
            raise NoIntegerFormError(
                "Expected a model that returns floating-point values of its inputs, but it returns others",
                reason="a result is no floating-point tensor",
            )


# --- layers ---------------------------------------------------------------------------------------------------------


def _is_end(target: str, traced: fx.GraphModule, ends: Sequence[str]) -> bool:
    """Return whether a layer is at an end of the network: an Embedding, or in one of the modules that it names."""
    return isinstance(traced.get_submodule(target), nn.Embedding) or any(
        f"{target}.".startswith(f"{end}.") for end in ends
    )


def _replace_layers(
    traced: fx.GraphModule, precision: PrecisionState, config: QuantizationConfig, ends: Sequence[str]
) -> list[LayerInfo]:
    calls = [node for node in traced.graph.nodes if kind_of(node, traced) in (Kind.LAYER, Kind.RECURRENT)]
    if not calls:
        raise ConversionError("Expected a model with at least one Conv, Linear, LSTM or GRU layer, but got none")
    targets = list(dict.fromkeys(str(node.target) for node in calls))
    roles = layer_roles(targets, config, {target for target in targets if _is_end(target, traced, ends)})
    infos: list[LayerInfo] = []
    for target in targets:
        module, index, role = traced.get_submodule(target), len(infos), roles[target]
        nodes = [node for node in calls if node.target == target]
        if isinstance(module, RecurrentLayer):
            recurrent = quantized_recurrent(module, precision, role, index, config.range_momentum)
            traced.set_submodule(target, recurrent)
            infos += _products(target, recurrent, sum(_steps(node) for node in nodes))
            continue
        layer = quantized_layer(module, precision, role, index)
        traced.set_submodule(target, layer)
        macs = sum(_macs(node, layer) for node in nodes)
        infos.append(LayerInfo(target, macs, role, layer.weight_shape.numel()))
    return infos


def _products(target: str, layer: QuantizedRecurrent, steps: int) -> list[LayerInfo]:
    """Return the two products of a recurrent layer that runs `steps` steps per sample."""
    parts = (("input_layer", layer.input_layer), ("hidden_layer", layer.hidden_layer))
    sizes = ((part, product.weight_shape.numel()) for part, product in parts)
    return [LayerInfo(f"{target}.{part}", steps * size, layer.role, size) for part, size in sizes]


def _steps(node: fx.Node) -> int:
    return int(node.all_input_nodes[0].meta["shape"][0])  # the time comes first


def _join_biases(prepared: QuantizedModel) -> None:
    """Give LSTMs one bias instead of two, after the comparison with the network, which has two."""
    for module in prepared.modules():
        if isinstance(module, QuantizedRecurrent):
            module.join_biases()


def _macs(node: fx.Node, layer: QuantizedLayer) -> int:
    """Return multiply-accumulates per sample of one call of a layer."""
    if isinstance(layer, QuantizedEmbedding):
        return 0
    if isinstance(layer, QuantizedConvTranspose1d | QuantizedConvTranspose2d):
        values = node.all_input_nodes[0].meta["shape"]  # each value is multiplied by all weights of its channel
        return int(math.prod(values)) // 2 * (layer.weight_shape.numel() // layer.in_channels)
    outputs = int(math.prod(node.meta["shape"])) // 2  # of a batch of 2
    return outputs * math.prod(layer.weight_shape[1:])
