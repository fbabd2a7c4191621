"""Train the models of point-cloud completion, one stage after the other.

    python tools/train_completion.py DATA --out RUN --stage bank            # points of all training surfaces, once
    python tools/train_completion.py DATA --out RUN --stage autoencoder --steps 3500 --rate 1.5e-3
    python tools/train_completion.py DATA --out RUN --stage gan --steps 5000
    python tools/train_completion.py DATA --out RUN --stage agent --steps 2500          # by the objective's gradient
    python tools/train_completion.py DATA --out RUN --stage td3 --steps 3000            # by TD3, for comparison
    python tools/train_completion.py DATA --out RUN --stage implicit --steps 3000

DATA is a folder of captioned meshes (docs/training.md); the val split is never read. Each stage resumes from its
checkpoint in RUN; steps decide the batches, so that a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from train_prior import Ema, restore, save

from rl3d.agents.completion.agent import AgentConfig, ShiftAgent, climb_loss
from rl3d.agents.completion.autoencoder import Autoencoder, reconstruction
from rl3d.agents.completion.clouds import corrupted, random_frame, resampled, surface_points
from rl3d.agents.completion.env import LatentCompletion
from rl3d.agents.completion.implicit import BAND, ImplicitDecoder, labelled
from rl3d.agents.completion.latent_gan import LatentGan, critic_loss, generator_loss, uniform_noise
from rl3d.agents.completion.objective import Judge, Parts, parts_of, total
from rl3d.agents.completion.views import random_looks
from rl3d.agents.td3 import Replay, TD3Options, explore, td3_state, td3_update
from rl3d.data.asset_set import AssetSet, load_asset_set
from rl3d.files import atomic_path, write_json
from rl3d.randomness import generator_for
from rl3d.scenes.mesh import Mesh

SURFACE, SEEN, LOOKS = 4096, 512, 3  # points of a surface and of a look, looks a mesh
TRUTH = 1024  # points that a decoded cloud is compared with
QUERIES, ASKED = 384, 256  # places a mesh with their distances, and how many of them a step asks for
PARTS = 6  # random parts a mesh, and as many latents of complete clouds
GONE = (0.1, 0.6)  # shares that are missing where the agent is shown less than is visible
HELD = 16  # every so many meshes of the training split are kept back from the agent, to compare ways to learn
EMA = 0.999
TD3_REACH = 0.5  # noise in 128 directions adds up: with the agent's own reach, exploring leaves all that decodes well
Loss = Callable[[int, Generator], tuple[Tensor, dict[str, float]]]


def meshes_of(assets: AssetSet, split: str) -> list[Mesh]:
    rows = [i for i, record in enumerate(assets.records) if record.split == split]
    return [Mesh(*(torch.from_numpy(part) for part in assets.mesh(i)[:2])) for i in rows]


def make_bank(data: Path, out: Path, limit: int) -> None:
    """Points of every training surface, and of what single looks see of it."""
    meshes = meshes_of(load_asset_set(data), "train")[: limit or None]
    generator = generator_for(0, 1)
    surface = surface_points(meshes, SURFACE, generator)
    seen = torch.stack([random_looks(mesh, LOOKS, SEEN, generator) for mesh in meshes])
    with atomic_path(out / "bank.safetensors") as temporary:
        save_file({"surface": surface.half(), "seen": seen.half()}, temporary)
    print(f"{len(meshes)} surfaces")


def placed(points: Tensor, generator: Generator) -> Tensor:
    """[B, N, 3] in a random frame, half of them mirrored."""
    return random_frame(len(points), generator).into(mirrored(points, generator))


def mirrored(points: Tensor, generator: Generator) -> Tensor:
    """Half of the rows with x and -x exchanged."""
    sign = 1.0 - 2.0 * torch.randint(2, (len(points), 1), generator=generator)
    return torch.cat([points[..., :1] * sign[..., None], points[..., 1:]], -1)


def fit(
    model: nn.Module,
    loss_of: Loss,
    folder: Path,
    args: argparse.Namespace,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 1.0,
) -> Ema:
    """Adam to --steps with a warm-up and a linear fall over the last 40 %; resumes from `folder`."""
    optimizer, ema = torch.optim.Adam(model.parameters(), lr=rate, betas=betas), Ema(model, EMA)
    state = {"step": 0, "seconds": 0.0}
    if (folder / "state.json").is_file():
        state |= {k: v for k, v in restore(folder, model, ema, [optimizer]).items() if k in state}
    folder.mkdir(parents=True, exist_ok=True)
    began = saved = logged = time.monotonic()
    before, numbers = float(state["seconds"]), []
    for step in range(int(state["step"]), args.steps):
        fall = (args.steps - step) / (0.4 * args.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50, fall)
        loss, row = loss_of(step, generator_for(args.seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip))
        if not math.isfinite(norm):
            raise SystemExit(f"the gradient is not finite at step {step}")
        optimizer.step()
        ema.update(model, step)
        numbers.append({"loss": float(loss.detach()), "gradient": norm, **row})
        now, last = time.monotonic(), step + 1 == args.steps
        state = {"step": step + 1, "seconds": before + now - began}
        if last or now - logged > 20:
            mean = {k: round(sum(n[k] for n in numbers) / len(numbers), 5) for k in numbers[0]}
            line = json.dumps({**{k: round(v, 1) for k, v in state.items()}, **mean})
            with (folder / "log.jsonl").open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
            logged, numbers = now, []
        if last or now - saved > 60 * args.save_every:
            saved = now
            save(folder, model, ema, [optimizer], state)
    return ema


def averaged(model: nn.Module, ema: Ema) -> nn.Module:
    model.load_state_dict(ema.shadow)
    return model.eval().requires_grad_(False)


def train_autoencoder(args: argparse.Namespace) -> None:
    bank = load_file(args.out / "bank.safetensors")["surface"]
    torch.manual_seed(args.seed)
    model = Autoencoder()

    def loss_of(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(bank), (args.batch,), generator=generator)
        everything = torch.ones(args.batch, bank.shape[1], dtype=torch.bool)
        seen = SEEN >> int(torch.randint(3, (1,), generator=generator))  # clouds come dense and sparse
        drawn = placed(resampled(bank[chosen].float(), everything, TRUTH + seen, generator), generator)
        return reconstruction(model, drawn[:, :seen], drawn[:, seen:]), {}

    ema = fit(model, loss_of, args.out / "autoencoder", args, args.rate or 1e-3)
    averaged(model, ema)
    model.fit_whitening(whole_gfv(model, bank, args.seed))
    model.save(args.out / "autoencoder" / "model")


@torch.no_grad()
def whole_gfv(model: Autoencoder, surface: Tensor, seed: int) -> Tensor:
    """[PARTS S, G] GFVs of complete clouds in random frames."""
    found = []
    for i in range(PARTS):
        generator = generator_for(seed, 10**6, i)
        found += [model.encode(placed(some[:, :SEEN].float(), generator)) for some in surface.split(64)]
    return torch.cat(found)


def random_parts(model: Autoencoder, bank: dict[str, Tensor], rows: Tensor, seed: int, hide: bool = True) -> Parts:
    """PARTS parts a mesh in random frames: a third what one look sees, the rest by `corrupted`.

    hide: of two thirds of them the agent is shown less than is visible, 10 to 60 % less.
    """
    visible, shown = [], []
    for i in range(PARTS):
        generator = generator_for(seed, 2 * 10**6, i)
        for some in rows.split(64):
            if i % LOOKS == 0:
                part = placed(bank["seen"][some, (i // LOOKS) % LOOKS].float(), generator)
            else:
                whole = placed(bank["surface"][some, i::4][:, :1024].float(), generator)
                part = corrupted(whole, SEEN, generator, GONE if hide else (0.2, 0.75))
            less = corrupted(part, SEEN, generator, (0.1, 0.6))
            every = torch.rand(len(part), 1, 1, generator=generator) < (1 / 3 if hide else 2.0)
            visible.append(part)
            shown.append(torch.where(every, part, less))
    return parts_of(model, torch.cat(visible), torch.cat(shown))


def learned_parts(args: argparse.Namespace, model: Autoencoder, bank: dict[str, Tensor]) -> Parts:
    """Those that the critic and the agents learn from, kept in RUN for the stages to share."""
    path = args.out / "parts.safetensors"
    if not path.is_file():
        parts = random_parts(model, bank, split_rows(len(bank["surface"]))[0], args.seed)
        with atomic_path(path) as temporary:
            save_file({"points": parts.points.half(), "start": parts.start}, temporary)
    kept = load_file(path)
    return Parts(kept["points"].float(), kept["start"])


def split_rows(count: int) -> tuple[Tensor, Tensor]:
    """Rows that agents learn from, and those kept back."""
    rows = torch.arange(count)
    return rows[rows % HELD != 0], rows[rows % HELD == 0]


def train_gan(args: argparse.Namespace) -> None:
    """The generator against complete clouds; the critic against the generator's latents and those of parts."""
    bank, autoencoder = load_file(args.out / "bank.safetensors"), Autoencoder.load(args.out / "autoencoder" / "model")
    real = autoencoder.normal(whole_gfv(autoencoder, bank["surface"], args.seed))
    parts = learned_parts(args, autoencoder, bank).start
    torch.manual_seed(args.seed)
    model = LatentGan()

    def loss_of(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        size = 4 * args.batch
        chosen = real[torch.randint(len(real), (2 * size,), generator=generator)]
        made = model.generate(uniform_noise(model, size, generator))
        fake = torch.cat([made.detach(), parts[torch.randint(len(parts), (size,), generator=generator)]])
        loss = critic_loss(model, chosen, fake, generator)
        numbers = {"distance": float((model.critic(chosen).mean() - model.critic(made).mean()).detach())}
        if step % 5 == 4:
            model.critic.requires_grad_(False)
            loss = loss + generator_loss(model, uniform_noise(model, size, generator))
            model.critic.requires_grad_(True)
        return loss, numbers

    ema = fit(model, loss_of, args.out / "gan", args, args.rate or 3e-4, (0.5, 0.9), math.inf)
    averaged(model, ema)
    model.fit_zero(real)
    model.save(args.out / "gan" / "model")


def train_agent(args: argparse.Namespace) -> None:
    """The actor climbs the objective, its critic learns on: real latents against the agent's and the parts' own."""
    bank, autoencoder = load_file(args.out / "bank.safetensors"), Autoencoder.load(args.out / "autoencoder" / "model")
    learn, held = split_rows(len(bank["surface"]))
    real = autoencoder.normal(whole_gfv(autoencoder, bank["surface"][learn], args.seed))
    parts = learned_parts(args, autoencoder, bank)
    torch.manual_seed(args.seed)
    gan = LatentGan.load(args.out / "gan" / "model").train()
    both = nn.ModuleDict({"agent": ShiftAgent(), "gan": gan})
    agent, judge = both["agent"], Judge(autoencoder, gan)

    def loss_of(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        gan.requires_grad_(False)
        chosen = parts.of(torch.randint(len(parts), (args.batch,), generator=generator))
        whole = real[torch.randint(len(real), (4 * args.batch,), generator=generator)]
        gan.fit_zero(whole)
        climb, code, terms = climb_loss(agent, judge, chosen)
        gan.critic.requires_grad_(True)
        for _ in range(2):
            others = parts.start[torch.randint(len(parts), (args.batch,), generator=generator)]
            fake = torch.cat([code.detach(), code.detach(), code.detach(), others])
            climb = climb + critic_loss(gan, whole, fake, generator)
        return climb, {name: float(value.detach().mean()) for name, value in terms.items()}

    ema = fit(both, loss_of, args.out / "agent", args, args.rate or 5e-4, (0.5, 0.9), math.inf)
    averaged(both, ema)
    gan.fit_zero(real)
    both["agent"].save(args.out / "agent" / "model")
    gan.save(args.out / "agent" / "critic")
    judged(both["agent"], judge, random_parts(autoencoder, bank, held, args.seed + 1, hide=False))


def train_implicit(args: argparse.Namespace) -> None:
    """Signed distances from the latents of complete clouds; the autoencoder stays as it is."""
    bank, autoencoder = load_file(args.out / "bank.safetensors"), Autoencoder.load(args.out / "autoencoder" / "model")
    path = args.out / "distances.safetensors"
    if not path.is_file():
        generator = generator_for(args.seed, 3 * 10**6)
        made = torch.stack(
            [labelled(mesh, QUERIES, generator) for mesh in meshes_of(load_asset_set(args.data), "train")]
        )
        with atomic_path(path) as temporary:
            save_file({"distances": made.half()}, temporary)
    known = load_file(path)["distances"]
    torch.manual_seed(args.seed)
    model = ImplicitDecoder()

    def loss_of(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(known), (args.batch,), generator=generator)
        frame = random_frame(args.batch, generator)
        first = int(torch.randint(QUERIES - ASKED + 1, (1,), generator=generator))  # places lie in random order
        some = known[rows, first : first + ASKED].float()
        both = mirrored(torch.cat([bank["surface"][rows, :SEEN].float(), some[..., :3]], 1), generator)
        both = frame.into(both)
        with torch.no_grad():
            code = autoencoder.normal(autoencoder.encode(both[:, :SEEN]))
        truth = (some[..., 3] * frame.scale[:, None]).clamp(-BAND, BAND)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(code, both[:, SEEN:])
        return (found.float() - truth).abs().mean() / BAND, {}

    ema = fit(model, loss_of, args.out / "implicit", args, args.rate or 2e-3)
    averaged(model, ema)
    model.save(args.out / "implicit" / "model")


def train_td3(args: argparse.Namespace) -> None:
    """The same actor by TD3 in the environment, against the critic that the agent's stage left. Not resumable: it is
    here for comparison and takes minutes."""
    bank, autoencoder = load_file(args.out / "bank.safetensors"), Autoencoder.load(args.out / "autoencoder" / "model")
    _, held = split_rows(len(bank["surface"]))
    judge = Judge(autoencoder, LatentGan.load(args.out / "agent" / "critic"))
    parts = learned_parts(args, autoencoder, bank)
    env = LatentCompletion(args.batch, parts, judge, reach=TD3_REACH, seed=args.seed)
    torch.manual_seed(args.seed)
    options = TD3Options(gamma=1.0, smooth=0.05, limit=0.1, actor_rate=1e-4, critic_rate=1e-3)
    agent = ShiftAgent(AgentConfig(reach=TD3_REACH))
    state = td3_state(env.state_size, env.action_size, options, agent.config.hidden)
    replay, generator = Replay(20_000), generator_for(args.seed, 4 * 10**6)
    seen, gained = env.reset(seed=args.seed)["state"], 0.0
    for step in range(args.steps):
        action = explore(state, seen, 0.1 if step < 50 else 0.05, generator)
        out = env.step(action)
        replay.push(seen, action, out.reward, out.final["state"], out.terminated)
        seen, gained = out.observation["state"], 0.98 * gained + 0.02 * env.steps * float(out.reward.mean())
        if step >= 50:
            for _ in range(2):
                td3_update(state, replay.sample(256, generator), options, generator)
        if step % 100 == 99:
            print(json.dumps({"step": step + 1, "gain an episode": round(gained, 4)}), flush=True)
    agent.actor.load_state_dict(state.actor.state_dict())
    agent.save(args.out / "td3" / "model")
    judged(agent, judge, random_parts(autoencoder, bank, held, args.seed + 1, hide=False))


@torch.no_grad()
def judged(agent: ShiftAgent, judge: Judge, parts: Parts) -> None:
    """Print the objective that the agent reaches on parts it has not learned from, and that of E(P_in)."""
    for name, code in (("start", parts.start), ("agent", agent.path(judge, parts)[-1])):
        terms = judge.terms(parts, code)
        row = {k: round(float(v.mean()), 4) for k, v in terms.items()}
        print(json.dumps({"held out": name, "objective": round(float(total(terms).mean()), 4), **row}))


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "autoencoder": train_autoencoder,
    "gan": train_gan,
    "agent": train_agent,
    "td3": train_td3,
    "implicit": train_implicit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("bank", *STAGES), required=True)
    parser.add_argument("--steps", type=int, default=6000, help="of the whole stage, over all calls")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, help="Adam's; default: the stage's own")
    parser.add_argument("--save-every", type=float, default=2, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="bank: the first so many meshes; 0: all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / f"{args.stage}.json", {k: str(v) for k, v in vars(args).items() if k not in ("data", "out")})
    if args.stage == "bank":
        make_bank(args.data, args.out, args.limit)
    else:
        STAGES[args.stage](args)


if __name__ == "__main__":
    main()
