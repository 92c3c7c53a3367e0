/** Maps: the picture with the attention to a word over it, over steps, layers and words, run beside run. */

import {colorBar} from "./charts.js";
import {whyNot} from "./cubes.js";
import {told} from "./linked_view.js";
import {choice as select, h, note, segments, toggle, words} from "./dom.js";
import {paint} from "./map_pictures.js";
import {number, partnersOf} from "./overview_page.js";

const LARGE = 512, TILE = 120, PACE = 450;
const SHEETS = ["over steps", "over layers", "all words"];

export async function drawMaps(place, page, closing) {
  const {choice, data, list, own} = page;
  place.append(h("h2", {}, "Maps: where the image looks at a word"));
  const prompt = (await page.prompts()).prompt[choice.sample];
  place.append(h("blockquote", {}, words(prompt)));
  const first = await mapsOf(page, choice.run, choice.sample);
  if (!first) {
    place.append(note(choice.run.mapped ? whyNot(data, "maps") : "This file holds no attention maps."));
    return;
  }
  const word = wordOf(page, first), layer = own.layer && own.layer !== "mean" ? Number(own.layer) : null;
  const look = {
    opacity: Number(own.opacity ?? 60) / 100, smooth: own.smooth !== "0", stretch: own.stretch === "1", ramp: list.colors.map,
  };
  const shown = (await Promise.all(runsBeside(page).map(run => panelOf(page, run, word, layer)))).filter(Boolean);
  place.append(controls(page, first, word, layer, look));
  const missing = runsBeside(page).length - shown.length;
  if (!shown.length) { place.append(note(layer === null ? "There is no map of this word." : whyNot(data, "layers"))); return; }
  if (missing) place.append(note(`${missing} run${missing === 1 ? " has" : "s have"} no map of this word in a paired sample.`));
  const scale = scaleOf(shown.map(one => one.values), look.stretch);
  const steps = shown[0].steps, at = steps.includes(Number(own.at)) ? Number(own.at) : steps.at(-1);
  const stills = shown.map(one => still(one, look, scale));
  const draw = step => stills.forEach(one => one.draw(step));
  place.append(player(page, steps, at, draw, closing),
    h("div", {className: "stills"}, stills.map(one => one.element)),
    h("div", {className: "scaleline"}, colorBar(list.colors.map, ...scale)),
    h("p", {className: "caption"}, "Attention of image patches to the word, mean over heads (0..1); one scale for all runs and steps."));
  draw(at);
  place.append(await sheets(page, shown, word, at, look, scale));
}

const runsBeside = ({choice, list}) => [choice.run, ...choice.others.map(name => list.runs.find(one => one.name === name))];

const mapsOf = (page, run, sample) => page.data.numbers(`${run.key}/maps/${page.choice.branch}/${number(sample)}.arrow`);

function wordOf(page, {words: known, first}) {
  const asked = known.findIndex(one => one.tokens === page.own.word);
  if (asked >= 0) return known[asked];
  const [kind, name] = page.choice.target.split(":", 2);
  return (kind === "word" && known.find(one => one.word === name)) || known[first] || known[0];
}

/** What is drawn of a run: its picture, and the word's maps (step, y, x) at a layer or their mean. */
async function panelOf(page, run, word, layer) {
  const {choice, data} = page;
  const sample = run === choice.run ? choice.sample : (await partnersOf(page, run)).get(choice.sample);
  const maps = sample === undefined ? null : await mapsOf(page, run, sample);
  const place = maps ? maps.words.findIndex(one => one.tokens === word.tokens) : -1;
  if (place < 0) return null;
  const [, steps, rows, columns] = maps.shape, size = rows * columns;
  const one = {run, sample, shape: [rows, columns], size, steps: maps.steps, place, maps, bitmap: await bitmapOf(data, run, sample)};
  if (layer === null) return {...one, values: maps.values.subarray(place * steps * size, (place + 1) * steps * size)};
  const layers = await layersOf(page, one);
  if (!layers || layer >= layers.shape[1]) return null;
  const values = new Float32Array(steps * size);
  for (let step = 0; step < steps; step++) {
    const from = (step * layers.shape[1] + layer) * size;
    values.set(layers.values.subarray(from, from + size), step * size);
  }
  return {...one, values};
}

const layersOf = (page, {run, sample, place}) =>
  page.data.numbers(`${run.key}/maps/${page.choice.branch}/${number(sample)}.w${place}.arrow`);

async function bitmapOf(data, run, sample) {
  const url = run.pictured ? data.picture(`${run.key}/pictures/${number(sample)}.webp`) : null;
  if (!url) return null;
  const image = new Image();
  image.src = url;
  try { await image.decode(); } catch { return null; }
  return image;
}

function scaleOf(lists, stretch) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const value of list) if (value === value) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : [stretch ? low : 0, high];
}

function controls(page, maps, word, layer, look) {
  const {choice} = page, layers = Array.from({length: choice.run.sizes.layer}, (_, at) => ({value: String(at), name: `layer ${at}`}));
  const percent = Math.round(look.opacity * 100);
  const slider = h("input", {type: "range", min: 0, max: 100, step: 5, value: percent,
    onchange: () => page.set({opacity: slider.value === "60" ? "" : slider.value})});
  return h("div", {className: "controls"},
    select("Word or token", maps.words.map(one => ({value: one.tokens, name: one.label})), word.tokens,
      tokens => page.set({word: tokens})),
    select("Layer", [{value: "mean", name: "mean of layers"}, ...layers], layer === null ? "mean" : String(layer),
      value => page.set({layer: value === "mean" ? "" : value})),
    h("label", {className: "field"}, h("span", {}, `Opacity ${percent} %`), slider),
    toggle("Smooth", look.smooth, on => page.set({smooth: on ? "" : "0"})),
    toggle("Stretch", look.stretch, on => page.set({stretch: on ? "1" : ""})));
}

function canvasOf({bitmap, shape}, longest) {
  const [high, wide] = bitmap ? [bitmap.naturalHeight, bitmap.naturalWidth] : shape, times = longest / Math.max(high, wide);
  return h("canvas", {width: Math.max(1, Math.round(wide * times)), height: Math.max(1, Math.round(high * times))});
}

function pixelsOf(canvas, bitmap) {
  if (!bitmap) return null;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const mapAt = (one, step) => one.values.subarray(one.steps.indexOf(step) * one.size, (one.steps.indexOf(step) + 1) * one.size);

/** A run's picture with the map over it, and the map alone, whose cells tell their values. */
function still(one, look, scale) {
  const over = canvasOf(one, LARGE), alone = canvasOf(one, LARGE), pixels = pixelsOf(over, one.bitmap);
  const said = h("p", {className: "caption", role: "status"}, "Point at a cell of the map to read it.");
  let now = one.steps[0];
  alone.addEventListener("pointermove", event => {
    const box = alone.getBoundingClientRect(), [rows, columns] = one.shape;
    const x = Math.floor((event.clientX - box.left) / box.width * columns), y = Math.floor((event.clientY - box.top) / box.height * rows);
    const value = mapAt(one, now)[y * columns + x];
    if (x >= 0 && y >= 0 && x < columns && y < rows) said.textContent = `row ${y}, column ${x} at step ${now}: ${told(value)}`;
  });
  const title = h("h3", {}, words(one.run.name));
  const figures = [
    one.bitmap ? h("figure", {}, over, h("figcaption", {}, "the map over the picture")) : null,
    h("figure", {}, alone, h("figcaption", {}, "the map alone, a square a cell")),
    one.bitmap ? h("figure", {}, pictureOf(one.bitmap), h("figcaption", {}, "the picture")) : null,
  ];
  return {
    element: h("section", {className: "still"}, title, h("div", {className: "figures"}, figures), said),
    draw(step) {
      now = step;
      if (one.bitmap) paint(over, pixels, mapAt(one, step), one.shape, scale, look);
      paint(alone, null, mapAt(one, step), one.shape, scale, {...look, smooth: false});
    },
  };
}

function pictureOf(bitmap) {
  bitmap.alt = "the generated picture";
  return bitmap;
}

function player(page, steps, at, draw, closing) {
  if (steps.length < 2) return h("p", {className: "caption"}, `step ${at}`);
  let timer = 0;
  const said = h("span", {className: "stepname"}, `step ${at}`);
  const slider = h("input", {type: "range", min: 0, max: steps.length - 1, step: 1, value: steps.indexOf(at), "aria-label": "step",
    oninput: () => show(Number(slider.value)), onchange: () => keep()});
  const button = h("button", {type: "button", onclick: () => timer ? stop() : play()}, "▶ Play steps");
  function show(place) {
    slider.value = place;
    said.textContent = `step ${steps[place]}`;
    draw(steps[place]);
  }
  const keep = () => page.set({at: steps[slider.value] === steps.at(-1) ? "" : String(steps[slider.value])});
  function play() {
    button.textContent = "❚❚ Pause";
    timer = setInterval(() => show((Number(slider.value) + 1) % steps.length), PACE);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "▶ Play steps";
  }
  closing.push(stop);
  return h("div", {className: "controls player"}, button, slider, said);
}

/** Small maps: over steps, over layers, or of all words. */
async function sheets(page, shown, word, step, look, scale) {
  const over = SHEETS.includes(page.own.sheet) ? page.own.sheet : SHEETS[0];
  const box = h("section", {className: "panel"},
    segments("small maps", SHEETS.map(name => ({value: name, name})), over, name => page.set({sheet: name === SHEETS[0] ? "" : name})));
  for (const one of shown) {
    const tiles = await tilesOf(page, one, over, step, look, scale);
    box.append(h("h3", {}, words(one.run.name)), tiles.why ? note(tiles.why) : h("div", {className: "sheet"}, tiles.map(tile => {
      const canvas = canvasOf(one, TILE);
      paint(canvas, pixelsOf(canvas, one.bitmap), tile.map, one.shape, tile.scale, look);
      return h("figure", {}, canvas, h("figcaption", {}, words(tile.name)));
    })));
  }
  return box;
}

async function tilesOf(page, one, over, step, look, scale) {
  if (over === "over steps") return one.steps.map(at => ({name: `step ${at}`, map: mapAt(one, at), scale}));
  const at = one.steps.indexOf(step), {size} = one;
  if (over === "all words") {
    const steps = one.steps.length;
    return one.maps.words.map((known, place) => {
      const map = one.maps.values.subarray((place * steps + at) * size, (place * steps + at + 1) * size), own = scaleOf([map], look.stretch);
      return {name: `${known.text} ${told(own[0], 2)} to ${told(own[1], 2)}`, map, scale: own};
    });
  }
  const layers = await layersOf(page, one);
  if (!layers) return {why: whyNot(page.data, "layers")};
  const maps = Array.from({length: layers.shape[1]}, (_, layer) => {
    const from = (at * layers.shape[1] + layer) * size;
    return {name: `layer ${layer}`, map: layers.values.subarray(from, from + size)};
  }).filter(tile => tile.map.some(value => value === value));
  const own = scaleOf(maps.map(tile => tile.map), look.stretch);
  return maps.map(tile => ({...tile, scale: own}));
}
