/** Hands on to a linked figure of the same name what is chosen, and what was made for that: it draws nothing. */

export default function ({data}) {
  const said = (window.sd35h5Said ??= {});
  said[data.name] = {...said[data.name], ...data.said};
  window.dispatchEvent(new CustomEvent("sd35h5-said", {detail: data.name}));
}
