/** The tokens of a sample with their mass: at the pinned cell, in the chosen layers and heads, or at the chosen steps. */

import {whyNot} from "./cubes.js";
import {number} from "./overview_page.js";

/** {rows: [{token, encoder, group, text, word, mass}], where: what the masses are means over, unseen}; {why} if none. */
export async function tokensOf(page) {
  const {data, choice} = page, {run, branch, sample} = choice;
  const stem = `${run.key}/tokens/${branch}/${number(sample)}`, table = await data.table(`${stem}.arrow`);
  if (!table) return {why: whyNot(data, "tokens")};
  const {masses, where} = await massesOf(page, stem, table);
  const rows = Array.from({length: table.rows}, (_, at) => ({
    token: table.token[at], encoder: table.encoder[at], group: table.group[at], text: table.text[at],
    word: table.word[at], mass: masses[at],
  }));
  if (!masses.some(Number.isFinite)) return {
    rows, where, unseen: table.about.unseen,
    why: "No masses of single tokens were captured on this branch: they are of the cond branch only, unless captured with "
      + "--branches cond uncond."};
  return {rows, where, unseen: table.about.unseen};
}

async function massesOf(page, stem, table) {
  const {choice, data} = page, {cell, layers, heads, steps} = choice;
  if (cell || layers || heads) {
    const found = await data.numbers(`${stem}.heads.arrow`);
    if (found) {
      const all = steps ? ", all steps" : "";
      const where = cell ? `layer ${cell[0]}, head ${cell[1]}${all}` : `the chosen layers and heads${all}`;
      return {masses: meanAt(found, cell ? [cell[0], cell[0]] : layers, cell ? [cell[1], cell[1]] : heads), where};
    }
  } else if (steps) {
    const found = await data.numbers(`${stem}.steps.arrow`);
    if (found) return {masses: meanOver(found, steps), where: "the chosen steps"};
  }
  const left = cell || layers || heads || steps ? ` (${whyNot(data, "cells")})` : "";
  return {masses: table.mass, where: `all layers, heads and steps${left}`};
}

function meanAt({values, shape}, layers, heads) {
  const [allLayers, allHeads, tokens] = shape, sums = new Float64Array(tokens), counts = new Float64Array(tokens);
  const [[first, last], [low, high]] = [layers ?? [0, allLayers - 1], heads ?? [0, allHeads - 1]];
  for (let layer = first; layer <= Math.min(last, allLayers - 1); layer++)
    for (let head = low; head <= Math.min(high, allHeads - 1); head++)
      add(sums, counts, values, (layer * allHeads + head) * tokens);
  return sums.map((sum, at) => counts[at] ? sum / counts[at] : NaN);
}

function meanOver({values, shape}, [first, last]) {
  const tokens = shape[1], sums = new Float64Array(tokens), counts = new Float64Array(tokens);
  for (let step = first; step <= last; step++) add(sums, counts, values, step * tokens);
  return sums.map((sum, at) => counts[at] ? sum / counts[at] : NaN);
}

function add(sums, counts, values, from) {
  for (let at = 0; at < sums.length; at++) {
    const value = values[from + at];
    if (value === value) { sums[at] += value; counts[at] += 1; }
  }
}

const PADS = ["clip_pad", "t5_pad", "t5_absent"];

/** One row for all padding of an encoder, with the mean of its masses. */
export function withPadsAveraged(rows) {
  const pads = new Map();
  for (const row of rows.filter(one => PADS.includes(one.group))) pads.set(row.group, [...pads.get(row.group) ?? [], row]);
  const folded = [...pads.values()].map(own => ({
    ...own[0], text: `<mean of ${own.length} pads>`, mass: mean(own.map(one => one.mass)), count: own.length}));
  return [...rows.filter(one => !PADS.includes(one.group)), ...folded];
}

/** Tokens in their order, each run of padding as one. */
export function chipsOf(rows) {
  const chips = [];
  for (const row of rows) {
    const last = chips.at(-1), same = last && last.encoder === row.encoder && last.group === row.group;
    if (same && PADS.includes(row.group)) last.all.push(row.mass);
    else chips.push({...row, all: [row.mass]});
  }
  return chips.map(one => ({...one, mass: mean(one.all), total: sum(one.all), count: one.all.length,
    text: one.all.length > 1 ? `${one.all.length} × <pad>` : one.text}));
}

/** The words of a prompt, each once an encoder, with all its tokens; what is no word as it is. */
export function wordChipsOf(rows) {
  const found = new Map(), rest = chipsOf(rows.filter(one => !one.word));
  for (const row of rows.filter(one => one.word)) {
    const key = `${row.encoder}|${row.word}`;
    if (!found.has(key)) found.set(key, {...row, text: row.word, all: []});
    found.get(key).all.push(row.mass);
  }
  const named = [...found.values()].map(one => ({...one, mass: mean(one.all), total: sum(one.all), count: one.all.length}));
  return [...rest, ...named].sort((one, other) => one.token - other.token);
}

/** Groups with their tokens, the sum of their masses and the mean of one. */
export function groupsOf(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.group, [...found.get(row.group) ?? [], row.mass]);
  return [...found].map(([group, all]) => ({group, tokens: all.length, mass: sum(all), each: mean(all)}))
    .sort((one, other) => other.mass - one.mass);
}

const there = all => all.filter(one => one === one);
const sum = all => there(all).length ? there(all).reduce((one, other) => one + other, 0) : NaN;
const mean = all => there(all).length ? sum(all) / there(all).length : NaN;
