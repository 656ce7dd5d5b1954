/** The page at `/`: joins its parts and keeps them in step with the address bar. */

import { getClasses, getInfo, getModels } from "./api.js";
import { ClassPicker } from "./classes.js";
import { Drawing } from "./drawing.js";
import { Inspector } from "./inspector.js";
import { setUpKey } from "./key.js";
import { Message } from "./message.js";
import { ModelChooser } from "./models.js";
import { scrollToTop } from "./scroll.js";
import { linked, Settings } from "./settings.js";
import { describe, watch } from "./status.js";

setUpKey();
const message = new Message("#load-message");
const models = new ModelChooser(change);
const picker = new ClassPicker(changed);
const settings = new Settings(picker, changed);
const inspector = new Inspector(settings);
const drawing = new Drawing(picker, settings, (drawn, name) => {
  inspector.open(drawn, name);
  goInside();
});
let loading = null;
let loaded = false;
let declined = false;

drawing.prepare();
addEventListener("hashchange", followLink);
await load();
// Who gave no key is not asked again unbidden.
watch(() => declined || load());

function changed() {
  settings.writeLink();
  drawing.prepare();
}

/** Asks the server what it serves, once; called again when a server that was away comes back. */
async function load() {
  if (loaded) return;
  loading ??= begin().finally(() => (loading = null));
  await loading;
}

async function begin() {
  try {
    message.clear();
    models.fill(await getModels());
    await open(models.match(linked().get("model")));
    loaded = true;
    followLink();
  } catch (error) {
    declined = error.code === "unauthorized";
    message.error(error, load);
  }
}

/** Fits the page to a model. */
async function open(model) {
  const [info, classes] = await Promise.all([getInfo(model), getClasses(model)]);
  models.value = model;
  describe(info);
  settings.configure(info);
  picker.fill(classes);
  inspector.configure(info, classes);
  drawing.open();
  document.querySelector("#draw-section").hidden = !info.has_generator;
}

/** The user chose another model. */
async function change(model) {
  if (await opened(model)) settings.writeLink();
}

async function opened(model) {
  try {
    message.clear();
    await open(model);
    return true;
  } catch (error) {
    message.error(error, () => change(model));
    return false;
  }
}

/** Draws what the link in the address bar names; an anchor in it leaves the settings alone. */
async function followLink() {
  const link = linked();
  if (!loaded || !location.hash) return;
  if (!location.hash.includes("=")) {
    settings.writeLink();
    return;
  }
  const wanted = models.match(link.get("model"));
  if (wanted !== models.value && !(await opened(wanted))) return;
  const complete = settings.readLink();
  drawing.prepare();
  if (link.has("model") && link.get("model") !== wanted) {
    drawing.complain(`The link is for the model ${link.get("model")}, which is not served here. This is ${wanted}.`);
  } else if (complete) {
    document.querySelector("#form").requestSubmit();
  }
}

/** Shows the inspector; on a phone its stage lies below the screen, under the panel. */
function goInside() {
  const section = document.querySelector("#inspect-section");
  const stage = section.querySelector(".stage");
  const below = stage.getBoundingClientRect().top - section.getBoundingClientRect().top;
  scrollToTop(below > innerHeight / 2 ? stage : section);
  document.querySelector("#inspect-title").focus({ preventScroll: true });
}
