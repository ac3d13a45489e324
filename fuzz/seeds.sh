#!/bin/sh
# Makes a few small files of each kind for the fuzzer to begin from: fuzz/seeds/TARGET.
set -eu
cd "$(dirname "$0")"
mkdir -p seeds/weights seeds/config seeds/picture seeds/frame
cp ../configs/*.toml seeds/config/
python3 - <<'PY'
import io, json, struct, zipfile
header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
open("seeds/weights/small.safetensors", "wb").write(struct.pack("<Q", len(header)) + header + bytes(8))
def text(s): return b"X" + struct.pack("<I", len(s)) + s.encode()
tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
          + b"K\x02tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR")
state = b"\x80\x02}" + text("w") + tensor + b"s."
module = b"\x80\x02cm\nM\n)\x81}(" + text("_parameters") + b"}" + text("w") + tensor + b"s" + text("_modules") + b"}ub."
for name, pickle in ("state", state), ("module", module):
    with zipfile.ZipFile(f"seeds/weights/{name}.pth", "w", zipfile.ZIP_STORED) as z:
        z.writestr("m/data.pkl", pickle)
        z.writestr("m/data/0", bytes(8))
PY
head -c 4000 ../tests/data/goldens/vps_maps/gt/case10/000.png > seeds/picture/small.png
head -c 600 /dev/zero > seeds/frame/zeros
