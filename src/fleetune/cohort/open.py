"""A transformers classifier opened up for a cohort: leaves swapped, attention packed, pooling made per sequence.

The model's own modules stay as they are, and its own code runs; what changes is
(1) every leaf with parameters, and every dropout, becomes a cohort-aware one of the same name (`layers.py`);
(2) attention goes through `fleetune_packed` (families with the packed layout);
(3) after the last encoder layer, each sequence is reduced to the one vector that the family's head reads, so that pooler
    and head see `[B, 1, D]`, an ordinary batch;
(4) where the head reads first tokens alone, the last layer computes, behind its keys and values, no others;
(5) encoder weights take the compute dtype; pooler and head stay in float32 (or float64): they are small.
"""

from __future__ import annotations

import inspect
import re
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from fleetune.backbone import attention
from fleetune.backbone.families import Family, family_of
from fleetune.backbone.laid import Laid, Levels, arrays, laid
from fleetune.backbone.noise import Noise
from fleetune.backbone.send import has_triton, send
from fleetune.backbone.stream import TILE, Current, Stream
from fleetune.cohort.bert_layer import lend
from fleetune.cohort.layers import (
    Active,
    CohortDropout,
    CohortLayerNorm,
    CohortLinear,
    CohortOther,
)
from fleetune.cohort.tables import ALIGNED
from fleetune.data.packing import Packed


class OpenBackbone:
    """A frozen classifier whose every leaf can serve many trials at once.

    model: a transformers sequence-classification model; it is changed in place and belongs to this object from now on.
    dtype: compute dtype of the encoder; parameters that trials own keep their own.
    """

    def __init__(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.family: Family = family_of(model.config)
        self.config = model.config
        self.pooling = self.family.pooling(model.config)
        self.dtype = dtype
        self.head_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.device = device
        self.current = Current()
        self.takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        # Where the head reads one vector of each sequence, and the model takes it from where it is put.
        self.can_skip = self.pooling != "late" and self.family.layout == "packed"
        self._mode = threading.Lock()
        self.model = model.requires_grad_(False).eval().to(device)
        self.quick = suits(self.model, self.family, dtype, device)
        self._levels: dict[tuple[float, ...], Levels] = {}
        self._cast()
        self._swap()
        self.joined: list[tuple[str, ...]] = []
        """Leaves that one product serves."""
        if self.quick and self.family.like_bert:
            self.joined = lend(self.model, self.current)
        if self.family.layout == "packed":
            self.model.set_attn_implementation(attention.NAME)
            # Attention modules hand their dropout rate on only while training; the masks themselves come from the stream.
            for name, module in self.model.named_modules():
                module.fleetune_current, module.fleetune_site = self.current, name
        base = getattr(self.model, self.model.base_model_prefix)
        self.narrows = self.family.narrows is not None and self.pooling == "first"
        if self.narrows:
            assert self.family.narrows is not None
            attention_path, after_path = self.family.narrows
            _child(base, attention_path).fleetune_reads_first = True  # type: ignore[assignment]
            _child(base, after_path).register_forward_pre_hook(self._narrow)
        layers = [m for name, m in base.named_modules() if _LAYER.fullmatch(name)]
        # albert runs one layer again and again, so nothing of it stays the same where it is trained.
        self.can_enter = self.family.layout == "packed" and len(layers) > 1
        if self.can_enter:
            for number, layer in enumerate(layers):
                self._enterable(number, layer)
        last = _child(base, self.family.last)
        self._skippable(last)
        last.register_forward_hook(self._pool)
        if self.pooling == "late":
            # eurobert's head reads every token. Its code would average their logits by an attention mask, and 0 * nan is
            # nan: one trial that diverges would end all. Without a mask it averages the one row that this leaves.
            self.model.classifier.register_forward_hook(lambda _m, _a, logits: self._means(logits))

    def _cast(self) -> None:
        """Encoder weights to the compute dtype; layer norms, pooler and head stay wide."""
        base = getattr(self.model, self.model.base_model_prefix)
        self.model.to(self.head_dtype)
        for name, module in base.named_modules():
            if name.startswith("pooler") or isinstance(module, nn.LayerNorm):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(self.dtype)

    def _swap(self) -> None:
        for name, module in list(self.model.named_modules()):
            leaf = self._leaf(name, module)
            if leaf is not None:
                parent, _, own = name.rpartition(".")
                setattr(self.model.get_submodule(parent), own, leaf)

    def _leaf(self, name: str, module: nn.Module) -> nn.Module | None:
        if type(module) is nn.Linear:
            return CohortLinear(name, self.current, module)
        if type(module) is nn.LayerNorm:
            return CohortLayerNorm(name, self.current, module)
        if type(module) is nn.Dropout:
            return CohortDropout(name, self.current, module)
        has_own = next(module.parameters(recurse=False), None) is not None
        return CohortOther(name, self.current, module) if has_own else None

    def stream(self, packed: Packed, noise: Noise | None) -> Stream:
        """The layout of one pass over these tokens."""
        layout = self.family.layout
        where = None
        if self.quick:
            keys = None if noise is None else noise.keys
            found = arrays(packed.offsets, packed.trials, keys, batches=packed.batches)
            on_device = {name: send(one, self.device) for name, one in found.items()}
            where = self.laid(on_device, int(packed.lengths.max()))
        return Stream(
            packed.offsets, packed.trials, layout, self.device, noise, self.narrows, where,
            batches=packed.batches,
            multiple=TILE if self.dtype == torch.bfloat16 else 1,
        )  # fmt: skip

    def positions(self, packed: Packed) -> NDArray[np.int64]:
        """The position number of each token by the family's rule, [T]."""
        return self.family.positions(self.config, packed.ids, packed.positions, packed.offsets)

    def laid(self, on_device: dict[str, Tensor], longest: int) -> Laid:
        """A pass by its arrays on the device (`laid.arrays`)."""
        return laid(on_device, longest, self._levels)

    def bias_of(self, leaf: str) -> Tensor | None:
        """The backbone's own bias of a leaf."""
        return getattr(self.model.get_submodule(leaf), "bias", None)

    def forward_laid(
        self, ids: Tensor, positions: Tensor, types: Tensor | None, stream: Stream, active: Active
    ) -> Tensor:
        """As `forward`, of a stream that lies on the device. ids, positions (by the family's rule), types: [T]."""
        inputs: dict[str, Tensor | None] = {"input_ids": ids[None], "position_ids": positions[None]}
        if types is not None and self.takes_types:
            inputs["token_type_ids"] = types[None]
        return self._logits(stream, active, inputs).logits  # type: ignore[no-any-return]

    def forward(self, packed: Packed, active: Active, noise: Noise | None = None) -> Tensor:
        """Logits of every sequence, [B, C], in float32 (float64 when computing in float64).

        noise: dropout of the trials; None evaluates without dropout.
        """
        return self._run(packed, active, noise)[0].logits  # type: ignore[no-any-return]

    def pooled(self, packed: Packed) -> Tensor:
        """What the head reads of every sequence, [B, D], from the encoder as it was loaded."""
        stream = self._run(packed, Active({}, {}), None)[1]
        return stream.kept["pooled"]  # type: ignore[no-any-return]

    def from_pooled(
        self, pooled: Tensor, packed: Packed, active: Active, noise: Noise | None
    ) -> Tensor:
        """Logits of sequences that the encoder need not see again, [B, C]; pooled: as `pooled` gave it, [B, D]."""
        n = len(pooled)
        # One token a sequence stands for all of its own: it passes the embeddings and is then replaced.
        stand_ins = replace(
            packed,
            ids=np.full(n, int(self.config.pad_token_id or 0)),
            positions=np.zeros(n, np.int64),
            type_ids=None,
            offsets=np.arange(n + 1),
        )
        return self._run(stand_ins, active, noise, pooled=pooled)[0].logits  # type: ignore[no-any-return]

    def entering(self, packed: Packed, layer: int) -> Tensor:
        """What comes into an encoder layer, [T, D], from the encoder as it was loaded."""
        asked = dict(asked=layer, first_tokens_only=False)
        stream = self._run(packed, Active({}, {}), None, **asked)[1]
        return stream.kept["entering"]  # type: ignore[no-any-return]

    def from_layer(
        self, layer: int, hidden: Tensor, packed: Packed, active: Active, noise: Noise | None
    ) -> Tensor:
        """Logits of sequences of which it is known what comes into a layer, [B, C]; hidden: as `entering` gave it."""
        return self._run(packed, active, noise, entry=(layer, hidden))[0].logits  # type: ignore[no-any-return]

    def _run(
        self, packed: Packed, active: Active, noise: Noise | None, **known: Any
    ) -> tuple[Any, Stream]:
        """known: fields of the stream."""
        stream = replace(self.stream(packed, noise), **known)
        return self._logits(stream, active, self._inputs(packed, stream)), stream

    def _logits(self, stream: Stream, active: Active, inputs: dict[str, Tensor | None]) -> Any:
        self.current.stream, self.current.active = stream, active
        # Attention asks `training` for its dropout rate and draws nothing itself. Telling every module takes a millisecond,
        # and the root is told first: another lane must not go on while its attention has not been.
        with self._mode:
            if self.model.training != (stream.noise is not None):
                self.model.train(stream.noise is not None)
        try:
            return self.model(**inputs)
        finally:
            self.current.stream = None
            self.current.active = None

    def _inputs(self, packed: Packed, stream: Stream) -> dict[str, Tensor | None]:
        ids = torch.from_numpy(packed.ids)
        types = None if packed.type_ids is None else torch.from_numpy(packed.type_ids)
        if stream.layout == "padded":
            return self._padded_inputs(ids, types, stream)
        inputs: dict[str, Tensor | None] = {
            "input_ids": send(ids[None], self.device),
            "position_ids": send(self.positions(packed)[None], self.device),
        }
        if types is not None and self.takes_types:
            inputs["token_type_ids"] = send(types[None], self.device)
        return inputs

    def _padded_inputs(
        self, ids: Tensor, types: Tensor | None, stream: Stream
    ) -> dict[str, Tensor | None]:
        rows = torch.from_numpy(stream.token_rows)  # type: ignore[arg-type]
        shape = (stream.n_sequences, stream.longest)

        def spread(values: Tensor, empty: int) -> Tensor:
            out = torch.full((stream.n_token_rows,), empty, dtype=torch.long)
            return send(out.index_copy_(0, rows, values).view(shape), self.device)

        inputs: dict[str, Tensor | None] = {
            "input_ids": spread(ids, int(self.config.pad_token_id)),
            "attention_mask": spread(torch.ones_like(ids), 0),
        }
        if types is not None and self.takes_types:
            inputs["token_type_ids"] = spread(types, 0)
        return inputs

    def _narrow(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Keep the first tokens' rows of [1, T, D]: [1, B, D]."""
        stream = self.current.require()
        if not stream.first_tokens_only:
            return None
        stream.reduce()
        return tuple(x.index_select(1, stream.first_tokens) for x in args)

    def _pool(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Reduce [1, T, D] to [B, 1, D] in the head's dtype, keeping the shape of the module's output."""
        if isinstance(output, Tensor):
            return self._pooled(output)
        if isinstance(output, tuple):
            return (self._pooled(output[0]), *output[1:])
        output["last_hidden_state"] = self._pooled(output["last_hidden_state"])
        return output

    def _enterable(self, number: int, layer: nn.Module) -> None:
        """Let a layer be left out where what comes into a later one is known, and tell what comes into it where asked."""
        run = layer.forward

        def forward(hidden_states: Tensor, *args: Any, **named: Any) -> Any:
            stream = self.current.require()
            if stream.asked is not None and number >= stream.asked:
                stream.kept.setdefault("entering", hidden_states[0])
                return hidden_states
            if stream.entry is not None:
                first, known = stream.entry
                if number < first:
                    return hidden_states
                if number == first:
                    hidden_states = known[None]
            return run(hidden_states, *args, **named)

        layer.forward = forward

    def _skippable(self, last: nn.Module) -> None:
        """Where the final hidden states come from one container of layers, let it do nothing when all is known.

        In other families the layers run on the stand-ins, one token a sequence.
        """
        if not self.can_skip or self.family.last not in ("encoder", "transformer"):
            return
        run = last.forward

        def forward(*args: Any, **named: Any) -> Any:
            if self.current.require().pooled is None:
                return run(*args, **named)
            return BaseModelOutputWithPastAndCrossAttentions(
                last_hidden_state=args[0] if args else named["hidden_states"]
            )

        last.forward = forward

    def _pooled(self, hidden: Tensor) -> Tensor:
        stream = self.current.require()
        if self.pooling != "late":
            stream.reduce()
        if stream.pooled is not None:
            return stream.pooled[:, None]
        found = self._reduced(hidden)
        if not torch.is_grad_enabled() and self.pooling != "late":
            stream.kept["pooled"] = found[:, 0]
        return found

    def _reduced(self, hidden: Tensor) -> Tensor:
        stream = self.current.require()
        if stream.first_tokens_only:
            return hidden[0][:, None].to(self.head_dtype)
        if stream.layout == "padded":
            return hidden[:, :1].to(self.head_dtype)
        if self.pooling == "first":
            return hidden[0].index_select(0, stream.first_tokens)[:, None].to(self.head_dtype)
        wide = hidden.to(self.head_dtype)
        return wide if self.pooling == "late" else self._means(wide)

    def _means(self, rows: Tensor) -> Tensor:
        """The mean over each sequence's tokens: [1, T, D] to [B, 1, D]."""
        stream = self.current.require()
        if stream.laid is not None:
            # One order of additions; `index_add` has none on a GPU.
            cuts = stream.laid.offsets.long()
            return torch.segment_reduce(rows[0], "mean", offsets=cuts, axis=0, unsafe=True)[:, None]
        sums = rows.new_zeros((stream.n_sequences, rows.shape[-1]))
        sums = sums.index_add(0, stream.sequence_of_token, rows[0])
        counts = send(stream.lengths, sums.device).to(sums.dtype)
        return (sums / counts[:, None])[:, None]


def suits(model: nn.Module, family: Family, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels for a GPU take this model: packed, in bfloat16, widths that fill 16 bytes."""
    base = getattr(model, model.base_model_prefix)  # type: ignore[arg-type]
    widths = [w for m in base.modules() if type(m) is nn.Linear for w in m.weight.shape]
    aligned = all(width % ALIGNED == 0 for width in widths)
    return (
        device.type == "cuda"
        and has_triton()
        and dtype == torch.bfloat16
        and family.layout == "packed"
        and aligned
    )


_LAYER = re.compile(r"(?:.*\.)?layers?\.\d+")


def _child(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a path that may count a list from its end (`layers.-1`)."""
    for part in path.split("."):
        module = (
            list(module.children())[int(part)] if part.startswith("-") else getattr(module, part)
        )
    return module
