/** Tokens: the prompt as its real tokens, coloured by mass; a click makes a token the token of all pages. */

import {bars, legend, shadeOf} from "./charts.js";
import {toldAbout} from "./choosing.js";
import {told} from "./linked_view.js";
import {h, note, panel, toggle, words} from "./dom.js";
import {rankedTokens} from "./ranked_tokens.js";
import {chipsOf, groupsOf, tokensOf, wordChipsOf} from "./token_numbers.js";

const MANY = 200;
const PALE = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];

export async function drawTokens(place, page) {
  const {choice, list, own} = page, found = await tokensOf(page);
  const prompts = await page.prompts();
  const text = prompts[choice.branch === "uncond" ? "negative_prompt" : "prompt"][choice.sample];
  place.append(h("h2", {}, "Tokens: how much attention each gets"),
    h("blockquote", {}, words(text || "(empty)")),
    h("p", {className: "caption"}, toldAbout(choice, true)));
  if (found.why) place.append(note(found.why));
  if (!found.rows) return;
  const log = (own.log ?? "1") === "1", byWord = (own.words ?? (found.rows.length > MANY ? "1" : "0")) === "1";
  const usual = found.rows.length > MANY;
  place.append(h("div", {className: "controls"},
    toggle("Logarithmic colours", log, on => page.set({log: on ? "" : "0"})),
    toggle("Words", byWord, on => page.set({words: on === usual ? "" : on ? "1" : "0"}))));
  place.append(chips(page, byWord ? wordChipsOf(found.rows) : chipsOf(found.rows), log));
  place.append(h("p", {className: "caption"}, `Mean over ${found.where}. Click a token: it becomes the token of all pages, `
    + "where this page has numbers of it. The foot of a chip tells its group; Σ is the sum of its tokens."));
  for (const [encoder, rest] of Object.entries(found.unseen ?? {}))
    place.append(note(`${encoder.toUpperCase().replaceAll("_", "-")} did not see the end of this text: `, words(rest)));
  place.append(h("div", {className: "columns"}, totals(page, found.rows), heaviest(page, found.rows)));
  place.append(legend(Object.entries(list.colors.groups).filter(([name]) => found.rows.some(row => row.group === name))
    .map(([name, color]) => ({name, color}))));
}

function chips(page, rows, log) {
  const masses = rows.map(row => row.mass).filter(mass => mass > 0);
  const high = Math.max(...masses), low = log ? Math.min(...masses) : 0;
  const share = mass => !(mass > 0) ? 0 : log ? (high > low ? Math.log(mass / low) / Math.log(high / low) : 1) : mass / high;
  const {choice, list} = page, targets = choice.run.branches[choice.branch].targets.map(one => one.text);
  return h("div", {className: "chips"}, rows.map(row => {
    const target = [row.group === "clip_bos" ? "token:0" : "", row.word ? `word:${row.word}` : "", `group:${row.group}`]
      .filter(Boolean).find(text => targets.includes(text));
    const part = share(row.mass), color = shadeOf(PALE, part);
    const chosen = target === choice.target && (target !== `group:${row.group}` || !row.word);
    return h("button", {
      type: "button", className: "token", "aria-pressed": String(chosen), disabled: !target,
      title: `${row.encoder} ${row.token} · ${row.group} · ${told(row.mass)}`,
      style: {background: `rgb(${color.map(Math.round).join(" ")})`, color: part > 0.55 ? "#ffffff" : "#1f2328",
        "border-bottom-color": list.colors.groups[row.group]},
      onclick: () => page.choose({target}),
    }, words(row.text), h("small", {}, row.count > 1 ? `Σ ${told(row.total, 3)}` : told(row.mass, 3)));
  }));
}

function totals(page, rows) {
  const drawn = groupsOf(rows).map(one => ({
    name: `${one.group} · ${one.tokens} token${one.tokens === 1 ? "" : "s"}`, value: one.mass,
    color: page.list.colors.groups[one.group], tip: `mean of a token: ${told(one.each)}`}));
  return panel("Groups of text tokens", bars(drawn), "Sum of the mass of each group's tokens.");
}

function heaviest(page, rows) {
  return panel("Heaviest text tokens", rankedTokens(page, rows),
    page.choice.run.keys ? "Dashed: uniform attention, 1 ÷ number of keys." : "");
}
