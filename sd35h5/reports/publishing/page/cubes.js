/** Numbers of a run: a metric as (step, layer, head), mean over all samples or over those that are chosen. */

const SMALLEST_CACHE = 6;
const means = new Map();

/** The cube of a choice: {values, steps, timesteps, sigmas, layers, heads, uniform}, or {why} in a sentence.

set: another run's key where the mean is over the samples that pair with it; samples: which of them, null for all. */
export async function cubeOf(data, choice, run = choice.run, {set = "all", samples = choice.samples} = {}) {
  const metric = run.metrics.find(one => one.name === choice.metric);
  if (!metric) return {why: `${run.name} does not hold this metric.`};
  if (!run.branches[choice.branch]) return {why: `${run.name} has no ${choice.branch} branch.`};
  const targets = run.branches[choice.branch].targets.map(one => one.text);
  const place = metric.of_target ? targets.indexOf(choice.target) : 0;
  if (place < 0) return {why: `${run.name} has no numbers of this token or word in this page.`};
  const wanted = set === "all" || String(run.sets[set]) === String(run.sets.all) ? "all" : set;
  const whole = await data.numbers(`${run.key}/numbers/${choice.branch}/${metric.name}.t${place}.${wanted}.arrow`);
  if (!samples) return whole ? completed(whole) : {why: whyNot(data, wanted === "all" && place ? "targets" : "numbers")};
  if (place) return {why: "Of single samples this page holds numbers for the first token only: choose it, or all samples."};
  const every = await data.numbers(`${run.key}/numbers/${choice.branch}/${metric.name}.t0.all.arrow`);
  const mean = await meanOf(data, run, choice.branch, metric.name, samples);
  return mean ? completed({...every, ...mean}) : {why: whyNot(data, "samples")};
}

async function meanOf(data, run, branch, metric, samples) {
  const key = [run.key, branch, metric, samples].join("|");
  if (!means.has(key)) {
    if (means.size >= SMALLEST_CACHE) means.delete(means.keys().next().value);
    means.set(key, await readMean(data, run, branch, metric, samples));
  }
  return means.get(key);
}

async function readMean(data, run, branch, metric, samples) {
  const pieces = [...new Set(samples.map(sample => Math.floor(sample / data.list.at_once)))];
  let sums = null, counts = null, about = null;
  for (const piece of pieces) {
    const part = await data.numbers(`${run.key}/samples/${branch}/${metric}.${piece}.arrow`);
    if (!part) continue;
    const size = part.values.length / part.shape[0];
    sums ??= new Float64Array(size);
    counts ??= new Float64Array(size);
    about = part;
    part.samples.forEach((sample, place) => {
      if (!samples.includes(sample)) return;
      for (let at = 0; at < size; at++) {
        const value = part.values[place * size + at];
        if (value === value) { sums[at] += value; counts[at] += 1; }
      }
    });
  }
  if (!sums) return null;
  const values = Float32Array.from(sums, (sum, at) => counts[at] ? sum / counts[at] : NaN);
  return {values, shape: about.shape.slice(1), steps: about.steps, count: samples.length};
}

function completed(found) {
  const [, layers, heads] = found.shape, upTo = size => Array.from({length: size}, (_, place) => place);
  return {...found, layers: upTo(layers), heads: upTo(heads), timesteps: found.timestep, sigmas: found.sigma};
}

/** Why something is not there: it was left out of a page of limited size, or never measured. */
export function whyNot(data, kind) {
  const left = data.list.left_out[kind];
  return left ? `Left out of this single file: ${left.what}. The folder that publish makes without --single has them.`
    : "Nothing of this was measured.";
}
