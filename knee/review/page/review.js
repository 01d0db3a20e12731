// The whole page: start, clicks and keys, light and dark theme.

const KEYS = [
  [`0 – ${lastKey}`, `grade${clickedGrades}`],
  ["a  x  u  g", "agree, disagree, unsure, bad image"],
  ["← →  or  k j", "previous, next case"],
  [", .", "previous, next slice of a volume"],
  ["Enter or n", "next case to do"],
  ["Space", "hide or show the overlay"],
  ["e  t  s  d", "evidence map; attention of teacher, student, difference"],
  ["o  c", "contour, cartilage"],
  ["+  −  f  z", "zoom in, out, whole image, 1:1"],
  ["l", "large picture"],
  ["Shift + arrows", "move the zoomed image"],
  ["w  r", "drag for window and level; reset them"],
  ["i", "invert grey values"],
  ["m", "write a comment (Esc to leave)"],
  ["?", "this help"],
];

function show(item) {
  view.item = middleOf(item);
  view.zoom = 1;
  keepInside();
  // An unfinished comment belongs to the previous case.
  if (document.activeElement === $("comment")) $("comment").blur();
  drawLegend();
  refresh();
  showPlace();
  say(`Case ${item.case}. ${isVeiled(item) ? "Grade first." : modelInWords(view.item)}`);
}

// Show another slice of the same knee, at the same zoom; numbers are counted from 0.
function showSlice(number) {
  const { slices } = view.item, next = slices[Math.min(Math.max(number, 0), slices.length - 1)];
  if (next === view.item) return;
  view.item = next;
  keepInside();
  drawLegend();
  refresh();
  for (const near of [slices[number + 1], slices[number - 1]]) if (near) prepare(near);
}

const stepSlice = (by) => showSlice(view.item.slices.indexOf(view.item) + by);

function pressLayer() {
  for (const button of $("layers").children) button.setAttribute("aria-pressed", String(button.dataset.layer === view.layer));
}

function choose(layer) {
  if (layer === "evidence" && !view.item.evidence) return;
  view.layer = layer;
  pressLayer();
  drawLegend();
  refresh();
}

function toggle(name) {
  view[name] = !view[name];
  $(`toggle-${name}`).setAttribute("aria-pressed", String(view[name]));
  canvas.classList.toggle("windowing", view.windowing);
  document.body.classList.toggle("large", view.large);
  keepInside();
  drawLegend();
  refresh();
}

const SLIDERS = { opacity: 0.65, threshold: 0, level: 0, width: 0 };

function showSlider(name) {
  const value = view[name], signed = (number) => `${number > 0 ? "+" : ""}${number}`;
  $(name).value = value;
  $(`${name}-value`).textContent = {
    opacity: () => percent(value),
    threshold: () => value.toFixed(2),
    level: () => signed(Math.round(128 * value)),
    width: () => `× ${(4 ** value).toFixed(2)}`,
  }[name]();
}

function bindSliders() {
  for (const name of Object.keys(SLIDERS)) {
    const set = (value) => {
      view[name] = value;
      showSlider(name);
      drawLegend();
      if (view.item) redraw();
    };
    $(name).addEventListener("input", () => set(Number($(name).value)));
    $(name).addEventListener("dblclick", () => set(SLIDERS[name]));
    set(view[name]);
  }
}

// Set window and level by dragging; both run from −1 to 1, as on the sliders.
function setWindow(change) {
  for (const [name, value] of Object.entries(change)) {
    view[name] = Math.min(Math.max(value, -1), 1);
    showSlider(name);
  }
  redraw();
}

function bindButtons() {
  const on = (id, act) => $(id).addEventListener("click", act);
  on("previous", () => step(-1));
  on("next", () => step(1));
  on("next-open", stepToOpen);
  on("zoom-in", () => zoomBy(1.5));
  on("zoom-out", () => zoomBy(1 / 1.5));
  on("zoom-fit", showWhole);
  on("zoom-one", showOneToOne);
  on("download", () => {
    const count = store.handedIn().length;
    if (!count) return notice("There is nothing to download yet: grade a case first.");
    notice(`${count} of ${cases.length} cases are in ${store.download()}. Hand in that file.`);
  });
  on("reader", openStart);
  on("show-keys", () => $("keys").showModal());
  on("theme", () => setTheme(document.documentElement.dataset.theme === "light" ? "dark" : "light"));
  on("show-list", () => {
    const open = $("list").classList.toggle("open");
    $("show-list").setAttribute("aria-expanded", String(open));
  });
  for (const name of ["overlay", "mask", "cartilage", "invert", "windowing", "large"]) on(`toggle-${name}`, () => toggle(name));
  for (const button of $("layers").children) button.addEventListener("click", () => choose(button.dataset.layer));
  for (const id of ["order", "status", "split", "predicted", "recorded"]) $(id).addEventListener("change", arrange);
  $("cases").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    show(byName.get(button.dataset.case));
    $("list").classList.remove("open");
  });
  $("slice").addEventListener("input", () => showSlice(Number($("slice").value) - 1));
  $("comment").addEventListener("input", () => {
    store.change(view.item.case, { comment: $("comment").value });
  });
  // A clicked button loses the focus, so that the space bar works for the page; a button focused by keyboard keeps it.
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest("button")?.blur();
  });
}

const ACTIONS = {
  j: () => step(1), ArrowRight: () => step(1), ArrowDown: () => step(1),
  k: () => step(-1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
  n: stepToOpen, Enter: stepToOpen,
  ",": () => stepSlice(-1), ".": () => stepSlice(1),
  a: () => giveVerdict("agree"), x: () => giveVerdict("disagree"), u: () => giveVerdict("unsure"), g: () => giveVerdict("bad_image"),
  " ": () => toggle("overlay"), o: () => toggle("mask"), c: () => toggle("cartilage"), i: () => toggle("invert"),
  s: () => choose("student"), t: () => choose("teacher"), d: () => choose("difference"), e: () => choose("evidence"),
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "−": () => zoomBy(1 / 1.5), f: showWhole, z: showOneToOne,
  l: () => toggle("large"), w: () => toggle("windowing"), r: () => setWindow({ level: 0, width: 0 }),
  m: () => $("comment").focus(),
  "?": () => $("keys").showModal(),
};

function pan(key) {
  const stepSize = (frameOf(view.item) / view.zoom) * 0.1;
  view.x += { ArrowLeft: -stepSize, ArrowRight: stepSize }[key] || 0;
  view.y += { ArrowUp: -stepSize, ArrowDown: stepSize }[key] || 0;
  keepInside();
  redraw();
}

// Keys that repeat while held. Other keys do not, since a verdict would be given and withdrawn in turn.
const repeatsWhenHeld = (key) => key.startsWith("Arrow") || ["+", "=", "-", "−", "j", "k", ",", "."].includes(key);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target, kind = target.tagName;
  if (kind === "TEXTAREA") {
    if (event.key === "Escape") target.blur();
    return;
  }
  const isOwnKey = event.key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(event.key);
  if ((kind === "INPUT" && isOwnKey) || kind === "SELECT") return;
  if (kind === "BUTTON" && [" ", "Enter"].includes(event.key)) {
    if (event.repeat && event.key === "Enter") event.preventDefault(); // the browser would click again
    return;
  }
  if (event.repeat && !repeatsWhenHeld(event.key)) {
    if (event.key === " ") event.preventDefault(); // the browser would scroll
    return;
  }
  if (event.shiftKey && event.key.startsWith("Arrow")) pan(event.key);
  else if (/^[0-9]$/.test(event.key) && Number(event.key) < run.grades.length) giveGrade(Number(event.key));
  else if (ACTIONS[event.key]) ACTIONS[event.key]();
  else return;
  event.preventDefault();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  store.write(store.key("theme"), theme);
}

function openStart() {
  $("reader-name").value = store.reader;
  $("blind").checked = store.blind;
  $("storage-note").hidden = store.works;
  $("resume-note").textContent = "";
  $("start").showModal();
  $("reader-name").focus();
}

function begin() {
  store.blind = $("blind").checked;
  store.open($("reader-name").value.trim());
  store.rememberReader();
  present();
}

// Show the reader's list, and the case to continue with.
function present() {
  $("reader").textContent = `${store.reader}${store.blind ? " · blind" : ""}`;
  arrange();
  const first = worklist.shown.find((item) => !store.entry(item.case).verdict) || worklist.shown[0] || cases[0];
  show(view.item ? byName.get(view.item.case) : first);
}

function bindStart() {
  const name = $("reader-name");
  name.addEventListener("input", () => name.setCustomValidity(name.value.trim() ? "" : "Give your initials or number"));
  $("start-form").addEventListener("submit", begin);
  // Verdicts cannot be saved without a reader's name.
  $("start").addEventListener("cancel", (event) => {
    if (!store.reader) event.preventDefault();
  });
  $("resume").addEventListener("change", async () => {
    const file = $("resume").files[0];
    if (!file || !$("start-form").reportValidity()) return;
    begin();
    try {
      $("resume-note").textContent = `${store.resume(await file.text())} cases loaded.`;
      view.item = null; // continue with the first case without a verdict
      present();
    } catch (error) {
      $("resume-note").textContent = error.message;
    }
    $("resume").value = "";
  });
}

function start() {
  store.check();
  $("title").textContent = document.title = run.title;
  $("subtitle").textContent = `${run.run} · model ${run.modelHash.slice(0, 8)} · ${cases.length} cases`;
  $("veil-hint").textContent = `0–${lastKey}${clickedGrades}, then the model’s grade and maps appear`;
  if (run.sanityFigure) {
    $("sanity").href = run.sanityFigure;
    $("sanity").hidden = false;
  }
  $("key-list").replaceChildren(...KEYS.flatMap(([key, what]) => [element("dt", key), element("dd", what)]));
  const saved = store.read(store.key("theme"));
  setTheme(saved || (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark"));
  const last = store.read(store.key("reader"));
  if (last) Object.assign(store, last);
  view.hidden = true;
  view.item = null;
  view.layer = cases.some((item) => item.evidence) ? "evidence" : "teacher";
  document.querySelector("[data-layer=evidence]").hidden = view.layer !== "evidence";
  pressLayer();
  buildGrades();
  fillFilters();
  bindSliders();
  bindButtons();
  bindStart();
  followPointers();
  document.addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => {
    if (!store.works && store.unsaved) event.preventDefault();
  });
  addEventListener("storage", () => {
    if (!store.reader || !view.item) return;
    store.open(store.reader);
    arrange();
    refresh();
  });
  arrange();
  showProgress();
  if (last && last.reader) {
    $("reader-name").value = store.reader;
    $("blind").checked = store.blind;
    begin();
  } else openStart();
}

start();
