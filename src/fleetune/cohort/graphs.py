"""Whole training passes on a GPU, captured once as CUDA graphs and replayed on the next passes' numbers.

A step of a small encoder is some thousands of kernels of microseconds each, and the processor cannot launch them as fast as the
GPU runs them. A graph launches all with one call. It needs every tensor at its address and every shape as it was: so the
rows of a pass are filled up to a fixed number (`laid.py`: "spare" rows), all that differs from pass to pass comes in one copy,
and a pass of a new form is captured and from then on replayed. The first pass of some trials runs as usual, which loads the
kernels that a capture must not load, and sends what stays on the device.

What a graph reads by address lives as long as its form does. All graphs share one pool of memory, which no other pass can use;
where memory is short they give way (`forget_all`).

Everything from embeddings to the sums of gradients is in the graph; the trials' steps are not.

Not covered: passes that enter the encoder above its first layer, families whose sequences are means, trials that own copies of
weights: they run kernel by kernel (passes.py). A processor: nothing is captured there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fleetune.backbone.device_noise import DeviceNoise
from fleetune.backbone.laid import Arrays, arrays, block_of
from fleetune.backbone.noise import NoiseKey
from fleetune.backbone.stream import Stream
from fleetune.cohort.loss import Targets, sequence_losses, sums
from fleetune.cohort.open import OpenBackbone
from fleetune.cohort.own import Stacks
from fleetune.cohort.owned import Owned
from fleetune.cohort.tables import Layout
from fleetune.cohort.trial import TrialInput
from fleetune.data.packing import Packed

# More forms than these are forgotten, those that were not seen for longest first. A graph holds no activations of its own.
_MOST = 32
# So often graphs give way to what needs their memory; then the machine has no room for them.
_SHORTAGES = 3


@dataclass(frozen=True, slots=True)
class Work:
    """One pass: micro-batches of some trials, each trial's one after the other; or a part of one."""

    owned: tuple[Owned, ...]
    """Of each trial, [K]."""
    given: tuple[TrialInput, ...]
    """Of each micro-batch, [M]."""
    packed: Packed
    keys: tuple[NoiseKey, ...]
    """Of each micro-batch, [M]."""
    targets: Targets
    longest: int
    """No training row of these trials has more tokens."""
    arrays: Arrays
    """All that differs from pass to pass, by name."""


class Graphs:
    """The passes of one engine."""

    def __init__(self, backbone: OpenBackbone, stacks: Stacks) -> None:
        self._backbone = backbone
        self._stacks = stacks
        self._seen: OrderedDict[tuple[object, ...], _Form] = OrderedDict()
        self._shortages = 0
        self._capturing = False
        """Whether a capture has begun and not ended well."""
        self.captures = backbone.device.type == "cuda"
        """Whether passes are captured and replayed; else all run kernel by kernel."""

    def takes(self, owned: Sequence[Owned]) -> bool:
        """Whether passes of these trials can be of a fixed form."""
        return self._backbone.pooling == "first" and self._stacks.takes(owned)

    def work(
        self, owned: Sequence[Owned], given: Sequence[TrialInput], packed: Packed, keys: Sequence[NoiseKey],
        targets: Targets, longest: int,
    ) -> Work:  # fmt: skip
        """A pass, laid out: nothing of it depends on what trials have learnt. The arguments are the fields of `Work`."""
        found = self._arrays(packed, keys, targets)
        return Work(tuple(owned), tuple(given), packed, tuple(keys), targets, longest, found)

    def run(self, work: Work) -> Tensor:
        """Forward and backward: adds each trial's gradient to its own, and returns the share of each micro-batch's loss, [M]."""
        given = work.arrays
        shapes = ((name, len(values), values.dtype.str) for name, values in given.items())
        # Who has how many sequences decides slices that a graph holds; where their tokens end does not.
        trials = tuple(work.packed.trials.tolist())
        key = (*(id(one) for one in work.owned), trials, work.targets.counts, work.longest, *shapes)
        form = self._seen.get(key)
        if form is None:
            form = self._seen[key] = _Form(given, work, self._backbone.device)
            if len(self._seen) > _MOST:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        form.fill(given)
        # A form that has its graph stays with it, and with the layout that the graph reads: the one that ran may be forgotten.
        if not (form.graph or (self.captures and self._loaded(form))):
            shares = self._step(form)
            form.ran = True
            return shares
        if form.graph is None:
            self._stacks.layout(work.owned)  # a capture sends nothing
        graph, losses = form.graph or self._capture(form)
        # The next pass of this form writes there. Nothing is allocated once gradients are added: that pass was not to be undone.
        found = torch.empty_like(losses)
        graph.replay()
        return found.copy_(losses)

    def forget(self, owned: Owned) -> None:
        """A trial has left: the companies that it was of will not come again."""
        for key, form in list(self._seen.items()):
            if any(one is owned for one in form.work.owned):
                del self._seen[key]
        self._stacks.forget(owned)

    def forget_all(self) -> bool:
        """Give the memory of all graphs back, since something else lacks it. False where there is none."""
        if not (self._capturing or any(form.graph for form in self._seen.values())):
            return False
        self._seen.clear()
        self._capturing = False
        self._shortages += 1
        self.captures = self.captures and self._shortages < _SHORTAGES
        return True

    def _loaded(self, form: _Form) -> bool:
        """Whether all that a form uses is there: its kernels, of which attention has others for another size of block, and
        the dropout rates of its micro-batches."""
        return any(f.ran and f.loads == form.loads for f in self._seen.values())

    def _arrays(self, packed: Packed, noise: Sequence[NoiseKey], targets: Targets) -> Arrays:
        config = self._backbone.config
        count = int(packed.offsets[-1])
        spare = -count % step_of(count)
        types = packed.type_ids if self._backbone.takes_types else None
        fill = {"ids": int(config.pad_token_id or 0), "positions": 0, "types": 0}
        streams = {
            "ids": packed.ids,
            "positions": self._backbone.positions(packed),
            "types": types,
        }
        return {
            **{
                name: np.concatenate([values, np.full(spare, fill[name], values.dtype)])
                for name, values in streams.items()
                if values is not None
            },
            **arrays(packed.offsets, packed.trials, noise, spare, packed.batches),
            **targets.arrays(),
        }

    def _step(self, form: _Form) -> Tensor:
        work, on = form.work, form.on_device
        backbone = self._backbone
        offsets = work.packed.offsets
        stream = Stream(
            offsets, work.packed.trials, "packed", backbone.device, DeviceNoise(work.keys), backbone.narrows,
            backbone.laid(on, work.longest), len(on["ids"]) - int(offsets[-1]), work.packed.batches,
        )  # fmt: skip
        active = self._stacks.active(work.owned)
        assert active.tables is not None
        form.layout = active.tables.layout
        logits = backbone.forward_laid(on["ids"], on["positions"], on.get("types"), stream, active)
        losses = sequence_losses(logits, on["labels"], work.targets.counts, work.given)
        slots = [slot for own in active.low_rank.values() for slot in own if slot is not None]
        trained = [t for own in active.owned.values() for t in own if t is not None]
        trained += [t for slot in slots for t in (slot.down, slot.up)]
        _, *found = torch.autograd.grad(
            losses,
            [active.tables.asks, *trained],
            on["weights"].to(losses.dtype),
            allow_unused=True,
        )
        shares = sums(losses, on["counts"]) / on["totals"]
        active.tables.add_gradients()
        unused: list[Tensor | None] = list(found)
        for tensor, gradient in zip(trained, unused, strict=True):
            if gradient is not None and tensor.grad is not None:
                tensor.grad.add_(gradient)
        return shares

    def _capture(self, form: _Form) -> tuple[Any, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # A pool ends with its last graph, and its handle is of no use then.
        alive = (other.graph[0] for other in self._seen.values() if other.graph)
        pool = next((one.pool() for one in alive), None)
        # Other threads may ask the device for what they like meanwhile.
        self._capturing = True
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            losses = self._step(form)
        self._capturing = False
        form.graph = graph, losses
        return form.graph


class _Form:
    """Passes of one shape: their arrays' place on the device, and the graph once it is there."""

    def __init__(self, given: Arrays, work: Work, device: torch.device) -> None:
        self.work = work
        """The first one; of the others only the arrays count."""
        self.ran = False
        """Kernel by kernel."""
        self.graph: tuple[Any, Tensor] | None = None
        """A `torch.cuda.CUDAGraph`, and where it leaves the losses."""
        self.layout: Layout | None = None
        """What the graph reads of it is found by address."""
        block = block_of(len(given["ids"]), len(given["first_tokens"]))
        self.loads = work.owned, block, tuple(id(one) for one in work.given)
        """What decides which kernels and which dropout rates it uses; of each micro-batch the trial that it is of."""
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        for name, values in given.items():
            self._places[name] = (at, at + values.nbytes)
            at += -(-values.nbytes // 16) * 16
        self._bytes = torch.zeros(at, dtype=torch.uint8, device=device)
        self.on_device: dict[str, Tensor] = {}
        for name, values in given.items():
            low, high = self._places[name]
            dtype = torch.from_numpy(values[:0]).dtype
            self.on_device[name] = self._bytes[low:high].view(dtype)

    def fill(self, given: Arrays) -> None:
        """Send the arrays of a pass, all in one copy."""
        host = torch.empty(len(self._bytes), dtype=torch.uint8, pin_memory=self._bytes.is_cuda)
        whole = host.numpy()
        for name, values in given.items():
            low, high = self._places[name]
            whole[low:high] = values.reshape(-1).view(np.uint8)
        self._bytes.copy_(host, non_blocking=True)


def step_of(count: int) -> int:
    """Passes are filled up to multiples of this many rows: few forms, and few rows in vain.

    A pass of many micro-batches varies with the square root of its size, so the step grows with that.
    """
    return max(64, 1 << round(np.log2(4 * count**0.5)))
