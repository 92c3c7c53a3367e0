/** Small charts that are not part of the linked figure: bars, stacked bars of groups, a colour bar. */

import {told} from "./linked_view.js";
import {h, svg, words} from "./dom.js";

/** Bars of rows [{name, value, color, tip}], the longest the widest; a dashed line at `rule`. */
export function bars(rows, {log = false, rule = null, unit = ""} = {}) {
  const values = rows.map(row => row.value).filter(Number.isFinite).filter(value => !log || value > 0);
  const high = Math.max(...values, rule ?? 0, 1e-300), low = log ? Math.min(...values, rule ?? Infinity) / 1.5 : 0;
  const part = value => {
    if (!Number.isFinite(value) || (log && value <= 0)) return 0;
    const share = log ? Math.log(value / low) / Math.log(high / low) : value / high;
    return Math.max(0, Math.min(1, share));
  };
  return h("div", {className: "bars", role: "list"}, rows.map(row => {
    const bar = h("i", {className: "bar", style: {width: `${part(row.value) * 100}%`, background: row.color}});
    const line = rule === null ? null : h("i", {className: "rule", style: {left: `${part(rule) * 100}%`}});
    return h("div", {className: "barrow", role: "listitem", title: row.tip ?? ""},
      h("span", {className: "barname"}, words(row.name)), h("span", {className: "track"}, bar, line),
      h("span", {className: "barvalue"}, told(row.value) + unit));
  }));
}

/** Stacked bars, one a layer, whose parts sum to 1. parts: [{name, color, values: one a layer}]; marked: a layer. */
export function stacked(parts, layers, marked) {
  const [width, height, left, bottom] = [560, 300, 40, 34], step = (width - left) / layers;
  const shapes = [];
  const sums = new Float64Array(layers);
  for (const part of parts)
    part.values.forEach((value, layer) => {
      if (!Number.isFinite(value)) return;
      const tall = value * (height - bottom);
      shapes.push(svg("rect", {
        x: left + layer * step + step * 0.06, width: step * 0.88, height: Math.max(0, tall),
        y: (1 - sums[layer]) * (height - bottom) - tall, fill: part.color,
        class: marked === null || marked === layer ? "" : "pale",
      }, svg("title", {}, `layer ${layer} · ${part.name} · ${told(value)}`)));
      sums[layer] += value;
    });
  const every = layers <= 12 ? 1 : layers <= 24 ? 2 : 5;
  const names = Array.from({length: layers}, (_, layer) => layer).filter(layer => layer % every === 0).map(layer =>
    svg("text", {x: left + (layer + 0.5) * step, y: height - bottom + 15, "text-anchor": "middle"}, String(layer)));
  const sides = [0, 0.5, 1].map(share => svg("text", {
    x: left - 6, y: (1 - share) * (height - bottom) + (share === 1 ? 10 : share === 0 ? 0 : 4), "text-anchor": "end"}, String(share)));
  const title = svg("text", {x: left + (width - left) / 2, y: height - 4, "text-anchor": "middle"}, "layer");
  return svg("svg", {viewBox: `0 0 ${width} ${height}`, class: "stacked", role: "img",
    "aria-label": "where the attention goes, by layer"}, shapes, names, sides, title);
}

/** Colours with what they stand for. */
export function legend(named) {
  return h("div", {className: "legend"}, named.map(({name, color}) =>
    h("span", {}, h("i", {style: {background: color}}), words(name))));
}

/** A colour of a ramp [[red, green, blue], …] at a share of 0..1. */
export function shadeOf(ramp, share) {
  const at = Math.max(0, Math.min(1, share)) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
  return ramp[low].map((one, place) => one + (ramp[low + 1][place] - one) * (at - low));
}

/** A bar of a ramp from low to high, both ends written under it. */
export function colorBar(ramp, low, high) {
  const stops = ramp.map(color => `rgb(${color.join(" ")})`).join(", ");
  return h("div", {className: "colorbar"}, h("i", {style: {background: `linear-gradient(to right, ${stops})`}}),
    h("span", {}, told(low, 3)), h("span", {}, told(high, 3)));
}
