"""What stands between the products of a BERT layer, in one pass over the activations each, on a GPU.

residual_norm: layer norm of (dropout of (y + bias) + residual), with each trial's biases before and after. gelu: GELU of
(y + bias), the exact one. Each has a Triton kernel (kernels/blocks.py) and, for any other device and for the tests, its
reference by operations on tensors.

Notation: N rows, W columns, K trials. A table has a row for each trial, or one for all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fleetune.backbone import send
from fleetune.backbone.laid import Drawing, LaidRows
from fleetune.backbone.rows import by_row, multipliers


def residual_norm(
    y: Tensor, residual: Tensor, bias: Tensor, weight: Tensor, shift: Tensor, eps: float, rows: LaidRows,
    drawing: Drawing | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, what was normalised, both [N, W], and each row's mean and inverse deviation, [N, 2], in float32 or wider.

    y, residual: [N, W]; bias, shift: tables [K or 1, W]; weight: [W].
    """
    if send.by_kernels(y):
        from fleetune.backbone.kernels import blocks as kernels

        return kernels.residual_norm(y, residual, bias, weight, shift, eps, rows, drawing)
    inner = y + by_row(bias, rows)
    if drawing is not None:
        inner = inner * multipliers(inner, rows, drawing)
    summed = inner + residual
    wide = summed.to(torch.promote_types(summed.dtype, torch.float32))
    mean, variance = wide.mean(1), wide.var(1, correction=0)
    moments = torch.stack([mean, (variance + eps).rsqrt()], 1)
    found = _normal(wide, moments) * weight + by_row(shift, rows)
    return found.to(y.dtype), summed, moments


def residual_norm_backward(
    grad: Tensor, summed: Tensor, moments: Tensor, weight: Tensor, rows: LaidRows, drawing: Drawing | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of y and of the residual, [N, W] each; without dropout they are one tensor.

    Of the shift it is `grad` itself. summed, moments: as `residual_norm` gave them.
    """
    if send.by_kernels(grad):
        from fleetune.backbone.kernels import blocks as kernels

        return kernels.residual_norm_backward(grad, summed, moments, weight, rows, drawing)
    normal = _normal(summed.to(moments.dtype), moments)
    given = grad.to(moments.dtype) * weight
    along, level = (part.mean(1, keepdim=True) for part in (given * normal, given))
    found = ((given - normal * along - level) * moments[:, 1:]).to(grad.dtype)
    return found if drawing is None else found * multipliers(found, rows, drawing), found


def gelu(y: Tensor, bias: Tensor, rows: LaidRows) -> Tensor:
    """GELU of y + bias; y: [N, W], bias: a table [K or 1, W]."""
    if send.by_kernels(y):
        from fleetune.backbone.kernels import blocks as kernels

        return kernels.gelu(y, bias, rows)
    return functional.gelu(y + by_row(bias, rows))


def gelu_backward(grad: Tensor, y: Tensor, bias: Tensor, rows: LaidRows) -> Tensor:
    """The gradient of y, [N, W]; it may take the place of `grad`."""
    if send.by_kernels(y):
        from fleetune.backbone.kernels import blocks as kernels

        return kernels.gelu_backward(grad, y, bias, rows)
    return torch.ops.aten.gelu_backward(grad, y + by_row(bias, rows))  # type: ignore[no-any-return]


def _normal(wide: Tensor, moments: Tensor) -> Tensor:
    return (wide - moments[:, :1]) * moments[:, 1:]
