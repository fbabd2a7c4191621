"""Preference alignment of the mesh model: M-DPO and its relatives on a set of pairs.

    l_t   = log pi(y_t | y_<t, x) - log pi_ref(y_t | y_<t, x)
    L+    = sum_t phi_t(y+) l_t(y+)          good faces of the winner
    L-    = sum_t (1 - phi_t(y-)) l_t(y-)    bad faces of the loser
    L     = -log sigma(beta (L+ - L-)) + w_sft NLL(y+)       M-DPO (Mesh-RFT, 2505.16761), with an SFT term

`masked=False` sums over all tokens: DPO. What the papers call S-DPO, N-DPO and DeepMesh's DPO are that loss on pairs
by three metrics, by one, or by people, see `pairs.PairRule`. `window` cuts both sides to the same places (tDPO of
QuadGPT, 2509.21420). The context is never cut or masked, only the sum. The reference is the model at the start; its
log-probabilities are computed once, on the grammar's support like the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rl3d.errors import InputError
from rl3d.mesh_tokens.align_options import AlignOptions
from rl3d.mesh_tokens.align_page import Looks, pair_charts, write_page
from rl3d.mesh_tokens.candidates import condition_of
from rl3d.mesh_tokens.grammar import Grammar
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.pair_files import PairSet, Shape
from rl3d.mesh_tokens.sampling import sequence_log_probs
from rl3d.mesh_tokens.tokenizer import Tokenizer
from rl3d.mesh_tokens.tuning import Report, tune
from rl3d.randomness import generator_for
from rl3d.rl import as_floats, mesh_rft_masks, token_dpo

PATIENCE = 5  # steps whose mean counts: single batches of pairs are noisy
DISPLACED = "winners became less likely than they were while the margin rose: raise align.sft or lower align.lr"


def good_tokens(
    tokens: NDArray[np.integer], quality: NDArray[np.floating], tokenizer: Tokenizer, above: float
) -> NDArray[np.bool_]:
    """phi [T - 1] of each next token: False where any face that depends on it is worse than `above`.

    Tokens of no face, such as the end, are good. A candidate that failed has no faces: all of it is bad.

    Raises:
        InputError: qualities of another number of faces than the tokens write.
    """
    if len(quality) == 0:
        return np.zeros(len(tokens) - 1, bool)
    decoded = tokenizer.decode(tokens)
    if decoded.face_count != len(quality):
        raise InputError(f"the tokens write {decoded.face_count} faces, but {len(quality)} have a quality; score again")
    good = np.ones(len(tokens), bool)
    token, face = decoded.token_faces.T
    good[token[quality[face] < above]] = False
    return good[1:]


@dataclass(frozen=True)
class Row:
    """A candidate as tensors: tokens [T], phi [T - 1], the reference's log-probabilities [T - 1], and its shape.

    `supports` [T - 1, V] is the grammar's, see `sampling.sequence_log_probs`.
    """

    tokens: Tensor
    good: Tensor
    reference: Tensor
    supports: Tensor
    shape: Shape


def prepared(model: MeshLM, pairs: PairSet, options: AlignOptions) -> dict[str, Row]:
    """The rows of all candidates that some pair names; `model` is the reference.

    Raises:
        InputError: no pairs, or tokens that the model's grammar forbids: they are of another tokenizer.
    """
    names = list(dict.fromkeys(name for p in pairs.pairs for name in (p.winner, p.loser)))
    if not names:
        raise InputError("the set has no pairs; draw more candidates, or loosen the rule")
    rows, tokenizer = {}, model.config.tokenizer
    grammar = Grammar(tokenizer)
    for name in names:
        candidate = pairs.candidates[name]
        good = good_tokens(candidate.tokens, candidate.quality, tokenizer, options.good_above)
        tokens = torch.from_numpy(candidate.tokens.astype(np.int64))
        supports = grammar.supports(tokens[None])
        shape = pairs.shapes[candidate.shape]
        with torch.no_grad():
            asked = condition_of([shape], model.config).to(model.device)
            log_probs, _ = sequence_log_probs(model, tokens[None].to(model.device), asked, supports.to(model.device))
        if not bool(torch.isfinite(log_probs).all()):
            raise InputError(f"candidate {name!r} breaks the grammar of the model ({tokenizer}); make the set with it")
        rows[name] = Row(tokens, torch.from_numpy(good), log_probs[0].cpu(), supports[0], shape)
    return rows


def counted(rows: Sequence[tuple[Row, Row]], starts: Tensor, options: AlignOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Which next tokens count: bool [B, T - 1] of the winners and of the losers, and all that the winners have.

    Args:
        starts: see `pair_loss`.
    """
    flat = [row for pair in rows for row in pair]
    real = pad_sequence([torch.ones_like(r.good) for r in flat], True)
    good = pad_sequence([r.good for r in flat], True)
    counts = real
    if options.window:
        longest = real.sum(1).view(-1, 2).amax(1)  # of both sides: they share the places
        first = (starts * (longest - options.window + 1).clamp_min(1)).long().repeat_interleave(2)[:, None]
        place = torch.arange(real.shape[1])
        counts = real & (place >= first) & (place < first + options.window)
    winner, loser = counts[::2], counts[1::2]
    if options.masked:
        winner, loser = mesh_rft_masks(good[::2], good[1::2], winner, loser)
    return winner, loser, real[::2]


def pair_loss(
    model: MeshLM, rows: Sequence[tuple[Row, Row]], starts: Tensor, options: AlignOptions
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of some pairs (winner, loser), and numbers to log.

    Args:
        starts: [B] in [0, 1), where the window begins, as a share of the places that it can.
    """
    flat = [row for pair in rows for row in pair]
    device = model.device
    tokens = pad_sequence([r.tokens for r in flat], True, model.config.tokenizer.vocabulary.pad).to(device)
    condition = condition_of([r.shape for r in flat], model.config).to(device)
    supports = pad_sequence([r.supports for r in flat], True, True).to(device)  # beyond the end nothing counts
    log_probs, _ = sequence_log_probs(model, tokens, condition, supports)
    reference = pad_sequence([r.reference for r in flat], True).to(device)
    mask_w, mask_l, real_w = (mask.to(device) for mask in counted(rows, starts, options))
    loss, numbers = token_dpo(
        log_probs[::2],
        log_probs[1::2],
        reference[::2],
        reference[1::2],
        beta=options.beta,
        mask_w=mask_w,
        mask_l=mask_l,
        reduce=options.reduce,
    )
    nll = -(log_probs[::2] * real_w).sum(1).div(real_w.sum(1)).mean()  # of each winner first: no batch decides it
    shown = {**as_floats(numbers), "preference": float(loss.detach()), "nll": float(nll.detach())}
    shown |= {"tokens_winner": float(mask_w.sum(1).float().mean()), "tokens_loser": float(mask_l.sum(1).float().mean())}
    return loss + options.sft * nll, shown


def chosen(pairs: int, options: AlignOptions, step: int) -> list[int]:
    """Which pairs a step shows: every one once an epoch, in an order of its own."""
    first = step * options.pairs
    out = []
    for place in range(first, first + options.pairs):
        epoch, at = divmod(place, pairs)
        out.append(int(torch.randperm(pairs, generator=generator_for(options.seed, 0, epoch))[at]))
    return out


def align(
    model: MeshLM,
    pairs: PairSet,
    options: AlignOptions,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Report = lambda step, of, numbers: None,
    note: Callable[[str], None] = lambda message: None,
    accelerator: Accelerator | None = None,
) -> Path:
    """Tune all weights of `model`, in place, on a set of pairs; see `tuning.tune` for the rest.

    Args:
        note: told once when `displaced` rings.

    Raises:
        InputError: see `prepared`; fewer pairs a step than processes.
    """
    accelerator = accelerator or Accelerator(cpu=model.device.type == "cpu")
    index, count = accelerator.process_index, accelerator.num_processes
    if options.pairs < count:
        raise InputError(f"align.pairs={options.pairs} a step cannot be shared by {count} processes; raise it")
    rows = prepared(model, pairs, options)
    duels = [(rows[p.winner], rows[p.loser]) for p in pairs.pairs]
    named = dict.fromkeys(pairs.candidates[p.winner].shape for p in pairs.pairs)
    looks, seen = Looks.of(model, (pairs.shapes[name] for name in named)), list[dict[str, Any]]()

    def watched(step: int, of: int, numbers: Mapping[str, float]) -> None:
        seen.append({"step": step, **numbers})
        if displaced(seen[-PATIENCE:]) and len(displaced(seen)) == 1:
            note(f"warning: step {step}: {DISPLACED}")
        progress(step, of, numbers)

    def finished(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = report(pairs, options, rows)
        charts = pair_charts(rows, made["displaced"][:1])
        write_page(Path(out), f"Alignment on {len(duels)} pairs", made, charts, looks.after(model))
        return made

    config = {"align": asdict(options), "pairs": [asdict(p) for p in pairs.pairs], "set": dict(pairs.facts)}
    return tune(
        model,
        options,
        lambda step: gradients(model, duels, options, step, index, count),
        config,
        finished,
        out,
        resume=resume,
        progress=watched,
        accelerator=accelerator,
    )


def gradients(
    model: MeshLM, duels: Sequence[tuple[Row, Row]], options: AlignOptions, step: int, index: int = 0, count: int = 1
) -> dict[str, float]:
    """Add the gradients of a step's pairs to the weights; the numbers to log.

    Of process `index` of `count`: its part.
    """
    mine = [duels[i] for i in chosen(len(duels), options, step)][index::count]
    starts = torch.rand(options.pairs, generator=generator_for(options.seed, 1, step))[index::count]
    shown: dict[str, float] = {}
    for begin in range(0, len(mine), options.micro_batch):
        part = slice(begin, begin + options.micro_batch)
        loss, numbers = pair_loss(model, mine[part], starts[part], options)
        share = len(mine[part]) / options.pairs
        (loss * share).backward()
        for name, value in numbers.items():
            shown[name] = shown.get(name, 0.0) + share * value
    return shown


def displaced(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps by which the margin had risen while winners became less likely: both over the last `PATIENCE` steps' mean.

    Likelihood displacement: the loss falls because losers fall faster. What rises then is neither of the two.
    """
    found = []
    for end in range(PATIENCE, len(rows) + 1):
        seen = rows[end - PATIENCE : end]
        if sum(row["margin"] for row in seen) > 0 > sum(row["winner"] for row in seen):
            found.append(int(seen[-1]["step"]))
    return found


def report(pairs: PairSet, options: AlignOptions, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the run was and how it ended; a winner that became less likely is said."""
    warnings, rang = [], displaced(rows)
    if rang:
        warnings.append(f"{DISPLACED} (first at step {rang[0]}, {len(rang)} of {len(rows)} steps)")
    if rows[-1]["margin"] > 10:
        warnings.append("the pairs are saturated: lower align.beta, or take align.reduce=mean")
    return {
        "pairs": len(pairs.pairs),
        "by": {author: sum(p.by == author for p in pairs.pairs) for author in ("metrics", "human")},
        "last": dict(rows[-1]),
        "displaced": rang,
        "warnings": warnings,
        "options": asdict(options),
    }
