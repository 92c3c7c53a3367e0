/** The choices that all pages share. */

import {choice as select, h, segments, words} from "./dom.js";
import {MANY, metricsOf} from "./choosing.js";

/** Draw them. choose(changes) is told what a hand changed; table: the run's samples; prompts() reads their texts. */
export function drawSidebar(place, list, chosen, table, prompts, choose) {
  const {run} = chosen, targets = run.branches[chosen.branch].targets;
  const target = targets.find(one => one.text === chosen.target);
  const open = new Set([...place.querySelectorAll("details[open]")].map(one => one.dataset.name));
  const names = sampleNames(table);
  place.replaceChildren(h("details", {className: "choices", open: open.has("choices") || wide(), "data-name": "choices"},
    h("summary", {}, "What is shown"),
    list.runs.length > 1 ? select("Run", list.runs.map(one => ({value: one.name, name: one.name})), run.name,
      name => choose({run: list.runs.find(one => one.name === name)})) : null,
    list.runs.length > 1 ? others(list, chosen, choose, open) : null,
    run.samples >= MANY ? search(chosen, table, prompts, choose) : null,
    samples(chosen, names, choose, open),
    select("Shown sample", (chosen.samples ?? [...names.keys()]).map(one => ({value: one, name: names[one]})),
      chosen.sample, sample => choose({sample})),
    Object.keys(run.branches).length > 1 ? segments("Branch",
      Object.keys(run.branches).map(name => ({value: name, name})), chosen.branch, branch => choose({branch})) : null,
    select("Token or group", targets.map(one => ({value: one.text, name: one.name})), target.text,
      text => choose({target: text})),
    select("Metric", metricsOf(run, chosen.target).map(one => ({value: one.name, name: one.title})), chosen.metric,
      metric => choose({metric})),
    range("Layers", run.sizes.layer, chosen.layers, layers => choose({layers})),
    range("Heads", headsOf(chosen), chosen.heads, heads => choose({heads})),
    range("Steps", run.sizes.step, chosen.steps, steps => choose({steps})),
    chosen.layers || chosen.heads || chosen.steps
      ? h("button", {type: "button", onclick: () => choose({layers: null, heads: null, steps: null})},
        "× All layers, heads, steps") : null,
    chosen.cell ? h("button", {type: "button", className: "chip", onclick: () => choose({cell: null}),
      title: "the pinned cell filters the charts: press to see all layers and heads again"},
    `× layer ${chosen.cell[0]}, head ${chosen.cell[1]}`) : null));
}

const wide = () => matchMedia("(min-width: 900px)").matches;

export const headsOf = chosen => chosen.run.metrics.find(one => one.name === chosen.metric).heads;

/** A name of each sample: its number and its prompt, from where it differs from the others. */
export function sampleNames(table) {
  return Array.from(table.name, (name, place) => `${place} · ${name}`);
}

function others(list, chosen, choose, open) {
  const rest = list.runs.filter(one => one !== chosen.run);
  const boxes = rest.map(one => {
    const box = h("input", {type: "checkbox", checked: chosen.others.includes(one.name), onchange: () => choose({
      others: rest.map(each => each.name).filter(name => name === one.name ? box.checked : chosen.others.includes(name)),
    })});
    return h("label", {className: "toggle"}, box, words(one.name));
  });
  return fold("with", `Compare with: ${chosen.others.length || "no"} run${chosen.others.length === 1 ? "" : "s"}`, boxes, open);
}

function samples(chosen, names, choose, open) {
  const {run} = chosen;
  if (run.samples === 1) return null;
  const count = chosen.samples ? `${chosen.samples.length} of ${run.samples}` : `all ${run.samples}`;
  const boxes = names.map((name, sample) => {
    const box = h("input", {type: "checkbox", checked: chosen.samples?.includes(sample) ?? false, onchange: () => {
      const before = chosen.samples ?? [];
      const now = box.checked ? [...before, sample].sort((one, other) => one - other) : before.filter(one => one !== sample);
      choose({samples: now.length && now.length < run.samples ? now : null});
    }});
    return h("label", {className: "toggle"}, box, words(name));
  });
  const all = h("button", {type: "button", onclick: () => choose({samples: null})}, "× all samples");
  return fold("samples", `Samples: mean of ${count}`, [chosen.samples ? all : null, h("div", {className: "list"}, boxes)], open);
}

function fold(name, title, content, open) {
  return h("details", {className: "fold", "data-name": name, open: open.has(name)}, h("summary", {}, title), content);
}

/** Find samples by a tag and by a text of their prompts: what is found is what numbers are means over. */
function search(chosen, table, prompts, choose) {
  const tags = tagsOf(table);
  const find = async changes => {
    const wanted = {tags: chosen.tags, find: chosen.find, ...changes};
    const found = matching(table, (await prompts()).prompt, wanted);
    choose({...wanted, samples: found.length && found.length < table.rows ? found : null});
  };
  const box = h("input", {type: "search", value: chosen.find, placeholder: "a word or phrase", maxLength: 200,
    onchange: () => find({find: box.value})});
  const options = [{value: "", name: "any"}, ...[...tags].map(([tag, count]) => ({value: tag, name: `${tag} (${count})`}))];
  return [
    tags.size ? select("Tag", options, chosen.tags[0] ?? "", tag => find({tags: tag ? [tag] : []})) : null,
    h("label", {className: "field"}, h("span", {}, "Find in prompts"), box),
  ];
}

function tagsOf(table) {
  const counts = new Map();
  for (const tags of table.tags) for (const tag of tags.split(",").filter(Boolean)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  return new Map([...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1)));
}

/** The samples that have all tags, and the text, in any case, in their prompt or its name. */
export function matching(table, prompts, {tags, find}) {
  const flat = text => text.split(/\s+/).filter(Boolean).join(" ").toLowerCase(), needle = flat(find), found = [];
  for (let sample = 0; sample < table.rows; sample++) {
    const told = flat(`${prompts[sample]} ${table.prompt_id[sample]}`), own = table.tags[sample].split(",");
    if (told.includes(needle) && tags.every(tag => own.includes(tag))) found.push(sample);
  }
  return found;
}

function range(label, size, value, onchoose) {
  if (size === 1) return null;
  const [low, high] = value ?? [0, size - 1];
  const boxes = [low, high].map((at, place) => h("input", {type: "number", min: 0, max: size - 1, value: at,
    "aria-label": `${label}, ${place ? "last" : "first"}`, onchange: () => {
      const [first, last] = boxes.map(box => Math.max(0, Math.min(size - 1, Math.round(Number(box.value) || 0))));
      const span = first <= last ? [first, last] : [last, first];
      onchoose(span[0] === 0 && span[1] === size - 1 ? null : span);
    }}));
  return h("div", {className: "field range"}, h("span", {}, label), boxes[0], h("span", {}, "to"), boxes[1]);
}
