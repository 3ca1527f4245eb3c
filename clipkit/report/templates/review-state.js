"use strict";

/* What a person has decided: thresholds and verdicts of every task, the way back, the file they are saved in, and what the browser keeps
   until then. No page: `Review` draws this. */
const State = (() => {
  const MAX_FILE = 50_000_000;
  const VERDICTS = ["duplicate", "different"];
  const page = JSON.parse(document.getElementById("data").textContent);
  const tasks = page.tasks.map(task);
  const history = [];
  let savedText = text();

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  /* A task as the page was given it, with numbers decoded. `similarity` in single precision: the report compares in it. */
  function task(given) {
    const view = new DataView(bytes(given.similarity).buffer);
    const similarity = new Float32Array(view.byteLength / 4).map((_, i) => view.getFloat32(4 * i, true));
    const known = similarity.filter(Number.isFinite);
    const verdicts = new Map(Object.entries(given.verdicts).map(([index, verdict]) => [Number(index), verdict]));
    return {
      name: given.task,
      title: given.title,
      note: given.note,
      report: given.report,
      pairs: given.pairs,
      similarity,
      known, // of the pictures that have a nearest training picture
      lowest: known.reduce((low, one) => Math.min(low, one), 1),
      highest: known.reduce((high, one) => Math.max(high, one), 1),
      correct: bytes(given.correct),
      usual: given.default_threshold, // the recipe's, where nobody sets another
      first: { threshold: given.threshold, verdicts: new Map(verdicts) },
      threshold: given.threshold,
      verdicts,
    };
  }

  function isDecided(one) {
    return one.verdicts.size > 0 || one.threshold !== one.usual;
  }

  /* The file as the report reads it. Tasks about which nothing was decided are left out. */
  function text() {
    const decided = tasks.filter(isDecided).map((one) => {
      const verdicts = Object.fromEntries([...one.verdicts].sort(([a], [b]) => a - b));
      return [one.name, { threshold: one.threshold, verdicts, report: one.report }];
    });
    return JSON.stringify(Object.fromEntries(decided), null, 2) + "\n";
  }

  const isSaved = () => text() === savedText;

  /* Set a verdict, or take it away with undefined; `undo` brings back what was there. */
  function judge(one, index, verdict) {
    history.push({ one, index, verdict: one.verdicts.get(index) });
    put(one, index, verdict);
    keep();
  }

  function put(one, index, verdict) {
    if (verdict === undefined) one.verdicts.delete(index);
    else one.verdicts.set(index, verdict);
  }

  /* What the last verdict was about; null where there is none to take back. */
  function undo() {
    const last = history.pop();
    if (last === undefined) return null;
    put(last.one, last.index, last.verdict);
    keep();
    return last;
  }

  function setThreshold(one, threshold) {
    one.threshold = threshold;
    keep();
  }

  function markSaved() {
    savedText = text();
    keep();
  }

  /* Read a file of verdicts: all that was decided is as in the file. Throws an Error with a sentence where it is not of this report. */
  function load(content) {
    adopt(read(content));
    markSaved();
  }

  function adopt(decided) {
    history.length = 0;
    for (const one of tasks) {
      const { threshold, verdicts } = decided.get(one.name) ?? {};
      one.threshold = threshold ?? one.usual;
      one.verdicts.clear();
      for (const [index, verdict] of verdicts ?? []) one.verdicts.set(index, verdict);
    }
  }

  /* Decisions by task name, checked as the report checks them. */
  function read(content) {
    if (content.length > MAX_FILE) throw new Error("The file is too large: a file of verdicts is a short JSON file.");
    let raw;
    try {
      raw = JSON.parse(content);
    } catch {
      throw new Error("The file is not valid JSON.");
    }
    return new Map(Object.entries(mapping(raw, "the file")).map(([name, entry]) => [name, readTask(name, entry)]));
  }

  function mapping(value, where) {
    const isMapping = typeof value === "object" && value !== null && !Array.isArray(value);
    if (!isMapping) throw new Error(`A JSON object was expected for ${where}.`);
    return value;
  }

  /* As in a recipe: from 0 down next to every picture would count. */
  function isThreshold(value) {
    return typeof value === "number" && value > 0 && value <= 1;
  }

  function readTask(name, entry) {
    const one = tasks.find((known) => known.name === name);
    if (one === undefined) throw new Error(`The file names task ${name}: this page has ${tasks.map((known) => known.name).join(", ")}.`);
    const { threshold, verdicts = {}, report, ...others } = mapping(entry, `task ${name}`);
    if (Object.keys(others).length) throw new Error(`Task ${name} has ${Object.keys(others)[0]}: only threshold, verdicts and report are known.`);
    if (report !== undefined && report !== null && report !== one.report) {
      throw new Error(`The verdicts on task ${name} are of another report: test set, training shards or detector are others.`);
    }
    if (threshold !== undefined && threshold !== null && !isThreshold(threshold)) {
      throw new Error(`The threshold of task ${name} is no similarity above 0, up to 1.`);
    }
    return { threshold, verdicts: Object.entries(mapping(verdicts, `verdicts of task ${name}`)).map((pair) => readVerdict(one, ...pair)) };
  }

  function readVerdict(one, index, verdict) {
    if (!/^[0-9]{1,12}$/.test(index) || Number(index) >= one.similarity.length) {
      throw new Error(`Task ${one.name} has a verdict on picture ${index}: its indices go from 0 to ${one.similarity.length - 1}.`);
    }
    if (!VERDICTS.includes(verdict)) throw new Error(`The verdict on picture ${index} of task ${one.name} is neither duplicate nor different.`);
    return [Number(index), verdict];
  }

  /* ---- what the browser keeps: a closed page is not lost work. Some browsers keep nothing for files; then only the warning is left. */

  const key = `clipkit-review:${page.key}`;

  function keep() {
    try {
      localStorage.setItem(key, JSON.stringify({ text: text(), savedText }));
    } catch {
      /* No room, or not allowed. */
    }
  }

  /* Whether something was brought back that the page did not have. */
  function restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(key));
      if (kept === null || kept.text === text()) return false;
      adopt(read(kept.text));
      savedText = String(kept.savedText);
      return true;
    } catch {
      return false;
    }
  }

  /* Back to what the page was made with. */
  function reset() {
    adopt(new Map(tasks.map((one) => [one.name, one.first])));
    keep();
  }

  return { tasks, confidence: page.confidence, isThreshold, text, isSaved, judge, undo, setThreshold, markSaved, load, restore, reset };
})();
