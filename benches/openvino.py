#!/usr/bin/env python3
"""Compares autosam-video with OpenVINO and ONNX Runtime: the shipped network on a CPU, batch 1, from a frame's bytes to its map's.

    cargo build --release --bench networks
    python3 benches/openvino.py --model FILE.safetensors [--rounds 15] [--threads N] [--json FILE] [--data DIR]

FILE is a model of `models quantize` (without one only f32 is ours). Runs of all engines alternate, two of each of which the second counts;
medians, and the ratio ours / best other of each mode. The engines' int8 is that of their own quantisers (NNCF, and
`onnxruntime.quantization`), calibrated on the images of DIR, else on synthetic frames, on which masks mean nothing but speed is the same.
Agreement is with PyTorch's f32. Needs openvino, nncf, onnxruntime, onnx, onnxscript, torch, numpy, safetensors; Pillow for --data.

Other processors: AUTOSAM_INSTRUCTIONS=avx2 limits ours, ONEDNN_MAX_CPU_ISA=AVX2 OpenVINO's, in the same environment.
"""
import argparse
import json
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

import pytorch as ours_in_torch

# This file has the same name as the package that it imports.
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))

SIDE = ours_in_torch.SIDE


class Frame(nn.Module):
    """From `[1, S, S, 3]`, bytes, to `[1, 1, S, S]`, bytes, as `pytorch.py` does around the network."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", ours_in_torch.MEAN)
        self.register_buffer("std", ours_in_torch.STD)
        self.register_buffer("pe", net.pe)

    def forward(self, rgb):
        self.net.pe = self.pe
        x = (rgb.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = F.interpolate(self.net(x), (SIDE, SIDE), mode="bilinear", align_corners=False)
        return (logits.sigmoid() * 255 + 0.5).to(torch.uint8)


def network(path):
    from safetensors.torch import load_file
    tensors = load_file(path)
    net = ours_in_torch.Shipped().eval()
    known = net.state_dict()
    missing = [name for name in known if name not in tensors and "num_batches" not in name]
    assert not missing, f"{path} is another network: no {missing[0]}"
    net.load_state_dict({name: t.float() for name, t in tensors.items() if name in known}, strict=False)
    gaussian = [t for name, t in tensors.items() if name.endswith("positional_encoding_gaussian_matrix")][0]
    net.pe = ours_in_torch.dense_pe(gaussian.float(), SIDE // ours_in_torch.STRIDE)
    return Frame(net).eval()


def images(directory, count=64):
    """Frames `[1, S, S, 3]`, from the images below `directory` if it is given."""
    if directory is None:
        return [frame[None] for frame in ours_in_torch.frames(8)[0]]
    from PIL import Image
    found = sorted(os.path.join(root, name) for root, _, names in os.walk(directory) for name in names
                   if name.lower().endswith((".jpg", ".jpeg", ".png")) and "mask" not in root.lower())
    assert found, f"{directory}: no images"
    chosen = found[:: max(1, len(found) // count)][:count]
    return [np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)))[None] for path in chosen]


def openvino(onnx_path, frames, threads):
    """Functions that run the network, by mode."""
    import nncf
    import openvino as ov
    core = ov.Core()
    model = core.read_model(onnx_path)
    nncf.set_log_level("ERROR")
    small = nncf.quantize(model, nncf.Dataset(frames), preset=nncf.QuantizationPreset.MIXED)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    cases = {}
    for mode, network, hint in [("f32", model, "f32"), ("bf16", model, "bf16"), ("int8", small, "f32")]:
        request = core.compile_model(network, "CPU", settings | {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
        cases[mode] = lambda rgb, request=request: request.infer([rgb])[0]
    return cases


def onnxruntime(onnx_path, frames, threads, scratch):
    import onnxruntime as ort
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self, name):
            self.frames = iter([{name: frame} for frame in frames[:16]])

        def get_next(self):
            return next(self.frames, None)

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = lambda path: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    full = session(onnx_path)
    name = full.get_inputs()[0].name
    prepared, small = (os.path.join(scratch, n) for n in ("prepared.onnx", "int8.onnx"))
    q.shape_inference.quant_pre_process(onnx_path, prepared)
    q.quantize_static(prepared, small, Reader(name), quant_format=q.QuantFormat.QDQ, per_channel=True,
                      op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add"])
    return {mode: lambda rgb, s=s: s.run(None, {name: rgb})[0] for mode, s in [("f32", full), ("int8", session(small))]}


class Ours:
    """`benches/networks.rs --serve` of one precision."""

    def __init__(self, model, precision, threads):
        env = os.environ | {"AUTOSAM_BENCH_MODEL": os.path.abspath(model), "AUTOSAM_BENCH_PRECISION": precision,
                            "RAYON_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen([ours_in_torch.binary(), "--serve"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)

    def seconds(self):
        self.process.stdin.write("shipped\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line)["seconds"] if line else None


def agreement(found, expected):
    """Dice of two maps' masks."""
    a, b = found > 127, expected > 127
    total = a.sum() + b.sum()
    return 2 * (a & b).sum() / total if total else 1.0


def timed(run, rgb):
    run(rgb)
    start = time.perf_counter()
    run(rgb)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--data", metavar="DIR", help="images that the other engines' int8 is calibrated on and agreement measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = images(args.data)
    net = network(args.model)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        path = os.path.join(scratch, "network.onnx")
        torch.onnx.export(net, (torch.from_numpy(frames[0]),), path, input_names=["rgb"], output_names=["map"])
        others = {"openvino": openvino(path, frames, args.threads),
                  "onnxruntime": onnxruntime(path, frames, args.threads, scratch),
                  "pytorch": {"f32": lambda rgb: net(torch.from_numpy(rgb)).numpy()}}
        ours = {mode: Ours(args.model, mode, args.threads) for mode in ("f32", "int8")}
        exact = [others["pytorch"]["f32"](frame) for frame in frames]
        for engine, modes in others.items():
            for mode, run in modes.items():
                dice = np.mean([agreement(run(frame), e) for frame, e in zip(frames, exact)])
                print(f"{engine} {mode}: mean Dice with PyTorch's masks {dice:.4f}", flush=True)
        # autosam-video replays a recording from the third inference on.
        ours = {mode: run for mode, run in ours.items() if all(run.seconds() is not None for _ in range(5))}
        times = {}
        for _ in range(args.rounds):
            for mode, run in ours.items():
                run.seconds()
                times.setdefault(("ours", mode), []).append(run.seconds())
            for engine, modes in others.items():
                for mode, run in modes.items():
                    times.setdefault((engine, mode), []).append(timed(run, frames[0]))
    medians = {key: 1e3 * statistics.median(all_) for key, all_ in times.items()}
    result = {}
    print("\n| mode | ours, ms | OpenVINO, ms | ONNX Runtime, ms | PyTorch, ms | ours / best other |\n|---|---|---|---|---|---|")
    for mode in ("f32", "bf16", "int8"):
        of = lambda engine: medians.get((engine, mode))
        rest = [t for t in (of("openvino"), of("onnxruntime"), of("pytorch")) if t]
        ratio = of("ours") / min(rest) if of("ours") else None
        result[mode] = {"ours_ms": of("ours"), "openvino_ms": of("openvino"), "onnxruntime_ms": of("onnxruntime"),
                        "pytorch_ms": of("pytorch"), "ratio": ratio}
        cell = lambda v, digits=1: "" if v is None else f"{v:.{digits}f}"
        print(f"| {mode} | {cell(of('ours'))} | {cell(of('openvino'))} | {cell(of('onnxruntime'))} | {cell(of('pytorch'))} | {cell(ratio, 2)} |")
    best = lambda names: min((t, key) for key, t in medians.items() if (key[0] == "ours") == names)
    print(f"best of ours {best(True)}, of others {best(False)}, ratio {best(True)[0] / best(False)[0]:.2f}")
    if args.json:
        with open(args.json, "w") as out:
            json.dump(result, out, indent=1)


if __name__ == "__main__":
    main()
