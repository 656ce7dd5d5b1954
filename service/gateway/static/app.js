/** The page at `/`: joins its parts and keeps them in step with the address bar. */

import { getClasses, getInfo } from "./api.js";
import { ClassPicker } from "./classes.js";
import { Drawing } from "./generate.js";
import { clearMessage, setUpMessage, showError } from "./message.js";
import { scrollToTop } from "./scroll.js";
import { Settings } from "./settings.js";
import { describe, watch } from "./status.js";
import { Tokens } from "./tokens.js";

setUpMessage();
const picker = new ClassPicker(changed);
const settings = new Settings(picker, changed);
const tokens = new Tokens();
const drawing = new Drawing(picker, settings, (blob, name) => {
  tokens.show(blob, name);
  visit("tokens");
});
let loaded = false;

drawing.prepare();
addEventListener("hashchange", followLink);
await load();
watch(load);

function changed() {
  settings.writeLink();
  drawing.prepare();
}

/** Asks the server what it serves, once; called again when a server that was away comes back. */
async function load() {
  if (loaded) return;
  try {
    const [info, classes] = await Promise.all([getInfo(), getClasses()]);
    loaded = true;
    clearMessage();
    describe(info);
    tokens.configure(info);
    settings.configure(info);
    picker.fill(classes);
    document.querySelector("#draw-section").hidden = !info.has_generator;
    followLink();
  } catch (error) {
    showError(error, load);
  }
}

function followLink() {
  if (!location.hash.includes("=")) {
    if (loaded && location.hash) settings.writeLink();
    return;
  }
  const complete = settings.readLink();
  drawing.prepare();
  if (complete) drawing.say("Press Draw to repeat the pictures of this link.");
}

function visit(room) {
  scrollToTop(document.querySelector(`#${room}-section`));
  document.querySelector(`#${room}-title`).focus({ preventScroll: true });
}
