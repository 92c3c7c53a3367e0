/** The page's URL: what is chosen, in the dashboard's words. */

const NUMBER = /^\d{1,6}$/;

/** What the URL says, by the names of the list; values of a name that comes again are lines. */
export function readAddress(list, isOne) {
  const query = new URLSearchParams(location.search || (isOne ? location.hash.slice(1) : ""));
  const said = {};
  for (const [known, name] of Object.entries(list.parameters))
    if (query.has(name)) said[known] = query.getAll(name).join("\n").slice(0, 2000);
  return {said, page: query.get("page")};
}

/** The query of a choice {known name: text or list}, "" for the default. */
export function queryOf(list, chosen, page) {
  const query = new URLSearchParams();
  if (page) query.set("page", page);
  for (const [known, value] of Object.entries(chosen)) {
    const name = list.parameters[known];
    if (Array.isArray(value)) for (const one of value) query.append(name, one);
    else if (value !== "") query.set(name, value);
  }
  const text = query.toString();
  return text && `?${text}`;
}

export const position = text => NUMBER.test(text) ? Number(text) : null;

/** "3-5" or "4" within 0..size - 1 as [first, last]; null for what is none. */
export function spanOf(text, size) {
  const ends = text.split("-").map(position);
  if (ends.length > 2 || ends.includes(null)) return null;
  const [low, high] = [ends[0], ends.at(-1)];
  return low <= high && high < size ? [low, high] : null;
}

export const spanText = ([low, high]) => low === high ? String(low) : `${low}-${high}`;

/** "layer.head" as [layer, head]. */
export function cellOf(text, layers, heads) {
  const [layer, head, ...more] = text.split(".").map(position);
  const inside = layer !== null && head !== null && head !== undefined && !more.length;
  return inside && layer < layers && head < heads ? [layer, head] : null;
}

/** Some of these options from a list, null where one is none of them. */
export function severalOf(text, options, separator, none) {
  const names = text === none ? [] : text.split(separator);
  return names.every(name => options.includes(name)) ? names : null;
}
