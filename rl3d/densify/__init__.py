"""Policies that change how many Gaussians a scene has while it is optimised, as pure functions.

- `AdaptiveControl`: adaptive density control of 3D Gaussian Splatting (Kerbl et al. 2023, arXiv 2308.04079, section
  5.2): clone small and split large Gaussians whose position gradient stays large, prune faint and huge ones, reset
  opacities now and then. Pruning by size in the pictures, a budget and the opacity correction of clones (Bulo et al.
  2024, arXiv 2404.06109) are knobs.
- `MarkovChain`: 3DGS-MCMC (Kheradmand et al. 2024, arXiv 2404.09591): a fixed budget, faded Gaussians are moved onto
  visible ones so that the picture stays, growth by copies, noise on the positions (`with_noise`).

The caller keeps the loop:

    state = DensifyState.start(gaussians)
    each step: state = accumulate(state, gaussians, gradient, cameras)       (AdaptiveControl only)
               gaussians, state, moments, changes = step(policy, state, gaussians, moments, generator)

`moments` are any tensors with one row a Gaussian, named "<field of Gaussians>.<anything>": their rows go along, new
rows are zero. `adam_moments` and `continue_adam` take them out of and put them into a torch.optim.Adam.
"""

from rl3d.densify.adaptive import AdaptiveControl
from rl3d.densify.markov_chain import MarkovChain, shared, with_noise
from rl3d.densify.rows import Moments, adam_moments, continue_adam
from rl3d.densify.turns import DensifyState, accumulate, step

__all__ = [
    "AdaptiveControl",
    "DensifyState",
    "MarkovChain",
    "Moments",
    "accumulate",
    "adam_moments",
    "continue_adam",
    "shared",
    "step",
    "with_noise",
]
