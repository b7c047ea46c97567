"""What stands between the products of a BERT layer, in one kernel each, on a GPU.

Families of `Family.like_bert` have modules (dense, dropout, LayerNorm) that give LayerNorm(dropout(dense(x)) + residual), and
(dense, activation). There a pass over all activations for the bias, one for the dropout, one for the sum and two for the
norm would take more time than the products; here they are one (backbone/kernels/blocks.py). What the leaves own stays theirs:
the modules only lend their code.

Reference, for the tests: the modules' own code, which also runs on any other device and wherever a leaf owns more than these
kernels know.
Notation: K trials, N rows, D input width, E output width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fleetune.backbone import send
from fleetune.backbone.laid import Drawing, LaidRows
from fleetune.backbone.rows import sums
from fleetune.backbone.stream import Current
from fleetune.cohort.layers import CohortDropout, CohortLayerNorm, CohortLinear
from fleetune.cohort.tables import Stacked, Tables


@dataclass(frozen=True, slots=True)
class _Bias:
    """A bias of each trial, [K, E], or one for all, [1, E]; gradients are added to `into` where trials own it."""

    table: Tensor
    into: Tensor | None

    def add(self, grad: Tensor, rows: LaidRows) -> None:
        """Add the sum of each trial's rows."""
        if self.into is not None:
            self.into.add_(sums(grad, rows))


@dataclass(frozen=True, slots=True)
class _Plan:
    bias: _Bias
    rows: LaidRows
    shift: _Bias | None = None
    weight: Tensor | None = None
    eps: float = 0.0
    drawing: Drawing | None = None


def lend(model: nn.Module, current: Current) -> None:
    """Let the blocks of a model of a BERT's shape run as one kernel each where they can."""
    for module in model.modules():
        dense = getattr(module, "dense", None)
        if not isinstance(dense, CohortLinear) or getattr(dense, "bias", None) is None:
            continue
        dropout, norm = getattr(module, "dropout", None), getattr(module, "LayerNorm", None)
        if isinstance(dropout, CohortDropout) and isinstance(norm, CohortLayerNorm):
            module.forward = _residual(current, module.forward, dense, dropout, norm)
        elif _is_gelu(getattr(module, "intermediate_act_fn", None)):
            module.forward = _activated(current, module.forward, dense)


def _is_gelu(activation: Any) -> bool:
    """Whether it is the exact GELU, by what it gives: transformers has several classes for it."""
    if not isinstance(activation, nn.Module):
        return False
    probe = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)
    return torch.equal(activation(probe), nn.functional.gelu(probe))


def _tables(current: Current, x: Tensor) -> Tables | None:
    """Those of this pass, where it runs by the kernels."""
    tables: Tables | None = current.active.tables
    return tables if send.by_kernels(x) and current.require().laid is not None else None


def _residual(
    current: Current, plain: Callable[..., Tensor], dense: CohortLinear, dropout: CohortDropout, norm: CohortLayerNorm
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    def forward(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        tables = _tables(current, hidden_states)
        if tables is None:
            return plain(hidden_states, input_tensor)
        stream = current.require()
        laid = stream.laid
        assert laid is not None
        assert norm.bias is not None
        owned, shifted = tables.at(dense.name), tables.at(norm.name)
        y = dense.product(hidden_states)
        rows = laid.rows(len(y))
        drawing = None
        if stream.noise is not None and any(rates := stream.noise.rates(dropout.p)):
            drawing = laid.drawing(rates, dropout.name, stream.next_call(dropout.name))
        plan = _Plan(
            _bias(owned, dense.bias),
            rows,
            _bias(shifted, norm.bias),
            norm.weight,
            norm.eps,
            drawing,
        )
        residual = input_tensor.reshape(y.shape)
        return _ResidualNorm.apply(y, residual, tables.asks, plan).view(input_tensor.shape)  # type: ignore[no-any-return]

    return forward


def _activated(
    current: Current, plain: Callable[..., Tensor], dense: CohortLinear
) -> Callable[[Tensor], Tensor]:
    def forward(hidden_states: Tensor) -> Tensor:
        tables = _tables(current, hidden_states)
        if tables is None:
            return plain(hidden_states)
        laid = current.require().laid
        assert laid is not None
        y = dense.product(hidden_states)
        plan = _Plan(_bias(tables.at(dense.name), dense.bias), laid.rows(len(y)))
        found = _BiasedGelu.apply(y, tables.asks, plan)
        return found.view(*hidden_states.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]

    return forward


def _bias(owned: Stacked | None, shared: Tensor) -> _Bias:
    if owned is not None and owned.bias is not None:
        return _Bias(*owned.bias)
    return _Bias(shared.detach()[None], None)


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, residual: Tensor, _asks: Tensor, plan: _Plan) -> Tensor:
        from fleetune.backbone.kernels import blocks

        assert plan.shift is not None
        assert plan.weight is not None
        out, summed, moments = blocks.residual_norm(
            y, residual.contiguous(), plan.bias.table, plan.weight, plan.shift.table, plan.eps,
            plan.rows, plan.drawing,
        )  # fmt: skip
        ctx.plan = plan
        ctx.save_for_backward(summed, moments)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from fleetune.backbone.kernels import blocks

        plan: _Plan = ctx.plan
        summed, moments = ctx.saved_tensors
        assert plan.shift is not None
        assert plan.weight is not None
        grad = grads[0].contiguous()
        plan.shift.add(grad, plan.rows)
        to_y, to_residual = blocks.residual_norm_backward(
            grad, summed, moments, plan.weight, plan.rows, plan.drawing
        )
        plan.bias.add(to_y, plan.rows)
        return to_y, to_residual, None, None


class _BiasedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, _asks: Tensor, plan: _Plan) -> Tensor:
        from fleetune.backbone.kernels import blocks

        ctx.plan = plan
        ctx.save_for_backward(y)
        return blocks.gelu(y, plan.bias.table, plan.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from fleetune.backbone.kernels import blocks

        plan: _Plan = ctx.plan
        (y,) = ctx.saved_tensors
        to_y = blocks.gelu_backward(grads[0].contiguous(), y, plan.bias.table, plan.rows)
        plan.bias.add(to_y, plan.rows)
        return to_y, None, None
