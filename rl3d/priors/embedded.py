"""The embedded multi-view prior: a pipeline folder in the diffusers layout around `MultiViewTransformer`.

    model_index.json     {"_class_name": "MultiViewPipeline", ...}
    transformer/         config.json + safetensors shards (ModelMixin.save_pretrained)
    scheduler/           scheduler_config.json (FlowMatchEulerDiscreteScheduler)
    tokenizer/           vocabulary.json, one word an id

Its diffusion space is pixel space: RGBA views in [-1, 1], x_t = (1 - t) x0 + t eps.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.data.captions import ARTICLES, FILLERS, MAX_WORDS, split_words
from rl3d.errors import AssetError, InputError, nearest
from rl3d.files import write_json
from rl3d.priors.latent_diffusion import rows
from rl3d.priors.multiview_model import MultiViewTransformer, doubled, halved, patch_rays
from rl3d.priors.protocol import PromptEmbedding

PIPELINE_CLASS = "MultiViewPipeline"
DISTANCE, FOV_Y = 2.7, 0.47  # the cameras it was trained with
GUIDE_ABOVE = 0.75  # sampling is guided above this noise level only, see `EmbeddedPrior.sample`
NOT_CONTENT = frozenset(ARTICLES) | frozenset(FILLERS)


SHARD_BYTES = 15_600_000  # under 15 MiB with its header


class UnknownWordWarning(UserWarning):
    """A word of the prompt means nothing to the prior, or comes too late for it."""


class Vocabulary:
    """Words and their ids; 0 pads, 1 is the empty prompt."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.index = {word: i for i, word in enumerate(words)}

    def unknown(self, prompt: str) -> dict[str, list[str]]:
        """The words of `prompt` that are not known, each with the nearest known ones, possibly none."""
        missing = [w for w in split_words(prompt) if w not in self.index]
        return {w: nearest(w, self.words[2:]) or _cousins(w, self.index) for w in missing}

    def knows_content(self, prompt: str) -> bool:
        """Whether any word beyond articles and fillers is known."""
        return any(w in self.index and w not in NOT_CONTENT for w in split_words(prompt))

    def encode(self, text: str) -> list[int]:
        """`MAX_WORDS` ids; unknown words are left out, a text without known words is the empty prompt."""
        ids = [self.index[w] for w in split_words(text) if w in self.index][:MAX_WORDS] or [1]
        return ids + [0] * (MAX_WORDS - len(ids))


def _cousins(word: str, index: dict[str, int]) -> list[str]:
    """Known words that a plural or a compound of `word` leads to."""
    found = [w for w in (word + "s", word.rstrip("s"), word.removesuffix("es")) if w in index]
    return found + [p for p in word.split("-") if p in index and p not in found]


def _cast(model: MultiViewTransformer, device: torch.device, dtype: torch.dtype) -> MultiViewTransformer:
    # torch's own `to`: that of diffusers warns about modules to keep in float32, of which there are none.
    torch.nn.Module.to(model, device, dtype)
    torch.nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class EmbeddedPrior:
    """Text and cameras to consistent RGBA views (`Prior` protocol); see `load_embedded`.

    Args:
        model: taken over: moved to `device` and `dtype`, frozen.
        dtype: None takes bfloat16 where the hardware multiplies it natively, float32 elsewhere.
    """

    n_views = 4
    has_alpha = True
    background = 0.0
    baked_light = True
    licence = "Apache-2.0 (weights), CC0-1.0 (training data)"

    def __init__(
        self,
        model: MultiViewTransformer,
        vocabulary: Vocabulary,
        scheduler: Any,
        name: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.dtype = dtype or (torch.bfloat16 if native else torch.float32)
        self.device = device
        self.model = _cast(model, device, self.dtype).eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.scheduler = scheduler
        self.name = name
        self.image_size = int(model.config["image_size"])
        self.latent_shape = (4, self.image_size, self.image_size)
        self.coarse_above = float(model.config["coarse_above"] or math.inf)

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """Word ids of prompt and negative prompt, [1, MAX_WORDS] each.

        Warns:
            UnknownWordWarning: a word is not known, or comes after the last one that is read; it is left out.

        Raises:
            InputError: no word of the prompt is known.
        """
        if not self.vocabulary.knows_content(prompt):
            raise InputError(
                f"the {self.name} prior knows no word of the prompt {prompt!r}; it knows"
                f" {len(self.vocabulary.words) - 2} words such as barrel, chest, tree, house, sword;"
                " for anything else give --prior a text-to-image model"
            )
        for word, known in self.vocabulary.unknown(prompt + " " + negative_prompt).items():
            hint = f"; nearest known: {', '.join(known)}" if known else ""
            warnings.warn(
                f"the {self.name} prior does not know the word {word!r} and leaves it out{hint};"
                " --prior with a text-to-image model such as a Stable Diffusion folder would know it",
                UnknownWordWarning,
                stacklevel=2,
            )
        for text in (prompt, negative_prompt):
            late = [w for w in split_words(text) if w in self.vocabulary.index][MAX_WORDS:]
            if late:
                warnings.warn(
                    f"the {self.name} prior reads {MAX_WORDS} words and leaves out {' '.join(late)!r}; say it shorter",
                    UnknownWordWarning,
                    stacklevel=2,
                )
        ids = [torch.tensor([self.vocabulary.encode(text)], device=self.device) for text in (prompt, negative_prompt)]
        return PromptEmbedding(ids[0], ids[1], [prompt])

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        """[4] cameras at 90 degree spacing from base `azimuth`, all at `elevation` (radians)."""
        steps = torch.arange(self.n_views, dtype=torch.float32, device=self.device) * (2 * math.pi / self.n_views)
        return Cameras.orbit(
            torch.as_tensor(azimuth, device=self.device) + steps, elevation, DISTANCE, FOV_Y, self.image_size
        )

    def to_latents(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 * (latents + 1)).clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        level = t.reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - level) * latents + level * noise

    def times(self, steps: int) -> Tensor:
        """See `Prior.times`; they crowd at high noise, see `new_scheduler`."""
        return self._sigmas(1.0, steps).double()

    def _sigmas(self, top: float, steps: int) -> Tensor:
        """The scheduler's levels [steps + 1] from `top` (before its shift) to 0; the scheduler is set to them."""
        sigmas = np.linspace(top, top / steps, steps).tolist()
        self.scheduler.set_timesteps(sigmas=sigmas, device=self.device)
        return self.scheduler.sigmas

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See `Prior.predict_x0`. `cameras` holds V or B * V cameras; `t` is [B] or [1]; any V works.

        Raises:
            InputError: another number of cameras or prompts.
        """
        b = len(x_t)
        words = [rows(prompt.positive, b)]
        if guidance != 1.0:
            words.append(rows(prompt.negative, b))
        x0 = self._clean(self.model, x_t, t, words, cameras).clamp(-1.1, 1.1)
        if guidance == 1.0:
            return x0, x0
        text, empty = x0.chunk(2)
        return empty + guidance * (text - empty), text

    def _clean(
        self, model: Callable[..., Tensor], x_t: Tensor, t: Tensor, words: list[Tensor], cameras: Cameras
    ) -> Tensor:
        """float32 x0 [len(words) * B, V, 4, S, S] for each of `words` [B, L]; at half size where noise is high."""
        b, v = x_t.shape[:2]
        t = t.expand(b)
        coarse, size = t >= self.coarse_above, self.image_size
        high = int(coarse.sum())
        if 0 < high < b:
            return self._mixed(model, x_t, t, words, cameras, coarse)
        if high:
            (x_t, t), size = halved(x_t, t), size // 2
        grid = size // int(self.model.config["patch"])
        rays = patch_rays(camera_rows(cameras, b, v), grid).to(x_t).unflatten(0, (b, v))
        n = len(words)
        x_t, t, rays = (torch.cat([a] * n) if n > 1 else a for a in (x_t, t, rays))
        x0 = model(x_t.to(self.dtype), t, torch.cat(words), rays).float()
        return doubled(x0) if high else x0

    def _mixed(
        self,
        model: Callable[..., Tensor],
        x_t: Tensor,
        t: Tensor,
        words: list[Tensor],
        cameras: Cameras,
        coarse: Tensor,
    ) -> Tensor:
        """`_clean` of rows of which some are coarse: each kind by itself."""
        b, v = x_t.shape[:2]
        every = camera_rows(cameras, b, v)
        out = x_t.new_empty((len(words), *x_t.shape), dtype=torch.float32)
        for chosen in (coarse, ~coarse):
            their = chosen.repeat_interleave(v)
            some = Cameras(every.view[their], every.intrinsics[their], every.height, every.width)
            x0 = self._clean(model, x_t[chosen], t[chosen], [w[chosen] for w in words], some)
            out[:, chosen] = x0.unflatten(0, (len(words), -1))
        return out.flatten(0, 1)

    @property
    def network(self) -> MultiViewTransformer:
        """What an adapter may be put on, see `rl3d.priors.adapters`."""
        return self.model

    def linears(self) -> dict[str, Tensor]:
        """The transformer blocks' weights [O, I] by name, see `rl3d.priors.low_rank.AdaptablePrior`."""
        weights = {k: v for k, v in self.model.named_parameters() if k.startswith("blocks.") and k.endswith(".weight")}
        return {k: v for k, v in weights.items() if ".lora_" not in k}

    def predict_x0_with(
        self, weights: Mapping[str, Tensor], x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras
    ) -> Tensor:
        """x0 without guidance, some weights replaced; see `rl3d.priors.low_rank.AdaptablePrior`."""

        def model(*arguments: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(self.model, dict(weights), arguments)
            return out

        return self._clean(model, x_t, t, [rows(prompt.positive, len(x_t))], cameras)

    @torch.no_grad()
    def sample(
        self,
        prompt: PromptEmbedding,
        cameras: Cameras,
        *,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        groups: int = 1,
    ) -> Tensor:
        """Images [B, V, 4, S, S] in [0, 1] by the scheduler's Euler steps.

        `guidance` acts from t = 1 down to `GUIDE_ABOVE`, where words decide what is there; further down it only makes
        surfaces blotchy (Kynkäänniemi et al. 2024, arXiv 2404.07724, limit it to an interval) and costs twice.

        Args:
            start: [B, V, 4, S, S] images to begin from instead of noise (SDEdit, Meng et al. 2021, arXiv 2108.01073),
                noised to the level `strength` in (0, 1].
            groups: independent view groups of the same cameras, drawn at once; B = groups, or cameras / V when there
                are more cameras than views.

        Raises:
            InputError: no step, a strength outside (0, 1], or `start` of another shape.
        """
        if steps < 1:
            raise InputError(f"the number of sampling steps must be at least 1, got {steps}")
        if not 0 < strength <= 1:
            raise InputError(f"strength must lie in (0, 1], got {strength}")
        b = len(cameras) // self.n_views if len(cameras) > self.n_views else groups
        shape = (b, self.n_views, 4, self.image_size, self.image_size)
        if start is not None and tuple(start.shape) != shape:
            raise InputError(f"start must be views {list(shape)}, got {list(start.shape)}")
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        shift = float(self.scheduler.config.shift)
        top = strength / (shift - (shift - 1) * strength)  # the scheduler's shift takes it to `strength`
        sigmas = self._sigmas(top, steps)
        x = noise if start is None else self.add_noise(self.to_latents(start.to(noise)), noise, sigmas[:1].expand(b))
        for i, timestep in enumerate(self.scheduler.timesteps):
            sigma = sigmas[i].clamp_min(1e-3)
            guided = guidance if float(sigma) >= GUIDE_ABOVE else 1.0
            x0, _ = self.predict_x0(x, sigma.expand(b), prompt, cameras, guided)
            x = self.scheduler.step((x - x0.clamp(-1, 1)) / sigma, timestep, x, return_dict=False)[0]
            if progress is not None:
                progress(i + 1, steps)
        return self.decode(x)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the pipeline folder; shards stay under 15 MiB. The prior itself keeps its precision."""
        folder = Path(folder)
        stored = _cast(copy.deepcopy(self.model), torch.device("cpu"), dtype)
        stored.save_pretrained(folder / "transformer", max_shard_size=SHARD_BYTES)
        self.scheduler.save_pretrained(folder / "scheduler")
        write_json(folder / "tokenizer" / "vocabulary.json", self.vocabulary.words)
        index = {
            "_class_name": PIPELINE_CLASS,
            "transformer": ["rl3d.priors.multiview_model", "MultiViewTransformer"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "tokenizer": ["rl3d.priors.embedded", "Vocabulary"],
        }
        write_json(folder / "model_index.json", index)


def new_scheduler() -> Any:
    """The scheduler of the embedded prior: flow matching whose steps crowd at high noise (Esser et al. 2024, eq. 23).

    Four views of 64 x 64 pixels say the same thing thousands of times over: silhouettes can be read off at t = 0.9, so
    what the words decide is decided above that.
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=4.0)


def load_embedded(
    folder: str | Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> EmbeddedPrior:
    """Load a multi-view pipeline folder; None takes the one inside the package. `dtype`: see `EmbeddedPrior`.

    Raises:
        AssetError: a file is missing, truncated or does not fit the model.
    """
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    name = "embedded"
    if folder is None:
        from rl3d.assets import model_folder

        folder = model_folder("prior")
    else:
        name = Path(folder).name
    folder = Path(folder)
    try:
        words = json.loads((folder / "tokenizer" / "vocabulary.json").read_text(encoding="utf-8"))
        model, info = MultiViewTransformer.from_pretrained(
            folder / "transformer", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        stray = [*info["missing_keys"], *info["unexpected_keys"]]
        if stray:  # diffusers would only warn, and leave missing tensors empty
            raise ValueError(f"the weights do not fit the configuration ({stray[0]} and {len(stray) - 1} more)")
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise ValueError("tokenizer/vocabulary.json is no list of words")
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except Exception as error:  # diffusers, safetensors and json each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AssetError(f"cannot load the multi-view prior in {folder}: {reason}; give a complete folder") from error
    if model.config["vocabulary"] != len(words):
        raise AssetError(
            f"{folder}: the tokenizer has {len(words)} words, the model {model.config['vocabulary']}; mixed-up files?"
        )
    return EmbeddedPrior(model, Vocabulary(words), scheduler, name, torch.device(device), dtype)
