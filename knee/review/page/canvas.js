// The picture: image, overlay and contours on one canvas, with zoom and pan.

const $ = (id) => document.getElementById(id);
const heat = bytesOf(run.colors.heat), diverging = bytesOf(run.colors.difference);

const LINES = { student: "#e8a33d", teacher: "#4c9be8" };

const view = {
  item: null, // the case shown, or one of its slices
  hidden: false, // whether the model's output is hidden (blind reading)
  layer: "evidence", // teacher, student, difference (attention), or evidence
  overlay: true, mask: true, cartilage: true, invert: false,
  large: false, // whether the picture also fills the space of the list and the controls
  windowing: false, // whether dragging changes window and level
  opacity: 0.65, threshold: 0,
  level: 0, width: 0, // shift and widening of the case's own window
  zoom: 1, x: 0, y: 0, // top left of the canvas, in image pixels from the corner of the square around the image
};

const canvas = $("canvas"), context = canvas.getContext("2d", { alpha: false });
const picture = document.createElement("canvas"), overlay = document.createElement("canvas");
const prepared = new Map(); // picture → its pixels and fields, of the last ones
const painted = { picture: "", overlay: "" };

// Side of the smallest square around the image. At zoom 1 the canvas shows this square, with the image in its center.
const frameOf = (item) => Math.max(item.width, item.height);

// The case's pixels and fields. The promise is stored, so that they are computed once for all callers.
function prepare(item) {
  if (!prepared.has(item.picture)) {
    if (prepared.size > 24) prepared.delete(prepared.keys().next().value);
    prepared.set(item.picture, load(item));
  }
  return prepared.get(item.picture);
}

async function load(item) {
  const image = new Image(), { width, height, size } = item;
  image.src = `data:image/webp;base64,${document.getElementById(`image-${item.picture}`).textContent}`;
  await image.decode();
  const sheet = document.createElement("canvas");
  sheet.width = width;
  sheet.height = height;
  const pen = sheet.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const colors = pen.getImageData(0, 0, width, height).data;
  const grey = new Uint8Array(width * height);
  for (let k = 0; k < grey.length; k++) grey[k] = colors[4 * k];
  const student = attention(item.student, size), teacher = attention(item.teacher, size);
  return {
    grey,
    fields: {
      student, teacher, difference: difference(student, teacher),
      evidence: item.evidence ? attention(item.evidence, size) : new Float32Array(size * size),
    },
    masks: { student: contour(student, size, run.threshold), teacher: contour(teacher, size, run.threshold) },
    cartilage: outlinePath(item.cartilage),
  };
}

// The gray values shown as black and white: the case's own levels, shifted and widened.
function levelsOf(item) {
  const [black, white] = item.levels, half = ((white - black) / 2) * 4 ** view.width;
  const middle = (black + white) / 2 + view.level * 128;
  return [middle - half, middle + half];
}

function paintPicture(ready, item) {
  const [black, white] = levelsOf(item), scale = 255 / Math.max(white - black, 1e-6);
  const shades = Uint8ClampedArray.from({ length: 256 }, (_, v) => (view.invert ? white - v : v - black) * scale);
  const inks = Uint32Array.from(shades, (shade) => 0xff000000 | (shade * 0x010101));
  picture.width = item.width;
  picture.height = item.height;
  const pen = picture.getContext("2d"), sheet = pen.createImageData(item.width, item.height);
  const words = new Uint32Array(sheet.data.buffer), { grey } = ready;
  for (let k = 0; k < words.length; k++) words[k] = inks[grey[k]];
  pen.putImageData(sheet, 0, 0);
}

function paintOverlay(ready, size) {
  overlay.width = overlay.height = size;
  const pen = overlay.getContext("2d"), sheet = pen.createImageData(size, size), signed = view.layer === "difference";
  paint(ready.fields[view.layer], signed ? diverging : heat, run.cover, signed, view.opacity, view.threshold, sheet.data);
  pen.putImageData(sheet, 0, 0);
}

// Draws the canvas. Picture and overlay are painted again only if a setting that they depend on has changed.
function draw(ready) {
  const { item } = view;
  const wanted = {
    picture: [item.picture, view.level, view.width, view.invert].join(),
    overlay: [item.picture, view.layer, view.opacity, view.threshold].join(),
  };
  if (wanted.picture !== painted.picture) paintPicture(ready, item);
  if (wanted.overlay !== painted.overlay) paintOverlay(ready, item.size);
  Object.assign(painted, wanted);
  const frame = frameOf(item), scale = (canvas.width / frame) * view.zoom;
  // At 1:1 image pixels are aligned with screen pixels.
  const at = (start, length) => (Math.abs(scale - 1) < 1e-6 ? Math.round : Number)(((frame - length) / 2 - start) * scale);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, at(view.x, item.width), at(view.y, item.height));
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0);
  if (view.hidden || !view.overlay) return;
  context.save();
  context.beginPath();
  context.rect(0, 0, item.width, item.height);
  context.clip();
  drawMaps(ready, item, scale);
  context.restore();
}

// The maps, in the coordinates of the networks' square input: crop, padding and flip are undone here.
function drawMaps(ready, item, scale) {
  const [left, top, side, flipped] = item.window, unit = side / item.size;
  context.translate(left + (flipped ? side : 0), top);
  context.scale(flipped ? -unit : unit, unit);
  context.drawImage(overlay, 0, 0);
  const pixel = devicePixelRatio / (scale * unit);
  const stroke = (path, color, dash) => {
    context.setLineDash(dash.map((length) => length * pixel));
    for (const [ink, width] of [["rgba(0,0,0,.75)", 3.4], [color, 1.6]]) {
      context.strokeStyle = ink;
      context.lineWidth = width * pixel;
      context.stroke(path);
    }
  };
  if (view.cartilage) stroke(ready.cartilage, "#46dcff", [5, 4]);
  if (!view.mask || view.layer === "evidence") return;
  if (view.layer !== "difference") stroke(ready.masks[view.layer], "#ffffff", []);
  else for (const network of ["student", "teacher"]) stroke(ready.masks[network], LINES[network], []);
}

let latest = 0; // number of the latest call of redraw
async function redraw() {
  const item = view.item, turn = ++latest, ready = await prepare(item);
  if (turn !== latest || item !== view.item) return;
  const began = performance.now();
  draw(ready);
  canvas.dataset.case = item.case;
  canvas.dataset.picture = item.picture;
  canvas.dataset.drawn = String(turn);
  canvas.dataset.milliseconds = (performance.now() - began).toFixed(2);
}

// The zoom at which one image pixel is one pixel of the screen.
const oneToOne = () => frameOf(view.item) / canvas.width;

function keepInside() {
  // While the whole image is shown, dragging scrolls the page.
  canvas.style.touchAction = view.zoom > 1 || view.windowing ? "none" : "pan-y";
  const room = frameOf(view.item) * (1 - 1 / view.zoom), low = Math.min(0, room / 2), high = Math.max(room, room / 2);
  view.x = Math.min(Math.max(view.x, low), high);
  view.y = Math.min(Math.max(view.y, low), high);
  if (room <= 0) view.x = view.y = room / 2;
}

// Zoom by a factor about a point, given as fractions of the canvas.
function zoomBy(factor, atX = 0.5, atY = 0.5) {
  const frame = frameOf(view.item), before = frame / view.zoom, least = Math.min(1, oneToOne());
  view.zoom = Math.min(Math.max(view.zoom * factor, least), Math.max(12, 4 * oneToOne()));
  const after = frame / view.zoom;
  view.x += (before - after) * atX;
  view.y += (before - after) * atY;
  keepInside();
  redraw();
}

function showWhole() {
  view.zoom = 1;
  keepInside();
  redraw();
}

function showOneToOne() {
  zoomBy(oneToOne() / view.zoom);
}

function followPointers() {
  const down = new Map();
  const placeOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, placeOf(event));
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => down.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const before = down.get(event.pointerId), now = placeOf(event), shown = frameOf(view.item) / view.zoom;
    const other = [...down.entries()].find(([id]) => id !== event.pointerId);
    down.set(event.pointerId, now);
    if (other) {
      const distance = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]);
      zoomBy(distance(now) / Math.max(distance(before), 1e-3), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      return;
    }
    if (view.windowing || event.buttons & 2) {
      setWindow({ level: view.level + before[1] - now[1], width: view.width + now[0] - before[0] });
      return;
    }
    view.x -= (now[0] - before[0]) * shown;
    view.y -= (now[1] - before[1]) * shown;
    keepInside();
    redraw();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), ...placeOf(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => (view.windowing ? setWindow({ level: 0, width: 0 }) : view.zoom > 1 ? showWhole() : zoomBy(2.5, ...placeOf(event))));
  new ResizeObserver(() => {
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!side || (canvas.width === side && canvas.height === side)) return;
    canvas.width = canvas.height = side;
    if (view.item) redraw();
  }).observe(canvas);
}

function evidenceInWords() {
  const { teacher, evidence } = view.item || {};
  const between = evidence ? ` between ${gradeName(teacher.grade)} and ${gradeName(evidence.against)}` : "";
  return `evidence: where a change of grey value changes the teacher’s decision${between}, scaled per image`;
}

// The legend uses the colors and cover of the overlay, over the gray of a typical image.
function drawLegend() {
  const scale = $("scale"), pen = scale.getContext("2d"), sheet = pen.createImageData(256, 10), signed = view.layer === "difference";
  const field = Float32Array.from({ length: 2560 }, (_, k) => (signed ? (k % 256) / 127.5 - 1 : (k % 256) / 255));
  paint(field, signed ? diverging : heat, run.cover, signed, 1, view.threshold, sheet.data);
  for (let k = 0; k < sheet.data.length; k += 4) {
    const covered = (sheet.data[k + 3] / 255) * Math.max(view.opacity, 0.35);
    for (let channel = 0; channel < 3; channel++) sheet.data[k + channel] = sheet.data[k + channel] * covered + 96 * (1 - covered);
    sheet.data[k + 3] = 255;
  }
  pen.putImageData(sheet, 0, 0);
  $("scale-low").textContent = signed ? "teacher more" : "0";
  $("scale-high").textContent = signed ? "student more" : "1";
  // A map scaled per image always has a hot spot, so the legend also shows the unscaled maximum.
  const most = view.item && !signed ? `, unscaled maximum ${view.item[view.layer].max}` : "";
  const evidence = view.layer === "evidence";
  $("scale-name").textContent = signed ? "student’s x − teacher’s x" : evidence ? evidenceInWords() : `${view.layer}’s x, scaled per image${most}`;
  $("threshold-of-mask").textContent = run.threshold;
  for (const line of $("line-mask-name").querySelectorAll("i")) line.hidden = signed === line.classList.contains("mask");
  $("line-mask-name").hidden = !view.mask || evidence;
  $("line-cartilage-name").hidden = !view.cartilage || !view.item?.cartilage;
}
