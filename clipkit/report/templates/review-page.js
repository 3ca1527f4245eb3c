"use strict";

/* The review page: draws `State` with the figures of `Statistics`, and turns clicks and keys into decisions. Texts of strangers are only
   ever set as text. */
(() => {
  const { tasks, confidence } = State;
  const PRECISION_CONFIDENCE = 0.95;
  const BARS = 60;
  const LEAST = 0.001; // of a threshold, as the slider moves
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);
  let current = tasks[0];
  let cards = []; // of the current task, as { pair, element }
  let position = 0;
  let isDue = false;
  let file = null; // where the browser lets a page write

  // ------------------------------------------------------------- figures

  function show(id, text, value) {
    const element = at(id);
    element.textContent = text;
    element.value = value === null ? "" : String(value);
  }

  function drawFigures() {
    const found = Statistics.effect(current, confidence);
    const judged = Statistics.judged(current, PRECISION_CONFIDENCE);
    for (const prefix of ["", "bar-"]) {
      show(`${prefix}overlap`, Statistics.whole(found.overlap), found.overlap);
      show(`${prefix}clean`, Statistics.whole(found.count - found.overlap), found.count - found.overlap);
      show(`${prefix}share`, Statistics.percent(found.contamination), found.contamination);
      show(`${prefix}all-minus-clean`, Statistics.points(found.all_minus_clean), found.all_minus_clean);
      show(`${prefix}p-value`, Statistics.pValue(found.p_value), found.p_value);
      show(`${prefix}precision`, Statistics.percent(judged.precision), judged.precision);
    }
    show("accuracy-all", Statistics.percent(found.accuracy_all), found.accuracy_all);
    show("accuracy-overlap", Statistics.percent(found.accuracy_overlap), found.accuracy_overlap);
    show("accuracy-clean", Statistics.percent(found.accuracy_clean), found.accuracy_clean);
    show("recall", Statistics.percent(judged.recall), judged.recall);
    at("interval").textContent = found.low === null ? "" : `${interval(found, confidence)}`;
    at("interval").dataset.low = found.low ?? "";
    at("interval").dataset.high = found.high ?? "";
    at("precision-of").textContent = judged.judgedAbove
      ? `${judged.duplicatesAbove} of ${judged.judgedAbove} judged, ${interval(judged, PRECISION_CONFIDENCE)}`
      : "nothing judged at the threshold or above";
    at("recall-of").textContent = judged.duplicates
      ? `${judged.duplicatesAbove} of ${judged.duplicates} judged duplicates`
      : "no duplicate judged";
    at("note").textContent = [current.note, note(found)].join(" ").trim();
    drawRow(current, found);
  }

  function interval(found, level) {
    return `${Number((100 * level).toFixed(3))}%: ${Statistics.percent(found.low)} to ${Statistics.percent(found.high)}`;
  }

  function note(found) {
    if (found.count === 0) return "There are no test pictures.";
    if (current.known.length === 0) return "There are no training pictures to compare with: everything is Clean.";
    if (found.overlap === 0) return "No test picture counts as overlap: All and Clean are the same pictures, and nothing is tested.";
    if (found.overlap === found.count) return "Every test picture counts as overlap: there is no Clean part to compare with.";
    if (found.accuracy_clean === 1) return "Every Clean picture was right: Overlap cannot be easier, so the test cannot find anything.";
    if (found.accuracy_clean === 0) return "No Clean picture was right: read the p-value with care.";
    return "";
  }

  function drawRow(one, found) {
    const { cells } = at("task-rows").rows[tasks.indexOf(one)];
    cells[0].firstChild.setAttribute("aria-pressed", String(one === current));
    const texts = [
      String(one.threshold),
      Statistics.whole(found.overlap),
      Statistics.percent(found.contamination),
      Statistics.points(found.all_minus_clean),
      Statistics.pValue(found.p_value),
      Statistics.whole(one.verdicts.size),
    ];
    texts.forEach((text, column) => (cells[column + 1].textContent = text));
  }

  /* After what may have changed more than the current task. */
  function drawRows() {
    for (const one of tasks) drawRow(one, Statistics.effect(one, confidence));
  }

  function makeRows() {
    for (const one of tasks) {
      const row = at("task-rows").insertRow();
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = one.name;
      button.addEventListener("click", () => choose(one));
      row.insertCell().append(button);
      for (const name of ["threshold", "overlap", "share", "All − Clean", "p", "judged"]) row.insertCell().dataset.name = name;
    }
    at("tasks-nav").hidden = tasks.length < 2;
  }

  // ----------------------------------------------------------- histogram

  function svg(parent, name, attributes, text = "") {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    parent.append(element);
  }

  /* The ends of the plot and of the slider, which no threshold can leave: all similarities between are on it, the threshold and 1. What
     lies beyond an end is in the bar there. */
  function similarityRange() {
    const low = Math.floor(Math.min(current.lowest, current.threshold, 0.95) * 20) / 20;
    return { low: Math.max(LEAST, low), high: 1 };
  }

  /* How many pictures each bar stands for; counted again only where the ends have moved. */
  function barCounts(low, high) {
    if (current.bars?.low !== low || current.bars.high !== high) {
      const counts = new Array(BARS).fill(0);
      for (const similarity of current.known) counts[Math.max(0, Math.min(BARS - 1, Math.floor(((similarity - low) / (high - low)) * BARS)))] += 1;
      current.bars = { low, high, counts };
    }
    return current.bars.counts;
  }

  function drawHistogram() {
    const plot = at("histogram");
    const [width, height, left, right, top, bottom] = [Math.max(280, plot.parentElement.clientWidth), 230, 46, 44, 12, 34];
    const { low, high } = similarityRange();
    const x = (similarity) => left + ((similarity - low) / (high - low)) * (width - left - right);
    const y = (share) => height - bottom - share * (height - top - bottom);
    const counts = barCounts(low, high);
    const most = Math.log10(1 + Math.max(1, ...counts));
    plot.replaceChildren();
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawAxes(plot, { x, y, low, high, most, width, left, right });
    counts.forEach((count, bar) => {
      if (count === 0) return;
      const from = low + ((high - low) * bar) / BARS;
      const to = low + ((high - low) * (bar + 1)) / BARS;
      const cut = Math.min(to, Math.max(from, current.threshold)); // a bar with the threshold in it has both colours
      const share = Math.log10(1 + count) / most;
      const size = { y: y(share), height: y(0) - y(share) };
      if (cut > from) svg(plot, "rect", { ...size, x: x(from) + 0.5, width: Math.max(0, x(cut) - x(from) - 1), class: "bar-clean" });
      if (cut < to) svg(plot, "rect", { ...size, x: x(cut) + 0.5, width: Math.max(0, x(to) - x(cut) - 1), class: "bar-overlap" });
    });
    svg(plot, "line", { x1: x(current.threshold), x2: x(current.threshold), y1: top, y2: y(0), class: "threshold-line" });
    drawPrecision(plot, { x, y, width, right });
    const precise = current.verdicts.size ? " Line: precision of the judged pairs, were the threshold there (right scale)." : "";
    at("histogram-text").textContent =
      `How similar the nearest training picture of each of ${Statistics.whole(current.known.length)} test pictures is; numbers grow by powers of ten. ` +
      `Dashed: the threshold, ${current.threshold}.${precise}`;
  }

  function drawAxes(plot, { x, y, low, high, most, width, left, right }) {
    for (let power = 0; Math.log10(1 + 10 ** power) <= most; power++) {
      const height = y(Math.log10(1 + 10 ** power) / most);
      svg(plot, "line", { x1: left, x2: width - right, y1: height, y2: height, class: "grid" });
      svg(plot, "text", { x: left - 6, y: height + 4, "text-anchor": "end" }, Statistics.whole(10 ** power));
    }
    const step = (high - low) / (width / 70) > 0.1 ? 0.2 : (high - low) / (width / 70) > 0.05 ? 0.1 : 0.05;
    for (let mark = Math.ceil((low - LEAST) / step - 1e-9) * step; mark <= high + 1e-9; mark += step) {
      svg(plot, "text", { x: x(mark), y: y(0) + 17, "text-anchor": "middle" }, String(Number(mark.toFixed(2))));
    }
    svg(plot, "line", { x1: left, x2: width - right, y1: y(0), y2: y(0), class: "axis" });
  }

  /* A step for every judged similarity; from the highest down, as a threshold would come down. */
  function drawPrecision(plot, { x, y, width, right }) {
    const curve = Statistics.precisionCurve(current);
    if (curve.length === 0) return;
    for (const share of [0, 0.5, 1]) svg(plot, "text", { x: width - right + 6, y: y(share) + 4, class: "precision-text" }, `${100 * share}%`);
    const steps = curve.flatMap(([similarity, precision], i) => [
      [x(similarity), y(i ? curve[i - 1][1] : precision)],
      [x(similarity), y(precision)],
    ]);
    svg(plot, "polyline", { points: steps.map((point) => point.join(",")).join(" "), class: "precision" });
    for (const [similarity, precision] of curve) svg(plot, "circle", { cx: x(similarity), cy: y(precision), r: 2.5, class: "precision-dot" });
  }

  // --------------------------------------------------------------- pairs

  function makeCards() {
    const list = at("pairs");
    list.replaceChildren();
    cards = current.pairs.map((pair, i) => {
      const element = at("pair").content.firstElementChild.cloneNode(true);
      const find = (name) => element.querySelector(`.${name}`);
      element.dataset.index = pair.index;
      find("test").src = pair.test_picture;
      find("test").alt = `test picture ${pair.index}`;
      find("test-name").textContent = `test ${pair.index}`;
      find("train").src = pair.train_picture;
      find("train").alt = `training picture: ${pair.caption}`;
      find("similarity").textContent = current.similarity[pair.index].toFixed(4);
      find("answer").classList.add(pair.is_correct ? "right" : "wrong");
      find("answer").textContent = pair.is_correct ? `✓ right: ${pair.label}` : `✗ wrong: ${pair.label}, taken for ${pair.predicted}`;
      find("caption").textContent = pair.caption || "(no caption)";
      find("key").textContent = `${pair.shard} · ${pair.key}`;
      for (const verdict of ["duplicate", "different"]) {
        find(verdict).addEventListener("click", () => judge(i, current.verdicts.get(pair.index) === verdict ? undefined : verdict));
      }
      find("undo").addEventListener("click", () => judge(i, undefined));
      element.addEventListener("pointerdown", () => moveTo(i, false));
      list.append(element);
      return { pair, element };
    });
    const divider = document.createElement("li");
    divider.id = "divider";
    list.append(divider);
  }

  function drawCards() {
    const limit = Math.fround(current.threshold);
    cards.forEach(({ pair, element }, i) => {
      const verdict = current.verdicts.get(pair.index);
      const counted = Statistics.isOverlap(current, pair.index, limit) ? "overlap" : "clean";
      element.dataset.counted = counted;
      element.dataset.verdict = verdict ?? "";
      element.setAttribute("aria-current", String(i === position));
      element.querySelector(".counted").textContent = `counts as ${counted}`;
      element.querySelector(".counted").hidden = verdict !== undefined; // the verdict says it
      const tag = element.querySelector(".verdict");
      tag.hidden = verdict === undefined;
      tag.textContent = verdict === undefined ? "" : `judged ${verdict}`;
      for (const name of ["duplicate", "different"]) {
        element.querySelector(`button.${name}`).setAttribute("aria-pressed", String(verdict === name));
      }
      element.querySelector(".undo").hidden = verdict === undefined;
    });
    drawDivider(limit);
  }

  /* The threshold stands between the pairs; it moves only where it has to, for a move costs a layout. */
  function drawDivider(limit) {
    const divider = at("divider");
    const below = cards.find(({ pair }) => current.similarity[pair.index] < limit)?.element ?? null;
    if (divider.nextElementSibling !== below) at("pairs").insertBefore(divider, below);
    divider.textContent = `threshold ${current.threshold}: above it pairs count as overlap, below it they do not, unless judged`;
    divider.hidden = cards.length === 0;
  }

  function drawChosen() {
    const shown = new Set(current.pairs.map((pair) => pair.index));
    const known = current.known.length;
    const hidden = [...current.verdicts.keys()].filter((index) => !shown.has(index)).length;
    const part = shown.size < known ? ": those next to the threshold on both sides, as many drawn over all similarities, and what was judged before" : "";
    at("chosen").textContent =
      (shown.size ? `${Statistics.whole(shown.size)} of ${Statistics.whole(known)} pairs${part}.` : "There are no pairs to show.") +
      (hidden ? ` ${Statistics.whole(hidden)} verdicts are about pictures that are not shown here; they count.` : "");
  }

  // ------------------------------------------------------------ decisions

  function drawAll() {
    drawFigures();
    drawHistogram();
    drawCards();
    drawChosen();
    at("exact").value = current.threshold;
    at("slider").value = current.threshold;
    drawSaved();
  }

  function drawSaved() {
    at("unsaved").classList.toggle("saved", State.isSaved());
  }

  function choose(one) {
    current = one;
    position = 0;
    const { low, high } = similarityRange();
    at("slider").min = low.toFixed(3);
    at("slider").max = high.toFixed(3);
    at("task-title").textContent = one.title;
    at("task-name").textContent = one.name;
    makeCards();
    drawRows();
    drawAll();
  }

  function setThreshold(text) {
    const threshold = Number(text);
    const isSimilarity = text.trim() !== "" && State.isThreshold(threshold);
    if (!isSimilarity) {
      at("exact").setAttribute("aria-invalid", "true");
      return say("A threshold is a similarity above 0, up to 1: from 0 down every picture counts.");
    }
    forgetRefused();
    State.setThreshold(current, threshold);
    drawSoon();
  }

  /* What the box refused is there no more, and nothing is left to be said of it. */
  function forgetRefused() {
    if (at("exact").getAttribute("aria-invalid") === "true") say("");
    at("exact").setAttribute("aria-invalid", "false");
  }

  /* Once for all the moves of a slider between two pictures on the screen. */
  function drawSoon() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      drawFigures();
      drawHistogram();
      drawCards();
      drawSaved();
    });
  }

  function judge(i, verdict) {
    const { pair } = cards[i];
    State.judge(current, pair.index, verdict);
    position = i;
    drawAll();
    say(verdict === undefined ? `Picture ${pair.index}: verdict taken back.` : `Picture ${pair.index}: ${verdict}.`);
  }

  function undo() {
    const last = State.undo();
    if (last === null) return say("There is no verdict to take back.");
    if (last.one !== current) choose(last.one);
    drawAll();
    const i = cards.findIndex(({ pair }) => pair.index === last.index);
    if (i >= 0) moveTo(i, true);
    say(`Picture ${last.index}: ${last.verdict === undefined ? "verdict taken back" : `${last.verdict} again`}.`);
  }

  function moveTo(i, withFocus) {
    if (cards.length === 0) return;
    cards[position]?.element.setAttribute("aria-current", "false");
    position = Math.min(cards.length - 1, Math.max(0, i));
    const { element } = cards[position];
    element.setAttribute("aria-current", "true");
    if (withFocus) {
      element.focus({ preventScroll: true });
      element.scrollIntoView({ block: "nearest" });
    }
  }

  function press(event) {
    const isTyping = event.target.matches("input:not([type=range]), textarea, select");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    const verdict = { d: "duplicate", x: "different" }[event.key];
    if (event.key === "j") moveTo(document.activeElement?.closest(".pair") ? position + 1 : position, true);
    else if (event.key === "k") moveTo(position - 1, true);
    else if (event.key === "u") undo();
    else if (verdict !== undefined && cards.length) {
      judge(position, verdict);
      moveTo(position + 1, true);
    } else return;
    event.preventDefault();
  }

  // --------------------------------------------------------------- files

  function say(text, isAlert = false) {
    at("status").textContent = text;
    at("status").classList.toggle("alert", isAlert);
  }

  function save() {
    const link = document.createElement("a");
    const address = URL.createObjectURL(new Blob([State.text()], { type: "application/json" }));
    link.href = address;
    link.download = "verdicts.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
    State.markSaved();
    drawSaved();
    say("Saved as verdicts.json: put it in the run's directory and type the command again.");
  }

  async function saveTo() {
    try {
      const types = [{ description: "Verdicts", accept: { "application/json": [".json"] } }];
      file ??= await window.showSaveFilePicker({ suggestedName: "verdicts.json", types });
      const stream = await file.createWritable();
      await stream.write(State.text());
      await stream.close();
    } catch (error) {
      if (error.name !== "AbortError") say("The file cannot be written: take Save verdicts instead.", true);
      file = null;
      return;
    }
    State.markSaved();
    drawSaved();
    say(`Saved to ${file.name}.`);
  }

  async function load(input) {
    const [chosen] = input.files;
    if (chosen === undefined) return;
    try {
      State.load(await chosen.text());
      choose(current);
      say(`Loaded ${chosen.name}.`);
    } catch (error) {
      say(error.message, true);
    }
    input.value = ""; // so that the same file can be chosen again
  }

  function listen() {
    at("slider").addEventListener("input", (event) => {
      at("exact").value = event.target.value;
      setThreshold(event.target.value);
    });
    at("exact").addEventListener("input", (event) => {
      at("slider").value = event.target.value;
      setThreshold(event.target.value);
    });
    at("reset-threshold").addEventListener("click", () => {
      forgetRefused();
      State.setThreshold(current, current.first.threshold);
      drawAll();
    });
    at("save").addEventListener("click", save);
    at("save-to").addEventListener("click", saveTo);
    at("save-to").hidden = window.showSaveFilePicker === undefined;
    at("load").addEventListener("change", (event) => load(event.target));
    document.addEventListener("keydown", press);
    window.addEventListener("beforeunload", (event) => {
      if (!State.isSaved()) event.preventDefault();
    });
    new ResizeObserver(drawHistogram).observe(at("histogram").parentElement);
  }

  function start() {
    if (tasks.length === 0) return;
    const isRestored = State.restore();
    at("app").hidden = false;
    makeRows();
    listen();
    choose(tasks[0]);
    if (isRestored) offerReset();
  }

  function offerReset() {
    say("What you decided here before is back. ");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Start anew";
    button.addEventListener("click", () => {
      State.reset();
      choose(current);
      say("As the report was made.");
    });
    at("status").append(button);
  }

  start();
})();
