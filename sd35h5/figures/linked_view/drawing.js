/** What is painted on a canvas: cells, outlines, signs and a colour legend.

Every painter gets a context that is scaled to CSS pixels, an area {left, top, width, height} within its canvas, and the
colours of the theme {ink, muted, line, ground, mark, font}. */

import {GAP, text, write} from "./axes.js";
import {told} from "./cube.js";

/** 256 colours between these stops, as bytes: red, green, blue of each. */
export function ramp(stops) {
  const parts = stops.map(stop => [1, 3, 5].map(at => parseInt(stop.slice(at, at + 2), 16)));
  const colours = new Uint8ClampedArray(256 * 3);
  for (let place = 0; place < 256; place++) {
    const at = (place / 255) * (parts.length - 1), low = Math.min(Math.floor(at), parts.length - 2);
    for (let part = 0; part < 3; part++)
      colours[place * 3 + part] = parts[low][part] + (parts[low + 1][part] - parts[low][part]) * (at - low);
  }
  return colours;
}

/** Place in a ramp of a value on a scale from low to high, clamped. */
export function shade(value, [low, high]) {
  return Math.max(0, Math.min(255, Math.round(((value - low) / (high - low || 1)) * 255)));
}

/** Paint one heatmap: cells of true indices within a window, those outside the chosen ones pale, absent ones hatched.

grid: {cells, ramp, domain, layers, heads (true indices), window: {layers: [first, last], heads: [first, last]},
chosen: {layers: Set of true indices, heads: Set}}. */
export function paintCells(context, area, grid, theme) {
  const [columns, rows] = ["layers", "heads"].map(name => grid.window[name][1] - grid.window[name][0] + 1);
  const picture = new ImageData(columns, rows), absent = [];
  grid.layers.forEach((layer, across) => {
    const column = layer - grid.window.layers[0];
    if (column < 0 || column >= columns) return;
    grid.heads.forEach((head, down) => {
      const row = head - grid.window.heads[0];
      if (row < 0 || row >= rows) return;
      const value = grid.cells[across * grid.heads.length + down];
      if (value !== value) { absent.push([layer, head]); return; }
      const from = shade(value, grid.domain) * 3, to = (row * columns + column) * 4;
      for (let part = 0; part < 3; part++) picture.data[to + part] = grid.ramp[from + part];
      picture.data[to + 3] = grid.chosen.layers.has(layer) && grid.chosen.heads.has(head) ? 255 : 70;
    });
  });
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, area.left, area.top, area.width, area.height);
  context.strokeStyle = theme.muted;
  context.lineWidth = 0.8;
  context.beginPath();
  for (const [layer, head] of absent) {
    const box = cellBox(area, grid.window, layer, head), short = Math.min(box.width, box.height) * 0.5;
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    context.moveTo(x - short / 2, y + short / 2);
    context.lineTo(x + short / 2, y - short / 2);
  }
  context.stroke();
  frame(context, area, theme);
}

/** Where a cell lies: {left, top, width, height}. */
export function cellBox(area, window, layer, head) {
  const width = area.width / (window.layers[1] - window.layers[0] + 1);
  const height = area.height / (window.heads[1] - window.heads[0] + 1);
  return {
    left: area.left + (layer - window.layers[0]) * width, top: area.top + (head - window.heads[0]) * height,
    width, height,
  };
}

/** Outline a box of cells: dark below, the colour on top, so that it shows on every colour of a scale. */
export function outline(context, area, window, [layers, heads], colour, width = 2) {
  const first = cellBox(area, window, Math.max(layers[0], window.layers[0]), Math.max(heads[0], window.heads[0]));
  const last = cellBox(area, window, Math.min(layers[1], window.layers[1]), Math.min(heads[1], window.heads[1]));
  const size = [last.left + last.width - first.left, last.top + last.height - first.top];
  if (size[0] <= 0 || size[1] <= 0) return;
  for (const [style, thick] of [["#000000", width + 2], [colour, width]]) {
    context.strokeStyle = style;
    context.lineWidth = thick;
    context.strokeRect(first.left, first.top, ...size);
  }
}

/** Write a sign in a cell, or a dot for "•", dark on light cells and light on dark ones. */
export function sign(context, box, text, dark, theme) {
  const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  context.fillStyle = dark ? "#111111" : "#ffffff";
  if (text === "•") {
    context.beginPath();
    context.arc(x, y, Math.max(1.2, Math.min(box.width, box.height) * 0.16), 0, 7);
    context.fill();
    return;
  }
  context.font = `bold ${Math.max(7, Math.min(13, Math.min(box.width, box.height) * 0.8))}px ${theme.font}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, x, y);
}

/** Paint a colour scale with its ends and what lies between, and ticks at some values. */
export function paintColours(context, area, {ramp: colours, domain, values}, theme) {
  for (let x = 0; x < area.width; x++) {
    const from = shade(x, [0, area.width - 1]) * 3;
    context.fillStyle = `rgb(${colours[from]},${colours[from + 1]},${colours[from + 2]})`;
    context.fillRect(area.left + x, area.top, 1.5, area.height);
  }
  write(context, theme);
  const count = area.width > 220 ? 5 : 3;
  for (let place = 0; place < count; place++) {
    const part = place / (count - 1), side = place === 0 ? "left" : place === count - 1 ? "right" : "center";
    const value = domain[0] + (domain[1] - domain[0]) * part;
    text(context, told(value, 3), area.left + part * area.width, area.top + area.height + GAP, side, "top");
  }
  for (const value of values) {
    const x = area.left + (shade(value, domain) / 255) * area.width;
    for (const [style, width] of [["#000000", 4], ["#ffffff", 2]]) {
      Object.assign(context, {strokeStyle: style, lineWidth: width});
      context.beginPath();
      context.moveTo(x, area.top - 2);
      context.lineTo(x, area.top + area.height + 2);
      context.stroke();
    }
  }
}

function frame(context, area, theme) {
  Object.assign(context, {strokeStyle: theme.line, lineWidth: 1});
  context.strokeRect(area.left - 0.5, area.top - 0.5, area.width + 1, area.height + 1);
}
