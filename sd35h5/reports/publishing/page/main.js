/** The page: its navigation, its choices, and the view that they make. */

import {queryOf, readAddress} from "./address.js";
import {choiceOf, toldChoice} from "./choosing.js";
import {drawCompare} from "./compare_page.js";
import {openData} from "./data.js";
import {h, note} from "./dom.js";
import {drawFiles} from "./files_page.js";
import {drawMaps} from "./maps_page.js";
import {drawOverview} from "./overview_page.js";
import {drawSidebar} from "./sidebar.js";
import {drawSinks} from "./sinks_page.js";
import {drawTokens} from "./tokens_page.js";

const VIEWS = {
  "": drawOverview, sinks: drawSinks, tokens: drawTokens, maps: drawMaps, compare: drawCompare, files: drawFiles,
};
const SERVED = "This folder is shown by a server: run “python -m http.server” in it and open http://localhost:8000. "
  + "A page made with --single opens without one.";

async function start() {
  const site = document.getElementById("site"), beside = site.dataset.root ?? null;
  const root = beside === null ? null : new URL(beside || "./", location.href).href;
  if (root !== null && location.protocol === "file:") {
    site.replaceChildren(note(SERVED));
    return;
  }
  const data = await openData(root);
  await new Page(site, data, root).open();
}

/** What all views get: data, list, choice, their own parameters, and how to change either. */
class Page {
  constructor(site, data, root) {
    Object.assign(this, {site, data, list: data.list, root, turn: 0, closing: []});
    this.frame();
    addEventListener("popstate", () => this.open());
  }

  /** Show what the URL says. */
  async open() {
    const {said, page} = readAddress(this.list, this.data.isOne);
    const asked = page ?? (this.root === null ? "" : location.href.split(/[?#]/)[0].slice(this.root.length).split("/")[0]);
    this.page = asked in VIEWS ? asked : "";
    Object.assign(this, choiceOf(this.list, said));
    this.own = this.left;
    await this.draw();
  }

  frame() {
    this.side = h("aside", {"aria-label": "what is shown"});
    this.main = h("main", {id: "main", tabIndex: -1});
    this.nav = h("nav", {"aria-label": "pages"});
    this.site.replaceChildren(
      h("header", {}, h("strong", {className: "brand"}, "sd35h5"), this.nav),
      h("div", {className: "body"}, this.side, this.main));
  }

  /** The address of a page with what is chosen, and with its own parameters. */
  address(page, own = {}, changes = {}) {
    const chosen = {...toldChoice(this.list, {...this.choice, ...changes}), ...own};
    if (this.root === null) return queryOf(this.list, chosen, page) || "?";
    return `${this.root}${page ? `${page}/` : ""}${queryOf(this.list, chosen, "")}`;
  }

  link(page, name, own = {}, changes = {}) {
    const current = page === this.page && !Object.keys(changes).length;
    const href = this.address(page, own, changes);
    return h("a", {href, "aria-current": current ? "page" : null, onclick: event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      history.pushState(null, "", href === "?" ? location.pathname : href);
      this.open().then(() => scrollTo(0, 0));
    }}, name);
  }

  /** Change what is chosen, on all pages. silent: the view has drawn it already. */
  async choose(changes, silent = false) {
    const next = {...this.choice, ...changes};
    if (changes.run) Object.assign(next, this.ofOtherRun(changes.run, next));
    if (changes.samples !== undefined && next.samples && !next.samples.includes(next.sample)) next.sample = next.samples[0];
    this.choice = choiceOf(this.list, said(toldChoice(this.list, next))).choice;
    this.refused = [];
    await (silent ? this.drawChoices() : this.draw());
  }

  ofOtherRun(run, next) {
    return {samples: null, sample: 0, tags: [], find: "", others: next.others.filter(name => name !== run.name)};
  }

  /** Change a parameter of this page alone. */
  async set(own, silent = false) {
    this.own = {...this.own, ...own};
    await (silent ? this.drawChoices() : this.draw());
  }

  async drawChoices() {
    const own = Object.fromEntries(Object.entries(this.own).filter(([, value]) => value !== ""));
    const query = this.address(this.page, own);
    const url = new URL(query === "?" ? location.pathname : query, location.href);
    if (url.href !== location.href) history.replaceState(null, "", url);
    this.nav.replaceChildren(...Object.entries(this.list.pages).map(([page, name]) => this.link(page, name)));
    const {run} = this.choice;
    this.samples = await this.data.table(`${run.key}/samples.arrow`);
    this.prompts = () => this.data.table(`${run.key}/prompts.arrow`);
    drawSidebar(this.side, this.list, this.choice, this.samples, this.prompts, changes => this.choose(changes));
  }

  async draw() {
    const turn = ++this.turn;
    await this.drawChoices();
    const content = h("div", {className: "view"});
    const closing = [];
    this.busy(true);
    try {
      await VIEWS[this.page](content, this, closing);
    } catch (error) {
      content.append(note(`This could not be shown: ${error.message}`));
      console.error(error);
    }
    if (turn !== this.turn) { // another choice came meanwhile
      closing.forEach(close => close());
      return;
    }
    this.closing.forEach(close => close());
    this.closing = closing;
    this.main.replaceChildren(...[this.told(), content].filter(Boolean));
    document.title = `${this.list.pages[this.page]} · ${this.list.title}`;
    this.busy(false);
    this.main.dispatchEvent(new CustomEvent("drawn"));
  }

  busy(is) {
    this.main.setAttribute("aria-busy", String(is));
  }

  told() {
    if (!this.refused.length) return null;
    return note(`The link also asked for another ${this.refused.join(", ")}, which this page does not have: `
      + "the default is shown.");
  }
}

function said(told) {
  return Object.fromEntries(Object.entries(told).filter(([, value]) => String(value) !== "").map(
    ([name, value]) => [name, Array.isArray(value) ? value.join("\n") : value]));
}

start().catch(error => {
  document.getElementById("site").append(note(`This page could not be read: ${error.message}`));
});
