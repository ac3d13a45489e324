// Fetches the statistics four times per second and plots the last minute.
"use strict";

const PERIOD = 250, KEPT = 60000 / PERIOD;
const history = [];
const $ = (id) => document.getElementById(id);
const put = (id, text) => { $(id).textContent = text; };
const ms = (v) => (v < 10 ? v.toFixed(2) : v.toFixed(0));
// Limits of the first cleared device of this class (FDA DEN200055), in ms.
const BOUNDS = { video: 5.75, annotation: 120 };
let waiting = false;

// The token is in the cookie now and need not stay in the address bar.
if (location.search) window.history.replaceState(null, "", location.pathname);

async function ask() {
  if (waiting) return;
  waiting = true;
  try {
    const answer = await fetch("/state.json", { cache: "no-store", signal: AbortSignal.timeout(4000) });
    if (answer.status === 403) {
      lost("no access", "open the link that the monitor printed when it started");
    } else {
      show(await answer.json());
      $("link").className = "on";
      put("link", "live");
    }
  } catch {
    lost("no connection", "");
  }
  waiting = false;
}

function lost(why, detail) {
  $("link").className = "off";
  put("link", why);
  $("stage").dataset.state = "lost";
  put("verdict", why);
  put("detail", detail);
}

function show(s) {
  // After a restart of the monitor or its source, counts begin again at 0.
  if (history.length && (s.uptime_s < history.at(-1).at || s.frames < history.at(-1).frames)) history.length = 0;
  const before = history.findLast((h) => h.at <= s.uptime_s - 2) ?? history[0];
  history.push({ at: s.uptime_s, frames: s.frames, inferred: s.inferred, age: s.annotation_delay_ms, detected: s.regions > 0, sure: s.confidence });
  if (history.length > KEPT) history.shift();

  const detected = s.regions > 0;
  $("stage").dataset.state = detected ? "detected" : "clear";
  put("verdict", detected ? (s.regions === 1 ? "1 region detected" : `${s.regions} regions detected`) : "no polyp detected");
  put("detail", detected ? `confidence ${(100 * s.confidence).toFixed(0)} %` : "");
  put("video", ms(s.video_delay_ms));
  put("video-max", ms(s.video_delay_max_ms));
  put("annotation", s.annotation_delay_ms ? ms(s.annotation_delay_ms) : "–");
  for (const [id, bound] of Object.entries(BOUNDS)) $(id).closest("div").className = s[`${id}_delay_ms`] > bound ? "over" : "";
  put("inference", s.inferred ? ms(s.inference_ms) : "–");
  put("frame-format", s.picture ?? "waiting for the first");
  const seconds = before ? s.uptime_s - before.at : 0;
  const rate = (name) => (seconds > 0 ? ((s[name] - before[name]) / seconds).toFixed(1) : "–");
  put("rate", rate("frames"));
  put("inference-rate", rate("inferred"));
  for (const name of ["frames", "skipped", "errors", "detections"]) put(name, s[name].toLocaleString("en"));
  put("prompt", s.prompt ?? "click an object to outline it");
  $("problem").hidden = !s.problem;
  put("problem", s.problem ?? "");
  draw($("chart"), history.map((h) => (h.detected ? h.age : NaN)), "#57b8ff", 40, 0);
  draw($("sure"), history.map((h) => (h.detected ? h.sure : NaN)), "#2bd576", 1, 1);
}

// Draws a line with gaps for missing values; the scale ends at `least` or the highest value.
function draw(canvas, values, color, least, digits) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [canvas.clientWidth, canvas.clientHeight];
  if (!w || !h) return;
  canvas.width = w * scale;
  canvas.height = h * scale;
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  const left = 34, bottom = h - 6, high = 10;
  const known = values.filter((v) => !Number.isNaN(v));
  const most = Math.max(least, ...known) * (digits ? 1 : 1.1);
  const y = (v) => bottom - (bottom - high) * (v / most);
  c.font = "11px system-ui, sans-serif";
  c.textAlign = "right";
  c.textBaseline = "middle";
  c.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    const value = most * part;
    c.fillStyle = "#8fa1af";
    c.fillText(value.toFixed(digits), left - 6, y(value));
    c.strokeStyle = "#24303a";
    c.beginPath();
    c.moveTo(left, Math.round(y(value)) + 0.5);
    c.lineTo(w, Math.round(y(value)) + 0.5);
    c.stroke();
  }
  c.strokeStyle = color;
  c.lineWidth = 2;
  c.lineJoin = "round";
  c.beginPath();
  let pen = false;
  values.forEach((v, i) => {
    if (Number.isNaN(v)) { pen = false; return; }
    const x = w - ((values.length - 1 - i) * (w - left)) / (KEPT - 1);
    if (pen) c.lineTo(x, y(v)); else { c.moveTo(x, y(v)); c.lineTo(x + 1, y(v)); }
    pen = true;
  });
  c.stroke();
}

const live = $("live");

async function prompt(query) {
  try {
    const answer = await fetch(`/prompt?${query}`, { method: "POST", signal: AbortSignal.timeout(4000) });
    if (!answer.ok) put("prompt", await answer.text());
  } catch {
    put("prompt", "prompt not sent");
  }
}

promptByPointer(live, () => [live.naturalWidth, live.naturalHeight], prompt);

// Reconnects to an interrupted stream.
live.addEventListener("error", () => setTimeout(() => { live.src = `/live.mjpeg?${Date.now()}`; }, 2000));
ask();
setInterval(ask, PERIOD);
