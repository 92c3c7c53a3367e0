/** Pictures of maps, as the dashboard draws them: a map over the picture, or alone in squares. */

import {shadeOf} from "./charts.js";

/** 0..1 between low and high; NaN is 0. */
export function scaled(values, [low, high]) {
  return Float32Array.from(values, value => value === value ? Math.max(0, Math.min(1, (value - low) / Math.max(high - low, 1e-30))) : 0);
}

/** A map (rows × columns) at a size in pixels: smooth between the centres of its cells, or a square a cell. */
export function resized(map, [rows, columns], [height, width], smooth) {
  const across = weights(columns, width, smooth), down = weights(rows, height, smooth);
  const wide = new Float32Array(rows * width), made = new Float32Array(height * width);
  for (let row = 0; row < rows; row++)
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (const [column, weight] of across[x]) sum += map[row * columns + column] * weight;
      wide[row * width + x] = sum;
    }
  for (let y = 0; y < height; y++)
    for (const [row, weight] of down[y])
      for (let x = 0; x < width; x++) made[y * width + x] += wide[row * width + x] * weight;
  return made;
}

/** Which cells make each pixel, with their weights: the nearest, or Keys' cubic convolution (a = −1/2). */
function weights(cells, pixels, smooth) {
  return Array.from({length: pixels}, (_, pixel) => {
    const at = (pixel + 0.5) * cells / pixels - 0.5;
    if (!smooth) return [[Math.max(0, Math.min(cells - 1, Math.round(at))), 1]];
    const first = Math.floor(at) - 1, found = [];
    let sum = 0;
    for (let cell = first; cell < first + 4; cell++) {
      if (cell < 0 || cell >= cells) continue;
      const weight = cubic(Math.abs(at - cell));
      sum += weight;
      found.push([cell, weight]);
    }
    return found.map(([cell, weight]) => [cell, weight / sum]);
  });
}

function cubic(far) {
  if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
  return far < 2 ? ((-0.5 * far + 2.5) * far - 4) * far + 2 : 0;
}

let ramps = null;

/** 256 colours of the map's ramp. */
function colours(ramp) {
  ramps ??= Uint8ClampedArray.from({length: 768}, (_, at) => shadeOf(ramp, Math.floor(at / 3) / 255)[at % 3]);
  return ramps;
}

/** Paint a map over a picture (pixels of the canvas, null for none).

The map covers the picture as far as attention is high, and lets it through where it is low; the picture turns grey as far
as it is covered, so that its colours cannot be mistaken for the map's. */
export function paint(canvas, pixels, map, shape, scale, {opacity, smooth, ramp}) {
  const {width, height} = canvas, context = canvas.getContext("2d"), colour = colours(ramp);
  const weight = resized(scaled(map, scale), shape, [height, width], pixels ? smooth : false);
  const picture = pixels ? new ImageData(new Uint8ClampedArray(pixels.data), width, height) : new ImageData(width, height);
  const {data} = picture, most = opacity ** 6;
  for (let at = 0; at < weight.length; at++) {
    const part = Math.max(0, Math.min(1, weight[at])), from = Math.round(part * 255) * 3, to = at * 4;
    const seen = Math.max(0, Math.min(1, 1.5 * part - 0.05));
    const cover = pixels ? opacity * (most + (1 - most) * seen) : 1;
    const grey = (data[to] + data[to + 1] + data[to + 2]) / 3;
    for (let one = 0; one < 3; one++) {
      const ground = data[to + one] * (1 - cover) + grey * cover;
      data[to + one] = ground * (1 - cover) + colour[from + one] * cover;
    }
    data[to + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}
