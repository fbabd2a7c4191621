"""What one sample of a round keeps in memory, measured, and how much memory there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rl3d.errors import InputError
from rl3d.multiview.geometry import Geometry, cut
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.policy import Memory, Policy, Rule
from rl3d.multiview.rounds import Verdict, draw, drawn_of
from rl3d.multiview.update import gradients
from rl3d.priors.protocol import PromptEmbedding

TOO_LITTLE = "memory runs out with one view group at a time; take a smaller prior"
SHARE = 0.6  # of the free memory; the rest is for what lives for a moment, and for the reward


def free_bytes(device: torch.device) -> int | None:
    """Memory that could still be had: of the GPU, or of this process's part of the machine; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):  # not Linux
        return None
    return 1024 * kilobytes // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Kept:
    """A tensor that a graph keeps for its backward pass; counted once by storage, until the last holder lets go."""

    def __init__(self, tensor: Tensor, counts: dict[int, int], live: list[int]) -> None:
        self.tensor, self.counts, self.live = tensor, counts, live
        storage = tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        counts[self.place] = counts.get(self.place, 0) + 1
        if counts[self.place] == 1:
            live[0] += self.size
            live[1] = max(live)

    def __del__(self) -> None:
        self.counts[self.place] -= 1
        if not self.counts[self.place]:
            self.live[0] -= self.size


def peak_bytes(work: Callable[[], Any], device: torch.device, beside: Sequence[Tensor] = ()) -> int:
    """Bytes that `work` has at once, over what was there before.

    On CUDA all of them; elsewhere what its graphs keep for their backward passes, which is most of it.

    Args:
        beside: tensors that do not count, such as weights.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counts = {tensor.untyped_storage().data_ptr(): 1 for tensor in beside}
    live = [0, 0]  # now, and at most
    with torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(t, counts, live), lambda kept: kept.tensor):
        work()
    return live[1]


def sample_bytes(policy: Policy, rule: Rule, memory: Memory, prompt: PromptEmbedding, options: FinetuneOptions) -> int:
    """What drawing and learning from one sample has at once. Nothing is learned: gradients are thrown away."""
    few = rule.together
    device = next(iter(policy.parameters.values())).device

    def work() -> None:
        with rule.sampling(policy, memory):
            batch = next(iter(draw(policy.prior, [prompt], [0], options, 0, few)))
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(options.group)[: options.group]
        drawn = drawn_of(batch, Verdict(signs, signs, 0.0, 0), options, 0, rule.paired)
        gradients(rule, policy, [drawn], memory, few)

    try:
        return -(-peak_bytes(work, device, tuple(policy.network.parameters())) // few)
    finally:
        for tensor in policy.parameters.values():
            tensor.grad = None


def ran_out(error: RuntimeError) -> bool:
    """Whether memory was what was missing, on a GPU or here."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def solved(
    policy: Policy,
    rule: Rule,
    memory: Memory,
    prompt: PromptEmbedding,
    options: FinetuneOptions,
    accelerator: Accelerator,
) -> Geometry:
    """How a round is cut with the memory there is, the same for all processes.

    Raises:
        InputError: one sample is too much.
    """
    one, free = None, free_bytes(accelerator.device)
    if free is not None:
        try:
            one, free = sample_bytes(policy, rule, memory, prompt, options), int(SHARE * free)
        except RuntimeError as error:
            if ran_out(error):
                raise InputError(TOO_LITTLE) from error
            raise
        if accelerator.num_processes > 1:
            mine = torch.tensor([[one, -free]], dtype=torch.float64, device=accelerator.device)
            worst = accelerator.gather(mine).amax(0).tolist()
            one, free = int(worst[0]), int(-worst[1])
    parts = (options.prompts_per_round, options.group, accelerator.num_processes)
    return cut(*parts, options.micro_batch, together=rule.together, sample_bytes=one, budget=free)
