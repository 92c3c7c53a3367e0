/** The sentences that a page opens with: text, and links that select what they speak of. */

import {h, words} from "./dom.js";

/** A sentence of parts {text, selects}, the names in `selects` being those of the URL. */
export function answer(page, parts) {
  return h("p", {className: "answer"}, parts.map(part => link(page, part)));
}

/** Whether everything of a run is chosen, which its sentences are of. */
export const isWhole = ({samples, layers, heads, steps}) => !(samples || layers || heads || steps);

function link(page, {text, selects}) {
  const {choice, list} = page, changes = {};
  const cell = selects[list.parameters.cell], target = selects[list.parameters.target];
  if (cell) changes.cell = cell.split(".").map(Number);
  if (choice.run.branches[choice.branch].targets.some(one => one.text === target)) changes.target = target;
  return Object.keys(changes).length ? page.link(page.page, words(text), {}, changes) : words(text);
}
