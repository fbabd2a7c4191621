"""Whether a reward was calibrated: `calibration.json` holds what `rl3d rewards check` found for the embedded ones.

The file names the weights that it was made with, so that it does not vouch for others. `tools/calibrate_rewards.py`
writes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch.nn import Module

from rl3d.errors import AssetError, InputError
from rl3d.rewards.embedded import FORMULAS, JudgeReward
from rl3d.rewards.hfdream import HFDream
from rl3d.rewards.mrc import MRC
from rl3d.rewards.mvreward import MVReward
from rl3d.rewards.perceptual import JudgeFeatures
from rl3d.rewards.protocol import Reward
from rl3d.rewards.reward3d import Reward3D
from rl3d.rewards.reward_cs import RewardCS

CALIBRATIONS = Path(__file__).parent / "calibration.json"


def weights_digest(reward: Reward) -> str:
    """SHA-256 of an embedded model's weights as float32, in the order of their names; "" for a formula.

    For MRC, of what it is built of as well: with another reconstructor it is another reward.
    """
    digest = hashlib.sha256()
    if isinstance(reward, JudgeReward):
        model: Module = reward.judge.model
    elif isinstance(reward, Reward3D | RewardCS | HFDream | MVReward):
        model = reward.model
    elif isinstance(reward, MRC) and isinstance(reward.distance, JudgeFeatures):
        model = reward.distance.judge.model
        digest.update(f"{reward.about} {reward.reconstructor!r} {reward.options} {reward.view_pixels}".encode())
    else:
        return ""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def recorded_calibration(reward: Reward, path: Path = CALIBRATIONS) -> dict[str, Any] | None:
    """What was found for this embedded reward with these very weights; None where it was not checked.

    Raises:
        AssetError: the file cannot be read.
    """
    weights = weights_digest(reward)
    if not weights and FORMULAS.get(reward.name) is not reward:
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get(reward.name) if path.exists() else None
        return entry if entry is not None and entry["weights"] == weights else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"{path} cannot be read ({type(error).__name__}: {error}); reinstall rl3d") from error


def calibration_warning(reward: Reward, embedded: bool, path: Path = CALIBRATIONS) -> str | None:
    """What to tell somebody who is about to optimise a reward; None where every case of its calibration passed.

    Args:
        embedded: it was loaded by name and not given by the user.

    Raises:
        InputError: an embedded reward that was not calibrated with its present weights.
    """
    found = recorded_calibration(reward, path)
    if found is None and embedded:
        raise InputError(
            f"the embedded reward {reward.name!r} was not calibrated with these weights; run "
            "tools/calibrate_rewards.py, or give a reward of your own"
        )
    if found is None:
        return (
            f"reward {reward.name!r} is your own and not calibrated; see whether it prefers a hack with "
            "rl3d.rewards.check_reward"
        )
    if found["failed"]:
        return (
            f"reward {reward.name!r} fails {len(found['failed'])} of its calibration's cases "
            f"({', '.join(found['failed'])}); see rl3d rewards check {reward.name}"
        )
    return None
