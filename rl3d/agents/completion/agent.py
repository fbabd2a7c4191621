"""The agent that shifts (or picks) latents, its learning, and the search that it is compared with.

Two ways to learn, of one objective and from parts alone:

- TD3 (`rl3d.agents.td3`): exploring actions in `LatentCompletion`, a replay, gamma 1.
- its gradient: the objective is differentiable to the latent, so the actor can climb it without a learned Q (the
  deterministic policy gradient with the true reward in place of Q, 1509.02971 eq. 6).

In both the critic of the latent GAN goes on learning to tell the agent's latents from those of complete clouds, as in
unpaired completion (Chen et al. 2020, 1904.00069); QINet calls it adversarial enhancement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from rl3d.agents.completion.env import REACH, STEPS, observation
from rl3d.agents.completion.latent_gan import uniform_noise
from rl3d.agents.completion.objective import TERMS, Judge, Parts, total
from rl3d.agents.policies import mlp
from rl3d.model_files import read_weights, readable, write_weights


@dataclass(frozen=True)
class AgentConfig:
    """gfv: size of the latent. hidden: width. steps, reach: of the environment that it was trained in."""

    gfv: int = 128
    hidden: int = 256
    steps: int = STEPS
    reach: float = REACH


class ShiftAgent(nn.Module):
    """A perceptron from what `LatentCompletion` shows to a shift in [-1, 1]^G."""

    def __init__(self, config: AgentConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or AgentConfig()
        size = 2 * c.gfv + len(TERMS) + 1
        self.actor = nn.Sequential(mlp(size, c.hidden, c.hidden, c.gfv, gain=0.1, activation=nn.ReLU), nn.Tanh())

    def path(self, judge: Judge, parts: Parts) -> list[Tensor]:
        """The latents [B, G] before and after each step; differentiable to the actor. K decoder calls a row.

        The last latent is not decoded here: whoever wants it decodes it, so that K steps cost K calls in all with it
        and one more for the start.
        """
        codes = [parts.start]
        for k in range(self.config.steps):
            with torch.no_grad():
                terms = judge.terms(parts, codes[-1])
            values = torch.stack([terms[name] for name in TERMS], 1)
            progress = torch.full((len(parts),), k / self.config.steps)
            action = self.actor(observation(parts.start, codes[-1], values, progress))
            codes.append(codes[-1] + self.config.reach * action)
        return codes

    def save(self, folder: Path) -> None:
        """Weights in half precision and their configuration; each file atomically."""
        write_weights(folder, self, asdict(self.config), torch.half)

    @staticmethod
    def load(folder: Path) -> ShiftAgent:
        """Raises:
        AssetError: files that are missing or of another kind.
        """
        with readable(f"the completion agent in {folder}"):
            config, tensors = read_weights(folder)
            model = ShiftAgent(AgentConfig(**config))
            model.load_state_dict(tensors)
        return model.eval().requires_grad_(False)


def climb_loss(agent: ShiftAgent, judge: Judge, parts: Parts) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(minus the mean objective of the last latent, that latent [B, G], its terms); differentiable to the agent."""
    code = agent.path(judge, parts)[-1]
    terms = judge.terms(parts, code)
    return -total(terms).mean(), code, terms


def hill_climb(
    judge: Judge, parts: Parts, calls: int, generator: Generator | None = None, spread: float = 0.3
) -> Tensor:
    """[B, G] the best latent that a random search finds with `calls` decoder calls a row: from E(P_in), normal steps of
    `spread` standard deviations that are kept where the objective grows. The start is the first call."""
    return _search(judge, parts, calls, lambda best: best + spread * torch.randn(best.shape, generator=generator))


def best_of(judge: Judge, parts: Parts, calls: int, generator: Generator | None = None) -> Tensor:
    """[B, G] the best of E(P_in) and `calls` - 1 latents of the generator, by the objective."""
    gan = judge.gan
    return _search(judge, parts, calls, lambda best: gan.generate(uniform_noise(gan, len(best), generator)))


@torch.no_grad()
def _search(judge: Judge, parts: Parts, calls: int, propose: Callable[[Tensor], Tensor]) -> Tensor:
    best, score = parts.start, total(judge.terms(parts, parts.start))
    for _ in range(calls - 1):
        tried = propose(best)
        found = total(judge.terms(parts, tried))
        better = found > score
        best, score = torch.where(better[:, None], tried, best), torch.where(better, found, score)
    return best
