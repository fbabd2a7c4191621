"""Update rules: pure functions of tensors that know nothing of what a sample is.

Log-probs, predictions, errors and rewards go in; a loss to minimise and numbers to log come out. Models, sampling,
noise and loops are the caller's. State that has to live on (reward buffers, multipliers, stop rules) is a frozen
dataclass that goes in and comes out. docs/rl.md is the table of rules with their papers.
"""

from rl3d.rl.advantages import (
    Advantages,
    DecoupledAdvantages,
    RewardBuffer,
    buffer_advantages,
    carve3d_advantages,
    decoupled_advantages,
    group_advantages,
    pushed,
)
from rl3d.rl.constraint import ConstraintOptions, ConstraintState, constrained_advantages, updated
from rl3d.rl.distributions import Beta, Distribution, Gaussian, MaskedCategorical, ObjectThenCell
from rl3d.rl.forward_process import (
    NFTNumbers,
    awm,
    exponential_weights,
    matching_log_probs,
    nft,
    optimality,
    reward_weighted_regression,
    squared_error,
)
from rl3d.rl.guards import (
    GradientReport,
    Round,
    StopOptions,
    StopState,
    check_replay,
    clip_gradients,
    norm_hinge,
    watched,
    within_budget,
)
from rl3d.rl.kl import gaussian_kl, gaussian_log_prob, k1, k2, k3
from rl3d.rl.normalise import ReturnScale, RunningMoments
from rl3d.rl.numbers import as_floats
from rl3d.rl.policy_gradient import PolicyNumbers, clipped_surrogate, dpok, grpo, reinforce
from rl3d.rl.preference import PreferenceNumbers, d3po, diffusion_dpo, mesh_rft_masks, token_dpo
from rl3d.rl.returns import gae, standardised, value_loss
from rl3d.rl.reward_difference import DifferenceNumbers, prdp, rebel, zigal

__all__ = [
    "Advantages",
    "Beta",
    "ConstraintOptions",
    "ConstraintState",
    "DecoupledAdvantages",
    "DifferenceNumbers",
    "Distribution",
    "Gaussian",
    "GradientReport",
    "MaskedCategorical",
    "NFTNumbers",
    "ObjectThenCell",
    "PolicyNumbers",
    "PreferenceNumbers",
    "ReturnScale",
    "RewardBuffer",
    "Round",
    "RunningMoments",
    "StopOptions",
    "StopState",
    "as_floats",
    "awm",
    "buffer_advantages",
    "carve3d_advantages",
    "check_replay",
    "clip_gradients",
    "clipped_surrogate",
    "constrained_advantages",
    "d3po",
    "decoupled_advantages",
    "diffusion_dpo",
    "dpok",
    "exponential_weights",
    "gae",
    "gaussian_kl",
    "gaussian_log_prob",
    "group_advantages",
    "grpo",
    "k1",
    "k2",
    "k3",
    "matching_log_probs",
    "mesh_rft_masks",
    "nft",
    "norm_hinge",
    "optimality",
    "prdp",
    "pushed",
    "rebel",
    "reinforce",
    "reward_weighted_regression",
    "squared_error",
    "standardised",
    "token_dpo",
    "updated",
    "value_loss",
    "watched",
    "within_budget",
    "zigal",
]
