/** Sentences made of a page's numbers: text, and links that select what they speak of without leaving the page. Nothing
of them is read as HTML. */

export default function ({data, parentElement, setTriggerValue}) {
  const box = parentElement.querySelector(".answers") ?? parentElement.appendChild(document.createElement("div"));
  box.className = "answers";
  const choose = part => setTriggerValue("chosen", {selects: part.selects, page: part.page});
  box.replaceChildren(...data.sentences.map(parts => {
    const line = document.createElement("p");
    line.append(...parts.map(part => part.link ? link(part, choose) : tied(part.text)));
    return line;
  }));
}

/** A number and its sign stay on one line. */
const tied = text => text.replace(/ (?=[%×])/g, "\u00a0");

function link(part, choose) {
  const made = document.createElement("a");
  const told = () => { made.href = address(part); }; // the page's URL changes with what is chosen
  made.textContent = part.text;
  told();
  for (const name of ["pointerenter", "focus"]) made.addEventListener(name, told);
  made.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; // the browser opens it beside
    event.preventDefault();
    choose(part);
  });
  return made;
}

/** What the URL says once the part is chosen; another page lies beside this one. */
function address(part) {
  const url = new URL(part.page === null ? location.pathname : part.page || ".", location.href);
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(part.selects)) {
    query.delete(name);
    for (const one of [value].flat()) query.append(name, one);
  }
  url.search = query;
  return url.href;
}
