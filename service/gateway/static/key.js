/** The API key, for servers that want one: asked for when it is needed, kept until the tab is closed. */

const NAME = "maskbit-key";
const dialog = document.querySelector("#key-dialog");
const field = dialog.querySelector("input");
const forget = document.querySelector("#forget-key");
let asked = null;

export const currentKey = () => sessionStorage.getItem(NAME);

export function setUpKey() {
  forget.hidden = currentKey() === null;
  forget.addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    location.reload();
  });
  dialog.querySelector("button[value=cancel]").addEventListener("click", () => dialog.close("cancel"));
}

/**
 * Asks for a key, once for all requests that wait for one.
 * @param {string} reason a sentence
 * @returns {Promise<boolean>} false when the user gave none
 */
export function askForKey(reason) {
  asked ??= ask(reason).finally(() => (asked = null));
  return asked;
}

async function ask(reason) {
  dialog.querySelector("#key-reason").textContent = reason;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const key = field.value.trim();
  if (dialog.returnValue !== "use" || key === "") return false;
  sessionStorage.setItem(NAME, key);
  forget.hidden = false;
  return true;
}
