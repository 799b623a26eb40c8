"""Tiny VAEs of diffusers', of random weights, whose latents differ from picture to picture."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL


def kl(**more):
    """An AutoencoderKL as SD's, of which 8 pixels a side are one number."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        **more,
    )


def dc():
    """An AutoencoderDC as Sana's, of 4 pixels a side."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41407,
    )


def write_vae(folder: Path, make=kl, seed: int = 0, **more) -> Path:
    """Save one; the seed decides its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make(**more).save_pretrained(folder)
    return folder
