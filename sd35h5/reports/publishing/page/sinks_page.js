/** Sinks: the metric as one linked figure, the heaviest tokens and where the mass goes, for the pinned cell. */

import {answer, isWhole} from "./answers.js";
import {legend, stacked} from "./charts.js";
import {toldAbout} from "./choosing.js";
import {cubeOf, whyNot} from "./cubes.js";
import {h, note, panel, words} from "./dom.js";
import {following, linkedFigure} from "./linked.js";
import {rankedTokens} from "./ranked_tokens.js";
import {tokensOf} from "./token_numbers.js";

export async function drawSinks(place, page, closing) {
  const {choice, data, list} = page, metric = choice.run.metrics.find(one => one.name === choice.metric);
  const about = h("p", {className: "caption"});
  const tell = () => { about.textContent = toldAbout(page.choice); };
  tell();
  page.main.addEventListener("chosen", tell);
  closing.push(() => page.main.removeEventListener("chosen", tell));
  const said = h("div", {});
  place.append(h("h2", {}, words(choice.run.name), `: ${metric.title}`), said, about);
  const cube = await cubeOf(data, choice);
  if (cube.said && isWhole(choice)) said.append(answer(page, cube.said));
  if (cube.why) place.append(note(cube.why));
  else place.append(linkedFigure(page, [{name: choice.run.name, cube, color: list.colors.runs[0]}], {
    title: metric.title, label: metric.label, scales: {values: {colors: list.colors.cells, label: metric.label}},
  }, closing));
  place.append(h("div", {className: "columns"},
    await following(page, () => heaviest(page), closing), await following(page, () => groups(page), closing)));
  const mass = await data.numbers(`${choice.run.key}/numbers/${choice.branch}/groups.arrow`);
  if (mass?.said.length && isWhole(choice)) said.append(answer(page, mass.said));
}

async function heaviest(page) {
  const found = await tokensOf(page);
  const title = "Heaviest text tokens";
  if (found.why) return panel(title, note(found.why));
  const rule = page.choice.run.keys ? " Dashed: uniform attention, 1 ÷ number of keys." : "";
  return panel(title, rankedTokens(page, found.rows, true), `Sample ${page.choice.sample}, mean over ${found.where}.${rule}`);
}

async function groups(page) {
  const {choice, data, list} = page, found = await data.numbers(`${choice.run.key}/numbers/${choice.branch}/groups.arrow`);
  if (!found) return panel("Where the mass goes", note(whyNot(data, "numbers")));
  const [, layers, heads] = found.shape, head = choice.cell?.[1] < heads ? choice.cell[1] : null;
  const parts = found.groups.map((name, group) => ({name, color: list.colors.groups[name], values: Array.from(
    {length: layers}, (_, layer) => meanOf(found.values, (group * layers + layer) * heads, heads, head))}))
    .filter(part => part.values.some(value => value > 0));
  const where = head === null ? "mean of all heads" : `head ${head}`;
  return panel("Where the mass goes", h("div", {}, legend(parts), stacked(parts, layers, choice.cell ? choice.cell[0] : null)),
    `Parts of an image query's attention by layer, ${where}, all samples and steps.`);
}

function meanOf(values, from, heads, head) {
  if (head !== null) return values[from + head];
  let sum = 0, count = 0;
  for (let at = from; at < from + heads; at++) if (values[at] === values[at]) { sum += values[at]; count += 1; }
  return count ? sum / count : NaN;
}
