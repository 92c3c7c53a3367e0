/** What is shown, from what was given: panels with their numbers, and means over what is chosen, kept until that
changes. */

import {binCounts, binEdges, cellMeans, extent, layerMeans, magnitude, places, stepMeans} from "./cube.js";
import {ramp} from "./drawing.js";

/** Nothing chosen: everything is shown. Ranges are [first, last] of true indices, both included. */
export const NOTHING = Object.freeze(
  {pinned: null, layers: null, heads: null, steps: null, step: null, x: "step", zoom: null});

/** Turn bytes of `sd35h5.figures.linked_view.packed` into options for `linkedView`. */
export function unpacked(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  return optionsOf(facts, bytes.subarray(4 + length));
}

/** Turn the facts and the bytes of `sd35h5.figures.linked_view.payload` into options for `linkedView`. */
export function optionsOf(facts, bytes) {
  const numbers = new Float32Array(bytes.slice().buffer); // a copy: it begins at a multiple of 4
  const panels = facts.panels.map(panel => {
    const size = panel.steps.length * panel.layers.length * panel.heads.length;
    const part = at => numbers.subarray(at, at + size);
    return {...panel, cube: part(panel.at), lines: part(panel.lines_at ?? panel.at)};
  });
  return {...facts, panels};
}

/** Complete the panels; each gets {shape, at: true index -> place for layers, heads and steps}. */
export function completed(panels) {
  return panels.map(panel => ({
    scale: "values", curves: true, lines: panel.cube, marks: [], dash: [], uniform: null, ...panel,
    shape: {steps: panel.steps.length, layers: panel.layers.length, heads: panel.heads.length},
    at: Object.fromEntries(["layers", "heads", "steps"].map(
      name => [name, new Map(panel[name].map((index, place) => [index, place]))])),
    kept: new Map(),
  }));
}

/** Complete the colour scales: each gets its `ramp`. */
export function completedScales(scales) {
  return Object.fromEntries(Object.entries(scales).map(
    ([name, scale]) => [name, {...scale, ramp: ramp(scale.colors)}]));
}

/** Say why these panels cannot share one figure, "" where they can. */
export function refusal(panels) {
  if (!panels.length) return "There is nothing to draw.";
  const [first, ...others] = panels;
  for (const other of others)
    for (const name of ["layers", "heads"])
      if (String(other[name]) !== String(first[name]))
        return `${other.name} has ${other[name].length} ${name}, ${first.name} ${first[name].length}, `
          + "or others of them: they do not compare.";
  const wrong = panels.find(one => one.cube.length !== one.shape.steps * one.shape.layers * one.shape.heads);
  return wrong ? `${wrong.name}: its numbers are not as many as its steps, layers and heads.` : "";
}

function once(panel, name, key, make) {
  const before = panel.kept.get(name);
  if (before && before[0] === key) return before[1];
  const value = make();
  panel.kept.set(name, [key, value]);
  return value;
}

/** Places of the steps whose mean is shown: the one step, or all chosen ones. */
export function stepPlaces(panel, selection) {
  return selection.step === null ? places(panel.steps, selection.steps)
    : panel.at.steps.has(selection.step) ? [panel.at.steps.get(selection.step)] : [];
}

const stepKey = selection => String([selection.step, selection.steps]);

/** Each cell's mean over the steps that are shown: Float64Array (layer × head). */
export function cellsOf(panel, selection) {
  return once(panel, "cells", stepKey(selection), () =>
    cellMeans(panel.cube, panel.shape, stepPlaces(panel, selection)));
}

/** The mean of all chosen cells at each step. */
export function curveOf(panel, selection) {
  return once(panel, "curve", String([selection.layers, "and", selection.heads]), () => stepMeans(
    panel.lines, panel.shape, places(panel.layers, selection.layers), places(panel.heads, selection.heads)));
}

/** The mean of the chosen heads in each layer. */
export function profileOf(panel, selection) {
  return once(panel, "profile", String([stepKey(selection), selection.heads]), () => layerMeans(
    panel.lines, panel.shape, stepPlaces(panel, selection), places(panel.heads, selection.heads)));
}

/** One cell at each step; one head in each layer. */
export function cellCurve(panel, [layer, head]) {
  return stepMeans(panel.lines, panel.shape, [panel.at.layers.get(layer)], [panel.at.heads.get(head)]);
}

export function headProfile(panel, selection, head) {
  return once(panel, `profile of ${head}`, stepKey(selection), () => layerMeans(
    panel.lines, panel.shape, stepPlaces(panel, selection), [panel.at.heads.get(head)]));
}

/** Places of all chosen cells in a list of layer × head. */
export function chosenCells(panel, selection) {
  const heads = places(panel.heads, selection.heads);
  return places(panel.layers, selection.layers).flatMap(layer =>
    heads.map(head => layer * panel.shape.heads + head));
}

/** The colour scale of each name, shared by its panels: {ramp, domain, label}. While one step is shown, a scale is that
of all chosen steps, so that they can be told apart. */
export function scalesOf(options, panels, selection) {
  const found = {};
  for (const [name, given] of Object.entries(options.scales)) {
    const of = panels.filter(panel => panel.scale === name);
    if (!of.length) continue;
    let domain = given.domain;
    if (!domain) {
      const ends = extent(...of.map(panel => once(panel, "ends", String([stepKey(selection), 0]), () =>
        selection.step === null ? extent(cellsOf(panel, selection)) : stepsExtent(panel, selection))));
      domain = given.symmetric ? symmetric(ends) : magnitude(ends);
    }
    found[name] = {...given, domain};
  }
  return found;
}

function stepsExtent(panel, selection) {
  const size = panel.shape.layers * panel.shape.heads;
  return extent(...places(panel.steps, selection.steps).map(
    step => panel.cube.subarray(step * size, (step + 1) * size)));
}

function symmetric([low, high]) {
  const most = Math.max(Math.abs(low), Math.abs(high));
  return Number.isFinite(most) && most > 0 ? [-most, most] : [-1e-9, 1e-9];
}

/** How heads are spread: edges, and for each panel how many of all and of the chosen cells lie in each interval, and how
many of the chosen ones are told by none. */
export function histogramOf(options, panels, selection) {
  const log = options.histogram !== "linear";
  const cells = panels.map(panel => cellsOf(panel, selection));
  const edges = binEdges(cells, log, log ? null : options.scales[panels[0].scale].domain);
  const bars = panels.map((panel, place) => {
    const chosen = chosenCells(panel, selection), all = chosenCells(panel, NOTHING);
    const there = chosen.filter(cell => Number.isFinite(cells[place][cell]));
    const counts = binCounts(edges, cells[place], chosen);
    const inBars = counts.reduce((sum, count) => sum + count, 0);
    return {panel, counts, all: binCounts(edges, cells[place], all), zero: there.length - inBars};
  });
  return {edges, bars, log};
}

/** The first and last true index that heatmaps show: what is zoomed to, or everything. */
export function windowOf(panel, selection) {
  const whole = name => [panel[name][0], panel[name].at(-1)];
  return selection.zoom || {layers: whole("layers"), heads: whole("heads")};
}

/** Whether two selections choose the same cell and ranges, whatever step is shown. */
export function sameChoice(one, other) {
  return ["pinned", "layers", "heads", "steps"].every(name => String(one[name]) === String(other[name]));
}

/** The selection with what these panels do not have taken out. */
export function possible(selection, panels) {
  const [first] = panels, has = (name, index) => panels.some(panel => panel.at[name].has(index));
  const given = {...NOTHING, ...selection};
  const [layer, head] = given.pinned || [];
  if (given.pinned && !(has("layers", layer) && has("heads", head))) given.pinned = null;
  if (given.step !== null && !has("steps", given.step)) given.step = null;
  if (!["step", "timestep", "sigma"].includes(given.x) || !axisOf(first, given.x)) given.x = "step";
  return given;
}

/** Numbers of the x axis of curves: steps, timesteps or sigmas; null where a panel does not tell them. */
export function axisOf(panel, name) {
  return {step: panel.steps, timestep: panel.timesteps, sigma: panel.sigmas}[name] || null;
}
