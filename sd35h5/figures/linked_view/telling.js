/** What is under the hand, in words: a title and a row for each panel, and the same as one line for a screen reader. */

import {told, toldSpan} from "./cube.js";
import {axisOf, cellsOf, chosenCells, curveOf, profileOf, stepPlaces} from "./model.js";

/** What is told of a place {cell | step | layer | bin}: {title, rows: [[name, value]], foot}. */
export function toldOf(at, state) {
  if (at.cell) return ofCell(at.cell, state);
  if (at.step !== undefined) return ofStep(at.step, state);
  if (at.layer !== undefined) return ofLayer(at.layer, state);
  return ofBin(at.bin, state);
}

/** The same as one line. */
export function asLine({title, rows, foot}) {
  return [title, ...rows.map(row => row.join(" ")), foot].filter(Boolean).join(" · ");
}

/** Which steps the numbers are of: "step 7", "mean of steps 0–27". */
export function toldSteps(panel, selection) {
  if (selection.step !== null) return `step ${selection.step}`;
  const inside = stepPlaces(panel, selection);
  const named = toldSpan("step", panel.steps, selection.steps);
  return inside.length > 1 ? `mean of ${named}` : named;
}

function withUniform(value, panel) {
  const times = panel.uniform > 0 && panel.uniform !== 1 && Number.isFinite(value) && panel.curves !== false;
  return times ? `${told(value)} · ${told(value / panel.uniform, 3)} × uniform` : told(value);
}

function ofCell([layer, head], {options, panels, selection}) {
  const rows = panels.map(panel => {
    const across = panel.at.layers.get(layer), down = panel.at.heads.get(head);
    const value = cellsOf(panel, selection)[across * panel.shape.heads + down];
    const sign = panel.marks.find(mark => mark.layer === layer && mark.head === head);
    return [panels.length > 1 ? panel.name : options.title, withUniform(value, panel) + (sign ? ` · ${sign.means}` : "")];
  });
  return {title: `layer ${layer}, head ${head}`, rows, foot: toldSteps(panels[0], selection)};
}

function ofStep(step, {panels, selection}) {
  const curves = panels.filter(panel => panel.curves);
  const rows = curves.map(panel => [
    curves.length > 1 ? panel.name : "mean of the chosen cells",
    told(curveOf(panel, selection)[panel.at.steps.get(step)] ?? NaN)]);
  for (const panel of selection.pinned ? curves : []) {
    const [layer, head] = selection.pinned;
    const place = (panel.at.steps.get(step) * panel.shape.layers + panel.at.layers.get(layer)) * panel.shape.heads;
    rows.push([`${curves.length > 1 ? `${panel.name}, ` : ""}layer ${layer}, head ${head}`,
      told(panel.lines[place + panel.at.heads.get(head)] ?? NaN)]);
  }
  const more = ["timestep", "sigma"].filter(name => axisOf(panels[0], name))
    .map(name => `${name} ${told(axisOf(panels[0], name)[panels[0].at.steps.get(step)], 3)}`);
  return {title: [`step ${step}`, ...more].join(" · "), rows, foot: ""};
}

function ofLayer(layer, {panels, selection}) {
  const curves = panels.filter(panel => panel.curves);
  const rows = curves.map(panel => [
    curves.length > 1 ? panel.name : `mean of ${toldSpan("head", panel.heads, selection.heads)}`,
    told(profileOf(panel, selection)[panel.at.layers.get(layer)])]);
  return {title: `layer ${layer}`, rows, foot: toldSteps(panels[0], selection)};
}

function ofBin(bin, {histogram, panels, selection}) {
  const {edges, bars} = histogram;
  const rows = bars.map(({panel, counts}) => [
    bars.length > 1 ? panel.name : "heads", `${counts[bin]} of ${chosenCells(panel, selection).length}`]);
  return {title: `from ${told(edges[bin], 3)} to ${told(edges[bin + 1], 3)}`, rows, foot: toldSteps(panels[0], selection)};
}

/** What is chosen, in a line: "pinned layer 3, head 4 · layers 2–5"; "" where nothing is. */
export function toldChoice(panel, selection) {
  const parts = [];
  if (selection.pinned) parts.push(`pinned: layer ${selection.pinned[0]}, head ${selection.pinned[1]}`);
  for (const name of ["layer", "head", "step"])
    if (selection[`${name}s`]) parts.push(toldSpan(name, panel[`${name}s`], selection[`${name}s`]));
  if (selection.step !== null) parts.push(`showing step ${selection.step}`);
  return parts.join(" · ");
}
