// What the viewer knows of voxels, without a page: plain NIfTI-1, little-endian and unscaled, as our own writer has it.
"use strict";
const segpipeVoxels = (() => {
  const TYPES = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array };
  const RAMP = [[0, 0, 4], [120, 28, 109], [237, 105, 37], [252, 255, 164]]; // as in the style sheet

  function parse(buffer) {
    const view = new DataView(buffer);
    const shape = [42, 44, 46].map((place) => view.getInt16(place, true));
    const affine = [280, 296, 312].map((row) => [0, 4, 8, 12].map((place) => view.getFloat32(row + place, true)));
    const offset = view.getFloat32(108, true);
    const values = new TYPES[view.getInt16(70, true)](buffer, offset, shape[0] * shape[1] * shape[2]);
    return { buffer, shape, affine, offset, values };
  }

  const add = (a, b) => a.map((value, axis) => value + b[axis]);
  const length = (a, b) => Math.hypot(...a.map((value, axis) => value - b[axis]));
  const toMm = (affine, voxel) => affine.map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);

  function toVoxel(affine, mm) { // Cramer's rule
    const [a, b, c] = [0, 1, 2].map((column) => affine.map((row) => row[column]));
    const d = affine.map((row, axis) => mm[axis] - row[3]);
    const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    const dot = (u, v) => u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
    const whole = dot(a, cross(b, c));
    return [dot(d, cross(b, c)), dot(a, cross(d, c)), dot(a, cross(b, d))].map((part) => Math.round(part / whole));
  }

  function valueAt(volume, voxel) {
    const inside = voxel.every((index, axis) => index >= 0 && index < volume.shape[axis]);
    return inside ? volume.values[voxel[0] + volume.shape[0] * (voxel[1] + volume.shape[1] * voxel[2])] : null;
  }

  function emptyLike(volume, type, bits) { // a volume of bytes on the same grid, with another type of NIfTI
    const buffer = new ArrayBuffer(352 + (volume.values.length * bits) / 8);
    new Uint8Array(buffer).set(new Uint8Array(volume.buffer, 0, 352));
    const header = new DataView(buffer);
    header.setInt16(70, type, true);
    header.setInt16(72, bits, true);
    header.setFloat32(108, 352, true);
    return buffer;
  }

  function difference(one, other, name, colours) { // 1: in the first alone, 2: in the other alone, 3: two different labels
    const made = parse(emptyLike(one, 2, 8));
    for (let place = 0; place < made.values.length; place++) {
      const [a, b] = [one.values[place], other.values[place]];
      made.values[place] = a === b ? 0 : b === 0 ? 1 : a === 0 ? 2 : 3;
    }
    const rgb = (text) => [1, 3, 5].map((place) => parseInt(text.slice(place, place + 2), 16));
    const names = [[`${one.name} alone`, rgb(colours.prediction)], [`${other.name} alone`, rgb(colours.truth)],
      ["another label", [240, 228, 66]]];
    const labels = names.map(([label, colour], index) => ({ value: index + 1, name: label, colour, present: made.values.includes(index + 1) }));
    return { ...made, name, kind: "labels", unit: "", labels, on: false };
  }

  function middleOf(volume) { // the labelled voxel nearest to the labels' centre
    const [x, y] = volume.shape;
    const voxelOf = (place) => [place % x, Math.floor(place / x) % y, Math.floor(place / (x * y))];
    let sum = [0, 0, 0], count = 0, best = null, nearest = Infinity;
    volume.values.forEach((value, place) => value && (sum = add(sum, voxelOf(place)), count++));
    if (!count) return null;
    const centre = sum.map((part) => part / count);
    volume.values.forEach((value, place) => {
      const far = value ? length(voxelOf(place), centre) : Infinity;
      if (far < nearest) [best, nearest] = [voxelOf(place), far];
    });
    return best;
  }

  // Layers are painted here, the later over the earlier: NiiVue would fade labels at their edges, and mix layers to
  // colours that stand in no legend.
  function paint(target, volumes, hidden, places = null) {
    if (places) for (const place of places) target.fill(0, 4 * place, 4 * place + 4);
    else target.fill(0);
    for (const volume of volumes.filter((each) => each.on && each.kind !== "image")) {
      const colourOf = volume.kind === "map" ? colourOfMap(volume) : colourOfLabel(volume, hidden);
      let [last, colour] = [null, null];
      const count = places ? places.length : volume.values.length;
      for (let index = 0; index < count; index++) {
        const place = places ? places[index] : index;
        const value = volume.values[place];
        if (!value) continue;
        if (value !== last) [last, colour] = [value, colourOf(value)];
        if (!colour) continue;
        target[4 * place] = colour[0];
        target[4 * place + 1] = colour[1];
        target[4 * place + 2] = colour[2];
        target[4 * place + 3] = 255;
      }
    }
  }

  function colourOfLabel(volume, hidden) {
    const shown = volume.labels.filter((label) => !hidden.has(`${volume.name} ${label.value}`));
    const colours = new Map(shown.map((label) => [label.value, label.colour]));
    return (value) => colours.get(value);
  }

  function colourOfMap(volume) {
    const [low, high] = volume.shown || volume.window;
    return (value) => {
      if (!(value >= low)) return null; // which NaN is not either
      const at = Math.min(1, Math.max(0, value / high)) * (RAMP.length - 1);
      const [from, to] = [RAMP[Math.floor(at)], RAMP[Math.ceil(at)]];
      return from.map((part, index) => Math.round(part + (to[index] - part) * (at % 1)));
    };
  }

  // The voxels whose middles lie within a radius in mm of that of one, itself always; in one slice across an axis, or all.
  function brush(volume, centre, radius, normal) {
    const edges = [0, 1, 2].map((axis) => Math.hypot(...volume.affine.map((row) => row[axis])));
    const reach = edges.map((edge, axis) => (axis === normal ? 0 : Math.floor(radius / edge + 1e-6)));
    const [low, high] = [-1, 1].map((sign) => centre.map((index, axis) => {
      const end = index + sign * reach[axis];
      return sign < 0 ? Math.max(0, end) : Math.min(volume.shape[axis] - 1, end);
    }));
    const places = [];
    for (let z = low[2]; z <= high[2]; z++) {
      for (let y = low[1]; y <= high[1]; y++) {
        for (let x = low[0]; x <= high[0]; x++) {
          const far = [x, y, z].map((index, axis) => (index - centre[axis]) * edges[axis]);
          if (Math.hypot(...far) <= radius + 1e-6) places.push(x + volume.shape[0] * (y + volume.shape[1] * z));
        }
      }
    }
    return places;
  }

  function line(from, to) { // voxels from one to another, each beside the one before
    const steps = Math.max(1, ...from.map((index, axis) => Math.abs(to[axis] - index)));
    return Array.from({ length: steps + 1 }, (_, step) => from.map((index, axis) => Math.round(index + ((to[axis] - index) * step) / steps)));
  }

  return { parse, emptyLike, difference, middleOf, paint, toMm, toVoxel, valueAt, length, brush, line };
})();
