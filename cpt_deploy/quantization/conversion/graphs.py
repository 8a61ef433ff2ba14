"""The graphs that a network may become: integers from end to end, or layers on integers with float between them."""

from collections.abc import Callable

from torch import fx, nn

from cpt_deploy.quantization.conversion.capture.exported import capture
from cpt_deploy.quantization.conversion.capture.functional_layers import lift_products
from cpt_deploy.quantization.conversion.capture.padding import lift_paddings
from cpt_deploy.quantization.conversion.capture.parametrized import check_capturable
from cpt_deploy.quantization.conversion.capture.sizes.outputs import fix_output_sizes
from cpt_deploy.quantization.conversion.capture.tracing import trace
from cpt_deploy.quantization.conversion.chosen_layers import mark_excluded
from cpt_deploy.quantization.conversion.comparison.equivalence import Reference
from cpt_deploy.quantization.conversion.lifting import lift
from cpt_deploy.quantization.graph.no_integer_form import NoIntegerFormError, no_integer_form
from cpt_deploy.quantization.graph.operator_kinds import classify, computes, module_of
from cpt_deploy.quantization.graph.shapes import describe, is_tensor, results_of, shape_of

GraphOf = Callable[[Reference], fx.GraphModule]
"""Captures the graph of a network with its results on random batches; does not change the network."""


def graphs_of(reference: Reference, excluded: frozenset[str]) -> list[GraphOf]:
    """Return the graphs to try for a network, in order of preference.

    Branches on `self.training` are traced as in evaluation, then as in training; the last graph has float operations.
    """
    integers = [evaluated, trained] if reference.example.is_float and not excluded else []
    return [*integers, lambda reference: with_float_parts(reference, excluded)]


def evaluated(reference: Reference) -> fx.GraphModule:
    """Capture a graph of integers from end to end, as the network computes in evaluation; see `_of_integers`."""
    return _of_integers(reference, training=False)


def trained(reference: Reference) -> fx.GraphModule:
    """Capture a graph of integers from end to end, as the network computes in training; see `_of_integers`."""
    return _of_integers(reference, training=True)


def with_float_parts(reference: Reference, excluded: frozenset[str]) -> fx.GraphModule:
    """Capture a graph whose layers run on integers, and the operations between them in float.

    Args:
        reference: The network with its results.
        excluded: Paths of modules that stay in float.

    Raises:
        ConversionError: If the network cannot be captured, or products with weights would stay in float.
    """
    source, model = reference.given.to_convert()
    check_capturable(model)
    traced = capture(source, model, reference.example, reference.structure, excluded)
    mark_excluded(traced, excluded)
    return lift(traced, model)


def _of_integers(reference: Reference, *, training: bool) -> fx.GraphModule:
    """Return the graph of a model that is integer from end to end.

    Raises:
        NoIntegerFormError: If an operation has no integer form.
    """
    source, model = reference.given.to_convert()
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
