/** Elements made of text: nothing that comes from a file is ever read as HTML. */

/** An element with properties and children; strings become text. Names that begin with `on` are listeners, those with
`data-`, `aria-`, `role`, `for` and `colspan` attributes, all others properties. */
export function h(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  return fill(given, made, children);
}

/** The same for SVG, where all properties are attributes. */
export function svg(tag, given = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  made.append(...children.flat().filter(child => child !== null && child !== undefined));
  return made;
}

function fill(given, made, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [what, how] of Object.entries(value)) made.style.setProperty(what, how);
    else if (/^(data-|aria-|role$|for$|colspan$|list$)/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined));
  return made;
}

/** A text of a file, in its own direction: right to left where it is so, without turning what is around it. */
export function words(text, more = {}) {
  return h("bdi", {dir: "auto", ...more}, String(text));
}

/** A sentence in a box. */
export function note(...told) {
  return h("p", {className: "note", role: "note"}, ...told);
}

/** A figure with its title and its caption. */
export function panel(title, content, caption = "") {
  return h("section", {className: "panel"},
    h("h3", {}, title), content, caption ? h("p", {className: "caption"}, caption) : null);
}

/** A table of rows of texts and numbers, in a box that scrolls by itself. */
export function table(heads, rows) {
  return h("div", {className: "scroll", tabIndex: 0},
    h("table", {},
      h("thead", {}, h("tr", {}, heads.map(head => h("th", {}, head)))),
      h("tbody", {}, rows.map(row => h("tr", {}, row.map(cell => h("td", {
        className: typeof cell === "number" ? "number" : ""},
        cell instanceof Node ? cell : typeof cell === "number" ? cell.toLocaleString("en") : words(cell ?? ""))))))));
}

/** A choice among options [{value, name}]. */
export function choice(label, options, value, onchoose) {
  const box = h("select", {onchange: () => onchoose(options[box.selectedIndex].value)},
    options.map(one => h("option", {value: String(one.value), selected: one.value === value}, one.name)));
  return h("label", {className: "field"}, h("span", {}, label), box);
}

/** A row of buttons of which one is pressed. */
export function segments(label, options, value, onchoose) {
  return h("div", {className: "segments", role: "group", "aria-label": label},
    options.map(one => h("button", {
      type: "button", "aria-pressed": String(one.value === value), onclick: () => onchoose(one.value)}, one.name)));
}

/** A switch. */
export function toggle(label, value, onchoose) {
  const box = h("input", {type: "checkbox", checked: value, onchange: () => onchoose(box.checked)});
  return h("label", {className: "toggle"}, box, h("span", {}, label));
}
