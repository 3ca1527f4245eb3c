"use strict";

/* The statistics of CLIP section 5 as the report computes them, and how the report writes numbers. Pure functions: no page, no state.
   The incomplete beta function is needed at whole numbers only, where it is a finite sum of binomial probabilities. */
const Statistics = (() => {
  const LOG_2_PI = Math.log(2 * Math.PI);

  /* ln n! minus Stirling's formula. */
  function stirlingError(n) {
    if (n <= 15) {
      let factorial = 1;
      for (let i = 2; i <= n; i++) factorial *= i;
      return n === 0 ? 0 : Math.log(factorial) - (n + 0.5) * Math.log(n) + n - LOG_2_PI / 2;
    }
    const square = n * n;
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / n;
  }

  /* x ln(x / mean) + mean - x without cancellation (Loader 2000, "Fast and accurate computation of binomial probabilities"). */
  function deviance(x, mean) {
    const ratio = (x - mean) / (x + mean);
    if (Math.abs(ratio) >= 0.1) return x * Math.log(x / mean) + mean - x;
    let sum = (x - mean) * ratio;
    let term = 2 * x * ratio;
    for (let odd = 3; ; odd += 2) {
      term *= ratio * ratio;
      const next = sum + term / odd;
      if (next === sum) return sum;
      sum = next;
    }
  }

  /* The chance of exactly k of n at p, for 0 < p < 1. */
  function binomial(k, n, p) {
    if (k === 0) return Math.exp(n * Math.log1p(-p));
    if (k === n) return Math.exp(n * Math.log(p));
    const exponent =
      stirlingError(n) - stirlingError(k) - stirlingError(n - k) - deviance(k, n * p) - deviance(n - k, n * (1 - p));
    return Math.exp(exponent) * Math.sqrt(n / (2 * Math.PI * k * (n - k)));
  }

  /* Terms from k away from the mean, until they add nothing. */
  function sumUpwards(k, n, p) {
    let term = binomial(k, n, p);
    let sum = term;
    for (let j = k; j < n && term > sum * 1e-18; j++) {
      term *= ((n - j) / (j + 1)) * (p / (1 - p));
      sum += term;
    }
    return Math.min(1, sum);
  }

  /* The chance of k or more of n at p: the one-sided binomial test, and the incomplete beta function I_p(k, n - k + 1). */
  function upperTail(k, n, p) {
    if (k <= 0) return 1;
    if (k > n || p <= 0) return 0;
    if (p >= 1) return 1;
    return k > n * p ? sumUpwards(k, n, p) : 1 - sumUpwards(n - k + 1, n, 1 - p);
  }

  /* Where an increasing function of 0..1 reaches `wanted`: halved until no number lies between. */
  function solve(increasing, wanted, low, high) {
    for (let i = 0; i < 1100; i++) {
      const middle = (low + high) / 2;
      if (middle === low || middle === high) break;
      if (increasing(middle) < wanted) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }

  /* The exact two-sided interval of a share of k among n. */
  function clopperPearson(k, n, confidence) {
    const tail = (1 - confidence) / 2;
    const low = k === 0 ? 0 : solve((p) => upperTail(k, n, p), tail, 0, k / n);
    const high = k === n ? 1 : 1 - solve((q) => upperTail(n - k, n, q), tail, 0, (n - k) / n);
    return { low, high };
  }

  /* Whether picture i counts as overlap. The report compares in single precision: `limit` is the threshold in it. */
  function isOverlap(task, i, limit) {
    const verdict = task.verdicts.get(i);
    return verdict === undefined ? task.similarity[i] >= limit : verdict === "duplicate";
  }

  /* All, Overlap and Clean of a task at its threshold, with its verdicts. null where a part is empty. */
  function effect(task, confidence) {
    const limit = Math.fround(task.threshold);
    const count = task.similarity.length;
    let overlap = 0;
    let right = 0;
    let rightOverlap = 0;
    for (let i = 0; i < count; i++) {
      right += task.correct[i];
      if (task.similarity[i] >= limit) {
        overlap += 1;
        rightOverlap += task.correct[i];
      }
    }
    for (const i of task.verdicts.keys()) {
      const change = isOverlap(task, i, limit) - (task.similarity[i] >= limit);
      overlap += change;
      rightOverlap += change * task.correct[i];
    }
    const clean = overlap < count ? (right - rightOverlap) / (count - overlap) : null;
    const interval = overlap ? clopperPearson(rightOverlap, overlap, confidence) : { low: null, high: null };
    return {
      count,
      overlap,
      contamination: count ? overlap / count : null,
      accuracy_all: count ? right / count : null,
      accuracy_overlap: overlap ? rightOverlap / overlap : null,
      accuracy_clean: clean,
      all_minus_clean: clean === null ? null : right / count - clean,
      p_value: overlap && clean !== null ? upperTail(rightOverlap, overlap, clean) : null,
      low: interval.low,
      high: interval.high,
    };
  }

  /* What the verdicts say about the threshold itself. `precision` and `recall` are among the judged pictures only. */
  function judged(task, confidence) {
    const limit = Math.fround(task.threshold);
    const found = { judged: 0, judgedAbove: 0, duplicates: 0, duplicatesAbove: 0, precision: null, recall: null, low: null, high: null };
    for (const [i, verdict] of task.verdicts) {
      const isAbove = task.similarity[i] >= limit;
      const isDuplicate = verdict === "duplicate";
      found.judged += 1;
      found.judgedAbove += isAbove;
      found.duplicates += isDuplicate;
      found.duplicatesAbove += isAbove && isDuplicate;
    }
    if (found.judgedAbove) {
      found.precision = found.duplicatesAbove / found.judgedAbove;
      Object.assign(found, clopperPearson(found.duplicatesAbove, found.judgedAbove, confidence));
    }
    if (found.duplicates) found.recall = found.duplicatesAbove / found.duplicates;
    return found;
  }

  /* [similarity, precision of the judged from there upwards], from the highest similarity down. */
  function precisionCurve(task) {
    const order = [...task.verdicts.keys()].filter((i) => Number.isFinite(task.similarity[i]));
    order.sort((a, b) => task.similarity[b] - task.similarity[a]);
    const points = [];
    let duplicates = 0;
    order.forEach((i, at) => {
      duplicates += task.verdicts.get(i) === "duplicate";
      const isLast = at + 1 === order.length || task.similarity[order[at + 1]] < task.similarity[i];
      if (isLast) points.push([task.similarity[i], duplicates / (at + 1)]);
    });
    return points;
  }

  /* `digits` decimals; a tie goes to the even digit, as the report's numbers do. */
  function fixed(x, digits) {
    const scaled = Math.abs(x) * 2 ** (digits + 1);
    if (!Number.isInteger(scaled) || scaled % 2 === 0) return x.toFixed(digits);
    const below = Math.floor(Math.abs(x) * 10 ** digits);
    return ((Math.sign(x) * (below % 2 ? below + 1 : below)) / 10 ** digits).toFixed(digits);
  }

  const percent = (share) => (share === null ? "–" : `${fixed(100 * share, 1)}%`);
  const points = (difference) =>
    difference === null ? "–" : `${difference < 0 ? "−" : "+"}${fixed(Math.abs(100 * difference), 2)}`;
  const pValue = (p) => (p === null ? "–" : p < 0.001 ? "< 0.001" : fixed(p, 3));
  const whole = (n) => n.toLocaleString("en-US");

  return { upperTail, clopperPearson, effect, judged, isOverlap, precisionCurve, fixed, percent, points, pValue, whole };
})();
