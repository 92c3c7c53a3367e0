/** What is painted on a canvas: axes, lines with bands, bars and sentences. Contexts, areas and themes as in drawing.js;
axes are {x, y}, each {low, high, log, reverse, count, title}. */

import {ticks, told} from "./cube.js";

export const GAP = 4; // pixels between an axis and what is written at it
const LETTERS = 11;

/** Name true indices along an axis, as many as there is room for. */
export function paintIndices(context, area, span, indices, name, along, theme) {
  write(context, theme);
  const count = span[1] - span[0] + 1, size = (along === "x" ? area.width : area.height) / count;
  const room = along === "x" ? 26 : 14;
  const every = [1, 2, 5, 10, 20, 50, 100].find(each => each * size >= room) || 100;
  const known = new Set(indices);
  for (let index = span[0]; index <= span[1]; index++) {
    if (!known.has(index) || (index % every && count > 1 && known.size > 1)) continue;
    const at = (index - span[0] + 0.5) * size;
    if (along === "x") text(context, index, area.left + at, area.top + area.height + GAP, "center", "top");
    else text(context, index, area.left - GAP, area.top + at, "right", "middle");
  }
  title(context, area, name, along);
}

/** Place of a number on an axis {low, high, log, reverse}, as a part of its length. */
export function along(axis, value) {
  const at = axis.log ? Math.log(value / axis.low) / Math.log(axis.high / axis.low)
    : (value - axis.low) / (axis.high - axis.low || 1);
  return axis.reverse ? 1 - at : at;
}

/** Paint an axis of numbers with its ticks; grid lines across for y. */
export function paintAxis(context, area, axis, side, theme) {
  write(context, theme);
  const marks = axis.log ? logTicks(axis.low, axis.high) : ticks(axis.low, axis.high, axis.count || 5);
  let free = -Infinity;  // from where the next label of x has room
  for (const value of axis.reverse ? marks.reverse() : marks) {
    const at = along(axis, value);
    if (at < -1e-6 || at > 1 + 1e-6) continue;
    if (side === "x") {
      const label = told(value, 3), x = area.left + at * area.width, half = context.measureText(label).width / 2;
      if (x - half < free) continue;
      text(context, label, x, area.top + area.height + GAP, "center", "top");
      free = x + half + GAP;
      continue;
    }
    const y = area.top + (1 - at) * area.height;
    context.strokeStyle = theme.line;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(area.left, Math.round(y) + 0.5);
    context.lineTo(area.left + area.width, Math.round(y) + 0.5);
    context.stroke();
    text(context, told(value, 3), area.left - GAP, y, "right", "middle");
  }
  if (axis.title) title(context, area, axis.title, side);
}

function logTicks(low, high) {
  if (high < low * 3) return ticks(low, high, 4);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const part of high / low > 300 ? [1] : high / low > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8])
      found.push(Number((part * 10 ** power).toPrecision(3)));
  return found.filter(value => value >= low && value <= high);
}

/** Paint a line through points, broken where one is absent: {x, y, colour, width, alpha, dash, dots}. */
export function paintLine(context, area, axes, line) {
  context.save();
  clip(context, area);
  Object.assign(context, {strokeStyle: line.colour, fillStyle: line.colour, lineWidth: line.width || 2});
  context.globalAlpha = line.alpha ?? 1;
  context.lineJoin = "round";
  context.setLineDash(line.dash || []);
  context.beginPath();
  let pen = false;
  const there = [];
  line.x.forEach((x, place) => {
    const y = line.y[place];
    if (!Number.isFinite(y)) { pen = false; return; }
    const [px, py] = point(area, axes, x, y);
    if (pen) context.lineTo(px, py); else context.moveTo(px, py);
    pen = true;
    there.push([px, py]);
  });
  context.stroke();
  if (line.dots) for (const [px, py] of there) {
    context.beginPath();
    context.arc(px, py, line.dots, 0, 7);
    context.fill();
  }
  context.restore();
}

/** Paint the band between two lines. */
export function paintBand(context, area, axes, band) {
  const there = band.x.map((_, place) => place)
    .filter(place => Number.isFinite(band.low[place]) && Number.isFinite(band.high[place]));
  if (!there.length) return;
  context.save();
  clip(context, area);
  context.globalAlpha = 0.18;
  context.fillStyle = band.colour;
  context.beginPath();
  there.forEach(place => context.lineTo(...point(area, axes, band.x[place], band.high[place])));
  there.reverse().forEach(place => context.lineTo(...point(area, axes, band.x[place], band.low[place])));
  context.fill();
  context.restore();
}

/** Paint a dashed line across at what uniform attention would give, or along x at a number. */
export function paintRule(context, area, axes, {x, y, colour, dash = [4, 3], width = 1}) {
  const at = x === undefined ? along(axes.y, y) : along(axes.x, x);
  if (!(at >= -1e-6 && at <= 1 + 1e-6)) return;
  context.save();
  Object.assign(context, {strokeStyle: colour, lineWidth: width});
  context.setLineDash(dash);
  context.beginPath();
  if (x === undefined) {
    context.moveTo(area.left, area.top + (1 - at) * area.height);
    context.lineTo(area.left + area.width, area.top + (1 - at) * area.height);
  } else {
    context.moveTo(area.left + at * area.width, area.top);
    context.lineTo(area.left + at * area.width, area.top + area.height);
  }
  context.stroke();
  context.restore();
}

/** Shade what lies outside a chosen range of x. */
export function paintOutside(context, area, axes, [first, last], theme) {
  const ends = [along(axes.x, first), along(axes.x, last)].sort((one, other) => one - other);
  const [low, high] = ends.map(end => area.left + Math.max(0, Math.min(1, end)) * area.width);
  context.save();
  context.globalAlpha = 0.72;
  context.fillStyle = theme.ground;
  context.fillRect(area.left, area.top, low - area.left, area.height);
  context.fillRect(high, area.top, area.left + area.width - high, area.height);
  context.globalAlpha = 1;
  context.strokeStyle = theme.muted;
  for (const end of [low, high]) {
    context.beginPath();
    context.moveTo(end, area.top);
    context.lineTo(end, area.top + area.height);
    context.stroke();
  }
  context.restore();
}

/** Paint bars between edges: filled, or as an outline where several share the plot. */
export function paintBars(context, area, axes, {edges, counts, colour, filled, alpha, dash = []}) {
  context.save();
  context.globalAlpha = alpha;
  Object.assign(context, {fillStyle: colour, strokeStyle: colour, lineWidth: filled ? 1 : 2});
  if (!filled) context.setLineDash(dash);
  context.beginPath();
  if (!filled) context.moveTo(...point(area, axes, edges[0], 0));
  counts.forEach((count, bin) => {
    const [left, top] = point(area, axes, edges[bin], count);
    const [right, foot] = point(area, axes, edges[bin + 1], 0);
    if (filled) context.fillRect(left + 0.5, top, Math.max(1, right - left - 1), foot - top);
    else { context.lineTo(left, top); context.lineTo(right, top); }
  });
  if (!filled) { context.lineTo(...point(area, axes, edges[edges.length - 1], 0)); context.stroke(); }
  context.restore();
}

/** Say in the middle of a plot why it is empty. */
export function paintNothing(context, area, sentence, theme) {
  write(context, theme);
  context.fillStyle = theme.ink;
  const lines = [""], most = Math.max(12, area.width / 6);
  for (const word of sentence.split(" "))
    if (`${lines.at(-1)} ${word}`.length > most) lines.push(word);
    else lines[lines.length - 1] = `${lines.at(-1)} ${word}`.trim();
  lines.forEach((line, place) => text(
    context, line, area.left + area.width / 2, area.top + area.height / 2 + (place - (lines.length - 1) / 2) * 15,
    "center", "middle"));
}

function point(area, axes, x, y) {
  return [area.left + along(axes.x, x) * area.width, area.top + (1 - along(axes.y, y)) * area.height];
}

function clip(context, area) {
  context.beginPath();
  context.rect(area.left - 3, area.top - 3, area.width + 6, area.height + 6);
  context.clip();
}

/** Begin to write: small, in the theme's quiet colour. */
export function write(context, theme) {
  context.font = `${LETTERS}px ${theme.font}`;
  context.fillStyle = theme.muted;
}

/** Write something at a point, aligned to it. */
export function text(context, what, x, y, align, baseline) {
  context.textAlign = align;
  context.textBaseline = baseline;
  context.fillText(String(what), x, y);
}

function title(context, area, name, side) {
  if (side === "x") {
    const end = context.canvas.width / context.getTransform().a - context.measureText(name).width / 2;
    const middle = Math.min(area.left + area.width / 2, end);  // a long name keeps within its canvas
    text(context, name, middle, area.top + area.height + LETTERS + 2 * GAP + 2, "center", "top");
    return;
  }
  context.save();
  context.translate(LETTERS, area.top + area.height / 2);
  context.rotate(-Math.PI / 2);
  text(context, name, 0, 0, "center", "middle");
  context.restore();
}
