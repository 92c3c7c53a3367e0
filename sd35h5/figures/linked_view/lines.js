/** The curve over steps, the profile over layers and the histogram: where a pointer is in them, and what is painted. */

import {
  along, paintAxis, paintBand, paintBars, paintIndices, paintLine, paintNothing, paintOutside, paintRule,
} from "./axes.js";
import {extent, magnitude, places} from "./cube.js";
import {further, nearest} from "./gestures.js";
import {axisOf, cellCurve, cellsOf, curveOf, headProfile, profileOf, sameChoice, windowOf} from "./model.js";
import {clean, PINNED} from "./plots.js";

const FAINT = 0.55;
const X_TITLES = {step: "denoising step", timestep: "timestep (noise, 1000 → 0)", sigma: "sigma (noise, 1 → 0)"};

/** Give the curve over steps what it answers. */
export function readCurve(plot, state) {
  const [first] = state.panels;
  plot.placeAt = (x, y, inside) => {
    const part = (x - plot.area.left) / plot.area.width;
    if (!inside && (part < -0.02 || part > 1.02 || y < plot.area.top || y > plot.area.top + plot.area.height)) return null;
    const xs = axisOf(first, state.selection.x), axis = xAxis(plot, state);
    const wanted = axis.low + (axis.reverse ? 1 - part : part) * (axis.high - axis.low);
    return {step: first.steps[xs.indexOf(nearest(xs, wanted))]};
  };
  plot.walk = (place, dx) => ({step: further(first.steps, place.step, dx)});
  plot.begin = () => ({step: state.selection.step ?? first.steps[0]});
  plot.boxOf = ({step}) => column(plot, xAxis(plot, state), axisOf(first, state.selection.x)[first.at.steps.get(step)]);
}

/** Give the profile over layers what it answers. */
export function readProfile(plot, state) {
  const [first] = state.panels;
  plot.placeAt = (x, y, inside) => {
    const {area} = plot, [low, high] = windowOf(first, state.selection).layers, part = (x - area.left) / area.width;
    if (!inside && (part < 0 || part >= 1 || y < area.top || y > area.top + area.height)) return null;
    return {layer: nearest(first.layers, Math.floor(part * (high - low + 1)) + low)};
  };
  plot.walk = (place, dx) => ({layer: further(first.layers, place.layer, dx)});
  plot.begin = () => ({layer: state.selection.pinned ? state.selection.pinned[0] : first.layers[0]});
  plot.boxOf = ({layer}) => column(plot, layerAxis(state), layer);
}

function column(plot, axis, value) {
  return {left: plot.area.left + along(axis, value) * plot.area.width, width: 0, top: plot.area.top,
    height: plot.area.height / 2};
}

function xAxis(plot, {panels, selection}) {
  const [low, high] = extent(...panels.filter(panel => panel.curves).map(panel => axisOf(panel, selection.x)));
  const [from, to] = low < high ? [low, high] : [low - 0.5, high + 0.5];
  return {low: from, high: to, reverse: selection.x !== "step", title: X_TITLES[selection.x],
    count: Math.min(8, Math.floor(plot.area.width / 46))};
}

function layerAxis({panels, selection}) {
  const [low, high] = windowOf(panels[0], selection).layers; // as wide as the heatmap's cells: they lie under each other
  return {low: low - 0.5, high: high + 0.5};
}

/** The colour of a panel's lines; a single panel's cells have colours of their own. */
function cellColour(panel, state, faint) {
  if (state.panels.filter(one => one.curves).length > 1) return panel.color;
  return faint ? state.theme.ink : PINNED;
}

/** The lines of a plot: chosen cells, the pinned one, the one under the hand; with bands where the host made them. */
function linesOf(state, xsOf, chosenOf, cellOf, bandName) {
  const {selection, at, host} = state, lines = [], bands = [];
  const panels = state.panels.filter(panel => panel.curves), pinned = selection.pinned;
  const banded = sameChoice(selection, host) && (bandName === "curve" || selection.step === null);
  for (const panel of panels) {
    const x = xsOf(panel), few = x.length <= 60;
    lines.push({x, y: chosenOf(panel), colour: panel.color, dash: panel.dash, alpha: pinned && panels.length > 1 ? 0.4 : 1,
      dots: few && panels.length <= 4 && !pinned ? 2 : 0});
    const given = banded && panel.bands ? panel.bands : {};
    const whose = pinned && given.pinned ? given.pinned : given.chosen;
    if (whose && whose[bandName])
      bands.push({x, low: whose[bandName][0], high: whose[bandName][1],
        colour: pinned && given.pinned ? cellColour(panel, state) : panel.color});
    if (pinned)
      lines.push({x, y: cellOf(panel, pinned), colour: cellColour(panel, state), dash: panel.dash, width: 2.5,
        dots: few && panels.length <= 4 ? 2 : 0});
    if (at && at.cell && String(at.cell) !== String(pinned))
      lines.push({x, y: cellOf(panel, at.cell), colour: cellColour(panel, state, true), dash: panel.dash, width: 1.5,
        alpha: FAINT});
  }
  return {lines, bands};
}

function yAxis(lines, bands, uniform) {
  const ends = extent(...lines.map(line => line.y), ...bands.flatMap(band => [band.low, band.high]), uniform);
  const [low, high] = magnitude(ends);
  return {low, high: high + (high - low) * 0.06};
}

/** Uniform attention, once for each value that panels have. */
function uniforms(state) {
  return [...new Set(state.panels.filter(panel => panel.curves).map(panel => panel.uniform))]
    .filter(value => value !== null);
}

function paintLines(plot, state, x, {lines, bands}, bandRange, ruleAt) {
  const context = clean(plot.base, plot.size), {theme, selection} = state, {area} = plot;
  clean(plot.canvas, plot.size);
  const uniform = uniforms(state), axes = {x, y: yAxis(lines, bands, uniform)};
  paintAxis(context, area, axes.y, "y", theme);
  if (lines.every(line => !line.y.some(Number.isFinite)))
    paintNothing(context, area, state.nothing, theme);
  for (const band of bands) paintBand(context, area, axes, band);
  for (const line of lines) paintLine(context, area, axes, line);
  for (const value of uniform) paintRule(context, area, axes, {y: value, colour: theme.mark});
  if (bandRange) paintOutside(context, area, axes, bandRange, theme);
  if (ruleAt.shown !== undefined)
    paintRule(context, area, axes, {x: ruleAt.shown, colour: theme.ink, dash: [], width: 2});
  if (ruleAt.hover !== undefined)
    paintRule(context, area, axes, {x: ruleAt.hover, colour: theme.muted, dash: [2, 2]});
  return {context, axes, selection};
}

export function paintCurve(plot, state) {
  const {selection, at} = state, [first] = state.panels, xs = axisOf(first, selection.x);
  const found = linesOf(state, panel => axisOf(panel, selection.x), panel => curveOf(panel, selection), cellCurve, "curve");
  const of = step => (step === undefined || step === null ? undefined : xs[first.at.steps.get(step)]);
  const inside = places(first.steps, selection.steps), x = xAxis(plot, state);
  const half = xs.length > 1 ? Math.abs(xs[1] - xs[0]) / 4 : 0.25;
  const ends = inside.length ? extent(inside.map(place => xs[place])) : extent(selection.steps || []);
  const chosen = selection.steps ? [ends[0] - half, ends[1] + half] : null;
  const {context} = paintLines(plot, state, x, found, chosen,
    {shown: of(selection.step), hover: at ? of(at.step) : undefined});
  paintAxis(context, plot.area, x, "x", state.theme);
}

export function paintProfile(plot, state) {
  const {selection, at} = state;
  const found = linesOf(state, panel => panel.layers, panel => profileOf(panel, selection),
    (panel, [, head]) => headProfile(panel, selection, head), "profile");
  const chosen = selection.layers ? [selection.layers[0] - 0.5, selection.layers[1] + 0.5] : null;
  const hover = at && (at.cell ? at.cell[0] : at.layer);
  const {context} = paintLines(plot, state, layerAxis(state), found, chosen, {hover: hover ?? undefined});
  paintIndices(context, plot.area, windowOf(state.panels[0], selection).layers, state.panels[0].layers, "layer", "x",
    state.theme);
}

// ---- histogram -----------------------------------------------------------------------------------------------

/** Give the histogram what it answers. */
export function readHistogram(plot, state) {
  const count = () => Math.max(0, state.histogram.edges.length - 1);
  plot.placeAt = (x, y, inside) => {
    const part = (x - plot.area.left) / plot.area.width;
    if (!count() || (!inside && (part < 0 || part >= 1 || y > plot.area.top + plot.area.height))) return null;
    return {bin: Math.max(0, Math.min(count() - 1, Math.floor(part * count())))};
  };
  plot.walk = (place, dx) => ({bin: Math.max(0, Math.min(count() - 1, place.bin + Math.max(-99, Math.min(99, dx))))});
  plot.begin = () => (count() ? {bin: 0} : null);
  plot.boxOf = ({bin}) => column(plot, {low: 0, high: count()}, bin + 0.5);
}

export function paintHistogram(plot, state) {
  const context = clean(plot.base, plot.size), {theme, selection, at} = state, {area} = plot;
  const over = clean(plot.canvas, plot.size);
  const {edges, bars, log} = state.histogram;
  if (!edges.length) {
    paintNothing(context, area, state.nothing, theme);
    return;
  }
  const axes = {
    x: {low: edges[0], high: edges.at(-1), log, count: 4, title: state.options.label},
    y: {low: 0, high: Math.max(1, ...bars.flatMap(bar => bar.all)) * 1.05, count: 4},
  };
  paintAxis(context, area, axes.y, "y", theme);
  paintAxis(context, area, axes.x, "x", theme);
  const filled = bars.length === 1, part = Boolean(selection.layers || selection.heads);
  for (const {panel, counts, all} of bars) {
    if (part) paintBars(context, area, axes, {edges, counts: all, colour: panel.color, dash: panel.dash, filled, alpha: 0.25});
    paintBars(context, area, axes, {edges, counts, colour: panel.color, dash: panel.dash, filled, alpha: filled ? 0.9 : 1});
  }
  for (const value of uniforms(state)) paintRule(context, area, axes, {x: value, colour: theme.mark});
  for (const [cell, colour] of [[selection.pinned, null], [at && at.cell, theme.ink]])
    for (const {panel} of cell ? bars : []) {
      const value = cellsOf(panel, selection)[panel.at.layers.get(cell[0]) * panel.shape.heads + panel.at.heads.get(cell[1])];
      const own = bars.length > 1 ? panel.color : colour || cellColour(panel, state);
      paintRule(over, area, axes, {x: value, colour: own, dash: [], width: 2});
    }
  if (at && at.bin !== undefined) {
    over.strokeStyle = theme.ink;
    const wide = area.width / (edges.length - 1);
    over.strokeRect(area.left + at.bin * wide, area.top, wide, area.height);
  }
}
