#!/usr/bin/env python3
"""Runs the cases of benches/networks.rs in PyTorch, and compares both.

    cargo build --release --bench networks
    python3 benches/pytorch.py [--rounds 5] [--compare] [CASE ...]
    python3 benches/pytorch.py --device cuda --precision bf16 [--compile]     # and a build with the feature cuda

Runs of both alternate, two of each of which the second counts; the table gives medians and the ratio ours / PyTorch. `--compare` checks instead that both compute
the same: our weights and inputs in PyTorch, relative error of the outputs. Needs torch, numpy, safetensors; eager, f32,
as many threads as cores. The networks are written here from the papers and from the tensors' names.
"""
import argparse
import glob
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BATCH = 8
# The shipped model's input size in pixels, and the size of its embedding in cells.
SIDE, STRIDE = 256, 8

sys.path.insert(0, os.path.join(ROOT, "tests/data"))
from make_efficientnet_lite_goldens import STAGES, Lite, published  # noqa: E402


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def neck(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 1, bias=False), LayerNorm2d(o, 1e-6),
                         nn.Conv2d(o, o, 3, padding=1, bias=False), LayerNorm2d(o, 1e-6))


def partition(x, w):
    b, h, width, c = x.shape
    x = F.pad(x, (0, 0, 0, -width % w, 0, -h % w))
    rows, cols = x.shape[1] // w, x.shape[2] // w
    return x.view(b, rows, w, cols, w, c).transpose(2, 3).reshape(-1, w, w, c)


def unpartition(x, w, h, width):
    rows, cols = -(-h // w), -(-width // w)
    x = x.view(-1, rows, cols, w, w, x.shape[-1]).transpose(2, 3)
    return x.reshape(x.shape[0], rows * w, cols * w, -1)[:, :h, :width].contiguous()


class VitAttention(nn.Module):
    def __init__(self, dim, heads, side):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def table(self, rel_pos, n):
        """Bias rows for the distance between every pair of positions; their indices stay on the tensors' device."""
        if not hasattr(self, "places"):
            self.places = {}
        if n not in self.places:
            self.places[n] = (torch.arange(n)[:, None] - torch.arange(n)[None, :] + n - 1).to(rel_pos.device)
        return rel_pos[self.places[n]]

    def forward(self, x):
        b, h, w, c = x.shape
        qkv = self.qkv(x).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, h * w, -1)
        q, k, v = qkv.unbind(0)
        q4 = q.view(-1, h, w, q.shape[-1])
        rows = torch.einsum("bhwc,hkc->bhwk", q4, self.table(self.rel_pos_h, h))
        cols = torch.einsum("bhwc,wkc->bhwk", q4, self.table(self.rel_pos_w, w))
        if x.is_cuda:
            bias = (rows[..., None] + cols[:, :, :, None, :]).reshape(b, self.heads, h * w, h * w)
            split = lambda t: t.view(b, self.heads, h * w, -1)
            y = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=bias.to(q.dtype), scale=self.scale)
        else:
            scores = (q * self.scale) @ k.transpose(1, 2)
            scores = (scores.view(-1, h, w, h, w) + rows[..., None] + cols[:, :, :, None, :]).view(-1, h * w, h * w)
            y = scores.softmax(-1) @ v
        return self.proj(y.view(b, self.heads, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, c))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.lin2(F.gelu(self.lin1(x)))


class VitBlock(nn.Module):
    def __init__(self, dim, heads, window, grid):
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp = VitAttention(dim, heads, window or grid), Mlp(dim, 4 * dim)

    def forward(self, x):
        y = self.norm1(x)
        if self.window:
            y = unpartition(self.attn(partition(y, self.window)), self.window, x.shape[1], x.shape[2])
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class Patch(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 16, 16)


class Vit(nn.Module):
    def __init__(self, dim=768, depth=12, heads=12, window=14, global_blocks=(2, 5, 8, 11), grid=64):
        super().__init__()
        self.patch_embed, self.neck = Patch(dim), neck(dim, 256)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(VitBlock(dim, heads, 0 if i in global_blocks else window, grid) for i in range(depth))

    def forward(self, x):
        x = self.patch_embed.proj(x).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class ConvNorm(nn.Module):
    def __init__(self, i, o, k=1, stride=1, groups=1):
        super().__init__()
        self.c, self.bn = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)

    def forward(self, x):
        return self.bn(self.c(x))


class MbConv(nn.Module):
    def __init__(self, dim, expand):
        super().__init__()
        h = dim * expand
        self.conv1, self.conv2, self.conv3 = ConvNorm(dim, h), ConvNorm(h, h, 3, groups=h), ConvNorm(h, dim)

    def forward(self, x):
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Merge(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = ConvNorm(i, o), ConvNorm(o, o, 3, stride, o), ConvNorm(o, o)

    def forward(self, x):
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyAttention(nn.Module):
    def __init__(self, dim, heads, window):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        y, x = torch.arange(window * window) // window, torch.arange(window * window) % window
        self.at = (y[:, None] - y[None]).abs() * window + (x[:, None] - x[None]).abs()

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        scores = (q @ k.transpose(2, 3)) * self.scale + self.bias()
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def bias(self):
        if self.training:
            return self.attention_biases[:, self.at]
        if not hasattr(self, "spread"):
            self.spread = self.attention_biases[:, self.at]
        return self.spread


class TinyMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyBlock(nn.Module):
    def __init__(self, dim, heads, window):
        super().__init__()
        self.window, self.attn, self.mlp = window, TinyAttention(dim, heads, window), TinyMlp(dim)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1)
        if h == self.window and w == self.window:
            y = self.attn(x.reshape(b, h * w, c)).view(b, h, w, c)
        else:
            windows = partition(x, self.window)
            y = self.attn(windows.view(-1, self.window ** 2, c)).view(-1, self.window, self.window, c)
            y = unpartition(y, self.window, h, w)
        x = self.local_conv((x + y).permute(0, 3, 1, 2))
        tokens = x.flatten(2).transpose(1, 2)
        return (tokens + self.mlp(tokens)).transpose(1, 2).view(b, c, h, w)


class TinyStage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample:
            self.downsample = downsample

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class TinyVit(nn.Module):
    def __init__(self, dims=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(2, 4, 5, 10), windows=(7, 7, 14, 7)):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.seq = nn.Sequential(ConvNorm(3, dims[0] // 2, 3, 2), nn.GELU(), ConvNorm(dims[0] // 2, dims[0], 3, 2))
        stages = []
        for i in range(4):
            blocks = [TinyBlock(dims[i], heads[i], windows[i]) if i else MbConv(dims[0], 4) for _ in range(depths[i])]
            stages.append(TinyStage(blocks, Merge(dims[i], dims[i + 1], 1 if i == 2 else 2) if i < 3 else None))
        self.layers, self.neck = nn.ModuleList(stages), neck(dims[3], 256)

    def forward(self, x):
        x = self.patch_embed.seq(x)
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)


class Attention(nn.Module):
    def __init__(self, c, heads, down=1):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(c, c // down) for _ in range(3))
        self.out_proj = nn.Linear(c // down, c)

    def forward(self, q, k, v):
        split = lambda x: x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[-1])
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    def __init__(self, c, heads, mlp, first):
        super().__init__()
        self.first, self.self_attn, self.mlp = first, Attention(c, heads), Mlp(c, mlp)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(c) for _ in range(4))
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = Attention(c, heads, 2), Attention(c, heads, 2)

    def forward(self, q, k, q_pe, k_pe):
        if self.first:
            q = self.self_attn(q, q, q)
        else:
            p = q + q_pe
            q = q + self.self_attn(p, p, q)
        q = self.norm1(q)
        q = self.norm2(q + self.cross_attn_token_to_image(q + q_pe, k + k_pe, k))
        q = self.norm3(q + self.mlp.lin2(F.relu(self.mlp.lin1(q))))
        return q, self.norm4(k + self.cross_attn_image_to_token(k + k_pe, q + q_pe, q))


class TwoWay(nn.Module):
    def __init__(self, c, heads, mlp):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(c, heads, mlp, i == 0) for i in range(2))
        self.final_attn_token_to_image, self.norm_final_attn = Attention(c, heads, 2), nn.LayerNorm(c)

    def forward(self, tokens, image, pe):
        q, k = tokens, image
        for layer in self.layers:
            q, k = layer(q, k, tokens, pe)
        return self.norm_final_attn(q + self.final_attn_token_to_image(q + tokens, k + pe, k)), k


class Head(nn.Module):
    def __init__(self, i, hidden, o, depth=3):
        super().__init__()
        sizes = [i] + [hidden] * (depth - 1) + [o]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    def __init__(self, mlp=2048, c=256, heads=8, hidden=256):
        super().__init__()
        self.transformer = TwoWay(c, heads, mlp)
        self.iou_token, self.mask_tokens = nn.Embedding(1, c), nn.Embedding(4, c)
        self.output_upscaling = nn.Sequential(nn.ConvTranspose2d(c, c // 4, 2, 2), LayerNorm2d(c // 4, 1e-6), nn.GELU(),
                                              nn.ConvTranspose2d(c // 4, c // 8, 2, 2), nn.GELU())
        self.output_hypernetworks_mlps = nn.ModuleList(Head(c, c, c // 8) for _ in range(4))
        self.iou_prediction_head = Head(c, hidden, 4)

    def forward(self, image, pe, dense):
        """The first token's mask, without sparse prompts."""
        b, c, h, w = image.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(b, -1, -1)
        flat = lambda x: x.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(tokens, flat(image + dense), flat(pe))
        image = self.output_upscaling(image.transpose(1, 2).view(b, c, h, w))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1]).unsqueeze(1)
        return (weights @ image.flatten(2)).view(b, 1, 4 * h, 4 * w)


def dense_pe(gaussian, grid):
    at = (torch.arange(grid) + 0.5) / grid * 2 - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    angle = 2 * math.pi * torch.stack([x, y], -1) @ gaussian
    return torch.cat([angle.sin(), angle.cos()], -1).permute(2, 0, 1)[None]


class Conv(nn.Module):
    def __init__(self, i, o, k, stride=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o)

    def forward(self, x):
        return F.relu6(self.norm(self.conv(x)))


class HarDBlock(nn.Module):
    def __init__(self, i, growth, multiplier, count):
        super().__init__()

        def link(layer):
            if layer == 0:
                return i, []
            out, links = growth, []
            for k in range(10):
                if layer % (1 << k) == 0:
                    links.append(layer - (1 << k))
                    out *= multiplier if k else 1
            return int(int(out + 1) / 2) * 2, links

        self.links = [link(n + 1)[1] for n in range(count)]
        outs = [link(n + 1)[0] for n in range(count)]
        self.layers = nn.ModuleList(Conv(sum(link(l)[0] for l in links), o, 3) for links, o in zip(self.links, outs))
        self.kept = [n for n in range(count) if n % 2 == 0 or n == count - 1]
        self.out = sum(outs[n] for n in self.kept)

    def forward(self, x):
        ys = [x]
        for layer, links in zip(self.layers, self.links):
            ys.append(layer(torch.cat([ys[l] for l in links], 1) if len(links) > 1 else ys[links[0]]))
        return torch.cat([ys[n + 1] for n in self.kept], 1)


class HarDNet(nn.Module):
    def __init__(self, stem, multiplier, growth, layers, channels, down, dropout=False):
        super().__init__()
        base = [Conv(3, stem[0], 3, 2), Conv(stem[0], stem[1], 3), nn.MaxPool2d(3, 2, 1)]
        c = stem[1]
        self.features, used = [c], [1]
        for n, (g, count, o, d) in enumerate(zip(growth, layers, channels, down)):
            block = HarDBlock(c, g, multiplier, count)
            base.append(block)
            if dropout and n == len(layers) - 1:
                base.append(nn.Dropout(0.1))
            base.append(Conv(block.out, o, 1))
            c = o
            if d or n == len(layers) - 1:
                self.features.append(c)
                used.append(len(base) - 1)
            if d:
                base.append(nn.MaxPool2d(2, 2))
        self.base, self.used = nn.ModuleList(base), used[:4]

    def forward(self, x):
        out = []
        for n, step in enumerate(self.base[: self.used[-1] + 1]):
            x = step(x)
            if n in self.used:
                out.append(x)
        return out


class Up(nn.Module):
    def __init__(self, i, skip):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(i + skip, skip, 3, padding=1), nn.Conv2d(skip, skip, 3, padding=1)
        self.BN = nn.BatchNorm2d(skip)

    def forward(self, x, skip):
        x = torch.cat([F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False), skip], 1)
        return F.leaky_relu(self.BN(self.conv2(self.conv1(x))))


class Last(nn.Module):
    def __init__(self, i, hidden, o):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(i, hidden, 3, padding=1), nn.Conv2d(hidden, o, 3, padding=1)
        self.BN1, self.BN2 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(o)

    def forward(self, x):
        return torch.tanh(self.conv2(F.relu(self.BN1(self.conv1(x)))))


class SmallDecoder(nn.Module):
    def __init__(self, features, ups, hidden):
        super().__init__()
        self.ups = ups
        self.up1 = Up(features[3], features[2])
        if ups > 1:
            self.up2 = Up(features[2], features[1])
        self.final = Last(features[3 - ups], hidden, 256)

    def forward(self, f):
        x = self.up1(f[3], f[2])
        return self.final(self.up2(x, f[1]) if self.ups > 1 else x)


class Generator(nn.Module):
    def __init__(self, backbone, ups=2, hidden=256):
        super().__init__()
        self.backbone = backbone
        self.decoder = SmallDecoder(backbone.features, ups, hidden)

    def forward(self, x, grid):
        return F.interpolate(self.decoder(self.backbone(x)), (grid, grid), mode="bilinear", align_corners=True)


def generator(name):
    if name == "hardnet85":
        return Generator(HarDNet([48, 96], 1.7, [24, 24, 28, 36, 48, 256], [8, 16, 16, 16, 16, 4],
                                 [192, 256, 320, 480, 720, 1280], [1, 0, 1, 0, 1, 0], True))
    if name == "hardnet68":
        return Generator(HarDNet([32, 64], 1.7, [14, 16, 20, 40, 160], [8, 16, 16, 16, 4],
                                 [128, 256, 320, 640, 1024], [1, 0, 1, 1, 0]))
    return Generator(HarDNet([16, 24], 1.6, [8, 10, 14, 20], [4, 8, 8, 8], [40, 64, 96, 160], [1, 0, 1, 0]), 1, 96)


class Whole(nn.Module):
    """A published SAM and the generator that `train` creates for it."""

    def __init__(self, encoder):
        super().__init__()
        self.sam = nn.Module()
        self.sam.image_encoder, self.sam.mask_decoder = encoder, MaskDecoder()
        self.generator = generator("tiny")
        self.register_buffer("pe", dense_pe(torch.randn(2, 128), 64))

    def forward(self, x):
        small = F.interpolate(x, (192, 192), mode="bilinear", align_corners=True)
        return self.sam.mask_decoder(self.sam.image_encoder(x), self.pe, self.generator(small, 64))


class NormedConv(nn.Module):
    def __init__(self, i, o, k):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(o, i, k, k) * 0.02), nn.BatchNorm2d(o)

    def forward(self, x):
        return self.norm(F.conv2d(x, self.weight, padding=self.weight.shape[2] // 2))


class Pyramid(nn.Module):
    """Merges features from stride 8 on, finest first, into the finest level."""

    def __init__(self, features, c):
        super().__init__()
        self.lateral = nn.ModuleList(NormedConv(i, c, 1) for i in features)
        self.smooth = nn.ModuleList(NormedConv(c, c, 3) for _ in features[1:])

    def forward(self, features):
        x = self.lateral[-1](features[-1])
        for n in reversed(range(len(self.smooth))):
            fine = self.lateral[n](features[n])
            x = F.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False) + fine
            x = F.relu(self.smooth[n](x))
        return x


class LiteEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.pyramid, self.neck = Lite(0, stages=STAGES[:5]), Pyramid([40, 112], 64), neck(64, 128)

    def forward(self, x):
        return self.neck(self.pyramid(self.backbone.features(published(x))[2:]))


class LiteGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = Lite(0), nn.Module()
        self.decoder.pyramid, self.decoder.final = Pyramid([40, 112, 320], 96), nn.Module()
        self.decoder.final.conv2, self.decoder.own = nn.Conv2d(96, 128, 3, padding=1), nn.Conv2d(96, 1, 1)

    def forward(self, x):
        return torch.tanh(self.decoder.final.conv2(self.decoder.pyramid(self.backbone.features(published(x))[2:])))


class Shipped(nn.Module):
    """Generator and small SAM of the shipped model."""

    def __init__(self):
        super().__init__()
        self.sam = nn.Module()
        self.sam.image_encoder, self.sam.mask_decoder = LiteEncoder(), MaskDecoder(512, 128, 4, 128)
        self.generator = LiteGenerator()
        self.pe = dense_pe(torch.randn(2, 64), SIDE // STRIDE)

    def prompt(self, x):
        return self.generator(x)

    def forward(self, x):
        return self.sam.mask_decoder(self.sam.image_encoder(x), self.pe, self.prompt(x))


MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def preprocess(rgb):
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() - MEAN) / STD


def frames(n, size=SIDE):
    y, x = np.mgrid[:size, :size]
    rgb, masks = np.empty((n, size, size, 3), np.uint8), np.empty((n, size, size), np.uint8)
    for k in range(n):
        c = (0.3 + 0.05 * k) * size
        inside = np.hypot(x - c, y - c) < 0.2 * size
        rgb[k] = np.where(inside[..., None], [200, 120, 110], np.stack([90 + (y * size + x) % 17, 0 * x + 40, 0 * x + k], -1))
        masks[k] = inside * 255
    return rgb, masks


class Step:
    """One training step like `train`'s: loss, backward, clipping, AdamW, moving average."""

    def __init__(self, stage):
        model = Shipped().train()
        self.stage, self.model = stage, model
        self.rgb, self.masks = frames(BATCH)
        if stage == "generator":
            model.sam.eval().requires_grad_(False)
            self.trained = model.generator
            with torch.no_grad():
                self.embeddings = model.sam.image_encoder(preprocess(self.rgb)).half()
        else:
            self.trained = model.sam
            self.no_mask = nn.Parameter(torch.zeros(1, 128, 1, 1))
        self.parameters = [p for p in self.trained.parameters()]
        self.average = [p.detach().clone() for p in self.trained.state_dict().values() if p.is_floating_point()]
        self.adam = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-2)

    def __call__(self):
        model = self.model
        x = preprocess(self.rgb)
        if self.stage == "generator":
            prompt = model.prompt(x)
            embeddings = self.embeddings.float()
        else:
            prompt = self.no_mask.expand(BATCH, -1, SIDE // STRIDE, SIDE // STRIDE)
            embeddings = model.sam.image_encoder(x)
        logits = model.sam.mask_decoder(embeddings, model.pe, prompt)
        target = F.avg_pool2d(torch.from_numpy(self.masks)[:, None].float() / 255, STRIDE // 4)
        p = logits.sigmoid()
        sums = lambda t: t.flatten(1).sum(1)
        dice = 1 - ((2 * sums(p * target) + 2) / (sums(p) + sums(target) + 2)).mean()
        loss = F.binary_cross_entropy_with_logits(logits, target) + dice
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        with torch.no_grad():
            now = [p for p in self.trained.state_dict().values() if p.is_floating_point()]
            torch._foreach_lerp_(self.average, now, 0.01)
        return loss.item()


def network(name):
    if name.startswith("frame_"):
        return Whole(network(name.removeprefix("frame_") + "_1024"))
    if name == "vit_h_1024":
        return Vit(1280, 32, 16, global_blocks=(7, 15, 23, 31))
    if name == "vit_b_1024":
        return Vit()
    if name == "tiny_vit_1024":
        return TinyVit()
    if name == "mask_decoder_64":
        return MaskDecoder()
    if name == "shipped":
        return Shipped()
    return generator(name.split("_")[0])


def case(name, device="cpu", precision="f32", compiled=False):
    """A function that runs the case once."""
    if name.startswith("train_"):
        return Step(name.removeprefix("train_"))
    net = network(name).eval()
    if device != "cpu":
        # Weights have the products' type, as in autosam-video.
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
        net = net.to(device, dtype)
        if compiled:
            with torch.inference_mode():  # tensors kept from the first run must not belong to an autograd graph
                side = 1024 if name.endswith("_1024") or name.startswith("frame_") else 64
                net(torch.rand(1, 3, side, side, device=device, dtype=dtype))
            net = torch.compile(net, mode="reduce-overhead")
        if name.startswith("frame_"):
            frame = frames(1, 1024)[0][:, :576]

            def run():
                with torch.inference_mode():
                    x = (torch.from_numpy(frame).to(device).permute(0, 3, 1, 2).float() - MEAN.to(device)) / STD.to(device)
                    logits = net(F.pad(x, (0, 0, 0, 1024 - 576)).to(dtype)).float()
                    p = F.interpolate(logits, (1024, 1024), mode="bilinear", align_corners=False).sigmoid()
                    return (p * 255 + 0.5).to(torch.uint8).cpu().numpy()
            return run
        side = 1024 if name.endswith("_1024") else int(name.split("_")[-1])
        if name == "mask_decoder_64":
            args = [torch.rand(1, 256, 64, 64, device=device, dtype=dtype) for _ in range(3)]
        else:
            args = [torch.rand(1, 3, side, side, device=device, dtype=dtype)] + ([64] if name.startswith("hardnet") else [])

        def run():
            with torch.inference_mode():
                net(*args)
            torch.cuda.synchronize()
        return run
    if name == "shipped":
        rgb = frames(1)[0]

        def run():
            with torch.inference_mode():
                logits = F.interpolate(net(preprocess(rgb)), (SIDE, SIDE), mode="bilinear", align_corners=False)
                return (logits.sigmoid() * 255 + 0.5).to(torch.uint8).numpy()
        return run
    if name == "mask_decoder_64":
        image, dense, pe = torch.rand(1, 256, 64, 64), torch.rand(1, 256, 64, 64), torch.rand(1, 256, 64, 64)
        call = lambda: net(image, pe, dense)
    elif name.startswith("hardnet"):
        side = int(name.split("_")[1])
        x = torch.rand(1, 3, side, side)
        call = lambda: net(x, 64)
    else:
        x = torch.rand(1, 3, 1024, 1024)
        call = lambda: net(x)

    def run():
        with torch.inference_mode():
            return call()
    return run


CASES = ["vit_b_1024", "tiny_vit_1024", "mask_decoder_64", "hardnet85_352", "hardnet68_256", "shipped",
         "train_generator", "train_sam"]

GPU_CASES = ["frame_vit_h", "frame_vit_b", "vit_h_1024", "vit_b_1024", "tiny_vit_1024", "mask_decoder_64", "hardnet85_352"]


def binary():
    if "AUTOSAM_BENCH" in os.environ:
        return os.environ["AUTOSAM_BENCH"]
    found = glob.glob(os.path.join(ROOT, "target/release/deps/networks-*"))
    found = [f for f in found if os.access(f, os.X_OK) and not f.endswith(".d") and os.path.isfile(f)]
    if not found:
        sys.exit("no target/release/deps/networks-*: run `cargo build --release --bench networks` first")
    return max(found, key=os.path.getmtime)


def compare(names):
    from safetensors.torch import load_file
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([binary(), "--dump", out], check=True)
        print("| network | relative error of the output |\n|---|---|")
        for name in names:
            if name.startswith("train_"):
                continue
            tensors = load_file(os.path.join(out, name + ".safetensors"))
            x, y = tensors.pop("x"), tensors.pop("y")
            net = network(name)
            prefix = {"vit_b_1024": "image_encoder.", "tiny_vit_1024": "image_encoder.", "mask_decoder_64": "mask_decoder."}
            prefix = prefix.get(name, "")
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            known = net.state_dict()
            missing = [k for k in known if k not in state and "num_batches" not in k]
            assert not missing, missing
            net.load_state_dict({k: v for k, v in state.items() if k in known}, strict=False)
            net.eval()
            with torch.inference_mode():
                gaussian = [v for k, v in tensors.items() if k.endswith("positional_encoding_gaussian_matrix")]
                if name == "mask_decoder_64":
                    got = net(x[:1], dense_pe(gaussian[0], 64), x[1:])
                elif name == "shipped":
                    net.pe = dense_pe(gaussian[0], SIDE // STRIDE)
                    got = net(preprocess(x.numpy().astype(np.uint8)[None]))
                else:
                    got = net(x, 64) if name.startswith("hardnet") else net(x)
            error = ((got.double() - y.double()).norm() / got.double().norm()).item()
            print(f"| {name} | {error:.1e} |", flush=True)


def race(names, rounds, device, precision, compiled):
    place = {"AUTOSAM_BENCH_DEVICE": device, "AUTOSAM_BENCH_PRECISION": precision}
    ours = subprocess.Popen([binary(), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=os.environ | place)

    def once(name):
        ours.stdin.write(name + "\n")
        ours.stdin.flush()
        return json.loads(ours.stdout.readline())["seconds"]

    print(f"| case | ours, ms | PyTorch {torch.__version__}, ms | ours / PyTorch |\n|---|---|---|---|")
    for name in names:
        theirs = case(name, device, precision, compiled)
        # If both record CUDA graphs, they do so in their first runs.
        for _ in range(5 if device != "cpu" else 1):
            theirs()
            if device != "cpu":
                once(name)
        a, b = [], []
        for _ in range(rounds):
            # Each timed run follows an untimed run of the same program, as with successive frames and steps, because the other
            # program leaves its own data in the caches.
            once(name)
            a.append(once(name))
            theirs()
            start = time.perf_counter()
            theirs()
            b.append(time.perf_counter() - start)
        a, b = statistics.median(a), statistics.median(b)
        print(f"| {name} | {a * 1e3:.1f} | {b * 1e3:.1f} | {a / b:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32", help="of products, on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile with CUDA graphs, on a GPU")
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    names = args.cases or (CASES if args.device == "cpu" else GPU_CASES)
    if args.compare:
        return compare(names)
    race(names, args.rounds, args.device, args.precision, args.compile)


if __name__ == "__main__":
    main()
