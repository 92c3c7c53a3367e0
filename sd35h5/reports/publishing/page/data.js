/** What the page reads: Arrow tables and pictures, from the files beside it or from blocks within it, when asked for. */

const KEPT = 40; // files that stay in memory

/** Open the page's data. root: path to its folder, null where all of it is in the page itself. */
export async function openData(root) {
  const source = root === null ? withinPage() : besidePage(root);
  const list = JSON.parse(new TextDecoder().decode(await source.bytes("site.json")));
  const absent = new Set(list.absent), kept = new Map();

  function held(name, make) {
    if (!kept.has(name)) {
      if (kept.size >= KEPT) kept.delete(kept.keys().next().value);
      kept.set(name, make().catch(error => { kept.delete(name); throw error; }));
    }
    return kept.get(name);
  }

  const has = name => !absent.has(name) && source.has(name);
  /** A table {columns by name, about}, null where there is none. */
  const table = name => has(name) ? held(name, async () => asTable(await source.bytes(name))) : Promise.resolve(null);
  /** An array {values: Float32Array, shape, ...what is told of it}, null where there is none. */
  const numbers = name => has(name) ? held(name, async () => asNumbers(await source.bytes(name))) : Promise.resolve(null);
  /** The address of a picture, null where there is none. */
  const picture = name => has(name) ? source.picture(name) : null;
  return {list, has, table, numbers, picture, isOne: root === null};
}

function besidePage(root) {
  return {
    has: () => true,
    picture: name => `${root}data/${name}`,
    async bytes(name) {
      const answer = await fetch(`${root}data/${name}`);
      if (!answer.ok) throw new Error(`${name} could not be read (${answer.status})`);
      return new Uint8Array(await answer.arrayBuffer());
    },
  };
}

function withinPage() {
  const blocks = new Map(), pictures = new Map();
  for (const block of document.querySelectorAll("script[data-name]")) blocks.set(block.dataset.name, block);
  const raw = name => {
    const text = atob(blocks.get(name).textContent), bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    return bytes;
  };
  return {
    has: name => blocks.has(name),
    picture(name) {
      if (!pictures.has(name)) pictures.set(name, URL.createObjectURL(new Blob([raw(name)], {type: "image/webp"})));
      return pictures.get(name);
    },
    async bytes(name) {
      const unpacked = new Blob([raw(name)]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Uint8Array(await new Response(unpacked).arrayBuffer());
    },
  };
}

function read(bytes) {
  const found = globalThis.fl.tableFromIPC(bytes);
  const about = Object.fromEntries([...(found.schema.metadata ?? [])].map(([name, text]) => [name, JSON.parse(text)]));
  return {found, about};
}

function asTable(bytes) {
  const {found, about} = read(bytes);
  const columns = Object.fromEntries(found.schema.fields.map(({name}) => [name, found.getChild(name).toArray()]));
  return {...columns, about, rows: found.numRows};
}

function asNumbers(bytes) {
  const {found, about} = read(bytes);
  const stored = found.getChild("value").toArray(), scale = about.scale;
  const values = Float32Array.from(stored, scale === 1 ? undefined : value => value * scale);
  return {...about, values};
}
