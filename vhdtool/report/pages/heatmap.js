"use strict";
// The heat map: reads the pieces of the disk from the page, draws the part in view, says what a cell holds.
// Layers -1: zeros, -2: damaged, -3: layers too small to be told apart.
(async () => {
  const ZEROS = -1, DAMAGED = -2, OTHER = -3, BEYOND = -4;
  const byId = (id) => document.getElementById(id);
  const spec = JSON.parse(byId("heat-data").textContent);
  const canvas = byId("heat"), stage = byId("stage"), tip = byId("tip"), cursor = byId("cursor");
  const place = byId("view"), overview = byId("overview"), part = byId("window");
  if (!("DecompressionStream" in window)) {
    place.textContent = "This browser is too old to zoom: it shows the whole disk only.";
    return;
  }

  // --- The pieces: layers[i] holds guest bytes edges[i] to edges[i + 1].
  const packed = Uint8Array.from(atob(spec.data), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  let at = 0;
  const number = () => {
    let value = 0, scale = 1, byte;
    do { byte = raw[at++]; value += (byte & 127) * scale; scale *= 128; } while (byte > 127);
    return value;
  };
  const layers = new Int16Array(spec.count), edges = new Float64Array(spec.count + 1);
  for (let i = 0; i < spec.count; i++) layers[i] = number() + OTHER;
  for (let i = 0; i < spec.count; i++) edges[i + 1] = Math.min(spec.size, edges[i] + number() * spec.unit);
  const pieceAt = (offset) => {
    let low = 0, high = spec.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (edges[middle] <= offset) low = middle; else high = middle - 1;
    }
    return low;
  };

  const rgb = spec.colours.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  const damage = [1, 3, 5].map((i) => parseInt(spec.damaged.slice(i, i + 2), 16));
  const names = [...document.querySelectorAll("[data-name]")].map((e) => e.textContent);
  const sums = new Float64Array(rgb.length);
  let chosen = null; // the layer to show alone

  // What [start, stop) holds: its layer for the colour, the share that is data, and how it adds up.
  function holds(start, stop, piece, parts) {
    let best = ZEROS, most = 0, given = 0, damaged = false;
    const seen = [];
    for (; piece < spec.count && edges[piece] < stop; piece++) {
      const length = Math.min(stop, edges[piece + 1]) - Math.max(start, edges[piece]);
      const layer = layers[piece];
      if (layer !== ZEROS) given += length;
      if (layer >= 0) {
        if (!sums[layer]) seen.push(layer);
        sums[layer] += length;
        if (sums[layer] > most && (chosen === null || best !== chosen)) { most = sums[layer]; best = layer; }
        if (layer === chosen) best = layer;
      } else if (layer === DAMAGED) damaged = true;
      else if (layer === OTHER && best < 0) best = OTHER;
      if (parts && layer < 0) parts.set(layer, (parts.get(layer) || 0) + length);
      if (edges[piece + 1] > stop) break;
    }
    const own = chosen === null ? 0 : sums[chosen] / (stop - start);
    for (const layer of seen) {
      if (parts) parts.set(layer, sums[layer]);
      sums[layer] = 0;
    }
    return { layer: damaged ? DAMAGED : best, share: given / (stop - start), own, piece };
  }

  function paint(image, cells, start, cell) {
    const end = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    let piece = pieceAt(start);
    for (let i = 0; i < cells; i++) {
      const from = start + i * cell, to = Math.min(from + cell, spec.size);
      let colour = [0, 0, 0], alpha = 0;
      if (from >= spec.size) {
        colour = end; alpha = 255;
      } else {
        const found = holds(from, to, piece, null);
        piece = Math.min(found.piece, spec.count - 1);
        if (found.layer === DAMAGED) { colour = damage; alpha = 255; }
        else if (found.layer !== ZEROS) {
          colour = found.layer === OTHER ? rgb[0] : rgb[found.layer];
          alpha = 140 + 115 * found.share;
          if (chosen !== null) alpha = found.layer === chosen ? 140 + 115 * found.own : 0.15 * alpha;
        }
      }
      image.data.set([colour[0], colour[1], colour[2], alpha], 4 * i);
    }
  }

  // --- The view: rows of cells, each a power of two bytes.
  let columns = 0, rows = 0, cell = 0, start = 0, cellMost = 0, held = null;
  const cellLeast = Math.max(spec.grain, spec.sector);
  const rowBytes = () => columns * cell;
  function measure() {
    const wasWhole = cell === cellMost;
    const width = stage.clientWidth;
    const fine = width < 600 ? 5 : 4;
    columns = 2 ** Math.floor(Math.log2(width / fine));
    const tall = Math.min(innerHeight * 0.66, 640);
    // A small disk gets larger cells rather than a few thin rows.
    while (columns > 16 && spec.size / (cellLeast * columns) < (tall * columns) / width / 2) columns /= 2;
    const rowsMost = Math.max(4, Math.floor((tall * columns) / width));
    cellMost = cellLeast;
    while (spec.size > cellMost * columns * rowsMost) cellMost *= 2;
    rows = Math.min(rowsMost, Math.ceil(spec.size / (columns * cellMost)));
    canvas.width = columns;
    canvas.height = rows;
    cell = wasWhole ? cellMost : Math.min(Math.max(cell, cellLeast), cellMost);
  }
  function clamp() {
    const last = Math.ceil(spec.size / rowBytes()) - rows;
    const row = Math.floor(start / rowBytes());
    start = Math.max(0, Math.min(row, last)) * rowBytes();
  }
  function draw() {
    clamp();
    const image = new ImageData(columns, rows);
    paint(image, columns * rows, start, cell);
    canvas.getContext("2d").putImageData(image, 0, 0);
    const stop = Math.min(spec.size, start + rows * rowBytes());
    const isWhole = cell === cellMost;
    canvas.classList.toggle("zoomed", !isWhole);
    byId("zoom-out").disabled = byId("zoom-all").disabled = isWhole;
    byId("zoom-in").disabled = cell <= cellLeast;
    place.textContent = (isWhole ? "The whole disk" : sizeText(stop - start) + " from " + hex(start)) +
      "; a cell is " + sizeText(cell) + ", a row " + sizeText(rowBytes());
    part.style.left = (100 * start) / spec.size + "%";
    part.style.width = (100 * (stop - start)) / spec.size + "%";
    part.hidden = isWhole;
    show(held);
  }
  function drawOverview() {
    const image = new ImageData(512, 1);
    paint(image, 512, 0, spec.size / 512);
    overview.getContext("2d").putImageData(image, 0, 0);
  }
  function redraw() {
    if (!stage.clientWidth) return; // not laid out: nobody looks
    measure();
    drawOverview();
    draw();
  }
  function zoom(factor, index) {
    const next = cell * factor;
    if (next < cellLeast || next > cellMost) return false;
    const offset = start + index * cell, row = Math.floor(index / columns);
    cell = next;
    start = offset - row * rowBytes();
    if (held !== null) held = undefined;
    draw();
    const now = Math.floor((offset - start) / cell);
    if (held === undefined) show(now >= 0 && now < columns * rows ? now : null);
    return true;
  }
  function whole() { cell = cellMost; start = 0; held = null; draw(); }
  function goTo(offset) { start = offset - (rows / 2) * rowBytes(); held = null; draw(); }

  // --- What a cell holds.
  const hex = (offset) => "0x" + offset.toString(16);
  function sizeText(size) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = 0;
    while (size >= 1024 && unit < 5) { size /= 1024; unit++; }
    return (Number.isInteger(size) ? size : size.toFixed(1)) + " " + units[unit];
  }
  function element(name, text, className) {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }
  function line(colour, text, size, whole) {
    const item = document.createElement("li"), swatch = element("i", "");
    if (colour) swatch.style.background = colour;
    const about = spec.exact ? "" : "≈ ";
    item.append(swatch, element("span", text), element("span", about + sizeText(size) + ", " + percent(size / whole)));
    return item;
  }
  const percent = (share) => (share > 0 && share < 0.01 ? "< 1 %" : Math.round(100 * share) + " %");
  function show(index) {
    held = index;
    tip.hidden = cursor.hidden = index === null;
    if (index === null) return;
    const from = start + index * cell, to = Math.min(from + cell, spec.size);
    if (from >= spec.size) return show(null);
    const parts = new Map();
    holds(from, to, pieceAt(from), parts);
    const list = document.createElement("ul");
    const data = [...parts].filter((p) => p[0] >= 0).sort((a, b) => b[1] - a[1]);
    for (const [layer, size] of data.slice(0, 6)) list.append(line(spec.colours[layer], "layer " + layer + ": " + names[layer], size, to - from));
    const rest = data.slice(6).reduce((sum, p) => sum + p[1], parts.get(OTHER) || 0);
    if (rest) list.append(line(null, "other layers", rest, to - from));
    if (parts.has(DAMAGED)) list.append(line(spec.damaged, "damaged", parts.get(DAMAGED), to - from));
    if (parts.has(ZEROS)) list.append(line(null, "zeros", parts.get(ZEROS), to - from));
    tip.replaceChildren(
      element("b", sizeText(to - from) + " at " + sizeText(from)),
      element("span", hex(from) + " to " + hex(to), "mono"), list);
    const scale = canvas.clientWidth / columns, x = (index % columns) * scale, y = Math.floor(index / columns) * scale;
    Object.assign(cursor.style, { left: x + "px", top: y + "px", width: scale + "px", height: scale + "px" });
    const left = x + scale + 12, room = stage.clientWidth - tip.offsetWidth;
    tip.style.left = Math.max(0, left <= room ? left : Math.min(room, x - tip.offsetWidth - 12)) + "px";
    const below = y + scale + 12, above = y - tip.offsetHeight - 12;
    tip.style.top = (y > canvas.clientHeight / 2 ? above : below) + "px";
  }
  function cellUnder(event) {
    const box = canvas.getBoundingClientRect(), scale = box.width / columns;
    const x = Math.floor((event.clientX - box.left) / scale), y = Math.floor((event.clientY - box.top) / scale);
    return x >= 0 && x < columns && y >= 0 && y < rows ? y * columns + x : null;
  }

  // --- Hands: mouse, fingers, keys.
  const fingers = new Map();
  let drag = null, spread = 0;
  const middle = () => Math.floor(rows / 2) * columns + columns / 2;
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    drag = { y: event.clientY, start, moved: false };
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()];
      const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const index = cellUnder({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
      spread = spread || now;
      if (index !== null && now > spread * 1.4) { zoom(1 / 2, index); spread = now; }
      if (index !== null && now < spread / 1.4) { zoom(2, index); spread = now; }
      drag = null;
    } else if (fingers.size === 1 && drag && cell < cellMost) {
      const moved = Math.round(((drag.y - event.clientY) * columns) / canvas.clientWidth);
      if (moved) { drag.moved = true; if (!canvas.hasPointerCapture(event.pointerId)) canvas.setPointerCapture(event.pointerId); }
      if (drag.moved) { start = drag.start + moved * rowBytes(); held = null; draw(); }
    } else if (event.pointerType === "mouse" && !fingers.size) show(cellUnder(event));
  });
  const lift = (event) => {
    if (event.type === "pointerup" && drag && !drag.moved && fingers.size === 1) show(cellUnder(event));
    fingers.delete(event.pointerId);
    drag = null;
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && document.activeElement !== canvas) show(null); });
  canvas.addEventListener("dblclick", (event) => zoom(event.shiftKey ? 2 : 1 / 2, cellUnder(event) ?? middle()));
  canvas.addEventListener("blur", () => show(null));
  canvas.addEventListener("wheel", (event) => {
    // The page scrolls on, unless the map was clicked or Ctrl is held (as a pinch on a touch pad does).
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    const index = cellUnder(event);
    if (index !== null && (zoom(event.deltaY < 0 ? 1 / 2 : 2, index) || event.ctrlKey)) event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const from = held ?? middle();
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step) {
      let next = held === null ? from : from + step;
      if (next < 0 || next >= columns * rows) {
        const before = start;
        start += Math.sign(step) * rowBytes();
        held = null;
        draw();
        next = start === before ? from : next - Math.sign(step) * columns;
      }
      show(next);
    } else if (event.key === "+" || event.key === "=") zoom(1 / 2, from);
    else if (event.key === "-") zoom(2, from);
    else if (event.key === "0" || event.key === "Home") whole();
    else if (event.key === "PageDown" || event.key === "PageUp") { start += (event.key === "PageDown" ? 1 : -1) * rows * rowBytes(); held = null; draw(); }
    else if (event.key === "Escape") show(null);
    else return;
    event.preventDefault();
  });
  byId("zoom-in").addEventListener("click", () => zoom(1 / 2, held ?? middle()));
  byId("zoom-out").addEventListener("click", () => zoom(2, held ?? middle()));
  byId("zoom-all").addEventListener("click", whole);
  overview.addEventListener("pointerdown", (event) => {
    const box = overview.getBoundingClientRect();
    goTo(((event.clientX - box.left) / box.width) * spec.size);
  });
  for (const button of document.querySelectorAll("[data-layer]")) {
    button.addEventListener("click", () => {
      const layer = Number(button.dataset.layer);
      chosen = chosen === layer ? null : layer;
      for (const other of document.querySelectorAll("[data-layer]")) other.setAttribute("aria-pressed", Number(other.dataset.layer) === chosen);
      redraw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => { if (stage.clientWidth !== measured) { measured = stage.clientWidth; redraw(); } }).observe(stage);
  let measured = stage.clientWidth;
  stage.querySelector("img").remove();
  canvas.hidden = false;
  redraw();
  document.documentElement.dataset.drawn = "yes";
})();
