/** The settings of a drawing: the form's fields and the link in the address bar that repeats it. */

const MAX_SEED = 2n ** 63n - 1n;
const SLIDER_END = { steps: 64, guidance: 12, count: 16 };
const DEFAULT_COUNT = 4;

export class Settings {
  #picker;
  #seed = document.querySelector("#seed");
  #numbers = {};

  /**
   * @param {import("./classes.js").ClassPicker} picker
   * @param {() => void} onChange called after every change made by the user
   */
  constructor(picker, onChange) {
    this.#picker = picker;
    for (const name of Object.keys(SLIDER_END)) this.#numbers[name] = pair(name, onChange);
    this.#seed.addEventListener("input", () => {
      const complaint = `A whole number from 0 to ${MAX_SEED}, or nothing.`;
      this.#seed.setCustomValidity(isSeed(this.#seed.value.trim()) ? "" : complaint);
      onChange();
    });
    document.querySelector("#dice").addEventListener("click", () => {
      this.seed = String(randomSeed());
      onChange();
    });
  }

  /** Takes defaults and bounds from the answer of /info. */
  configure({ defaults, limits }) {
    const { steps, guidance, count } = this.#numbers;
    steps.bounds(...limits.steps);
    steps.set(defaults.steps);
    guidance.bounds(...limits.guidance_scale);
    guidance.set(defaults.guidance_scale);
    count.bounds(1, limits.max_images);
    count.set(Math.min(DEFAULT_COUNT, limits.max_images));
  }

  /** How many pictures, or null while the field holds no allowed number. */
  get count() {
    return this.#numbers.count.valid() ? this.#numbers.count.get() : null;
  }

  set seed(text) {
    this.#seed.value = text;
    this.#seed.setCustomValidity("");
  }

  /** What to ask of the server; an empty seed field draws a new seed each time. */
  read() {
    const typed = this.#seed.value.trim();
    return {
      class_id: this.#picker.value,
      n: this.#numbers.count.get(),
      seed: typed === "" ? randomSeed() : BigInt(typed),
      steps: this.#numbers.steps.get(),
      guidance_scale: this.#numbers.guidance.get(),
    };
  }

  /** Fills the form from the address bar; true when the link names a whole drawing. */
  readLink() {
    const link = new URLSearchParams(location.hash.slice(1));
    for (const [name, number] of Object.entries(this.#numbers)) {
      if (link.has(name)) number.set(link.get(name));
    }
    if (link.has("class")) this.#picker.select(link.get("class"));
    const seed = link.get("seed") ?? "";
    this.seed = isSeed(seed) ? seed : "";
    return link.has("class") && this.#seed.value !== "";
  }

  /** Writes the form into the address bar; `seed` stands in for an empty field once it is drawn. */
  writeLink(seed = this.#seed.value.trim()) {
    const link = new URLSearchParams();
    if (this.#picker.value !== null) link.set("class", this.#picker.value);
    if (seed !== "") link.set("seed", seed);
    for (const [name, number] of Object.entries(this.#numbers)) link.set(name, number.get());
    history.replaceState(null, "", `#${link}`);
  }

  /** Makes the form repeat one picture: its class, seed, steps and guidance. */
  repeat({ class_id, seed, steps, guidance_scale }) {
    this.#picker.select(class_id);
    this.seed = String(seed);
    this.#numbers.steps.set(steps);
    this.#numbers.guidance.set(guidance_scale);
    this.writeLink();
  }
}

/** A number field and its slider, which ends earlier where the bound is far beyond common use. */
function pair(name, onChange) {
  const field = document.querySelector(`#${name}`);
  const slider = document.querySelector(`#${name}-range`);
  field.addEventListener("input", () => {
    slider.value = field.value;
    onChange();
  });
  slider.addEventListener("input", () => {
    field.value = slider.value;
    onChange();
  });
  return {
    get: () => Number(field.value),
    valid: () => field.validity.valid,
    set: (value) => {
      const number = Number(value);
      if (!Number.isFinite(number)) return;
      field.value = String(number);
      slider.value = field.value;
    },
    bounds: (low, high) => {
      field.min = slider.min = String(low);
      field.max = String(high);
      slider.max = String(Math.min(high, SLIDER_END[name]));
    },
  };
}

function isSeed(text) {
  return text === "" || (/^\d{1,19}$/.test(text) && BigInt(text) <= MAX_SEED);
}

/** 32 bits: enough to be new, short enough to read out. */
function randomSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}
