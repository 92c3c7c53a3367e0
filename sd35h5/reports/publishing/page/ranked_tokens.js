/** The tokens of a sample, the heaviest first, as bars. */

import {bars} from "./charts.js";
import {choice as select, h, toggle} from "./dom.js";
import {withPadsAveraged} from "./token_numbers.js";

const COUNTS = [12, 24, 48, 96];
const KINDS = {
  "padding averaged": withPadsAveraged,
  "every token": rows => rows,
  "words only": rows => rows.filter(row => ["clip_word", "t5_word"].includes(row.group)),
};

/** Draw them with the choices of the page that are about them; `kinds`: which tokens, and on which scale, too. */
export function rankedTokens(page, rows, kinds = false) {
  const {own} = page, asked = COUNTS.find(count => `top ${count}` === own.top) ?? 24;
  const kind = kinds && own.tokens in KINDS ? own.tokens : "padding averaged", log = kinds && own.log === "1";
  const ranked = KINDS[kind](rows).filter(row => Number.isFinite(row.mass)).sort((one, other) => other.mass - one.mass);
  const named = ranked.slice(0, asked).map(row => ({
    name: `${row.text} · ${row.encoder} ${row.token}`, value: row.mass, color: page.list.colors.groups[row.group],
    tip: `${row.group}, ${row.mass}`}));
  const {keys} = page.choice.run;
  return h("div", {}, h("div", {className: "controls"},
    kinds ? select("Tokens", Object.keys(KINDS).map(name => ({value: name, name})), kind,
      name => page.set({tokens: name === "padding averaged" ? "" : name})) : null,
    select("How many", COUNTS.map(one => ({value: one, name: `top ${one}`})), asked,
      one => page.set({top: one === 24 ? "" : `top ${one}`})),
    kinds ? toggle("Log scale", log, on => page.set({log: on ? "1" : ""})) : null),
  bars(named, {log, rule: keys ? 1 / keys : null}));
}
