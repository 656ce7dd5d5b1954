/** The settings of a drawing: the form's fields and the link in the address bar that repeats it. */

const MAX_SEED = 2n ** 63n - 1n;
const SLIDER_END = { steps: 64, guidance: 12, count: 16 };
const DEFAULT_COUNT = 4;

export class Settings {
  #picker;
  #model = "";
  #seed = document.querySelector("#seed");
  #numbers = {};
  #extras = [...document.querySelectorAll("#more [name]")];

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
      this.seed = String(this.newSeed());
      onChange();
    });
    document.querySelector("#more").addEventListener("input", () => {
      this.#relate();
      onChange();
    });
    // A closed part of the form cannot show which field in it is wrong.
    const unfold = ({ currentTarget }) => (currentTarget.open = true);
    document.querySelector("#more").addEventListener("invalid", unfold, true);
  }

  /** Takes defaults and bounds from the answer of /info. */
  configure({ model, defaults, limits }) {
    this.#model = model;
    const { steps, guidance, count } = this.#numbers;
    steps.bounds(...limits.steps);
    steps.set(defaults.steps);
    guidance.bounds(...limits.guidance_scale);
    guidance.set(defaults.guidance_scale);
    count.bounds(1, limits.max_images);
    count.set(Math.min(DEFAULT_COUNT, limits.max_images));
    for (const field of this.#extras) {
      if (limits[field.name]) [field.min, field.max] = limits[field.name];
      setField(field, defaults[field.name]);
    }
    this.#relate();
  }

  /** How many pictures, or null while the field holds no allowed number. */
  get count() {
    return this.#numbers.count.valid() ? this.#numbers.count.get() : null;
  }

  set seed(text) {
    this.#seed.value = text;
    this.#seed.setCustomValidity("");
  }

  /** 32 bits: enough to be new, short enough to read out. */
  newSeed() {
    return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
  }

  /** After how many steps a preview is due, for so many previews in all. */
  previewEvery(previews) {
    return Math.ceil(this.#numbers.steps.get() / previews);
  }

  /** How to draw, without what and how often. */
  sampling() {
    const { steps, guidance } = this.#numbers;
    const extras = this.#extras.map((field) => [field.name, fieldValue(field)]);
    return { steps: steps.get(), guidance_scale: guidance.get(), ...Object.fromEntries(extras) };
  }

  /** What to ask of the server; an empty seed field draws a new seed each time. */
  read() {
    const typed = this.#seed.value.trim();
    return {
      model: this.#model,
      class_id: this.#picker.value,
      n: this.#numbers.count.get(),
      seed: typed === "" ? this.newSeed() : BigInt(typed),
      ...this.sampling(),
    };
  }

  /** Fills the form from the address bar; true when the link names a whole drawing. */
  readLink() {
    const link = linked();
    for (const [name, number] of Object.entries(this.#numbers)) {
      if (link.has(name)) number.set(link.get(name));
    }
    for (const field of this.#extras) if (link.has(field.name)) setField(field, link.get(field.name));
    this.#relate();
    if (link.has("class")) this.#picker.select(link.get("class"));
    const seed = link.get("seed") ?? "";
    this.seed = isSeed(seed) ? seed : "";
    return String(this.#picker.value) === link.get("class") && this.#seed.value !== "";
  }

  /** Writes the form into the address bar; `seed` stands in for an empty field once it is drawn. */
  writeLink(seed = this.#seed.value.trim()) {
    const link = new URLSearchParams({ model: this.#model });
    if (this.#picker.value !== null) link.set("class", this.#picker.value);
    if (seed !== "") link.set("seed", seed);
    for (const [name, number] of Object.entries(this.#numbers)) link.set(name, number.get());
    for (const field of this.#extras) link.set(field.name, fieldValue(field));
    history.replaceState(null, "", `#${link}`);
  }

  /** Makes the form repeat one picture with the settings as they are. */
  repeat({ class_id, seed }) {
    this.#picker.select(class_id);
    this.seed = String(seed);
    this.#numbers.count.set(1);
    this.writeLink();
  }

  /** A falling temperature leaves none to set. */
  #relate() {
    const [falls, temperature] = ["anneal_temperature", "temperature"].map((name) =>
      this.#extras.find((field) => field.name === name),
    );
    temperature.disabled = falls.checked;
  }
}

/** What the link in the address bar says. */
export const linked = () => new URLSearchParams(location.hash.slice(1));

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

function fieldValue(field) {
  if (field.type === "checkbox") return field.checked;
  return field.type === "number" ? Number(field.value) : field.value;
}

function setField(field, value) {
  if (field.type === "checkbox") field.checked = String(value) === "true";
  else if (field.type === "number") field.value = String(Number(value));
  else if ([...field.options].some((option) => option.value === value)) field.value = value;
}

function isSeed(text) {
  return text === "" || (/^\d{1,19}$/.test(text) && BigInt(text) <= MAX_SEED);
}
