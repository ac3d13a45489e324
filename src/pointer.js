// Prompts by pointer: a click is a point (with shift or the right button a background point), a drag is a box, Escape clears.
"use strict";

const MIN_DRAG = 1 / 64; // fraction of the frame's longer side; shorter is a click

// Calls `prompt(query)` for clicks, taps and drags on `element` and for Escape. `size()` returns the frame's width and height as shown,
// which is letterboxed in the element (object-fit: contain); zeros if there is none. `drag(from, to)`, if given, is called while a
// box is drawn and, with null, when it ends.
function promptByPointer(element, size, prompt, drag) {
  let press = null;

  // The position under the pointer as fractions of the frame; null outside the frame.
  function place(event) {
    const area = element.getBoundingClientRect();
    const [w, h] = size();
    if (!w || !h) return null;
    const scale = Math.min(area.width / w, area.height / h);
    const x = (event.clientX - area.left - (area.width - w * scale) / 2) / (w * scale);
    const y = (event.clientY - area.top - (area.height - h * scale) / 2) / (h * scale);
    return x >= 0 && x <= 1 && y >= 0 && y <= 1 ? { x, y, w, h } : null;
  }

  const end = () => { press = null; if (drag) drag(null, null); };
  const far = (from, to) =>
    Math.max(Math.abs(to.x - from.x) * from.w, Math.abs(to.y - from.y) * from.h) >= MIN_DRAG * Math.max(from.w, from.h);

  element.addEventListener("pointerdown", (event) => {
    const at = place(event);
    press = at && event.button !== 1 ? { ...at, background: event.shiftKey || event.button === 2 } : null;
    if (press) element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    const to = drag && press && !press.background ? place(event) : null;
    if (to) drag(press, far(press, to) ? to : press);
  });
  element.addEventListener("pointerup", (event) => {
    const [from, to] = [press, place(event)];
    end();
    if (!from || !to) return;
    const text = (...values) => values.map((v) => v.toFixed(5)).join(",");
    if (from.background) prompt(`background=${text(from.x, from.y)}`);
    else if (!far(from, to)) prompt(`point=${text(from.x, from.y)}`);
    else prompt(`box=${text(Math.min(from.x, to.x), Math.min(from.y, to.y), Math.max(from.x, to.x), Math.max(from.y, to.y))}`);
  });
  element.addEventListener("pointercancel", end);
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  addEventListener("keydown", (event) => { if (event.key === "Escape") prompt("clear"); });
}
