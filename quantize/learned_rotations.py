"""R1 and R2 learned on the calibration text, from seeded Hadamard matrices on.

SpinQuant (Liu et al., 2024, section 3.2): the loss of the network with rounded activations,
downhill by Cayley SGD, the learning rate falling linearly to zero. The loss is the divergence from
full precision rather than the paper's cross entropy: it says more per token, and calibration text
is short. R4 stays a Hadamard matrix, since it has to be multiplied while the network runs.

Shape legend: N sequences, T tokens, D hidden, H head_dim, L layers.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from llama_edge.core.checkpoint import Checkpoint
from llama_edge.core.errors import QuantizeError
from llama_edge.core.progress import Progress
from llama_edge.core.recipe import Device, Recipe, RotationLearning
from llama_edge.quantize.cayley import cayley_step, nearest_orthogonal
from llama_edge.quantize.device import check_device
from llama_edge.quantize.resume import (
    LearningPlace,
    RotationState,
    load_state,
    save_state,
    start_state,
)
from llama_edge.quantize.rotate import RotationMatrices
from llama_edge.quantize.rows_of_step import rows_of_step
from llama_edge.quantize.straight_through import RotationLoss, resident

#: Iterations between two saved states: a kill loses about a minute on SmolLM2.
SAVE_EVERY: Final = 4


def learn_rotations(
    checkpoint: Checkpoint,
    recipe: Recipe,
    start: RotationMatrices,
    tokens_NT: Tensor,
    place: LearningPlace,
    progress: Progress,
) -> RotationMatrices:
    """Rotations under which rounded activations keep the network nearer to full precision.

    Memory: the weights, in bfloat16 where that is exact; twice a layer's and the table's in
    float32; and one sequence's logits.

    Args:
        checkpoint: Full precision, not rotated.
        recipe: With `rotation_learning`.
        start: Where to begin; R4 is kept.
        tokens_NT: Calibration text, int64.
        place: The device, and the state of a run that was stopped, which is resumed.
        progress: Advances once per iteration.

    Raises:
        QuantizeError: The loss or its gradient is not finite.
        MissingComponentError: There is no such device here.
        OutputError: The state cannot be written.
    """
    learning = recipe.rotation_learning
    assert learning is not None
    check_device(place.device)
    device = torch.device(place.device.value)
    # In float64, which Apple's GPU lacks.
    matrices = torch.device("cpu") if place.device is Device.MPS else device
    first = start_state(start.r1.to(matrices), torch.stack(list(start.r2)).to(matrices))
    loss = RotationLoss(resident(checkpoint, device), start.r4)
    tokens = tokens_NT.to(device)
    state = _resume(first, learning, place.state, progress)
    while state.step < learning.iterations:
        rows = rows_of_step(len(tokens), state.step, learning.sequences, recipe.seed)
        state = _iterate(state, learning, loss, tokens[rows])
        due = state.step % SAVE_EVERY == 0 or state.step == learning.iterations
        if place.state is not None and due:
            save_state(state, place.state)
        progress.advance()
    r1, r2 = nearest_orthogonal(state.r1.cpu()), nearest_orthogonal(state.r2.cpu())
    return RotationMatrices(r1=r1, r2=list(r2), r4=start.r4)


def _iterate(
    state: RotationState, learning: RotationLearning, loss: RotationLoss, tokens_BT: Tensor
) -> RotationState:
    """The state after one more iteration.

    Raises:
        QuantizeError: The loss or its gradient is not finite.
    """
    r1, r2 = state.r1.clone().requires_grad_(), state.r2.clone().requires_grad_()
    value = loss(r1, r2, tokens_BT)
    gradients = torch.autograd.grad(value, (r1, r2))
    if not all(bool(found.isfinite().all()) for found in (value, *gradients)):
        raise QuantizeError(
            f"rotations: the loss of iteration {state.step} or its gradient is not finite; the "
            "weights are damaged or overflow float32"
        )
    rate = learning.learning_rate * (1 - state.step / learning.iterations)
    r1, r1_momentum = cayley_step(
        state.r1, gradients[0], state.r1_momentum, rate, learning.momentum
    )
    r2, r2_momentum = cayley_step(
        state.r2, gradients[1], state.r2_momentum, rate, learning.momentum
    )
    return RotationState(
        step=state.step + 1,
        r1=r1,
        r2=r2,
        r1_momentum=r1_momentum,
        r2_momentum=r2_momentum,
    )


def _resume(
    start: RotationState, learning: RotationLearning, path: Path | None, progress: Progress
) -> RotationState:
    """What an earlier run has left, or the start; a damaged file costs its time and is said."""
    found: RotationState | None = start
    if path is not None and path.exists():
        found = load_state(path, start)
    if found is None or found.step > learning.iterations:
        progress.start("learn rotations (anew: the saved state is damaged)", learning.iterations)
        return start
    progress.start("learn rotations", learning.iterations, done=found.step)
    return found
