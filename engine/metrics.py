"""Image quality: PSNR, SSIM and LPIPS of a completed image against the true one, as the paper reports them.

All take uint8 RGB (H, W, 3) and look at the whole image, not only at the hole.
"""
from __future__ import annotations

import math

import numpy as np
import torch
from skimage.metrics import structural_similarity

from models.blending import from_uint8

MAX_PSNR = 100.0  # dB, stands for identical images, so that averages and tables stay finite


def psnr(output: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB at the 8-bit range: 10 log10(255^2 / mean squared error), at most 100."""
    error = np.mean((output.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * math.log10(255.0 ** 2 / error))


def ssim(output: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004): 11x11 Gaussian of sigma 1.5, per RGB channel, averaged; in [-1, 1].

    scikit-image's implementation with these three settings is Wang's definition; without them it uses a 7x7 box.
    """
    return float(structural_similarity(output, truth, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
                                       use_sample_covariance=False))


class Lpips:
    """LPIPS v0.1 with AlexNet features (Zhang et al., 2018); smaller is better."""

    def __init__(self, network: torch.nn.Module, device: torch.device | str = "cpu"):
        self.network, self.device = network.to(device).eval(), torch.device(device)

    @torch.no_grad()
    def __call__(self, output: np.ndarray, truth: np.ndarray) -> float:
        """The distance of two uint8 RGB images (H, W, 3)."""
        first, second = (from_uint8(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None])
                         for image in (output, truth))
        return float(self.network(first.to(self.device), second.to(self.device)))
