"""Write tiny pipelines with random weights in the hub's exact folder formats, for tests and for trying commands out.

    python tools/make_tiny_pipelines.py stable-diffusion OUT --prediction v_prediction
    python tools/make_tiny_pipelines.py mvdream OUT

Nothing here is worth looking at: the images are noise. About 5 MB a folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 32  # of the text encoder
TOKENS = 40  # the text encoder's length


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer in CLIP's files: printable ASCII, alone or ending a word. Returns its size."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(c + "</w>" for c in characters), "a r", "b a", "r e", "e l</w>"]
    vocabulary = {token.replace(" ", ""): index for index, token in enumerate(tokens)}
    merges = [token for token in tokens if " " in token]
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    specials["pad_token"] = "!"  # as in Stable Diffusion 2.x
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        {**specials, "model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True},
    )
    return len(vocabulary)


def write_shared(folder: Path, prediction: str, zero_snr: bool = False) -> None:
    """VAE, text encoder, tokenizer and scheduler."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    vocabulary = write_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )
    text_encoder = CLIPTextModel(config)
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)  # 0.02 would make all prompts look the same
    text_encoder.save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    common = {**betas, "prediction_type": prediction, "set_alpha_to_one": False}
    if zero_snr:
        DDIMScheduler(**common, clip_sample=False, rescale_betas_zero_snr=True).save_pretrained(folder / "scheduler")
    else:
        PNDMScheduler(**common, skip_prk_steps=True).save_pretrained(folder / "scheduler")


def index(folder: Path, class_name: str, unet: list[str], scheduler: str) -> None:
    """model_index.json and a model card."""
    parts = {
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": unet,
        "vae": ["diffusers", "AutoencoderKL"],
    }
    header = {"_class_name": class_name, "_diffusers_version": "0.25.0", "requires_safety_checker": False}
    write_json(folder / "model_index.json", {**header, **parts})
    (folder / "README.md").write_text("---\nlicense: openrail\n---\nTiny random weights.\n", encoding="utf-8")


def write_stable_diffusion(
    folder: Path, prediction: str = "epsilon", *, linear_projection: bool = True, zero_snr: bool = False, seed: int = 0
) -> Path:
    """A text-to-image pipeline of 16 x 16 pixels (SD 2.x layout; `linear_projection=False` gives the 1.x one)."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    write_shared(folder, prediction, zero_snr)
    UNet2DConditionModel(**unet_arguments(), use_linear_projection=linear_projection).save_pretrained(folder / "unet")
    scheduler = "DDIMScheduler" if zero_snr else "PNDMScheduler"
    index(folder, "StableDiffusionPipeline", ["diffusers", "UNet2DConditionModel"], scheduler)
    return folder


def unet_arguments() -> dict[str, Any]:
    """Of a diffusers U-Net with the shape of `tiny_unet_config`."""
    return {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": (2, 4),  # diffusers' name for the number of heads
    }


def tiny_unet_config() -> dict[str, Any]:
    """unet/config.json of a tiny MVDream."""
    return {
        "_class_name": "MultiViewUNetModel",
        "_diffusers_version": "0.25.0",
        "attention_resolutions": [2, 1],
        "camera_dim": 16,
        "channel_mult": [1, 2],
        "context_dim": WIDTH,
        "image_size": 8,
        "in_channels": 4,
        "model_channels": 32,
        "num_head_channels": 16,
        "num_res_blocks": 1,
        "out_channels": 4,
        "transformer_depth": 1,
    }


def write_mvdream(folder: Path, *, seed: int = 0) -> Path:
    """An MVDream-format pipeline of 4 views of 16 x 16 pixels, with a code file that ends the process if it is run."""
    from safetensors.torch import save_file

    from rl3d.priors.mvdream import read_unet_config
    from rl3d.priors.mvdream_unet import MultiViewUNet

    torch.manual_seed(seed)
    write_shared(folder, "epsilon")
    write_json(folder / "unet" / "config.json", tiny_unet_config())
    unet = MultiViewUNet(read_unet_config(folder / "unet" / "config.json"))
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "mv_unet.py").write_text(
        "raise SystemExit('code of a model folder was run')\n", encoding="utf-8"
    )
    index(folder, "MVDreamPipeline", ["mv_unet", "MultiViewUNetModel"], "DDIMScheduler")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("stable-diffusion", "mvdream"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--prediction", choices=("epsilon", "v_prediction"), default="epsilon")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kind == "mvdream":
        print(write_mvdream(arguments.out, seed=arguments.seed))
    else:
        print(write_stable_diffusion(arguments.out, arguments.prediction, seed=arguments.seed))


if __name__ == "__main__":
    main()
