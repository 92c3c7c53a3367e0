/** Files: where the numbers come from, as the captures wrote it, and what each file holds. */

import {whyNot} from "./cubes.js";
import {h, note, panel, table, words} from "./dom.js";

export async function drawFiles(place, page) {
  const {data, choice} = page, {run} = choice;
  place.append(h("h2", {}, words(run.name), ": where its numbers come from"));
  const facts = await data.table(`${run.key}/provenance.arrow`);
  if (!facts) { place.append(note(whyNot(data, "provenance"))); return; }
  const tiers = await data.table(`${run.key}/tiers.arrow`), variables = await data.table(`${run.key}/variables.arrow`);
  const parts = [...new Set(facts.part)];
  place.append(panel("What was captured", table(["tier", "in the file", "what it is"], each(tiers, at =>
    [tiers.tier[at], tiers.held[at] ? "yes" : "–", tiers.what[at]]))));
  for (const part of parts) {
    const rows = each(facts, at => facts.part[at] === part ? [facts.field[at], facts.value[at]] : null).filter(Boolean);
    place.append(h("details", {className: "fold", open: part === "Attributes"}, h("summary", {}, part), table(["field", "value"], rows)));
  }
  place.append(h("details", {className: "fold"}, h("summary", {}, "Variables of the file"), table(
    ["variable", "dimensions", "dtype", "stored, bytes", "unit", "what it is"], each(variables, at => [
      variables.variable[at], variables.dimensions[at], variables.dtype[at], Number(variables.stored[at]),
      variables.units[at], variables.long_name[at]]))));
  place.append(h("p", {className: "caption"}, "Verified before it was published. Folders of the machine that drew it are left out of paths."));
}

const each = (found, make) => Array.from({length: found.rows}, (_, at) => make(at));
