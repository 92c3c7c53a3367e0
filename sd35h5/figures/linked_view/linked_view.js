/** One linked figure of layer × head × step: heatmaps, the curve over steps, the profile over layers and the histogram.

    import {linkedView} from "./linked_view.js";          // beside it lie its other modules and linked_view.css
    const view = linkedView(element, options);             // {update(options), destroy()}

The element may be a shadow root; the stylesheet must be there (a link, or a <style> beside). Nothing is fetched, nothing
is evaluated, every text is set as text. `sd35h5.figures.linked_view` makes options in Python: `payload` gives facts and
bytes, `packed` both in one, which `unpacked(bytes)` here turns into options; `script()` is all modules as one text.

options
  panels     a list, one heatmap each:
    name       what it is called; text.
    cube       Float32Array, STEP-MAJOR: (step * layers.length + layer) * heads.length + head, by place; NaN is absent.
    lines      the same for curves and profile, where samples are weighed otherwise there; `cube` when absent.
    layers, heads, steps      true indices, sorted; steps may be a part of all (some metrics are captured at every 4th).
    timesteps, sigmas         a number a step, or null: other x axes of the curve.
    scale      name of its colour scale, "values" by default.
    curves     whether it has lines in curve, profile and histogram; false for differences.
    color, dash               of its lines: "#rrggbb", a list of lengths.
    uniform    what uniform attention would give, null where that says nothing.
    marks      [{layer, head, sign, means}]: a sign in a cell, "•" is a dot; shown while the steps are those of `selection`.
    bands      {chosen: {curve: [low, high], profile: [low, high]}, pinned: the same}: lists as long as steps and layers;
               shown while what is chosen is `selection`.
  scales     name -> {colors: ["#rrggbb", …] from low to high, domain: [low, high] or null (from what is shown, one for all
             panels of that scale), symmetric: whether it is then centred on 0, label}
  title, label              what the numbers are: in words; and with their unit, for axes.
  histogram  "log" (numbers above 0) or "linear".
  titles     {map, curve, profile, histogram}: captions.   notes  the same names: a smaller line below each.
  selection  what is chosen at first: {pinned: [layer, head] | null, layers, heads, steps: [first, last] | null, step: the
             one step that is shown | null, x: "step" | "timestep" | "sigma", zoom: {layers, heads} | null}, true indices.
  theme      {dark, ink, muted, line, ground, focus, mark, font}: any of them; the stylesheet's otherwise, which follow
             Streamlit's theme, else the browser's.
  rest       milliseconds from the hand's last move to onChange, 300 by default.
  onChange   called with the selection once the hand rests, if it changed. It may be given back in `update` at any time: a
             selection that was told and comes back changes nothing, another one is taken over.
*/

import {listen, span} from "./gestures.js";
import {paintCurve, paintHistogram, paintProfile, readCurve, readHistogram, readProfile} from "./lines.js";
import {
  axisOf, cellsOf, completed, completedScales, histogramOf, NOTHING, possible, refusal, scalesOf, windowOf,
} from "./model.js";
import {dress, keyOf, make, placeTip, skeleton, themeOf} from "./page.js";
import {fit, makePlot, mapHeight, paintMap, paintScale, readMap} from "./plots.js";
import {asLine, toldChoice, toldOf} from "./telling.js";

export {optionsOf, unpacked} from "./model.js";

const TITLES = {map: "Layer × head", curve: "Over the denoising steps", profile: "Over the layers",
  histogram: "How many heads have which mean"};
const HINT = "Point at a cell to read it. Click pins it, dragging over cells, steps or layers filters the rest, "
  + "Escape clears; arrow keys walk, Space plays the steps.";
const EMPTY = "Nothing was measured in the chosen layers, heads and steps.";
const PACE = 170; // milliseconds a step while it plays

/** Draw the figure into an element. Returns: {update(options), destroy()}. */
export function linkedView(element, options) {
  const state = {at: null, host: {...NOTHING}, selection: {...NOTHING}, nothing: EMPTY, version: 0};
  const page = skeleton();
  let plots = [], legends = [], ends = [], frame = 0, resting = 0, playing = 0, sent = [], toldHost = "", anchor = null, held = false;

  function set(given) {
    const firstTime = !state.options;
    state.options = {...given, scales: completedScales(given.scales)};
    state.panels = completed(given.panels);
    state.version += 1;
    const refused = refusal(state.panels);
    page.refused.textContent = refused;
    page.root.toggleAttribute("data-refused", Boolean(refused));
    if (refused) { ends.splice(0).forEach(end => end()); plots = []; return; }
    take(given.selection || NOTHING, firstTime);
    dress(page.root, given.theme || {});
    if (structure(state) !== page.root.dataset.structure) build();
    plots.filter(plot => plot.panel).forEach((plot, place) => { plot.panel = state.panels[place]; });
    write();
    layout();
  }

  /** Take over what the host says is chosen, unless it says what it was told. */
  function take(selection, firstTime) {
    const key = choiceKey(selection), before = sent.indexOf(key);
    state.host = possible(selection, state.panels);
    if (!firstTime && before >= 0) sent = sent.slice(before + 1);
    else if (firstTime || key !== toldHost) {
      const {step, zoom} = firstTime ? selection : state.selection;
      state.selection = possible({...selection, step: step ?? null, zoom: zoom ?? null}, state.panels);
    } else state.selection = possible(state.selection, state.panels);
    toldHost = key;
  }

  function build() {
    ends.splice(0).forEach(end => end());
    page.maps.replaceChildren();
    page.lines.replaceChildren();
    page.legends.replaceChildren();
    page.root.dataset.structure = structure(state);
    const {panels, options} = state, titles = {...TITLES, ...options.titles}, several = panels.length > 1;
    page.root.toggleAttribute("data-several", several);
    const maps = panels.map(panel => makePlot("map", panel, several ? panel.name : titles.map,
      `${options.label}${several ? ` of ${panel.name}` : ""}, ${panel.layers.length} layers by ${panel.heads.length} heads`));
    const lines = ["curve", "profile", "histogram"].map(kind => makePlot(kind, null, titles[kind], titles[kind]));
    plots = [...maps, ...lines];
    page.maps.append(...maps.map(plot => plot.figure));
    page.lines.append(...lines.map(plot => plot.figure));
    legends = Object.keys(options.scales).filter(name => panels.some(panel => panel.scale === name)).map(name => {
      const base = make("canvas", {"aria-hidden": "true"}), box = make("div", {class: "lv-scale"}, base);
      const label = make("span", {class: "lv-note"});
      page.legends.append(make("div", {}, box, label));
      return {scale: name, base, box, label};
    });
    const read = {map: readMap, curve: readCurve, profile: readProfile, histogram: readHistogram};
    for (const plot of plots) {
      read[plot.kind](plot, state);
      ends.push(listen(plot, hand));
    }
  }

  /** Write the words that stand beside the plots. */
  function write() {
    const {options, panels} = state;
    for (const plot of plots) {
      const notes = options.notes || {}, kept = [plot.title.firstChild];
      if (plot.kind === "curve" && panels.filter(panel => panel.curves).length > 1) kept.push(keyOf(panels));
      if (plot.kind !== "map" && notes[plot.kind]) kept.push(make("span", {class: "lv-note", text: notes[plot.kind]}));
      plot.title.replaceChildren(...kept);
    }
    for (const legend of legends) legend.label.textContent = options.scales[legend.scale].label;
    page.note.textContent = (options.notes || {}).map || "";
    const axes = ["step", "timestep", "sigma"].filter(name => axisOf(panels[0], name));
    page.axes.replaceChildren(...(axes.length > 1 ? axes : []).map(name => {
      const button = make("button", {type: "button", text: name, "data-x": name});
      button.addEventListener("click", () => { state.selection.x = name; changed(); });
      return button;
    }));
    page.play.hidden = panels[0].steps.length < 2;
  }

  function layout() {
    const ratio = window.devicePixelRatio || 1;
    for (const plot of plots) {
      if (plot.kind === "map") plot.box.style.height = `${mapHeight(plot.panel.heads.length, state.panels.length > 1)}px`;
      if (!fit(plot, ratio)) return;
    }
    for (const legend of legends) {
      legend.size = [legend.box.clientWidth, 34];
      Object.assign(legend.base, {width: legend.size[0] * ratio, height: 34 * ratio});
      legend.base.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    state.ratio = ratio;
    ask();
  }

  function ask() {
    if (!frame) frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    if (!plots.length || !plots[0].size) return;
    if (state.ratio !== (window.devicePixelRatio || 1)) { layout(); return; }
    const {panels, selection} = state;
    state.theme = themeOf(page.root);
    state.scales = scalesOf(state.options, panels, selection);
    state.histogram = histogramOf(state.options, panels.filter(panel => panel.curves), selection);
    const painters = {map: paintMap, curve: paintCurve, profile: paintProfile, histogram: paintHistogram};
    for (const plot of plots) painters[plot.kind](plot, state);
    const cell = state.at ? state.at.cell : null;
    for (const legend of legends) paintScale(legend, state, panels
      .filter(panel => cell && panel.scale === legend.scale)
      .map(panel => cellsOf(panel, selection)[panel.at.layers.get(cell[0]) * panel.shape.heads + panel.at.heads.get(cell[1])]));
    say();
  }

  /** Tell what is under the hand, or what is chosen: in the line on top, and beside the hand. */
  function say() {
    const {selection, at, panels} = state, choice = toldChoice(panels[0], selection);
    const told = at ? toldOf(at, state) : selection.pinned ? toldOf({cell: selection.pinned}, state) : null;
    const line = told ? asLine(told) : choice || HINT;
    if (page.told.textContent !== line) page.told.textContent = line;
    page.tip.hidden = !at || !state.over;
    if (at && state.over) {
      page.tip.replaceChildren(make("b", {text: told.title}), ...told.rows.map(([name, value]) =>
        make("div", {}, make("span", {text: name}), make("span", {text: value}))),
      ...(told.foot ? [make("small", {text: told.foot})] : []));
      placeTip(page.tip, state.over, state.over.boxOf(at), page.root);
    }
    page.clear.hidden = !choice && !selection.zoom;
    page.zoom.hidden = !selection.zoom && !selection.layers && !selection.heads;
    page.zoom.textContent = selection.zoom ? "Whole" : "Zoom in";
    page.play.textContent = playing ? "❚❚ Pause" : "▶ Play steps";
    for (const button of page.axes.children) button.setAttribute("aria-pressed", String(button.dataset.x === selection.x));
  }

  // ---- what the hand does ------------------------------------------------------------------------------------

  function changed() {
    ask();
    rest();
  }

  /** Tell the host what is chosen when nothing has moved for a while. */
  function rest() {
    clearTimeout(resting);
    resting = setTimeout(() => {
      if (playing || held) return; // a hand that plays, or that holds the button, does not rest
      const key = choiceKey(state.selection), before = sent.at(-1) ?? toldHost;
      if (key === before || !state.options.onChange) return;
      sent.push(key);
      state.options.onChange(structuredClone(state.selection));
    }, state.options.rest ?? 300);
  }

  const hand = {
    rest,
    hold(down) { held = down; },
    hover(plot, place) {
      if (JSON.stringify(place) === JSON.stringify(state.at) && state.over === (place ? plot : null)) return;
      state.at = place;
      state.over = place ? plot : null;
      ask();
    },
    click(plot, place) {
      const {selection} = state;
      if (!place) return;
      if (place.cell) {
        selection.pinned = String(place.cell) === String(selection.pinned) ? null : place.cell;
        const [layer, head] = place.cell, outside = (range, at) => range && (at < range[0] || at > range[1]);
        if (outside(selection.layers, layer) || outside(selection.heads, head)) selection.layers = selection.heads = null;
      } else if (place.step !== undefined) selection.step = place.step === selection.step ? null : place.step;
      else return;
      changed();
    },
    brush(plot, from, to) {
      const {selection} = state;
      if (!from || !to || plot.kind === "histogram") return;
      if (to.cell) {
        selection.layers = part(span(from.cell[0], to.cell[0]), state.panels[0].layers);
        selection.heads = part(span(from.cell[1], to.cell[1]), state.panels[0].heads);
      } else if (to.step !== undefined) {
        selection.steps = part(span(from.step, to.step), state.panels[0].steps);
        selection.step = null;
      } else selection.layers = part(span(from.layer, to.layer), state.panels[0].layers);
      if (selection.pinned && !isInside(selection)) selection.pinned = null;
      changed();
    },
    clear() {
      stop();
      Object.assign(state.selection, NOTHING, {x: state.selection.x});
      anchor = null;
      changed();
    },
    walk(plot, dx, dy, shift) {
      const from = state.over === plot && state.at ? state.at : null;
      const to = from ? plot.walk(from, dx, dy) : plot.begin();
      if (!to) return;
      anchor = shift ? anchor || from || to : null;
      hand.hover(plot, to);
      if (to.cell && state.selection.zoom) follow(to.cell);
      if (shift) hand.brush(plot, anchor, to);
    },
    enter(plot) {
      if (state.at) hand.click(plot, state.at);
    },
    play() {
      if (playing) stop();
      else if (state.panels[0].steps.length > 1) playing = setInterval(next, PACE), next();
      ask();
    },
    zoom(place, factor) {
      const {selection} = state, cell = (place && place.cell) || (state.at && state.at.cell) || selection.pinned;
      const now = windowOf(state.panels[0], selection), zoom = {};
      for (const [side, name] of ["layers", "heads"].entries()) {
        const indices = state.panels[0][name], [low, high] = [indices[0], indices.at(-1)];
        const size = Math.max(3, Math.min(high - low + 1, Math.round((now[name][1] - now[name][0] + 1) * factor)));
        const middle = cell ? cell[side] : (now[name][0] + now[name][1]) / 2;
        const first = Math.max(low, Math.min(high - size + 1, Math.round(middle - (size - 1) / 2)));
        zoom[name] = [first, Math.min(high, first + size - 1)];
      }
      const whole = windowOf(state.panels[0], NOTHING);
      selection.zoom = sameWindow(zoom, whole) ? null : zoom;
      ask();
    },
  };

  function isInside({pinned, layers, heads}) {
    return [layers, heads].every((range, side) => !range || (pinned[side] >= range[0] && pinned[side] <= range[1]));
  }

  /** Move a zoomed window so that it holds a cell. */
  function follow(cell) {
    const {zoom} = state.selection;
    ["layers", "heads"].forEach((name, side) => {
      const shift = Math.min(0, cell[side] - zoom[name][0]) || Math.max(0, cell[side] - zoom[name][1]);
      zoom[name] = zoom[name].map(end => end + shift);
    });
  }

  function next() {
    const {selection, panels} = state, [first, last] = selection.steps || [-Infinity, Infinity];
    const steps = panels[0].steps.filter(step => step >= first && step <= last);
    if (!steps.length) { stop(); return; }
    const at = steps.indexOf(selection.step);
    selection.step = steps[(at + 1) % steps.length];
    ask();
  }

  function stop() {
    clearInterval(playing);
    playing = 0;
  }

  function zoomToChoice() {
    const {selection} = state, whole = windowOf(state.panels[0], NOTHING);
    selection.zoom = selection.zoom ? null : {layers: selection.layers || whole.layers, heads: selection.heads || whole.heads};
    ask();
  }

  page.play.addEventListener("click", () => hand.play());
  page.clear.addEventListener("click", () => hand.clear());
  page.zoom.addEventListener("click", zoomToChoice);
  const watcher = new ResizeObserver(layout);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", ask);
  element.append(page.root);
  watcher.observe(page.root);
  set(options);
  return {
    update(changedOptions) { set({...state.options, ...changedOptions}); },
    destroy() {
      stop();
      clearTimeout(resting);
      cancelAnimationFrame(frame);
      watcher.disconnect();
      dark.removeEventListener("change", ask);
      ends.forEach(end => end());
      page.root.remove();
    },
  };
}

/** What the elements are made for: they are made anew only when this changes. */
function structure({panels, options}) {
  return JSON.stringify([panels.map(panel => panel.name), options.titles || null, options.label,
    panels.map(panel => [panel.layers.length, panel.heads.length, panel.scale])]);
}

function choiceKey(selection) {
  return JSON.stringify(["pinned", "layers", "heads", "steps", "x"].map(name => selection[name] ?? null));
}

function sameWindow(one, other) {
  return String([one.layers, one.heads]) === String([other.layers, other.heads]);
}

/** A range, null where it holds every index. */
function part([first, last], indices) {
  return first <= indices[0] && last >= indices.at(-1) ? null : [first, last];
}
