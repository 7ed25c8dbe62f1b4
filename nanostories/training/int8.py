"""Weights rounded to 8 bits, for less to read in generation and smaller files."""

import torch


def quantize_rows(weight, scale_dtype=torch.float32):
    """A matrix (out, in) as (int8 (out, in), scales (out,)): their product is nearest to it where
    each row has one scale, by which its largest weight becomes 127 or -127."""
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).to(scale_dtype)
    return (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale
