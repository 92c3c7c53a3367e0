/** Streamlit's side of the linked view: a figure's numbers come here, once as long as they stay the same; what is chosen,
and what follows from it, comes through said_component.js. */

const figures = new WeakMap(); // of each element that Streamlit calls this with, again and again

export default function ({data, parentElement, setTriggerValue}) {
  const options = unpacked(data);
  const figure = figures.get(parentElement) || begun(parentElement);
  figure.options = options;
  figure.tell = selection => options.tells && setTriggerValue("rested", selection);
  figure.draw();
  return () => { figure.end(); figures.delete(parentElement); };
}

function begun(parentElement) {
  const figure = {view: null};
  const said = () => (window.sd35h5Said || {})[figure.options.name] || {};
  figure.draw = () => {
    const given = {...withExtras(figure.options, said()), onChange: selection => figure.tell(selection)};
    if (figure.view) figure.view.update(given);
    else figure.view = linkedView(parentElement, given);
  };
  const heard = event => { if (event.detail === figure.options.name) figure.draw(); };
  window.addEventListener("sd35h5-said", heard);
  figure.end = () => {
    window.removeEventListener("sd35h5-said", heard);
    if (figure.view) figure.view.destroy();
    if (window.sd35h5Said) delete window.sd35h5Said[figure.options.name];
  };
  figures.set(parentElement, figure);
  return figure;
}

/** The options with what is chosen, and with bands and marks where they were made for that. */
function withExtras(options, {selection = {}, extras = null}) {
  const fits = extras && JSON.stringify(extras.of) === JSON.stringify(selection);
  const panels = options.panels.map(panel => ({...panel, ...(fits ? extras.panels[panel.name] : {})}));
  return {...options, panels, selection};
}
