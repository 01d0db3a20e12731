// The reader's verdicts: one entry for each case, saved in the browser at every change, and the file to download.

const run = JSON.parse(document.getElementById("run").textContent);
const cases = casesOf([...document.querySelectorAll("script.case")].map((element) => JSON.parse(element.textContent)));
const byName = new Map(cases.map((item) => [item.case, item]));
const VERDICTS = { agree: "Agree", disagree: "Disagree", unsure: "Unsure", bad_image: "Bad image" };
const SCHEMA = "knee-review-verdicts/1";

const hasContent = (entry) => entry.final_grade !== null || entry.verdict !== null || entry.comment !== "";

// The error in an entry of a verdicts file, checked as in the import; empty if it is valid.
function errorIn(entry) {
  if (typeof entry !== "object" || entry === null || typeof entry.case !== "string") return "an entry names no case";
  const { blind_grade, final_grade, verdict, comment = "", time } = entry, most = run.grades.length - 1;
  for (const grade of [blind_grade, final_grade])
    if (grade !== null && grade !== undefined && !(Number.isInteger(grade) && grade >= 0 && grade <= most))
      return `case ${entry.case} has the grade ${JSON.stringify(grade)}, which is not 0–${most}`;
  if (verdict && !Object.hasOwn(VERDICTS, verdict)) return `case ${entry.case} has an unknown verdict`;
  if (typeof comment !== "string" || comment.length > 10000) return `the comment on case ${entry.case} is not text of at most 10,000 characters`;
  if (typeof time !== "string" || !/^\d{4}-.*(Z|[+-]\d\d:?\d\d)$/.test(time) || Number.isNaN(Date.parse(time)))
    return `case ${entry.case} has no time like 2025-03-01T12:00:00Z`;
  return "";
}

const store = {
  reader: "",
  blind: true,
  entries: new Map(),
  kept: new Map(), // reader → entries: the only copy if the browser does not save them
  works: true, // whether the browser saves data for this page
  unsaved: false, // whether there are changes that were not downloaded

  key: (...parts) => ["knee-review", run.run, run.modelHash, ...parts].join("\u0001"),

  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      this.works = false;
    }
  },

  read(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },

  check() {
    this.write(this.key("check"), 1);
    if (this.read(this.key("check")) !== 1) this.works = false;
  },

  // Each case has its own key, so that two open windows do not overwrite each other's entries.
  open(reader) {
    this.reader = reader;
    this.entries = this.kept.get(reader) || new Map();
    this.kept.set(reader, this.entries);
    for (const item of cases) {
      const saved = this.read(this.key("entry", reader, item.case)), own = this.entries.get(item.case);
      if (saved && (this.works || !own || saved.time > (own.time || ""))) this.entries.set(item.case, saved);
    }
  },

  // The next start of the page continues with this reader.
  rememberReader() {
    this.write(this.key("reader"), { reader: this.reader, blind: this.blind });
  },

  entry(name) {
    return this.entries.get(name) || { blind_grade: null, final_grade: null, verdict: null, comment: "", revealed: false, time: null };
  },

  change(name, change) {
    const entry = { ...this.entry(name), ...change, time: new Date().toISOString() };
    // A withdrawn verdict is handed in again, empty; otherwise the earlier one would stay in force.
    entry.said = Boolean(entry.said || hasContent(entry));
    this.entries.set(name, entry);
    this.write(this.key("entry", this.reader, name), entry);
    this.unsaved = true;
    return entry;
  },

  // A case shown with the model's output no longer counts as read blind. This alone does not make an entry to hand in.
  reveal(name) {
    const entry = this.entry(name);
    if (entry.revealed) return;
    this.entries.set(name, { ...entry, revealed: true });
    this.write(this.key("entry", this.reader, name), this.entries.get(name));
  },

  // The entries to hand in: those with a grade, verdict or comment, now or earlier.
  handedIn() {
    return cases.map((item) => [item.case, this.entry(item.case)]).filter(([, entry]) => entry.said || hasContent(entry));
  },

  document() {
    return {
      schema: SCHEMA,
      run: run.run,
      model_hash: run.modelHash,
      grade_set: run.gradeSet,
      grades: run.grades.length,
      reviewer: this.reader,
      written: new Date().toISOString(),
      verdicts: this.handedIn().map(([name, { blind_grade, final_grade, verdict, comment, time }]) => ({
        case: name, blind_grade, final_grade, verdict, comment, time,
      })),
    };
  },

  // Returns the name of the file.
  download() {
    const safe = (text) => text.replace(/[^A-Za-z0-9_-]+/g, "-");
    const text = JSON.stringify(this.document(), null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `${safe(run.verdictsName)}_${safe(this.reader)}_${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.unsaved = false;
    return link.download;
  },

  // Load an earlier file of the same run and model; later entries win. Returns their number; throws an Error with a message.
  resume(text) {
    let earlier;
    try {
      earlier = JSON.parse(text);
    } catch {
      throw new Error("This file is damaged: it is not JSON. Choose a downloaded verdicts file.");
    }
    if (!earlier || earlier.schema !== SCHEMA || !Array.isArray(earlier.verdicts))
      throw new Error("This is not a verdicts file of a review. Choose a downloaded verdicts file.");
    if (earlier.run !== run.run || earlier.model_hash !== run.modelHash)
      throw new Error(`This file is of run ${earlier.run} and another model. Choose one of run ${run.run}.`);
    if (earlier.reviewer !== this.reader) throw new Error(`This file is by reader ${earlier.reviewer}, not ${this.reader}.`);
    const wrong = earlier.verdicts.map(errorIn).filter(Boolean);
    if (earlier.grades !== run.grades.length) wrong.unshift(`it has ${earlier.grades} grades, this review ${run.grades.length}`);
    if (wrong.length) throw new Error(`This file was not loaded: ${wrong[0]}${wrong.length > 1 ? `, and ${wrong.length - 1} more errors` : ""}.`);
    const known = earlier.verdicts.filter((entry) => byName.has(entry.case));
    for (const { case: name, blind_grade, final_grade, verdict, comment, time } of known) {
      const own = this.entry(name);
      if (own.time && own.time >= time) continue;
      const entry = { blind_grade: blind_grade ?? null, final_grade: final_grade ?? null, verdict: verdict || null, comment: comment || "", time, revealed: true, said: true };
      this.entries.set(name, entry);
      this.write(this.key("entry", this.reader, name), entry);
    }
    return known.length;
  },
};
