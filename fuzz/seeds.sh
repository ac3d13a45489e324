#!/bin/sh
# Writes a few small files of each kind to fuzz/seeds/TARGET, from which the fuzzer starts.
set -eu
cd "$(dirname "$0")"
mkdir -p seeds/weights seeds/config seeds/image seeds/frame seeds/container seeds/dicom
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
magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}."
keys = b"\x80\x02]" + text("0") + b"a."
for name, pickle in ("state", state), ("module", module):
    open(f"seeds/weights/{name}-old.pth", "wb").write(magic + pickle + keys + struct.pack("<q", 2) + bytes(8))
for name, pickle in ("state", state), ("module", module):
    with zipfile.ZipFile(f"seeds/weights/{name}.pth", "w", zipfile.ZIP_STORED) as z:
        z.writestr("m/data.pkl", pickle)
        z.writestr("m/data/0", bytes(8))
def atom(kind, *inner): return struct.pack(">I", 8 + sum(map(len, inner))) + kind + b"".join(inner)
def words(*w): return struct.pack(f">{len(w)}I", *w)
table = atom(b"stbl", atom(b"stts", words(0, 1, 4, 10)), atom(b"ctts", words(0, 3, 1, 10, 1, 20, 2, 5)))
media = atom(b"mdia", atom(b"mdhd", words(0, 0, 0, 100, 40)), atom(b"hdlr", words(0, 0), b"vide"), atom(b"minf", table))
track = atom(b"trak", atom(b"tkhd", words(0, 0, 0, 1)), atom(b"edts", atom(b"elst", words(0, 1, 400, 10, 0x10000))), media)
seeds = {"mp4": atom(b"ftyp", b"isom") + atom(b"moov", atom(b"mvhd", words(0, 0, 0, 1000)), track) + atom(b"mdat", bytes(50)),
         "mkv": bytes.fromhex("1a45dfa380 1853806701ffffffffffffff 1549a966874489 84437a0000 1f43b67583e78100"),
         "avi": b"RIFF\x30\0\0\0AVI strh\x38\0\0\0vids" + struct.pack("<8I", 0, 0, 0, 0, 1, 25, 0, 50),
         "ts": b"".join(bytes([0x47, 1, 0, 0x10 + n]) + bytes(184) for n in range(3))}
def chunk(name, inner): return name + struct.pack("<I", len(inner)) + inner + bytes(len(inner) % 2)
movi = chunk(b"LIST", b"movi" + chunk(b"00dc", b"7" * 31) + chunk(b"LIST", b"rec " + chunk(b"01wb", b"8" * 8)))
seeds["chunks.avi"] = chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrlxxxx") + movi + chunk(b"idx1", bytes(16)))
def element(id, inner): return bytes.fromhex(id) + struct.pack(">Q", 1 << 56 | len(inner)) + inner
cluster = element("1f43b675", element("a3", b"5" * 40) + element("a0", element("a1", b"6" * 9)))
seeds["clusters.mkv"] = element("1a45dfa3", b"") + element("18538067", cluster + cluster)
def asf(guid, inner): return guid + struct.pack("<Q", 24 + len(inner)) + inner
properties = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
guid = lambda first: bytes([first, 0x26, 0xb2, 0x75]) + b"9" * 12
sizes = struct.pack("<II", 40, 40)
seeds["asf"] = asf(guid(0x30), asf(properties, bytes(68) + sizes)) + asf(guid(0x36), bytes(26) + (b"\x82\0\0" + b"3" * 37) * 3)
seeds["flv"] = b"FLV\x01\x01\0\0\0\x09\0\0\0\0" + bytes([9, 0, 0, 5]) + bytes(7) + b"55555" + bytes([0, 0, 0, 16])
seeds["mxf"] = (bytes([6, 0x0e, 0x2b, 0x34]) + b"1" * 12 + bytes([0x83, 0, 0, 9]) + b"3" * 9) * 2
seeds["ogg"] = b"".join(b"OggS\0" + bytes([f]) + bytes(8) + b"abcd" + struct.pack("<I", n) + bytes(4) + b"\2\3\3" + b"8" * 6
                        for n, f in enumerate((2, 0, 4)))
seeds["ps"] = (bytes([0, 0, 1, 0xba, 0x44]) + bytes(8) + b"\xf8" + bytes([0, 0, 1, 0xe0, 0, 5]) + b"44444") * 2
seeds["dv"] = bytes([0x1f, 7, 0, 0x3f]) + b"1" * 500
for name, data in seeds.items():
    open(f"seeds/container/{name}", "wb").write(data)
# A coding, a kind of colour, values of the header, and a frame: see fuzz_targets/dicom.rs.
for coding in range(3):
    for colour in range(6):
        frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\3abcd\xfe1" if coding == 1 else bytes(range(64))
        open(f"seeds/dicom/{coding}{colour}", "wb").write(bytes([coding, colour, 4, 4, 8, 8, 0, 0]) + frame)
PY
head -c 4000 ../tests/data/goldens/vps_maps/gt/case10/000.png > seeds/image/small.png
head -c 600 /dev/zero > seeds/frame/zeros
