// Correcting a label map: what is drawn is a layer of its own over the others, voxel by voxel on the image's grid.
"use strict";
(() => {
  const $ = (name) => document.getElementById(`v-${name}`);
  const { state, hooks, repaintAt, refresh, tell, element } = segpipeViewer;
  const { brush, line, toVoxel } = segpipeVoxels;
  const IDLE_MS = 30000; // longer pauses are no work
  const edit = { layer: null, strokes: [], stroke: null, begun: null, last: null, unsaved: false, changes: 0, worked: 0, seen: 0 };

  hooks.shown = (about) => {
    Object.assign(edit, { layer: null, strokes: [], stroke: null, last: null, unsaved: false, worked: 0, seen: 0 });
    const allowed = about.edit && about.edit.labels;
    $("edit").hidden = !allowed;
    $("edit-why").hidden = Boolean(allowed);
    $("edit-why").textContent = allowed ? "" : `This case cannot be edited: ${about.edit ? about.edit.why : ""}`;
    if (!allowed) return;
    const { begins, labels } = about.edit;
    const image = state.volumes[0];
    const from = begins === null ? null : state.volumes[begins];
    const values = from ? Uint8Array.from(from.values) : new Uint8Array(image.values.length);
    const shown = labels.map((label) => ({ ...label, present: values.includes(label.value) }));
    edit.layer = { ...image, name: "correction", kind: "labels", unit: "", labels: shown, values, on: true };
    state.volumes = state.volumes.filter((volume) => volume.name !== "correction");
    for (const volume of state.volumes) if (volume.kind === "labels") volume.on = false;
    state.volumes.push(edit.layer);
    const kept = $("brush").value;
    $("brush").replaceChildren(...labels.map((each) => new Option(each.name, String(each.value))), new Option("eraser", "0"));
    $("brush").value = [...$("brush").options].some((each) => each.value === kept) ? kept : String(labels[0].value);
    say("");
  };

  hooks.leaving = () => !edit.unsaved || confirm("This case has changes that are not saved. Leave it all the same?");

  hooks.moved = (mm, plane) => {
    work();
    if (!edit.stroke || !(plane <= 2)) return;
    const voxel = toVoxel(state.image.affine, mm);
    const normal = $("flat").checked ? axisAcross(plane) : null;
    for (const each of line(edit.last || voxel, voxel)) stroke(each, normal);
    edit.last = voxel;
    refresh();
    tell(mm);
  };

  function stroke(voxel, normal) {
    const { layer } = edit;
    const value = Number($("brush").value);
    const places = brush(layer, voxel, Math.max(0, Number($("radius").value) || 0), normal).filter((place) => layer.values[place] !== value);
    for (const place of places) {
      if (!edit.stroke.before.has(place)) edit.stroke.before.set(place, layer.values[place]);
      layer.values[place] = value;
    }
    const label = layer.labels.find((each) => each.value === value);
    if (label && places.length) label.present = true;
    repaintAt(places);
  }

  // The axis of the file that goes through the slices of a plane: that along which its direction is steepest.
  function axisAcross(plane) {
    const across = { 0: 2, 1: 1, 2: 0 }[plane]; // of mm: head, front, right
    const steps = [0, 1, 2].map((axis) => state.image.affine.map((row) => row[axis]));
    const along = steps.map((step) => Math.abs(step[across]) / Math.hypot(...step));
    return along.indexOf(Math.max(...along));
  }

  function begin(event) {
    work();
    if (!$("draw").checked || !edit.layer || !state.volumes.includes(edit.layer)) return;
    edit.stroke = { before: new Map() };
    edit.last = null;
    const plane = planeUnder(event);
    edit.begun = () => edit.stroke && (edit.last || hooks.moved(state.mm, plane)); // NiiVue says nothing where the cross stays
    setTimeout(edit.begun);
  }

  function planeUnder(event) {
    const { nv } = segpipeViewer;
    const box = $("canvas").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top].map((place) => place * nv.uiData.dpr);
    const tile = nv.screenSlices.find(({ leftTopWidthHeight: [left, top, width, height] }) => x >= left && x < left + width && y >= top && y < top + height);
    return tile ? tile.axCorSag : NaN;
  }

  function end() { // once what `begin` left to do is done
    setTimeout(finish);
  }

  function finish() {
    if (!edit.stroke) return;
    const done = edit.stroke;
    edit.stroke = null;
    if (!done.before.size) return;
    edit.strokes.push(done);
    changed();
  }

  function undo() {
    work();
    const last = edit.strokes.pop();
    if (!last) return;
    for (const [place, value] of last.before) edit.layer.values[place] = value;
    repaintAt([...last.before.keys()]);
    refresh();
    tell(state.mm);
    changed();
  }

  function changed() {
    edit.unsaved = true;
    edit.changes += 1;
    say("not saved");
  }

  function say(words) {
    $("edit-state").textContent = words;
    $("undo").disabled = !edit.strokes.length;
    $("save").disabled = !edit.unsaved;
  }

  function work() { // the time that somebody is at it
    const now = performance.now();
    if (edit.seen) edit.worked += Math.min(now - edit.seen, IDLE_MS);
    edit.seen = now;
  }

  async function save() {
    if (!edit.layer || !edit.unsaved) return;
    work();
    const [layer, changes, number, spent] = [edit.layer, edit.changes, state.number, edit.worked];
    say("saving …");
    try {
      const headers = { "Content-Type": "application/octet-stream", "X-Minutes": String(spent / 60000) };
      const answer = await fetch(`case/${number}/correction`, { method: "POST", headers, body: layer.values });
      if (!answer.ok) throw new Error(await answer.text());
      const saved = await answer.json();
      if (layer !== edit.layer) return;
      edit.worked -= spent;
      edit.unsaved = edit.changes !== changes; // while it was being saved
      say(`saved as ${saved.file}: ${saved.changed_voxels} voxels differ from what it began with`);
    } catch (error) {
      if (layer === edit.layer) say(`not saved: ${error.message}`);
    }
  }

  $("canvas").addEventListener("mousedown", (event) => event.button === 0 && begin(event), { capture: true });
  addEventListener("mousemove", () => edit.stroke && edit.begun(), { capture: true }); // a fast drag comes before that
  addEventListener("mouseup", end, { capture: true });
  $("undo").onclick = undo;
  $("save").onclick = save;
  addEventListener("beforeunload", (event) => edit.unsaved && event.preventDefault());
  Object.assign(hooks.keys, { d: () => { $("draw").checked = !$("draw").checked; }, z: undo, s: save });
  const body = $("help").querySelector("tbody");
  for (const [keys, words] of [["d", "draw on and off"], ["z", "undo the last stroke"], ["s", "save the label map"]]) {
    const row = element("tr", "");
    row.append(element("th", keys), element("td", words));
    body.append(row);
  }
})();
