/** What is chosen on all pages, from the URL and by hand: run, samples, branch, target, metric, ranges, cell. */

import {cellOf, position, severalOf, spanOf, spanText} from "./address.js";

export const MANY = 12; // samples from which on they are searched

/** The choice that the URL asks for, what of it this page has not, and the rest of what it says, for the pages. */
export function choiceOf(list, said) {
  const refused = [], left = {...said};
  const take = (name, reader, usual) => {
    const text = left[name];
    delete left[name];
    if (text === undefined) return usual;
    const value = reader(text);
    if (value === null || value === undefined) refused.push(list.parameters[name]);
    return value ?? usual;
  };
  const names = list.runs.map(run => run.name);
  const name = take("run", text => names.includes(text) ? text : null, list.first);
  const run = list.runs.find(one => one.name === name);
  const rest = names.filter(one => one !== name);
  const others = take("others", text => severalOf(text, rest, "\n", list.none), usualOthers(list, run));
  const every = Array.from({length: run.samples}, (_, place) => String(place));
  const samples = take("samples", text => severalOf(text, every, ",", list.none)?.map(Number), null);
  const chosen = samples && samples.length && samples.length < run.samples ? samples : null;
  const sample = take("sample", text => {
    const place = position(text);
    return place !== null && (chosen ? chosen.includes(place) : place < run.samples) ? place : null;
  }, chosen ? chosen[0] : 0);
  const branches = Object.keys(run.branches);
  const branch = take("branch", text => branches.includes(text) ? text : null, branches[0]);
  const known = run.branches[branch].targets.map(one => one.text);
  const target = take("target", text => known.includes(text) ? text : null, known[0]);
  const metrics = metricsOf(run, target).map(one => one.name);
  const metric = take("metric", text => metrics.includes(text) ? text : null, metrics[0]);
  const {layer, head, step} = run.sizes;
  const heads = run.metrics.find(one => one.name === metric).heads ?? head;
  return {
    choice: {
      run, others, samples: chosen, sample, branch, target, metric,
      layers: take("layers", text => spanOf(text, layer), null), heads: take("heads", text => spanOf(text, heads), null),
      steps: take("steps", text => spanOf(text, step), null),
      cell: take("cell", text => cellOf(text, layer, heads), null),
      tags: take("tags", text => text.split("\n"), []), find: take("find", text => text, ""),
    },
    refused, left,
  };
}

/** The metrics that can be told of a target. */
export function metricsOf(run, target) {
  return run.metrics.filter(one => one.image_too || target !== "group:image");
}

/** The runs that tell something beside this one, those with most pairs first, at most three: what a fresh page shows. */
export function usualOthers(list, run) {
  const beside = list.pairs.filter(one => one.tells && [one.first, one.second].includes(run.key));
  return beside.sort((one, other) => other.pairs - one.pairs).slice(0, 3).map(({first, second}) =>
    list.runs.find(one => one.key === (first === run.key ? second : first)).name);
}

/** What the URL says of a choice, "" for what is the default. */
export function toldChoice(list, choice) {
  const {run} = choice, usual = usualOthers(list, run), span = value => value ? spanText(value) : "";
  const same = String(usual) === String(choice.others);
  return {
    run: run.name === list.first ? "" : run.name,
    others: same ? "" : choice.others.length ? choice.others : list.none,
    tags: choice.tags, find: choice.find,
    samples: choice.samples ? choice.samples.join(",") : "",
    sample: choice.sample === (choice.samples ? choice.samples[0] : 0) ? "" : String(choice.sample),
    branch: choice.branch === Object.keys(run.branches)[0] ? "" : choice.branch,
    target: choice.target === "token:0" ? "" : choice.target,
    metric: choice.metric === "first_token_mean" ? "" : choice.metric,
    layers: span(choice.layers), heads: span(choice.heads), steps: span(choice.steps),
    cell: choice.cell ? choice.cell.join(".") : "",
  };
}

/** In a line, what the numbers are means over. */
export function toldAbout(choice, one = false) {
  const {run, samples} = choice, metric = run.metrics.find(each => each.name === choice.metric);
  const span = (name, value, size) => {
    const [low, high] = value ?? [0, size - 1];
    return low === high ? `${name} ${low}` : `${name}s ${low}–${high}`;
  };
  const target = run.branches[choice.branch].targets.find(each => each.text === choice.target);
  const count = samples ? samples.length : run.samples;
  return [
    metric.of_target ? target.name : "", choice.branch,
    one ? `sample ${choice.sample}` : `mean of ${count} sample${count === 1 ? "" : "s"}`,
    span("layer", choice.layers, run.sizes.layer), span("head", choice.heads, run.sizes.head),
    span("step", choice.steps, run.sizes.step),
  ].filter(Boolean).join(" · ");
}
