"""A whole layer of a BERT as one function with a gradient of its own, on a GPU.

Families of `Family.like_bert` have layers of modules (attention.self, attention.output, intermediate, output). Run one by one,
autograd would add four gradients to one another at every layer's input, and passes over all activations for biases, dropout,
sums and norms would take more time than the products. Here query, key and value are one product; biases wait for whoever
reads the activations next (attention, the norm, GELU); a gradient that others come to is added up inside the product that
gives it. What the leaves own stays theirs: the modules only lend their code.

Reference, for the tests: the model's own code through the leaves of layers.py, from trial to trial. Everything here runs on a
processor too, by the references of backbone/blocks.py, rows.py and varlen.py.
Notation: K trials, N rows of tokens, B sequences, D width of the model, E width between its last two products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fleetune.backbone import blocks, varlen
from fleetune.backbone.laid import Asked, Drawing, LaidRows
from fleetune.backbone.stream import Current, Stream
from fleetune.cohort.grouped import add_update, add_update_backward
from fleetune.cohort.layers import CohortDropout, CohortLayerNorm, CohortLinear
from fleetune.cohort.tables import Stacked, Table, Tables


@dataclass(frozen=True, slots=True)
class Bias:
    """A bias of each trial, [K, W], or one for all, [1, W]."""

    values: Tensor
    owned: Table | None
    """Where trials own it."""

    def add(self, grad: Tensor, rows: LaidRows) -> None:
        """Add the sum of each owner's rows of the gradient."""
        if self.owned is not None:
            self.owned.add_sums(grad, rows)


@dataclass(frozen=True, slots=True)
class Update:
    """The low-rank updates of trials at one leaf, and the dropout of their input."""

    owned: Stacked
    drawing: Drawing | None

    def forward(self, y: Tensor, x: Tensor, rows: LaidRows) -> Tensor:
        """Add them to y; returns what `backward` wants."""
        return add_update(y, x, self.owned, rows, self.drawing)

    def backward(
        self, grad: Tensor, to_input: Tensor | None, x: Tensor, narrow: Tensor, rows: LaidRows
    ) -> None:
        """Add their part to the gradient of x and to those of the factors."""
        add_update_backward(grad, to_input, x, narrow, self.owned, rows, self.drawing)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm of (dropout of (y + bias) + residual)."""

    bias: Bias
    drawing: Drawing | None
    weight: Tensor
    shift: Bias
    eps: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pass wants of one layer."""

    asked: Asked
    """Of attention."""
    heads: int
    rows: LaidRows
    """Behind attention: all tokens, or each sequence's first."""
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    """Of query, key and value, [3 D, D]; attention's output, [D, D]; the intermediate, [E, D]; the output, [D, E]."""
    bias: Table | None
    """Of query, key and value, [K, 3 D], added inside attention; None where `shared` is added to their product."""
    shared: Tensor | None
    """[3 D]."""
    updates: tuple[Update | None, ...]
    """Of query, key, value, attention's output, the intermediate and the output."""
    attended: Norm
    inner: Bias
    """Before GELU."""
    left: Norm

    @property
    def first(self) -> Tensor | None:
        """The rows that are wanted behind attention; None: all."""
        return self.asked.laid.first_tokens if self.asked.first_only else None

    @property
    def asks_below(self) -> bool:
        """Whether a trial owns any of query, key and value."""
        return self.bias is not None or any(self.updates[:3])

    @property
    def owns(self) -> bool:
        """Whether a trial owns anything in the layer."""
        norms = (self.attended, self.left)
        biases = (self.inner, *(bias for norm in norms for bias in (norm.bias, norm.shift)))
        return self.bias is not None or any(self.updates) or any(bias.owned for bias in biases)


def bert_layer(x: Tensor, plan: Plan, asks: Tensor | None) -> Tensor:
    """The layer's output, [N, D], or [B, D] of first tokens alone; x: [N, D].

    asks: a scalar that requires grad where a trial owns something in the layer, since that is none of the arguments.
    """
    return _BertLayer.apply(x, asks, plan)  # type: ignore[no-any-return]


class _BertLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _asks: Tensor | None, plan: Plan) -> Tensor:
        joined, outward, inward, back = plan.weights
        tokens, rows, first = plan.asked.laid.tokens, plan.rows, plan.first
        narrow: list[Tensor | None] = [None] * len(plan.updates)
        qkv = linear(x, joined, plan.shared)
        for i, (update, y) in enumerate(zip(plan.updates[:3], qkv.chunk(3, 1), strict=True)):
            narrow[i] = update and update.forward(y, x, tokens)
        out, sums = varlen.forward(*_by_head(qkv, plan), plan.asked, _values(plan.bias))
        found, residual = out.flatten(1), x
        if first is not None:
            found, residual = found.index_select(0, first), x.index_select(0, first)

        def product(i: int, x: Tensor, weight: Tensor) -> Tensor:
            y, update = linear(x, weight), plan.updates[i]
            narrow[i] = update and update.forward(y, x, rows)
            return y

        h, *attended = _norm(product(3, found, outward), residual, plan.attended, rows)
        inner = product(4, h, inward)
        active = blocks.gelu(inner, plan.inner.values, rows)
        y, *left = _norm(product(5, active, back), h, plan.left, rows)
        ctx.plan = plan
        # Of the inputs of products only those that gradients of factors read.
        of_factors = (
            x if any(plan.updates[:3]) else None,
            h if plan.updates[4] else None,
            active if plan.updates[5] else None,
        )
        ctx.save_for_backward(*of_factors, qkv, out, sums, *attended, inner, *left, *narrow)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        plan: Plan = ctx.plan
        joined, outward, inward, back = plan.weights
        x, h, active, qkv, out, sums, *rest = ctx.saved_tensors
        attended, inner, left, narrow = rest[:2], rest[2], rest[3:5], rest[5:]
        tokens, rows, first = plan.asked.laid.tokens, plan.rows, plan.first
        asks_x: bool = ctx.needs_input_grad[0]

        to_y, to_h = _norm_backward(grads[0].contiguous(), left, plan.left, rows)
        to_active = to_y @ back
        if (update := plan.updates[5]) is not None:
            update.backward(to_y, to_active, active, narrow[5], rows)
        to_inner = blocks.gelu_backward(to_active, inner, plan.inner.values, rows)
        plan.inner.add(to_inner, rows)
        to_h.addmm_(to_inner, inward)
        if (update := plan.updates[4]) is not None:
            update.backward(to_inner, to_h, h, narrow[4], rows)

        to_y, to_x = _norm_backward(to_h, attended, plan.attended, rows)
        to_out = to_y @ outward
        if (update := plan.updates[3]) is not None:
            found = out.flatten(1)
            found = found if first is None else found.index_select(0, first)
            update.backward(to_y, to_out, found, narrow[3], rows)
        if not (asks_x or plan.asks_below):
            return None, None, None
        to_qkv = torch.empty_like(qkv)
        if first is not None:
            to_qkv.chunk(3, 1)[0].zero_()
            to_out, to_x = (_spread(part, first, len(qkv)) for part in (to_out, to_x))
        varlen.backward(
            *_by_head(qkv, plan), out, sums, to_out.view(out.shape), plan.asked, _by_head(to_qkv, plan),
            _values(plan.bias),
        )  # fmt: skip
        if plan.bias is not None:
            plan.bias.add_sums(to_qkv, tokens)
        to_input = to_x.addmm_(to_qkv, joined) if asks_x else None
        for i, (update, grad) in enumerate(zip(plan.updates[:3], to_qkv.chunk(3, 1), strict=True)):
            if update is not None:
                update.backward(grad, to_input, x, narrow[i], tokens)
        return to_input, None, None


def _by_head(qkv: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Views of query, key and value, [N, heads, width of a head] each."""
    q, k, v = qkv.view(len(qkv), 3, plan.heads, -1).unbind(1)
    return q, k, v


def _values(bias: Table | None) -> Tensor | None:
    return None if bias is None else bias.values


def _norm(y: Tensor, residual: Tensor, norm: Norm, rows: LaidRows) -> tuple[Tensor, Tensor, Tensor]:
    return blocks.residual_norm(
        y, residual, norm.bias.values, norm.weight, norm.shift.values, norm.eps, rows, norm.drawing
    )


def _norm_backward(
    grad: Tensor, kept: list[Tensor], norm: Norm, rows: LaidRows
) -> tuple[Tensor, Tensor]:
    """Gradients of what is normed and of the residual; those of the biases go where they belong."""
    norm.shift.add(grad, rows)
    summed, moments = kept
    to_y, to_residual = blocks.residual_norm_backward(
        grad, summed, moments, norm.weight, rows, norm.drawing
    )
    norm.bias.add(to_y, rows)
    return to_y, to_residual


def _spread(found: Tensor, at: Tensor, count: int) -> Tensor:
    """Rows at their places among so many, zero elsewhere."""
    return found.new_zeros(count, found.shape[1]).index_copy_(0, at, found)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The modules of one layer."""

    own: nn.Module
    """Attention's own: it knows its place and whether it reads first tokens alone."""
    joined: tuple[CohortLinear, CohortLinear, CohortLinear]
    linear: tuple[CohortLinear, CohortLinear, CohortLinear]
    dropouts: tuple[CohortDropout, CohortDropout, CohortDropout]
    """Of attention's probabilities, behind its output, and behind the layer's."""
    norms: tuple[CohortLayerNorm, CohortLayerNorm]
    weight: Tensor
    bias: Tensor

    @property
    def leaves(self) -> tuple[str, ...]:
        return tuple(leaf.name for leaf in self.joined)

    def plan(self, stream: Stream, tables: Tables) -> Plan:
        """What this pass wants of the layer."""
        laid, noise = stream.laid, stream.noise
        assert laid is not None
        first_only = stream.first_tokens_only and bool(
            getattr(self.own, "fleetune_reads_first", False)
        )
        rows = laid.sequences if first_only else laid.tokens

        def drawing(dropout: CohortDropout, name: str) -> Drawing | None:
            if noise is None or not any(rates := noise.rates(dropout.p)):
                return None
            return laid.drawing(rates, name, stream.next_call(name))

        def update(leaf: CohortLinear) -> Update | None:
            owned = tables.at(leaf.name)
            if owned is None or owned.down is None:
                return None
            return Update(owned, leaf.drawing(owned, stream))

        def norm(leaf: CohortLinear, dropout: CohortDropout, norm: CohortLayerNorm) -> Norm:
            assert norm.weight is not None
            return Norm(
                _bias(tables, leaf),
                drawing(dropout, dropout.name),
                norm.weight,
                _bias(tables, norm),
                norm.eps,
            )

        table = tables.side_by_side(self.leaves)
        site: str = self.own.fleetune_site  # type: ignore[assignment]
        heads: int = self.own.num_attention_heads  # type: ignore[assignment]
        outward, inward, back = self.linear
        scale = (len(self.bias) // 3 // heads) ** -0.5
        drawn = drawing(self.dropouts[0], site)
        return Plan(
            Asked(laid, scale, None, first_only, drawn),
            heads,
            rows,
            (self.weight, outward.weight, inward.weight, back.weight),
            table,
            self.bias if table is None else None,
            tuple(update(leaf) for leaf in (*self.joined, *self.linear)),
            norm(outward, self.dropouts[1], self.norms[0]),
            _bias(tables, inward),
            norm(back, self.dropouts[2], self.norms[1]),
        )


def _bias(tables: Tables, leaf: CohortLinear | CohortLayerNorm) -> Bias:
    owned = tables.at(leaf.name)
    if owned is not None and owned.bias is not None:
        return Bias(owned.bias.values, owned.bias)
    assert leaf.bias is not None
    return Bias(leaf.bias.detach()[None], None)


def lend(model: nn.Module, current: Current) -> list[tuple[str, ...]]:
    """Let the layers of a model of a BERT's shape run as one function each.

    Returns the leaves that one product serves from now on, layer by layer.
    """
    layers = [(module, found) for module in model.modules() if (found := _layer(module))]
    for module, layer in layers:
        module.forward = _lent(current, module.forward, layer)
    return [layer.leaves for _, layer in layers]


def _lent(current: Current, plain: Callable[..., Tensor], layer: _Layer) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        stream, tables = current.require(), current.active.tables
        if tables is None or stream.laid is None:
            return plain(hidden_states, *args, **named)
        plan = layer.plan(stream, tables)
        return bert_layer(hidden_states.squeeze(0), plan, tables.asks if plan.owns else None)[None]

    return forward


def _layer(module: nn.Module) -> _Layer | None:
    """The parts of a BERT's layer, where the module is one whose every part is known."""
    own = _at(module, "attention.self")
    joined = [_at(own, name) for name in ("query", "key", "value")]
    dense = [_at(module, name) for name in ("attention.output.dense", "intermediate.dense", "output.dense")]  # fmt: skip
    dropouts = [_at(own, "dropout"), *(_at(module, f"{name}output.dropout") for name in ("attention.", ""))]  # fmt: skip
    norms = [_at(module, f"{name}output.LayerNorm") for name in ("attention.", "")]
    known = (
        all(isinstance(leaf, CohortLinear) and leaf.bias is not None for leaf in joined + dense)  # pyright: ignore[reportUnnecessaryComparison]
        and all(isinstance(leaf, CohortDropout) for leaf in dropouts)
        and all(isinstance(leaf, CohortLayerNorm) and leaf.bias is not None for leaf in norms)
        and _is_gelu(_at(module, "intermediate.intermediate_act_fn"))
    )
    if not known:
        return None
    weight = torch.cat([leaf.weight.detach() for leaf in joined])
    parts = weight.split([leaf.out_features for leaf in joined])
    for leaf, part in zip(joined, parts, strict=True):
        leaf.weight.data = part  # one memory for both
    bias = torch.cat([leaf.bias.detach() for leaf in joined])
    return _Layer(own, tuple(joined), tuple(dense), tuple(dropouts), tuple(norms), weight, bias)


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by what it gives: transformers has several classes for it."""
    if not isinstance(activation, nn.Module):
        return False
    probe = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)
    return torch.equal(activation(probe), nn.functional.gelu(probe))
