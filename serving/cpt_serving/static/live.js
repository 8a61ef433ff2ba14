// Requests and latencies of the last minute, from the differences between counters that are read every second.

import { drawLines } from "./charts.js";
import { byId, count, describe, milliseconds, significant } from "./dom.js";
import { fetchJson, needsKey } from "./requests.js";

const SECONDS = 60;
const points = [];
let previous = null;

/**
 * Return a quantile of a histogram by linear interpolation within its bucket, as Prometheus does.
 *
 * @param {number[]} bounds upper bounds of the buckets; the last bucket has none
 * @param {number[]} counts observations in each bucket, one more than there are bounds
 */
export function quantile(bounds, counts, share) {
  const total = counts.reduce((sum, value) => sum + value, 0);
  if (total <= 0) return null;
  let seen = 0;
  for (let index = 0; index < bounds.length; index += 1) {
    const within = counts[index];
    if (within > 0 && seen + within >= share * total) {
      const lower = index === 0 ? 0 : bounds[index - 1];
      return lower + ((bounds[index] - lower) * (share * total - seen)) / within;
    }
    seen += within;
  }
  return bounds[bounds.length - 1];
}

function difference(before, now) {
  const seconds = now.clock_s - before.clock_s;
  const counts = now.latency.counts.map((value, index) => value - (before.latency.counts[index] ?? 0));
  // A restarted server counts from zero.
  if (!(seconds > 0) || counts.some((value) => value < 0)) return null;
  const { bounds_s: bounds } = now.latency;
  const inMilliseconds = (share) => {
    const value = quantile(bounds, counts, share);
    return value === null ? null : value * 1000;
  };
  return { rate: (now.requests - before.requests) / seconds, p50: inMilliseconds(0.5), p99: inMilliseconds(0.99) };
}

/** Milliseconds, and seconds from one on: the axis has little room. */
const axisTime = (value) => (value < 1000 ? `${significant(value)} ms` : `${significant(value / 1000)} s`);

function show(stats) {
  const last = points[points.length - 1];
  byId("rate").textContent = last ? significant(last.rate) : "–";
  const measured = points.findLast((point) => point && point.p50 !== null);
  byId("p50").textContent = measured ? milliseconds(measured.p50) : "–";
  byId("p99").textContent = measured ? milliseconds(measured.p99) : "–";
  const series = (name) => {
    const values = points.map((point) => (point ? point[name] : null));
    return [...Array(SECONDS + 1 - values.length).fill(null), ...values];
  };
  drawLines(byId("rate-chart"), [series("rate")], {
    label: `Requests per second over the last minute, now ${byId("rate").textContent}`,
    format: significant,
  });
  drawLines(byId("latency-chart"), [series("p50"), series("p99")], {
    label: `Latency over the last minute, p50 ${byId("p50").textContent}, p99 ${byId("p99").textContent}`,
    format: axisTime,
  });
  describe(byId("totals"), [
    ["Since the start", count(stats.requests)],
    ["Refused or failed", count(stats.refused)],
    ["Rows computed", count(stats.rows)],
    ["Rows in one computation", stats.inferences ? significant(stats.rows / stats.inferences) : null],
    ["Under way", count(Math.max(0, stats.in_flight - 1))],
  ]);
}

async function poll() {
  if (document.hidden || needsKey()) return;
  try {
    const stats = await fetchJson("stats");
    if (previous) points.push(difference(previous, stats));
    points.splice(0, points.length - SECONDS - 1);
    previous = stats;
    show(stats);
    setState("ready" in stats && !stats.ready ? "waiting" : "ready");
  } catch {
    previous = null;
    points.push(null);
    setState(needsKey() ? "locked" : "lost");
  }
}

const STATES = { ready: "ready", waiting: "not ready", lost: "no connection", locked: "needs a key" };

function setState(state) {
  const shown = byId("state");
  if (shown.dataset.state === state) return;
  shown.dataset.state = state;
  shown.textContent = STATES[state];
}

/** Read the counters now, and then every second while the page is visible. */
export function watch() {
  poll();
  setInterval(poll, 1000);
  document.addEventListener("visibilitychange", () => {
    previous = null;
  });
}
