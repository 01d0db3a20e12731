// The panels of one case: the reader's reading and the model's output.

function say(text) {
  $("live").textContent = text;
}

// A notice that is shown for six seconds and read out by screen readers.
function notice(text) {
  $("notice").textContent = text;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => ($("notice").textContent = ""), 6000);
}

const percent = (share) => `${Math.round(100 * share)} %`;

// Grades from 10 on have no key, since a single digit takes effect at once.
const lastKey = Math.min(run.grades.length - 1, 9);
const clickedGrades = run.grades.length > 10 ? "; from 10 on, click" : "";

function buildGrades() {
  $("grades").style.setProperty("--count", run.grades.length);
  $("grades").replaceChildren(
    ...run.grades.map((grade, value) => {
      const button = element("button", "", { "data-grade": value, "aria-pressed": "false", title: grade.description });
      button.append(element("b", String(value)), element("span", grade.name));
      button.addEventListener("click", () => giveGrade(value));
      return button;
    }),
  );
  for (const button of $("verdicts").children) button.addEventListener("click", () => giveVerdict(button.dataset.verdict));
}

function giveGrade(grade) {
  const item = view.item, entry = store.entry(item.case), first = isVeiled(item);
  const revealed = { revealed: true, final_grade: grade };
  // The blind grade is given before the model's output is shown, and never changes afterwards.
  store.change(item.case, first ? { ...revealed, blind_grade: grade } : revealed);
  if (first) say(`You graded ${gradeName(grade)}. ${modelInWords(item)}`);
  else if (entry.final_grade !== grade) say(`Final grade ${gradeName(grade)}.`);
  refresh();
}

function giveVerdict(verdict) {
  const item = view.item, needsModel = verdict === "agree" || verdict === "disagree";
  // Without the reader's grade, agree and disagree would not determine the grade of the case.
  if (needsModel && (isVeiled(item) || store.entry(item.case).final_grade === null)) {
    notice("Grade first; then you can agree or disagree with the model.");
    return;
  }
  const same = store.entry(item.case).verdict === verdict;
  store.change(item.case, { verdict: same ? null : verdict, revealed: true });
  say(same ? "Verdict withdrawn." : `${VERDICTS[verdict]}.`);
  refresh();
}

const modelInWords = ({ student, teacher, knee }) =>
  `${knee ? `Whole knee, by the teacher: ${gradeName(knee.grade)}. This slice: ` : ""}Teacher: ${gradeName(teacher.grade)}, ${percent(Math.max(...teacher.p))}. Student: ${gradeName(student.grade)}, ${percent(Math.max(...student.p))}.`;

// Show the current state of the case; called after every change to it.
function refresh() {
  const item = view.item, veiled = isVeiled(item);
  if (!veiled) store.reveal(item.case);
  const entry = store.entry(item.case);
  view.hidden = veiled;
  document.body.classList.toggle("veiled", veiled);
  showFacts(item, veiled);
  for (const button of $("grades").children) {
    const grade = Number(button.dataset.grade);
    button.setAttribute("aria-pressed", String(entry.final_grade === grade));
    button.classList.toggle("blind", entry.blind_grade === grade && entry.final_grade !== grade);
  }
  for (const button of $("verdicts").children) {
    button.setAttribute("aria-pressed", String(entry.verdict === button.dataset.verdict));
    button.setAttribute("aria-disabled", String(entry.final_grade === null && ["agree", "disagree"].includes(button.dataset.verdict)));
  }
  $("grade-note").textContent = gradeNote(entry, veiled);
  if (document.activeElement !== $("comment")) $("comment").value = entry.comment;
  showModel(item, veiled);
  mark(item);
  showProgress();
  redraw();
}

function gradeNote(entry, veiled) {
  if (veiled) return `Choose 0–${run.grades.length - 1}${clickedGrades}; the model’s grade and maps appear then.`;
  if (entry.final_grade === null) return "Not graded.";
  if (entry.blind_grade === null) return run.grades[entry.final_grade].description;
  if (entry.blind_grade === entry.final_grade) return `Graded blind. ${run.grades[entry.final_grade].description}`;
  return `Graded blind as ${gradeName(entry.blind_grade)}, now ${gradeName(entry.final_grade)}.`;
}

const sizeInWords = ({ source: [width, height], width: shown }) =>
  `${width} × ${height} px${shown < width ? `, shown at ${Math.round((100 * shown) / width)} %` : ""}`;

function showFacts(item, veiled) {
  const at = place(), side = { L: "left knee", R: "right knee" }[item.side] || "";
  $("case-name").textContent = item.case;
  const facts = [at < 0 ? "" : `${at + 1} of ${worklist.shown.length}`, side && `${side}, as acquired`, sizeInWords(item), item.split];
  $("case-facts").textContent = facts.filter(Boolean).join(" · ");
  const { slices } = item, shown = slices.indexOf(item) + 1;
  $("slices").hidden = slices.length < 2;
  Object.assign($("slice"), { min: 1, max: slices.length, value: shown });
  $("slice-value").textContent = `${shown} of ${slices.length}`;
  $("size-note").textContent = item.note;
  $("size-note").hidden = !item.note;
  $("unlike-note").textContent = item.unlike ? `⚠ Do not trust the model here: ${item.unlike}` : "";
  $("unlike-note").hidden = !item.unlike;
  $("veil").hidden = !veiled;
  $("legend").classList.toggle("off", veiled || !view.overlay);
  canvas.setAttribute("aria-label", `Case ${item.case}${side ? `, ${side}` : ""}. ${veiled ? "Not graded yet." : modelInWords(item)}`);
}

function showModel(item, veiled) {
  $("model-open").hidden = veiled;
  $("model-closed").hidden = !veiled;
  if (veiled) return;
  for (const name of ["student", "teacher"]) $(`${name}-grade`).textContent = gradeName(item[name].grade);
  const entry = store.entry(item.case);
  $("bars").replaceChildren(...run.grades.map((grade, value) => barsOf(item, entry, grade, value)));
  const doubts = item.doubts, number = (name) => (name in doubts ? doubts[name].toFixed(2) : "–");
  const rows = [
    ["Recorded grade", gradeName(item.grade)],
    ...(item.knee ? [["Whole knee, teacher", `${gradeName(item.knee.grade)}, ${percent(Math.max(...item.knee.p))}`]] : []),
    ["Unscaled maximum, student", String(item.student.max)],
    ["Unscaled maximum, teacher", String(item.teacher.max)],
    ["Student–teacher distance", number("distance")],
    ["Flip disagreement", number("flip")],
    ["Entropy", number("entropy")],
    ["Overlap with cartilage (IoU)", "overlap" in doubts ? (1 - doubts.overlap).toFixed(2) : "–"],
  ];
  $("measures").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function barsOf(item, entry, grade, value) {
  const row = element("div", "", { class: "bar-row", role: "group", title: grade.description });
  const name = element("span", gradeName(value), { class: "grade-name" });
  if (entry.final_grade === value) name.append(element("em", "you"));
  if (item.grade === value) name.append(element("em", "recorded", { class: "recorded" }));
  const tracks = element("div", "", { class: "probabilities" });
  for (const network of ["student", "teacher"]) {
    const track = element("div", "", { class: `probability ${network}` }), fill = element("i");
    fill.style.width = `${100 * item[network].p[value]}%`;
    track.append(fill, element("span", percent(item[network].p[value])));
    tracks.append(track);
  }
  row.setAttribute("aria-label", `${grade.name}: student ${percent(item.student.p[value])}, teacher ${percent(item.teacher.p[value])}`);
  row.append(name, tracks);
  return row;
}
