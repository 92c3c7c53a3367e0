/** Numbers of a cube of step × layer × head: means over a part of it, counts of heads, and how numbers are told.

A cube is a Float32Array, step-major: the value of (step, layer, head), by place, lies at
(step * layers + layer) * heads + head. NaN is what was not measured; means leave it out, as
sd35h5.metrics.averaging does, and sum in float64. */

export const BINS = 24;

/** Places from `first` to `last`, both included, of a sorted list of true indices; all of them for null. */
export function places(indices, span) {
  const inside = [];
  indices.forEach((index, place) => {
    if (!span || (index >= span[0] && index <= span[1])) inside.push(place);
  });
  return inside;
}

/** Mean over these steps of each cell: Float64Array (layer × head). */
export function cellMeans(cube, shape, steps) {
  const size = shape.layers * shape.heads;
  const sums = new Float64Array(size), counts = new Float64Array(size);
  for (const step of steps) {
    const begin = step * size;
    for (let cell = 0; cell < size; cell++) {
      const value = cube[begin + cell];
      if (value === value) { sums[cell] += value; counts[cell] += 1; }
    }
  }
  for (let cell = 0; cell < size; cell++) sums[cell] = counts[cell] ? sums[cell] / counts[cell] : NaN;
  return sums;
}

/** Mean over these layers and heads at each step: Float64Array (step). */
export function stepMeans(cube, shape, layers, heads) {
  const means = new Float64Array(shape.steps);
  for (let step = 0; step < shape.steps; step++) means[step] = boxMean(cube, shape, [step], layers, heads);
  return means;
}

/** Mean over these steps and heads of each layer: Float64Array (layer). */
export function layerMeans(cube, shape, steps, heads) {
  const means = new Float64Array(shape.layers);
  for (let layer = 0; layer < shape.layers; layer++) means[layer] = boxMean(cube, shape, steps, [layer], heads);
  return means;
}

function boxMean(cube, shape, steps, layers, heads) {
  let sum = 0, count = 0;
  for (const step of steps)
    for (const layer of layers) {
      const row = (step * shape.layers + layer) * shape.heads;
      for (const head of heads) {
        const value = cube[row + head];
        if (value === value) { sum += value; count += 1; }
      }
    }
  return count ? sum / count : NaN;
}

/** Smallest and largest finite number of several lists: [Infinity, -Infinity] where there is none. */
export function extent(...lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists)
    for (const value of list)
      if (Number.isFinite(value)) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
  return [low, high];
}

/** From 0 where nothing is below it, else from the smallest; widened where it is a single number. */
export function magnitude([low, high]) {
  if (low > high) return [0, 1];
  if (low >= 0 && high > 0) return [0, high];
  return low < high ? [low, high] : [low - Math.abs(low) * 0.01 - 1e-9, high + Math.abs(high) * 0.01 + 1e-9];
}

/** Edges of BINS intervals over all finite numbers: evenly in the logarithm (numbers above 0 only), or from `domain`. */
export function binEdges(lists, log, domain) {
  const kept = log ? lists.map(list => list.filter(value => value > 0)) : lists;
  let [low, high] = domain || extent(...kept);
  if (low > high) return [];
  if (log) { low *= 0.98; high *= 1.02; }
  else [low, high] = low < high ? [low, high] : magnitude([low, high]);
  const at = part => (log ? low * (high / low) ** part : low + (high - low) * part);
  return Array.from({length: BINS + 1}, (_, bin) => at(bin / BINS));
}

/** The interval that holds a number, -1 for none; the last one holds its end. */
export function binOf(edges, value) {
  if (!(value >= edges[0] && value <= edges[edges.length - 1])) return -1;
  let low = 0, high = edges.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (value >= edges[middle]) low = middle; else high = middle;
  }
  return low;
}

/** How many of these cells have a number in each interval. */
export function binCounts(edges, cells, chosen) {
  const counts = new Array(Math.max(0, edges.length - 1)).fill(0);
  for (const cell of chosen) {
    const bin = binOf(edges, cells[cell]);
    if (bin >= 0) counts[bin] += 1;
  }
  return counts;
}

/** A number to so many digits, without zeros at its end: 0.0761, 7.2e-5, −0.25. */
export function told(value, digits = 4) {
  if (!Number.isFinite(value)) return "not measured";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text = String(Number(size.toPrecision(digits)));
  if (size < 1e-3 || size >= 1e6) {
    const [mantissa, exponent] = size.toExponential(digits - 1).split("e");
    text = `${Number(mantissa)}e${Number(exponent)}`;
  }
  return value < 0 ? `−${text}` : text;
}

/** Round numbers between both ends, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const every = [1, 2, 5, 10].find(each => each * power >= rough * 0.999) * power;
  const found = [];
  for (let at = Math.ceil(low / every - 1e-9); at * every <= high + every * 1e-9; at++) found.push(at * every);
  return found.map(value => Number(value.toPrecision(12)));
}

/** "3", "3–7" or "all": what a span of true indices holds of them. */
export function toldSpan(name, indices, span) {
  const inside = places(indices, span).map(place => indices[place]);
  if (!inside.length) return `no ${name}`;
  const [first, last] = [inside[0], inside[inside.length - 1]];
  return first === last ? `${name} ${first}` : `${name}s ${first}–${last}`;
}
