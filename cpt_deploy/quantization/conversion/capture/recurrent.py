"""Keep each layer of an LSTM or a GRU as one operation of a captured graph, of free batch size and length.

`torch.export` would make the length a constant. So while a network is captured, its LSTMs and GRUs are replaced by
modules that call an operator of this project for each layer and direction, and do what is between these in ATen
operators: the order of axes, the concatenation of directions, dropout. Afterwards `RecurrentLayer`s replace the
operators.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization.conversion.capture.aten import aten
from cpt_deploy.quantization.conversion.capture.training_behaviour import Mark, replaced
from cpt_deploy.quantization.graph.naming import replace_by_module
from cpt_deploy.quantization.modules.recurrent import RecurrentLayer

RecurrentModule = nn.LSTM | nn.GRU

#: Runs one layer in one direction: its number, whether in reverse, steps (T, N, I), and the state, (N, H) each.
Run = Callable[[int, bool, Tensor, list[Tensor]], list[Tensor]]


@torch.library.custom_op("cpt_deploy::recurrent", mutates_args=())
def _recurrent(x: Tensor, state: list[Tensor], name: str, layer: int, reverse: bool) -> list[Tensor]:
    """Represent one layer of a module: (T, N, I) and its state to (T, N, H) and the state after the last step."""
    return _shaped(x, state)


@_recurrent.register_fake
def _(x: Tensor, state: list[Tensor], name: str, layer: int, reverse: bool) -> list[Tensor]:
    return _shaped(x, state)


def _shaped(x: Tensor, state: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(*x.shape[:2], state[0].shape[1]), *(torch.empty_like(part) for part in state)]


class _RecurrentMark(Mark):
    """Replaces an LSTM or GRU during capture."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        module = self.marked
        assert isinstance(module, RecurrentModule)
        _check(self._mark_of, module, x)

        def run(layer: int, reverse: bool, steps: Tensor, before: list[Tensor]) -> list[Tensor]:
            result: list[Tensor] = torch.ops.cpt_deploy.recurrent(steps, before, self._mark_of, layer, reverse)
            return result

        return _layers(module, x, state, run)


def _check(name: str, module: RecurrentModule, x: Any) -> None:
    kind = type(module).__name__
    computed = parametrize.is_parametrized(module)
    reason, hint = {
        computed: ("whose weights are parameters, but they are computed", "remove its parametrizations"),
        module.proj_size > 0: (f"without projection, but proj_size is {module.proj_size}", "use a Linear after it"),
        not isinstance(x, Tensor): ("that reads a tensor, but it is called on packed sequences", "pad and mask them"),
        isinstance(x, Tensor) and x.dim() != 3: ("that reads batches of sequences, (N, T, I)", "add a batch dimension"),
    }.get(True, ("", ""))
    if reason:
        raise ConversionError(
            f"Expected {'an' if kind == 'LSTM' else 'a'} {kind} {reason}, in module {name!r}", hint=hint
        )


def _layers(module: RecurrentModule, x: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
    """Run all layers and directions of a module as torch does, each by `run`."""
    steps = x.transpose(0, 1) if module.batch_first else x
    parts = 2 if isinstance(module, nn.LSTM) else 1
    directions = (False, True) if module.bidirectional else (False,)
    if state is None:
        zeros = steps.new_zeros(steps.shape[1], module.hidden_size)
        before = [[zeros] * (module.num_layers * len(directions))] * parts
    else:
        alone = module.num_layers * len(directions) == 1
        given = state if parts == 2 else (state,)
        before = [[part.squeeze(0)] if alone else list(part.unbind(0)) for part in given]
    after: list[list[Tensor]] = [[] for _ in range(parts)]
    for layer in range(module.num_layers):
        if layer and module.dropout:
            steps = functional.dropout(steps, module.dropout, True)
        outputs = []
        for place, reverse in enumerate(directions, layer * len(directions)):
            made, *ends = run(layer, reverse, steps, [part[place] for part in before])
            outputs.append(made)
            for part, end in zip(after, ends, strict=True):
                part.append(end)
        steps = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    last = tuple(torch.stack(part) if len(part) > 1 else part[0].unsqueeze(0) for part in after)
    return steps.transpose(0, 1) if module.batch_first else steps, last if parts == 2 else last[0]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module computes what its class does; hooks and replaced forwards have to be captured with it."""
    if not isinstance(module, RecurrentModule):
        return False
    own = "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    return not own and type(module).forward in (nn.LSTM.forward, nn.GRU.forward)


@contextmanager
def recurrent_layers(model: nn.Module, excluded: Set[str]) -> Iterator[None]:
    """Inside the context, operators represent the LSTMs and GRUs of a model; excluded ones stay what they are."""
    with replaced(model, lambda name, module: name not in excluded and _is_plain(module), _RecurrentMark):
        yield


def lift_recurrent(traced: fx.GraphModule, model: nn.Module) -> None:
    """Replace the operators by layers, which share the parameters of the model."""
    made: dict[str, nn.Module] = {}
    for node in list(traced.graph.nodes):
        if node.target is not torch.ops.cpt_deploy.recurrent.default:
            continue
        x, state, name, number, reverse = node.args
        module = model.get_submodule(str(name))
        assert isinstance(module, RecurrentModule)
        for unread in [node for node in traced.graph.find_nodes(op="get_attr") if not node.users]:
            traced.graph.erase_node(unread)  # parameters of the module that the layers replace
        several = module.num_layers > 1 or module.bidirectional
        path = f"{name}.l{number}" + ("_reverse" if reverse else "") if several else str(name)
        layer = made.setdefault(path, RecurrentLayer(module, int(str(number)), reverse=bool(reverse)))
        replace_by_module(traced, node, path, layer, (x, *state))
    _cancel_squeezes(traced)


def _cancel_squeezes(traced: fx.GraphModule) -> None:
    """Remove pairs of an axis that is added and removed again: what is between layers and modules of one layer."""
    for node in traced.graph.nodes:
        source = node.all_input_nodes[0] if node.target is aten.squeeze.dim else None
        if source is not None and source.target is aten.unsqueeze.default and source.args[1] == node.args[1]:
            node.replace_all_uses_with(source.all_input_nodes[0])
