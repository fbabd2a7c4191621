"""MV-ZigAL (Zhang et al. 2025, arXiv 2505.20107): regress a policy's log-ratios onto how much a zigzag path is better.

Neighbouring rows begin from the same noise; the second one's has gone through a zigzag (`rollouts.zigzagged`), which
follows the prompt better. Per step, with rho the log-ratio to the policy that drew both,

    D = rho(standard) - rho(zigzag),   A = A(standard) - A(zigzag),   L = max((D - A)^2, (D_clip - A)^2)

MVC-ZigAL's constraint is in the advantages already (`rounds.held`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rl3d.multiview.policy import Drawn, Memory, PlainRule, Policy
from rl3d.multiview.rollouts import replay
from rl3d.rl import zigal
from rl3d.rl.numbers import as_floats


class ZigAL(PlainRule):
    """See the module."""

    together = 2

    def losses(self, drawn: Drawn, policy: Policy, memory: Memory) -> Iterator[tuple[Tensor, dict[str, float]]]:
        target = drawn.advantages[0::2] - drawn.advantages[1::2]
        for k in range(len(drawn.path.levels)):
            now, _ = replay(policy.prior, drawn.path, k)
            old = drawn.path.log_p[k]
            loss, numbers = zigal(now[0::2], now[1::2], old[0::2], old[1::2], target, clip=self.options.path.clip)
            yield loss, as_floats(numbers)
