"""The state of a policy, what is counted between its turns, and its turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.densify.adaptive import AdaptiveControl, densify, reset_opacities
from rl3d.densify.markov_chain import MarkovChain, relocate_and_grow
from rl3d.densify.rows import Moments
from rl3d.errors import InputError
from rl3d.scenes.gaussians import Gaussians


@dataclass(frozen=True)
class DensifyState:
    """What a policy remembers.

    Attributes:
        step: of the optimisation.
        gradients, views: [N] sums of gradient norms, and in how many views each Gaussian was moved.
        screen: [N] the largest size since the last turn in a view that moved it: 3 standard deviations over the longer
            side of the picture; 0 without cameras.
    """

    step: int
    gradients: Tensor
    views: Tensor
    screen: Tensor

    @classmethod
    def start(cls, gaussians: Gaussians, step: int = 0) -> DensifyState:
        zero = torch.zeros_like(gaussians.opacity_logits.detach())
        return cls(step, zero, zero, zero)


def accumulate(
    state: DensifyState, gaussians: Gaussians, gradient: Tensor, cameras: Cameras | None = None
) -> DensifyState:
    """Add one step's position gradient.

    Args:
        gradient: [N, 3] of the loss with respect to `gaussians.means`, or [V, N, 3], one a view (so that views that
            pull in different directions do not cancel).
        cameras: as many as the gradient's views (1 for [N, 3]): norms are then taken on the screen, in units of half an
            image (normalised device coordinates), which is what Kerbl et al.'s threshold is for. None: in the world.

    Returns:
        The state with norms and views added; a Gaussian counts in the views where its gradient is not zero.

    Raises:
        InputError: shapes that do not fit.
    """
    per_view = gradient.detach() if gradient.ndim == 3 else gradient.detach()[None]
    if per_view.shape[1:] != gaussians.means.shape or len(state.gradients) != len(gaussians):
        raise InputError(
            f"accumulate: {len(gaussians)} Gaussians, a state of {len(state.gradients)} and a gradient of "
            f"{list(gradient.shape)} do not fit; give [N, 3] or [V, N, 3] and the state that `step` returned"
        )
    moved = (per_view != 0).any(-1)  # [V, N]
    screen = state.screen
    if cameras is not None:
        if len(cameras) != len(per_view):
            raise InputError(f"accumulate: {len(cameras)} cameras for {len(per_view)} gradients; give one a view")
        screen = torch.maximum(screen, torch.where(moved, _size(gaussians.detach(), cameras), 0).amax(0))
        per_view = _on_screen(gaussians.means.detach(), per_view, cameras)
    return replace(
        state,
        gradients=state.gradients + per_view.norm(dim=-1).sum(0),
        views=state.views + moved.sum(0).to(state.views),
        screen=screen,
    )


def _size(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[V, N] 3 of the largest standard deviation, seen at the centre's depth, over the picture's longer side."""
    means = gaussians.means
    view = cameras.view.to(means)
    z = torch.einsum("vj,nj->vn", view[:, 2, :3], means) + view[:, None, 2, 3]
    focal = cameras.intrinsics[:, [0, 1], [0, 1]].amax(1).to(means)[:, None]
    sizes = 3 * gaussians.scales.amax(1) * focal / z / max(cameras.width, cameras.height)
    return torch.where(z > 0, sizes, 0)


def _on_screen(means: Tensor, gradient: Tensor, cameras: Cameras) -> Tensor:
    """World gradients [V, N, 3] as gradients to normalised device coordinates [V, N, 2].

    u = fx x / z + cx gives dL/dx = fx / z dL/du at fixed z (what a position does to its own covariance is left out).
    """
    view = cameras.view.to(means)
    z = torch.einsum("vj,nj->vn", view[:, 2, :3], means) + view[:, None, 2, 3]
    in_camera = torch.einsum("vij,vnj->vni", view[:, :2, :3], gradient)
    focal = torch.stack([cameras.intrinsics[:, 0, 0], cameras.intrinsics[:, 1, 1]], -1).to(means)[:, None]
    half = means.new_tensor([cameras.width / 2, cameras.height / 2])
    return in_camera * z[..., None] / focal * half


@torch.no_grad()
def step(
    policy: AdaptiveControl | MarkovChain,
    state: DensifyState,
    gaussians: Gaussians,
    moments: Mapping[str, Tensor],
    generator: torch.Generator,
) -> tuple[Gaussians, DensifyState, Moments, dict[str, int]]:
    """One optimisation step's turn of a policy; not differentiable.

    Args:
        gaussians: N Gaussians; the tensors are read, never written to.
        moments: rows of N, see the module; may be empty.
        generator: random state on the CPU; the same one gives the same Gaussians on every device.

    Returns:
        The Gaussians (the same object where nothing was due), the state for the next step, the moments, and what
        happened: counts of "cloned", "split", "pruned", "relocated", "added", "reset" that are not 0.

    Raises:
        InputError: rows that do not fit, or a scene of which nothing would be left.
    """
    for name, values in moments.items():
        if values.shape[:1] != (len(gaussians),):
            raise InputError(f"step: moments {name!r} have shape {list(values.shape)} for {len(gaussians)} Gaussians")
    if len(state.gradients) != len(gaussians):
        raise InputError(f"step: a state of {len(state.gradients)} for {len(gaussians)} Gaussians")
    now = replace(state, step=state.step + 1)
    turn = policy.start <= now.step < policy.stop
    due = turn and now.step % policy.every == 0
    changes: dict[str, int] = {}
    rows = dict(moments)
    if due and isinstance(policy, AdaptiveControl):
        mean = state.gradients / state.views.clamp_min(1)
        gaussians, rows, changes = densify(policy, mean, state.screen, now.step, gaussians, rows, generator)
    elif due and isinstance(policy, MarkovChain):
        gaussians, rows, changes = relocate_and_grow(policy, gaussians, rows, generator)
    if due:
        now = DensifyState.start(gaussians, now.step)
    if turn and isinstance(policy, AdaptiveControl) and policy.reset_every and now.step % policy.reset_every == 0:
        gaussians, rows, reset = reset_opacities(policy, gaussians, rows)
        changes |= reset
    return gaussians, now, rows, {k: v for k, v in changes.items() if v}
