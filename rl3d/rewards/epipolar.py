"""Sampson error of matched points with KNOWN cameras: do the details of two views lie where one object would have them?

Points are matched by scikit-image's SIFT, both ways, in pairs of views whose directions are up to 60 degrees apart; the
cameras give the fundamental matrix, so nothing is estimated and no match can be explained away. A pair with fewer
matches than a floor is as bad as can be: a blur without texture must not be safe. Where no pair of cameras is near
enough, as with four views at right angles, the reward says so and gives no number.

It measures across epipolar lines only. Cameras on a level ring have nearly level lines, so that a detail moved sideways
is not noticed; copies of one view have their details on the same rows and go unpunished at elevation 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.rewards.gates import GateOptions, all_open, gates
from rl3d.rewards.hull import cameras_by_view
from rl3d.rewards.protocol import RewardInput, check_scores


def fundamental_matrix(first: Cameras, second: Cameras) -> Tensor:
    """[V, 3, 3] with x2^T F x1 = 0 for pixels x1, x2 (homogeneous) of one point; F = K2^-T [t]x R K1^-1, norm 1.

    R, t lead from the first camera's space to the second's (Hartley and Zisserman 2004, eq. 9.2). Zero where the two
    cameras stand in one place. Differentiable to the cameras.
    """
    motion = second.view @ first.poses
    x, y, z = motion[:, :3, 3].unbind(1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], 1).view(-1, 3, 3)
    inverse = torch.linalg.inv(second.intrinsics).transpose(1, 2)
    f = inverse @ cross @ motion[:, :3, :3] @ torch.linalg.inv(first.intrinsics)
    return f / f.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12)


def sampson_error(f: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """[N] in pixels: the root of Sampson's distance of matches x1, x2 [N, 2] for a fundamental matrix [3, 3].

    (x2^T F x1)^2 / ((F x1)_1^2 + (F x1)_2^2 + (F^T x2)_1^2 + (F^T x2)_2^2), to first order the squared distance to the
    nearest pair of pixels that one point can have (Hartley and Zisserman 2004, eq. 11.9). Differentiable.
    """
    one = torch.ones_like(x1[:, :1])
    h1, h2 = torch.cat([x1, one], 1), torch.cat([x2, one], 1)
    line2, line1 = h1 @ f.T, h2 @ f
    slope = line2[:, 0] ** 2 + line2[:, 1] ** 2 + line1[:, 0] ** 2 + line1[:, 1] ** 2
    return (h2 * line2).sum(1).abs() / slope.clamp_min(1e-20).sqrt()


def near_pairs(cameras: Cameras, degrees: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of V cameras whose directions are at most `degrees` apart; not those in one place."""
    forward, centres = cameras.view[:, 2, :3].double(), cameras.centres.double()
    angle = torch.rad2deg((forward @ forward.T).clamp(-1, 1).arccos())
    apart = (centres[:, None] - centres).norm(dim=-1) > 1e-4 * centres.norm(dim=-1).amax().clamp_min(1e-9)
    fits = (angle <= degrees + 1e-3) & apart
    return [(i, j) for i in range(len(cameras)) for j in range(i + 1, len(cameras)) if bool(fits[i, j])]


def keypoints(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT's places [N, 2] (x, y, pixels; the top-left pixel's centre is 0.5) and descriptors [N, 128], of [H, W]."""
    from skimage.feature import SIFT

    detector = SIFT(upsampling=2, c_dog=0.004, c_edge=15)
    try:
        detector.detect_and_extract(picture)
    except RuntimeError:  # scikit-image's word for a picture without features
        return np.zeros((0, 2)), np.zeros((0, 128))
    return detector.positions[:, ::-1] + 0.5, detector.descriptors


def matched(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], ratio: float) -> np.ndarray:
    """[M, 4] (x1, y1, x2, y2): keypoints that are each other's nearest and clearly nearer than the next (`ratio`)."""
    from skimage.feature import match_descriptors

    if min(len(first[0]), len(second[0])) < 2:
        return np.zeros((0, 4))
    pairs = match_descriptors(first[1], second[1], cross_check=True, max_ratio=ratio)
    return np.concatenate([first[0][pairs[:, 0]], second[0][pairs[:, 1]]], 1)


@dataclass(frozen=True)
class EpipolarTerms:
    """What a score is made of: scores [B]; pairs of views that were compared; for each asset and pair the number of
    matches and the mean error (pixels, each match at most `cap`; `cap` where there are too few)."""

    scores: Tensor
    pairs: list[tuple[int, int]]
    matches: list[list[int]]
    errors: list[list[float]]


@dataclass(frozen=True)
class Epipolar:
    """Minus the mean Sampson error over `cap`, in [-1, 0]; not differentiable.

    Attributes:
        degrees: pairs of views up to this far apart are compared. floor: matches that a pair needs; with fewer it
            counts as the worst. cap: error in pixels of a 96-pixel picture above which a match is wrong anyway.
        ratio: of Lowe's test. views: how many it wants; None takes any cameras with a pair that is near enough.
        gates: an asset whose gates are closed gets -1.
    """

    degrees: float = 60.0
    floor: int = 8
    cap: float = 4.0
    ratio: float = 0.9
    views: int | None = 8
    gates: GateOptions = field(default_factory=GateOptions)
    name: str = "epipolar"
    differentiable: bool = False
    range: tuple[float, float] = (-1.0, 0.0)
    licence: str = "none"

    def __post_init__(self) -> None:
        if not (0 < self.degrees < 90 and self.floor >= 1 and self.cap > 0 and 0 < self.ratio <= 1):
            raise InputError(
                f"epipolar needs degrees in (0, 90), floor from 1, cap over 0, ratio in (0, 1]; got {self}"
            )

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B].

        Raises:
            InputError: no cameras, another number of views, or no two of them near enough: it cannot judge.
        """
        if self.views is not None and x.images.shape[1] != self.views:
            raise InputError(f"reward {self.name!r} needs {self.views} views an asset, got {x.images.shape[1]}")
        return check_scores(self.terms(x).scores, x, self.name, False, self.range)

    @torch.no_grad()
    def terms(self, x: RewardInput) -> EpipolarTerms:
        """The scores and what they are made of; cameras that differ between assets must give the same pairs."""
        if x.cameras is None:
            raise InputError(f"reward {self.name!r} looks at cameras, which are not known here")
        batch, views, _, height, _ = x.images.shape
        own = cameras_by_view(x.cameras, batch, views)
        pairs = near_pairs(own[0], self.degrees)
        if not pairs:
            raise InputError(
                f"reward {self.name!r} cannot judge these views: no two cameras look within {self.degrees:g} degrees "
                "of each other, so that hardly a point is seen twice; give six views around the object or more"
            )
        passes = all_open(gates(x, self.gates)).tolist()
        cap = self.cap * height / 96
        grey = x.images.detach().cpu().double().mean(2).numpy()
        matches, errors, scores = [], [], []
        for i in range(batch):
            found = [keypoints(picture) for picture in grey[i]] if passes[i] else []
            cameras = own[i % len(own)]
            counts, means = [], []
            for a, b in pairs:
                match = matched(found[a], found[b], self.ratio) if passes[i] else np.zeros((0, 4))
                counts.append(len(match))
                means.append(self._mean_error(match, cameras[a], cameras[b], cap))
            matches.append(counts)
            errors.append(means)
            scores.append(-sum(means) / len(means) / cap)
        return EpipolarTerms(torch.tensor(scores).to(x.images), pairs, matches, errors)

    def _mean_error(self, match: np.ndarray, first: Cameras, second: Cameras, cap: float) -> float:
        if len(match) < self.floor:
            return cap
        points = torch.from_numpy(match)
        f = fundamental_matrix(first.to("cpu", torch.float64), second.to("cpu", torch.float64))[0]
        return float(sampson_error(f, points[:, :2], points[:, 2:]).clamp(max=cap).mean())
