// h5wasm or jsfive under node: node read.mjs MODULE_FOLDER NAME FILE NAMES OUT
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, name, file, names, out] = process.argv.slice(2);
const entry = { h5wasm: 'h5wasm/dist/node/hdf5_hl.js', jsfive: 'jsfive/dist/esm/index.mjs' }[name];
const library = await import(pathToFileURL(path.join(modules, entry)));
let opened;
if (name === 'h5wasm') {
  await library.ready;
  opened = new library.File(file, 'r');
} else {
  const bytes = fs.readFileSync(file);
  opened = new (library.File ?? library.default.File)(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length), 'run.h5');
}
const lines = [];
const attempt = (what) => {
  try { what(); } catch (error) { lines.push(`trouble\t${String(error).replace(/\s+/g, ' ')}`); }
};
const texts = (key, attributes) => {
  for (const [attribute, held] of Object.entries(attributes)) {
    attempt(() => {
      const value = name === 'h5wasm' ? held.value : held;
      const text = Array.isArray(value) && value.length === 1 ? value[0] : value;
      if (typeof text === 'string') lines.push(`attribute\t${key}\t${attribute}\t${text.replace(/\0+$/, '')}`);
    });
  }
};
texts('/', opened.attrs);
let count = 0;
for (const [kind, key] of fs.readFileSync(names, 'utf8').trim().split('\n').map((line) => line.split('\t'))) {
  attempt(() => {
    const dataset = opened.get(key);
    attempt(() => {
      const value = dataset.value;
      const target = `${count++}.values`;
      if (kind === 'texts') fs.writeFileSync(path.join(out, target), [].concat(value).join('\x1e'));
      else fs.writeFileSync(path.join(out, target), Buffer.from(Float64Array.from(value, Number).buffer));
      lines.push(`${kind}\t${key}\t${target}`);
    });
    attempt(() => texts(key, dataset.attrs));
    if (name === 'h5wasm' && key.includes('/')) {
      attempt(() => {
        const scales = dataset.shape.map((_, axis) => dataset.get_attached_scales(axis)[0].replace(/^\//, ''));
        lines.push(`axes\t${key}\t${scales.join(' ')}`);
      });
    }
  });
}
fs.writeFileSync(path.join(out, 'shown.tsv'), lines.join('\n'));
