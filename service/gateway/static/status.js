/** Whether the server is there: a line at the foot of the page, and a banner while it is not. */

import { getReady } from "./api.js";
import { sentence } from "./message.js";

const CALM_MS = 15_000;
const EAGER_MS = 2_000;
const ready = document.querySelector("#ready");
const banner = document.querySelector("#connection");

/** Watches /readyz for as long as the page lives; `onReady` is called each time it becomes ready. */
export async function watch(onReady) {
  for (;;) {
    const before = ready.dataset.state;
    if (!document.hidden) show(await look());
    if (ready.dataset.state === "ready" && before !== "ready") await onReady();
    await pause(ready.dataset.state === "ready" ? CALM_MS : EAGER_MS);
  }
}

export function describe({ bundle, runtime, image_size, grid, bits, licence }) {
  const pixels = `${image_size} × ${image_size} pixels`;
  const tokens = `${grid[0]} × ${grid[1]} tokens of ${bits} bits`;
  const parts = [bundle, runtime, pixels, tokens, licence].filter(Boolean);
  document.querySelector("#model").textContent = parts.join(" · ");
}

async function look() {
  try {
    await getReady();
    return { state: "ready", text: "ready", advice: "" };
  } catch (error) {
    const again = "The page goes on by itself when that changes.";
    if (error.code === "unreachable") {
      return { state: "gone", text: "no answer", advice: `${error.message} ${again}` };
    }
    return { state: "waiting", text: "not ready", advice: `${sentence(error.message)} ${again}` };
  }
}

function show({ state, text, advice }) {
  ready.dataset.state = state;
  ready.textContent = text;
  banner.hidden = state === "ready";
  if (banner.textContent !== advice) banner.textContent = advice;
}

/** Sleeps, or wakes early when the user comes back to the page or the network comes or goes. */
function pause(ms) {
  return new Promise((resolve) => {
    const awake = new AbortController();
    const wake = () => {
      clearTimeout(timer);
      awake.abort();
      resolve();
    };
    const timer = setTimeout(wake, ms);
    document.addEventListener("visibilitychange", wake, { signal: awake.signal });
    for (const name of ["online", "offline"]) addEventListener(name, wake, { signal: awake.signal });
  });
}
