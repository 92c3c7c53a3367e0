/** The plots of a linked view, and of these the heatmaps: elements, where a pointer is in them, what is painted. */

import {paintIndices} from "./axes.js";
import {places} from "./cube.js";
import {cellBox, outline, paintCells, paintColours, shade, sign} from "./drawing.js";
import {further, nearest} from "./gestures.js";
import {cellsOf, windowOf} from "./model.js";
import {make} from "./page.js";

export const PINNED = "#E69F00"; // an outline in it shows on both colour scales
const SIDES = {left: 46, right: 12, top: 6, bottom: 34};

/** Make a plot: a figure with its caption, a canvas that is painted seldom, and one on top that the hand is on. */
export function makePlot(kind, panel, caption, label) {
  const base = make("canvas", {"aria-hidden": "true"});
  const keys = "Arrow keys walk, Enter chooses, Shift with an arrow key selects a range, Space plays the steps, "
    + "Escape clears.";
  const canvas = make("canvas", {
    class: "lv-hand", tabindex: "0", role: "application", "aria-roledescription": "chart",
    "aria-label": `${label}. ${keys}`, "data-plot": kind, "data-name": panel ? panel.name : "",
  });
  const box = make("div", {class: "lv-box"}, base, canvas);
  const title = make("figcaption", {}, make("b", {text: caption}));
  const figure = make("figure", {class: `lv-plot lv-${kind}`}, title, box);
  return {kind, panel, base, canvas, box, title, figure, area: null, painted: ""};
}

/** Give the plot's canvases the size of their box. Returns: whether there is room. */
export function fit(plot, ratio) {
  const [width, height] = [plot.box.clientWidth, plot.box.clientHeight];
  if (!width || !height) return false;
  for (const canvas of [plot.base, plot.canvas]) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  plot.size = [width, height];
  plot.area = {left: SIDES.left, top: SIDES.top,
    width: Math.max(10, width - SIDES.left - SIDES.right), height: Math.max(10, height - SIDES.top - SIDES.bottom)};
  plot.canvas.dataset.area = Object.values(plot.area).join(" ");
  plot.painted = "";
  return true;
}

/** Empty a canvas. Returns: its context. */
export function clean(canvas, [width, height]) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return context;
}

/** How tall a heatmap is, for a number of heads, one of so many panels. */
export function mapHeight(heads, several) {
  const cell = Math.max(several ? 5 : 9, Math.min(several ? 26 : 34, (several ? 250 : 420) / heads));
  return Math.max(several ? 90 : 170, Math.round(cell * heads)) + SIDES.top + SIDES.bottom;
}

// ---- heatmaps ------------------------------------------------------------------------------------------------

/** Give a heatmap what it answers: where a pointer is, where an arrow key leads. */
export function readMap(plot, state) {
  plot.placeAt = (x, y, inside) => {
    const {area} = plot, window = windowOf(plot.panel, state.selection);
    const part = [(x - area.left) / area.width, (y - area.top) / area.height];
    if (!inside && part.some(one => one < 0 || one >= 1)) return null;
    const [layer, head] = ["layers", "heads"].map((name, side) => {
      const [first, last] = window[name], at = Math.floor(part[side] * (last - first + 1)) + first;
      const there = plot.panel[name].filter(index => index >= first && index <= last);
      if (inside) return nearest(there, Math.max(first, Math.min(last, at)));
      return there.includes(at) ? at : undefined;
    });
    return layer === undefined || head === undefined ? null : {cell: [layer, head]};
  };
  plot.walk = (place, dx, dy) => {
    const {panel} = plot, [layer, head] = place.cell;
    return {cell: [further(panel.layers, layer, dx), further(panel.heads, head, dy)]};
  };
  plot.begin = () => ({cell: state.selection.pinned || [plot.panel.layers[0], plot.panel.heads[0]]});
  plot.boxOf = ({cell}) => cellBox(plot.area, windowOf(plot.panel, state.selection), ...cell);
}

export function paintMap(plot, state) {
  const {panel} = plot, {selection, theme} = state, window = windowOf(panel, selection);
  const {domain, ramp} = state.scales[panel.scale];
  const marked = sameSteps(state) ? panel.marks : [];
  const key = JSON.stringify([selection.step, selection.steps, selection.layers, selection.heads, window, domain, theme,
    marked.length, plot.size, state.version]);
  plot.canvas.dataset.window = [...window.layers, ...window.heads].join(" ");
  if (plot.painted !== key) {
    plot.painted = key;
    const context = clean(plot.base, plot.size), cells = cellsOf(panel, selection);
    const chosen = {};
    for (const name of ["layers", "heads"])
      chosen[name] = new Set(places(panel[name], selection[name]).map(place => panel[name][place]));
    paintCells(context, plot.area,
      {cells, ramp, domain, layers: panel.layers, heads: panel.heads, window, chosen}, theme);
    for (const mark of marked) {
      const inside = (name, index) => index >= window[name][0] && index <= window[name][1];
      if (!inside("layers", mark.layer) || !inside("heads", mark.head)) continue;
      const value = cells[panel.at.layers.get(mark.layer) * panel.shape.heads + panel.at.heads.get(mark.head)];
      sign(context, cellBox(plot.area, window, mark.layer, mark.head), mark.sign,
        isLight(ramp, shade(value, domain)), theme);
    }
    paintIndices(context, plot.area, window.layers, panel.layers, "layer", "x", theme);
    paintIndices(context, plot.area, window.heads, panel.heads, "head", "y", theme);
  }
  const context = clean(plot.canvas, plot.size);
  if (selection.layers || selection.heads)
    outline(context, plot.area, window,
      ["layers", "heads"].map(name => selection[name] || window[name]), theme.ground, 1.5);
  if (selection.pinned) outline(context, plot.area, window, boxOf(selection.pinned), PINNED, 2.5);
  const at = state.at || {};
  if (at.cell) outline(context, plot.area, window, boxOf(at.cell), "#ffffff", 1.5);
  if (at.layer !== undefined) outline(context, plot.area, window, [[at.layer, at.layer], window.heads], "#ffffff", 1);
  if (at.bin !== undefined) outlineBin(context, plot, state, window);
}

function boxOf([layer, head]) {
  return [[layer, layer], [head, head]];
}

function outlineBin(context, plot, state, window) {
  const {edges} = state.histogram, cells = cellsOf(plot.panel, state.selection);
  if (!plot.panel.curves) return;
  plot.panel.layers.forEach((layer, across) => plot.panel.heads.forEach((head, down) => {
    const value = cells[across * plot.panel.shape.heads + down];
    if (value >= edges[state.at.bin] && value < edges[state.at.bin + 1])
      outline(context, plot.area, window, boxOf([layer, head]), "#ffffff", 1);
  }));
}

function isLight(ramp, place) {
  const [red, green, blue] = [0, 1, 2].map(part => ramp[place * 3 + part]);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128;
}

/** Whether the steps that are shown are those that the host made marks and bands for. */
function sameSteps({selection, host}) {
  return selection.step === null && String(selection.steps) === String(host.steps);
}

// ---- colour legend -------------------------------------------------------------------------------------------

export function paintScale(legend, state, values) {
  const {domain, ramp} = state.scales[legend.scale];
  const context = clean(legend.base, legend.size);
  const area = {left: 8, top: 4, width: legend.size[0] - 16, height: 10};
  paintColours(context, area, {ramp, domain, values: values.filter(Number.isFinite)}, state.theme);
}
