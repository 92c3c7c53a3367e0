/** Overview: the runs as cards, their pictures, what differs between them, and what lies beside the page. */

import {h, note, panel, table, words} from "./dom.js";
import {sampleNames} from "./sidebar.js";

const SHEET = 12; // samples a page

export async function drawOverview(place, page) {
  const {data, list, choice} = page;
  place.append(h("h2", {}, "Runs"), h("div", {className: "cards"}, list.runs.map(run => card(page, run))));
  place.append(...leftOut(list));
  place.append(h("h2", {}, "Pictures"), await sheet(page));
  const differences = choice.others.length ? await data.table("differences.arrow") : null;
  if (differences) {
    const named = ["field", ...differences.about.runs];
    const rows = Array.from({length: differences.rows}, (_, row) => named.map(name => differences[name][row]));
    place.append(h("h2", {}, "What differs between these runs"), table(named, rows));
  }
  if (list.tables.length) place.append(beside(page));
  place.append(h("p", {className: "caption"}, `Made by ${list.made_by}.`));
}

function card(page, run) {
  const {about} = run, pairs = page.list.pairs.filter(one => [one.first, one.second].includes(run.key) && one.pairs);
  return h("article", {className: "card"},
    h("h3", {}, page.link("sinks", words(run.name), {}, {run, samples: null, sample: 0, cell: null, others:
      page.choice.others.filter(name => name !== run.name)})),
    h("p", {}, "model ", words(about.model)),
    h("p", {}, `gates: ${about.gate} · ${about.shape}`),
    about.intervention === "none" ? null : h("p", {}, "intervention: ", words(about.intervention)),
    h("p", {className: "caption"}, `${about.size}, ${run.prompts} prompt${run.prompts === 1 ? "" : "s"}, verified`),
    pairs.length ? h("p", {className: "caption"}, `pairs with ${pairs.length} run${pairs.length === 1 ? "" : "s"}`) : null);
}

/** What a page of limited size does without, in the order in which it was given up. */
export function leftOut(list) {
  const left = Object.values(list.left_out);
  if (!left.length) return [];
  const lines = left.map(one => h("li", {}, one.from > 0 ? `${one.what}: from sample ${one.from} on` : one.what,
    ` (${one.files} part${one.files === 1 ? "" : "s"})`));
  return [note(h("strong", {}, "Left out, so that this fits into one file for a mail: "), h("ul", {}, lines),
    "The folder that publish makes without --single has all of it.")];
}

async function sheet(page) {
  const {data, choice, list} = page, {run} = choice, names = sampleNames(page.samples);
  const runs = [run, ...choice.others.map(name => list.runs.find(one => one.name === name))];
  const every = choice.samples ?? names.map((_, sample) => sample);
  const partners = new Map(await Promise.all(runs.slice(1).map(async other => [other, await partnersOf(page, other)])));
  const box = h("div", {});
  let shown = 0;
  const more = h("button", {type: "button", onclick: () => draw()}, "More pictures");
  function draw() {
    for (const sample of every.slice(shown, shown + SHEET)) {
      const name = h("div", {className: "name"}, words(names[sample]));
      const pictures = runs.map(one => picture(one, one === run ? sample : partners.get(one).get(sample)));
      box.append(h("div", {className: runs.length > 1 ? "row" : "tile"}, runs.length > 1 ? name : null, pictures,
        runs.length > 1 ? null : name));
    }
    shown += SHEET;
    more.hidden = shown >= every.length;
  }
  function picture(one, sample) {
    const url = sample === undefined ? null : one.pictured && data.picture(`${one.key}/thumbs/${number(sample)}.webp`);
    const told = sample === undefined ? "no paired sample" : one.pictured ? "left out" : "no picture kept";
    return h("figure", {className: "thumb"},
      url ? h("img", {src: url, alt: one === run ? names[sample] : one.name, loading: "lazy", decoding: "async"})
        : h("div", {className: "empty"}, told),
      runs.length > 1 ? h("figcaption", {}, words(one.name)) : null);
  }
  draw();
  box.className = runs.length > 1 ? "rows" : "tiles";
  return h("div", {}, box, more);
}

export const number = sample => String(sample).padStart(6, "0");

/** Which sample of another run pairs with each of the chosen run's. */
export async function partnersOf(page, other, run = page.choice.run) {
  const pair = page.list.pairs.find(one => [one.first, one.second].every(key => [run.key, other.key].includes(key)));
  const found = pair && await page.data.table(`pairs/${pair.first}-${pair.second}.arrow`);
  if (!found) return new Map();
  const [own, theirs] = pair.first === run.key ? [found.reference_sample, found.other_sample]
    : [found.other_sample, found.reference_sample];
  return new Map(Array.from(own, (sample, at) => [sample, theirs[at]]));
}

function beside({list, root}) {
  const code = "import pandas as pd\n\ntable = pd.read_parquet(\"first_token.parquet\")\n"
    + "table.groupby([\"run\", \"layer\", \"head\"])[\"first_token_mean\"].mean()\n\n"
    + "# or in DuckDB\n# SELECT run, layer, head, avg(first_token_mean) FROM 'first_token.parquet' GROUP BY ALL";
  const files = list.tables.map(name => h("li", {}, h("a", {href: (root ?? "") + name, download: name}, name)));
  return panel("The numbers as tables", h("div", {}, h("ul", {className: "files"}, files), h("pre", {}, code)),
    "Parquet files beside this page, for pandas, DuckDB and whatever else reads them.");
}
