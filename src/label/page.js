// Shows one frame with its mask, sends prompts and other changes, and draws all labels as a strip.
"use strict";

const $ = (id) => document.getElementById(id);
const stage = $("stage"), strip = $("strip");
const KEPT = 48; // decoded frames in memory
const NAMES = { m: "your label", e: "no polyp", p: "propagated, not accepted", a: "propagated, accepted" };

let state = null; // the server's last answer
let labels = new Map(); // frame → [letter, confidence, prompts]
let at = 0; // number of the frame that is shown
let masked = true;
let mask = null; // the mask of the shown frame: { frame, version, image }
let box = null; // the box that is being drawn
let work = Promise.resolve(); // changes are sent one after another
const frames = new Map();

// The token is in the cookie now and need not stay in the address bar.
if (location.search) window.history.replaceState(null, "", location.pathname);

function say(text) { $("message").textContent = text ?? ""; }

function link(on, text) { $("link").className = on ? "on" : "off"; $("link").textContent = text; }

async function bitmap(path) {
  const answer = await fetch(path, { cache: "no-store" });
  return answer.ok ? createImageBitmap(await answer.blob()) : null;
}

// The decoded frame, from memory if it was shown lately.
function frame(number) {
  const known = frames.get(number);
  frames.delete(number);
  const image = known ?? bitmap(`/frame.jpg?frame=${number}`).catch(() => null);
  frames.set(number, image);
  if (frames.size > KEPT) {
    const [oldest, old] = frames.entries().next().value;
    frames.delete(oldest);
    old.then((image) => image?.close());
  }
  return image;
}

function take(answer) {
  const first = !state;
  state = answer;
  labels = new Map(state.labels.map(([number, ...label]) => [number, label]));
  if (first) {
    at = state.labels.at(-1)?.[0] ?? state.first;
    stage.width = Math.round(state.width * state.pixel_aspect);
    stage.height = state.height;
  }
  if (state.note) say(state.note);
  describe();
  drawStrip();
}

async function refresh() {
  const answer = await fetch("/state.json", { cache: "no-store", signal: AbortSignal.timeout(4000) });
  if (!answer.ok) throw new Error(answer.status === 403 ? "no access: open the link with its token" : await answer.text());
  take(await answer.json());
  link(true, "connected");
}

// Sends a change and shows its result.
function change(path) {
  work = work.then(async () => {
    stage.classList.add("busy");
    try {
      const answer = await fetch(path, { method: "POST" });
      if (answer.ok) { say(""); take(await answer.json()); } else say(await answer.text());
      link(true, "connected");
    } catch {
      link(false, "no connection: is the program running?");
    }
    stage.classList.remove("busy");
    const undone = path === "/undo" && /frame (\d+)/.exec($("message").textContent);
    if (undone) show(Number(undone[1])); else await show(at);
    if (state?.running) follow();
  });
  return work;
}

// Shows where propagation is, until it ends.
let following = false;
async function follow() {
  if (following) return;
  following = true;
  try {
    while (state.running) {
      await refresh();
      await show(state.at);
      if (state.running) await new Promise((done) => setTimeout(done, 150));
    }
    say(state.ended);
  } catch (error) {
    link(false, error.message);
  }
  following = false;
}

async function show(number) {
  if (!state) return;
  at = Math.min(Math.max(number, state.first), state.first + state.count - 1);
  describe();
  drawStrip();
  const [wanted, version] = [at, state.version];
  const shown = frame(wanted);
  if (labels.get(wanted)?.[0] && labels.get(wanted)[0] !== "e") {
    if (mask?.frame !== wanted || mask.version !== version) {
      const image = await bitmap(`/mask.png?frame=${wanted}`).catch(() => null);
      if (at === wanted) mask = { frame: wanted, version, image };
    }
  } else mask = null;
  const image = await shown;
  if (at !== wanted) return;
  draw(image);
  for (const near of [1, 2, 3, -1]) {
    const next = at + near;
    if (next >= state.first && next < state.first + state.count) frame(next);
  }
}

function draw(image) {
  const c = stage.getContext("2d"), [w, h] = [stage.width, stage.height];
  c.clearRect(0, 0, w, h);
  if (image) c.drawImage(image, 0, 0, w, h);
  if (masked && mask?.frame === at && mask.image) {
    const line = Math.max(1, Math.round(h / 360));
    c.globalAlpha = 0.22;
    c.drawImage(tinted(mask.image, "#2bd576", 0), 0, 0);
    c.globalAlpha = 1;
    c.drawImage(tinted(mask.image, "#2bd576", line), 0, 0);
  }
  drawPrompts(c, w, h);
  if (box) {
    c.strokeStyle = "#57b8ff";
    c.lineWidth = Math.max(2, h / 300);
    c.strokeRect(box.x * w, box.y * h, box.w * w, box.h * h);
  }
}

function drawPrompts(c, w, h) {
  for (const query of labels.get(at)?.[2] ?? []) {
    const [kind, places] = query.split("=");
    const [x, y, right, bottom] = places.split(",").map(Number);
    c.lineWidth = Math.max(1.5, h / 400);
    if (kind === "box") {
      c.strokeStyle = "#57b8ff";
      c.setLineDash([6, 4]);
      c.strokeRect(x * w, y * h, (right - x) * w, (bottom - y) * h);
      c.setLineDash([]);
      continue;
    }
    c.beginPath();
    c.arc(x * w, y * h, Math.max(3, h / 130), 0, 7);
    c.fillStyle = kind === "point" ? "#57b8ff" : "#ff6b5e";
    c.strokeStyle = "#fff";
    c.fill();
    c.stroke();
  }
}

// The mask in one colour, at the stage's size; with `line`, only its outline of that width.
function tinted(image, color, line) {
  const canvas = new OffscreenCanvas(stage.width, stage.height);
  const c = canvas.getContext("2d"), [w, h] = [canvas.width, canvas.height];
  if (line) {
    for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1], [.7, .7], [-.7, .7], [.7, -.7], [-.7, -.7]]) c.drawImage(image, x * line, y * line, w, h);
    c.globalCompositeOperation = "destination-out";
    c.drawImage(image, 0, 0, w, h);
  } else c.drawImage(image, 0, 0, w, h);
  c.globalCompositeOperation = "source-in";
  c.fillStyle = color;
  c.fillRect(0, 0, w, h);
  return canvas;
}

function describe() {
  if (!state) return;
  const [letter, confidence] = labels.get(at) ?? [];
  const part = (at - state.first) / Math.max(1, state.count - 1);
  $("frame").textContent = `frame ${at}`;
  const sure = confidence == null ? "" : `, confidence ${(100 * confidence).toFixed(0)} %`;
  $("status").textContent = `${(state.start_s + part * (state.end_s - state.start_s)).toFixed(2)} s – ${letter ? NAMES[letter] + sure : "no label"}`;
  const count = (letters) => state.labels.filter(([, letter]) => letters.includes(letter)).length;
  $("counts").textContent = `${state.count} frames – ${count("m")} yours, ${count("a")} accepted, ${count("p")} propagated, ${count("e")} without a polyp`;
  $("propagate").textContent = state.running ? "Stop" : "Propagate";
  $("propagate").classList.toggle("running", state.running);
  $("undo").disabled = state.running || !state.undoable;
  $("save").classList.toggle("waiting", !state.saved);
}

function color([letter, confidence]) {
  if (letter !== "p") return { m: "#57b8ff", a: "#2bd576", e: "#c9d4dc" }[letter];
  // From orange at 0.7 and below to green at 0.95 and above.
  const part = Math.min(1, Math.max(0, (confidence - 0.7) / 0.25));
  return `hsl(${38 + 60 * part} ${100 - 60 * part}% ${64 - 6 * part}%)`;
}

function drawStrip() {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [strip.clientWidth, strip.clientHeight];
  if (!w || !state) return;
  strip.width = w * scale;
  strip.height = h * scale;
  const c = strip.getContext("2d");
  c.scale(scale, scale);
  const step = w / state.count;
  c.fillStyle = "#24303a";
  c.fillRect(0, 8, w, h - 16);
  for (const [number, label] of labels) {
    const tall = label[0] === "m" || label[0] === "e" ? 3 : 8;
    c.fillStyle = color(label);
    c.fillRect((number - state.first) * step, tall, Math.max(1, step), h - 2 * tall);
  }
  c.strokeStyle = "#fff";
  c.lineWidth = 2;
  c.strokeRect((at - state.first) * step - 1, 1, Math.max(2, step) + 2, h - 2);
}

const step = (by) => { show(at + by); };
const KEYS = {
  ArrowLeft: (event) => step(event.shiftKey ? -10 : -1),
  ArrowRight: (event) => step(event.shiftKey ? 10 : 1),
  Home: () => show(state.first),
  End: () => show(state.first + state.count - 1),
  " ": () => change(state.running ? "/stop" : `/propagate?frame=${at}`),
  Enter: () => change(`/accept?frame=${at}`).then(() => { if (labels.get(at)?.[0] === "a") step(1); }),
  a: () => change("/accept?all"),
  n: () => change(`/empty?frame=${at}`),
  Delete: () => change(`/prompt?frame=${at}&clear`),
  z: () => change("/undo"),
  m: () => { masked = !masked; show(at); },
  s: () => { say("saving"); change("/save"); },
};

addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!state || !KEYS[key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  KEYS[key](event);
});
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", (event) => {
    if (state) KEYS[button.dataset.key](event);
    // Otherwise the space bar would press it again.
    button.blur();
  });
}

promptByPointer(
  stage,
  () => (state ? [stage.width, stage.height] : [0, 0]),
  (query) => change(`/prompt?frame=${at}&${query}`),
  (from, to) => {
    box = from ? { x: Math.min(from.x, to.x), y: Math.min(from.y, to.y), w: Math.abs(to.x - from.x), h: Math.abs(to.y - from.y) } : null;
    if (state) frame(at).then(draw);
  },
);
const seek = (event) => {
  if (!state || !event.buttons) return;
  const area = strip.getBoundingClientRect();
  show(state.first + Math.floor(((event.clientX - area.left) / area.width) * state.count));
};
strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); seek(event); });
strip.addEventListener("pointermove", seek);
addEventListener("resize", drawStrip);

// Tries again until the program answers.
async function start() {
  try {
    await refresh();
    await show(at);
    if (state.running) follow();
  } catch (error) {
    link(false, error.message);
    setTimeout(start, 2000);
  }
}
start();
