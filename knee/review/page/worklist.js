// The list of cases: order, filters and current case. In blind reading it shows no grades and no probabilities.

const ORDERS = {
  file: "as exported",
  distance: "student–teacher distance",
  flip: "flip disagreement",
  entropy: "entropy",
  overlap: "low overlap with cartilage",
  mismatch: "recorded grade doubted",
};

const middleOf = (item) => item.slices[item.slices.length >> 1];
const place = () => worklist.shown.indexOf(byName.get(view.item.case));
const worklist = { shown: [], buttons: new Map() };
const gradeName = (grade) => (grade === null || grade === undefined ? "–" : `${grade} ${run.grades[grade].name}`);
// Predictions and recorded grades stay hidden until this reader has graded the case.
const isVeiled = (item) => store.blind && !store.entry(item.case).revealed;

function element(kind, text = "", attributes = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", text, { value })));
}

function fillFilters() {
  const known = Object.keys(ORDERS).filter((name) => name === "file" || cases.some((item) => name in item.doubts));
  fillSelect($("order"), known.map((name) => [name, ORDERS[name]]));
  const splits = [...new Set(cases.map((item) => item.split))].sort();
  fillSelect($("split"), [["", "all"], ...splits.map((name) => [name, name])]);
  const grades = run.grades.map((_, value) => [String(value), gradeName(value)]);
  fillSelect($("predicted"), [["", "any grade"], ...grades]);
  fillSelect($("recorded"), [["", "any grade"], ...grades, ["none", "no grade"], ["other", "≠ model’s"]]);
}

function passes(item) {
  const entry = store.entry(item.case), status = $("status").value;
  if (status === "open" ? entry.verdict : status === "done" ? !entry.verdict : status !== "all" && entry.verdict !== status) return false;
  if ($("split").value && item.split !== $("split").value) return false;
  if (store.blind) return true;
  const predicted = $("predicted").value, recorded = $("recorded").value, grade = (item.knee || item.teacher).grade;
  if (predicted && grade !== Number(predicted)) return false;
  if (recorded === "none") return item.grade === null;
  if (recorded === "other") return item.grade !== null && item.grade !== grade;
  return !recorded || item.grade === Number(recorded);
}

// Recomputed when the order or a filter changes, not at each verdict, so that cases do not move while a reader works.
function arrange() {
  const order = $("order").value;
  for (const name of ["predicted", "recorded"]) {
    $(name).disabled = store.blind;
    $(name).title = store.blind ? "Not while reading blind" : "";
  }
  worklist.shown = cases.filter(passes);
  if (order !== "file") {
    const doubt = (item) => item.doubts[order] ?? -1;
    worklist.shown.sort((one, other) => doubt(other) - doubt(one));
  }
  worklist.buttons.clear();
  $("cases").replaceChildren(
    ...worklist.shown.map((item) => {
      const button = element("button", "", { "data-case": item.case });
      button.append(element("i", "", { class: "state" }), element("span", item.case, { class: "name" }), element("small"));
      worklist.buttons.set(item.case, button);
      mark(item);
      const row = document.createElement("li");
      row.append(button);
      return row;
    }),
  );
  $("shown").textContent = `${worklist.shown.length} of ${cases.length} cases`;
  if (view.item) showPlace();
}

// A case's line in the list, with the reader's grade and verdict.
function mark(item) {
  const button = worklist.buttons.get(item.case);
  if (!button) return;
  const entry = store.entry(item.case), order = $("order").value;
  button.dataset.state = entry.verdict || (entry.said ? "begun" : "open");
  const given = [entry.final_grade === null ? "" : String(entry.final_grade), VERDICTS[entry.verdict] || ""].filter(Boolean);
  const doubt = order !== "file" && !isVeiled(item) && order in item.doubts ? item.doubts[order].toFixed(2) : "";
  button.lastChild.textContent = given.join(" · ") || doubt;
}

function showPlace() {
  let first = true;
  for (const [name, button] of worklist.buttons) {
    const here = name === view.item.case;
    // One tab stop for the list: the arrow keys walk through it, and the focus follows if it is inside.
    button.tabIndex = here || (first && !worklist.buttons.has(view.item.case)) ? 0 : -1;
    first = false;
    if (here && $("cases").contains(document.activeElement)) button.focus();
    if (here) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    if (here) button.scrollIntoView({ block: "nearest" });
  }
  const at = place();
  $("previous").disabled = at <= 0;
  $("next").disabled = at >= worklist.shown.length - 1;
  for (const near of [worklist.shown[at + 1], worklist.shown[at - 1]]) if (near) prepare(middleOf(near));
}

function showProgress() {
  const done = cases.filter((item) => store.entry(item.case).verdict).length;
  $("progress").setAttribute("aria-valuenow", done);
  $("progress").setAttribute("aria-valuemax", cases.length);
  $("progress-fill").style.width = `${(100 * done) / cases.length}%`;
  $("progress-text").textContent = `${done} of ${cases.length} reviewed`;
}

function step(by) {
  const at = place() + by;
  if (at >= 0 && at < worklist.shown.length) show(worklist.shown[at]);
}

// Go to the next case without a verdict, starting again from the top at the end of the list.
function stepToOpen() {
  const { shown } = worklist, at = place();
  const next = [...shown.slice(at + 1), ...shown.slice(0, at + 1)].find((item) => !store.entry(item.case).verdict);
  if (next) show(next);
  else notice(`All ${shown.length} cases of this list are reviewed. Download your verdicts, top right.`);
}
