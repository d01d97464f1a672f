// The viewer's script. It draws with NiiVue and computes itself what is said: places and values come from the voxels
// of the file, by the file's own affine.
"use strict";
(() => {
  const $ = (name) => document.getElementById(`v-${name}`);
  const data = JSON.parse($("data").textContent);
  const VIEWS = [["all", 3], ["axial", 0], ["coronal", 1], ["sagittal", 2], ["3D", 4]]; // and NiiVue's numbers
  const DRAG = { crosshair: 8, measurement: 2, windowing: 9, pan: 3 }; // NiiVue's
  const state = { number: 0, document: null, volumes: [], paint: null, hidden: new Set(), mark: null, mm: null, turn: 0 };
  const { parse, emptyLike, difference, middleOf, paint, toMm, toVoxel, valueAt, length } = segpipeVoxels;
  const hooks = { shown: () => {}, moved: () => {}, leaving: () => true, keys: {} }; // of the editor, where there is one
  let nv = null;

  // ---- volumes

  async function asked(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  async function bytesOf(number, index) {
    if (!data.inline) {
      return (await asked(`case/${number}/${index}`)).arrayBuffer();
    }
    const text = atob(document.getElementById(`v-${number}-${index}`).textContent);
    const packed = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place++) packed[place] = text.charCodeAt(place);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  // ---- a case

  async function show(number) {
    const turn = ++state.turn;
    $("state").textContent = "reading …";
    $("case").value = String(number);
    Object.assign(state, { number, mark: null, mm: null, hidden: new Set() });
    try {
      const about = data.inline ? data.cases[number] : await (await asked(`case/${number}`)).json();
      if (turn !== state.turn) return; // another case was asked for meanwhile
      state.document = about;
      tellNotes(about.notes);
      if (about.pictures_only !== null) return pictures(about, about.pictures_only);
      if (!data.niivue) return pictures(about, data.no_niivue);
      const why = await begin();
      if (why) return pictures(about, why);
      const volumes = [];
      for (let index = 0; index < about.volumes.length; index++) {
        volumes.push({ ...about.volumes[index], ...parse(await bytesOf(number, index)), on: index === 0 });
        if (turn !== state.turn) return;
      }
      const most = nv.gl.getParameter(nv.gl.MAX_3D_TEXTURE_SIZE);
      if (Math.max(...volumes[0].shape) > most) return pictures(about, `this browser draws at most ${most} voxels along an axis`);
      state.volumes = volumes;
      addDifferences(volumes);
      hooks.shown(about);
      await draw();
      $("pictures").hidden = true;
      $("state").textContent = "";
    } catch (error) {
      if (turn === state.turn) pictures(state.document || { id: data.cases[number].id }, `the volumes cannot be shown: ${error.message}`);
    }
  }

  function addDifferences(volumes) {
    const map = (name) => volumes.find((volume) => volume.name === name && volume.kind === "labels");
    for (const [one, other] of [["prediction", "truth"], ["prediction", "earlier"]]) {
      if (map(one) && map(other)) volumes.push(difference(map(one), map(other), `${one} against ${other}`, data.colours));
    }
    const first = volumes.find((volume) => volume.kind === "labels");
    for (const volume of volumes) {
      if (first && volume.kind === "labels" && volume.name.split(":")[0] === first.name.split(":")[0]) volume.on = true;
    }
  }

  function tellNotes(notes) {
    $("notes").replaceChildren(...(notes || []).map((note) => element("li", note)));
    $("notes").hidden = !(notes && notes.length);
  }

  function pictures(about, why) {
    state.volumes = [];
    $("work").hidden = true;
    $("pictures").hidden = false;
    $("picture").hidden = !about.picture;
    if (about.picture) Object.assign($("picture"), { src: about.picture, alt: `slices of ${about.id} with outlines` });
    $("why").textContent = `Volumes are not shown: ${why}${about.picture ? "" : " There is no picture of this case."}`;
    $("state").textContent = "";
  }

  async function begin() {
    $("work").hidden = false;
    if (nv) return null;
    if (!document.createElement("canvas").getContext("webgl2")) return "this browser has no WebGL 2.";
    nv = new niivue.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: false, isOrientCube: true,
      isNearestInterpolation: true, isSliceMM: false, multiplanarForceRender: true, multiplanarShowRender: 1,
      multiplanarLayout: 2, tileMargin: 4, showLegend: false, dragAndDropEnabled: false, crosshairWidthUnit: "mm",
      crosshairColor: [0.2, 0.9, 0.9, 0.7], measureLineColor: [1, 0.9, 0.2, 1], measureTextColor: [1, 0.9, 0.2, 1],
      logLevel: "error", viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", isForceMouseClickToVoxelCenters: true,
    });
    await nv.attachToCanvas($("canvas"), false);
    const ramp = (alpha) => ({ R: [0, 255], G: [0, 255], B: [0, 255], A: [0, alpha], I: [0, 255] });
    nv.setRenderAzimuthElevation(160, 15); // from the front: the patient's right is on the left here as well
    nv.addColormap("v-body", ramp(96)); // the alpha counts in 3D alone
    nv.addColormap("v-hidden", ramp(0));
    nv.onLocationChange = (place) => {
      tell([...place.mm].slice(0, 3));
      hooks.moved(state.mm, place.axCorSag);
    };
    nv.onIntensityChange = (volume) => volume === nv.volumes[0] && fillWindow(volume.cal_min, volume.cal_max);
    nv.onMeasurementCompleted = tellLengths;
    const drawScene = nv.drawScene.bind(nv);
    nv.drawScene = () => { drawScene(); if (state.volumes.length) letter(); };
    useMouse();
    return null;
  }

  // NiiVue's own letters are lost on bright voxels: these have an edge, and stand in the page's text.
  function letter() {
    const letters = { 0: "RLAP", 1: "RLSI", 2: "APSI" };
    const edge = 1.1; // em
    $("letters").replaceChildren(...(state.document.oriented ? nv.screenSlices : []).flatMap((tile) => {
      const [left, top, width, height] = tile.leftTopWidthHeight.map((side) => side / nv.uiData.dpr);
      const places = [[left, top + height / 2], [left + width, top + height / 2], [left + width / 2, top], [left + width / 2, top + height]];
      return [...(letters[tile.axCorSag] || "")].map((each, side) => {
        const made = element("span", each);
        const [across, up] = [[0, 0.5], [1, 0.5], [0.5, 0], [0.5, 1]][side];
        made.style.left = `calc(${places[side][0]}px - ${across * edge}em)`;
        made.style.top = `calc(${places[side][1]}px - ${up * edge}em)`;
        return made;
      });
    }));
  }

  async function draw() {
    const images = state.volumes.filter((volume) => volume.kind === "image");
    $("channel").replaceChildren(...images.map((volume, index) => new Option(volume.name, String(index))));
    $("channel-box").hidden = images.length < 2;
    nv.opts.isOrientCube = state.document.oriented;
    nv.clearMeasurements();
    tellLengths();
    $("body").checked = !state.volumes.some((volume) => volume.kind === "labels");
    await put(images[0]);
    drawLists();
    const { shape, affine } = images[0];
    const labels = state.volumes.find((volume) => volume.kind === "labels");
    jump(toMm(affine, (labels && middleOf(labels)) || shape.map((size) => Math.floor(size / 2))));
  }

  async function put(image) { // the image, and over it one volume of colours
    state.image = image;
    const window = image.shown || image.window;
    const load = (buffer, facts) => niivue.NVImage.loadFromUrl({ url: buffer, name: "volume.nii", ...facts });
    image.drawn = await load(image.buffer.slice(0), { colormap: "gray", cal_min: window[0], cal_max: window[1] });
    const layers = state.volumes.some((volume) => volume.kind !== "image");
    state.paint = layers ? await load(emptyLike(image, 2304, 32), { opacity: 0.5 }) : null; // 2304: RGBA
    nv.volumes = [];
    [image.drawn, state.paint].forEach((volume) => volume && nv.addVolume(volume));
    nv.setInterpolation(true);
    const longest = Math.max(...image.shape.map((size, axis) => size * Math.hypot(...image.affine.map((row) => row[axis]))));
    Object.assign(nv.opts, { crosshairWidth: longest / 350, crosshairGap: longest / 60 });
    fillWindow(...window);
    repaint();
  }

  function repaint() {
    if (state.paint) {
      paint(state.paint.img, state.volumes, state.hidden);
      state.paint.opacity = Number($("opacity").value);
    }
    state.image.drawn.colormap = $("body").checked ? "v-body" : "v-hidden";
    nv.updateGLVolume();
    tell(state.mm);
  }

  function repaintAt(places) { // of voxels alone; what is drawn is that of `refresh`
    if (state.paint) paint(state.paint.img, state.volumes, state.hidden, places);
  }

  const refresh = () => nv.updateGLVolume();

  // ---- what is said

  const digits = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(7))));
  const withUnit = (value, unit) => `${digits(value)}${unit ? ` ${unit}` : ""}`;

  function tell(mm) {
    state.mm = mm;
    if (!mm || !state.volumes.length) return;
    const voxel = toVoxel(state.image.affine, mm);
    const side = (value, letters) => `${letters[value < 0 ? 0 : 1]} ${Math.abs(value).toFixed(1)}`;
    const sides = state.document.oriented ? ["LR", "PA", "IS"].map((letters, axis) => side(mm[axis], letters)) : mm.map((part) => part.toFixed(1));
    $("place").textContent = `${sides.join(", ")} mm; voxel ${voxel.join(", ")}`;
    $("values").replaceChildren(...state.volumes.map((volume) => {
      const value = valueAt(volume, voxel);
      const row = element("tr", "");
      const label = volume.kind === "labels" && value && volume.labels.find((each) => each.value === value);
      const words = value === null ? "outside" : volume.kind !== "labels" ? withUnit(value, volume.unit) : value ? `${label.name} (${value})` : "–";
      row.append(element("th", volume.name), element("td", words));
      row.dataset.value = value;
      return row;
    }));
    tellLengths();
  }

  function tellLengths() {
    const lines = (nv ? nv.document.completedMeasurements : []).map((each) => `${each.distance.toFixed(1)} mm`);
    if (state.mark && state.mm) lines.push(`from the mark: ${length(state.mark, state.mm).toFixed(1)} mm`);
    $("lengths").textContent = lines.join("; ");
  }

  function fillWindow(low, high) {
    state.image.shown = [low, high];
    [$("low").value, $("high").value] = [digits(low), digits(high)];
    $("unit").textContent = state.image.unit || "(no unit in the file)";
  }

  function setWindow(low, high) {
    if (!(Number.isFinite(low) && Number.isFinite(high) && low < high)) return;
    Object.assign(state.image.drawn, { cal_min: low, cal_max: high });
    fillWindow(low, high);
    nv.updateGLVolume();
  }

  // ---- the panel

  function element(tag, text, facts = {}) {
    return Object.assign(document.createElement(tag), { textContent: text, ...facts });
  }

  function button(text, act, pressed) {
    const made = element("button", text, { type: "button", onclick: act });
    if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed));
    return made;
  }

  function check(text, on, act, colour) {
    const label = element("label", "", { className: "v-check" });
    label.append(element("input", "", { type: "checkbox", checked: on, onchange: (event) => act(event.target.checked) }), " ");
    if (colour) {
      const swatch = element("span", "", { className: "v-swatch" });
      swatch.style.background = `rgb(${colour.join(" ")})`;
      label.append(swatch);
    }
    label.append(text);
    return label;
  }

  function drawLists() {
    const layers = state.volumes.filter((volume) => volume.kind !== "image");
    $("layers").replaceChildren(...layers.map((volume) => check(volume.name, volume.on, (on) => {
      volume.on = on;
      drawLists();
      repaint();
    })));
    if (!layers.length) $("layers").textContent = "none beside the image";
    const seen = layers.filter((volume) => volume.on && volume.kind === "labels");
    $("labels-box").hidden = !seen.length;
    $("labels").replaceChildren(...seen.flatMap((volume) => volume.labels.map((label) => {
      const key = `${volume.name} ${label.value}`;
      const name = (seen.length > 1 ? `${volume.name}: ` : "") + label.name + (label.present ? "" : " (not in this case)");
      return check(name, !state.hidden.has(key), (on) => {
        state.hidden[on ? "delete" : "add"](key);
        repaint();
      }, label.colour);
    })));
    const map = layers.find((volume) => volume.kind === "map" && volume.on);
    $("map-box").hidden = !map;
    if (map) {
      $("map-name").textContent = map.name;
      $("map-unit").textContent = map.unit || "(no unit)";
      [$("map-low").value, $("map-high").value] = (map.shown || map.window).map(digits);
    }
    const first = state.image.window;
    const presets = [{ name: "first", low: first[0], high: first[1] }, ...state.image.presets];
    $("presets").replaceChildren(...presets.map((each) => button(each.name, () => setWindow(each.low, each.high))));
    drawViews();
  }

  function drawViews() {
    $("views").replaceChildren(...VIEWS.map(([name, type]) => button(name, () => view(type), nv.opts.sliceType === type)));
  }

  function view(type) {
    nv.setSliceType(type);
    drawViews();
  }

  function alone() { // the next layer alone
    const layers = state.volumes.filter((volume) => volume.kind !== "image");
    if (!layers.length) return;
    const next = (layers.findIndex((volume) => volume.on) + 1) % layers.length;
    layers.forEach((volume, index) => (volume.on = index === next));
    drawLists();
    repaint();
  }

  function jump(mm) {
    nv.scene.crosshairPos = nv.mm2frac(mm, 0, true);
    tell(mm);
    nv.drawScene();
  }

  function useMouse() {
    const left = $("measure").checked ? DRAG.measurement : DRAG.crosshair;
    nv.setMouseEventConfig({ leftButton: { primary: left, withShift: DRAG.measurement }, rightButton: DRAG.windowing, centerButton: DRAG.pan });
  }

  const KEYS = {
    ArrowLeft: () => nv.moveCrosshairInVox(1, 0, 0), ArrowRight: () => nv.moveCrosshairInVox(-1, 0, 0),
    ArrowUp: () => nv.moveCrosshairInVox(0, 1, 0), ArrowDown: () => nv.moveCrosshairInVox(0, -1, 0),
    PageUp: () => nv.moveCrosshairInVox(0, 0, 1), PageDown: () => nv.moveCrosshairInVox(0, 0, -1),
    l: () => { $("opacity").value = Number($("opacity").value) ? "0" : "0.5"; repaint(); },
    "[": () => { $("opacity").stepDown(); repaint(); }, "]": () => { $("opacity").stepUp(); repaint(); },
    c: alone, w: () => setWindow(...state.image.window), m: mark, b: () => { $("body").checked = !$("body").checked; repaint(); },
    n: () => step(1), p: () => step(-1), "?": () => { $("help").open = !$("help").open; },
    ...Object.fromEntries(VIEWS.map(([, type], index) => [String(index + 1), () => view(type)])),
  };

  function mark() {
    state.mark = state.mm && [...state.mm];
    tellLengths();
  }

  function step(by) {
    const next = state.number + by;
    if (next >= 0 && next < data.cases.length) go(next);
  }

  function go(number) {
    if (hooks.leaving()) show(number);
    else $("case").value = String(state.number);
  }

  function listen() {
    data.cases.forEach((each, index) => $("case").add(new Option(each.id, String(index))));
    $("case").onchange = () => go(Number($("case").value));
    $("previous").onclick = () => step(-1);
    $("next").onclick = () => step(1);
    $("channel").onchange = async () => {
      const [kept, images] = [state.mm, state.volumes.filter((volume) => volume.kind === "image")];
      await put(images[Number($("channel").value)]);
      drawLists();
      jump(kept);
    };
    $("opacity").oninput = $("body").onchange = repaint;
    $("low").onchange = $("high").onchange = () => setWindow(Number($("low").value), Number($("high").value));
    $("map-low").onchange = $("map-high").onchange = () => {
      const map = state.volumes.find((volume) => volume.kind === "map");
      const [low, high] = [Number($("map-low").value), Number($("map-high").value)];
      if (!(low < high)) return;
      map.shown = [low, high];
      repaint();
    };
    $("measure").onchange = useMouse;
    $("mark").onclick = mark;
    $("clear").onclick = () => { nv.clearMeasurements(); state.mark = null; tellLengths(); };
    $("canvas").addEventListener("keydown", (event) => { // before NiiVue, whose own keys are others
      event.stopImmediatePropagation();
      const act = KEYS[event.key] || hooks.keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey || !state.volumes.length) return;
      event.preventDefault();
      act();
    }, { capture: true });
  }

  // for the editor, and for the browser's console
  globalThis.segpipeViewer = { state, hooks, show, jump, tell, repaintAt, refresh, element, get nv() { return nv; } };
  listen();
  if (data.cases.length) {
    $("state").textContent = "reading …";
    setTimeout(() => show(0)); // once the editor has hooked in
  }
})();
