/** Compare: a run and others, paired: their heatmaps on one scale with one hand, what changed and how sure that is. */

import {answer} from "./answers.js";
import {toldAbout} from "./choosing.js";
import {told} from "./linked_view.js";
import {cubeOf, whyNot} from "./cubes.js";
import {h, note, panel, table, words} from "./dom.js";
import {linkedFigure} from "./linked.js";
import {number, partnersOf} from "./overview_page.js";

const MOST = 50; // samples without a partner that are listed
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3]];

export async function drawCompare(place, page, closing) {
  const {choice, list} = page, metric = choice.run.metrics.find(one => one.name === choice.metric);
  place.append(h("h2", {}, `Compare: ${metric.title}`), h("p", {className: "caption"}, toldAbout(choice)));
  const others = choice.others.map(name => list.runs.find(one => one.name === name));
  if (!others.length) {
    place.append(note(list.runs.length > 1 ? "Choose at least one run under “Compare with”."
      : "This page holds one run: publish several to compare them."));
    return;
  }
  const found = await Promise.all(others.map(other => pairOf(page, other)));
  place.append(...found.map(one => sentence(page, one)));
  const shown = found.filter(one => !one.why);
  for (const group of together(shown, choice)) place.append(linkedFigure(page, panelsOf(page, group), {
    title: metric.title, label: metric.label, scales: {
      values: {colors: list.colors.cells, label: metric.label},
      changes: {colors: list.colors.changes, symmetric: true, label: `difference: ${metric.title}`},
    },
  }, closing));
  if (shown.length) place.append(h("p", {className: "caption"}, marksMean(shown)));
  place.append(await pictures(page, others));
  for (const one of found) place.append(await unpaired(page, one));
}

/** Both runs' cubes over the samples that pair, and what is said of the change; {why} where there is none. */
async function pairOf(page, other) {
  const {choice, data, list} = page, {run} = choice;
  const pair = list.pairs.find(one => [one.first, one.second].every(key => [run.key, other.key].includes(key)));
  if (!pair.pairs) return {other, pair, why: `No sample of ${other.name} pairs with one of ${run.name}: the list below says why.`};
  const partners = await partnersOf(page, other);
  const own = choice.samples ? choice.samples.filter(sample => partners.has(sample)) : null;
  if (own && !own.length) return {other, pair, why: `No chosen sample of ${run.name} pairs with one of ${other.name}.`};
  const theirs = own && own.map(sample => partners.get(sample));
  const [before, after] = [
    await cubeOf(data, choice, run, {set: other.key, samples: own}),
    await cubeOf(data, choice, other, {set: run.key, samples: theirs})];
  const why = before.why ?? after.why ?? (String(before.shape) === String(after.shape) ? null
    : `${other.name} measured this with other layers, heads or steps: they do not compare.`);
  const change = choice.samples || choice.target !== "token:0" && metricIsOfTarget(choice) ? null
    : await data.table(`pairs/${pair.first}-${pair.second}/${choice.branch}/${choice.metric}.arrow`);
  return {other, pair, before, after, why, change, forward: pair.first === run.key, own};
}

const metricIsOfTarget = ({run, metric}) => run.metrics.find(one => one.name === metric).of_target;

/** Runs whose pairs are of the same samples of this run share one figure, with one panel of it. */
function together(found, {run}) {
  const groups = new Map();
  for (const one of found) {
    const key = String(one.own ?? run.sets[one.other.key]);
    groups.set(key, [...groups.get(key) ?? [], one]);
  }
  return [...groups.values()];
}

function panelsOf(page, group) {
  const {choice, list} = page, color = name => list.colors.runs[list.runs.findIndex(one => one.name === name) % list.colors.runs.length];
  const runs = [{name: choice.run.name, cube: group[0].before}, ...group.map(one => ({name: one.other.name, cube: one.after}))];
  const values = runs.map((one, place) => ({...one, color: color(one.name), dash: DASHES[place % DASHES.length]}));
  const changes = group.map(one => ({
    name: `${one.other.name} − ${choice.run.name}`, scale: "changes", curves: false, marks: marksOf(one),
    cube: {...one.after, uniform: null, values: one.after.values.map((value, at) => value - one.before.values[at])},
  }));
  return [...values, ...changes];
}

function marksOf({change}) {
  if (!change) return [];
  return Array.from({length: change.rows}, (_, at) => at).filter(at => change.q[at] <= change.about.significant).map(at => ({
    layer: change.layer[at], head: change.head[at], sign: "•", means: `q = ${told(change.q[at], 2)}`}));
}

function sentence(page, one) {
  if (one.why) return note(one.why);
  if (!one.change) return h("p", {className: "answer"}, words(page.choice.run.name), " and ", words(one.other.name),
    `: ${one.own ? one.own.length : one.pair.pairs} pairs. Intervals are kept for all samples and the first token.`);
  return answer(page, one.forward ? one.change.about.said : one.change.about.said_back);
}

function marksMean(shown) {
  const told = shown.map(one => one.change?.about).filter(Boolean);
  if (!told.length) return "";
  const few = told.filter(one => one.prompts < one.enough);
  if (few.length) return `No cells are marked: ${few[0].prompts} prompt${few[0].prompts === 1 ? "" : "s"} cannot tell a change `
    + `from chance, ${few[0].enough} can.`;
  return `A dot marks a difference, mean over steps, that survives correction for all cells: sign flips over `
    + `${told[0].prompts} prompts, Benjamini–Hochberg, q ≤ ${told[0].significant}.`;
}

async function pictures(page, others) {
  const {choice, data} = page;
  const partners = await Promise.all(others.map(other => partnersOf(page, other)));
  const shown = [[choice.run, choice.sample], ...others.map((other, at) => [other, partners[at].get(choice.sample)])];
  const prompt = (await page.prompts()).prompt[choice.sample];
  const figures = shown.map(([run, sample]) => {
    const url = sample === undefined || !run.pictured ? null : data.picture(`${run.key}/pictures/${number(sample)}.webp`);
    return h("figure", {className: "thumb"}, url ? h("img", {src: url, alt: run.name, loading: "lazy"})
      : h("div", {className: "empty"}, sample === undefined ? "no paired sample" : "no picture"), h("figcaption", {}, words(run.name)));
  });
  return panel("Pictures", h("div", {}, h("blockquote", {}, words(prompt)), h("div", {className: "pictures"}, figures)));
}

async function unpaired(page, {other, pair}) {
  if (!pair.unpaired) return h("p", {className: "caption"}, `Every sample of these runs has its partner: ${page.choice.run.name}, ${other.name}.`);
  const found = await page.data.table(`pairs/${pair.first}-${pair.second}.unpaired.arrow`);
  if (!found) return note(whyNot(page.data, "pairs"));
  const names = ["run", "sample", "prompt", "field", "value", "nearest"];
  const rows = Array.from({length: Math.min(MOST, found.rows)}, (_, at) => names.map(name => found[name][at]));
  const heads = ["run", "sample", "prompt", "field that differs", "its value", "in the other run"];
  return panel(`Not paired, hence not in any number above: ${found.rows}`, table(heads, rows),
    found.rows > MOST ? `the first ${MOST} of ${found.rows}` : "");
}
