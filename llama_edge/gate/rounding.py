"""Activation codes on a rounding boundary: which of them fell the other way in an artifact.

Two right runtimes differ by 1e-7 in a norm, and a value that is that near to a rounding boundary
gets one code here and its neighbour there. One such flip is worth up to 2 % of a token's output,
and attention hands it on to later tokens. It must not be mistaken for a fault; nor may a limit be
so wide that a fault passes for a flip. So a row out of tolerance is *explained*: only codes that do
lie on a boundary may be flipped, only a few of them, and then the row must agree within the tight
limit. A fault is no sum of a few such flips. Nor may more rows have any than boundaries are met by
float errors (`block_errors.MAX_FLIP_RATE`): a kernel with other boundaries flips such codes
alone, and is told by their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llama_edge.core.artifact import ActivationQuantization
from llama_edge.models.reference import ACTIVATION_BLOCK, Reference

#: How near to a boundary, in steps, a value must lie for either code to be right, and how many
#: combinations are followed: near boundaries one by one, wider ones when that explains nothing.
#: float32 errors of 1e-6 on codes up to 127 are 1e-4 steps, more where a product cancels.
SEARCHES: Final = ((1e-3, 1), (1e-2, 4))
#: Most codes that are flipped to explain one row, ties apart.
MAX_FLIPS: Final = 6
#: A value so near to a boundary, in steps, is tied: the last bits decide, and either code is right.
#: In float32 a value of 127 steps has bits of 7.6e-6 steps, and three operations lie between the
#: residual stream and its code.
TIE_STEPS: Final = 2.5e-5
#: Attention and the rounding after a tie make effects add up to a little more or less.
_TIE_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Flip:
    """One rounded value of a row replaced by its neighbour; `place` numbers a block's linears."""

    place: int
    index: int
    value: float


Flips = tuple[Flip, ...]

#: Runs one row once per trial: outputs (B, width), and each place's value before rounding (B, n).
RowRun = Callable[[Sequence[Flips]], tuple[Tensor, list[Tensor]]]

#: From one rounding place to the next: what is carried past it (B, c) and its rounded value (B, n)
#: to what is carried on and the next place's value before rounding, or the output.
Stage = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Target:
    """What the artifact has of one row."""

    #: as the output of a `RowRun` (...), or what that is before the artifact rounded it
    values: Tensor
    #: the relative error of each output (B, ...)
    distance: Callable[[Tensor], list[float]]


def rounding_steps(x: Tensor, activation: ActivationQuantization) -> Tensor:
    """The distance between neighbouring codes around each element of x, same shape."""
    if activation is ActivationQuantization.INT8_PER_TOKEN:
        low = x.amin(-1, keepdim=True).clamp(max=0.0)
        high = x.amax(-1, keepdim=True).clamp(min=0.0)
        return ((high - low) / 255.0).expand_as(x)
    padded = F.pad(x, (0, -x.shape[-1] % ACTIVATION_BLOCK))
    blocks = padded.view(*x.shape[:-1], -1, ACTIVATION_BLOCK)
    steps: Tensor = blocks.abs().amax(-1, keepdim=True).expand_as(blocks) / 127.0
    return steps.flatten(-2)[..., : x.shape[-1]]


def border_flips(model: Reference, place: int, x: Tensor, border_steps: float) -> list[Flip]:
    """The flips open to one row before rounding, x (n,): values so near to a boundary, in steps."""
    steps = rounding_steps(x, model.activation).double()
    positions = x.double() / torch.where(steps == 0, torch.ones_like(steps), steps)
    below = positions.floor()
    near = torch.nonzero((positions - below - 0.5).abs() <= border_steps).flatten()
    rounded = model.quantize_activation(x).double()
    others = (2 * below[near] + 1) * steps[near] - rounded[near]
    pairs = zip(near.tolist(), others.tolist(), strict=True)
    return [Flip(place, index, value) for index, value in pairs]


def with_flips(rounded_BN: Tensor, place: int, trials: Sequence[Flips]) -> Tensor:
    """A copy with each trial's flips at `place` in the trial's own row."""
    rows = rounded_BN.clone()
    for row, trial in enumerate(trials):
        for flip in trial:
            if flip.place == place:
                rows[row, flip.index] = flip.value
    return rows


class StagedRow:
    """The `RowRun` of a row that is rounded at several places, one after the other.

    What a place gets depends on the flips before it alone, and is computed once. Not only for
    time: a matrix product of one row and of fifty sums in another order, so that a value on a
    boundary would fall this way in one trial and the other way in the next, and no flip would
    explain it.

    Args:
        model: It rounds.
        carried: What is carried past the first place (c,).
        value: What the first place gets (n,).
        stages: One per place.
    """

    def __init__(
        self, model: Reference, carried: Tensor, value: Tensor, stages: Sequence[Stage]
    ) -> None:
        self._model = model
        self._stages = stages
        self._known: list[dict[Flips, tuple[Tensor, Tensor]]] = [{} for _ in range(len(stages) + 1)]
        self._known[0][()] = carried, value

    def __call__(self, trials: Sequence[Flips]) -> tuple[Tensor, list[Tensor]]:
        """See `RowRun`."""
        for place in range(len(self._stages)):
            self._pass(place, trials)
        values = [
            torch.stack([known[_flips_before(place, trial)][1] for trial in trials])
            for place, known in enumerate(self._known)
        ]
        return values[-1], values[:-1]

    def _pass(self, place: int, trials: Sequence[Flips]) -> None:
        known = self._known[place + 1]
        wanted = dict.fromkeys(_flips_before(place + 1, trial) for trial in trials)
        ahead = [flips for flips in wanted if flips not in known]
        if not ahead:
            return
        pairs = [self._known[place][_flips_before(place, flips)] for flips in ahead]
        carried, values = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        rounded = with_flips(self._model.quantize_activation(values), place, ahead)
        rows = zip(*self._stages[place](carried, rounded), strict=True)
        known.update(zip(ahead, rows, strict=True))


def _flips_before(place: int, flips: Flips) -> Flips:
    """In one order, whichever was found first."""
    before = [flip for flip in flips if flip.place < place]
    return tuple(sorted(before, key=lambda flip: (flip.place, flip.index)))


def explain_row(model: Reference, run: RowRun, target: Target, limit: float) -> tuple[Flips, float]:
    """The flips under which the reference's row agrees with the artifact's.

    Tied values are solved for first; then the fewest further flips are searched for.

    Returns:
        The flips and the relative error that is left; without an explanation none, and the error
        as it was.
    """
    plain: Flips = ()
    error = _error(run, target, plain)
    if error <= limit:
        return plain, error
    tied = solve_ties(model, run, target)
    left = _error(run, target, tied)
    if left <= limit:
        return tied, left
    for border_steps, beam in SEARCHES:
        for start in dict.fromkeys((tied, plain)):
            flips, left = _search(model, run, target, limit, (border_steps, beam, start))
            if left <= limit:
                return flips, left
    return plain, error


def _error(run: RowRun, target: Target, flips: Flips) -> float:
    return target.distance(run([flips])[0])[0]


def solve_ties(model: Reference, run: RowRun, target: Target) -> Flips:
    """Which tied values of a row the artifact rounded the other way, by least squares.

    The effect of each tie on the output is measured; the output has more elements than a row has
    ties, so that the shares in which the effects make up the difference are determined, and are 0
    or 1 if ties are what the difference is made of. The caller must confirm that they are: the
    row with these flips must agree.

    Place by place, since a flip moves the values that are rounded after it.
    """
    flips: Flips = ()
    for place in range(len(run([flips])[1])):
        for _ in range(_TIE_ROUNDS):
            chosen = _chosen_ties(model, run, target, flips, place)
            if not chosen:
                break
            flips = _toggled(flips, chosen)
    return flips


def _chosen_ties(
    model: Reference, run: RowRun, target: Target, flips: Flips, place: int
) -> list[Flip]:
    outputs, values = run([flips])
    ties = border_flips(model, place, values[place][0], TIE_STEPS)
    if not ties:
        return []
    toggled, _ = run([_toggled(flips, [tie]) for tie in ties])
    effects = (toggled - outputs).double().flatten(1)
    missing = (target.values - outputs[0]).double().flatten()
    shares = torch.linalg.lstsq(effects.T, missing[:, None]).solution[:, 0]
    return [tie for tie, share in zip(ties, shares.tolist(), strict=True) if share > 0.5]


def _toggled(flips: Flips, others: Sequence[Flip]) -> Flips:
    """Those of either, but not of both."""
    return tuple(sorted({*flips} ^ {*others}, key=lambda flip: (flip.place, flip.index)))


def _search(
    model: Reference, run: RowRun, target: Target, limit: float, effort: tuple[float, int, Flips]
) -> tuple[Flips, float]:
    """Beam search: the best trials of each length are each continued by every open flip."""
    border_steps, beam, start = effort
    kept = [start]
    best, error = kept[0], float("inf")
    _, values = run(kept)
    for _ in range(MAX_FLIPS):
        trials = [
            (*flips, flip)
            for row, flips in enumerate(kept)
            for place, value in enumerate(values)
            for flip in border_flips(model, place, value[row], border_steps)
            if (flip.place, flip.index) not in {(known.place, known.index) for known in flips}
        ]
        if not trials:
            break
        outputs, values = run(trials)
        errors = target.distance(outputs)
        order = sorted(range(len(trials)), key=errors.__getitem__)[:beam]
        best, error = trials[order[0]], errors[order[0]]
        if error <= limit:
            break
        kept = [trials[row] for row in order]
        values = [value[order] for value in values]
    return best, error


def target_of(found: Tensor) -> Target:
    """L2(error) / L2(output) from the artifact's row, found (width,)."""

    def distance(outputs: Tensor) -> list[float]:
        wanted = outputs.double()
        error = (found.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        return [float(value) for value in error]

    return Target(found, distance)
