/** The linked figure of a page: its panels from cubes, and what a hand chooses in it. */

import {h, note} from "./dom.js";
import {linkedView} from "./linked_view.js";

/** Draw cubes [{name, cube, scale, curves, color, dash, marks}] as one figure. Returns: its element. */
export function linkedFigure(page, panels, {title, label, scales, titles}, closing) {
  const box = h("div", {className: "linked"});
  const view = linkedView(box, {
    panels: panels.map(({cube, ...more}) => ({
      name: more.name, cube: cube.values, layers: cube.layers, heads: cube.heads, steps: cube.steps,
      timesteps: whole(cube.timesteps), sigmas: whole(cube.sigmas), uniform: cube.uniform ?? null, ...more,
    })),
    scales, title, label, titles, selection: selectionOf(page),
    onChange: selection => take(page, selection),
  });
  closing.push(() => view.destroy());
  return box;
}

const whole = numbers => numbers && numbers.every(one => one !== null) ? numbers : null;

function selectionOf({choice: {cell, layers, heads, steps}, own}) {
  return {pinned: cell, layers, heads, steps, step: null, x: own.x ?? "step", zoom: null};
}

/** Take over what was chosen in the figure: the rest of the page is drawn for it, the figure has drawn itself. */
async function take(page, {pinned, layers, heads, steps, x}) {
  page.own = {...page.own, x: x === "step" ? "" : x};
  await page.choose({cell: pinned, layers, heads, steps}, true);
  page.main.dispatchEvent(new CustomEvent("chosen"));
}

/** Draw a part of the page now and whenever something was chosen in the linked figure. */
export function following(page, draw, closing) {
  const box = h("div", {});
  let turn = 0;
  async function again() {
    const own = ++turn, made = await draw().catch(error => note(`This could not be shown: ${error.message}`));
    if (own === turn) box.replaceChildren(...[made].flat().filter(Boolean));
  }
  const listener = () => { again(); };
  page.main.addEventListener("chosen", listener);
  closing.push(() => page.main.removeEventListener("chosen", listener));
  return again().then(() => box);
}
