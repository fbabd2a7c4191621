"""Generative image models behind one protocol: encode a prompt, noise, predict x0, decode."""

from rl3d.priors.load import join_prompts, load, load_folder
from rl3d.priors.mixture import GaussianMixturePrior, Mixture
from rl3d.priors.protocol import Prior, PromptEmbedding

__all__ = ["GaussianMixturePrior", "Mixture", "Prior", "PromptEmbedding", "join_prompts", "load", "load_folder"]
