#!/usr/bin/env python3
"""Compares `autosam-video eval` with NumPy and SciPy: VPS metrics of the same frames, and the time of both.

    pip install numpy scipy pillow
    python3 benches/vps_metrics.py --frames 1000 --size 512 [--numpy-frames 100]

NumPy runs on the first --numpy-frames of each run (all by default) and its time is scaled up. The metrics of both are
compared on those frames. Definitions: docs/metrics.md; thresholds are looped over as the published toolbox does.
"""
import argparse, json, pathlib, subprocess, tempfile, time
import numpy as np
from PIL import Image
from scipy.ndimage import convolve, distance_transform_edt

EPS = np.spacing(1)


def prepare(pred, gt):
    gt = gt > 128
    pred = pred / 255
    if pred.max() != pred.min():
        pred = (pred - pred.min()) / (pred.max() - pred.min())
    return pred, gt


def s_object(pred, gt):
    def score(p, m):
        x, sigma = p[m].mean(), p[m].std(ddof=1)
        return 2 * x / (x * x + 1 + sigma + EPS)
    u = gt.mean()
    return u * score(pred, gt) + (1 - u) * score(1 - pred, ~gt)


def ssim(pred, gt):
    n = pred.size
    x, y = pred.mean(), gt.mean()
    sx, sy = ((pred - x) ** 2).sum() / (n - 1), ((gt - y) ** 2).sum() / (n - 1)
    sxy = ((pred - x) * (gt - y)).sum() / (n - 1)
    alpha, beta = 4 * x * y * sxy, (x * x + y * y) * (sx + sy)
    return alpha / (beta + EPS) if alpha != 0 else float(beta == 0)


def s_measure(pred, gt):
    y = gt.mean()
    if y == 0:
        return 1 - pred.mean()
    if y == 1:
        return pred.mean()
    h, w = gt.shape
    cy, cx = (np.round(c.mean()).astype(int) + 1 for c in np.nonzero(gt))
    g = gt.astype(float)
    region = sum(
        pred[a, b].size / gt.size * ssim(pred[a, b], g[a, b])
        for a in (slice(0, cy), slice(cy, h)) for b in (slice(0, cx), slice(cx, w)))
    return max(0, 0.5 * s_object(pred, gt) + 0.5 * region)


def weighted_f(pred, gt):
    if not gt.any():
        return 0.0
    distance, index = distance_transform_edt(~gt, return_indices=True)
    error = np.abs(pred - gt)
    spread = error[index[0], index[1]]
    y, x = np.mgrid[-3:4, -3:4]
    kernel = np.exp(-(x * x + y * y) / 50.0)
    smooth = convolve(spread, kernel / kernel.sum(), mode="constant")
    least = np.where(gt & (smooth < error), smooth, error)
    weight = np.where(gt, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    e = least * weight
    hits = gt.sum() - e[gt].sum()
    recall = 1 - e[gt].mean()
    precision = hits / (hits + e[~gt].sum() + EPS)
    return 2 * recall * precision / (recall + precision + EPS)


def e_measure(binary, gt):
    size, positives, predicted = gt.size, gt.sum(), binary.sum()
    if positives == 0:
        total = size - predicted
    elif positives == size:
        total = predicted
    else:
        mp, mg = predicted / size, positives / size
        hits = (binary & gt).sum()
        parts = [(hits, 1 - mp, 1 - mg), (predicted - hits, 1 - mp, -mg),
                 (positives - hits, -mp, 1 - mg), (size - predicted - positives + hits, -mp, -mg)]
        total = sum(n * (2 * a * b / (a * a + b * b + EPS) + 1) ** 2 / 4 for n, a, b in parts)
    return total / (size - 1 + EPS)


def frame(pred, gt):
    pred, gt = prepare(pred, gt)
    positives, size = gt.sum(), gt.size
    byte = (pred * 255).astype(np.uint8)
    e, f, medical = [], [], []
    for k in range(256):
        binary = byte >= 255 - k
        e.append(e_measure(binary, gt))
        hits, predicted = (binary & gt).sum(), binary.sum()
        p, r = hits / max(predicted, 1), hits / max(positives, 1)
        f.append(1.3 * p * r / (0.3 * p + r) if p * r > 0 else 0)
    for t in np.linspace(1, 0, 256):
        binary = pred >= t
        hits, predicted = (binary & gt).sum(), binary.sum()
        medical.append([2 * hits / (positives + predicted), hits / (positives + predicted - hits), hits / positives]
                       if hits else [0, 0, 0])
    return {"Smeasure": s_measure(pred, gt), "wFmeasure": weighted_f(pred, gt), "MAE": np.abs(pred - gt).mean(),
            "E": np.array(e), "F": np.array(f), "medical": np.array(medical)}


def write(root, frames, size):
    """Soft blobs beside the truth, in sequences of 50 and the two frames that the protocol leaves out."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size]
    names = []
    for i in range(frames):
        case, at = divmod(i, 50)
        for n in [at + 1] + ([0, 51] if at == 0 else []):
            cy, cx, r = rng.uniform(0.3, 0.7) * size, rng.uniform(0.3, 0.7) * size, rng.uniform(0.05, 0.25) * size
            dy, dx = rng.normal(0, 0.2 * r, 2)
            soft = 255 / (1 + np.exp((np.hypot(y - cy - dy, x - cx - dx) - r) / (0.1 * r)))
            maps = {"gt": 255 * (np.hypot(y - cy, x - cx) < r), "pred": soft + rng.uniform(0, 9, soft.shape)}
            for kind, value in maps.items():
                path = root / kind / f"case{case + 1}_1" / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(value, 0, 255).astype(np.uint8)).save(path, compress_level=1)
        names.append(f"case{case + 1}_1/{at + 1}.png")
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--numpy-frames", type=int)
    parser.add_argument("--program", default="target/release/autosam-video")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        names = write(root, args.frames, args.size)
        began = time.perf_counter()
        json_path = root / "metrics.json"
        subprocess.run([args.program, "eval", "--pred", root / "pred", "--gt", root / "gt", "--json", json_path],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ours = time.perf_counter() - began
        report = json.loads(json_path.read_text())
        counted = names[: args.numpy_frames or args.frames]
        began = time.perf_counter()
        results = [frame(*(np.asarray(Image.open(root / kind / n), dtype=np.float64) for kind in ("pred", "gt")))
                   for n in counted]
        numpy = (time.perf_counter() - began) * args.frames / len(counted)
    print(f"{report['frames']} frames of {args.size}x{args.size}: autosam-video {ours:.2f} s, NumPy and SciPy {numpy:.1f} s"
          f"{'' if len(counted) == args.frames else f' (of {len(counted)} frames)'}: {numpy / ours:.1f} times as long")
    if len(counted) == args.frames:
        curve = lambda key: np.mean([r[key] for r in results], axis=0)
        for key, value in {"Smeasure": np.mean([r["Smeasure"] for r in results]),
                           "wFmeasure": np.mean([r["wFmeasure"] for r in results]),
                           "MAE": np.mean([r["MAE"] for r in results]), "meanEm": curve("E").mean(),
                           "meanFm": curve("F").mean(), "maxDice": curve("medical")[:, 0].max(),
                           "meanIoU": curve("medical")[:, 1].mean()}.items():
            print(f"  {key}: {report['metrics'][key]:.6f} and {value:.6f}")


if __name__ == "__main__":
    main()
