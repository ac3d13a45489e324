"""Makes goldens/efficientnet_lite{0,1,2}.safetensors: EfficientNet-Lite in PyTorch, written from the paper and TensorFlow's
published description, with deterministic weights. Needs torch and numpy.

    python tests/data/make_efficientnet_lite_goldens.py [--check FILE.pth IMAGE]

--check runs published weights on an image (any size; resized to 260 x 260) and prints the five likeliest ImageNet classes.
"""
import json, math, struct, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
SCALES = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2)]
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
ENDS = (0, 1, 2, 4, 6)


class Conv(nn.Conv2d):
    """TensorFlow's SAME padding: the odd pixel at the bottom and at the right."""

    def forward(self, x):
        def pads(size, k, s):
            total = max((math.ceil(size / s) - 1) * s + k - size, 0)
            return total // 2, total - total // 2
        (k, _), (s, _) = self.kernel_size, self.stride
        left, right = pads(x.shape[3], k, s)
        top, bottom = pads(x.shape[2], k, s)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride, 0, 1, self.groups)


def norm(c):
    return nn.BatchNorm2d(c, eps=1e-3)


class Block(nn.Module):
    def __init__(self, i, o, k, s, expand):
        super().__init__()
        h = i * expand
        self.expand, self.residual = expand > 1, s == 1 and i == o
        if self.expand:
            self._expand_conv, self._bn0 = Conv(i, h, 1, bias=False), norm(h)
        self._depthwise_conv, self._bn1 = Conv(h, h, k, s, groups=h, bias=False), norm(h)
        self._project_conv, self._bn2 = Conv(h, o, 1, bias=False), norm(o)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expand else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class Lite(nn.Module):
    def __init__(self, number, classes=None, stages=STAGES):
        super().__init__()
        width, depth = SCALES[number]

        def channels(c):
            new = max(8, int(c * width + 4) // 8 * 8)
            return new + 8 if new < 0.9 * c * width else new
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2, bias=False), norm(32)
        blocks, self.ends, at = [], [], 32
        for i, (n, k, s, e, c) in enumerate(stages):
            for b in range(n if i in (0, 6) else math.ceil(n * depth)):
                blocks.append(Block(at, channels(c), k, s if b == 0 else 1, e))
                at = channels(c)
            if i in ENDS:
                self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        if classes:
            self._conv_head, self._bn1 = Conv(at, 1280, 1, bias=False), norm(1280)
            self._fc = nn.Linear(1280, classes)

    def features(self, x):
        out, x = [], F.relu6(self._bn0(self._conv_stem(x)))
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                out.append(x)
        return out

    def classify(self, x):
        x = F.relu6(self._bn1(self._conv_head(self.features(x)[-1])))
        return self._fc(x.mean((2, 3)))


def u(name, n):
    """As tests/goldens/support.rs: (splitmix64(fnv1a64(name) + i) >> 40) / 2^24."""
    mask, h = (1 << 64) - 1, 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & mask
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(n, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / (1 << 24)


def signed(name, shape):
    return torch.tensor(2 * u(name, math.prod(shape)) - 1, dtype=torch.float32).reshape(shape)


def param(name, shape):
    n = math.prod(shape)
    v = 2 * u(name, n) - 1
    if name.endswith("running_mean"):
        v = 0.1 * v
    elif name.endswith("running_var"):
        v = 1 + 0.5 * v
    elif len(shape) <= 1:
        v = 1 + 0.1 * v if name.endswith("weight") else 0.05 * v
    else:
        v = v * math.sqrt(3 / (n / shape[0]))
    return torch.tensor(v, dtype=torch.float32).reshape(shape)


def published(x):
    """From SAM's normalisation of bytes to the published one."""
    bytes_ = x * STD.view(1, 3, 1, 1) + MEAN.view(1, 3, 1, 1)
    return (bytes_ - 127) / 128


def save(path, tensors, metadata):
    header, blobs, at = {"__metadata__": metadata}, [], 0
    for name, t in tensors.items():
        blob = np.ascontiguousarray(t.detach().numpy().astype("<f4")).tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def golden(number):
    prefix = f"efficientnet_lite{number}."
    net = Lite(number)
    net.load_state_dict({n: param(prefix + n, t.shape) if t.dim() else t for n, t in net.state_dict().items()})
    tensors = {}
    x = published(2 * signed(prefix + "input", (1, 3, 96, 64)))
    net.eval()
    for i, f in enumerate(net.features(x)):
        tensors[f"feature{i}"] = f[:, ::8, ::2, ::2]
    net.train()
    features = net.features(published(2 * signed(prefix + "input2", (2, 3, 128, 128))))
    # Only the first features are squared: through more layers, gradients mainly depend on which side of a ReLU6 gate rounding puts a value.
    loss = sum((f * f).mean() for f in features[:3])
    loss.backward()
    tensors["train.feature4"] = features[4][:, ::4]
    params = dict(net.named_parameters())
    for name in ["_conv_stem.weight", "_bn0.weight", "_blocks.1._depthwise_conv.weight", "_blocks.2._bn2.bias",
                 "_blocks.3._expand_conv.weight", "_blocks.4._depthwise_conv.weight", "_blocks.4._project_conv.weight"]:
        g = params[name].grad.flatten()
        tensors["grad." + name] = g[:: max(1, len(g) // 5000)]
    tensors["after._bn0.running_var"] = net._bn0.running_var
    tensors["after._blocks.4._bn1.running_mean"] = net._blocks[4]._bn1.running_mean
    save(Path(__file__).parent / "goldens" / f"efficientnet_lite{number}.safetensors", tensors, {"prefix": prefix})


def check(weights, image):
    from PIL import Image
    number = int(weights.split("efficientnet-lite")[1][0])
    net = Lite(number, 1000)
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    rgb = np.asarray(Image.open(image).convert("RGB").resize((260, 260)), dtype=np.float32)
    with torch.no_grad():
        p = net.eval().classify(torch.tensor((rgb - 127) / 128).permute(2, 0, 1)[None]).softmax(1)[0]
    print(", ".join(f"{int(i)} {float(v):.3f}" for v, i in zip(*p.topk(5))))


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["--check"]:
        check(*sys.argv[2:4])
    else:
        for n in range(3):
            golden(n)
