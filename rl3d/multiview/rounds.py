"""One round of fine-tuning up to the update: whose turn it is, samples, their rewards, their advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError, RL3DError
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.policy import Drawn
from rl3d.multiview.rollouts import Path, noise_for, rollout, zigzagged
from rl3d.priors.load import join_prompts, prompt_row
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.randomness import generator_for, seed_for
from rl3d.rewards.pictures import reward_input
from rl3d.rewards.protocol import Reward, RewardInput, check_scores
from rl3d.rl import carve3d_advantages, constrained_advantages, exponential_weights, group_advantages

# Places in the run, see `seed_for`.
PROMPTS, CAMERAS, WINDOW, ROWS, LEVELS, STARTS = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Batch:
    """A micro-batch before its verdict: the path, and its rows' numbers in the round (group * K + sample)."""

    path: Path
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """A micro-batch with its scores [R, B], the seconds that the rewards took, and those that nobody else worked in."""

    batch: Batch
    scores: Tensor
    seconds: float
    waited: float


@dataclass(frozen=True)
class Verdict:
    """What the rewards of a round say.

    Attributes:
        rewards, advantages: [G * K], float64; a dropped sample has a NaN reward and an advantage of 0.
            For rwr they are weights, see `weighted`.
        silent: share of groups whose rewards are all alike. dropped: how many samples the reward broke on.
    """

    rewards: Tensor
    advantages: Tensor
    silent: float
    dropped: int


def turn(count: int, options: FinetuneOptions, round_: int) -> list[int]:
    """The prompts of a round: every prompt once before any comes again, in an order of the seed's."""
    first = round_ * options.prompts_per_round
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, first + options.prompts_per_round):
        lap, i = divmod(place, count)
        if lap not in orders:
            orders[lap] = torch.randperm(count, generator=generator_for(options.seed, PROMPTS, lap)).tolist()
        chosen.append(orders[lap][i])
    return chosen


def window(options: FinetuneOptions, round_: int) -> list[int] | None:
    """The noisy steps of a round, the same for all of it (another window a group spreads the rewards by itself)."""
    size, steps = options.path.window, options.sampler.steps - 1
    if size == 0 or size == steps:
        return None
    first = int(torch.randint(steps - size + 1, (), generator=generator_for(options.seed, WINDOW, round_)))
    return list(range(first, first + size))


def ring(prior: Prior, options: FinetuneOptions, *place: int) -> Cameras:
    """The cameras of a group: the asset's front ahead, at an elevation drawn for the place."""
    low, high = options.elevation
    share = float(torch.rand((), generator=generator_for(options.seed, CAMERAS, *place)))
    return prior.cameras(0.0, torch.deg2rad(torch.tensor(low + (high - low) * share)))


def draw(
    prior: Prior,
    prompts: Sequence[PromptEmbedding],
    groups: Sequence[int],
    options: FinetuneOptions,
    round_: int,
    micro_batch: int,
) -> Iterator[Batch]:
    """Samples of some groups of a round, a micro-batch at a time.

    Args:
        prompts: of all groups of the round. groups: those to draw.
    """
    rows = [(g, j) for g in groups for j in range(options.group)]
    keep = window(options, round_)
    cameras = {g: ring(prior, options, round_, g) for g in groups}
    for first in range(0, len(rows), micro_batch):
        some = rows[first : first + micro_batch]
        prompt, seen_by = join_prompts([prompts[g] for g, _ in some]), Cameras.cat([cameras[g] for g, _ in some])
        start = None
        if options.algorithm == "zigal":
            start = paired_starts(prior, prompt, seen_by, some, options, round_)
        generators = [generator_for(options.seed, ROWS, round_, g, j) for g, j in some]
        path = rollout(prior, prompt, seen_by, options.sampler, generators, keep=keep, start=start)
        yield Batch(path, tuple(g * options.group + j for g, j in some))


def paired_starts(
    prior: Prior,
    prompt: PromptEmbedding,
    cameras: Cameras,
    rows: Sequence[tuple[int, int]],
    options: FinetuneOptions,
    round_: int,
) -> Tensor:
    """Noise [B, V, c, h, w] that every two neighbours share, the second's after a zigzag."""
    generators = [generator_for(options.seed, STARTS, round_, g, j // 2) for g, j in rows]
    noise = noise_for(generators, (prior.n_views, *prior.latent_shape), torch.zeros((), device=cameras.device))
    other = zigzagged(prior, noise, prompt, cameras, options.sampler)
    odd = torch.tensor([j % 2 == 1 for _, j in rows], device=noise.device)
    return torch.where(odd[:, None, None, None, None], other.to(noise), noise)


def scored(prior: Prior, rewards: Sequence[Reward], batches: Iterator[Batch]) -> Iterator[Scored]:
    """Each micro-batch with its scores; one is scored while the next is drawn."""

    def timed(path: Path) -> tuple[Tensor, float]:
        began = time.perf_counter()
        return scores_of(prior, rewards, path), time.perf_counter() - began

    def finished(batch: Batch, future: Future[tuple[Tensor, float]]) -> Scored:
        began = time.perf_counter()
        scores, seconds = future.result()
        return Scored(batch, scores, seconds, time.perf_counter() - began)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: tuple[Batch, Future[tuple[Tensor, float]]] | None = None
        for batch in batches:
            following = (batch, pool.submit(timed, batch.path))
            if waiting is not None:
                yield finished(*waiting)
            waiting = following
        if waiting is not None:
            yield finished(*waiting)


@torch.no_grad()
def scores_of(prior: Prior, rewards: Sequence[Reward], path: Path) -> Tensor:
    """The rewards of a path's samples [R, B], float64 on the CPU; NaN where one broke on a sample.

    Raises:
        InputError: a reward breaks its promise in another way (see `check_scores`).
    """
    images = prior.decode(path.clean)
    x = reward_input(images, prior, path.cameras, path.prompt.prompts)
    return torch.stack([guarded_scores(reward, x) for reward in rewards])


def guarded_scores(reward: Reward, x: RewardInput) -> Tensor:
    """Scores [B]; a sample on which the reward raises, or to which it gives no finite number, has NaN."""
    try:
        return _checked(reward, x)
    except Exception as error:  # a user's own reward may raise anything
        if len(x.prompts) == 1:
            if isinstance(error, RL3DError) and "finite" not in str(error):
                raise
            return torch.full((1,), torch.nan, dtype=torch.float64)
    return torch.cat([guarded_scores(reward, _one(x, i)) for i in range(len(x.prompts))])


def _checked(reward: Reward, x: RewardInput) -> Tensor:
    return check_scores(reward(x), x, reward.name, False, reward.range).double().cpu()


def _one(x: RewardInput, i: int) -> RewardInput:
    v, cameras = x.images.shape[1], x.cameras
    if cameras is not None and len(cameras) > v:
        cameras = cameras[i * v : i * v + v]
    one = slice(i, i + 1)
    return replace(x, images=x.images[one], alphas=x.alphas[one], cameras=cameras, prompts=x.prompts[one])


def judged(rewards: Tensor, options: FinetuneOptions, name: str, charge: Tensor | None = None) -> Verdict:
    """Advantages of a round's rewards [G * K].

    Args:
        charge: [G * K] the KL that Carve3D's advantages are charged for.

    Raises:
        InputError: the reward broke on more than half of the samples.
    """
    values = rewards.double().unflatten(0, (-1, options.group))
    known = torch.isfinite(values)
    dropped = int((~known).sum())
    if 2 * dropped > known.numel():
        raise InputError(
            f"reward {name!r} broke on {dropped} of {known.numel()} samples of a round; try it with rl3d rewards check"
        )
    advantages, silent = torch.zeros_like(values), 0
    for g, (row, fine) in enumerate(zip(values, known)):
        if int(fine.sum()) < 2:
            silent += 1
            continue
        own = group_advantages(row[fine][None], floor=options.spread_floor, limit=options.advantage_limit)
        silent += bool(own.silent[0])
        advantages[g, fine] = own.values[0]
    if charge is not None:
        advantages = _charged(advantages, charge.double().view_as(values), options)
    advantages = torch.where(known, advantages, 0)
    return Verdict(rewards, advantages.flatten(), silent / len(values), dropped)


def held(verdict: Verdict, other: Verdict, multiplier: float) -> Verdict:
    """A verdict under a constraint (MVC-ZigAL): advantages (A_R + lambda A_C) / (1 + lambda)."""
    advantages = constrained_advantages(verdict.advantages, other.advantages, multiplier)
    return replace(verdict, advantages=advantages, dropped=verdict.dropped + other.dropped)


def weighted(verdict: Verdict, options: FinetuneOptions) -> Verdict:
    """Reward-weighted regression's weights exp(beta A), of mean 1 in each group, in the advantages' place."""
    advantages = verdict.advantages.unflatten(0, (-1, options.group))
    weights = exponential_weights(advantages, options.forward.beta).flatten()
    return replace(verdict, advantages=torch.where(torch.isfinite(verdict.rewards), weights, 0))


def _charged(z: Tensor, k: Tensor, options: FinetuneOptions) -> Tensor:
    """A = z(r) - alpha z(k), |A| at most the limit (Carve3D)."""
    z_k = group_advantages(k, floor=options.path.kl_floor).values
    return carve3d_advantages(z, z_k, alpha=options.path.alpha, limit=options.advantage_limit)


def drawn_of(batch: Batch, verdict: Verdict, options: FinetuneOptions, step: int, paired: bool) -> Drawn:
    """A micro-batch with its rows' part of the verdict.

    Args:
        step: the optimizer's, for the noise of forward rules, which both sides of a pair share.
    """
    place = batch.path.clean.device
    rows = torch.tensor(batch.rows)
    owners = [row // options.group if paired else row for row in batch.rows]
    seeds = tuple(seed_for(options.seed, LEVELS, step, owner) for owner in owners)
    advantages, rewards = (v[rows].float().to(place) for v in (verdict.advantages, verdict.rewards))
    return Drawn(batch.path, advantages, rewards, seeds)


def pairs_of(batches: Sequence[Batch], verdict: Verdict, options: FinetuneOptions, micro_batch: int) -> list[Batch]:
    """Micro-batches of (winner, loser, ...): the best and the worst of every group that has a signal."""
    where = {row: (batch, i) for batch in batches for i, row in enumerate(batch.rows)}
    k = options.group
    picked: list[int] = []
    for g in sorted({row // k for row in where}):
        own = verdict.advantages[g * k : g * k + k]
        if float(own.max()) > float(own.min()):
            picked += [g * k + int(own.argmax()), g * k + int(own.argmin())]
    out = []
    for first in range(0, len(picked), micro_batch):
        rows = picked[first : first + micro_batch]
        out.append(Batch(gathered([(where[r][0].path, where[r][1]) for r in rows]), tuple(rows)))
    return out


def split(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The same rows in micro-batches of at most `size`."""
    out = []
    for batch in batches:
        for first in range(0, len(batch.rows), size):
            some = range(first, min(first + size, len(batch.rows)))
            whole = len(some) == len(batch.rows)
            path = batch.path if whole else gathered([(batch.path, i) for i in some])
            out.append(Batch(path, tuple(batch.rows[i] for i in some)))
    return out


def gathered(rows: Sequence[tuple[Path, int]]) -> Path:
    """Rows of several paths of the same steps as one path."""
    first = rows[0][0]
    v = len(first.cameras) // len(first)

    def cut(pick: Callable[[Path], Tensor], axis: int) -> Tensor:
        return torch.cat([pick(path).narrow(axis, i, 1) for path, i in rows], axis)

    cameras = [p.cameras[i * v : i * v + v] for p, i in rows]
    return Path(
        join_prompts([prompt_row(p.prompt, i) for p, i in rows]),
        Cameras.cat(cameras),
        first.options,
        first.levels,
        cut(lambda p: p.states, 1),
        cut(lambda p: p.landed, 1),
        cut(lambda p: p.log_p, 1),
        cut(lambda p: p.clean, 0),
    )
