/** Pointer and keys on the plots: where they are, what they mean. What is done about it is up to the `hand`.

A plot is {kind: "map" | "curve" | "profile" | "histogram", canvas, area, placeAt(x, y, inside), walk(place, dx, dy)}. A
place is {cell: [layer, head]}, {step}, {layer} or {bin}. The hand is {hold, hover, click, brush, rest, clear, walk, enter,
play, zoom}. */

const FAR = 4; // pixels from which on a press is a drag

/** Listen to a plot. Returns: what ends it. */
export function listen(plot, hand) {
  const {canvas} = plot, ends = new AbortController(), {signal} = ends;
  let pressed = null, dragged = false;
  const where = (event, inside) => {
    const box = canvas.getBoundingClientRect();
    return plot.placeAt(event.clientX - box.left, event.clientY - box.top, inside);
  };
  const on = (name, what) => canvas.addEventListener(name, what, {signal});
  on("pointerdown", event => {
    if (event.button !== 0) return;
    pressed = {event, place: where(event, false)};
    dragged = false;
    if (pressed.place) canvas.setPointerCapture(event.pointerId);
    else pressed = null;
    hand.hold(Boolean(pressed));
  });
  on("pointermove", event => {
    if (pressed && Math.hypot(event.clientX - pressed.event.clientX, event.clientY - pressed.event.clientY) > FAR)
      dragged = true;
    const place = where(event, Boolean(pressed));
    if (pressed && dragged) hand.brush(plot, pressed.place, place);
    hand.hover(plot, place);
  });
  on("pointerup", event => {
    if (!pressed) return;
    hand.hold(false);
    if (dragged) hand.rest();
    else hand.click(plot, where(event, true));
    pressed = null;
  });
  on("pointercancel", () => {
    if (!pressed) return;
    pressed = null;
    hand.hold(false);
    hand.rest();
  });
  on("pointerleave", () => { if (!pressed) hand.hover(plot, null); });
  on("dblclick", event => { event.preventDefault(); hand.clear(); });
  on("wheel", event => {
    if (!event.ctrlKey || plot.kind !== "map") return; // a pinch, or Ctrl and the wheel: the page scrolls else
    event.preventDefault();
    hand.zoom(where(event, true), event.deltaY < 0 ? 0.5 : 2);
  });
  on("keydown", event => key(event, plot, hand));
  on("blur", () => hand.hover(plot, null));
  return () => ends.abort();
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  Home: [-Infinity, 0], End: [Infinity, 0], PageUp: [0, -Infinity], PageDown: [0, Infinity]};

function key(event, plot, hand) {
  if (event.altKey || event.metaKey || event.ctrlKey) return;
  const arrow = ARROWS[event.key];
  if (arrow) hand.walk(plot, ...arrow, event.shiftKey);
  else if (event.key === " ") hand.play();
  else if (event.key === "Enter") hand.enter(plot);
  else if (event.key === "Escape") hand.clear();
  else if (event.key === "+" || event.key === "-") hand.zoom(null, event.key === "+" ? 0.5 : 2);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** The nearest of some sorted numbers. */
export function nearest(numbers, wanted) {
  return numbers.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best));
}

/** The number `by` places further in a sorted list, none beyond its ends. */
export function further(numbers, from, by) {
  const at = numbers.indexOf(from);
  return numbers[Math.max(0, Math.min(numbers.length - 1, at + Math.max(-numbers.length, Math.min(numbers.length, by))))];
}

/** Two numbers as a range: [smaller, larger]. */
export function span(one, other) {
  return one <= other ? [one, other] : [other, one];
}
