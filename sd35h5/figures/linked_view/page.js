/** The elements around the plots, their theme, and the tip beside the hand. */

/** Make an element: name, attributes (text is its text), children. */
export function make(name, {text, ...attributes} = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

/** Make the figure's elements, empty. */
export function skeleton() {
  const button = (name, label) => make("button", {type: "button", class: name, text: label});
  const told = make("p", {class: "lv-told", role: "status", "aria-live": "polite"});
  const [play, zoom, clear] = [button("lv-play", "▶ Play steps"), button("lv-zoom", "Zoom in"), button("lv-clear", "Clear")];
  const axes = make("div", {class: "lv-axes", role: "group", "aria-label": "x axis of the curve"});
  const [maps, lines] = [make("div", {class: "lv-maps"}), make("div", {class: "lv-lines"})];
  const legends = make("div", {class: "lv-legends"}), note = make("p", {class: "lv-note"});
  const refused = make("p", {class: "lv-refused", role: "alert"});
  const tip = make("div", {class: "lv-tip", "aria-hidden": "true", hidden: ""});
  const root = make("section", {class: "lv", "aria-label": "linked figure"},
    make("div", {class: "lv-bar"}, told, make("div", {class: "lv-tools"}, play, axes, zoom, clear)),
    refused, make("div", {class: "lv-body"}, make("div", {class: "lv-top"}, maps, legends, note), lines), tip);
  return {root, told, play, zoom, clear, axes, maps, lines, legends, note, refused, tip};
}

/** Make the key of the lines' colours. */
export function keyOf(panels) {
  return make("span", {class: "lv-key"}, ...panels.filter(panel => panel.curves).map(panel => {
    const swatch = make("i", {});
    swatch.style.borderTop = `3px ${panel.dash.length ? "dashed" : "solid"} ${panel.color}`;
    return make("span", {}, swatch, panel.name);
  }));
}

const VARIABLES = ["ink", "muted", "line", "ground", "focus", "mark", "font"];

/** Put a theme on the figure; what it leaves out is the stylesheet's. */
export function dress(root, theme) {
  for (const name of VARIABLES) {
    if (theme[name]) root.style.setProperty(`--lv-${name}`, theme[name]);
    else root.style.removeProperty(`--lv-${name}`);
  }
  if (theme.dark === undefined) delete root.dataset.theme;
  else root.dataset.theme = theme.dark ? "dark" : "light";
}

/** Read the colours that canvases are painted with. */
export function themeOf(root) {
  const style = getComputedStyle(root);
  return Object.fromEntries(VARIABLES.map(name => [name, style.getPropertyValue(`--lv-${name}`).trim()]));
}

/** Put the tip beside the hand's place, on the side where there is room. */
export function placeTip(tip, plot, box, root) {
  const from = root.getBoundingClientRect(), canvas = plot.canvas.getBoundingClientRect();
  const [x, y] = [canvas.left - from.left + box.left + box.width / 2, canvas.top - from.top + box.top];
  const left = x > from.width / 2;
  tip.style.transform = `translate(${x}px, ${y}px) translate(${left ? "calc(-100% - 14px)" : "14px"}, -50%)`;
}
