"""The rounded network trained end to end towards the full-precision one; its codes stay.

Rounding block by block keeps what each linear gives; what the network then says is nobody's aim.
Here it is: the loss is the divergence from full precision on the calibration text, and what is
trained are group scales, norm weights and the head rotation, few enough numbers for a short text.
Roundings pass gradients straight through. What is written is the average over the last steps, with
scales that are bfloat16 as they were in training.

The full-precision network runs once, a layer at a time; its last hidden states are kept, in a
mapped file where they are large. Then the device holds the rounded network (codes int8, both heads
in float32), seven float32 numbers for each that is trained, and one layer's matrices and
activations: everything is computed in float32, as in the reference.

Shape legend: N sequences, B of one step, T tokens, D hidden.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.core.checkpoint import Checkpoint, Weights
from llama_edge.core.errors import QuantizeError
from llama_edge.core.progress import Progress, Step, layer_name
from llama_edge.core.recipe import Device, Distillation
from llama_edge.formats.quantized_checkpoint import Layout, QuantizedEntry
from llama_edge.models.sources import CachedSource, FullPrecisionSource, MatrixSource
from llama_edge.quantize.averaged_adam import AveragedAdam
from llama_edge.quantize.device import check_device, is_out_of_memory, release_memory
from llama_edge.quantize.resume import LearningPlace, activation_buffer, scratch_folder
from llama_edge.quantize.rows_of_step import rows_of_step
from llama_edge.quantize.straight_through import StraightThrough, divergence
from llama_edge.quantize.trained_network import TrainedNetwork

#: Steps between two saved states: a kill loses some minutes on SmolLM2 on two cores.
SAVE_EVERY: Final = 32


def step_count(distillation: Distillation, sequences: int) -> int:
    """Steps that a text of so many sequences allows; at least one."""
    size = min(distillation.sequences, sequences)
    return min(distillation.steps, max(1, distillation.max_epochs * sequences // size))


def distill(
    checkpoint: Checkpoint,
    layout: Layout,
    entries: Iterable[QuantizedEntry],
    tokens_NT: Tensor,
    place: LearningPlace,
    progress: Progress,
) -> Iterator[QuantizedEntry]:
    """The same codes, with scales and weights under which the network says what it should.

    Args:
        checkpoint: Full precision, not rotated.
        layout: Of the entries; its recipe has a `distillation`.
        entries: Everything that is stored, rounded.
        tokens_NT: Calibration text, int64.
        place: The device, and the state of a run that was stopped, which is resumed.
        progress: Advances once a layer of the full-precision network, then once a step.

    Raises:
        QuantizeError: The loss or its gradient is not finite, or one sequence is too large for the
            device's memory.
        MissingComponentError: There is no such device here.
        OutputError: The state cannot be written.
    """
    distillation = layout.recipe.distillation
    assert distillation is not None
    check_device(place.device)
    if place.device is Device.CPU:
        progress.remark(
            f"recipe {layout.recipe.name} trains on the CPU, which takes hours; "
            "--device cuda or --device mps is faster"
        )
    # Rounding is done before: its own full memory is none of the distillation's.
    rounded = tuple(entries)
    with _full_memory_explained(place.device), scratch_folder(place.folder) as scratch:
        device = torch.device(place.device.value)
        network = TrainedNetwork(layout, rounded, distillation, device)
        adam = AveragedAdam(
            network.shifts, network.rates, distillation.warm_up, distillation.averaging
        )
        steps = step_count(distillation, len(tokens_NT))
        stage = _resume(adam, place.state, steps)
        if adam.step < steps:
            full = _FullPrecision(checkpoint, tokens_NT, device, progress)
            full.run(scratch / "full-precision")
            loss = _Loss(network, full, layout, tokens_NT.to(device))
            batches = _Batches(distillation.sequences, place.device, progress)
            progress.start(stage, steps, done=adam.step)
            while adam.step < steps:
                rows = rows_of_step(
                    len(tokens_NT), adam.step, distillation.sequences, layout.recipe.seed
                )
                batches.backward(loss, rows, network)
                _check_finite(network.gradient, adam.step)
                adam.advance(network.gradient)
                if place.state is not None and (adam.step % SAVE_EVERY == 0 or adam.step == steps):
                    adam.save(place.state)
                progress.advance()
        network.shifts.copy_(adam.averaged())
        return network.entries()


def _resume(adam: AveragedAdam, path: Path | None, steps: int) -> str:
    """The stage's name; a damaged state of an earlier run costs its time and is said."""
    if path is None or not path.exists() or adam.load(path, steps):
        return "distill"
    return "distill (anew: the saved state is damaged)"


def _check_finite(gradient: Tensor, step: int) -> None:
    # A loss that is not finite has such a gradient, too.
    if not gradient.isfinite().all():
        raise QuantizeError(
            f"distillation: the gradient of step {step} is not finite; the weights are damaged or "
            "overflow float32"
        )


@contextmanager
def _full_memory_explained(device: Device) -> Iterator[None]:
    """Around what needs the device's memory.

    Raises:
        QuantizeError: It is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise QuantizeError(
            f"distillation: the memory of --device {device.value} does not hold the rounded "
            f"network and one sequence: {error}; end what else uses it, take a larger one, or "
            "leave the option out to train on the CPU"
        ) from error


class _WeightsOn:
    """`Weights` that are moved to a device when they are read."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self._weights = weights
        self._device = device

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def read(self, name: str) -> Tensor:
        return self._weights.read(name).to(self._device)


class _FullPrecision:
    """What the full-precision network says to the whole text.

    Args:
        checkpoint: Not rotated.
        tokens_NT: The text.
        device: Where it is computed.
        progress: Advances once a layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokens_NT: Tensor, device: torch.device, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._tokens = tokens_NT
        self._device = device
        self._progress = progress
        self._model = StraightThrough(checkpoint.config, self._weights())
        self._hidden = torch.empty(0)

    def _weights(self) -> MatrixSource:
        """Read once each, and kept as long as the source is."""
        config = self._checkpoint.config
        moved = _WeightsOn(self._checkpoint.weights, self._device)
        return CachedSource(FullPrecisionSource(config, moved))

    @torch.no_grad()
    def run(self, path: Path) -> None:
        """Compute the last hidden states, in memory or in the file `path`."""
        model, config = self._model, self._checkpoint.config
        self._hidden = activation_buffer((*self._tokens.shape, config.hidden_size), path)
        for x_TD, tokens_T in zip(self._hidden, self._tokens, strict=True):
            x_TD.copy_(model.embed(tokens_T.to(self._device)))
        layers = config.num_hidden_layers
        steps = [Step(layer_name(layer, layers)) for layer in range(layers)]
        self._progress.start("run in full precision", steps)
        for layer in range(layers):
            model.source = self._weights()
            for x_TD in self._hidden:
                x_TD.copy_(model.block(layer, x_TD[None].to(self._device))[0])
            self._progress.advance()
        model.source = self._weights()

    @torch.no_grad()
    def logits(self, row: int) -> Tensor:
        """Of one sequence, those that the head computes (T, R)."""
        x_TD = self._hidden[row].to(self._device)
        return self._model.after_head(self._model.head_input(x_TD))


class _Loss:
    """How far the rounded network is from full precision on some sequences, with gradients."""

    def __init__(
        self, network: TrainedNetwork, full: _FullPrecision, layout: Layout, tokens_NT: Tensor
    ) -> None:
        weight_only = layout.recipe.activation_bits is None
        activation = (
            ActivationQuantization.NONE if weight_only else ActivationQuantization.INT8_PER_TOKEN
        )
        self._model = StraightThrough(layout.config, network, activation)
        self._full = full
        self._tokens = tokens_NT

    def __call__(self, rows: list[int]) -> Tensor:
        """Sum over sequences of the mean over tokens of KL(full || rounded), nats."""
        x_BTD = self._model.blocks(self._model.embed(self._tokens[rows]))
        # The logits of one sequence at a time; they are computed again on the way back.
        parts = [
            recomputed(self._divergence, x_TD, row, use_reentrant=False)
            for x_TD, row in zip(x_BTD, rows, strict=True)
        ]
        return torch.stack(parts).sum() / self._tokens.shape[1]

    def _divergence(self, x_TD: Tensor, row: int) -> Tensor:
        found = self._model.after_head(self._model.head_input(x_TD))
        return divergence(found, self._full.logits(row))


class _Batches:
    """How many sequences are computed at a time: all of a step, or as many as memory holds."""

    def __init__(self, size: int, device: Device, progress: Progress) -> None:
        self._size = size
        self._device = device
        self._progress = progress

    def backward(self, loss: _Loss, rows: list[int], network: TrainedNetwork) -> None:
        """Put the gradient of the loss of these rows into the network, however many fit at once."""
        self._size = min(self._size, len(rows))
        while not self._fits(loss, rows, network):
            self._size = -(-self._size // 2)
            release_memory(self._device)
            self._progress.remark(
                f"the memory of --device {self._device.value} is full: from here on, "
                f"{self._size} of a step's {len(rows)} sequences are computed at a time; their "
                "gradients are added up"
            )

    def _fits(self, loss: _Loss, rows: list[int], network: TrainedNetwork) -> bool:
        network.gradient.zero_()
        try:
            for start in range(0, len(rows), self._size):
                torch.autograd.backward(loss(rows[start : start + self._size]))
        except RuntimeError as error:
            if self._size == 1 or not is_out_of_memory(error):
                raise
            return False
        network.gradient.div_(len(rows))
        return True
